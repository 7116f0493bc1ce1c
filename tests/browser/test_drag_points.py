"""The drag-point editor under a person's hands, in both renderers."""

import json

import numpy as np
import pytest
from palimpsest.tests.browser.front_end import load_workflow, run, widget_values
from palimpsest.tests.browser.points_editor import (
    PAIRS,
    after_a_run,
    arrived,
    assert_near,
    color_at,
    drag,
    draw_arrow,
    from_demo_scene,
    graph_place,
    graph_steps,
    opened,
    pairs,
    picture_is_there,
    press_on_the_empty_graph,
    press_tool,
    put_pictures,
    says,
    seen_at,
    spot,
    spot_of,
    text,
    text_of,
    workflow,
)


@pytest.fixture(scope="module", autouse=True)
def pictures(server):
    put_pictures(server)


@pytest.mark.parametrize(("scale", "size"), [(0.5, (1100, 1100)), (1, (560, 620)), (2, (440, 460))])
def test_what_was_pressed_is_what_arrives(page, server, screenshot, scale, size):
    opened(page, workflow(scale=scale, size=size))
    expected = [draw_arrow(page, (0.2, 0.2), (0.3, 0.35))]
    place = graph_place(page)
    page.mouse.move(*spot(page, 0.5, 0.5))
    page.mouse.wheel(0, -500)
    page.wait_for_timeout(300)  # it is painted
    expected.append(draw_arrow(page, (0.6, 0.4), (0.9, 0.45)))
    drag(page, spot(page, 0.5, 0.7), spot(page, 0.6, 0.8), button="middle")
    for key in ("Alt", "Space"):
        page.keyboard.down(key)
        drag(page, spot(page, 0.5, 0.8), spot(page, 0.48, 0.77))
        page.keyboard.up(key)
    page.wait_for_timeout(300)
    expected.append(draw_arrow(page, (0.4, 0.85), (0.7, 0.9)))
    screenshot("drawn")
    assert graph_place(page) == place
    assert_near(pairs(page), expected)
    assert_near(arrived(server, run(page)), expected)


def test_an_arrow_is_moved_undone_and_redone(page, screenshot):
    opened(page, workflow(text_of(PAIRS)))
    drag(page, spot_of(page, PAIRS[1][0]), spot_of(page, [30, 150]))
    moved = [PAIRS[0], [[30, 150], PAIRS[1][1]], PAIRS[2]]
    assert_near(pairs(page), moved)
    moved = pairs(page)
    steps = graph_steps(page)
    page.keyboard.press("Control+z")
    assert pairs(page) == PAIRS
    page.keyboard.press("Control+Shift+z")
    assert pairs(page) == moved
    press_tool(page, "Undo")
    assert pairs(page) == PAIRS
    page.keyboard.press("Control+y")
    assert pairs(page) == moved
    page.wait_for_timeout(300)  # ComfyUI would have undone by now
    undo, redo = graph_steps(page)
    assert (undo >= steps[0], redo) == (True, 0)
    screenshot("moved")


def test_keys_move_and_delete_what_was_touched(page, screenshot):
    opened(page, workflow(text_of(PAIRS)))
    page.mouse.click(*spot_of(page, PAIRS[2][1]))
    for key in ("ArrowRight", "ArrowRight", "Shift+ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
    assert pairs(page)[2] == [[180, 60], [182, 129]]
    says(page, "Target 3 is at 182, 129")
    screenshot("touched")
    page.keyboard.press("Control+z")
    assert pairs(page) == PAIRS
    page.mouse.click(*spot_of(page, PAIRS[0][0]))
    page.keyboard.press("Delete")
    assert pairs(page) == PAIRS[1:]
    page.keyboard.press("Delete")  # nothing is chosen any more: it must not take the node
    page.mouse.click(*spot_of(page, PAIRS[1][1]), button="right")
    assert pairs(page) == PAIRS[2:]
    press_tool(page, "Clear")
    assert text(page) == ""
    press_tool(page, "Undo")
    assert pairs(page) == PAIRS[2:]
    assert page.evaluate("app.graph.nodes.length") == 3


def test_a_reroute_lets_the_picture_through_and_squares_follow_the_radius(page):
    graph = workflow(text_of(PAIRS))
    reroute = {
        "id": 4,
        "type": "Reroute",
        "pos": [-40, -20],
        "inputs": [{"name": "", "type": "*", "link": 1}],
        "outputs": [{"name": "", "type": "IMAGE", "links": [3]}],
    }
    graph["nodes"].append(reroute)
    graph["nodes"][1]["inputs"][0]["link"] = 3
    graph["links"] = [[1, 1, 0, 4, 0, "*"], [2, 2, 0, 3, 0, "*"], [3, 4, 0, 2, 0, "IMAGE"]]
    opened(page, graph)
    on_the_square = spot_of(page, [180, 120 + 4 * 8])
    before = seen_at(page, *on_the_square)
    assert_near([before], [[180, 152]])
    page.evaluate("app.graph.getNodeById(2).widgets[1].value = 4")
    page.wait_for_timeout(500)
    assert np.abs(np.subtract(color_at(page, *on_the_square)[:2], before)).max() > 20


def test_two_clicks_make_an_arrow_and_escape_calls_one_off(page, server):
    opened(page, workflow())
    page.mouse.click(*spot_of(page, [40, 50]))
    says(page, "Now press where it shall go")
    page.mouse.click(*spot_of(page, [90, 80]))
    assert_near(pairs(page), [[[40, 50], [90, 80]]])
    page.mouse.move(*spot_of(page, [150, 50]))
    page.mouse.down()
    page.mouse.move(*spot_of(page, [150, 90]))
    page.keyboard.press("Escape")
    page.mouse.up()
    assert_near(pairs(page), [[[40, 50], [90, 80]]])
    assert_near(arrived(server, run(page)), [[[40, 50], [90, 80]]])


def test_the_graphs_own_undo_takes_an_arrow_back(page):
    opened(page, workflow())
    drag(page, spot_of(page, [40, 50]), spot_of(page, [90, 80]))
    drawn = pairs(page)
    page.keyboard.press("ArrowLeft")
    nudged = pairs(page)
    assert nudged != drawn
    press_on_the_empty_graph(page)
    for key, expected in [("z", drawn), ("z", []), ("y", drawn), ("y", nudged)]:
        page.keyboard.press(f"Control+{key}")
        wanted = text_of(expected) if expected else ""
        page.wait_for_function(
            """wanted => { const {value} = app.graph.getNodeById(2).widgets[0]
                return wanted ? value && JSON.stringify(JSON.parse(value)) ===
                    JSON.stringify(JSON.parse(wanted)) : value === '' }""",
            arg=wanted,
        )
    picture_is_there(page)


def test_points_outlive_saving_resizing_and_copying(page, server, screenshot):
    opened(page, workflow())
    drag(page, spot_of(page, [40, 50]), spot_of(page, [90, 80]))
    kept = text(page)
    page.evaluate("app.graph.getNodeById(2).setSize([420, 700])")
    page.wait_for_timeout(500)
    assert text(page) == kept
    stored = page.evaluate("JSON.stringify(app.graph.serialize())")
    opened(page, workflow())
    assert text(page) == ""
    opened(page, json.loads(stored))
    assert text(page) == kept
    assert_near(arrived(server, run(page)), [[[40, 50], [90, 80]]])
    press_on_the_empty_graph(page)
    page.evaluate("app.canvas.selectNode(app.graph.getNodeById(2))")
    page.keyboard.press("Control+c")
    page.mouse.move(1250, 500)
    page.keyboard.press("Control+v")
    page.wait_for_function("app.graph.nodes.length === 4")
    values = [v[0] for key, v in widget_values(page).items() if key not in ("1", "3")]
    assert values == [kept, kept]
    page.wait_for_timeout(500)
    screenshot("copied")


def test_a_subgraph_keeps_points_and_picture(page, server, screenshot):
    opened(page, workflow(text_of(PAIRS)))
    page.evaluate(
        """() => { app.canvas.selectNode(app.graph.getNodeById(2))
            return app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph') }"""
    )
    page.wait_for_function("app.graph.nodes.some(node => node.subgraph)")
    ended = run(page)
    assert ended["kind"] == "execution_success"
    prompt = server.wait(ended["prompt_id"])["prompt"][2]
    (inside,) = (n for n in prompt.values() if n["class_type"] == "PalimpsestDragPoints")
    assert json.loads(inside["inputs"]["points"])["pairs"] == PAIRS
    page.evaluate(
        "() => { const host = app.graph.nodes.find(node => node.subgraph)"
        "; app.canvas.openSubgraph(host.subgraph, host) }"
    )
    page.locator(".palimpsest-points").first.wait_for()
    picture_is_there(page)
    screenshot("inside")


def test_a_picture_of_another_size_is_told_and_the_points_are_kept(page, server, screenshot):
    opened(page, workflow(text_of(PAIRS)))
    choose(page, "smaller.png")
    says(page, "set on a picture of 250 x 200 pixels, this one is 125 x 100")
    picture_is_there(page)
    drag(page, spot(page, 0.4, 0.4), spot(page, 0.6, 0.5))
    assert pairs(page) == PAIRS
    screenshot("other size")
    ended = run(page)
    assert ended["kind"] == "execution_error"
    assert "points were set on a picture of 250 x 200" in ended["exception_message"]
    choose(page, "where.png")
    says(page, "3 drags")
    choose(page, "smaller.png")
    press_tool(page, "Rescale")
    says(page, "3 drags")
    assert json.loads(text(page))["size"] == [125, 100]
    assert pairs(page)[0] == [[30, 30], [55, 30]]
    choose(page, "gone.png")
    says(page, "The picture cannot be loaded")
    assert pairs(page)[0] == [[30, 30], [55, 30]]


def choose(page, name):
    page.evaluate(
        "name => { app.graph.getNodeById(1).widgets.find(w => w.name === 'image').value = name }",
        name,
    )


def test_text_that_cannot_be_read_stays_until_the_person_edits(page, screenshot):
    harm = '{"version": 9, "pairs": []}'
    opened(page, workflow(harm))
    says(page, "what you set replaces it")
    assert text(page) == harm
    screenshot("unreadable")
    assert run(page)["kind"] == "execution_error"
    page.keyboard.press("Escape")  # the error that ComfyUI shows
    assert text(page) == harm
    opened(page, workflow(harm))
    drag(page, spot_of(page, [40, 50]), spot_of(page, [90, 80]))
    assert_near(pairs(page), [[[40, 50], [90, 80]]])
    press_tool(page, "Undo")
    assert text(page) == harm


def test_picture_and_mask_of_any_node_come_with_a_run(page, server, screenshot):
    load_workflow(page, after_a_run())
    says(page, "Run the graph once")
    screenshot("before")
    ended = run(page)
    assert ended["kind"] == "execution_error"
    assert "No points are set on Drag Points" in ended["exception_message"]
    picture_is_there(page)
    screenshot("refused")
    press_on_the_empty_graph(page)
    page.keyboard.press("Escape")
    drag(page, spot(page, 0.45, 0.5), spot(page, 0.6, 0.4))
    ended = run(page)
    assert ended["kind"] == "execution_success"
    page.wait_for_timeout(500)
    screenshot("run")
    outside = color_at(page, *spot(page, 0.5, 0.97))
    page.evaluate("app.graph.getNodeById(2).disconnectInput(1)")
    page.wait_for_timeout(500)
    lit = color_at(page, *spot(page, 0.5, 0.97))
    assert sum(outside) < 0.6 * sum(lit)


def test_a_demo_scene_is_shown_before_any_run_and_after_save_and_load(page, reload, screenshot):
    opened(page, from_demo_scene())
    heart = color_at(page, *spot(page, 0.5, 0.5))
    assert heart[0] > 2 * heart[2]  # it is red
    set_on_scene(page, "color", "blue")
    page.wait_for_timeout(1000)
    heart = color_at(page, *spot(page, 0.5, 0.5))
    assert heart[2] > 2 * heart[0]
    stored = page.evaluate("JSON.stringify(app.graph.serialize())")
    reload()
    opened(page, json.loads(stored))
    assert color_at(page, *spot(page, 0.5, 0.5)) == heart
    screenshot("again")


def set_on_scene(page, name, value):
    page.evaluate(
        """([name, value]) => {
            app.graph.getNodeById(1).widgets.find(w => w.name === name).value = value }""",
        [name, value],
    )


def test_a_sample_of_dragbench_is_imported(page, tmp_path, screenshot):
    sample = {"source": [[10, 20], [60, 80]], "target": [[30, 20], [60, 100]], "prompt": "a lion"}
    good, bad = tmp_path / "prompt.json", tmp_path / "other.json"
    good.write_text(json.dumps(sample), encoding="utf-8")
    bad.write_text(json.dumps(sample | {"source": [[900, 1], [1, 1]]}), encoding="utf-8")
    opened(page, workflow(text_of(PAIRS)))
    for path, told in [(bad, "other.json: Its drag 1 leaves"), (good, "2 drags imported: a lion")]:
        with page.expect_file_chooser() as chooser:
            press_tool(page, "Import")
        chooser.value.set_files(path)
        says(page, told)
        screenshot(path.stem)
    assert pairs(page) == [[[10, 20], [30, 20]], [[60, 80], [60, 100]]]
    page.keyboard.press("Control+z")
    assert pairs(page) == PAIRS


def test_app_mode_has_the_editor_too(page, screenshot):
    graph = workflow(text_of(PAIRS))
    graph["extra"]["linearData"] = {"inputs": [[2, "points"]], "outputs": [3]}
    opened(page, graph)
    toggle = "app.extensionManager.command.execute('Comfy.ToggleLinear')"
    page.evaluate(toggle)
    page.get_by_test_id("linear-widgets").locator(".palimpsest-points").wait_for()
    picture_is_there(page)
    expected = [*PAIRS, draw_arrow(page, (0.15, 0.85), (0.35, 0.9))]
    assert_near(pairs(page), expected)
    screenshot("app")
    page.evaluate(toggle)
    page.wait_for_timeout(1000)  # the graph is drawn
    assert_near(pairs(page), expected)
    expected.append(draw_arrow(page, (0.85, 0.1), (0.85, 0.25)))
    assert_near(pairs(page), expected)
    screenshot("graph")
