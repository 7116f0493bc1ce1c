import json
from dataclasses import FrozenInstanceError, asdict, replace

import pytest
import torch
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory, line_end
from palimpsest.pipelines.trajectory_file import FORMAT, from_tensors, to_tensors
from palimpsest.tests.unit.analytic import Gaussian, distance, geometric, picture
from safetensors import safe_open
from safetensors.torch import save_file

RECIPE = Recipe(
    "ddim",
    "current",
    refinement=3,
    cfg=1.5,
    model="SD15 abc",
    rows=120,
    eta=0.5,
    strength=1.0,
    source_key="1 abc",
    latent_slope=(0.5, 2.0, 1.0, 1.0),
    latent_offset=(0.0, -1.0, 0.25, 0.0),
    prompt="0123456789abcdef",
)


def made(steps=4, recipe=RECIPE):
    latents = torch.stack([picture(seed=s, dtype=torch.float32) for s in range(steps + 1)])
    return Trajectory(latents, geometric(steps), picture(seed=9, dtype=torch.float32), recipe)


def read(file, **about):
    """A trajectory from a real file, its text changed by `about`."""
    with safe_open(file, "pt") as stored:
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        return from_tensors(tensors, stored.metadata() | about, name="a.safetensors")


@pytest.fixture
def file(tmp_path):
    tensors, about = to_tensors(made())
    save_file(tensors, tmp_path / "a.safetensors", about)
    return tmp_path / "a.safetensors"


def test_a_file_gives_back_every_bit(file):
    ours, theirs = made(), read(file)
    for field in ("latents", "sigmas", "origin"):
        assert torch.equal(getattr(ours, field), getattr(theirs, field))
        assert getattr(ours, field).dtype == getattr(theirs, field).dtype
    assert ours.recipe == theirs.recipe


def test_views_are_written_whole(tmp_path):
    """safetensors refuses tensors that are not contiguous."""
    flipped = made().latents.transpose(-1, -2)
    turned = Trajectory(flipped, geometric(4), flipped[0], RECIPE)
    save_file(*to_tensors(turned)[:1], tmp_path / "a.safetensors")


def test_a_recipe_without_extras_is_kept(tmp_path):
    tensors, about = to_tensors(made(recipe=Recipe("ddim")))
    save_file(tensors, tmp_path / "a.safetensors", about)
    assert read(tmp_path / "a.safetensors").recipe == Recipe("ddim")


def test_what_a_later_version_adds_is_left_out(file):
    recipe = json.dumps(asdict(RECIPE) | {"invented": [1, 2], "later": "yes"})
    assert read(file, recipe=recipe).recipe == RECIPE


def test_what_an_earlier_version_lacked_has_its_default(file):
    old = read(file, recipe=json.dumps({"method": "ddim", "rows": 7})).recipe
    assert old == Recipe("ddim", rows=7)


@pytest.mark.parametrize("number", [str(FORMAT + 1), "0", "-1", "1.0", "one", "", "²"])
def test_another_format_is_refused_by_its_number(file, number):
    with pytest.raises(PalimpsestError) as error:
        read(file, palimpsest_trajectory=number)
    assert str(error.value) == (
        f"a.safetensors is of trajectory format {number}, this version reads 1 to {FORMAT}: "
        "update ComfyUI-Palimpsest."
    )


def test_another_file_is_no_trajectory():
    with pytest.raises(PalimpsestError, match=r"^b\.safetensors is not a trajectory: choose"):
        from_tensors({"latents": torch.zeros(1)}, {"format": "pt"}, name="b.safetensors")


@pytest.mark.parametrize("missing", [["latents"], ["sigmas"], ["origin"], ["latents", "origin"]])
def test_missing_tensors_are_named(missing):
    tensors, about = to_tensors(made())
    kept = {key: t for key, t in tensors.items() if key not in missing}
    with pytest.raises(PalimpsestError, match=f"damaged: it lacks {', '.join(missing)}"):
        from_tensors(kept, about, name="a.safetensors")


@pytest.mark.parametrize("key", ["latents", "sigmas", "origin"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_is_refused(key, value):
    tensors, about = to_tensors(made())
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[1] = value
    with pytest.raises(PalimpsestError, match=r"a\.safetensors is damaged: it holds NaN"):
        from_tensors(tensors, about, name="a.safetensors")


@pytest.mark.parametrize(
    "recipe",
    ["", "{", "[]", "3", "null", '{"rows": 3}', '"ddim"'],
    ids=lambda text: text or "empty",
)
def test_a_damaged_recipe_is_refused(file, recipe):
    with pytest.raises(PalimpsestError, match=r"damaged: its recipe cannot be read"):
        read(file, recipe=recipe)


def test_a_missing_recipe_is_refused():
    tensors, about = to_tensors(made())
    del about["recipe"]
    with pytest.raises(PalimpsestError, match="recipe"):
        from_tensors(tensors, about, name="a.safetensors")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("latents", torch.zeros(())),
        ("latents", torch.zeros(5)),
        ("latents", torch.zeros(4, 2, 4, 3, 5)),
        ("origin", torch.zeros(2, 4, 3, 6)),
        ("sigmas", torch.zeros(())),
        ("sigmas", torch.zeros(5)),
        ("sigmas", geometric(4).flip(0)),
        ("sigmas", geometric(4)[None]),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_together_are_refused(key, value):
    tensors, about = to_tensors(made())
    with pytest.raises(PalimpsestError, match=r"^a\.safetensors is damaged\. .* Save the traj"):
        from_tensors(tensors | {key: value}, about, name="a.safetensors")


# -- the object ----------------------------------------------------------------------------------


def test_a_trajectory_says_its_shape():
    trajectory = made()
    assert trajectory.steps == 4
    assert torch.equal(trajectory.start, trajectory.latents[4])
    assert trajectory.falling_sigmas.dtype == torch.float32
    assert trajectory.falling_sigmas.tolist() == geometric(4).float().tolist()[::-1]


def test_a_trajectory_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        made().latents = torch.zeros(1)


def test_it_needs_one_latent_per_level():
    with pytest.raises(PalimpsestError, match="got 5 latents for 4 levels"):
        Trajectory(made().latents, geometric(3), made().origin, RECIPE)


def test_its_image_must_have_the_size_of_its_latents():
    with pytest.raises(PalimpsestError, match=r"is \(1, 4, 3, 5\), but its latents are \(2, 4,"):
        replace(made(), origin=made().origin[:1])


def test_the_hosts_scaling_is_per_channel():
    trajectory, latents = made(), picture(6, 2, 4, 3, 5, dtype=torch.float32)
    hosts = trajectory.in_host_scale(latents)
    for channel, (slope, offset) in enumerate(
        zip(RECIPE.latent_slope, RECIPE.latent_offset, strict=True)
    ):
        assert torch.equal(hosts[:, :, channel], latents[:, :, channel] * slope + offset)
    assert hosts.dtype == torch.float32


def test_without_a_scaling_latents_are_handed_on():
    latents = picture()
    assert made(recipe=Recipe("ddim")).in_host_scale(latents) is latents


# -- clean estimates -----------------------------------------------------------------------------


def solved_chain(steps=12):
    sigmas = geometric(steps)
    latents = ddim(Gaussian(), picture(), sigmas, scale=vp_scale, refinement=4)
    return Trajectory(latents, sigmas, picture(), Recipe("ddim"))


def test_clean_estimates_are_the_denoised_latents_of_a_solved_chain():
    """Its next level was solved for, so that the line through both ends at D of the upper one."""
    trajectory = solved_chain()
    sigmas, guesses = trajectory.clean_estimates(13)
    assert sigmas == trajectory.sigmas.flip(0).tolist()
    for level, guess in zip(range(12, 0, -1), guesses, strict=False):
        expected = Gaussian()(trajectory.latents[level], trajectory.sigmas[level])
        assert distance(guess, expected) < 1e-8
    assert torch.equal(guesses[-1], trajectory.latents[0])


def test_clean_estimates_of_the_true_path_lie_between_its_two_denoised_latents():
    sigmas, denoise = geometric(40), Gaussian()
    true = torch.stack([denoise.flow(picture(), sigma) for sigma in sigmas])
    _, guesses = Trajectory(true, sigmas, picture(), Recipe("ddim")).clean_estimates(41)
    ends = torch.stack([denoise(x, sigma) for x, sigma in zip(true, sigmas, strict=True)])
    low, high = torch.minimum(ends[1:], ends[:-1]), torch.maximum(ends[1:], ends[:-1])
    inner = guesses[:-1].flip(0)
    assert bool((inner >= low - 1e-12).all() and (inner <= high + 1e-12).all())


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13, 50])
def test_a_filmstrip_goes_from_the_noisiest_level_to_the_image(count):
    trajectory = solved_chain()
    sigmas, guesses = trajectory.clean_estimates(count)
    assert len(sigmas) == len(guesses) == min(count, 13)
    assert sigmas[0] == float(trajectory.sigmas[-1])
    assert sigmas[-1] == 0
    assert sigmas == sorted(set(sigmas), reverse=True)
    assert torch.equal(guesses[-1], picture())


def test_the_line_through_two_noised_copies_ends_at_the_clean_one():
    clean, noise = picture(seed=1), picture(seed=2)
    low, high = torch.tensor([0.7, 5.0], dtype=torch.float64)
    assert distance(line_end(clean + low * noise, clean + high * noise, low, high), clean) < 1e-14
