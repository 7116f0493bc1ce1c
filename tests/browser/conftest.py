"""A real Chromium on the real front end, in both of its renderers."""

import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
from palimpsest.dev import DEV, PACK, find_chromium
from palimpsest.tests.browser.front_end import open_app
from playwright.sync_api import Page, sync_playwright

FLAGS = [
    "--no-sandbox",  # Chromium refuses to run as root with it
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
SCREENSHOTS = DEV / "screenshots"
RENDERERS = ("canvas", "vue")


@dataclass(frozen=True)
class FrontEnd:
    """An open front end: its page, what we complain of in it, and how it draws nodes."""

    page: Page
    complaints: list
    renderer: str


HELD = pytest.StashKey[dict[str, tuple[str, object, ExitStack]]]()


def held(request, kind, name, opening):
    """What a context gives, which is left after the last test of this folder.

    A scope for that pytest has of packages alone, and of modules here would be too short.

    Args:
        request: Of a fixture of a module.
        kind: There is one of each at a time: asked for another `name`, the one before is left.
        name: Which one it is.
        opening: Makes the context.
    """
    folder = request.node.parent
    kept = folder.stash.setdefault(HELD, {})
    if kind in kept and kept[kind][0] == name:
        return kept[kind][1]
    if kind in kept:
        kept.pop(kind)[2].close()
    stack = ExitStack()
    folder.addfinalizer(stack.close)
    kept[kind] = name, stack.enter_context(opening()), stack
    return kept[kind][1]


@pytest.fixture(scope="module")
def browser(request):
    """A browser for all files: while it is open, its loop runs in the thread of the tests."""
    return held(request, "browser", "Chromium", chromium)


@contextmanager
def chromium():
    """A Chromium without a window."""
    with sync_playwright() as playwright:
        path = find_chromium()
        assert path, "no Chromium: run `python dev.py test browser`, or set CHROMIUM"
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=RENDERERS)
def opened(request, browser, server):
    """The front end in each renderer, for all files: to open it takes longer than most tests.

    One is open at a time, since without a GPU a page takes a tenth of a core while it does nothing;
    of two workers each has a renderer (`pytest_xdist_make_scheduler`).
    """
    return held(request, "page", request.param, lambda: front_end(browser, server, request.param))


@contextmanager
def front_end(browser, server, renderer):
    """The front end in a renderer."""
    options = {"viewport": {"width": 1600, "height": 1000}, "base_url": server.url}
    with browser.new_context(**options) as context:
        page, complaints = context.new_page(), []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.extend(our_errors(message)))
        enter(page, server, renderer)
        yield FrontEnd(page, complaints, renderer)


def enter(page, server, renderer):
    """Open the front end in a page, drawn by a renderer."""
    server.post("settings/Comfy.TutorialCompleted", True)
    server.post("settings/Comfy.VueNodes.Enabled", renderer == "vue")
    open_app(page, server.url)
    # While anything runs a badge pulses: without a GPU that takes half a core from what runs.
    # Playwright's own add_style_tag also fails where anything else is refused meanwhile.
    page.evaluate(
        """rule => {
            const style = document.createElement('style')
            style.textContent = rule
            document.head.append(style)
        }""",
        "*, *::before, *::after { animation: none !important }",
    )


@pytest.fixture
def page(opened):
    """A front end into which every test loads a graph of its own; it fails where we complain."""
    opened.complaints.clear()
    yield opened.page
    assert opened.complaints == []


@pytest.fixture
def reload(opened, server):
    """reload() opens the page anew, as a person would."""
    return lambda: enter(opened.page, server, opened.renderer)


def our_errors(message):
    """The text of a console error that speaks of us, in a list, or an empty one.

    The front end asks for a help page in its own language before it asks for the page.
    """
    told = f"{message.text} ({message.location.get('url')})"
    translation = re.search(r"404 .*/docs/\w+/[\w-]+\.md\)$", told)
    ours = message.type == "error" and re.search(f"{PACK}|palimpsest", told, re.I)
    return [told] if ours and not translation else []


MODULES = ["drag_points.js", "drag_points_cells.js", "drag_points_frame.js"]


@pytest.fixture(scope="module")
def rules(browser, server):
    """The pure functions of the drag-point editor, in the Chromium that will run them.

    rules("expression with the names of the modules", given) -> its value.
    """
    page = browser.new_page()
    page.goto(f"{server.url}/extensions/{PACK}/{MODULES[0]}")
    page.evaluate(
        """async names => { window.d = Object.assign({},
            ...await Promise.all(names.map(name => import('./' + name)))) }""",
        MODULES,
    )

    def evaluate(expression, given=None):
        names = "{" + ",".join(page.evaluate("Object.keys(d)")) + "}"
        return page.evaluate(f"given => {{ const {names} = d; return {expression} }}", given)

    yield evaluate
    page.close()


@pytest.fixture
def screenshot(page, request):
    """Keep a picture of the page: screenshot("name") -> its path under .dev/screenshots."""

    def keep(name):
        words = re.sub(r"\W+", "-", f"{request.node.name}-{name}").strip("-")
        path = SCREENSHOTS / f"{words}.png"
        page.screenshot(path=path)
        return path

    return keep
