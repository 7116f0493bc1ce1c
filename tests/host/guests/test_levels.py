"""Nodes that read the noise level of a call see one level in it; others leave many in one."""

from dataclasses import replace

import pytest
import torch
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from palimpsest.hosts.comfy.edits.cycle_sde import cycle_sde
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.pipelines.inversion.noise_space import EDIT_FRIENDLY, cycle_diffusion
from palimpsest.tests.host.edits.test_branches import lora
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.edits.test_sde import request_for
from palimpsest.tests.host.guests.kinds import ROUNDING
from palimpsest.tests.host.guests.others import node
from palimpsest.tests.host.inversions.test_noise_space import SOURCE, invert, request

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


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
