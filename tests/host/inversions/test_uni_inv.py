"""Uni-Inv in both hosts and on flow models."""

from dataclasses import replace

import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.inversions.picture import Picture, invert
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.uni_inv import Aligned, uni_inv
from palimpsest.tests.host import agree, flow
from palimpsest.tests.host.edits.test_edit import latent_for, relative

#: Two libraries' kernels in float32, at little noise (see agree.Setting).
HOSTS = 1e-4

#: The same kernels on the same rows, in calls of other sizes.
SAME = 1e-6


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def along(made, cfg=1.0):
    """A request of another inversion's edit, along Uni-Inv's trajectory."""
    levels = made.trajectory.falling_sigmas
    samples = made.trajectory.origin
    prompts = (made.source, made.negative)
    picture = Picture(made.model, *prompts, samples, levels, cfg, "Invert (Uni-Inv)")
    trajectory, spent = invert(picture, uni_inv)
    return replace(made, trajectory=trajectory), spent


def on_a_flow(model, target=2, cfg=2.0):
    source, wanted, empty = (flow.prompt(seed) for seed in (1, target, 0))
    latent = torch.randn(1, flow.CHANNELS, 8, 8, generator=torch.Generator().manual_seed(5))
    picture = Picture(
        model, source, empty, latent, schedule(model, "simple", 4, 0.6), cfg, "Invert (Uni-Inv)"
    )
    trajectory, spent = invert(picture, uni_inv)
    prompts = (source, wanted, empty)
    return EditRequest(model, trajectory, *prompts, cfg, None, None, DIRECT_INVERSION), spent


@pytest.mark.parametrize("control", [False, True])
def test_both_hosts_agree(sd1, sd1_folder, control):
    setting = agree.Setting(latent_for(sd1), control=control)
    made, spent = along(agree.request(sd1, setting)[0])
    ours, source, edited, _ = edit(made)
    window = 3  # int(0.6 * (4 + 1)), as agree.words has it
    assert (spent.rows, edited.rows) == (4, 8 + window * control)
    assert torch.equal(source, setting.latent)
    model, scale = (
        agree.headless(sd1_folder),
        sd1.model.model.latent_format.scale_factor,
    )
    size = tuple(8 * n for n in setting.latent.shape[-2:])
    source, target, empty = (
        model.prompt(text, size=size) for text in (setting.source, setting.target, "")
    )
    rising, rows = made.trajectory.sigmas, RowCount()
    chain = model.unet.invert_by(setting.latent * scale, source, rising, uni_inv, rows=rows)
    words = agree.words(source.tokens, target.tokens) if control else None
    whole = model.unet.edit(chain, source, target, empty, cfg=3.0, control=words, rows=rows)
    assert relative(ours, whole.run().latent / scale) < HOSTS
    assert rows.rows == spent.rows + edited.rows
    assert relative(ours, setting.latent) > 0.01


@pytest.mark.parametrize("make", [flow.make_flux, flow.make_sd3], ids=["flux", "sd3"])
def test_a_flow_model_gives_the_picture_back_and_edits(make):
    model = make()
    same, spent = on_a_flow(model, target=1)
    latent, source, _, _ = edit(same)
    assert torch.equal(source, same.trajectory.origin)
    assert relative(latent, source) < SAME
    changed, *_ = edit(on_a_flow(model)[0])
    assert relative(changed, source) > 0.01
    assert spent.rows == 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gives_the_picture_back(sd1_folder, monkeypatch, dtype):
    from comfy.cli_args import args

    monkeypatch.setattr(args, "fp16_unet" if dtype == torch.float16 else "bf16_unet", True)
    half = load_folder(sd1_folder)
    assert half.model.model.get_dtype() == dtype
    setting = agree.Setting(latent_for(half), control=False, target=agree.SOURCE)
    made, _ = along(agree.request(half, setting)[0], cfg=3.0)
    latent, *_ = edit(made)
    # The rows of the edit lie in calls of the same size as those of the inversion.
    assert torch.equal(latent, setting.latent)


def test_a_batch_is_edited_as_its_pictures_are(sd1):
    setting = agree.Setting(latent_for(sd1, batch=2), control=False)
    together = edit(along(agree.request(sd1, setting)[0])[0])[0]
    for row in range(2):
        one = replace(setting, latent=setting.latent[row : row + 1])
        assert (
            relative(together[row : row + 1], edit(along(agree.request(sd1, one)[0])[0])[0]) < 1e-5
        )


def test_a_sampler_of_cores_cannot_walk_it(sd1):
    made, _ = along(agree.request(sd1, agree.Setting(latent_for(sd1), control=False))[0])
    assert made.trajectory.find(Aligned).points.shape == made.trajectory.latents[1:].shape
    with pytest.raises(PalimpsestError, match="Uni-Inv's, whose evaluation points no sampler"):
        EditGuider(made)
