"""The rules of the drag-point editor (web/drag_points*.js), in the Chromium that will run them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.pipelines.points import DragPoints, read_points, write_points
from palimpsest.tests.browser.points_editor import steadily

SIZE = [250, 200]

# --- what is set


def test_an_arrow_starts_with_its_target_on_its_handle(rules):
    added = rules("addPair(NOTHING, given, [10.9, 20.2])", SIZE)
    assert (added["size"], added["pairs"]) == (SIZE, [[[10, 20], [10, 20]]])
    assert json.loads(added["text"]) == {"version": 1, "size": SIZE, "pairs": added["pairs"]}


def test_points_stay_inside_the_picture(rules):
    assert rules("addPair(NOTHING, given, [-5, 900]).pairs[0][0]", SIZE) == [0, 199]
    moved = "moveEnd(addPair(NOTHING, given, [1, 1]), {pair: 0, end: 1}, [250, -1]).pairs[0][1]"
    assert rules(moved, SIZE) == [249, 0]


def test_edits_leave_what_was_there_before_alone(rules):
    before, after = rules(
        """(() => {
            const freeze = o => (Object.values(o ?? {}).forEach(v => typeof v === 'object' &&
                freeze(v)), Object.freeze(o))
            const one = freeze(addPair(NOTHING, given, [1, 1])), text = one.text
            moveEnd(one, {pair: 0, end: 0}, [9, 9]); removePair(one, 0); rescale(one, [50, 40])
            return [text, one.text]
        })()""",
        SIZE,
    )
    assert before == after


def test_deleting_the_last_arrow_leaves_an_empty_value(rules):
    assert rules("removePair(addPair(NOTHING, given, [1, 1]), 0).text", SIZE) == ""


def test_a_move_to_where_it_is_changes_nothing(rules):
    assert rules(
        """(() => { const one = addPair(NOTHING, given, [4, 5])
            return moveEnd(one, {pair: 0, end: 0}, [4.9, 5.9]) === one })()""",
        SIZE,
    )


whole_points = st.tuples(st.integers(0, SIZE[0] - 1), st.integers(0, SIZE[1] - 1))
some_pairs = st.lists(st.tuples(whole_points, whole_points), min_size=1, max_size=9)


@steadily
@given(some_pairs)
def test_editor_and_server_read_what_the_other_wrote(rules, pairs):
    points = DragPoints(tuple(SIZE), tuple(pairs))
    read = rules("parse(given)", write_points(points))
    assert (read["complaint"], read["size"]) == ("", SIZE)
    assert read_points(rules("drags(given.size, given.pairs).text", read)) == points


MALFORMED = {
    "{": "none that this editor wrote",
    "null": "none that this editor wrote",
    "[1, 2]": "none that this editor wrote",
    '{"version": 2}': "of version 2, this editor reads 1",
    '{"version": 1, "pairs": []}': "lacks a size, or pairs",
    '{"version": 1, "size": [0, 9], "pairs": []}': "lacks a size, or pairs",
    '{"version": 1, "size": [9, 9], "pairs": [[1, 2]]}': "lacks a size, or pairs",
    '{"version": 1, "size": [9, 9], "pairs": [[["a", 2], [3, 4]]]}': "lacks a size, or pairs",
    '{"version": 1, "size": [9, 9], "pairs": [[[1, 2], [3, 9]]]}': "Drag 1 leaves the picture",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_text_that_cannot_be_read_is_kept_and_complained_of(rules, text):
    read = rules("parse(given)", text)
    assert read["text"] == text
    assert MALFORMED[text] in read["complaint"]


@pytest.mark.parametrize("text", ["", "  ", None, 7])
def test_nothing_is_no_complaint(rules, text):
    assert rules("parse(given) === NOTHING", text)


def test_what_cannot_be_read_gives_way_to_the_first_arrow(rules):
    assert rules("addPair(parse('{'), given, [3, 4]).pairs", SIZE) == [[[3, 4], [3, 4]]]


TWO = "drags([250, 200], [[[10, 10], [20, 10]], [[20, 10], [90, 90]]])"


@pytest.mark.parametrize(
    ("at", "grip"),
    [
        ([10.5, 10.5], {"pair": 0, "end": 0}),
        ([12, 13], {"pair": 0, "end": 0}),
        ([20.5, 10.5], {"pair": 0, "end": 1}),  # a target lies on the handle of another arrow
        ([90, 86], {"pair": 1, "end": 1}),
        ([90, 84], None),
        ([150, 150], None),
    ],
)
def test_the_nearest_end_is_taken_and_targets_before_handles(rules, at, grip):
    assert rules(f"hit({TWO}, given, 6)", at) == grip


def test_an_arrow_without_a_way_to_go_is_finished_by_the_next_press(rules):
    assert rules(f"openPair({TWO})") == -1
    assert rules("openPair(addPair(given, given.size, [5, 5]))", rules(TWO)) == 2


def test_an_arrow_without_a_way_to_go_is_moved_as_a_whole(rules):
    moved = rules("movePair(addPair(given, given.size, [5, 5]), 2, [7.5, 300])", rules(TWO))
    assert moved["pairs"] == [*rules(f"{TWO}.pairs"), [[7, 199], [7, 199]]]


def test_tab_goes_from_end_to_end_and_out_of_them(rules):
    ends = [{"pair": pair, "end": end} for pair in (0, 1) for end in (0, 1)]
    walk = f"""(back => {{ const seen = []
        for (let at = nextEnd({TWO}, null, back); at; at = nextEnd({TWO}, at, back)) seen.push(at)
        return seen }})(given)"""
    assert rules(walk, False) == ends
    assert rules(walk, True) == ends[::-1]
    assert rules("nextEnd(NOTHING, null, false)") is None


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (None, "Now press where it shall go"),
        ({"pair": 2, "end": 1}, "Now press where it shall go"),
        ({"pair": 2, "end": 0}, "Handle 3: the arrow keys move it, Enter goes on"),
        ({"pair": 0, "end": 0}, "Now press where it shall go"),
    ],
)
def test_what_comes_next_is_told(rules, chosen, words):
    told = "told(addPair(given.two, given.two.size, [5, 5]), given.chosen, false)"
    assert words in rules(told, {"two": rules(TWO), "chosen": chosen})


def test_points_of_another_picture_are_told_and_moved_along(rules):
    assert rules("mismatch(NOTHING, [9, 9])") == rules(f"mismatch({TWO}, [250, 200])") == ""
    told = rules(f"mismatch({TWO}, [125, 100])")
    assert "250 x 200 pixels, this one is 125 x 100" in told
    halved = rules(f"rescale({TWO}, [125, 100])")
    assert (halved["size"], halved["pairs"][1]) == ([125, 100], [[10, 5], [45, 45]])


@steadily
@given(some_pairs, st.integers(1, 4))
def test_scaling_up_and_back_returns_every_point(rules, pairs, factor):
    larger = f"rescale(drags([250, 200], given), [{250 * factor}, {200 * factor}])"
    back = rules(f"rescale({larger}, [250, 200]).pairs", pairs)
    assert back == json.loads(json.dumps(pairs))


# --- import


def sample(**changes):
    return json.dumps(
        {"source": [[10, 20], [30.6, 40]], "target": [[15, 25], [60, 70]], "prompt": "a cat"}
        | changes
    )


def test_a_sample_of_dragbench_is_imported(rules):
    found = rules(f"importPoints(given, {SIZE})", sample())
    assert found["drags"]["pairs"] == [[[10, 20], [15, 25]], [[30, 40], [60, 70]]]
    assert found["drags"]["size"] == SIZE
    assert found["told"] == "2 drags imported: a cat"


def test_our_own_form_is_imported_with_its_own_size(rules):
    found = rules(f"importPoints({TWO}.text, [9, 9])")
    assert (found["drags"]["size"], found["told"]) == (SIZE, "2 drags imported")


@pytest.mark.parametrize(
    ("text", "size", "complaint"),
    [
        ("{", SIZE, "holds no drag points"),
        ("3", SIZE, "holds no drag points"),
        ("null", SIZE, "holds no drag points"),
        ('{"version": 1, "size": [9, 9], "pairs": []}', SIZE, "holds no drag points"),
        (sample(source=[[1, 2]]), SIZE, "not equally many points"),
        (sample(source=[], target=[]), SIZE, "not equally many points"),
        (sample(target=[[1, 2], ["x", 2]]), SIZE, "not equally many points"),
        (sample(), None, "does not say its picture's size"),
        (sample(), [50, 50], "drag 2 leaves the picture of 50 x 50"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(rules, text, size, complaint):
    found = rules("importPoints(given.text, given.size)", {"text": text, "size": size})
    assert "drags" not in found
    assert complaint in found["complaint"]


# --- undo and redo


def history(rules, *steps):
    """The pairs after steps such as "undo" or [x, tag], and how far one can go back and forth."""
    return rules(
        """(() => {
            let h = begin(NOTHING)
            for (const step of given) {
                if (step === 'undo') h = undo(h)
                else if (step === 'redo') h = redo(h)
                else h = commit(h, drags([99, 99], [[[step[0], 0], [9, 9]]]), step[1])
            }
            return [h.now.pairs[0]?.[0][0] ?? null, h.past.length, h.future.length]
        })()""",
        steps,
    )


def test_undo_and_redo_walk_one_line(rules):
    one, two = [1, ""], [2, ""]
    assert history(rules, one, two) == [2, 2, 0]
    assert history(rules, one, two, "undo") == [1, 1, 1]
    assert history(rules, one, two, "undo", "undo", "undo") == [None, 0, 2]
    assert history(rules, one, two, "undo", "undo", "redo", "redo", "redo") == [2, 2, 0]
    assert history(rules, one, two, "undo", [3, ""]) == [3, 2, 0]


def test_no_change_is_no_step(rules):
    assert history(rules, [1, ""], [1, ""]) == [1, 1, 0]


def test_the_arrow_keys_in_a_row_are_one_step(rules):
    assert history(rules, [1, ""], [2, "a"], [3, "a"], [4, "a"]) == [4, 2, 0]
    assert history(rules, [1, ""], [2, "a"], [3, "b"]) == [3, 3, 0]
    assert history(rules, [1, "a"], [2, "a"], "undo", "redo", [3, "a"]) == [3, 2, 0]


def test_text_that_could_not_be_read_comes_back_with_undo(rules):
    assert (
        rules("undo(commit(begin(parse('{')), addPair(NOTHING, [9, 9], [1, 1]))).now.text") == "{"
    )


# --- zoom and pan

boxes = st.tuples(st.integers(50, 900), st.integers(50, 900))
spots = st.tuples(st.floats(0, 1), st.floats(0, 1))


@steadily
@given(boxes, boxes, st.floats(0.2, 40), spots, spots)
def test_a_view_never_leaves_the_picture(rules, size, box, factor, at, by):
    at = [a * b for a, b in zip(at, box, strict=True)]
    by = [(a - 0.5) * 3 * b for a, b in zip(by, box, strict=True)]
    view = "panBy(zoomAt(WHOLE, size, box, factor, at), size, box, by)"
    placed = rules(
        f"(({{size, box, factor, at, by}}) => frame({view}, size, box))(given)",
        {"size": size, "box": box, "factor": factor, "at": at, "by": by},
    )
    for start, length, room in zip((placed["left"], placed["top"]), size, box, strict=True):
        shown = length * placed["scale"]
        if shown <= room:
            assert start == pytest.approx((room - shown) / 2, abs=1e-6)
        else:
            assert room - shown - 1e-6 <= start <= 1e-6


def test_what_lies_under_the_pointer_stays_there_in_a_zoom(rules):
    before, after = rules(
        """(() => { const box = [500, 400], at = [200, 150]
            const view = zoomAt(WHOLE, given, box, 3, at)
            return [WHOLE, view].map(v => toPicture(frame(v, given, box), at)) })()""",
        SIZE,
    )
    assert after == pytest.approx(before)


def test_box_and_picture_are_each_others_way_back(rules):
    there = "toBox(frame({zoom: 3, center: [0.4, 0.6]}, given, [500, 300]), [12, 34])"
    back = f"toPicture(frame({{zoom: 3, center: [0.4, 0.6]}}, given, [500, 300]), {there})"
    assert rules(back, SIZE) == pytest.approx([12, 34])


def test_what_is_revealed_is_seen(rules):
    view = "zoomAt(WHOLE, given, [500, 400], 4, [0, 0])"
    revealed = f"reveal({view}, given, [500, 400], [200, 150])"
    seen = f"toBox(frame({revealed}, given, [500, 400]), [200, 150])"
    x, y = rules(seen, SIZE)
    assert 0 < x < 500 and 0 < y < 400
    there = f"(view => reveal(view, given, [500, 400], [30, 30]) === view)({view})"
    assert rules(there, SIZE)  # what is seen already is left where it is


@pytest.mark.parametrize(
    ("wheel", "factor"),
    [
        ({"deltaY": -100, "deltaMode": 0}, 1.16),
        ({"deltaY": 100, "deltaMode": 0}, 1 / 1.16),
        ({"deltaY": -3, "deltaMode": 1}, 1.07),
        ({"deltaY": -4, "deltaMode": 0, "ctrlKey": True}, 1.04),  # a pinch, in small steps
        ({"deltaY": -120, "deltaMode": 0, "ctrlKey": True}, 1.28),  # a real wheel with Ctrl
    ],
)
def test_a_turn_of_the_wheel_zooms_and_a_pinch_does_so_in_its_smaller_steps(rules, wheel, factor):
    assert rules("zoomOfWheel(given)", wheel) == pytest.approx(factor, abs=0.01)


# --- where pictures are


@pytest.mark.parametrize(
    ("value", "query"),
    [
        ("cat.png", "filename=cat.png&subfolder=&type=input"),
        ("a/b/my cat.png [output]", "filename=my+cat.png&subfolder=a%2Fb&type=output"),
        ("clipspace/x [1].png [temp]", "filename=x+%5B1%5D.png&subfolder=clipspace&type=temp"),
    ],
)
def test_a_loaders_choice_is_found(rules, value, query):
    assert rules("viewOfFile(given)", value) == f"/view?{query}&channel=rgb"
    assert rules("viewOfFile(given, 'a')", value) == f"/view?{query}&channel=a"


@pytest.mark.parametrize("name", ["photo.jpg", "photo.JPEG"])
def test_a_photo_is_taken_whole_with_what_it_says_of_its_sides(rules, name):
    query = f"filename={name}&subfolder=&type=input"
    assert rules("viewOfFile(given)", name) == f"/view?{query}"
    assert rules("viewOfFile(given, 'a')", name) == f"/view?{query}&channel=a"
