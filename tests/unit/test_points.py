"""Drag points: what is written is read, and what cannot be is refused with its reason."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.points import VERSION, DragPoints, read_points, write_points

PAIRS = (((145, 216), (146, 144)),)


@st.composite
def drag_points(draw):
    width, height = draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    length = lambda n: st.integers(0, n - 1) | st.floats(0, n, exclude_max=True)
    point = st.tuples(length(width), length(height))
    return DragPoints((width, height), tuple(draw(st.lists(st.tuples(point, point), max_size=9))))


@given(drag_points())
def test_what_is_written_is_read(points):
    assert read_points(write_points(points)) == points


def test_the_form_is_the_one_that_editors_write():
    text = '{"version": 1, "size": [512, 512], "pairs": [[[145, 216], [146, 144]]]}'
    points = DragPoints((512, 512), PAIRS)
    assert read_points(text) == points
    assert json.loads(write_points(points)) == json.loads(text)


def stored(**changes):
    return json.dumps({"version": VERSION, "size": [9, 9], "pairs": []} | changes)


MALFORMED = {
    "": "no JSON",
    "{": "no JSON",
    "[1]": "no object",
    "null": "no object",
    '"text"': "no object",
    stored(size=None): "size None, which must be the picture's width and height",
    stored(size=[9]): "width and height",
    stored(size=[9, 0]): "width and height",
    stored(size=[9.5, 9]): "width and height",
    stored(size=[True, 9]): "width and height",
    stored(pairs=None): "[[x, y], [x, y]] in numbers",
    stored(pairs=[[1, 2]]): "[[x, y], [x, y]] in numbers",
    stored(pairs=[[[1, 2], [3]]]): "[[x, y], [x, y]] in numbers",
    stored(pairs=[[[1, 2], ["3", 4]]]): "[[x, y], [x, y]] in numbers",
    stored(pairs=[[[1, 2], [True, 4]]]): "[[x, y], [x, y]] in numbers",
    stored(pairs=[[[1, 2], [float("nan"), 4]]]): "[[x, y], [x, y]] in numbers",
    stored(pairs=[[[1, 2], [float("inf"), 4]]]): "[[x, y], [x, y]] in numbers",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_malformed_is_refused_with_a_good_example(text):
    with pytest.raises(PalimpsestError, match=re.escape(MALFORMED[text])) as caught:
        read_points(text)
    assert str(caught.value).startswith("The drag points cannot be read, they are")
    assert len(read_points(str(caught.value).rpartition("text such as ")[2][:-1]).pairs) == 1


@pytest.mark.parametrize("version", [0, 2, "1", None, True])
def test_another_version_is_refused(version):
    with pytest.raises(PalimpsestError, match=f"are of version {version!r}, this version reads 1"):
        read_points(stored(version=version))


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (((9, 0), (1, 1)), r"The handle of drag 1 is at \(9, 0\), outside the picture of 9 x 5"),
        (((0, -1), (1, 1)), r"The handle of drag 1 is at \(0, -1\)"),
        (((0, 0), (1, 5)), r"The target of drag 1 is at \(1, 5\)"),
        (((0, 0), (-0.5, 0)), r"The target of drag 1 is at \(-0.5, 0\)"),
    ],
)
def test_a_point_outside_is_named(pair, told):
    with pytest.raises(PalimpsestError, match=told):
        DragPoints((9, 5), (pair,))


@pytest.mark.parametrize("radius", [0, -3])
def test_a_radius_of_no_size_is_refused(radius):
    told = f"The radius of the points must be 1 pixel or more, got {radius}: raise it."
    with pytest.raises(PalimpsestError, match=f"^{re.escape(told)}$"):
        DragPoints((512, 512), PAIRS, radius)


def test_points_carry_a_radius_only_where_one_is_said():
    assert DragPoints((512, 512), PAIRS).radius is None
    assert DragPoints((512, 512), PAIRS, 1).on_picture(512, 512).radius == 1


def test_the_edges_of_the_picture_are_inside():
    DragPoints((9, 5), (((0, 0), (8, 4)),))


def test_points_suit_a_picture_of_their_size_only():
    points = DragPoints((512, 512), PAIRS)
    assert points.on_picture(512, 512) is points
    with pytest.raises(PalimpsestError, match="picture of 512 x 512 pixels, this one is 512 x 300"):
        points.on_picture(512, 300)


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((1200, 800), (624, 416)), ((512, 512), (1024, 1024)), ((99, 150), (64, 96))],
)
def test_points_go_along_with_a_picture_that_is_scaled(size, scaled):
    pairs = (((0, 0), (size[0] - 1, size[1] - 1)), ((size[0] // 2, 10), (5, size[1] // 3)))
    moved = DragPoints(size, pairs, 40).scaled_to(*scaled)
    assert moved.size == scaled
    for before, after in zip(pairs, moved.pairs, strict=True):
        for (x, y), (u, v) in zip(before, after, strict=True):
            assert (u + 0.5) / scaled[0] == pytest.approx((x + 0.5) / size[0], abs=0.5 / scaled[0])
            assert (v + 0.5) / scaled[1] == pytest.approx((y + 0.5) / size[1], abs=0.5 / scaled[1])
            assert 0 <= u <= scaled[0] - 1 and 0 <= v <= scaled[1] - 1
    zoom = (scaled[0] * scaled[1] / (size[0] * size[1])) ** 0.5
    assert moved.radius == round(40 * zoom)
    assert DragPoints(size, pairs).scaled_to(*scaled).radius is None
    assert DragPoints(size, pairs, 1).scaled_to(size[0] // 2, size[1] // 2).radius == 1


def test_points_of_a_picture_of_another_shape_are_refused():
    points = DragPoints((512, 512), PAIRS)
    assert points.scaled_to(512, 512) is points
    for size in ((512, 300), (300, 512), (1024, 1000)):
        with pytest.raises(PalimpsestError, match="set on a picture of 512 x 512"):
            points.scaled_to(*size)
