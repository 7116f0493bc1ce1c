"""What a control cannot follow is one sentence, for a control of every kind."""

import re
from dataclasses import replace

import node_helpers
import pytest
import torch
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_context_windows import ContextWindowsManualNode
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_tomesd import TomePatchModel
from palimpsest.hosts.comfy.edits.cycle_sde import Draws, diffedit
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.inversions.negative_prompt import invert_negative_prompt
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.noise_space import EDIT_FRIENDLY
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.edits.test_sde import request_for
from palimpsest.tests.host.guests.kinds import (
    ROUNDING,
    asked,
    every_kind,
    every_sort,
    inverted,
    words,
)
from palimpsest.tests.host.guests.others import node
from palimpsest.tests.host.guests.verdicts import Row
from palimpsest.tests.host.inversions import test_noise_space
from palimpsest.tests.host.inversions.test_noise_space import SOURCE, invert, levels_of, request

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def windows(length, overlap, dimension):
    """Core's Context Windows along a dimension."""
    how = ("standard_static", 1, False, "pyramid", dimension, False)
    return node(ContextWindowsManualNode, length, overlap, *how)


def fewer_keys(model):
    """As token downsampling: every second token is not looked at."""
    patched = model.clone()
    patched.set_model_attn1_patch(lambda q, k, v, _: (q, k[:, ::2], v[:, ::2]))
    return patched


def on_many_gpus(model):
    """As core's node for several GPUs leaves it."""
    patched = model.clone()
    patched.model_options["multigpu_clones"] = {torch.device("cpu"): patched}
    return patched


TOKENS = Row(
    "HyperTile, Tome Patch Model",
    "refused",
    "Another node on the model cuts or merges the tokens of attention",
)
WINDOWS = Row("Context Windows", "refused", "The picture is run in parts")
CACHED = Row("EasyCache, LazyCache", "refused", "Another node skipped the network in a step")
UNRUN = "a step in which the source did not run"
UNREAD = Row("Differential Diffusion", "refused", "The model carries Differential Diffusion")
SPLIT = Row("MultiGPU", "refused", "Attention control runs on one GPU")
PART = Row("Set Area, Set Mask with bounds", "refused", "The picture is run in parts")
MANY = Row("Conditioning Combine", "refused", "entries, a control takes one")
ROWS = (TOKENS, WINDOWS, CACHED, UNREAD, SPLIT, PART, MANY)

#: Beside their rows.
NODES = {
    "HyperTile": (node(HyperTile, 32, 1, 0, False), TOKENS),
    "ToMe": (node(TomePatchModel, 0.5), TOKENS),
    "token downsampling": (fewer_keys, TOKENS),
    "windows over the width": (windows(6, 2, 3), WINDOWS),
}


@pytest.mark.parametrize(("guest", "row"), NODES.values(), ids=NODES.keys())
@every_sort
def test_a_node_that_a_control_cannot_follow_is_refused(sd1, guest, row, kind):
    chain = inverted(sd1)
    made = asked(sd1, chain, kind, model=guest(sd1.model))
    with pytest.raises(PalimpsestError, match=row.said):
        edit(made)


@pytest.mark.parametrize(("guest", "row"), NODES.values(), ids=NODES.keys())
def test_without_a_control_it_is_core_s_own_business(sd1, guest, row):
    edit(asked(sd1, inverted(sd1), model=guest(sd1.model)))


@every_kind
@pytest.mark.parametrize("cache", [EasyCacheNode, LazyCacheNode])
def test_a_node_that_skips_the_network_is_refused_under_a_control(sd1, kind, cache):
    """Either row may be skipped: the source's, or the target's beside a source that ran.

    Where it finds nothing to skip, the edit is the one without it.
    """
    made = asked(sd1, inverted(sd1, steps=8), kind)
    with_it = replace(made, model=node(cache, 3.0, 0.0, 1.0, False)(sd1.model))
    edit(replace(with_it, control=None))
    try:
        latent = edit(with_it).latent
    except PalimpsestError as refusal:
        assert re.search(f"{CACHED.said}|{UNRUN}", str(refusal))
    else:
        assert relative(latent, edit(made).latent) < ROUNDING


@every_sort
def test_windows_over_the_batch_are_refused_under_a_control(sd1, kind):
    model = windows(2, 1, 0)(sd1.model)
    with pytest.raises(PalimpsestError, match=WINDOWS.said):
        edit(asked(sd1, inverted(sd1, batch=3), kind, model=model))


@every_sort
def test_a_model_on_several_gpus_is_refused_under_a_control(sd1, kind):
    with pytest.raises(PalimpsestError, match=SPLIT.said):
        edit(asked(sd1, inverted(sd1), kind, model=on_many_gpus(sd1.model)))


# --- prompts


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
    with pytest.raises(PalimpsestError, match=PART.said):
        edit(asked)


@pytest.mark.parametrize("role", ["source", "target"])
def test_several_prompts_are_refused_under_a_control_of_words(sd1, role):
    made = asked(sd1, inverted(sd1), words)
    with pytest.raises(PalimpsestError, match=f"The {role} conditioning has 2 {MANY.said}"):
        edit(replace(made, **{role: 2 * getattr(made, role)}))


# --- what no one would read, or what is made for one run of falling levels


def test_differential_diffusion_is_refused_where_its_mask_is_never_read(sd1):
    model = node(DifferentialDiffusion, 1.0)(sd1.model)
    chain, _ = invert(sd1, EDIT_FRIENDLY)
    with pytest.raises(PalimpsestError, match=UNREAD.said):
        edit(request(sd1, chain, model=model))
    with pytest.raises(PalimpsestError, match=UNREAD.said):
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
    plain, empty = (test_noise_space.words(sd1, text) for text in (SOURCE, ""))
    part = node_helpers.conditioning_set_values(plain, extra)
    levels, latent = levels_of(sd1.model), latent_for(sd1)
    with pytest.raises(PalimpsestError, match=f"The positive carries {named}, which"):
        feature = "Invert (Negative-prompt)"
        picture = Picture(sd1.model, part, empty, latent, levels, 1.0, feature)
        invert_negative_prompt(picture)
