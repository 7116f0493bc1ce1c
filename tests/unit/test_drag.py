"""SDE-Drag: its plan in exact fractions, and the whole of it beside a plain loop."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.pipelines.copy_paste import Brush, Move, Regions, copy_paste
from palimpsest.pipelines.cycle_sde import SourceChain
from palimpsest.pipelines.drag import (
    DragStep,
    cells_of,
    check_mask,
    drag,
    nearest_cells,
    plan,
    radius_of,
)
from palimpsest.pipelines.editing import Branches
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.points import DragPoints
from palimpsest.pipelines.schedule import ddim_timesteps, vp_scale
from palimpsest.tests.unit.analytic import Prompted, distance, geometric, picture
from palimpsest.tests.unit.chains import PerRow, stable_diffusion_sigmas

#: The same real numbers in another order of float64 operations, on values of order 10.
IDENTITY = 1e-12


# --- the plan, by other code


def exact_length(pair):
    """Length of a drag: a root that is whole, or 60 digits of it, which cannot be a tie."""
    squared = sum((b - a) ** 2 for a, b in zip(*pair, strict=True))
    if math.isqrt(squared) ** 2 == squared:
        return Fraction(math.isqrt(squared))
    with localcontext() as context:
        context.prec = 60
        return Fraction(Decimal(squared).sqrt())


def step_count(length, stride):
    """As published: whole strides, and one more where that brings their mean nearer."""
    if length <= stride:
        return 1
    m = math.floor(length / stride)
    return m + (abs(length / (m + 1) - stride) < abs(length / m - stride))


def by_fractions(pairs, stride, early_stop, still):
    counts = [step_count(exact_length(pair), stride) for pair in pairs]
    if not early_stop:
        counts = [max(counts)] * len(pairs)

    def cell(pair, i, count):
        return tuple(
            a + math.trunc(Fraction(i * (b - a), count)) for a, b in zip(*pair, strict=True)
        )

    steps = []
    for i in range(max(counts)):
        moves = []
        for number, (pair, count) in enumerate(zip(pairs, counts, strict=True)):
            source, target = cell(pair, i, count), cell(pair, i + 1, count)
            if i < count and (still or source != target):
                moves.append(Move(number, source, target))
        if moves:
            steps.append(moves)
    return steps


cells = st.tuples(st.integers(0, 128), st.integers(0, 128))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(cells, cells), min_size=1, max_size=4),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
)
def test_a_plan_is_that_of_exact_fractions(pairs, stride, early_stop, still):
    ours = plan(pairs, stride, early_stop=early_stop, still=still)
    assert ours == by_fractions(pairs, stride, early_stop, still)


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_it_is_for_every_straight_drag(stride):
    for cells in range(1, 70):
        for pair in (((0, 7), (cells, 7)), ((69, 7), (69 - cells, 7))):
            assert plan([pair], stride) == by_fractions([pair], stride, False, False)


def test_a_cell_that_float32_cuts_too_low_is_whole():
    assert int(torch.tensor(13 / 22, dtype=torch.float32) * 22) == 12
    assert plan([((0, 0), (22, 0))], stride=1)[13] == [Move(0, (13, 0), (14, 0))]


# --- the plan, by the project's notes


def on_picture(*pairs):
    return cells_of(DragPoints((512, 512), pairs), 8)


@pytest.mark.parametrize(
    ("pixels", "m"),
    [
        *((8, 1), (16, 1), (24, 2), (32, 2), (48, 3), (64, 4)),
        *((72, 5), (100, 6), (128, 8), (200, 13), (256, 16)),
    ],
)
def test_the_number_of_drag_steps_of_a_horizontal_drag(pixels, m):
    steps = plan(on_picture(((0, 40), (pixels, 40))))
    assert len(steps) == m
    assert steps[0][0].handle == (0, 5)
    assert steps[-1][0].target == (pixels // 8, 5)
    for (before,), (after,) in pairwise(steps):
        assert before.target == after.handle


def test_the_published_example():
    pairs = on_picture(((145, 216), (146, 144)))
    assert pairs == [((18, 27), (18, 18))]
    moves = [moves for (moves,) in plan(pairs)]
    assert [move.handle for move in moves] == [(18, y) for y in (27, 26, 24, 22, 20)]
    assert [move.target for move in moves] == [(18, y) for y in (26, 24, 22, 20, 18)]


LONG, SHORT = ((0, 0), (12, 0)), ((5, 5), (5, 8))


def test_all_drags_arrive_together_and_the_short_one_crawls():
    steps = plan([LONG, SHORT])
    assert [move.target[0] for step in steps for move in step if move.pair == 0] == [
        2 * i for i in range(1, 7)
    ]
    # Half a cell a step: the moves of no length are left away.
    assert [[move.pair for move in step] for step in steps] == [[0], [0, 1]] * 3
    assert [move.target for step in steps for move in step if move.pair == 1] == [
        (5, 6),
        (5, 7),
        (5, 8),
    ]


def test_a_drag_that_has_arrived_may_be_left_alone():
    steps = plan([LONG, SHORT], early_stop=True)
    assert [[move.pair for move in step] for step in steps] == [[0, 1]] * 2 + [[0]] * 4
    assert [step[1].target for step in steps[:2]] == [(5, 6), (5, 8)]


def test_moves_of_no_length_are_kept_where_asked_for():
    steps = plan([LONG, SHORT], still=True)
    assert [len(step) for step in steps] == [2] * 6
    assert steps[0][1] == Move(1, (5, 5), (5, 5))


def test_a_step_in_which_nothing_moves_is_left_away():
    """A diagonal of three cells, to be walked one by one, takes four steps."""
    assert [len(step) for step in plan([((0, 0), (3, 3))], 1, still=True)] == [1] * 4
    assert [step[0].target for step in plan([((0, 0), (3, 3))], 1)] == [(1, 1), (2, 2), (3, 3)]


def test_no_drag_is_no_plan():
    assert plan([]) == []


@pytest.mark.parametrize("stride", [0, -2])
def test_a_stride_below_one_cell_is_refused(stride):
    with pytest.raises(PalimpsestError) as error:
        plan([LONG], stride)
    assert str(error.value) == f"The stride must be 1 latent cell or more, got {stride}: raise it."


# --- points


def test_a_point_is_in_the_cell_that_it_falls_into():
    points = DragPoints((512, 512), (((7.9, 8), (16, 511.5)),))
    assert cells_of(points, 8) == [((0, 1), (2, 63))]
    assert cells_of(points, 16) == [((0, 0), (1, 31))]


@pytest.mark.parametrize(
    ("x", "cell"), [(0, 0), (2, 0), (9.9, 0), (10, 1), (257, 31), (258, 32), (513, 63), (516.5, 63)]
)
def test_where_the_latent_is_of_the_middle_what_was_cut_off_counts_to_the_nearest_cell(x, cell):
    """517 pixels are 64 cells of 8, two pixels cut off before them and three after."""
    points = DragPoints((517, 24), (((x, 4), (x, 20)),))
    assert cells_of(points, 8, (64, 3)) == [((cell, 0), (cell, 2))]
    turned = DragPoints((24, 517), (((4, x), (20, x)),))
    assert cells_of(turned, 8, (3, 64)) == [((0, cell), (2, cell))]


def test_no_pair_is_refused():
    with pytest.raises(PalimpsestError, match=r"^There is no drag: click on the picture"):
        on_picture()


def test_a_drag_within_one_cell_is_refused_by_its_pixels():
    with pytest.raises(PalimpsestError) as error:
        on_picture(((0, 0), (30, 0)), ((145.5, 216), (151, 223)))
    assert str(error.value) == (
        "Drag 2 goes from (145.5, 216) to (151, 223), which is one and the same latent cell of 8 x "
        "8 pixels: pull its target further."
    )


PAIRS = [((2, 3), (6, 3)), ((7, 1), (7, 5))]


# --- the radius that points carry


def carrying(radius, size=(512, 400)):
    return DragPoints(size, (((1, 1), (9, 7)),), radius)


@given(st.integers(1, 2000), st.sampled_from([1, 8, 16, 32]))
def test_a_length_in_cells_is_the_nearest_whole_number_and_one_at_least(pixels, cell):
    nearest = math.floor(Fraction(pixels, cell) + Fraction(1, 2))
    assert nearest_cells(pixels, cell) == max(1, nearest)


@pytest.mark.parametrize(
    ("pixels", "cell", "cells"),
    [(40, 8, 5), (40, 16, 3), (1, 8, 1), (11, 8, 1), (12, 8, 2), (20, 8, 3), (40, 1, 40)],
)
def test_a_radius_in_pixels_is_one_in_the_models_cells(pixels, cell, cells):
    assert radius_of(carrying(pixels), cell) == cells


def test_points_without_a_radius_say_where_to_set_one():
    with pytest.raises(PalimpsestError) as error:
        radius_of(carrying(None), 8)
    assert str(error.value) == (
        "The radius is 0, which means as set on Drag Points, and there it counts latent cells: set "
        "unit on Drag Points to pixels, or set the radius here."
    )


def test_a_radius_larger_than_the_picture_is_refused_in_its_pixels():
    assert radius_of(carrying(200), 8) == 25
    with pytest.raises(PalimpsestError) as error:
        radius_of(carrying(204), 8)
    assert str(error.value) == (
        "The radius on Drag Points is 204 pixels, so that a square of 416 x 416 is copied, larger "
        "than the picture of 512 x 400: use at most 200."
    )


def test_where_no_square_fits_into_the_picture_a_region_is_the_way_out():
    with pytest.raises(PalimpsestError, match="picture of 90 x 8: paint what moves as a region"):
        radius_of(carrying(1, (90, 8)), 8)


# --- masks


def test_a_mask_that_is_open_at_every_end_is_taken():
    mask = torch.zeros(1, 1, 8, 9)
    for pair in PAIRS:
        for x, y in pair:
            mask[..., y, x] = 0.5
    check_mask(mask, PAIRS)


@pytest.mark.parametrize(
    ("x", "y", "told"),
    [
        (2, 3, "keeps the handle of drag 1"),
        (6, 3, "keeps the target of drag 1"),
        (7, 1, "keeps the handle of drag 2"),
        (7, 5, "keeps the target of drag 2"),
    ],
)
def test_a_mask_that_keeps_an_end_is_refused_by_its_drag(x, y, told):
    masks = torch.ones(2, 1, 8, 9)
    masks[1, 0, y, x] = 0  # of one picture of the batch
    with pytest.raises(PalimpsestError, match=f"^The mask {told} as it is .it is black there.: pa"):
        check_mask(masks, PAIRS)
    check_mask(masks[:1], PAIRS)


# --- the whole of it

X0 = picture(2, 3, 9, 12)
SIGMAS = geometric(6, low=0.1, high=2.3)
STEPS = plan([((3, 4), (7, 4))])
MASK = torch.zeros(1, 1, 9, 12)
MASK[..., 1:8, 1:9] = 1


def dragged(
    denoise=None,
    *,
    x0=X0,
    target=None,
    seed=0,
    eta=1.0,
    steps=STEPS,
    mask=None,
    mask_start=True,
    regions=None,
    sigmas=SIGMAS,
    **options,
):
    source = denoise or PerRow(Prompted(0.4))
    how, draw = SourceChain(sigmas, source, source, vp_scale, eta), seeded(seed)
    branches = Branches(target or source, source)
    return drag(
        x0,
        steps,
        chain_of=lambda x: how.of(x, draw),
        step=DragStep(branches, eta, Brush(2), draw, mask, regions, mask_start),
        **options,
    )


class Around(Prompted):
    """A model that looks at the cells beside each, as networks do."""

    def noise(self, z, sigma):
        return super().noise(z + 0.5 * z.roll(1, -1), sigma)


def by_loop(mask=None, mask_start=True, seed=0, regions=None, denoise=None):
    """Chain, copy, and the way back with r^2 = (sigma_next / sigma)^2, level by level."""
    denoise, draw, x = denoise or Prompted(0.4), seeded(seed), X0
    keep = (lambda new, old: new) if mask is None else lambda new, old: new.where(mask > 0, old)
    for moves in STEPS:
        chain = [x]
        for low, high in pairwise(SIGMAS):
            chain.append(chain[-1] + (high**2 - low**2).sqrt() * draw(x))
        own = None if regions is None else regions.at(moves)
        top = float(SIGMAS[-1])
        y = copy_paste(chain[-1], moves, top, brush=Brush(2), draw=draw, regions=own)
        if mask_start:
            y = keep(y, chain[-1])
        for level in range(len(SIGMAS) - 1, 0, -1):
            r2 = (SIGMAS[level - 1] / SIGMAS[level]) ** 2
            guesses = [denoise(t, SIGMAS[level]) for t in (y, chain[level])]
            y = chain[level - 1] + r2 * (y - chain[level]) + (1 - r2) * (guesses[0] - guesses[1])
            y = keep(y, chain[level - 1])
        x = y
    return x


@pytest.mark.parametrize("mask_start", [True, False])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
def test_a_drag_is_that_of_a_plain_loop(mask, mask_start):
    ours = dragged(PerRow(Around(0.4)), mask=mask, mask_start=mask_start)
    assert distance(ours, by_loop(mask, mask_start, denoise=Around(0.4))) < IDENTITY
    assert distance(ours, X0) > 0.5


def test_each_drag_step_starts_from_what_came_out_of_the_last():
    seen, whole = [], dragged()
    again = dragged(on_drag=lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == [1, 2]
    assert torch.equal(seen[-1][1], whole)
    assert torch.equal(again, whole)
    assert torch.equal(dragged(steps=STEPS[:1]), seen[0][1])


def test_the_walk_of_every_drag_step_is_reported():
    steps, ends = [], []
    dragged(on_step=lambda i, x, _: steps.append((i, x)), on_drag=lambda _, x: ends.append(x))
    assert [i for i, _ in steps] == list(range(1, 7)) * 2
    assert all(torch.equal(steps[i][1], end) for i, end in zip((5, 11), ends, strict=True))


@pytest.mark.parametrize("mask_start", [True, False])
@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_outside_the_mask_every_bit_is_kept_through_the_whole_drag(eta, mask_start):
    x0, seen = X0.float(), []
    dragged(
        x0=x0,
        mask=MASK,
        mask_start=mask_start,
        eta=eta,
        on_drag=lambda _, x: seen.append(x),
    )
    assert len(seen) == 2
    for x in seen:
        assert torch.equal(x[..., MASK[0, 0] == 0], x0[..., MASK[0, 0] == 0])
        assert distance(x, x0) > 0.5


@pytest.mark.parametrize("mask_start", [True, False])
def test_what_is_pasted_outside_the_mask_is_met_by_the_model_only_where_asked_for(mask_start):
    narrow = MASK.clone()
    narrow[..., 5:] = 0  # the first paste reaches the columns 3 to 6
    met, target, source = [], Prompted(0.4), PerRow(Prompted(0.4))

    def watched(x, sigma):
        met.append(x)
        return target(x, sigma)

    dragged(source, target=watched, mask=narrow, mask_start=mask_start, steps=STEPS[:1])
    chain = SourceChain(SIGMAS, None, source, vp_scale).of(X0, seeded(0)).start
    outside = narrow[0, 0] == 0
    assert torch.equal(met[0][..., outside], chain[..., outside]) == mask_start
    assert not torch.equal(met[0], chain)


def test_a_seed_gives_the_same_bits_again_and_another_one_others():
    assert torch.equal(dragged(seed=1), dragged(seed=1))
    assert distance(dragged(seed=1), dragged(seed=2)) > 0.01


def test_the_picture_is_left_alone():
    x0 = X0.clone()
    dragged(x0=x0, mask=MASK)
    assert torch.equal(x0, X0)


def test_without_a_step_the_picture_itself_comes_back():
    assert dragged(steps=[]) is X0


def test_a_region_that_is_the_square_is_carried_along_as_the_square_is():
    region = torch.zeros(9, 12, dtype=torch.bool)
    region[2:6, 1:5] = True
    ours = dragged(regions=Regions((region,), ((3, 4),)))
    assert torch.equal(ours, dragged())


def test_a_region_of_the_users_own_is_carried_along_with_its_point():
    region = torch.zeros(9, 12, dtype=torch.bool)
    region[3:5, 0:6] = True
    own = Regions((region,), ((3, 4),))
    ours = dragged(regions=own)
    assert distance(ours, by_loop(regions=own)) < IDENTITY
    assert distance(ours, dragged()) > 0.1


def test_120_levels_cost_120_rows_of_the_source_in_15_calls_and_120_of_the_target():
    """n = 200 and t0 = 0.6: with guidance twice as many rows of the network, 480."""
    levels = stable_diffusion_sigmas()[ddim_timesteps(200)[:120]]
    sigmas = torch.cat([torch.zeros(1, dtype=torch.float64), levels])
    source, target = PerRow(Prompted(0.4)), Prompted(0.4)
    dragged(source, target=target, x0=X0[:1], sigmas=sigmas)
    assert source.calls == [8] * 15 * len(STEPS)
    assert target.calls == [1] * 120 * len(STEPS)


def test_at_eta_zero_the_chain_is_inverted_at_one_row_a_level():
    source, target = PerRow(Prompted(0.4)), Prompted(0.4)
    dragged(source, target=target, eta=0.0, steps=STEPS[:1], x0=X0[:1])
    assert source.calls == [1] * 6 + [6]
    assert target.calls == [1] * 6


def test_a_cell_that_is_cut_at_the_pictures_edge_counts():
    points = DragPoints((20, 12), (((1, 1), (19, 11)),))
    assert cells_of(points, 8) == [((0, 0), (2, 1))]
