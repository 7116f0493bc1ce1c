"""What the editor draws and warns of (web/drag_points_cells.js), beside what the server does."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.copy_paste import Brush, Move, copy_paste
from palimpsest.pipelines.drag import cells_of, nearest_cells
from palimpsest.pipelines.points import DragPoints
from palimpsest.tests.browser.points_editor import steadily

SIZE = [250, 200]

# --- what is copied


@steadily
@given(st.integers(1, 1024))
def test_a_radius_in_pixels_is_as_many_cells_as_on_the_server(rules, pixels):
    assert rules("cellsOf(given, PIXELS)", pixels) == nearest_cells(pixels, 8)


def test_a_radius_in_cells_is_what_it_is(rules):
    assert rules("[1, 5, 128].map(radius => cellsOf(radius, CELLS))") == [1, 5, 128]


@st.composite
def drags(draw):
    """A picture of any size, a pair on it, and a radius."""
    size = draw(st.tuples(st.integers(24, 150), st.integers(24, 150)))
    point = st.tuples(*(st.integers(0, n - 1) for n in size))
    return size, draw(st.tuples(point, point)), draw(st.integers(1, min(size) // 8 // 2))


def pasted(size, pair, radius):
    """[h, w] bool per end: the cells that the pipeline copies from, and to."""
    width, height = (n // 8 for n in size)
    ((handle, target),) = cells_of(DragPoints(size, (pair,)), 8, (width, height))
    brush = Brush(radius, alpha=5.0, beta=1.0)
    x = torch.ones(1, 1, height, width)
    made = copy_paste(x, [Move(0, handle, target)], 1.0, brush=brush, draw=torch.zeros_like)
    arrived = (made[0, 0] == 5).numpy()
    back = [handle[axis] - target[axis] for axis in (1, 0)]
    return np.roll(arrived, back, (0, 1)), arrived


def filled(box, shape):
    """A box of cells as [h, w] bool."""
    cells = np.zeros(shape, bool)
    left, top, right, bottom = box
    cells[top:bottom, left:right] = True
    return cells


@settings(steadily, max_examples=150)
@given(drags())
def test_the_squares_are_the_cells_that_are_copied(rules, drag):
    size, pair, radius = drag
    asked = {"size": size, "pair": pair, "radius": radius}
    cells = rules("given.pair.map(point => cellAt(point, given.size))", asked)
    assume(cells[0] != cells[1])
    (expected,) = cells_of(DragPoints(size, (pair,)), 8, tuple(n // 8 for n in size))
    assert cells == [list(cell) for cell in expected]
    boxes = rules("copied(given.pair, given.size, given.radius)", asked)
    ends = pasted(size, pair, radius)
    if boxes is None:
        assert not np.any(ends)
        return
    assert all(
        np.array_equal(filled(box, end.shape), end) for box, end in zip(boxes, ends, strict=True)
    )


def test_the_square_lies_on_whole_cells_of_the_middle_of_the_picture(rules):
    """77 = 9 cells and 5 pixels, two of which are cut off on the left; 64 is 8 cells."""
    (box, _) = rules("copied([[30, 30], [46, 30]], [77, 64], 2)")
    assert box == [1, 1, 5, 5]  # 30 is in cell 3 either way, right below the middle
    assert rules("onPicture(given, [77, 64])", box) == [10, 8, 42, 40]


@settings(steadily, max_examples=60)
@given(st.tuples(st.integers(8, 60), st.integers(8, 60)), st.data())
def test_a_cell_of_the_mask_is_open_where_any_of_its_pixels_is(rules, size, data):
    width, height = size
    white = data.draw(st.lists(st.integers(0, width * height - 1), max_size=4))
    levels = np.zeros(width * height, np.uint8)
    levels[white] = 1
    mask = rules(
        "(m => ({...m, open: [...m.open]}))(maskOf(given.size, given.levels))",
        {"size": size, "levels": levels.tolist()},
    )
    left, top = width % 8 // 2, height % 8 // 2
    kept = levels.reshape(height, width)[top : top + height // 8 * 8, left : left + width // 8 * 8]
    blocks = kept.reshape(height // 8, 8, width // 8, 8).max((1, 3))
    assert mask["open"] == blocks.flatten().tolist()
    assert mask["columns"] == width // 8


# --- what is warned of


def warned(rules, pairs, radius=16, unit="pixels", mask=None, size=SIZE):
    """The warning for pairs on a picture; `mask` is (x, y, width, height) of what is white."""
    given = {"pairs": pairs, "size": size, "brush": {"radius": radius, "unit": unit}, "mask": None}
    if mask is not None:
        x, y, width, height = mask
        levels = np.zeros((size[1], size[0]), np.uint8)
        levels[y : y + height, x : x + width] = 255
        given["mask"] = levels.flatten().tolist()
    return rules(
        """warning(given.pairs, given.size, given.brush,
            given.mask && maskOf(given.size, given.mask))""",
        given,
    )


GOOD = [[60, 60], [110, 60]]
EVERYWHERE = (0, 0, *SIZE)

WARNINGS = {
    "The square at the target of drag 1 leaves the picture: move it, or take a smaller radius.": {
        "pairs": [[[60, 60], [245, 60]]]
    },
    "The square at the handle of drag 2 leaves the picture: move it, or take a smaller radius.": {
        "pairs": [GOOD, [[60, 195], [60, 100]]]
    },
    "The handle of drag 1 lies outside the mask: move it, or paint the mask white there.": {
        "pairs": [GOOD],
        "mask": (80, 0, 170, 200),
    },
    "The target of drag 2 lies outside the mask: move it, or paint the mask white there.": {
        "pairs": [GOOD, [[60, 60], [60, 120]]],
        "mask": (0, 0, 250, 100),
    },
    "The square at the handle of drag 1 leaves the mask: paint more white, move it, or take a "
    "smaller radius.": {"pairs": [GOOD], "mask": (57, 40, 193, 60)},
    "The mask keeps all of the picture: paint white what may change, or disconnect it.": {
        "pairs": [GOOD],
        "mask": (0, 0, 0, 0),
    },
    "Drag 2 does not leave one latent cell of 8 pixels: pull its target further.": {
        "pairs": [GOOD, [[60, 60], [62, 60]]]
    },
    "A radius of 104 pixels copies more than the picture: use at most 96.": {
        "pairs": [GOOD],
        "radius": 104,
    },
    "A radius of 13 latent cells copies more than the picture: use at most 12.": {
        "pairs": [GOOD],
        "radius": 13,
        "unit": "latent cells",
    },
}


@pytest.mark.parametrize("sentence", WARNINGS)
def test_what_a_run_would_not_do_is_warned_of_before_it(rules, sentence):
    assert warned(rules, **WARNINGS[sentence]) == sentence
    assert len(sentence) < 110  # two lines below the picture


@pytest.mark.parametrize(
    "fine",
    [
        {"pairs": []},
        {"pairs": [GOOD]},
        {"pairs": [GOOD], "mask": EVERYWHERE},
        {"pairs": [GOOD], "mask": (41, 40, 90, 40)},  # white under both squares to the cell
        {"pairs": [[[60, 60], [60, 60]]]},  # it goes nowhere yet
        {"pairs": [[[3, 3], [245, 195]]], "radius": 0, "mask": EVERYWHERE},  # it is not known
    ],
)
def test_where_all_is_well_nothing_is_said(rules, fine):
    assert warned(rules, **fine) == ""


def test_a_mask_of_another_size_is_told(rules):
    told = rules(
        """warning([[[60, 60], [110, 60]]], [250, 200], {radius: 8, unit: PIXELS},
            maskOf([64, 64], Array(64 * 64).fill(255)))"""
    )
    assert (
        told
        == "The mask is 64 x 64 pixels, the picture 250 x 200: connect one of its size, or none."
    )
