"""Nodes on prompts act under a control as they do without one, or as the same on the model."""

from dataclasses import replace

import comfy.hooks
import node_helpers
import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host.edits import test_branches
from palimpsest.tests.host.edits.test_branches import lora, lora_weights, with_controlnet
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.guests.kinds import (
    KINDS,
    ROUNDING,
    SEEN,
    asked,
    every_kind,
    every_sort,
    inverted,
    looks,
    own_prompt,
    prompt,
    shut,
    stack,
)
from palimpsest.tests.host.guests.verdicts import Row

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

controlnet = test_branches.controlnet

RANGE = Row("ConditioningSetTimestepRange", "works, but", "a step in which the source did not run")
NODES = ("ControlNet", "Conditioning (Set Mask)", "Model hooks (Create Hook LoRA)")
ROWS = (*(Row(name, "works") for name in NODES), RANGE)
every_node = pytest.mark.parametrize("name", NODES)


def masked(conditioning):
    """Core's Set Mask without bounds: the left three quarters of the picture."""
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :48] = 1
    return node_helpers.conditioning_set_values(
        conditioning, {"mask": mask, "set_area_to_bounds": False, "mask_strength": 1.0}
    )


def hooked(conditioning, weights):
    """A LoRA for the rows of one prompt."""
    hooks = comfy.hooks.create_hook_lora(weights, 0.05, 0.0)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)


@pytest.fixture
def put(sd1, controlnet):
    """Put a node on a prompt."""
    makers = {
        "ControlNet": lambda conditioning: with_controlnet(conditioning, controlnet),
        "Conditioning (Set Mask)": masked,
        "Model hooks (Create Hook LoRA)": lambda c: hooked(c, lora_weights(sd1.model)),
    }
    return lambda name, conditioning: makers[name](conditioning)


def on_every_prompt(sd1, put, text):
    """The picture's noise under a node on both of its prompts, and such prompts for an edit."""
    source, negative = put(prompt(sd1, text)), put(prompt(sd1, ""))
    chain = inverted(sd1, positive=source, negative=negative)
    return chain, {"source": source, "negative": negative}


@every_node
@every_sort
def test_an_edit_into_its_own_prompt_is_the_picture(sd1, put, name, kind):
    text = own_prompt(kind)
    chain, prompts = on_every_prompt(sd1, lambda c: put(name, c), text)
    prompts |= {"target": prompts["source"]}
    made = replace(asked(sd1, chain, kind, target=text, source=text), **prompts)
    assert relative(edit(made).latent, latent_for(sd1)) < ROUNDING


@every_node
def test_a_node_does_what_it_does_without_a_control(sd1, put, name):
    chain = inverted(sd1)
    made = asked(sd1, chain, stack)
    with_it = replace(made, target=put(name, made.target))
    free = edit(replace(with_it, control=None)).latent
    assert relative(edit(shut(with_it)).latent, free) < ROUNDING
    ours = edit(with_it).latent
    assert relative(ours, free) > SEEN
    assert relative(ours, edit(made).latent) > SEEN


@every_sort
def test_a_lora_of_every_prompt_is_the_lora_of_the_model(sd1, put, kind):
    """Hooks run the rows of every prompt in a call of their own."""
    chain = inverted(sd1)
    made = asked(sd1, chain, kind)
    roles = ("source", "target", "negative")
    hooks = {role: put(NODES[2], getattr(made, role)) for role in roles}
    ours = edit(replace(made, **hooks)).latent
    whole = edit(replace(made, model=lora(sd1.model, 0.05))).latent
    assert relative(ours, whole) < ROUNDING
    assert relative(ours, edit(made).latent) > SEEN


# --- spans of steps


def span(conditioning, start, end):
    """Core's ConditioningSetTimestepRange."""
    return node_helpers.conditioning_set_values(
        conditioning, {"start_percent": start, "end_percent": end}
    )


@every_sort
def test_a_span_of_all_steps_is_none(sd1, kind):
    made = asked(sd1, inverted(sd1), kind)
    whole = {role: span(getattr(made, role), 0.0, 1.0) for role in ("source", "target", "negative")}
    assert relative(edit(replace(made, **whole)).latent, edit(made).latent) < ROUNDING


@every_kind
@pytest.mark.parametrize("role", ["target", "negative"])
def test_a_span_of_the_target_or_the_negative_acts_as_without_a_control(sd1, kind, role):
    """Also where LocalBlend has seen no word yet, and the rows of the negative are controlled."""
    made = asked(sd1, inverted(sd1), kind)
    late = replace(made, **{role: span(getattr(made, role), 0.8, 1.0)})
    free = edit(replace(late, control=None)).latent
    assert relative(edit(shut(late)).latent, free) < ROUNDING
    assert relative(edit(late).latent, edit(made).latent) > SEEN


@pytest.mark.parametrize("kind", [k for k in KINDS.values() if k is not looks])
def test_a_source_that_ends_before_the_control_is_refused(sd1, kind):
    made = asked(sd1, inverted(sd1), kind)
    with pytest.raises(PalimpsestError, match=RANGE.said):
        edit(replace(made, source=span(made.source, 0.8, 1.0)))


def test_a_control_that_begins_after_the_source_takes_its_span(sd1):
    made = asked(sd1, inverted(sd1), looks)
    late = replace(made, source=span(made.source, 0.8, 1.0))
    assert torch.equal(edit(late).latent, edit(made).latent)
    with pytest.raises(PalimpsestError, match=RANGE.said):
        edit(replace(made, source=span(made.source, 0.0, 0.8)))
