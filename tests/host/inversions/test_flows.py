"""Inversions and their edits on rectified-flow models: the same pipelines, core's own sampler."""

from dataclasses import replace

import comfy.patcher_extension
import comfy.samplers
import folder_paths
import node_helpers
import pytest
import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.files.trajectories import (
    load_trajectory,
    save_trajectory,
    trajectory_from_latents,
)
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.noise import noise_of_trajectory
from palimpsest.hosts.comfy.inversions.noise_space import invert_noise
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.nodes.inversions.cyclediffusion import InvertCycleDiffusion
from palimpsest.nodes.inversions.ddim import InvertDDIM
from palimpsest.nodes.inversions.edit_friendly import InvertEditFriendly
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.tokens import PromptTokens, Word
from palimpsest.pipelines.correction import ADD_SOURCE, DIRECT_INVERSION, UNCORRECTED, Correction
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.noise_space import EDIT_FRIENDLY, cycle_diffusion
from palimpsest.pipelines.schedule import FLOW_T_MAX
from palimpsest.tests.host import flow
from palimpsest.tests.host.edits.test_edit import relative
from palimpsest.tests.host.test_coordinates import (
    EMPTY,
    FLOAT32,
    FLOWS,
    NETWORK,
    SOURCE,
    TARGET,
    latent_for,
)

STEPS, CFG = 4, 2.0
METHODS = ("ddim", "edit friendly", "cyclediffusion")
SPACES = {"edit friendly": EDIT_FRIENDLY, "cyclediffusion": cycle_diffusion()}
every_method = pytest.mark.parametrize("method", METHODS)
every_space = pytest.mark.parametrize("method", SPACES)


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module", params=FLOWS)
def model(request):
    return FLOWS[request.param]()


def invert(model, method, *, strength=0.6, cfg=1.0, refinement=0, batch=1, source=SOURCE):
    picture = Picture(
        model,
        source,
        EMPTY,
        latent_for(model, batch=batch),
        schedule(model, "simple", STEPS, strength),
        cfg,
        "Invert",
    )
    if method == "ddim":
        return invert_ddim(picture, convention="destination", refinement=refinement)
    return invert_noise(picture, SPACES[method], seed=1)


def request(model, trajectory, **changes):
    defaults = {
        "source": SOURCE,
        "target": TARGET,
        "negative": EMPTY,
        "cfg": CFG,
        "control": None,
        "mask": None,
        "correction": DIRECT_INVERSION,
    }
    return EditRequest(model, trajectory, **(defaults | changes))


# --- there and back by Edit


@every_method
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_the_source_comes_back_bit_for_bit_beside_an_edit(model, method, strength):
    trajectory, inverted = invert(model, method, strength=strength, batch=2)
    assert inverted.rows == 2 * STEPS
    assert bool(torch.isfinite(trajectory.latents).all())
    latent, kept, spent, _ = edit(request(model, trajectory))
    assert torch.equal(kept, latent_for(model, batch=2))
    assert spent.rows == 2 * 2 * STEPS
    assert bool(torch.isfinite(latent).all())
    assert relative(latent, kept) > 1e-2


@every_space
@pytest.mark.parametrize("cfg", [1.0, CFG])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_what_is_not_edited_comes_back_bit_for_bit_at_no_row(model, method, cfg, strength):
    trajectory, _ = invert(model, method, cfg=cfg, strength=strength, batch=2)
    latent, _, spent, _ = edit(request(model, trajectory, target=SOURCE, cfg=cfg))
    assert torch.equal(latent, trajectory.origin)
    assert spent.rows == 0


@every_space
def test_computed_it_comes_back_as_well(model, method):
    """Another guidance at which nothing differs: the model has no other prompt to be led from.

    Where that can be told nothing is run; a conditioning that holds a live object has no name.
    """
    trajectory, _ = invert(model, method, cfg=1.0)
    same = request(model, trajectory, target=SOURCE, negative=SOURCE, cfg=CFG)
    latent, _, spent, _ = edit(same)
    assert torch.equal(latent, trajectory.origin) and spent.rows == 0
    nameless = [[embedding, {**more, "live": object()}] for embedding, more in SOURCE]
    latent, _, spent, _ = edit(replace(same, negative=nameless))
    assert relative(latent, trajectory.origin) < NETWORK
    assert spent.rows == 2 * STEPS


def test_corrections_do_as_they_say(model):
    trajectory, _ = invert(model, "ddim")
    drifts = [
        relative(edit(request(model, trajectory, correction=c, keep_source=True))[1], kept)
        for kept in (trajectory.origin,)
        for c in (UNCORRECTED, Correction(0.5), DIRECT_INVERSION)
    ]
    assert drifts[0] > drifts[1] > drifts[2] == 0
    tied, free = (
        edit(request(model, trajectory, correction=c))[0] for c in (ADD_SOURCE, DIRECT_INVERSION)
    )
    assert relative(tied, free) > 1e-3


@every_method
def test_outside_the_mask_every_bit_stays(model, method):
    mask = torch.zeros(1, 64, 64)
    mask[:, :40, :24] = 1
    trajectory, _ = invert(model, method)
    latent, _, _, _ = edit(request(model, trajectory, mask=mask))
    same = latent == trajectory.origin
    assert same[..., 5:, :].all() and same[..., 3:].all()
    assert not same[..., :5, :3].all(1).any()


@every_method
def test_a_stored_trajectory_edits_as_the_fresh_one_does(model, method, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    trajectory, _ = invert(model, method)
    stored = load_trajectory(f"{save_trajectory(trajectory, 'flow').name} [output]")
    assert stored.recipe == trajectory.recipe and stored.recipe.noise_scale == 1.0
    fresh, again = (edit(request(model, t))[0] for t in (trajectory, stored))
    assert torch.equal(fresh, again)


def test_a_latent_batch_is_the_trajectory_it_came_from(model):
    trajectory, _ = invert(model, "ddim")
    batch = trajectory.in_host_scale(trajectory.latents).flatten(0, 1)
    again = trajectory_from_latents(model, batch, trajectory.falling_sigmas)
    assert relative(again.latents, trajectory.latents) < FLOAT32
    first, second = (edit(request(model, t))[0] for t in (trajectory, again))
    assert relative(second, first) < NETWORK


# --- there and back by core's sampler


def by_core(model, noise, latent, sigmas, seen=None):
    """What SamplerCustomAdvanced does with euler."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(SOURCE, EMPTY)
    guider.set_cfg(1.0)
    told = None if seen is None else lambda step, denoised, x, total: seen.append(x.clone())
    sampler = comfy.samplers.ksampler("euler")
    return guider.sample(noise, latent, sampler, sigmas, callback=told, seed=0)


def handed_over(model, trajectory, way):
    """Noise and latent as core takes them: leftover noise, or our NOISE on a latent."""
    leftover = trajectory.in_host_scale(trajectory.start)
    if way == "leftover":
        return torch.zeros_like(leftover), leftover
    base = trajectory.origin if way == "noise on the picture" else torch.zeros_like(leftover)
    return noise_of_trajectory(model, trajectory).generate_noise({"samples": base}), base


WAYS = ("leftover", "noise on the picture", "noise on an empty latent")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_cores_sampler_starts_where_the_inversion_ended(model, way, strength):
    trajectory, _ = invert(model, "ddim", strength=strength)
    seen = []
    by_core(model, *handed_over(model, trajectory, way), trajectory.falling_sigmas, seen)
    t = float(trajectory.falling_sigmas[0])
    assert strength < 1 or t == pytest.approx(FLOW_T_MAX)
    # Core's callback shows z = (1 - t) x; pure noise comes out of a sum 2000 times its size.
    assert relative(seen[0], trajectory.start * (1 - t)) < (1e-5 if strength < 1 else 1e-4)


@pytest.fixture(scope="module")
def refined(model):
    """The picture inverted without refinement and with much of it."""
    with torch.inference_mode():
        return {n: invert(model, "ddim", strength=0.6, refinement=n)[0] for n in (0, 30)}


@pytest.mark.parametrize("way", WAYS)
def test_a_refined_inversion_comes_back_through_cores_euler(model, refined, way):
    errors = {}
    for refinement, trajectory in refined.items():
        back = by_core(model, *handed_over(model, trajectory, way), trajectory.falling_sigmas)
        errors[refinement] = relative(back, trajectory.origin)
    # 4 refinements of these random networks leave 1 to 2 %, 12 some 1e-4.
    assert errors[30] < NETWORK and errors[0] > 0.1


# --- what else is shown to the model


def watched(model):
    """A clone that keeps the distilled guidance of every row that it was shown."""
    shown = []

    def keep(executor, x, *args, **options):
        shown.append(options["guidance"].flatten().tolist())
        return executor(x, *args, **options)

    clone = model.clone()
    clone.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, keep)
    return clone, shown


@every_method
def test_the_guidance_that_flux_is_told_goes_through_untouched(method):
    source, target = (
        node_helpers.conditioning_set_values(prompt, {"guidance": guidance})
        for prompt, guidance in ((SOURCE, 1.5), (TARGET, 4.0))
    )
    model, shown = watched(flow.make_flux())
    trajectory, _ = invert(model, method, source=source)
    assert [guidance for call in shown for guidance in call] == [1.5] * STEPS
    shown.clear()
    edit(request(model, trajectory, source=source, target=target, negative=source))
    assert shown == [[1.5, 4.0]] * STEPS  # core puts the negative first
    shown.clear()
    latent, _, _, _ = edit(request(model, trajectory, source=source, target=target, cfg=1.0))
    assert shown == [[4.0]] * STEPS
    other = node_helpers.conditioning_set_values(TARGET, {"guidance": 1.0})
    assert relative(edit(request(model, trajectory, target=other, cfg=1.0))[0], latent) > 1e-4


# --- attention control


def control():
    tokens = PromptTokens(tuple(range(flow.TOKENS)), (Word("a", (1,)),), 3)
    return BoundControl(rewrite_prompt(tokens, tokens), SOURCE[0][0], TARGET[0][0])


@every_method
def test_prompt_to_prompt_goes_with_it(model, method):
    """The source stays what it is, and the control is heard in the target."""
    trajectory, _ = invert(model, method)
    under, beside, *_ = edit(request(model, trajectory, control=control(), keep_source=True))
    free, source, *_ = edit(request(model, trajectory, keep_source=True))
    assert torch.equal(beside, source)
    assert relative(under, free) > 1e-4


# --- what a flow model cannot do


@every_method
def test_plug_and_play_is_refused_in_one_sentence(model, method):
    trajectory, _ = invert(model, method)
    with pytest.raises(PalimpsestError, match=r"^Plug-and-Play ") as caught:
        edit(request(model, trajectory, control=BoundControl(PlugAndPlay(), name="Plug-and-Play")))
    assert type(model.model).__name__ in str(caught.value)


@every_method
def test_the_guider_is_refused_in_one_sentence(model, method):
    trajectory, _ = invert(model, method)
    with pytest.raises(PalimpsestError, match=r"^Edit Guider takes models that predict noise or v"):
        EditGuider(request(model, trajectory))


# --- the nodes

NODES = {
    InvertDDIM: {"cfg": 1.0, "convention": "destination", "refinement": 0},
    InvertEditFriendly: {"skip": 2, "source_cfg": 1.0, "seed": 1, "source_batch": 8},
    InvertCycleDiffusion: {"eta": 0.1, "source_cfg": 1.0, "seed": 1, "source_batch": 8},
}


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_node_gives_core_what_its_sampler_takes(model, node):
    wires = {"model": model, "positive": SOURCE, "latent": {"samples": latent_for(model)}}
    widgets = {"steps": 6, "scheduler": "simple", "strength": 1.0, **NODES[node]}
    trajectory, latent, sigmas, noise = node.execute(**wires, **widgets).args
    assert len(sigmas) == len(trajectory.latents) == (5 if node is InvertEditFriendly else 7)
    zeros = torch.zeros_like(latent["samples"])
    leftover = by_core(model, zeros, latent["samples"], sigmas)
    handed = by_core(model, noise.generate_noise({"samples": zeros}), zeros, sigmas)
    assert bool(torch.isfinite(leftover).all())
    assert relative(handed, leftover) < 1e-3  # pure noise: 1 - t is 5e-4 in float32
