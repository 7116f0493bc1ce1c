"""Noise regularisation beside autograd over the losses as they are published."""

import random
from itertools import pairwise

import pytest
import torch
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.noise_regularisation import (
    NoiseRegularisation,
    drawn_shifts,
    normal_slope,
    pair_slope,
    shifts_of,
)
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.tests.unit.analytic import Prompted, distance, geometric, picture
from torch.nn.functional import avg_pool2d

#: The same real numbers in another order of float64 operations.
IDENTITY = 1e-13


def pairs(noise, shifts):
    """The published loss of one picture: `shifts` by channel, then by scale."""
    loss = 0
    for channel, rolls in enumerate(shifts):
        coarse = noise[:, channel : channel + 1]
        for scale, roll in enumerate(rolls):
            coarse = avg_pool2d(coarse, 2) if scale else coarse
            for axis in (2, 3):
                loss = loss + (coarse * torch.roll(coarse, roll, axis)).mean() ** 2
    return loss


def normal(noise):
    variance = noise.var()
    return variance + noise.mean() ** 2 - 1 - torch.log(variance + 1e-7)


def slope(loss, noise):
    leaf = noise.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


SHIFTS = {
    (1, 4, 32, 32): [[3, 7, 2], [15, 1, 3], [1, 4, 1], [0, 5, 2]],
    (1, 2, 9, 20): [[2, 1], [4, 3]],
    (1, 1, 17, 37): [[5, 2]],
    (1, 3, 6, 6): [[1], [2], [2]],
}


@pytest.mark.parametrize("shape", SHIFTS, ids=str)
def test_the_slope_of_the_pairs_is_that_of_the_published_loss(shape):
    noise, shifts = 0.5 + picture(*shape), SHIFTS[shape]
    ours = pair_slope(noise, torch.tensor(shifts).T)
    theirs = slope(lambda x: pairs(x, shifts), noise)
    assert distance(ours, theirs) < IDENTITY
    assert float(theirs.abs().max()) > 1e-6


def test_the_slope_of_the_normal_law_is_that_of_the_published_loss():
    noise = 0.3 + 1.7 * picture(1, 4, 6, 5)
    assert distance(normal_slope(noise), slope(normal, noise)) < IDENTITY
    assert float(normal_slope(noise).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("size", "sides"), [((64, 64), [64, 32, 16, 8]), ((20, 40), [20, 10, 5]), ((5, 9), [5])]
)
def test_rolls_are_drawn_by_channel_and_from_fine_to_coarse_by_the_shorter_side(size, sides):
    asked = []

    def shift(side):
        asked.append(side)
        return len(asked)

    drawn = drawn_shifts(picture(2, 3, *size), shift)
    assert asked == 3 * sides
    count = len(sides)
    assert drawn.T.tolist() == [[c * count + s + 1 for s in range(count)] for c in range(3)]


def test_a_whole_regularisation_is_the_published_loop():
    settings = NoiseRegularisation(rounds=3, pair_steps=2, pair_weight=14.0, normal_weight=6.0)
    noise, seed = 0.2 + 1.3 * picture(1, 4, 16, 16), 5
    drawn, theirs = random.Random(seed), noise
    for _ in range(3):
        for _ in range(2):
            shifts = [[drawn.randrange(1, side // 2) for side in (16, 8)] for _ in range(4)]
            theirs = theirs - 14 / 2 * slope(lambda x, s=shifts: pairs(x, s), theirs)
        theirs = theirs - 6 * slope(normal, theirs)
    assert distance(settings(noise, shifts_of(seed)), theirs) < IDENTITY
    assert distance(theirs, noise) > 0.01


def test_what_agrees_with_its_neighbours_becomes_whiter():
    grain = picture(1, 4, 32, 32, seed=3)
    smooth = 0.4 + 0.6 * (grain + grain.roll(1, 3) + grain.roll(1, 2))
    whiter = NoiseRegularisation()(smooth, shifts_of(0))

    def together(x):
        return float((x * x.roll(1, 3)).mean() / x.square().mean())

    assert together(whiter) < 0.9 * together(smooth)
    assert abs(float(whiter.mean())) < abs(float(smooth.mean()))
    assert abs(float(whiter.var()) - 1) < abs(float(smooth.var()) - 1)


def test_a_batch_is_its_pictures_and_frames_are_channels():
    batch = picture(2, 3, 2, 16, 8)
    whole = NoiseRegularisation()(batch, shifts_of(1))
    assert whole.shape == batch.shape
    for row in range(2):
        alone = batch[row : row + 1].flatten(1, 2)
        ours = NoiseRegularisation()(alone, shifts_of(1))
        assert distance(whole[row : row + 1].flatten(1, 2), ours) < IDENTITY


def test_rolls_stay_between_one_cell_and_half_of_a_side_and_follow_their_seed():
    for side in range(1, 40):
        rolls = [shifts_of(seed)(side) for seed in range(200)]
        assert set(rolls) == set(range(1, max(2, side // 2)))
    draws = [[shift(64) for _ in range(20)] for shift in map(shifts_of, (4, 4, 5))]
    assert draws[0] == draws[1] != draws[2]


def test_without_a_round_nothing_happens():
    noise = picture(1, 4, 16, 16)
    assert torch.equal(NoiseRegularisation(rounds=0)(noise, shifts_of(0)), noise)


@pytest.mark.parametrize(
    "wrong",
    [{"rounds": -1}, {"pair_steps": 0}, {"pair_weight": -1.0}, {"normal_weight": float("nan")}],
    ids=str,
)
def test_a_number_below_its_least_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(PalimpsestError, match=f"The noise regularisation's {name} must be"):
        NoiseRegularisation(**wrong)


# -- in the inversion ----------------------------------------------------------------------------

SIGMAS, X0 = geometric(5), picture(1, 4, 3, 5)


def halved(noise):
    return noise / 2


@pytest.mark.parametrize("convention", ["destination", "current"])
def test_every_predicted_noise_is_regularised_before_it_is_used(convention):
    model, x, chain = Prompted(0.4), X0, [X0]
    for sigma, above in pairwise(SIGMAS):
        at, label = (
            (x, sigma)
            if convention == "current" and sigma
            else (x * vp_scale(sigma) / vp_scale(above), above)
        )
        noise = (at - model(at, label)) / label
        x = x + (above - sigma) * noise / 2
        chain.append(x)
    ours = ddim(Prompted(0.4), X0, SIGMAS, scale=vp_scale, convention=convention, regularise=halved)
    assert distance(ours, torch.stack(chain)) < 1e-11


def test_noise_is_not_both_refined_and_regularised():
    with pytest.raises(PalimpsestError, match=r"The refinement is 2, .* set the refinement to 0"):
        ddim(Prompted(0.4), X0, SIGMAS, scale=vp_scale, refinement=2, regularise=halved)
