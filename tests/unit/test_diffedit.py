"""DiffEdit's mask beside the formula of diffusers' `generate_mask`, restated here."""

import math

import pytest
import torch
from palimpsest.pipelines.diffedit import edit_mask
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.tests.unit.analytic import picture

X0 = picture(1, 4, 6, 10)
SIGMA = torch.tensor(1.6, dtype=torch.float64)

#: How strongly a prompt speaks where: in the left half, falling off to the right.
WHERE = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.6, 0.4, 0.25, 0.1, 0.05, 0.0], dtype=torch.float64)

#: A prompt raises one channel and lowers the next.
SIGNS = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64).view(4, 1, 1)


class Told:
    """A denoiser whose noise depends on its prompt, here more and there less; counts its rows."""

    def __init__(self, prompt, where=WHERE):
        self.prompt, self.where, self.calls = prompt, where, []

    def noise(self, z):
        return torch.tanh(z + 0.3 * z.roll(1, 1) + self.prompt * SIGNS * self.where)

    def __call__(self, x, sigma):
        self.calls.append(len(x))
        return x - sigma * self.noise(x * vp_scale(sigma))


SOURCE, TARGET = Told(0.4), Told(-0.7)


def by_diffusers(x0, ratio, draws, seed=0, target=TARGET):
    """Mean |difference| of the noises over draws and channels, clamped at `ratio` times its mean
    over the picture, scaled to 0..1 and cut at a half."""
    alpha, draw = 1 / (1 + SIGMA**2), seeded(seed)
    latents = [alpha.sqrt() * x0 + (1 - alpha).sqrt() * draw(x0) for _ in range(draws)]
    noises = [(target.noise(z), SOURCE.noise(z)) for z in latents]
    guidance_map = torch.stack([(new - old).abs() for new, old in noises]).mean((0, 2))
    magnitude = guidance_map.mean() * ratio
    scaled = guidance_map.clamp(0, magnitude) / magnitude
    return torch.where(scaled <= 0.5, 0, 1)[:, None]


def mask(x0=X0, source=SOURCE, target=TARGET, sigma=SIGMA, seed=0, **options):
    return edit_mask(source, target, x0, sigma, draw=seeded(seed), **options)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0, 3.5])
@pytest.mark.parametrize("draws", [1, 4, 10])
def test_the_mask_is_that_of_diffusers(ratio, draws):
    ours = mask(draws=draws, ratio=ratio)
    expected = by_diffusers(X0, ratio, draws)
    assert ours.shape == (1, 1, 6, 10)
    assert ours.tolist() == expected.tolist()
    assert 0 < int(expected.sum()) < 60


def test_the_mask_opens_in_the_half_that_the_prompts_disagree_about():
    """There it is twice its mean, and more than its mean is asked for; 40 draws vary by a tenth."""
    half = torch.tensor([1.0] * 5 + [0.0] * 5, dtype=torch.float64)
    ours = mask(source=Told(0.4, half), target=Told(-0.7, half), draws=40, ratio=2.0)
    assert torch.equal(ours[0, 0], half.expand(6, 10))


def test_every_picture_of_a_batch_has_its_own_threshold():
    """About the second one they disagree a tenth as much, and in the other half."""
    half = torch.tensor([1.0] * 5 + [0.0] * 5, dtype=torch.float64)
    where = torch.stack([half, 0.1 * half.flip(0)]).view(2, 1, 1, 10)
    told = [Told(prompt, where) for prompt in (0.4, -0.7)]
    both = mask(X0.repeat(2, 1, 1, 1), *told, draws=40, ratio=2.0, draws_at_once=1)
    assert torch.equal(both[0, 0], half.expand(6, 10))
    assert torch.equal(both[1, 0], half.flip(0).expand(6, 10))


def test_a_batch_of_one_picture_twice_is_that_picture_under_its_own_noise():
    """Draws are of the whole batch, so that the first picture's are not those it has alone."""
    draw, pair = seeded(0), X0.repeat(2, 1, 1, 1)
    noises = [draw(pair) for _ in range(10)]
    both = mask(pair)
    for i in range(2):
        own = iter([noise[i : i + 1] for noise in noises])
        alone = edit_mask(SOURCE, TARGET, X0, SIGMA, draw=lambda _, own=own: next(own))
        assert torch.equal(both[i : i + 1], alone)


@pytest.mark.parametrize(
    ("draws_at_once", "calls"), [(1, [2] * 10), (3, [6, 6, 6, 2]), (5, [10, 10]), (99, [20])]
)
def test_how_many_draws_go_into_a_call_does_not_matter(draws_at_once, calls):
    source, target, pair = Told(0.4), Told(-0.7), picture(2, 4, 6, 10)
    ours = mask(pair, source, target, draws_at_once=draws_at_once)
    assert torch.equal(ours, mask(pair))
    assert source.calls == target.calls == calls


def test_a_batch_in_which_one_picture_has_nothing_to_edit_is_refused():
    where = torch.stack([WHERE, 0 * WHERE]).view(2, 1, 1, 10)
    with pytest.raises(PalimpsestError, match="say the same of this picture"):
        both = (Told(prompt, where) for prompt in (0.4, -0.7))
        mask(X0.repeat(2, 1, 1, 1), *both, draws_at_once=1)


def test_a_mask_depends_on_its_seed_alone():
    assert torch.equal(mask(seed=1, draws=1), mask(seed=1, draws=1))
    assert not torch.equal(mask(seed=1, draws=1), mask(seed=2, draws=1))


def test_the_picture_is_left_alone_and_gives_the_mask_its_type():
    x0 = X0.float()
    ours = mask(x0)
    assert torch.equal(x0, X0.float())
    assert ours.dtype == torch.float32


# --- bad input


def test_prompts_that_say_the_same_are_refused():
    with pytest.raises(PalimpsestError) as error:
        mask(target=Told(0.4))
    assert str(error.value) == (
        "Source and target prompt say the same of this picture, so there is nothing to edit: "
        "change the target prompt."
    )


def test_nan_of_the_model_is_no_mask():
    with pytest.raises(PalimpsestError):
        mask(target=Told(math.nan))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"draws": 0}, "got 0 at sigma 1.6"),
        ({"draws": -1}, "got -1 at sigma 1.6"),
        ({"sigma": torch.tensor(0.0)}, "got 10 at sigma 0: raise them."),
        ({"sigma": torch.tensor(math.nan)}, "got 10 at sigma nan"),
    ],
)
def test_no_draw_or_no_noise_is_refused_before_the_model_runs(options, told):
    source = Told(0.4)
    with pytest.raises(PalimpsestError, match=f"^The mask needs 1 or more draws .*, {told}"):
        mask(source=source, **options)
    assert source.calls == []


@pytest.mark.parametrize(
    "options",
    [{"ratio": 0.0}, {"ratio": math.nan}, {"ratio": math.inf}, {"draws_at_once": 0}],
    ids=str,
)
def test_no_ratio_or_no_draw_a_call_is_refused_before_the_model_runs(options):
    source = Told(0.4)
    with pytest.raises(PalimpsestError, match=r"^The mask needs a ratio above 0"):
        mask(source=source, **options)
    assert source.calls == []
