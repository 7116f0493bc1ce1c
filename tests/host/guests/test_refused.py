"""What other nodes put on a model or a prompt takes effect as in core, or is one sentence."""

from dataclasses import replace

import node_helpers
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_easycache import EasyCacheNode
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from palimpsest.hosts.comfy.edits.cycle_sde import Draws, cycle_sde, diffedit
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.inversions.negative_prompt import invert_negative_prompt
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.noise_space import EDIT_FRIENDLY, cycle_diffusion
from palimpsest.tests.host.edits.test_branches import lora
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.edits.test_sde import request_for
from palimpsest.tests.host.inversions.test_noise_space import (
    SOURCE,
    invert,
    levels_of,
    request,
    words,
)

#: Rounding of float32 over three steps of a tiny network; what a guest does here is above 1e-3.
ROUNDING = 1e-5


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def node(make, *args):
    """What puts a node of core's on a model."""

    def put(model):
        out = make.execute(model, *args)
        return getattr(out, "args", out)[0]

    return put


def longer(model, tokens):
    """A node that appends tokens of its own to every prompt, as picture prompts are."""
    extra = torch.randn(1, tokens, 32, generator=torch.Generator().manual_seed(9))

    def append(n, context, value, _extra):
        added = extra.expand(len(context), -1, -1)
        return n, torch.cat([context, added], 1), torch.cat([value, added], 1)

    patched = model.clone()
    patched.set_model_attn2_patch(append)
    return patched


def blurred(model, kind, *place):
    """A node that adds to one attention what its values are on average."""

    def attend(q, k, v, extra):
        out = optimized_attention(q, k, v, extra["n_heads"], transformer_options=extra)
        return out + v.mean(1, keepdim=True)

    patched = model.clone()
    patched.set_model_patch_replace(attend, kind, *place)
    return patched


PAG = node(PerturbedAttentionGuidance, 3.0)
SAG = node(SelfAttentionGuidance, 0.5, 2.0)
GUESTS = {
    "PAG": PAG,
    "SAG": SAG,
    "4 tokens more": lambda model: longer(model, 4),
    "a prompt more": lambda model: longer(model, 77),
    "replaced self": lambda model: blurred(model, "attn1", "middle", 0),
    "replaced self by index": lambda model: blurred(model, "attn1", "output", 3, 0),
    "replaced cross": lambda model: blurred(model, "attn2", "input", 1),
    "replaced cross by index": lambda model: blurred(model, "attn2", "input", 1, 0),
}
every_guest = pytest.mark.parametrize("guest", GUESTS.values(), ids=GUESTS.keys())


def closed(asked):
    """The same edit with a control whose windows never open."""
    control = asked.control
    none = torch.zeros_like(control.control.cross_windows)
    shut = replace(control.control, cross_windows=none, self_window=(0.0, 0.0))
    return replace(asked, control=replace(control, control=shut))


@every_guest
def test_under_a_control_equal_prompts_give_the_picture_back(sd1, guest):
    model = guest(sd1.model)
    chain, _ = invert(sd1, EDIT_FRIENDLY, model=model, source_cfg=2.0)
    asked = request(sd1, chain, SOURCE, control=True, model=model, cfg=2.0)
    assert relative(edit(asked)[0], latent_for(sd1)) < ROUNDING


@every_guest
def test_under_a_control_a_guest_does_what_it_does_without(sd1, guest):
    model = guest(sd1.model)
    chain, _ = invert(sd1, EDIT_FRIENDLY, model=model, source_cfg=2.0)
    asked = request(sd1, chain, control=True, model=model, cfg=2.0)
    ours, free = edit(asked)[0], edit(replace(asked, control=None))[0]
    assert relative(edit(closed(asked))[0], free) < ROUNDING
    assert relative(ours, free) > 1e-3  # the control does something as well
    alone = edit(request(sd1, chain, control=True, cfg=2.0))[0]
    assert relative(ours, alone) > 1e-3


# --- what a control cannot follow


def area(conditioning):
    """Core's Set Area: the lower half of the picture."""
    return node_helpers.conditioning_set_values(
        conditioning, {"area": (8, 16, 8, 0), "strength": 1.0, "set_area_to_bounds": False}
    )


def mask_bounds(conditioning):
    """Core's Set Mask with `set cond area` at mask bounds."""
    mask = torch.zeros(1, 128, 128)
    mask[:, :64, :64] = 1
    return node_helpers.conditioning_set_values(
        conditioning, {"mask": mask, "set_area_to_bounds": True, "mask_strength": 1.0}
    )


@pytest.mark.parametrize("role", ["source", "target", "negative"])
@pytest.mark.parametrize("restrict", [area, mask_bounds])
def test_a_prompt_of_a_part_of_the_picture_is_refused_under_a_control(sd1, role, restrict):
    chain, _ = invert(sd1, EDIT_FRIENDLY, samples=latent_for(sd1, 16, 16))
    asked = request(sd1, chain, control=True)
    asked = replace(asked, **{role: restrict(getattr(asked, role))})
    edit(replace(asked, control=None))  # core's own business
    with pytest.raises(PalimpsestError, match="run in parts"):
        edit(asked)


PARTS = {
    "HyperTile": (node(HyperTile, 32, 1, 0, False), "cuts or merges the tokens"),
    "ToMe": (node(TomePatchModel, 0.5), "cuts or merges the tokens"),
    "windows over the width": (
        node(ContextWindowsManualNode, 6, 2, "standard_static", 1, False, "pyramid", 3, False),
        "run in parts",
    ),
}


@pytest.mark.parametrize(("guest", "sentence"), PARTS.values(), ids=PARTS.keys())
def test_a_node_that_cuts_the_picture_is_refused_under_a_control(sd1, guest, sentence):
    model = guest(sd1.model)
    chain, _ = invert(sd1, EDIT_FRIENDLY, model=model)
    asked = request(sd1, chain, control=True, model=model)
    edit(replace(asked, control=None))
    with pytest.raises(PalimpsestError, match=sentence):
        edit(asked)


def test_windows_over_the_batch_are_refused_under_a_control(sd1):
    windows = node(ContextWindowsManualNode, 2, 1, "standard_static", 1, False, "pyramid", 0, False)
    model, pictures = windows(sd1.model), latent_for(sd1, batch=3)
    chain, _ = invert(sd1, EDIT_FRIENDLY, model=model, samples=pictures)
    asked = request(sd1, chain, control=True, model=model)
    with pytest.raises(PalimpsestError, match="run in parts"):
        edit(asked)


def opened(asked):
    """The same edit with a control whose windows are open in every step."""
    control = asked.control
    ever = torch.tensor([0.0, 1.0]).expand_as(control.control.cross_windows)
    wide = replace(control.control, cross_windows=ever, self_window=(0.0, 1.0))
    return replace(asked, control=replace(control, control=wide))


def test_a_node_that_skips_the_source_is_refused_under_a_control(sd1):
    model = node(EasyCacheNode, 3.0, 0.0, 1.0, False)(sd1.model)
    chain, _ = invert(sd1, EDIT_FRIENDLY)
    asked = opened(request(sd1, chain, control=True, model=model))
    edit(replace(asked, control=None))
    with pytest.raises(PalimpsestError, match="a step in which the source did not run"):
        edit(asked)


def test_a_source_prompt_of_some_steps_is_refused_under_a_control(sd1):
    chain, _ = invert(sd1, EDIT_FRIENDLY)
    asked = opened(request(sd1, chain, control=True))
    late = node_helpers.conditioning_set_values(asked.source, {"start_percent": 0.8})
    with pytest.raises(PalimpsestError, match="a step in which the source did not run"):
        edit(replace(asked, source=late))


# --- several levels of the source in one call


def late_attention(model):
    """A patch of values that acts at the noisier levels, which it reads off the first row."""

    def patch(n, context, value, extra):
        louder = 1.5 if float(extra["sigmas"][0]) > LATE else 1.0
        return n, context, louder * value

    patched = model.clone()
    patched.set_model_attn2_patch(patch)
    return patched


#: Between the levels of a schedule of 3 steps at strength 0.3.
LATE = 0.4
SHRINK = node(PatchModelAddDownscale, 1, 2.0, 0.0, 0.75, True, "bicubic", "bicubic")
LATE_GUESTS = {"Deep Shrink": SHRINK, "a patch with an end": late_attention}
every_late_guest = pytest.mark.parametrize("guest", LATE_GUESTS.values(), ids=LATE_GUESTS.keys())


@every_late_guest
@pytest.mark.parametrize(
    "space", [EDIT_FRIENDLY, cycle_diffusion()], ids=["edit friendly", "cycle"]
)
def test_a_patch_with_an_end_sees_one_level_a_call(sd1, guest, space):
    model = guest(sd1.model)
    (one, _), (many, _) = (invert(sd1, space, model=model, levels_at_once=n) for n in (1, 8))
    assert torch.equal(one.denoised, many.denoised)
    assert relative(one.denoised, invert(sd1, space)[0].denoised) > 1e-2
    back = edit(request(sd1, many, SOURCE, model=model, cfg=1.0))[0]
    assert relative(back, latent_for(sd1)) < ROUNDING


@every_late_guest
def test_a_patch_with_an_end_sees_one_level_a_call_of_cycle_sde(sd1, guest):
    asked = request_for(sd1, model=guest(sd1.model), source_cfg=2.0)
    one, many = (cycle_sde(replace(asked, levels_at_once=n))[0] for n in (1, 8))
    assert torch.equal(one, many)


def test_a_lora_leaves_many_levels_in_a_call(sd1):
    calls = []
    watched = lora(sd1.model, 0.05)
    hook = watched.model.diffusion_model.register_forward_pre_hook(
        lambda _module, args: calls.append(len(args[0]))
    )
    try:
        invert(sd1, EDIT_FRIENDLY, model=watched, levels_at_once=8)
    finally:
        hook.remove()
    assert calls == [3]


# --- what no one would read, or what is made for one run of falling levels


def test_differential_diffusion_is_refused_where_its_mask_is_never_read(sd1):
    model = node(DifferentialDiffusion, 1.0)(sd1.model)
    chain, _ = invert(sd1, EDIT_FRIENDLY)
    with pytest.raises(PalimpsestError, match="The model carries Differential Diffusion"):
        edit(request(sd1, chain, model=model))
    with pytest.raises(PalimpsestError, match="The model carries Differential Diffusion"):
        invert(sd1, EDIT_FRIENDLY, model=model)


def test_momentum_over_unlike_calls_is_one_sentence(sd1):
    model = node(APG, 1.0, 5.0, 0.5)(sd1.model)
    asked = request_for(sd1, model=model, feature="DiffEdit")
    with pytest.raises(PalimpsestError, match=r"another node \(nodes_apg\) failed"):
        diffedit(asked, Draws(count=10))  # 8 and 2 at a time


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"area": (4, 8, 4, 0)}, "an area"),
        ({"mask": torch.ones(1, 64, 64)}, "a mask"),
        ({"start_percent": 0.5, "end_percent": 1.0}, "a span of steps"),
    ],
)
def test_negative_prompt_takes_no_prompt_of_a_part(sd1, extra, named):
    plain, empty = words(sd1, SOURCE), words(sd1, "")
    part = node_helpers.conditioning_set_values(plain, extra)
    levels, latent = levels_of(sd1.model), latent_for(sd1)
    with pytest.raises(PalimpsestError, match=f"The positive carries {named}, which"):
        feature = "Invert (Negative-prompt)"
        picture = Picture(sd1.model, part, empty, latent, levels, 1.0, feature)
        invert_negative_prompt(picture)
