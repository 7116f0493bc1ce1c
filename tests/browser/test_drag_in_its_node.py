"""What SDE-Drag shows in its own node: the picture once, and its sentence whole."""

import pytest
from palimpsest.tests.browser.front_end import load_workflow, run
from palimpsest.tests.browser.test_workflows import hurry
from palimpsest.tests.templates import file_of

WORKFLOW = file_of("sde_drag")
FIND = "app.graph.nodes.find(node => node.type === 'PalimpsestSDEDrag')"


@pytest.fixture
def loaded(page):
    """The page with the workflow in it, looking at the node."""
    load_workflow(page, WORKFLOW, "drag")
    page.evaluate(
        f"""() => {{ const {{pos}} = {FIND}
            Object.assign(app.canvas.ds, {{scale: 1, offset: [400 - pos[0], 80 - pos[1]]}})
            app.canvas.setDirty(true, true) }}"""
    )
    return page


def tell(page, text, size):
    """Let the node say something, at a size of it."""
    page.evaluate(
        f"""([text, size]) => {{ const node = {FIND}, id = String(node.id)
            node.setSize(size)
            const detail = {{node: id, display_node: id, output: {{palimpsest_text: [text]}}}}
            app.api.dispatchCustomEvent('executed', detail) }}""",
        [text, size],
    )
    page.wait_for_timeout(400)


def is_whole(page):
    """Whether nothing of the report is cut off, at its sides or below."""
    return page.evaluate(
        f"""() => {{ const {{element}} = {FIND}.widgets.find(w => w.name === 'palimpsest_report')
            return element.scrollHeight <= element.clientHeight
                && element.scrollWidth <= element.clientWidth && element.clientHeight > 20 }}"""
    )


CANCELLED = "cancelled after 12 of 15 drag steps; kept as drag_cancelled_00001_.png"
TEXTS = [
    CANCELLED,
    f"{CANCELLED}\nand {'a_name_that_has_no_end_' * 4}.png",
    "nineteen letters_a a word nineteen letters_a in between nineteen letters_a",
]


@pytest.mark.parametrize("text", TEXTS, ids=["cancelled", "long name", "words"])
def test_what_is_told_is_wrapped_in_a_node_of_any_width(loaded, screenshot, text):
    for width in (360, 225, 300, 260):  # narrower than when it was told, too
        tell(loaded, text, [width, 600])
        assert is_whole(loaded), width
    screenshot("told")


def test_a_node_that_is_made_narrower_later_shows_all_of_it(loaded):
    tell(loaded, CANCELLED, [420, 700])
    loaded.evaluate(f"{FIND}.setSize([230, 700])")
    loaded.wait_for_timeout(600)
    assert is_whole(loaded)


def shown(page):
    """Where the pictures in the node come from: "blob" while it runs, "file" afterwards."""
    page.wait_for_timeout(800)  # they are drawn
    return page.evaluate(
        f"""() => {{ const node = {FIND}
            const element = document.querySelector(`[data-node-id="${{node.id}}"]`)
            const images = element ? [...element.querySelectorAll('img')] : node.imgs ?? []
            return images.map(({{src}}) => src.startsWith('blob:') ? 'live' : 'file') }}"""
    )


def test_the_picture_is_shown_once_while_it_runs_and_once_in_the_end(loaded, screenshot):
    hurry(loaded, 8)
    assert run(loaded)["kind"] == "execution_success"
    assert shown(loaded) == ["file"]
    screenshot("done")
    loaded.evaluate(
        f"""() => {{ const set = (name, value) =>
                {{ {FIND}.widgets.find(w => w.name === name).value = value }}
            set('seed', 3); set('steps', 60)
            window.seen = 0; window.over = false
            app.api.addEventListener('b_preview_with_metadata', () => window.seen++)
            app.api.addEventListener('execution_interrupted', () => {{ window.over = true }}) }}"""
    )
    loaded.get_by_test_id("queue-button").click()
    loaded.wait_for_function("window.seen", timeout=120_000)
    assert shown(loaded) == ["live"]
    screenshot("running")
    loaded.evaluate("app.api.interrupt()")
    loaded.wait_for_function("window.over", timeout=120_000)
    assert shown(loaded) == ["file"]
    assert is_whole(loaded)
    screenshot("cancelled")
