"""Copy-Paste beside a loop over cells, and beside the published boxes in their own coordinates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.copy_paste import Brush, Move, Regions, connected, copy_paste, shifted
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.noise import seeded
from palimpsest.tests.unit.analytic import distance, picture

HEIGHT, WIDTH = 9, 12
X = picture(2, 3, HEIGHT, WIDTH)
SIGMA = 2.3

#: The same real numbers in another order of float64 operations, on values of order 10.
IDENTITY = 1e-13


def sevens(like):
    """Noise that is found again."""
    return torch.full_like(like, 7.0)


#: What `sevens` leave of a cell at beta 0.
FORGOTTEN = 7 * math.sqrt(1 + SIGMA**2)


def moved(*ways, x=X, draw=sevens, regions=None, **brush):
    """What becomes of a latent when the pairs 0, 1, ... move along `ways`."""
    moves = [Move(i, *way) for i, way in enumerate(ways)]
    brush = Brush(**({"radius": 2, "alpha": 1.1, "beta": 0.0} | brush))
    return copy_paste(x, moves, SIGMA, brush=brush, draw=draw, regions=regions)


# --- by other code


def square(way, radius):
    x, y = way[0]
    return {(r, c) for r in range(y - radius, y + radius) for c in range(x - radius, x + radius)}


def by_cells(ways, cells_of, *, alpha, beta, full_border, draw):
    """Cell by cell, in Python; `cells_of` gives the (row, column) pairs that go a way."""
    x, rows, columns = X.clone(), HEIGHT - (not full_border), WIDTH - (not full_border)
    for number, way in enumerate(ways):
        (px, py), (qx, qy) = way
        copied = {}
        for row, column in sorted(cells_of(number)):
            goes = row + qy - py, column + qx - px
            if all(0 <= r < rows and 0 <= c < columns for r, c in ((row, column), goes)):
                copied[row, column] = X.new_zeros(2, 3) + x[:, :, row, column]
        noise = draw(X.new_zeros(2, 3, len(copied)))
        for i, ((row, column), value) in enumerate(copied.items()):
            fresh = math.sqrt((1 - beta**2) * (1 + SIGMA**2)) * noise[:, :, i]
            x[:, :, row, column] = beta * value + fresh
        for (row, column), value in copied.items():
            x[:, :, row + qy - py, column + qx - px] = alpha * value
    return x


def by_boxes(z, ways, *, radius, alpha, beta, full_border, draw):
    """Nie et al. 2023, eq. 12, in variance-preserving z, with the published clamp of the box; the
    published border is one cell short."""
    z, edge = z.clone(), 0 if full_border else 1
    for (px, py), (qx, qy) in ways:
        left, right = min(radius, px, qx), min(radius, WIDTH - edge - px, WIDTH - edge - qx)
        up, down = min(radius, py, qy), min(radius, HEIGHT - edge - py, HEIGHT - edge - qy)
        source, target = (
            (..., slice(y - up, y + down), slice(x - left, x + right))
            for x, y in ((px, py), (qx, qy))
        )
        copied = z[source].clone()
        noise = draw(copied.flatten(-2)).view(copied.shape)
        z[source] = beta * copied + math.sqrt(1 - beta**2) * noise
        z[target] = alpha * copied
    return z


cells = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1))
brushes = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([1.0, 1.1]),
        "beta": st.sampled_from([0.0, 0.3, 1.0]),
        "full_border": st.booleans(),
    }
)


@given(st.lists(st.tuples(cells, cells), max_size=3), st.integers(1, 4), brushes)
def test_every_cell_is_that_of_a_loop_over_cells(ways, radius, brush):
    draw = seeded(0)
    expected = by_cells(ways, lambda i: square(ways[i], radius), draw=draw, **brush)
    assert distance(moved(*ways, radius=radius, draw=seeded(0), **brush), expected) < IDENTITY


@given(st.lists(st.tuples(cells, cells), max_size=3), st.integers(1, 4), brushes)
def test_every_cell_is_that_of_the_published_boxes(ways, radius, brush):
    size = math.sqrt(1 + SIGMA**2)
    expected = size * by_boxes(X / size, ways, radius=radius, draw=seeded(0), **brush)
    assert distance(moved(*ways, radius=radius, draw=seeded(0), **brush), expected) < IDENTITY


@settings(max_examples=50)
@given(
    st.lists(st.tuples(cells, cells), min_size=2, max_size=2),
    st.lists(
        st.sets(st.tuples(st.integers(0, HEIGHT - 1), st.integers(0, WIDTH - 1))),
        min_size=2,
        max_size=2,
    ),
    brushes,
)
def test_regions_of_any_form_move_as_a_loop_over_their_cells(ways, regions, brush):
    masks = [mask_of(region) for region in regions]
    expected = by_cells(ways, lambda i: regions[i], draw=seeded(0), **brush)
    ours = moved(*ways, regions=masks, draw=seeded(0), **brush)
    assert distance(ours, expected) < IDENTITY


def mask_of(region):
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for cell in region:
        mask[cell] = True
    return mask


# --- by eye


def test_the_square_has_two_radii_a_side_and_its_handle_below_and_right_of_the_middle():
    ours = moved(((3, 4), (9, 4)))
    assert torch.equal(ours[..., 2:6, 7:11], 1.1 * X[..., 2:6, 1:5])
    assert torch.equal(ours[..., 2:6, 1:5], torch.full_like(X[..., 2:6, 1:5], FORGOTTEN))
    assert int((ours != X).any(0).any(0).sum()) == 2 * 16


def test_in_the_overlap_the_target_wins():
    ours = moved(((4, 4), (6, 4)))
    assert torch.equal(ours[..., 2:6, 4:8], 1.1 * X[..., 2:6, 2:6])
    assert torch.equal(ours[..., 2:6, 2:4], torch.full_like(X[..., 2:6, 2:4], FORGOTTEN))
    assert int((ours != X).any(0).any(0).sum()) == 16 + 8


def test_a_move_of_no_length_scales_what_is_there():
    ours = moved(((5, 4), (5, 4)))
    assert torch.equal(ours[..., 2:6, 3:7], 1.1 * X[..., 2:6, 3:7])
    assert int((ours != X).any(0).any(0).sum()) == 16
    assert torch.equal(moved(((5, 4), (5, 4)), alpha=1.0), X)


def test_a_later_pair_takes_along_what_an_earlier_one_brought():
    ours = moved(((2, 4), (5, 4)), ((5, 4), (9, 4)))
    assert distance(ours[..., 2:6, 7:11], 1.1 * 1.1 * X[..., 2:6, 0:4]) < IDENTITY
    assert torch.equal(ours[..., 2:6, 0:7], torch.full_like(X[..., 2:6, 0:7], FORGOTTEN))


def test_a_later_pair_may_forget_what_an_earlier_one_left_as_noise():
    """Signal beta^2, noise of both: the second noise is added to what is left of the first."""
    ours = moved(((3, 4), (9, 4)), ((3, 4), (9, 4)), beta=0.5)
    fresh = math.sqrt(0.75) * FORGOTTEN
    once = 0.5 * X[..., 2:6, 1:5] + fresh
    assert distance(ours[..., 2:6, 1:5], 0.5 * once + fresh) < IDENTITY
    assert distance(ours[..., 2:6, 7:11], 1.1 * once) < IDENTITY


CORNER = ((WIDTH - 1, HEIGHT - 1), (WIDTH - 5, HEIGHT - 1))


def test_a_handle_in_the_corner_takes_the_cells_that_there_are():
    ours = moved(CORNER)
    assert torch.equal(ours[..., -3:, -7:-4], 1.1 * X[..., -3:, -3:])
    assert torch.equal(ours[..., -3:, -3:], torch.full_like(X[..., -3:, -3:], FORGOTTEN))
    assert int((ours != X).any(0).any(0).sum()) == 2 * 9


def test_the_published_code_leaves_the_last_row_and_column():
    ours = moved(CORNER, full_border=False)
    assert torch.equal(ours[..., -1, :], X[..., -1, :])
    assert torch.equal(ours[..., :, -1], X[..., :, -1])
    assert torch.equal(ours[..., -3:-1, -7:-5], 1.1 * X[..., -3:-1, -3:-1])
    assert int((ours != X).any(0).any(0).sum()) == 2 * 4


def test_what_would_leave_the_picture_stays_where_it_is():
    ours = moved(((5, 4), (0, 4)))
    assert torch.equal(ours[..., 2:6, 3:5], X[..., 2:6, 3:5])
    assert torch.equal(ours[..., 2:6, 0:2], 1.1 * X[..., 2:6, 5:7])


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("sigma", [0.0, 2.3, 14.0])
def test_what_is_forgotten_has_the_size_of_the_whole_latent_and_beta_of_the_signal(sigma, beta):
    """57 600 cells: standard errors of .3 % for a size and .004 for a correlation."""
    x = math.sqrt(1 + sigma**2) * picture(4, 4, 64, 128)
    brush = Brush(30, beta=beta)
    moves = [Move(0, (31, 32), (95, 32))]
    ours = copy_paste(x, moves, sigma, brush=brush, draw=seeded(1))
    left, was = (t[..., 2:62, 1:61] / math.sqrt(1 + sigma**2) for t in (ours, x))
    assert float((left - beta * was).std()) == pytest.approx(math.sqrt(1 - beta**2), rel=0.012)
    assert float(left.std()) == pytest.approx(1, abs=0.012)
    assert float((left * was).mean()) == pytest.approx(beta, abs=0.017)


def test_the_latent_and_the_regions_are_left_alone():
    x, region = X.clone(), mask_of({(4, 4), (4, 5)})
    moved(((4, 4), (6, 4)), x=x)
    moved(((4, 4), (6, 4)), x=x, regions=[region])
    assert torch.equal(x, X)
    assert torch.equal(region, mask_of({(4, 4), (4, 5)}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_a_latent_keeps_its_type(dtype):
    assert moved(((4, 4), (6, 4)), x=X.to(dtype)).dtype == dtype


def test_noise_is_drawn_once_a_move_for_its_cells():
    drawn = []

    def draw(like):
        drawn.append(tuple(like.shape))
        return torch.zeros_like(like)

    moved(((4, 4), (6, 4)), CORNER, draw=draw)
    assert drawn == [(2, 3, 16), (2, 3, 9)]


# --- regions


PIXELS = st.lists(st.booleans(), min_size=48, max_size=48)


def filled(region, start):
    """The cells that a king reaches, by a search with a list."""
    found, waiting = {start}, [start]
    while waiting:
        x, y = waiting.pop()
        for cell in ((x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            inside = 0 <= cell[0] < 8 and 0 <= cell[1] < 6
            if inside and region[cell[1], cell[0]] and cell not in found:
                found.add(cell)
                waiting.append(cell)
    return found


def cells_in(mask):
    return {(x, y) for y, x in mask.nonzero().tolist()}


@settings(max_examples=30)
@given(PIXELS, st.integers(0, 7), st.integers(0, 5))
def test_the_connected_part_is_what_a_king_reaches(pixels, x, y):
    region = torch.tensor(pixels).view(6, 8)
    region[y, x] = True
    before = region.clone()
    assert cells_in(connected(region, (x, y))) == filled(region, (x, y))
    assert torch.equal(region, before)


def test_two_regions_that_do_not_touch_are_told_apart():
    region = torch.zeros(6, 8, dtype=torch.bool)
    region[1:3, 1:3] = region[3, 3] = region[:, 5] = True
    assert int(connected(region, (1, 1)).sum()) == 5  # the last one by its corner
    assert torch.equal(connected(region, (5, 0)).nonzero()[:, 1], torch.full((6,), 5))


@settings(max_examples=30)
@given(PIXELS, st.integers(-9, 9), st.integers(-7, 7))
def test_a_shifted_region_loses_what_leaves_the_picture(pixels, right, down):
    region = torch.tensor(pixels).view(6, 8)
    there = {(x + right, y + down) for x, y in cells_in(region)}
    expected = {(x, y) for x, y in there if 0 <= x < 8 and 0 <= y < 6}
    assert cells_in(shifted(region, right, down)) == expected


def test_regions_follow_their_handles_and_stay_where_nothing_moves():
    first, second = mask_of({(4, 4), (5, 4)}), mask_of({(1, 8), (2, 9)})
    regions = Regions((first, second), ((4, 4), (8, 1)))
    assert all(map(torch.equal, regions.at([]), (first, second)))
    now = regions.at([Move(1, (6, 3), (5, 4))])
    assert torch.equal(now[0], first)
    assert torch.equal(now[1], mask_of({(3, 6), (4, 7)}))
    both = regions.at([Move(0, (5, 4), (9, 9)), Move(1, (8, 1), (7, 2))])
    assert torch.equal(both[0], mask_of({(4, 5), (5, 5)}))
    assert torch.equal(both[1], second)


def test_a_region_that_is_the_square_does_what_the_brush_does():
    region = mask_of(square(((4, 4),), 2))
    way = ((4, 4), (6, 5))
    assert torch.equal(moved(way, regions=[region]), moved(way))


# --- bad input


def test_a_square_larger_than_the_latent_is_refused_with_the_largest_radius():
    with pytest.raises(PalimpsestError) as error:
        moved(((4, 4), (6, 4)), radius=5)
    assert str(error.value) == (
        "The radius is 5 cells, so that a square of 10 x 10 is copied, larger than the latent of "
        "12 x 9: use at most 4."
    )
    moved(((4, 4), (6, 4)), radius=4)
    moved(((4, 4), (6, 4)), radius=5, regions=[mask_of({(4, 4)})])  # which has no square


@pytest.mark.parametrize("radius", [0, -3])
def test_a_brush_of_no_size_is_refused(radius):
    with pytest.raises(PalimpsestError) as error:
        Brush(radius)
    told = f"The radius must be 1 latent cell or more, got {radius}: raise it."
    assert str(error.value) == told


@pytest.mark.parametrize("beta", [2.0, -0.1, math.nan])
def test_a_beta_that_is_no_part_is_refused(beta):
    with pytest.raises(PalimpsestError) as error:
        Brush(beta=beta)
    told = f"Beta is the part of the signal that stays, 0 to 1, got {beta}: lower it."
    assert str(error.value) == told


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_an_alpha_that_is_no_number_is_refused(alpha):
    with pytest.raises(PalimpsestError, match=f"^Alpha must be a number, got {alpha}: set it to"):
        Brush(alpha=alpha)


@pytest.mark.parametrize("regions", [None, [mask_of({(4, 4)})] * 2], ids=["square", "regions"])
@pytest.mark.parametrize("outside", [(WIDTH, 4), (4, HEIGHT), (-1, 4), (4, -1)])
def test_a_point_outside_is_refused_by_the_number_of_its_drag(outside, regions):
    for way in (((4, 4), outside), (outside, (4, 4))):
        with pytest.raises(PalimpsestError) as error:
            moved(((4, 4), (5, 4)), way, regions=regions)
        assert str(error.value) == (
            f"Drag 2 reaches cell {outside}, outside the latent of 12 x 9: move its points inside "
            "the picture."
        )


def test_a_region_without_its_handle_is_refused():
    with pytest.raises(PalimpsestError, match=r"^The region is black at cell \(5, 4\), where a"):
        connected(mask_of({(4, 4)}), (5, 4))


def test_where_no_square_fits_a_region_is_the_way_out():
    """A picture one cell high: the sentence was to use at most 0, which is refused as well."""
    x, moves = torch.zeros(1, 4, 1, 12), [Move(0, (2, 0), (6, 0))]
    with pytest.raises(PalimpsestError) as error:
        copy_paste(x, moves, 1.0, brush=Brush(1), draw=torch.zeros_like)
    assert str(error.value) == (
        "The radius is 1 cells, so that a square of 2 x 2 is copied, larger than the latent of "
        "12 x 1: paint what moves as a region, which may be thin."
    )
    region = torch.zeros(1, 12, dtype=torch.bool)
    region[0, 1:4] = True
    brush = Brush(1, alpha=1.0, beta=1.0)
    x[..., 1:4] = 7.0
    made = copy_paste(x, moves, 1.0, brush=brush, draw=torch.zeros_like, regions=[region])
    assert made[0, 0, 0].tolist() == [0, 7, 7, 7, 0, 7, 7, 7, 0, 0, 0, 0]
