"""MasaCtrl and Plug-and-Play in both hosts: one edit, the rows that are read, or one sentence."""

from dataclasses import replace

import pytest
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.correction import DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree, flow
from palimpsest.tests.host.edits.test_control_seams import request_on
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

STEPS = 4
CONTROL = MasaCtrl(steps=(0.25, 1.0), layers=(0.0, 1.0))

#: Controls, and the source rows that they read: both in three steps, or one in three of four.
READ = {CONTROL: 2 * (STEPS - 1), PlugAndPlay(layers=(0.0, 1.0)): STEPS - 1}


@pytest.fixture
def use(monkeypatch):
    """Put a control where the edits of these tests take Prompt-to-Prompt."""
    return lambda control: monkeypatch.setattr(agree, "words", lambda *_: control)


@pytest.fixture
def masactrl(use):
    use(CONTROL)


def headless(folder, loaded, setting):
    sigmas = schedule(loaded.model, "simple", setting.steps, setting.strength)
    scale = loaded.model.model.latent_format.scale_factor
    return agree.in_diffusers(folder, setting, sigmas, scale)


@pytest.mark.parametrize("correction", [DIRECT_INVERSION, UNCORRECTED], ids=["direct", "none"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("control", READ, ids=lambda control: type(control).__name__)
def test_both_hosts_agree_and_run_the_same_rows(request, use, control, family, correction):
    use(control)
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = agree.in_comfyui(folder)
    setting = agree.Setting(latent_for(loaded), correction=correction)
    ours, _, rows = agree.in_comfy(loaded, setting)
    theirs, _, their_rows = headless(folder, loaded, setting)
    assert relative(ours, theirs) < HOSTS_AGREE
    assert rows == their_rows
    free, _, plain = agree.in_comfy(loaded, replace(setting, control=False))
    assert relative(ours, free) > 30 * HOSTS_AGREE
    if correction is DIRECT_INVERSION:
        assert rows[1] - plain[1] == READ[control]


def test_under_the_negative_prompt_one_source_row_serves_both_branches(sd1, sd1_folder, masactrl):
    setting = agree.Setting(latent_for(sd1), source="")
    ours, _, rows = agree.in_comfy(sd1, setting)
    theirs, _, their_rows = headless(sd1_folder, sd1, setting)
    assert rows == their_rows == (STEPS, 2 * STEPS + STEPS - 1)
    assert relative(ours, theirs) < HOSTS_AGREE


def bound(sd1, **changes):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1), keep_source=False))
    return replace(made, control=BoundControl(CONTROL, name="MasaCtrl"), **changes)


def test_it_takes_any_prompts(sd1):
    made = bound(sd1)
    for text in ("", "a cat, sleeping"):
        other = replace(made, target=agree.encode(sd1.clip, text))
        free, *_ = edit(replace(other, control=None))
        assert relative(edit(other)[0], free) > 1e-3


@pytest.mark.parametrize("role", ["source", "negative"])
def test_a_branch_of_several_prompts_is_refused(sd1, role):
    made = bound(sd1)
    with pytest.raises(PalimpsestError, match=f"The {role} conditioning has 2 entries, a control"):
        edit(replace(made, **{role: 2 * getattr(made, role)}))


def test_a_target_of_several_prompts_reads_the_one_source(sd1):
    made = bound(sd1)
    whole, *_ = edit(replace(made, target=2 * made.target))
    assert relative(whole, edit(made)[0]) < 1e-5


def test_a_batch_of_pictures_is_its_pictures(sd1, masactrl):
    two = latent_for(sd1, batch=2)
    together = agree.in_comfy(sd1, agree.Setting(two))[0]
    for row in range(2):
        alone = agree.in_comfy(sd1, agree.Setting(two[row : row + 1]))[0]
        assert relative(together[row : row + 1], alone) < 1e-5


def test_a_model_without_a_unet_is_refused_by_its_name():
    said = "Plug-and-Play needs a UNet with cross-attention .*, the model is Flux"
    made = request_on(flow.make_flux(), None)
    with pytest.raises(PalimpsestError, match=said):
        edit(replace(made, control=BoundControl(PlugAndPlay(), name="Plug-and-Play")))
