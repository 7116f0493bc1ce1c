"""The drag-point editor by wheel, by fingers and by keys alone, in both renderers."""

import re

import pytest
from palimpsest.tests.browser.front_end import load_workflow, run
from palimpsest.tests.browser.points_editor import (
    HEIGHT,
    PAIRS,
    WIDTH,
    arrived,
    assert_near,
    drag,
    draw_arrow,
    graph_place,
    opened,
    pairs,
    picture_is_there,
    press_tool,
    put_pictures,
    says,
    seen_at,
    spot,
    spot_of,
    text_of,
    workflow,
)

LONG = 900  # milliseconds; longer than a long press has to be


@pytest.fixture(scope="module", autouse=True)
def pictures(server):
    put_pictures(server)


def magnified(page):
    """How much larger than in the whole picture its pixels are shown."""
    page.wait_for_timeout(300)  # it is painted
    left, right = (seen_at(page, *spot(page, fx, 0.5))[0] for fx in (0.4, 0.6))
    box = page.locator(".palimpsest-points canvas").bounding_box()
    return 0.2 * box["width"] / (right - left) / min(box["width"] / WIDTH, box["height"] / HEIGHT)


# --- the wheel, and a pinch on the trackpad, of which browsers tell as of a wheel with Ctrl


def turn(page, by, key=None):
    """Turn the wheel over the editor; whether the page was kept from doing anything with it."""
    page.mouse.move(*spot(page, 0.5, 0.5))
    page.evaluate(
        "addEventListener('wheel', e => { window.turned = e }, {capture: true, once: true})"
    )
    if key:
        page.keyboard.down(key)
    page.mouse.wheel(0, by)
    page.wait_for_timeout(300)
    if key:
        page.keyboard.up(key)
    return page.evaluate("window.turned.defaultPrevented")


@pytest.mark.parametrize("key", [None, "Control"], ids=["wheel", "pinch"])
def test_the_wheel_is_the_graphs_until_the_editor_is_clicked_and_then_the_editors(page, key):
    opened(page, workflow(text_of(PAIRS)))
    before = graph_place(page)
    assert turn(page, 100, key)
    assert graph_place(page)[0] < before[0]
    assert magnified(page) == pytest.approx(1, abs=0.1)
    page.mouse.click(*spot_of(page, PAIRS[0][0]))
    place = graph_place(page)
    assert turn(page, -400, key)
    assert magnified(page) == pytest.approx(1.28 if key else 1.8, rel=0.15)
    assert graph_place(page) == place
    assert pairs(page) == PAIRS


def test_over_the_tools_and_the_text_the_wheel_is_the_editors_too(page):
    opened(page, workflow(text_of(PAIRS)))
    page.mouse.click(*spot_of(page, PAIRS[0][0]))
    place = graph_place(page)
    for part in (".tools", ".told"):
        box = page.locator(f".palimpsest-points {part}").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.keyboard.down("Control")
        page.mouse.wheel(0, -400)
        page.keyboard.up("Control")
    page.wait_for_timeout(300)
    assert graph_place(page) == place


def test_the_middle_button_moves_the_picture_alone(page):
    opened(page, workflow(text_of(PAIRS)))
    page.mouse.click(*spot_of(page, PAIRS[0][0]))
    turn(page, -500)
    place = graph_place(page)
    page.evaluate("app.canvas.copyToClipboard(app.graph.nodes)")  # Linux pastes by that button
    page.wait_for_timeout(300)
    under = seen_at(page, *spot(page, 0.4, 0.3))
    drag(page, spot(page, 0.4, 0.3), spot(page, 0.5, 0.35), button="middle")
    page.wait_for_timeout(300)
    assert_near(seen_at(page, *spot(page, 0.5, 0.35)), under)
    assert graph_place(page) == place
    assert page.evaluate("app.graph.nodes.length") == len(workflow()["nodes"])


# --- fingers


@pytest.fixture
def touch(page):
    """touch("Start" | "Move" | "End", place of each finger...), as a touch screen tells of it."""
    hand = page.context.new_cdp_session(page)

    def tell(kind, *points):
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        hand.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": fingers})

    yield tell
    hand.detach()


def tap(touch, at, jitter=4):
    """A finger never comes down without a little movement."""
    touch("Start", at)
    touch("Move", (at[0] + jitter, at[1]))
    touch("End")


def pull(touch, start, end):
    touch("Start", start)
    touch("Move", tuple((a + b) / 2 for a, b in zip(start, end, strict=True)))
    touch("Move", end)
    touch("End")


def test_taps_set_and_choose_and_a_finger_draws_and_moves(page, server, touch, screenshot):
    opened(page, workflow())
    tap(touch, spot_of(page, [40, 50]))
    says(page, "Now press where it shall go")
    tap(touch, spot_of(page, [90, 80]))
    assert_near(pairs(page), [[[40, 50], [90, 80]]])
    pull(touch, spot_of(page, [150, 50]), spot_of(page, [150, 120]))
    says(page, "Target 2 is at")
    pull(touch, spot_of(page, [90, 80]), spot_of(page, [120, 60]))  # an end is moved
    expected = [[[40, 50], [120, 60]], [[150, 50], [150, 120]]]
    assert_near(pairs(page), expected)
    tap(touch, spot_of(page, [40, 50]))
    says(page, "Handle 1 is at")
    assert_near(pairs(page), expected)
    screenshot("touched")
    assert_near(arrived(server, run(page)), expected)


def test_a_long_press_on_an_end_deletes_its_arrow_and_says_so(page, touch, screenshot):
    opened(page, workflow(text_of(PAIRS)))
    at = spot_of(page, PAIRS[1][1])
    touch("Start", at)
    page.wait_for_timeout(LONG)
    assert pairs(page) == [PAIRS[0], PAIRS[2]]
    touch("Move", spot_of(page, [20, 20]))  # the finger is still there
    touch("End")
    assert pairs(page) == [PAIRS[0], PAIRS[2]]
    says(page, "Drag 2 is deleted: Undo brings it back")
    screenshot("deleted")
    press_tool(page, "Undo")
    assert pairs(page) == PAIRS


def test_a_long_press_elsewhere_is_a_press(page, touch):
    opened(page, workflow())
    touch("Start", spot_of(page, [40, 50]))
    page.wait_for_timeout(LONG)
    touch("Move", spot_of(page, [90, 80]))
    touch("End")
    assert_near(pairs(page), [[[40, 50], [90, 80]]])


def test_an_end_that_is_dragged_slowly_is_not_deleted(page, touch):
    opened(page, workflow(text_of(PAIRS)))
    touch("Start", spot_of(page, PAIRS[0][1]))
    touch("Move", spot_of(page, [125, 60]))
    page.wait_for_timeout(LONG)
    touch("Move", spot_of(page, [140, 60]))
    touch("End")
    assert_near(pairs(page), [[PAIRS[0][0], [140, 60]], *PAIRS[1:]])


def test_two_fingers_zoom_and_move_the_picture_alone(page, touch, screenshot):
    opened(page, workflow())
    start, end = spot(page, 0.3, 0.3), spot(page, 0.45, 0.4)
    expected = [[seen_at(page, *start), seen_at(page, *end)]]
    pull(touch, start, end)
    assert_near(pairs(page), expected)
    place = graph_place(page)
    under = seen_at(page, *spot(page, 0.55, 0.55))
    touch("Start", spot(page, 0.5, 0.5))
    touch("Start", spot(page, 0.5, 0.5), spot(page, 0.6, 0.6))
    touch("Move", spot(page, 0.45, 0.45), spot(page, 0.65, 0.65))
    touch("Move", spot(page, 0.4, 0.4), spot(page, 0.7, 0.7))
    touch("Move", spot(page, 0.3, 0.4), spot(page, 0.6, 0.7))  # both go to the left
    touch("End")
    assert magnified(page) == pytest.approx(3, rel=0.15)
    assert_near(seen_at(page, *spot(page, 0.45, 0.55)), under)
    assert graph_place(page) == place
    assert page.evaluate("visualViewport.scale") == 1
    assert_near(pairs(page), expected)  # the first finger's press has not been
    expected.append(draw_arrow(page, (0.7, 0.5), (0.8, 0.7)))
    assert_near(pairs(page), expected)
    screenshot("pinched")


def test_two_fingers_on_the_graph_are_still_the_graphs(page, touch):
    opened(page, workflow())
    touch("Start", spot(page, 0.5, 0.5))  # and what was on the editor is over
    touch("End")
    place = graph_place(page)
    touch("Start", (1200, 700))
    touch("Start", (1200, 700), (1250, 750))
    touch("Move", (1150, 650), (1300, 800))
    touch("End")
    page.wait_for_timeout(300)
    assert graph_place(page)[0] > 1.5 * place[0]


# --- keys


def reach_by_key(page):
    """Go on by Tab from the last tool, as somebody without a mouse would."""
    page.locator(".palimpsest-points .tools input[value='Import']").focus()
    page.keyboard.press("Tab")
    says(page, "Enter adds an arrow, Tab goes from end to end")


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


MIDDLE = [WIDTH // 2, HEIGHT // 2]


def test_an_arrow_is_made_by_keys_alone(page, server, screenshot):
    opened(page, workflow())
    reach_by_key(page)
    press(page, "Enter")
    says(page, "Handle 1: the arrow keys move it, Enter goes on to where it shall go")
    press(page, *["Shift+ArrowLeft"] * 3, "ArrowUp")
    x, y = MIDDLE[0] - 30, MIDDLE[1] - 1
    assert_near(pairs(page), [[[x, y], [x, y]]])
    press(page, "Enter")
    says(page, "Now press where it shall go, or take the arrow keys")
    press(page, *["Shift+ArrowRight"] * 4)
    says(page, re.compile(r"Target 1 is at 13\d, \d+"))
    screenshot("one")
    press(page, "Enter", "Shift+ArrowDown", "Enter", "Shift+ArrowRight")
    first = [[x, y], [x + 40, y]]
    second = [[MIDDLE[0], MIDDLE[1] + 10], [MIDDLE[0] + 10, MIDDLE[1] + 10]]
    assert_near(pairs(page), [first, second])
    assert_near(arrived(server, run(page)), [first, second])


def test_tab_goes_from_end_to_end_and_on_out_of_the_editor(page):
    opened(page, workflow(text_of(PAIRS[:2])))
    reach_by_key(page)
    press(page, "Tab", "Tab", "Tab", "ArrowRight")
    says(page, "Handle 2 is at 61, 120")
    press(page, "Shift+Tab", "ArrowDown")
    says(page, "Target 1 is at 110, 61")
    assert pairs(page) == [[[60, 60], [110, 61]], [[61, 120], [110, 160]]]
    press(page, "Tab", "Delete")
    assert pairs(page) == [[[60, 60], [110, 61]]]
    says(page, "Drag 2 is deleted: Undo brings it back")
    press(page, "Control+z")
    assert len(pairs(page)) == 2
    press(page, *["Tab"] * 4)
    inside = "document.querySelector('.palimpsest-points').contains(document.activeElement)"
    assert page.evaluate(inside)
    press(page, "Tab")
    assert not page.evaluate(inside)
    assert page.evaluate("app.graph.nodes.length") == 3


def test_keys_zoom_and_what_they_move_stays_in_sight(page, screenshot):
    opened(page, workflow(text_of(PAIRS)))
    reach_by_key(page)
    place = graph_place(page)
    press(page, "Tab", *["+"] * 8)
    assert magnified(page) > 4
    press(page, *["Shift+ArrowRight"] * 10)
    assert pairs(page)[0] == [[160, 60], [110, 60]]  # over its own target, which stays
    page.wait_for_timeout(300)
    shown = [seen_at(page, *spot(page, fx, 0.9))[0] for fx in (0.02, 0.98)]
    assert shown[0] < 160 < shown[1]
    screenshot("zoomed")
    press(page, "-")
    assert graph_place(page) == place
    press(page, "0")
    assert magnified(page) == pytest.approx(1, abs=0.1)


def test_keys_for_the_stage_leave_the_buttons_alone(page):
    load_workflow(page, workflow(text_of(PAIRS)))
    picture_is_there(page)
    page.locator(".palimpsest-points .tools input[value='Clear']").focus()
    press(page, "Enter")  # presses the button
    assert pairs(page) == []
