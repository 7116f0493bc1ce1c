from dataclasses import replace

import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.pipelines.correction import ADD_SOURCE, DIRECT_INVERSION, UNCORRECTED, Correction
from palimpsest.tests.host import agree

#: fp32 on both sides; kernels and the order of sums differ.
HOSTS_AGREE = 1e-3


def latent_for(loaded, height=8, width=8, batch=1):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(batch, 4, height, width, generator=generator)
    return loaded.model.model.process_latent_out(noise)


def relative(a, b):
    return float((a - b).norm() / b.norm())


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.mark.parametrize(
    ("kind", "correction"),
    [
        ("sd1_folder", DIRECT_INVERSION),
        ("sd1_folder", UNCORRECTED),
        ("sd1_folder", ADD_SOURCE),
        ("sd2_folder", DIRECT_INVERSION),
        ("sdxl_folder", UNCORRECTED),
    ],
    ids=["sd1-direct", "sd1-none", "sd1-add", "sd2-direct", "sdxl-none"],
)
def test_both_hosts_make_the_same_edit(kind, correction, request):
    folder = request.getfixturevalue(kind)
    loaded = agree.in_comfyui(folder)
    setting = agree.Setting(latent_for(loaded), correction=correction)
    sigmas = schedule(loaded.model, "simple", setting.steps, setting.strength)
    scale = loaded.model.model.latent_format.scale_factor
    made, inverted = agree.request(loaded, setting)
    latent, source, spent, _ = edit(made)
    theirs = agree.in_diffusers(folder, setting, sigmas, scale)
    assert (inverted.rows, spent.rows) == theirs[2]
    assert relative(latent, theirs[0]) < HOSTS_AGREE
    assert relative(source, theirs[1]) < HOSTS_AGREE
    # The control does something on this model, or agreeing about it would say nothing.
    free, _, _, _ = edit(replace(made, control=None))
    assert relative(free, latent) > 30 * HOSTS_AGREE


def test_the_reconstruction_is_the_input_bit_for_bit_and_costs_nothing(sd1):
    setting = agree.Setting(latent_for(sd1), control=False)
    made, _ = agree.request(sd1, setting)
    latent, source, spent, _ = edit(made)
    assert torch.equal(source, setting.latent)
    assert spent.rows == 2 * setting.steps
    assert relative(latent, setting.latent) > 0.01


def test_without_correction_the_source_drifts(sd1):
    setting = agree.Setting(latent_for(sd1), correction=UNCORRECTED)
    _, source, _ = agree.in_comfy(sd1, setting)
    assert relative(source, setting.latent) > 0.01


def test_a_partial_correction_lies_between(sd1):
    latent = latent_for(sd1)
    made, _ = agree.request(sd1, agree.Setting(latent))
    drifts = [
        relative(edit(replace(made, correction=Correction(s)))[1], latent) for s in (0.0, 0.9, 1.0)
    ]
    assert drifts[0] > drifts[1] > drifts[2] == 0


def test_outside_the_mask_the_latent_is_bit_equal(sd1):
    mask = torch.zeros(1, 64, 96)
    mask[:, :24, :40] = 1
    setting = agree.Setting(latent_for(sd1, 8, 12), mask=mask)
    latent, _, _ = agree.in_comfy(sd1, setting)
    same = latent == setting.latent
    assert same[..., 3:, :].all() and same[..., 5:].all()
    assert not same[..., :3, :5].any()


def test_a_batch_is_edited_as_its_pictures_are(sd1):
    latent = latent_for(sd1, 6, 10, batch=2)
    both, _, rows = agree.in_comfy(sd1, agree.Setting(latent))
    single = [agree.in_comfy(sd1, agree.Setting(latent[i : i + 1])) for i in range(2)]
    assert relative(both, torch.cat([s[0] for s in single])) < 1e-5
    assert rows == tuple(2 * n for n in single[0][2])


def test_the_model_is_left_as_it_was(sd1):
    before = {k: v.clone() for k, v in sd1.model.model.state_dict().items()}
    options = str(sd1.model.model_options)
    agree.in_comfy(sd1, agree.Setting(latent_for(sd1)))
    assert str(sd1.model.model_options) == options
    after = sd1.model.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
