"""Nodes on the model act under a control of every kind as they do without one.

Three things are held of each: an edit into the picture's own prompt is the picture, so that source
and target are shown the same; a control that never acts changes nothing; one that acts does so
beside the node.
"""

from functools import cache

import pytest
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_model_advanced import RescaleCFG
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tcfg import TCFG
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.residual import residual_blocks
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.guests.kinds import (
    ROUNDING,
    SEEN,
    STEPS,
    asked,
    every_kind,
    every_sort,
    inverted,
    own_prompt,
    shut,
    stack,
)
from palimpsest.tests.host.guests.others import (
    blurred,
    hypernetwork,
    longer,
    louder_blocks,
    node,
    other_attention,
    picture_prompt,
    picture_prompt_after,
    smoothed,
)
from palimpsest.tests.host.guests.verdicts import Row
from palimpsest.tests.host.inversions.test_noise_space import SOURCE

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

SHRINK = node(PatchModelAddDownscale, 1, 2.0, 0.0, 1.0, True, "bicubic", "bicubic")

#: By the row of the help page that speaks of them.
NODES = {
    "FreeU": {"FreeU": node(FreeU, 1.1, 1.4, 0.9, 0.5), "V2": node(FreeU_V2, 1.3, 1.4, 0.9, 0.5)},
    "PAG, SAG, SEG": {
        "PAG": node(PerturbedAttentionGuidance, 3.0),
        "SAG": node(SelfAttentionGuidance, 0.5, 2.0),
        "SEG": smoothed,
    },
    "RescaleCFG, TCFG": {"RescaleCFG": node(RescaleCFG, 0.7), "TCFG": node(TCFG)},
    "APG": {"APG": node(APG, 0.5, 2.0, 0.0)},
    "Deep Shrink (PatchModelAddDownscale)": {"Deep Shrink": SHRINK},
    "IP-Adapter and other patches of attention": {
        "IP-Adapter": lambda model: picture_prompt(model, negative=1.0)[0],
        "4 tokens more": lambda model: longer(model, 4),
        "a prompt more": lambda model: longer(model, 77),
        "replaced self": lambda model: blurred(model, "attn1", "middle", 0),
        "replaced cross by index": lambda model: blurred(model, "attn2", "input", 1, 0),
    },
    "Hypernetworks": {"hypernetwork": hypernetwork},
    "Patches of residual blocks": {"residual blocks": louder_blocks},
    "Other attention functions (Sage Attention)": {"other attention": other_attention},
}
ROWS = tuple(Row(name, "works") for name in NODES)

GUESTS = {name: guest for guests in NODES.values() for name, guest in guests.items()}
every_guest = pytest.mark.parametrize("guest", GUESTS.values(), ids=GUESTS.keys())


def unchanged(model):
    return model


@pytest.fixture(scope="module")
def chain_of(sd1):
    """The picture's noise under a guest, computed once."""

    @cache
    def make(guest, prompt):
        model = guest(sd1.model)
        return model, inverted(sd1, model, text=prompt)

    return make


@every_guest
@every_sort
def test_an_edit_into_its_own_prompt_is_the_picture(sd1, chain_of, guest, kind):
    prompt = own_prompt(kind)
    model, chain = chain_of(guest, prompt)
    made = asked(sd1, chain, kind, target=prompt, source=prompt, model=model)
    assert relative(edit(made).latent, latent_for(sd1)) < ROUNDING


@every_guest
def test_a_guest_does_what_it_does_without_a_control(sd1, chain_of, guest):
    model, chain = chain_of(guest, own_prompt(stack))
    free = edit(asked(sd1, chain, model=model)).latent
    made = asked(sd1, chain, stack, model=model)
    assert relative(edit(shut(made)).latent, free) < ROUNDING
    ours = edit(made).latent
    assert relative(ours, free) > SEEN  # the control does something as well
    plain = chain_of(unchanged, own_prompt(stack))[1]
    assert relative(chain.denoised, plain.denoised) > SEEN  # and the guest


def test_momentum_goes_by_the_calls_before_with_a_control_or_without(sd1, chain_of):
    model, chain = chain_of(node(APG, 0.5, 2.0, -0.5), SOURCE)
    for kind in (None, stack):
        back = edit(asked(sd1, chain, kind, target=SOURCE, model=model)).latent
        assert relative(back, latent_for(sd1)) > SEEN
    made = asked(sd1, chain, stack, model=model)
    free = edit(asked(sd1, chain, model=model)).latent
    assert relative(edit(shut(made)).latent, free) < ROUNDING


@every_kind
def test_what_a_picture_prompt_adds_is_added_to_the_controlled_attention(sd1, kind):
    """IP-Adapter's way of replacing attention, beside the same sum made without a replacement."""
    chain = inverted(sd1)
    results = []
    for make in (picture_prompt, picture_prompt_after):
        model, prompt = make(sd1.model)
        outcome = edit(asked(sd1, chain, kind, model=model))
        results.append(outcome.latent)
        assert prompt.calls > STEPS * len(prompt.blocks)  # the target's, and some of the source's
    assert relative(*results) < ROUNDING
    assert relative(results[0], edit(asked(sd1, chain, kind)).latent) > SEEN


@every_kind
def test_what_stood_in_the_place_of_a_block_or_an_attention_is_called_in_every_call(sd1, kind):
    chain, network = inverted(sd1), []
    blocks = len(residual_blocks(sd1.model.model.diffusion_model))
    hook = sd1.model.model.diffusion_model.register_forward_pre_hook(
        lambda *_: network.append(None)
    )
    try:
        for guest in (louder_blocks, other_attention):
            calls = []
            network.clear()
            edit(asked(sd1, chain, kind, model=guest(sd1.model, calls)))
            if guest is louder_blocks:
                assert len(calls) >= blocks * STEPS
            else:
                assert len(calls) >= 2 * len(network) > 0
    finally:
        hook.remove()
