"""What holds of every inversion, through its node: those of today and any that comes.

The nodes are the extension's own list and their settings the nodes' own, with fewer steps.
"""

import asyncio
from dataclasses import fields
from functools import cache

import palimpsest
import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.latents import with_samples
from palimpsest.nodes.control import PromptToPrompt
from palimpsest.nodes.inversions.shared import CATEGORY
from palimpsest.nodes.wires import Control
from palimpsest.pipelines.attention.control import UNET, Moving, acts_in
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.trajectory import Trajectory
from palimpsest.tests.host.edits.test_edit import relative

NODES = asyncio.run(asyncio.run(palimpsest.comfy_entrypoint()).get_node_list())
INVERSIONS = [
    node
    for node in NODES
    if node.GET_SCHEMA().category == CATEGORY
    and {"model", "latent"} <= {wanted.id for wanted in node.GET_SCHEMA().inputs}
]

#: What of a node's own settings would take long.
SMALL = {"steps": 3, "strength": 0.6, "skip": 1, "inner_steps": 1, "rounds": 3}

#: Pictures of a batch beside each alone: float32 kernels round otherwise in calls of other sizes
#: (3e-6), which EDICT's division and the optimisers make more of: 2.1e-4 was the most, seen with
#: and without the processor's vector units.
ROUNDED = 1e-3

#: The tensors of every trajectory.
KEPT = ("latents", "sigmas", "origin")

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")
each = pytest.mark.parametrize("node", INVERSIONS, ids=lambda node: node.SCHEMA.node_id[16:])


#: Every node that makes an attention control.
CONTROLS = [
    node
    for node in NODES
    if Control.io_type in {made.io_type for made in node.GET_SCHEMA().outputs}
]


def settings_of(node):
    """The node's own value of every widget that has one, with less to do."""
    inputs = {wanted.id: wanted for wanted in node.GET_SCHEMA().inputs}
    own = {key: wanted.default for key, wanted in inputs.items() if hasattr(wanted, "default")}
    choices = {
        key: own.get(key) or wanted.options[0]
        for key, wanted in inputs.items()
        if hasattr(wanted, "options")
    }
    named = own | choices | {key: value for key, value in SMALL.items() if key in inputs}
    return {key: value for key, value in named.items() if value is not None}


def prompt(sd1, text):
    return sd1.clip.encode_from_tokens_scheduled(sd1.clip.tokenize(text))


def picture(batch=1):
    generator = torch.Generator().manual_seed(3)
    return {"samples": torch.randn(batch, 4, 8, 8, generator=generator)}


def inverted(node, sd1, latent):
    """The trajectory, and all that the node gives besides."""
    asked = {"positive": prompt(sd1, "a red circle"), "negative": prompt(sd1, "")}
    return node.execute(model=sd1.model, latent=latent, **asked, **settings_of(node)).args


@pytest.fixture(scope="module")
def once(sd1):
    """What a node gives for the picture, computed once for all laws that only read it."""

    @cache
    def given(node):
        return inverted(node, sd1, picture())

    return given


def edited(node, sd1, trajectory, text="a red circle", control=None):
    """The edit along a trajectory under Direct Inversion; some hold it to their own cfg."""
    prompts = [prompt(sd1, words) for words in ("a red circle", text, "")]
    cfg = settings_of(node).get("cfg", 3.0)
    request = EditRequest(sd1.model, trajectory, *prompts, cfg, control, None, DIRECT_INVERSION)
    return edit(request)[:2]


def control_of(node, sd1, text):
    """What a node makes for an edit of "a red circle" into something else."""
    words = {"clip": sd1.clip, "source": "a red circle", "target": text}
    # Attention of random weights is nearly even: a mask needs a high threshold.
    words |= {"words": "circle", "target_words": text.split()[-1], "threshold": 0.99}
    wanted = {wanted.id: wanted for wanted in node.GET_SCHEMA().inputs}
    given = settings_of(node) | {key: value for key, value in words.items() if key in wanted}
    if "control" in wanted and "words" in wanted:
        known = ("clip", "source", "target")
        below = settings_of(PromptToPrompt) | {key: words[key] for key in known}
        silent = {"cross_window": 0.0, "self_window": 0.0}
        given["control"] = PromptToPrompt.execute(**(below | silent)).args[0]
    return node.execute(**given).args[0]


def tensors_of(trajectory):
    """Every tensor that a trajectory holds."""
    named = {name: getattr(trajectory, name) for name in KEPT}
    some = {name: getattr(trajectory, name) for name in ("denoised", "image")}
    for carried in trajectory.carried:
        some |= {f"{carried.name}/{key}": tensor for key, tensor in carried.tensors.items()}
    return named | {name: tensor for name, tensor in some.items() if tensor is not None}


def test_all_are_here():
    assert len(INVERSIONS) >= 8 and len(CONTROLS) >= 3
    held = {field.name for field in fields(Trajectory)}
    # What is new there has a place in `tensors_of`, or is none of a law's business.
    assert held == {*KEPT, "denoised", "image", "carried", "recipe", "features"}


@each
def test_the_source_row_is_the_picture_bit_for_bit(sd1, node, once):
    """Where an edit has none, as along EDICT's chains, one to the same words is the picture; where
    the chain only comes close to the picture, as Null-text's, the row is the chain's end.
    """
    latent, trajectory = picture(), once(node)[0]
    other, source = edited(node, sd1, trajectory, "a blue square")
    same = edited(node, sd1, trajectory)[0] if source is None else source
    if trajectory.image is None:
        assert torch.equal(same, latent["samples"])
    else:
        assert relative(same, trajectory.in_host_scale(trajectory.latents[0])) < 1e-6
    assert relative(other, latent["samples"]) > 0.01


@each
@pytest.mark.parametrize("control", CONTROLS, ids=lambda node: node.SCHEMA.node_id[10:])
def test_every_control_goes_with_it(sd1, node, once, control):
    """The source stays what it is, and the control is heard in the target; or one sentence says
    why a control that moves the latent has no place in a loop of the inversion's own.
    """
    trajectory = once(node)[0]
    bound = control_of(control, sd1, "a blue square")
    if not acts_in(bound.control) & UNET:
        with pytest.raises(PalimpsestError, match="needs a transformer in which text"):
            edited(node, sd1, trajectory, "a blue square", bound)
        return
    own_loop = any(carried.own_loop for carried in trajectory.carried)
    if own_loop and isinstance(bound.control, Moving):
        with pytest.raises(PalimpsestError, match="take the trajectory of another Invert node"):
            edited(node, sd1, trajectory, "a blue square", bound)
        return
    free, source = edited(node, sd1, trajectory, "a blue square")
    under, beside = edited(node, sd1, trajectory, "a blue square", bound)
    assert relative(under, free) > 1e-4
    assert (source is None) is (beside is None)
    assert source is None or torch.equal(source, beside)


@each
def test_it_says_the_same_twice(sd1, node, once):
    first, second = once(node), inverted(node, sd1, picture())
    ours, again = (tensors_of(made[0]) for made in (first, second))
    assert ours.keys() == again.keys()
    assert all(torch.equal(ours[name], again[name]) for name in ours)
    assert torch.equal(first[1]["samples"], second[1]["samples"])


@each
def test_it_leaves_what_it_was_given_as_it_was(sd1, node):
    latent, model = picture(), sd1.model.model
    before = latent["samples"].clone()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = repr(sd1.model.model_options)
    trajectory = inverted(node, sd1, latent)[0]
    edited(node, sd1, trajectory, "a blue square")
    assert list(latent) == ["samples"]
    assert torch.equal(latent["samples"], before)
    assert all(torch.equal(tensor, weights[k]) for k, tensor in model.state_dict().items())
    assert repr(sd1.model.model_options) == options
    assert torch.equal(trajectory.origin, before)


@each
def test_a_batch_is_its_pictures(sd1, node):
    latent = picture(batch=2) | {"batch_index": [0, 1]}
    together = inverted(node, sd1, latent)[0]
    edits = edited(node, sd1, together, "a blue square")[0]
    for number in range(2):
        own = latent["samples"][number : number + 1]
        lone = with_samples({"batch_index": [number]}, own)
        alone = inverted(node, sd1, lone)[0]
        assert relative(together.latents[:, number : number + 1], alone.latents) < ROUNDED
        lone_edit = edited(node, sd1, alone, "a blue square")[0]
        assert relative(edits[number : number + 1], lone_edit) < ROUNDED


@each
def test_the_last_stage_keeps_the_numbers_of_its_pictures(sd1, node):
    latent = picture(batch=2) | {"batch_index": [3, 5], "downscale_ratio_spacial": 8}
    start = inverted(node, sd1, latent)[1]
    assert start["batch_index"] == [3, 5]
    assert sorted(start) == ["batch_index", "samples"]


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_chains_are_float32_and_levels_float64_whatever_comes(sd1, node, dtype):
    latent = {"samples": picture()["samples"].to(dtype)}
    trajectory, start, sigmas, _ = inverted(node, sd1, latent)
    kinds = {name: tensor.dtype for name, tensor in tensors_of(trajectory).items()}
    assert kinds.pop("sigmas") == torch.float64
    assert kinds.pop("origin") == dtype  # an unedited result is what came, bit for bit
    assert set(kinds.values()) == {torch.float32}
    assert start["samples"].dtype == sigmas.dtype == torch.float32
