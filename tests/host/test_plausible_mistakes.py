"""Plausible input that used to end in a raw error, a wrong sentence, or a minute of nothing."""

import time

import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import reconstruction_text
from palimpsest.hosts.comfy.schedules import LARGEST_SCHEDULE, schedule
from palimpsest.nodes.control import PromptToPrompt
from palimpsest.nodes.inversions.edit_friendly import InvertEditFriendly
from palimpsest.nodes.sdedit import SDEdit
from palimpsest.nodes.sdedit_sweep import SDEditSweep, numbers
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host.agree import encode

PROMPT = "a red cat on the mat"


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def painting(sd1, **changes):
    wires = {
        "model": sd1.model,
        "positive": encode(sd1.clip, PROMPT),
        "negative": encode(sd1.clip, ""),
        "latent": {"samples": torch.zeros(1, 4, 8, 8)},
    }
    widgets = {"unit": "denoise", "steps": 2, "scheduler": "simple", "cfg": 2.0, "eta": 1.0}
    return {**wires, **widgets, "seed": 1, **changes}


def test_a_latent_of_one_value_has_a_reconstruction():
    """It has no peak, so that the PSNR was the logarithm of 0."""
    flat = torch.zeros(1, 4, 8, 8)
    assert reconstruction_text(flat + 0.5, flat) == "off by 0.5 in the latent"
    assert reconstruction_text(flat, flat) == "exact"
    ramp = torch.linspace(0, 1, 256).view(1, 4, 8, 8)
    assert reconstruction_text(ramp + 0.1, ramp) == "20.0 dB in the latent"


def test_a_sweep_from_the_largest_seed_goes_on_at_0(sd1):
    wishes = painting(sd1, strengths="0.5", seeds=2, seed=2**64 - 1, vae=sd1.vae)
    pictures = SDEditSweep.execute(**wishes).args[1]
    alone = SDEditSweep.execute(**{**wishes, "seed": 0, "seeds": 1}).args[1]
    assert torch.equal(pictures[1], alone[0])
    assert not torch.equal(pictures[0], pictures[1])


@pytest.mark.parametrize("text", ["nan", "0.5, inf", "0.5, -1", "1001", "1e400", "", "x" * 500])
def test_strengths_that_are_none_are_refused(text):
    with pytest.raises(
        PalimpsestError, match=r"^The strengths must be numbers from 0 to 1000 "
    ) as e:
        numbers(text)
    assert len(str(e.value)) <= 250


@pytest.mark.parametrize("strength", [1e-5, 1e-30, 0.0])
def test_a_strength_of_millions_of_levels_is_refused_at_once(sd1, strength):
    began = time.monotonic()
    with pytest.raises(PalimpsestError, match=r"(?i)strength") as caught:
        SDEdit.execute(**painting(sd1, strength=strength, steps=20, repeats=1))
    assert time.monotonic() - began < 5  # 35 s at 1e-5 when the levels were built
    assert len(str(caught.value)) <= 250


def test_the_largest_schedule_is_walked_and_the_next_is_not(sd1):
    assert len(schedule(sd1.model, "karras", 2, 2 / LARGEST_SCHEDULE)) == 3
    with pytest.raises(PalimpsestError, match="raise the strength to 2e-05 or more, or use fewer"):
        schedule(sd1.model, "karras", 2, 1.9 / LARGEST_SCHEDULE)


@pytest.mark.parametrize("sigmas", [torch.zeros(0), torch.zeros(1)])
def test_edit_friendly_says_that_its_sigmas_are_too_few(sd1, sigmas):
    with pytest.raises(PalimpsestError, match=r"^The sigmas ") as caught:
        InvertEditFriendly.execute(
            sd1.model,
            encode(sd1.clip, PROMPT),
            {"samples": torch.zeros(1, 4, 8, 8)},
            *(10, "simple", 1.0, 6, 1.0, 1, 8),
            sigmas=sigmas,
        )
    assert "skip" not in str(caught.value)


@pytest.mark.parametrize("weight", ["nan", "inf"])
def test_a_prompt_weight_that_is_no_number_is_named_by_the_node_that_encodes_it(sd1, weight):
    with pytest.raises(PalimpsestError, match=f"gives 'red' the weight {weight}, which"):
        PromptToPrompt.execute(sd1.clip, f"a (red:{weight}) cat", "a blue cat", "auto", 0.4, 0.6)
