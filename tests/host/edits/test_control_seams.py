"""Toy controls of every kind: what the seams for controls promise, in both hosts."""

from dataclasses import dataclass, replace

import pytest
import torch
from palimpsest.hosts.comfy.coordinates import coordinates_of, host_levels
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import EditRequest
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.comfy.session import run as in_a_session
from palimpsest.pipelines.attention.hooks import QKV
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.tests.host import agree, flow
from palimpsest.tests.host.edits.test_edit import latent_for, relative

STEPS = 4

#: Two libraries' kernels in float32, at little noise (see agree.Setting).
HOSTS = 1e-4

#: The same kernels on the same rows, split and joined.
SAME = 1e-4


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@dataclass(frozen=True)
class Toy:
    """Reads the source at the sites of some kinds and layers in the first steps.

    Attributes:
        kinds: Of the sites.
        roles: Which source row a target row reads.
        end: Steps.
        first: Layers from here on.
        takes: "source", or "own": reads, and changes nothing.
    """

    kinds: tuple = ("self",)
    roles: tuple = (("cond", "cond"),)
    end: int = 2
    first: int = 0
    takes: str = "source"

    def source_role(self, role):
        return dict(self.roles).get(role)

    def active(self, at):
        return at.step < self.end

    def reads(self, site, at):
        return self.active(at) and site.kind in self.kinds and site.layer >= self.first

    def kept(self, site, own, at):
        return own

    def terms(self, own, source, site, at):
        if source is None:
            return None
        return (QKV(own.q, source.k, source.v),) if self.takes == "source" else (own,)


class ToyWithFeatures(Toy):
    """The same, also for residual blocks."""

    def feature(self, own, source, site, at):
        return source if self.takes == "source" else own


BOTH = (("cond", "cond"), ("uncond", "uncond"))
ONE_FOR_BOTH = (("cond", "cond"), ("uncond", "cond"))
TOYS = {
    "self": Toy(),
    "self, both rows": Toy(roles=BOTH),
    "self, one row for both": Toy(roles=ONE_FOR_BOTH),
    "cross": Toy(kinds=("cross",)),
    "features": ToyWithFeatures(kinds=("features",), roles=BOTH, first=2),
    "self and features": ToyWithFeatures(kinds=("self", "features"), roles=ONE_FOR_BOTH, first=1),
}
every_toy = pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)


@pytest.fixture
def controlled(monkeypatch):
    """Put a toy where the edits of these tests take Prompt-to-Prompt."""

    def use(toy):
        monkeypatch.setattr(agree, "words", lambda *_: toy)

    return use


def in_comfyui(sd1, control=True):
    return agree.in_comfy(sd1, agree.Setting(latent_for(sd1), control=control))


def in_diffusers(sd1, folder, control=True):
    setting = agree.Setting(latent_for(sd1), control=control)
    sigmas = schedule(sd1.model, "simple", setting.steps, setting.strength)
    scale = sd1.model.model.latent_format.scale_factor
    return agree.in_diffusers(folder, setting, sigmas, scale)


@pytest.fixture(scope="module")
def free(sd1, sd1_folder):
    """The edit without a control, in ComfyUI and in diffusers."""
    with torch.inference_mode():
        return in_comfyui(sd1, False)[0], in_diffusers(sd1, sd1_folder, False)[0]


@every_toy
def test_both_hosts_make_the_same_of_a_control_and_run_only_the_rows_that_it_reads(
    sd1, sd1_folder, controlled, free, toy
):
    controlled(toy)
    ours, _, rows = in_comfyui(sd1)
    theirs, _, their_rows = in_diffusers(sd1, sd1_folder)
    assert relative(ours, theirs) < HOSTS
    assert rows == their_rows
    assert relative(ours, free[0]) > 10 * HOSTS
    read = {source for _, source in toy.roles}
    assert rows[1] == 2 * STEPS + len(read) * toy.end


@every_toy
def test_a_control_that_makes_nothing_of_it_changes_nothing(sd1, sd1_folder, controlled, free, toy):
    controlled(replace(toy, takes="own"))
    assert relative(in_comfyui(sd1)[0], free[0]) < SAME
    assert relative(in_diffusers(sd1, sd1_folder)[0], free[1]) < SAME


def test_the_network_is_left_as_it_was(sd1, sd1_folder, controlled):
    controlled(TOYS["self and features"])
    options = str(sd1.model.model_options)
    agree.in_comfy(sd1, agree.Setting(latent_for(sd1)))
    assert str(sd1.model.model_options) == options
    blocks = [m for m in sd1.model.model.diffusion_model.modules() if m._forward_hooks]
    assert blocks == []


# -- joint attention -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def flux():
    return flow.make_flux()


def request_on(model, toy, target=2):
    """An edit of a tiny Flux under a toy control; no node makes such yet."""
    source, empty = flow.prompt(1), flow.prompt(0)
    latent = torch.randn(1, flow.CHANNELS, 8, 8, generator=torch.Generator().manual_seed(5))
    levels = schedule(model, "simple", STEPS, 0.6)
    picture = Picture(model, source, empty, latent, levels, 1.0, "Invert")
    trajectory, _ = invert_ddim(picture, convention="destination", refinement=0)
    wanted = flow.prompt(target)
    control = toy and BoundControl(toy, source[0][0], wanted[0][0])
    prompts = (source, wanted, empty)
    return EditRequest(model, trajectory, *prompts, 2.0, control, None, DIRECT_INVERSION)


def run(request):
    """The edit as `edit` runs it, behind its checks: they know UNets alone."""

    def algorithm(session):
        return request.start(session).run().latent

    coordinates = coordinates_of(request.model, "Edit")
    levels = host_levels(coordinates, request.trajectory.sigmas)
    origin = request.trajectory.origin
    return in_a_session(request.guider(), origin, levels, algorithm, coordinates=coordinates)


@dataclass(frozen=True)
class Whole(Toy):
    """Takes the source's whole attention; notes where it was."""

    seen: object = None

    def terms(self, own, source, site, at):
        if source is None:
            return None
        self.seen.append((site, at.step, own.q.shape))
        return (source,)


def with_outputs_of_the_source(model):
    """The same by other means: core's own patch of attention's outputs, with tensors of a run.

    Core calls it once for every block of every call: in the recording row it keeps them, in the
    edited rows it puts them into the rows of the prompt.
    """
    kept, state = [], {"recording": True}

    def patch(attention, extra):
        if extra["block_index"] == 0 and extra["block_type"] == "double":
            state["recording"] = extra["cond_or_uncond"] == [0]
            if state["recording"]:
                kept.clear()
            state["at"] = 0
        if state["recording"]:
            kept.append(attention.clone())
            return attention
        place = extra["cond_or_uncond"].index(0)
        parts = list(attention.chunk(len(extra["cond_or_uncond"])))
        parts[place] = kept[state["at"]]
        state["at"] += 1
        return torch.cat(parts)

    clone = model.clone()
    clone.set_model_patch(patch, "attn1_output_patch")
    return clone


def test_in_joint_attention_a_control_sees_text_and_image_at_every_block(flux):
    seen = []
    toy = Whole(kinds=("joint",), end=STEPS, seen=seen)
    latent, spent = run(request_on(flux, toy))
    blocks = flow.FLUX["depth"] + flow.FLUX["depth_single_blocks"]
    assert [(site.layer, step) for site, step, _ in seen] == [
        (layer, step) for step in range(STEPS) for layer in range(blocks)
    ]
    image = (8 // flow.FLUX["patch_size"]) ** 2
    for site, _, shape in seen:
        assert (site.kind, site.role, site.text) == ("joint", "cond", flow.TOKENS)
        assert site.tokens == shape[1] == flow.TOKENS + image
    assert spent.rows == STEPS * 3
    free, _ = run(request_on(flux, None))
    assert relative(latent, free) > 0.01


def test_what_it_takes_of_the_source_is_what_arrives(flux):
    toy = Whole(kinds=("joint",), end=STEPS, seen=[])
    ours, _ = run(request_on(flux, toy))
    expected, _ = run(request_on(with_outputs_of_the_source(flux), Toy(kinds=(), end=STEPS)))
    assert relative(ours, expected) < SAME


def test_a_joint_control_that_makes_nothing_of_it_changes_nothing(flux):
    toy = Toy(kinds=("joint",), end=STEPS, takes="own")
    assert relative(run(request_on(flux, toy))[0], run(request_on(flux, None))[0]) < SAME


def test_another_nodes_attention_computes_the_terms(flux):
    calls = []

    def override(func, *args, **options):
        calls.append(args[0].shape)
        return func(*args, **options)

    clone = flux.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    toy = Whole(kinds=("joint",), end=STEPS, seen=[])
    ours, _ = run(request_on(clone, toy))
    assert relative(ours, run(request_on(flux, toy))[0]) < SAME
    assert len(calls) > 2 * STEPS
