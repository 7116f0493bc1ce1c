"""Proximal guidance beside the published code, restated here in its own coordinates."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.pipelines.correction import ADD_TARGET, DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.denoiser import guide, noise_of
from palimpsest.pipelines.edit_along import edit_along
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.proximal import (
    THRESHOLDS,
    Proximal,
    Pull,
    changed_cells,
    shrink,
)
from palimpsest.pipelines.rows import Guess, Rows
from palimpsest.pipelines.schedule import flow_scale, moment_at, sigma_from_t, vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.pipelines.trajectory_file import FORMAT, from_tensors, to_tensors
from palimpsest.tests.unit.analytic import Prompted, alpha_of, distance, geometric, picture, vp_step
from palimpsest.tests.unit.chains import stable_diffusion_sigmas

SOURCE, TARGET, CFG, STEPS = 0.4, -0.7, 7.5, 8
IDENTITY = 1e-10  # the same real numbers in another order of float64 operations
EVERYWHERE = {"pull": 0.0}


# -- thresholds ----------------------------------------------------------------------------------


def published(d, lam, name):
    """The released code, by its own cases."""
    if name == "hard":  # the paper's l0
        return d if abs(d) > lam else 0.0
    if name in ("soft", "published l0"):
        return max(abs(d) - lam, 0) * (1 if d > 0 else -1)
    if d > 2 * lam:
        return d - 2 * lam
    if d > lam:
        return d - lam
    return d + 2 * lam if d < -lam else 0.0


@pytest.mark.parametrize("name", THRESHOLDS)
@given(d=st.floats(-4, 4), lam=st.sampled_from([0.0, 0.25, 1.0]))
def test_a_threshold_is_the_published_one(name, d, lam):
    ours = shrink(torch.tensor([[d]], dtype=torch.float64), torch.tensor(lam), name)
    assert float(ours) == pytest.approx(published(d, lam, name), abs=1e-12)


def test_the_released_l1_turns_the_sign_of_a_small_negative_difference():
    d = torch.tensor([[-1.5, 1.5]])
    assert shrink(d, torch.tensor(1.0), "published l1").tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("name", THRESHOLDS)
def test_where_nothing_is_below_the_threshold_guidance_is_plain(name):
    cond, uncond = picture(seed=1), picture(seed=2)
    sigma = torch.tensor(3.0, dtype=torch.float64)
    ours = Proximal(name, quantile=0.0, pull=0.0).mix(cond, uncond, CFG, sigma)
    # The smallest difference is the threshold itself, and lost by all but the hard one.
    least = float((cond - uncond).abs().flatten(1).min(1).values.max())
    assert distance(ours, guide(cond, uncond, CFG)) <= 2 * CFG * least * (1 + IDENTITY)


def test_the_limit_is_a_quantile_of_each_row_or_a_number_of_noise():
    d = torch.cat([picture(1, 4, 3, 5, seed=1), 3 * picture(1, 4, 3, 5, seed=2)])
    for q in (0.0, 0.3, 0.5, 1.0):
        lam = Proximal(quantile=q).limit(d)
        assert lam.shape == (2, 1, 1, 1)
        assert lam[:, 0, 0, 0].tolist() == [float(row.abs().quantile(q)) for row in d]
    assert Proximal(fixed=0.2).limit(d).flatten().tolist() == [0.2, 0.2]


def test_the_published_quantile_counts_a_source_row_of_zeros():
    d = picture(1, 4, 3, 5, seed=1)
    whole = torch.cat([torch.zeros_like(d), d])
    for q in (0.4, 0.6, 0.75):
        lam = Proximal(quantile=q, over_source=True).limit(d)
        assert float(lam) == float(whole.abs().quantile(q))
    # Half of all numbers are zeros: .75 over both rows is the median of the target's, but for the
    # half place between two of 120.
    both, own = (
        float(Proximal(quantile=q, over_source=over).limit(d))
        for q, over in ((0.75, True), (0.5, False))
    )
    assert both == pytest.approx(own, rel=0.05)


def test_a_number_means_the_same_noise_in_every_model_family():
    """|n_cond - n_uncond| against lam, whether the network predicts noise or a velocity."""
    lam, cfg = 0.8, 4.0
    noises = {name: picture(1, 4, 3, 5, seed=s) for name, s in (("cond", 1), ("uncond", 2))}
    d = noises["cond"] - noises["uncond"]
    expected = noises["uncond"] + cfg * d * (d.abs() > lam)
    guidance = Proximal("hard", fixed=lam)
    # eps: D = x - sigma n.
    x, sigma = picture(1, 4, 3, 5, seed=3), torch.tensor(2.5, dtype=torch.float64)
    guesses = {name: x - sigma * n for name, n in noises.items()}
    mixed = guidance.mix(**guesses, cfg=cfg, sigma=sigma)
    assert distance(noise_of(x, mixed, sigma), expected) < IDENTITY
    # Flow: z = (1 - t) x0 + t n, the network gives v = n - x0 = (n - z) / (1 - t), D = z - t v.
    t = torch.tensor(0.7, dtype=torch.float64)
    z, sigma = picture(1, 4, 3, 5, seed=3), sigma_from_t(t)
    guesses = {name: z - t * (n - z) / (1 - t) for name, n in noises.items()}
    mixed = guidance.mix(**guesses, cfg=cfg, sigma=sigma)
    assert distance(noise_of(z / flow_scale(sigma), mixed, sigma), expected) < IDENTITY


def test_one_level_per_row_is_taken_row_by_row():
    cond, uncond = picture(seed=1), picture(seed=2)
    sigma = torch.tensor([0.5, 4.0], dtype=torch.float64)
    guidance = Proximal(fixed=0.3)
    both = guidance.mix(cond, uncond, CFG, sigma)
    for i in range(2):
        alone = guidance.mix(cond[i : i + 1], uncond[i : i + 1], CFG, sigma[i])
        assert distance(both[i : i + 1], alone) < IDENTITY


def test_at_cfg_1_there_is_nothing_to_limit():
    guidance, sigma = Proximal(), torch.tensor(2.0)
    assert guidance.guided(picture(seed=1), picture(seed=2), CFG, sigma).changed is not None
    # Core gives zeros for the unconditional guess that it did not run.
    cond = picture(seed=1)
    assert torch.equal(guidance.mix(cond, torch.zeros_like(cond), 1.0, sigma), cond)
    assert guidance.guided(cond, torch.zeros_like(cond), 1.0, sigma).changed is None


# -- the mask of the edit ------------------------------------------------------------------------


def test_the_mask_is_dilated_in_each_channel_by_itself():
    d = torch.zeros(1, 2, 7, 7)
    d[0, 0, 3, 3], d[0, 1, 0, 0] = 2.0, -2.0
    for r in range(3):
        mask = changed_cells(d, torch.tensor(1.0), Proximal("hard", dilate=r))
        expected = torch.zeros_like(d)
        expected[0, 0, 3 - r : 4 + r, 3 - r : 4 + r] = 1
        expected[0, 1, : r + 1, : r + 1] = 1
        assert torch.equal(mask, expected)


def test_the_mask_of_a_video_is_dilated_in_every_frame():
    d = torch.zeros(1, 2, 3, 7, 7)
    d[0, 0, 1, 3, 3] = 2.0
    mask = changed_cells(d, torch.tensor(1.0), Proximal("hard", dilate=1))
    assert mask.shape == d.shape
    assert mask[0, 0, 1].sum() == 9
    assert mask.sum() == 9


@pytest.mark.parametrize(("name", "edited"), [("soft", 1), ("hard", 1), ("published l0", 0)])
def test_the_released_code_asks_the_shrunk_difference(name, edited):
    d = torch.full((1, 1, 1, 1), 1.5)  # above lam, but not above 2 lam
    assert float(changed_cells(d, torch.tensor(1.0), Proximal(name, dilate=0))) == edited


@pytest.mark.parametrize("steps", [10, 20, 50, 100, 200])
def test_the_default_acts_below_timestep_400_of_the_published_grids(steps):
    levels = stable_diffusion_sigmas()
    grid = range(1, 1001, 1000 // steps)
    acts = [t for t in grid if Proximal().acts_at(levels[t])]
    assert acts == [t for t in grid if t < 400]


def test_a_share_of_0_never_acts_and_of_1_always():
    for sigma in (0.01, 1.0, 1000.0):
        assert not Proximal(below=0.0).acts_at(torch.tensor(sigma))
        assert Proximal(below=1.0).acts_at(torch.tensor(sigma))
        assert not Proximal(below=1.0, pull=0.0).acts_at(torch.tensor(sigma))


# -- the edit ------------------------------------------------------------------------------------


class Smooth(Prompted):
    """Its differences never saturate: no two cells have the same, which would tie at a quantile."""

    def _noise(self, z, sigma, prompt):
        mixed = z + 0.3 * z.roll(1, dims=1)
        return torch.sin(mixed + 2 * prompt) * (0.5 + 0.1 * torch.cos(sigma)) + 0.1 * mixed


def recorded(dtype=torch.float64):
    sigmas = geometric(STEPS + 1)[1:]
    x0 = picture(2, 4, 6, 5).to(dtype)
    latents = ddim(Smooth(SOURCE), x0, sigmas, scale=vp_scale)
    return Trajectory(latents, sigmas, x0, Recipe("negative-prompt", source_cfg=1.0))


def mixed(prompt, cfg, mix, negative=SOURCE):
    """A denoiser whose two predictions are mixed by hand, as a host does it."""
    model = Smooth(prompt)

    def denoise(x, sigma):
        z = x * vp_scale(sigma)
        cond, uncond = (x - sigma * model._noise(z, sigma, p) for p in (prompt, negative))
        return mix(cond, uncond, cfg, sigma)

    return denoise


@dataclass(frozen=True)
class Host:
    """Lends the toy's denoisers, as a host does."""

    cfg: float = CFG
    scale: object = vp_scale

    def denoiser(self, asked):
        if asked.prompt == "target":
            return mixed(TARGET, self.cfg, asked.mix)
        return mixed(SOURCE, asked.guidance(1.0), asked.mix)

    def recorder(self, asked, roles):
        raise AssertionError("no control is used here")


def edit(trajectory, settings, correction=UNCORRECTED, **options):
    limited = trajectory.with_carried(settings)
    return edit_along(limited, Host(), correction=correction, **options)


def published_edit(trajectory, settings):
    """The released loop for one picture: both rows in one tensor, one quantile over both."""
    assert len(trajectory.origin) == 1
    sigmas, model = trajectory.sigmas, Smooth(0.0)
    stars = trajectory.latents * vp_scale(sigmas).view(-1, 1, 1, 1, 1)
    x = stars[-1].repeat(2, 1, 1, 1)
    texts = torch.tensor([SOURCE, TARGET], dtype=torch.float64).view(2, 1, 1, 1)
    for level in range(len(sigmas) - 1, 0, -1):
        sigma, sigma_next = sigmas[level], sigmas[level - 1]
        eps_u, eps_c = (model._noise(x, sigma, text) for text in (SOURCE, texts))
        d = eps_c - eps_u
        lam = d.abs().quantile(settings.quantile)
        d = shrink(d, lam, settings.threshold)
        x = vp_step(eps_u + CFG * d, alpha_of(sigma), alpha_of(sigma_next), x)
        if float(sigma / (1 + sigma)) < settings.below:
            r = settings.dilate
            mask = (d.abs() > lam).double()
            mask = torch.nn.functional.max_pool2d(mask, 2 * r + 1, stride=1, padding=r)
            x = x - settings.pull * (x - stars[level - 1]) * (1 - mask)
    return x / vp_scale(sigmas[0])


def alone(trajectory, i=0):
    return replace(
        trajectory, latents=trajectory.latents[:, i : i + 1], origin=trajectory.origin[i : i + 1]
    )


@pytest.mark.parametrize("pull", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("threshold", ["published l0", "published l1"])
def test_the_edit_is_the_released_loop(threshold, pull):
    trajectory = alone(recorded())
    settings = Proximal(threshold, quantile=0.75, pull=pull, dilate=1, over_source=True)
    done = edit(trajectory, settings, keep_source=True).run()
    source, target = published_edit(trajectory, settings).split(1)
    assert distance(done.latent, target) < IDENTITY
    assert distance(done.source, source) < IDENTITY
    # Both parts of it do something here.
    assert distance(target, published_edit(trajectory, replace(settings, quantile=0.0))[1:]) > 0.01
    if pull:
        free = published_edit(trajectory, replace(settings, pull=0.0))
        assert distance(target, free[1:]) > 0.01
        assert distance(source, free[:1]) > 1e-4


def test_a_full_pull_puts_the_unedited_cells_on_the_chain_bit_for_bit():
    trajectory = recorded(torch.float32)
    settings = Proximal("hard", quantile=0.9, pull=1.0, below=1.0, dilate=0)
    whole = edit(trajectory, settings)
    rows = Rows(trajectory.start, trajectory.start)
    for i in range(STEPS):
        rows = whole.step(i, rows)
        still = rows.guess.changed == 0
        assert 0.8 < float(still.double().mean()) < 0.95
        assert torch.equal(rows.target[still], trajectory.latents[STEPS - i - 1][still])
        assert not torch.equal(rows.target, trajectory.latents[STEPS - i - 1])


def test_a_source_row_is_pulled_where_no_guidance_said_what_it_changed():
    x, source, chain = (picture(seed=seed) for seed in (1, 2, 3))
    at = moment_at(geometric(STEPS), STEPS - 1)
    rows = Rows(x, source, Guess(x))
    pulled = Pull(Proximal(pull=0.25, below=1.0))(rows, chain, at)
    assert torch.equal(pulled.target, x)
    assert distance(pulled.source, 0.75 * source + 0.25 * chain) < IDENTITY


def test_more_pull_leaves_less_of_the_edit():
    trajectory = recorded()
    far = [
        distance(edit(trajectory, Proximal("hard", pull=p)).run().latent, trajectory.origin)
        for p in (0.0, 0.3, 1.0)
    ]
    assert far == sorted(far, reverse=True)


def test_a_batch_is_edited_as_its_pictures_are():
    trajectory = recorded()
    both = edit(trajectory, Proximal()).run().latent
    for i in range(2):
        single = edit(alone(trajectory, i), Proximal()).run().latent
        assert distance(both[i : i + 1], single) < IDENTITY


def test_the_mask_of_the_target_is_its_own_where_its_residual_is_measured_along_the_chain():
    """Add target asks the target's guidance a second time, at the chain: without a control the
    picture comes back, whatever is limited."""
    trajectory = recorded(torch.float32)
    whole = edit(trajectory, Proximal(), ADD_TARGET)
    assert torch.equal(whole.run().latent, trajectory.origin)


def test_under_direct_inversion_the_source_is_the_chain_all_the_same():
    done = edit(recorded(), Proximal(pull=0.5), DIRECT_INVERSION).run()
    assert torch.equal(done.source, recorded().origin)


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"threshold": "l0"}, "must be one of soft, hard, published l0, published l1, got l0"),
        ({"quantile": 1.2}, "quantile must be 0 to 1, got 1.2"),
        ({"quantile": float("nan")}, "quantile must be 0 to 1, got nan"),
        ({"pull": -0.1}, "pull must be 0 to 1, got -0.1"),
        ({"below": 2.0}, "below must be 0 to 1, got 2.0"),
        ({"fixed": -1.0}, "fixed threshold must be 0"),
        ({"fixed": float("inf")}, "fixed threshold must be 0"),
        ({"dilate": -1}, "dilate must be 0 cells or more, got -1"),
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(wrong, told):
    with pytest.raises(PalimpsestError, match=told):
        Proximal(**wrong)


@pytest.mark.parametrize("cfg", [0.0, 1.0])
def test_an_edit_without_guidance_is_refused(cfg):
    with pytest.raises(PalimpsestError, match=f"at cfg {cfg:g} that is nothing"):
        Proximal().check_edit(cfg)
    Proximal().check_edit(1.5)


SETTINGS = Proximal("hard", 0.25, 0.125, 0.5, 0.75, 2, over_source=True)


def stored(*carried):
    return to_tensors(replace(recorded(torch.float32), recipe=Recipe("ddim"), carried=carried))


def test_a_file_keeps_the_settings_in_a_format_that_older_versions_refuse():
    tensors, about = stored(SETTINGS)
    assert about["palimpsest_trajectory"] == str(FORMAT) == "3"
    assert from_tensors(tensors, about, name="a").carried == (SETTINGS,)
    assert stored()[1]["palimpsest_trajectory"] == "1"


def changed(about, **settings):
    """The text of a file, of which some settings say something else."""
    carried = json.loads(about["carried"])
    carried["proximal"] |= settings
    return about | {"carried": json.dumps(carried)}


def test_what_a_later_version_adds_to_the_settings_is_left_out():
    tensors, about = stored(SETTINGS)
    assert from_tensors(tensors, changed(about, later=3), name="a").carried == (SETTINGS,)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ({"quantile": 7}, "is damaged. quantile must be 0 to 1, got 7"),
        ({"threshold": "sharp"}, "its recipe cannot be read: threshold is 'sharp'"),
        ({"pull": "x"}, "its recipe cannot be read: pull is 'x'"),
        ({"fixed": float("nan")}, "its recipe cannot be read: fixed is 'nan'"),
    ],
    ids=str,
)
def test_damaged_settings_are_refused(damage, told):
    tensors, about = stored(SETTINGS)
    with pytest.raises(PalimpsestError, match=f"a {told}" if "is damaged" in told else told):
        from_tensors(tensors, changed(about, **damage), name="a")
