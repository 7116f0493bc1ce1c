"""The pack in the language of the front end, in both renderers: no English is left in its nodes."""

import json
import re

import pytest
from palimpsest.tests.browser.conftest import RENDERERS, enter
from palimpsest.tests.browser.front_end import load_workflow
from palimpsest.tests.browser.test_names import FIRST_SCREEN, SEARCH
from palimpsest.tests.templates import WORKFLOWS, file_of

LOCALES = WORKFLOWS.parent / "locales"
LETTERS = {"ko": "[\uac00-\ud7a3]", "zh": "[\u4e00-\u9fff]"}


def stored(language, name):
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=[(r, n) for r in RENDERERS for n in LETTERS], ids="-".join)
def speaking(request, browser, server):
    """The front end in a language: its page, and the language."""
    renderer, language = request.param
    server.post("settings/Comfy.Locale", language)
    options = {"viewport": {"width": 1600, "height": 1000}, "base_url": server.url}
    with browser.new_context(**options) as context:
        page = context.new_page()
        enter(page, server, renderer)
        yield page, language
    server.post("settings/Comfy.Locale", "en")


@pytest.fixture
def shot(speaking, request):
    """Keep a picture of the page."""
    from palimpsest.tests.browser.conftest import SCREENSHOTS

    def keep(name):
        words = re.sub(r"\W+", "-", f"{request.node.name}-{name}").strip("-")
        speaking[0].screenshot(path=SCREENSHOTS / f"{words}.png")

    return keep


SHOWN = """types => {
    app.graph.clear()
    const shown = {}
    for (const type of types) {
        const node = LiteGraph.createNode(type)
        app.graph.add(node)
        const named = list => Object.fromEntries(list.map(slot =>
            [slot.name, slot.label ?? slot.localized_name ?? slot.name]))
        shown[type] = {
            title: node.title,
            inputs: {...named(node.inputs ?? []), ...Object.fromEntries(
                (node.widgets ?? []).map(w => [w.name, w.label ?? w.name]))},
            outputs: (node.outputs ?? []).map(slot => slot.localized_name ?? slot.name),
            options: Object.fromEntries((node.widgets ?? []).filter(w => w.options?.getOptionLabel)
                .map(w => [w.name, w.options.values.map(w.options.getOptionLabel)])),
        }
    }
    app.graph.clear()
    return shown
}"""


def test_every_node_shows_its_own_language(speaking):
    page, language = speaking
    known = stored(language, "nodeDefs")
    shown = page.evaluate(SHOWN, list(known))
    for name, told in known.items():
        assert shown[name]["title"] == told["display_name"], name
        wanted = {key: entry["name"] for key, entry in told["inputs"].items()}
        assert {key: shown[name]["inputs"][key] for key in wanted} == wanted, name
        assert shown[name]["outputs"] == [entry["name"] for entry in told["outputs"].values()], name
        options = {
            k: list(e["options"].values()) for k, e in told["inputs"].items() if "options" in e
        }
        assert shown[name]["options"] == options, name


def test_the_demo_reads_in_it(speaking, shot):
    page, language = speaking
    load_workflow(page, file_of("demo"), "demo")
    page.wait_for_timeout(1500)
    titles = page.evaluate(
        "app.graph.nodes.filter(n => n.comfyClass?.startsWith('Palimpsest')).map(n => n.title)"
    )
    assert titles and all(
        re.search(LETTERS[language], title) for title in titles if "-to-" not in title
    )
    shot("demo")


def test_the_editor_speaks_it(speaking, shot):
    page, language = speaking
    load_workflow(page, file_of("sde_drag"), "drag")
    page.wait_for_timeout(1500)
    words = stored(language, "main")["palimpsest"]
    tools = page.locator(".palimpsest-points .tools input")
    assert tools.first.input_value() == words["Undo"]
    said = page.locator(".palimpsest-points .told").inner_text()
    assert said.strip() and re.search(LETTERS[language], said)
    shot("editor")


def test_a_help_page_opens_in_it(speaking, server):
    _, language = speaking
    for path in sorted((WORKFLOWS.parent / "web" / "docs").glob("*.md")):
        address = f"extensions/comfyui-palimpsest/docs/{path.stem}/{language}.md"
        title = stored(language, "nodeDefs")[path.stem]["display_name"]
        assert server.fetch(address).decode().startswith(f"# {title}\n")


def test_it_is_searched_for_in_it(speaking):
    page, language = speaking
    name = stored(language, "nodeDefs")["PalimpsestEdit"]["display_name"]
    assert "PalimpsestEdit" in page.evaluate(SEARCH, [name])[name][:FIRST_SCREEN]
