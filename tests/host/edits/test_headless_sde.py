"""The SDE family headless, on the small network: what is kept, what it costs, what is drawn."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from palimpsest.benchmarks.parity.golden import open_folder
from palimpsest.hosts.diffusers.sde import Drags, cycle_sde, sde_drag, source_chain
from palimpsest.pipelines.copy_paste import Brush, Regions
from palimpsest.pipelines.denoiser import RowCount, constant, ramp
from palimpsest.pipelines.noise import seeded

DATA = Path(__file__).resolve().parents[2] / "data"
FOLDER = open_folder(DATA / "quick", DATA / "model")
UNET = FOLDER.unet
SOURCE, TARGET, EMPTY = (
    FOLDER.prompt(text)
    for text in ("a red circle on a green field", "a blue circle on a green field", "")
)
X0 = FOLDER.case("ddim_inversion").tensors["x0"]
STEPS = 4
SIGMAS = UNET.ddim_sigmas(10)[: STEPS + 1]

#: fp32 in another batch, and so in another order of operations.
FLOAT32 = 1e-6
#: The same under guidance up to 7.5, which multiplies it.
GUIDED = 1e-5

MASK = torch.zeros(1, 1, *X0.shape[-2:])
MASK[..., 4:12, 4:12] = 1
DRAGS = Drags([((7, 8), (10, 8))], Brush(2))
DRAG_STEPS = 2


def relative(a, b):
    return float((a - b).norm() / b.norm())


def rewritten(target=TARGET, source=SOURCE, x0=X0, **options):
    return cycle_sde(UNET, x0, source, target, EMPTY, SIGMAS, **({"seed": 1} | options))


def dragged(drags=DRAGS, x0=X0, **options):
    return sde_drag(UNET, x0, SOURCE, EMPTY, SIGMAS, drags, **({"seed": 1} | options))


@pytest.fixture(scope="module")
def first_edit():
    """The edit that several tests compare with, computed once."""
    return rewritten()


@pytest.fixture(scope="module")
def first_drag():
    """The drag that several tests compare with, computed once."""
    return dragged()


# --- the denoiser


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("guidance", "tolerance"),
    [(constant(1.0), FLOAT32), (constant(7.5), GUIDED), (ramp(SIGMAS, 3.0), GUIDED)],
    ids=["none", "constant", "ramp"],
)
def test_a_level_per_row_is_a_call_per_level(prediction, guidance, tolerance):
    unet = type(UNET)(UNET.unet, UNET.alphas_cumprod, prediction)
    denoise = unet.denoiser(SOURCE, EMPTY, cfg=guidance)
    chain = torch.cat([X0 + sigma.float() * seeded(i)(X0) for i, sigma in enumerate(SIGMAS[1:])])
    together = denoise(chain, SIGMAS[1:])
    for x, sigma, ours in zip(chain.split(1), SIGMAS[1:], together.split(1), strict=True):
        assert relative(ours, denoise(x, sigma)) < tolerance


# --- Cycle-SDE


@pytest.mark.parametrize(
    ("cfg", "tolerance", "eta"),
    [(1.0, FLOAT32, 1.0), (1.0, FLOAT32, 0.0), (7.5, GUIDED, 1.0), (7.5, GUIDED, 0.5)],
)
def test_an_unedited_picture_comes_back(cfg, tolerance, eta):
    """The source was computed many levels at once and the target is not: so not to the last bit."""
    rows = RowCount()
    ours = rewritten(SOURCE, cfg=cfg, source_cfg=cfg, eta=eta, rows=rows)
    assert relative(ours, X0) < tolerance
    assert rows.rows >= 2 * STEPS  # both branches were run


def test_an_edit_is_the_published_recurrence_under_two_prompts(first_edit):
    """A Markov chain up, and down with r^2 = (sigma_next / sigma)^2, each prompt with its own
    guidance; float32, in another order, under guidance."""
    source, target = UNET.denoiser(SOURCE), UNET.denoiser(TARGET, EMPTY, cfg=7.5)
    chain, draw, levels = [X0], seeded(1), SIGMAS.tolist()
    for low, high in pairwise(levels):
        chain.append(chain[-1] + (high**2 - low**2) ** 0.5 * draw(X0))
    x = chain[-1]
    for i in range(STEPS, 0, -1):
        r2 = (levels[i - 1] / levels[i]) ** 2
        guesses = target(x, SIGMAS[i]), source(chain[i], SIGMAS[i])
        x = chain[i - 1] + r2 * (x - chain[i]) + (1 - r2) * (guesses[0] - guesses[1])
    assert relative(first_edit, x) < GUIDED
    assert relative(x, X0) > 0.01


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_outside_the_mask_every_bit_of_it_is_kept(eta):
    ours = rewritten(mask=MASK, eta=eta)
    outside = MASK[0, 0] == 0
    assert torch.equal(ours[..., outside], X0[..., outside])
    assert relative(ours, X0) > 0.01
    assert bool(torch.isfinite(ours).all())


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, STEPS + 2 * STEPS),
        ({"source_cfg": 7.5}, 2 * STEPS + 2 * STEPS),
        ({"cfg": 1.0}, STEPS + STEPS),
        ({"eta": 0.0}, STEPS + STEPS + 2 * STEPS),  # DDIM inversion first
    ],
    ids=str,
)
@pytest.mark.parametrize("images", [1, 2])
def test_its_rows_are_those_of_its_branches(images, options, rows):
    count = RowCount()
    rewritten(x0=X0.repeat(images, 1, 1, 1), rows=count, **options)
    assert count.rows == images * rows


def test_its_seed_is_that_of_the_chain(first_edit):
    assert torch.equal(first_edit, rewritten())
    assert relative(rewritten(seed=2), first_edit) > 1e-3
    assert torch.equal(rewritten(seed=2, eta=0.0), rewritten(eta=0.0))


@pytest.mark.parametrize("levels_at_once", [1, 4])
def test_a_recorder_keeps_what_the_source_says_of_every_level(levels_at_once):
    how = source_chain(UNET, SOURCE, EMPTY, SIGMAS, constant(7.5), levels_at_once=levels_at_once)
    trajectory = how.of(X0, seeded(1))
    denoise = UNET.denoiser(SOURCE, EMPTY, cfg=7.5)
    for i in range(STEPS):
        expected = denoise(trajectory.latents[i + 1], SIGMAS[i + 1])
        assert relative(trajectory.denoised[i], expected) < GUIDED


# --- SDE-Drag


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_a_drag_changes_the_picture_inside_the_mask_alone(eta):
    seen = []
    ours = dragged(mask=MASK, eta=eta, on_drag=lambda i, x: seen.append((i, x)))
    assert [i for i, _ in seen] == list(range(1, DRAG_STEPS + 1))
    outside = MASK[0, 0] == 0
    for _, x in seen:
        assert torch.equal(x[..., outside], X0[..., outside])
    assert relative(ours, X0) > 0.01
    assert bool(torch.isfinite(ours).all())


def test_a_seed_gives_the_same_bits_again_and_another_one_others(first_drag):
    assert torch.equal(first_drag, dragged())
    assert relative(dragged(seed=2), first_drag) > 1e-3


@pytest.mark.parametrize("levels_at_once", [1, 3, 8])
def test_a_drag_step_costs_four_rows_a_level_and_half_of_them_without_guidance(levels_at_once):
    """At the lowest level the guidance is 1, so that one row of the target is not needed; nor is
    one of the source, where that level is alone in its call."""
    spent = {}
    for cfg in (3.0, 1.0):
        rows = RowCount()
        dragged(cfg=cfg, levels_at_once=levels_at_once, rows=rows)
        spent[cfg] = rows.rows
    assert spent[3.0] == DRAG_STEPS * (4 * STEPS - 1 - (levels_at_once == 1))
    assert spent[1.0] == DRAG_STEPS * 2 * STEPS


def test_how_many_levels_of_the_source_go_into_a_call_is_a_matter_of_speed():
    assert relative(dragged(levels_at_once=1), dragged(levels_at_once=STEPS)) < 1e-4


def test_a_region_that_is_the_square_does_what_the_brush_does(first_drag):
    region = torch.zeros(X0.shape[-2:], dtype=torch.bool)
    region[6:10, 5:9] = True
    drags = Drags(DRAGS.pairs, DRAGS.brush, regions=Regions((region,), ((7, 8),)))
    assert torch.equal(dragged(drags), first_drag)


def test_a_short_drag_may_stop_early():
    pairs = [((7, 8), (10, 8)), ((4, 4), (4, 5))]
    crawled, stopped = (dragged(Drags(pairs, Brush(2), early_stop=stop)) for stop in (False, True))
    assert relative(crawled, stopped) > 1e-3
