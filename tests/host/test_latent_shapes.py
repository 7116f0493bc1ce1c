"""Every shape of latent that core's samplers take: other cells, a frame more, or many frames."""

from dataclasses import replace
from functools import cache, partial

import comfy.latent_formats
import comfy.nested_tensor
import comfy.sample
import folder_paths
import pytest
import torch
from palimpsest.hosts.comfy.cells import cell_size
from palimpsest.hosts.comfy.edits.compare import CompareRequest, compare
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.files.trajectories import load_trajectory
from palimpsest.hosts.comfy.latents import decode_pictures, samples_of
from palimpsest.hosts.comfy.masks import check_mask_fits, latent_mask
from palimpsest.hosts.comfy.refusals import check_samples
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.nodes.drag import CopyPaste, SDEDrag
from palimpsest.nodes.inpaint import Inpaint
from palimpsest.nodes.inversions.cyclediffusion import InvertCycleDiffusion
from palimpsest.nodes.inversions.ddim import InvertDDIM
from palimpsest.nodes.inversions.edict import InvertEDICT
from palimpsest.nodes.inversions.edit_friendly import InvertEditFriendly
from palimpsest.nodes.sde import CycleSDE, DiffEdit
from palimpsest.nodes.sdedit import SDEdit, SDEditNoise
from palimpsest.nodes.sdedit_sweep import SDEditSweep
from palimpsest.nodes.trajectory import (
    LatentsToTrajectory,
    LoadTrajectory,
    PreviewTrajectory,
    SaveTrajectory,
    TrajectoryToLatents,
)
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.points import DragPoints
from palimpsest.tests.host import flow, shapes
from palimpsest.tests.host.edits.test_edit import relative

#: Model, VAE, frames of the latent, and pictures that they are encoded from.
KINDS = {
    "flux2": (shapes.make_flux2, shapes.make_flux2_vae, 1, 1),
    "qwen image": (shapes.make_qwen_image, shapes.make_wan_vae, 1, 1),
    "wan, a picture": (shapes.make_wan, shapes.make_wan_vae, 1, 1),
    "wan, a video": (shapes.make_wan, shapes.make_wan_vae, 2, 5),
}
#: Cells of the latents here.
HEIGHT, WIDTH = 4, 6
#: float32 in a batch of another size, through a network of random weights.
NETWORK = 1e-5

SOURCE, TARGET, EMPTY = (flow.prompt(seed) for seed in (1, 2, 3))


@cache
def made_once(make):
    """A network of random weights, which every test leaves as it was."""
    with torch.inference_mode():
        return make()


class Shaped:
    """A model, its VAE, and a latent that is its own."""

    def __init__(self, kind):
        make, make_vae, self.frames, self.pictures = KINDS[kind]
        self.model, self.make_vae = made_once(make), partial(made_once, make_vae)
        self.cell = cell_size(self.model)
        self.samples = shapes.latent_for(self.model, frames=self.frames)
        self.latent = {"samples": self.samples}

    def image(self):
        size = (self.pictures, HEIGHT * self.cell, WIDTH * self.cell, 3)
        return torch.rand(size, generator=torch.Generator().manual_seed(1))

    def mask(self):
        """White over the cells (0, 0) to (1, 2)."""
        mask = torch.zeros(1, HEIGHT * self.cell, WIDTH * self.cell)
        mask[:, : 2 * self.cell, : 3 * self.cell] = 1
        return mask


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module", params=KINDS)
def shaped(request):
    with torch.inference_mode():
        return Shaped(request.param)


@pytest.fixture
def output_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


def changed(made, samples):
    """[h, w] bool: the cells of any picture or frame that are not what they were."""
    differs = (made != samples).any(1)
    return differs.reshape(-1, *differs.shape[-2:]).any(0)


def only_under_the_mask(made, samples):
    where = changed(made, samples)
    inside = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    inside[:2, :3] = True
    assert made.shape == samples.shape
    assert torch.equal(where, inside)


# --- inversions and their edits

INVERSIONS = {
    "ddim": lambda model, latent: InvertDDIM.execute(
        model, SOURCE, latent, 4, "simple", 0.6, 1.0, "destination", 0
    ),
    "refined": lambda model, latent: InvertDDIM.execute(
        model, SOURCE, latent, 4, "simple", 0.6, 1.0, "current", 2
    ),
    "edit friendly": lambda model, latent: InvertEditFriendly.execute(
        model, SOURCE, latent, 6, "simple", 1.0, 2, 1.0, 1, 8
    ),
    "cyclediffusion": lambda model, latent: InvertCycleDiffusion.execute(
        model, SOURCE, latent, 4, "simple", 0.6, 0.1, 1.0, 1, 8
    ),
    "edict": lambda model, latent: InvertEDICT.execute(
        model, SOURCE, latent, 4, "simple", 0.6, 2.0, 0.93, negative=EMPTY
    ),
}
every_inversion = pytest.mark.parametrize("method", INVERSIONS)


def edited(model, trajectory, target=TARGET, mask=None):
    cfg = 2.0
    return edit(
        EditRequest(model, trajectory, SOURCE, target, EMPTY, cfg, None, mask, DIRECT_INVERSION)
    )[:2]


@every_inversion
def test_an_inverted_latent_is_edited_where_the_mask_is_white(method, shaped):
    trajectory, latent, _, _ = INVERSIONS[method](shaped.model, shaped.latent).args
    assert trajectory.origin.shape == latent["samples"].shape == shaped.samples.shape
    made, reconstruction = edited(shaped.model, trajectory, mask=shaped.mask())
    only_under_the_mask(made, shaped.samples)
    assert torch.equal(reconstruction, shaped.samples)


#: Those that draw noise draw it for a batch as a whole. EDICT walks two chains, and every step up
#: and down divides by its mixing: (1 / 0.93)^8 of twice the error.
ALONE = {"ddim": NETWORK, "refined": NETWORK, "edict": 4 * NETWORK}


@pytest.mark.parametrize("method", ALONE)
def test_a_batch_keeps_its_pictures_apart(method, shaped):
    both = shapes.latent_for(shaped.model, batch=2, frames=shaped.frames)
    whole, _ = edited(shaped.model, INVERSIONS[method](shaped.model, {"samples": both}).args[0])
    for i in range(2):
        alone = INVERSIONS[method](shaped.model, {"samples": both[i : i + 1]}).args[0]
        assert relative(whole[i : i + 1], edited(shaped.model, alone)[0]) < ALONE[method]


def test_the_noise_of_an_inversion_starts_cores_sampler_at_its_last_stage(shaped):
    trajectory, latent, sigmas, noise = INVERSIONS["ddim"](shaped.model, shaped.latent).args
    handed = noise.generate_noise(shaped.latent)
    x0 = shaped.model.model.process_latent_in(shaped.samples)
    z = (1 - sigmas[0]) * x0 + sigmas[0] * handed
    # float32; what is added may be 2.5 times larger than the sum
    assert relative(z, (1 - sigmas[0]) * trajectory.start) < 1e-6
    assert latent["samples"].shape == shaped.samples.shape


# --- trajectories


def test_a_trajectory_becomes_latents_and_a_file_and_comes_back(shaped, output_folder):
    trajectory = INVERSIONS["ddim"](shaped.model, shaped.latent).args[0]
    latents, sigmas = TrajectoryToLatents.execute(trajectory).args
    assert latents["samples"].shape == (5, *shaped.samples.shape[1:])
    assert torch.equal(latents["samples"][:1], shaped.samples)
    back = LatentsToTrajectory.execute(shaped.model, latents, sigmas).args[0]
    assert relative(back.latents, trajectory.latents) < 1e-6  # scaled there and back in float32
    name = SaveTrajectory.execute(trajectory, "kept").ui["palimpsest_text"][0]
    loaded = LoadTrajectory.execute(f"{name.removeprefix('saved as ')} [output]").args[0]
    assert torch.equal(loaded.latents, trajectory.latents)
    made, _ = edited(shaped.model, trajectory)
    assert torch.equal(edited(shaped.model, loaded)[0], made)


def test_the_latents_of_a_trajectory_are_in_the_scale_of_the_models_vae(shaped):
    trajectory = INVERSIONS["ddim"](shaped.model, shaped.latent).args[0]
    scaled = trajectory.in_host_scale(trajectory.latents[0])
    assert scaled.shape == shaped.samples.shape
    assert relative(scaled, shaped.samples) < 1e-6  # float32, there and back


def test_a_filmstrip_has_a_row_for_every_picture_and_frame(shaped, output_folder):
    trajectory = INVERSIONS["ddim"](shaped.model, shaped.latent).args[0]
    strip = PreviewTrajectory.execute(trajectory, shaped.make_vae(), 3).args[0]
    high, wide = HEIGHT * shaped.cell, WIDTH * shaped.cell
    assert strip.shape == (shaped.pictures, high, 3 * wide, 3)


# --- the SDE family

ON_LATENTS = {
    "Cycle-SDE": lambda s, mask: CycleSDE.execute(
        s.model, SOURCE, TARGET, EMPTY, 8, "simple", 0.5, 2.0, 1.0, "sde", 1, 8, s.latent, mask=mask
    ),
    "Cycle-SDE, ode": lambda s, mask: CycleSDE.execute(
        s.model, SOURCE, TARGET, EMPTY, 8, "simple", 0.5, 2.0, 1.0, "ode", 1, 8, s.latent, mask=mask
    ),
    "Inpaint": lambda s, mask: Inpaint.execute(
        s.model, TARGET, EMPTY, s.latent, mask, 3, "simple", 1.0, 2.0, "sde", "2", 1
    ),
    "SDEdit": lambda s, mask: SDEdit.execute(
        s.model, TARGET, EMPTY, s.latent, "denoise", 0.5, 3, "simple", 2.0, 1.0, 2, 1, mask
    ),
}


@pytest.mark.parametrize("node", ON_LATENTS)
def test_what_is_painted_is_under_the_mask(node, shaped):
    made = ON_LATENTS[node](shaped, shaped.mask()).args[0]["samples"]
    only_under_the_mask(made, shaped.samples)


def test_a_chain_of_cycle_sde_is_one_for_edit(shaped):
    chain = ON_LATENTS["Cycle-SDE"](shaped, None).args[1]
    made, _ = edited(shaped.model, chain, mask=shaped.mask())
    only_under_the_mask(made, shaped.samples)


def test_diffedits_mask_has_the_pictures_pixels_and_is_a_mask_again(shaped):
    """Its cells were taken for 8 pixels each: half the size on Flux.2."""
    levels = (8, "simple", 0.5, 2.0, "sde", 1, 2, 1.0, 0.5, 8)
    latent, mask, _ = DiffEdit.execute(
        shaped.model, SOURCE, TARGET, EMPTY, shaped.latent, *levels, shaped.mask()
    ).args
    assert mask.shape == (shaped.frames, HEIGHT * shaped.cell, WIDTH * shaped.cell)
    assert 0 < mask.sum() <= shaped.mask().sum() * shaped.frames
    again = latent_mask(mask, shaped.model, shaped.samples)
    differs = (latent["samples"] != shaped.samples).any(1, keepdim=True)
    assert torch.equal(again.expand_as(differs) > 0, differs)


def test_sdedits_noise_is_finished_by_cores_sampler(shaped):
    noisy, sigmas = SDEditNoise.execute(
        shaped.model, shaped.latent, "denoise", 0.5, 2, "simple", 1
    ).args
    assert noisy["samples"].shape == shaped.samples.shape
    plain = comfy.sample.sample(
        shaped.model,
        torch.zeros_like(shaped.samples),
        2,
        1.0,
        "euler",
        "simple",
        TARGET,
        EMPTY,
        noisy["samples"],
        disable_noise=True,
        sigmas=sigmas,
    )
    assert plain.shape == shaped.samples.shape and bool(torch.isfinite(plain).all())


def test_a_sweep_shows_the_first_picture(shaped, output_folder):
    sheet, images = SDEditSweep.execute(
        shaped.model,
        TARGET,
        EMPTY,
        shaped.latent,
        shaped.make_vae(),
        "denoise",
        "0.3, 0.5",
        1,
        2,
        "simple",
        1.0,
        1.0,
        1,
    ).args
    assert images.shape == (2, HEIGHT * shaped.cell, WIDTH * shaped.cell, 3)
    assert sheet.ndim == 4


def test_a_comparison_takes_one_picture(shaped):
    vae = shaped.make_vae()
    asked = CompareRequest(vae, shaped.image()[:1], shaped.samples, shaped.samples, "a")
    if shaped.pictures == 1:
        assert compare(asked)[0].edit.shape == (HEIGHT * shaped.cell, WIDTH * shaped.cell, 3)
        return
    with pytest.raises(PalimpsestError, match=f"holds {shaped.pictures} pictures, a row compares"):
        compare(asked)


def points(shaped):
    """From the middle of the cell (1, 1) to that of (4, 1)."""
    at = [(int((x + 0.5) * shaped.cell), int(1.5 * shaped.cell)) for x in (1, 4)]
    return DragPoints((WIDTH * shaped.cell, HEIGHT * shaped.cell), (tuple(at),))


@pytest.mark.parametrize("own", [False, True], ids=["square", "region"])
def test_what_is_pasted_moves_in_every_frame_alike(own, shaped):
    sigmas = schedule(shaped.model, "simple", 2, 0.5)
    region = shaped.mask()[0] if own else None
    made = CopyPaste.execute(
        shaped.model, shaped.latent, sigmas, points(shaped), 1, 1.0, 1.0, 1, region
    ).args[0]["samples"]
    x0 = shaped.model.model.process_latent_in(shaped.samples)
    x = shaped.model.model.process_latent_in(made)
    wide = 3 if own else 2
    # in the scale of the model's VAE and back in float32, of numbers up to 4
    torch.testing.assert_close(x[..., :2, 3 : 3 + wide], x0[..., :2, :wide], rtol=1e-5, atol=1e-5)
    assert torch.equal(made[..., 2:, :], shaped.samples[..., 2:, :])


def test_a_radius_in_pixels_is_one_of_the_models_own_cells(shaped):
    """Twice the cell is two of them, with 8 pixels as with 16."""
    sigmas, set_there = schedule(shaped.model, "simple", 2, 0.5), points(shaped)
    by_points = replace(set_there, radius=2 * shaped.cell)
    in_cells, in_pixels = (
        CopyPaste.execute(shaped.model, shaped.latent, sigmas, at, radius, 1.0, 1.0, 1)
        for at, radius in ((set_there, 2), (by_points, 0))
    )
    made = in_pixels.args[0]["samples"]
    assert torch.equal(made, in_cells.args[0]["samples"])
    assert changed(made, shaped.samples).sum() > 4  # more than a radius of one cell


def test_a_radius_in_cells_on_the_node_goes_before_that_of_the_points(shaped):
    sigmas, set_there = schedule(shaped.model, "simple", 2, 0.5), points(shaped)
    alone, beside = (
        CopyPaste.execute(shaped.model, shaped.latent, sigmas, at, 1, 1.0, 1.0, 1).args[0]
        for at in (set_there, replace(set_there, radius=2 * shaped.cell))
    )
    assert torch.equal(alone["samples"], beside["samples"])


def test_a_region_needs_no_radius(shaped):
    sigmas, region = schedule(shaped.model, "simple", 2, 0.5), shaped.mask()[0]
    none, some = (
        CopyPaste.execute(
            shaped.model, shaped.latent, sigmas, points(shaped), radius, 1.0, 1.0, 1, region
        ).args[0]["samples"]
        for radius in (0, 1)
    )
    assert torch.equal(none, some)


def test_a_drag_moves_every_frame(shaped, output_folder, monkeypatch):
    vae, image = shaped.make_vae(), shaped.image()
    made = SDEDrag.execute(
        shaped.model,
        TARGET,
        EMPTY,
        vae,
        image,
        points(shaped),
        1,
        1.1,
        0.3,
        4,
        "simple",
        0.5,
        2,
        1.0,
        1.0,
        False,
        1,
        8,
        mask=torch.ones(HEIGHT * shaped.cell, WIDTH * shaped.cell),
    )
    latent, path = made.args[0]["samples"], made.args[1]
    assert latent.shape == shaped.samples.shape
    assert path.shape == (3 * shaped.pictures, *image.shape[1:])
    assert changed(latent, vae.encode(image)).any()


def test_pictures_that_a_vae_drops_are_not_lost_in_silence():
    shaped = Shaped("wan, a picture")
    with pytest.raises(PalimpsestError, match="image holds 2 pictures, of which the VAE keeps 1"):
        SDEDrag.execute(
            shaped.model,
            TARGET,
            EMPTY,
            shaped.make_vae(),
            torch.rand(2, 32, 48, 3),
            points(shaped),
            1,
            1.1,
            0.3,
            4,
            "simple",
            0.5,
            2,
            1.0,
            1.0,
            False,
            1,
            8,
        )


# --- what core's samplers take

TAKEN = {
    "flat": ("qwen image", lambda s: {"samples": s.samples[:, :, 0]}),
    "empty": ("qwen image", lambda s: {"samples": torch.zeros(1, 4, HEIGHT, WIDTH)}),
    "empty, other cells": (
        "flux2",
        lambda s: {
            "samples": torch.zeros(1, 4, 2 * HEIGHT, 2 * WIDTH),
            "downscale_ratio_spacial": 8,
        },
    ),
    "empty video": ("wan, a video", lambda s: {"samples": torch.zeros(1, 16, 2, HEIGHT, WIDTH)}),
}


@pytest.mark.parametrize("case", TAKEN)
@pytest.mark.parametrize("node", ON_LATENTS)
def test_a_latent_that_core_makes_fit_is_taken(case, node):
    kind, make = TAKEN[case]
    shaped = Shaped(kind)
    shaped.latent = make(shaped)
    made = ON_LATENTS[node](shaped, shaped.mask()).args[0]["samples"]
    assert made.shape == shaped.samples.shape


def test_a_flat_latent_is_inverted_as_the_frame_that_it_is():
    shaped = Shaped("qwen image")
    flat, deep = (
        INVERSIONS["ddim"](shaped.model, {"samples": samples}).args[0]
        for samples in (shaped.samples[:, :, 0], shaped.samples)
    )
    assert torch.equal(flat.latents, deep.latents)
    assert torch.equal(flat.origin, deep.origin)


REFUSED = {
    "of another model": (
        "qwen image",
        torch.ones(1, 4, HEIGHT, WIDTH),
        r"is \(1, 4, 1, 4, 6\), this model takes \[batch, 16, frames, height/8, width/8\]",
    ),
    "of other cells": (
        "flux2",
        torch.ones(1, 16, HEIGHT, WIDTH),
        r"this model takes \[batch, 128, height/16, width/16\]: encode the picture",
    ),
    "a video": (
        "flux2",
        torch.ones(1, 128, 2, HEIGHT, WIDTH),
        r"is \(1, 128, 2, 4, 6\), this model takes \[batch, 128, height/16, width/16\]",
    ),
    "no picture": ("flux2", torch.ones(0, 128, HEIGHT, WIDTH), "which is no picture at all"),
    "with sound": (
        "wan, a video",
        comfy.nested_tensor.NestedTensor([torch.ones(1, 16, 2, 4, 6), torch.ones(1, 8, 9)]),
        "pictures and sound together",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_cannot_take_is_refused_in_a_sentence(case):
    kind, samples, sentence = REFUSED[case]
    model = Shaped(kind).model
    with pytest.raises(PalimpsestError, match=sentence):
        check_samples(model, samples_of(model, {"samples": samples}))


# --- masks of videos


@pytest.fixture(scope="module")
def wan():
    with torch.inference_mode():
        return Shaped("wan, a video")


def frame_mask(wan, count, *white):
    mask = torch.zeros(count, HEIGHT * wan.cell, WIDTH * wan.cell)
    mask[list(white), : wan.cell] = 1
    return mask


@pytest.mark.parametrize(
    ("count", "white", "open_frames"),
    [
        (1, [0], [True, True]),
        (2, [1], [False, True]),  # a mask for every frame of the latent, as DiffEdit gives it
        (5, [0], [True, False]),  # the first frame is encoded alone
        (5, [1], [False, True]),
        (5, [4], [False, True]),
        (7, [6], [False, False]),  # the VAE drops what fills no group
    ],
)
def test_masks_of_a_video_are_those_of_its_frames(count, white, open_frames, wan):
    mask = frame_mask(wan, count, *white)
    check_mask_fits(mask, wan.model, wan.samples, 1)
    cells = latent_mask(mask, wan.model, wan.samples).expand(1, 1, 2, HEIGHT, WIDTH)
    wanted = torch.zeros(1, 1, 2, HEIGHT, WIDTH)
    wanted[:, :, open_frames, 0] = 1
    assert torch.equal(cells, wanted)


def test_a_mask_of_another_number_of_frames_is_refused(wan):
    with pytest.raises(PalimpsestError, match=r"mask holds 3 frames, the video has 5 \(2 in its"):
        check_mask_fits(frame_mask(wan, 3), wan.model, wan.samples, 1)


def test_pictures_of_a_model_of_videos_have_a_mask_each():
    shaped = Shaped("qwen image")
    both = shapes.latent_for(shaped.model, batch=2)
    masks = torch.cat([shaped.mask(), 0 * shaped.mask()])
    shaped.latent = {"samples": both}
    made = ON_LATENTS["SDEdit"](shaped, masks).args[0]["samples"]
    only_under_the_mask(made[:1], both[:1])
    assert torch.equal(made[1:], both[1:])


def test_a_decoded_video_is_a_batch_of_its_frames(wan):
    vae = wan.make_vae()
    pictures = decode_pictures(vae, vae.encode(wan.image()))
    assert pictures.shape == wan.image().shape


def test_the_files_of_all_shapes_are_read_by_name(shaped, output_folder):
    trajectory = INVERSIONS["edit friendly"](shaped.model, shaped.latent).args[0]
    name = SaveTrajectory.execute(trajectory, "a").ui["palimpsest_text"][0].split()[-1]
    assert load_trajectory(f"{name} [output]").denoised.shape == trajectory.denoised.shape


def test_a_latent_of_sound_is_taken_where_no_picture_is_needed():
    model = Shaped("flux2").model.clone()
    model.add_object_patch("latent_format", comfy.latent_formats.StableAudio1())
    sound = torch.ones(1, 64, 20)
    check_samples(model, samples_of(model, {"samples": sound}))
    with pytest.raises(PalimpsestError, match=r"this model takes \[batch, 64, length\]"):
        check_samples(model, torch.ones(1, 64, 20, 1))
    with pytest.raises(PalimpsestError, match=r"A mask needs a picture, the latent is \(1, 64, 20"):
        check_mask_fits(torch.ones(8, 8), model, sound, 1)
    with pytest.raises(PalimpsestError, match="Copy-Paste needs a picture"):
        CopyPaste.execute(
            model=model,
            latent={"samples": sound},
            sigmas=torch.tensor([0.5, 0.0]),
            points=DragPoints((20, 64), (((1, 1), (9, 1)),)),
            radius=1,
            alpha=1.0,
            beta=1.0,
            seed=1,
        )
