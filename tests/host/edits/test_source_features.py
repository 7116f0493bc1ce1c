"""Source features kept by the inversion: fewer rows, the same edit, in both hosts."""

import gc
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch
from palimpsest.benchmarks.parity.golden import open_folder
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.features import (
    MIB,
    DiskStore,
    MemoryStore,
    feature_store,
    features_text,
)
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.nodes.inversions.ddim import SourceFeatures
from palimpsest.pipelines.attention.features import FeatureRecorder
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.correction import ADD_SOURCE, UNCORRECTED
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.flow import make_sd3, prompt

DATA = Path(__file__).resolve().parents[2] / "data"
STEPS = 5

#: The same kernels on the same rows, in calls of other sizes.
SAME = 1e-4


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def kept(sd1, place="memory", budget=64 * MIB, convention="current", batch=1, model=None):
    """An edit whose inversion kept features, the recorder, and the inversion's rows."""
    setting = agree.Setting(latent_for(sd1, batch=batch), steps=STEPS)
    made, _ = agree.request(sd1, setting)
    source = made.source
    sigmas = schedule(sd1.model, "simple", STEPS, setting.strength)
    picture = Picture(
        model or sd1.model, source, source, setting.latent, sigmas, 1.0, "Invert (DDIM)"
    )
    store = feature_store(place)
    recorder = FeatureRecorder(made.control.control, picture.sigmas, budget, store)
    trajectory, spent = invert_ddim(picture, convention=convention, refinement=0, recorder=recorder)
    return replace(made, trajectory=trajectory), recorder, spent.rows


@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_edit_is_the_same_and_runs_one_source_row(sd1, place, batch):
    made, _, inverted = kept(sd1, place, batch=batch)
    without = replace(made, trajectory=replace(made.trajectory, features=None))
    latent, source, spent, _ = edit(made)
    expected, _, usual, _ = edit(without)
    assert relative(latent, expected) < SAME
    assert torch.equal(source, made.trajectory.origin)
    assert (inverted, spent.rows) == (STEPS * batch, (2 * STEPS + 1) * batch)
    window = 3  # cross 0.6 of 6 rows
    assert usual.rows == (2 * STEPS + window) * batch


def test_fifty_steps_cost_151_rows(sd1):
    """The count of the whole method, on the other host: see benchmarks/rows.py for the table."""
    folder = open_folder(DATA / "quick", DATA / "model")
    unet, rows = folder.unet, RowCount()
    source, target, empty = (
        folder.prompt(text)
        for text in ("a red circle on a green field", "a blue circle on a green field", "")
    )
    control, sigmas = rewrite_prompt(source.tokens, target.tokens), unet.ddim_sigmas(10)
    recorder = FeatureRecorder(control, sigmas, 2**30, MemoryStore())
    x0 = folder.case("ddim_inversion").tensors["x0"]
    chain = unet.invert(x0, source, sigmas, convention="current", recorder=recorder, rows=rows)
    done = unet.edit(chain, source, target, empty, control=control, rows=rows).run()
    assert rows.rows == 10 + 20 + 1
    bare = replace(chain, features=None)
    usual = unet.edit(bare, source, target, empty, control=control).run()
    assert relative(done.latent, usual.latent) < SAME


def test_without_room_the_need_is_told_and_the_edit_runs_as_usual(sd1):
    _, fitting, _ = kept(sd1)
    made, recorder, _ = kept(sd1, budget=fitting.needed - 1)
    assert made.trajectory.features is None
    assert edit(made)[2].rows == 2 * STEPS + 3
    text = features_text(recorder.needed, 0, "memory")
    assert text.startswith(f"source features: not kept, they take {recorder.needed / MIB:.1f} MiB")


@pytest.mark.parametrize("correction", [UNCORRECTED, ADD_SOURCE], ids=["none", "add source"])
def test_features_of_the_chain_do_not_stand_for_a_guided_source(sd1, correction):
    made, *_ = kept(sd1)
    made = replace(made, correction=correction)
    without = replace(made, trajectory=replace(made.trajectory, features=None))
    (latent, _, spent, _), (expected, _, usual, _) = edit(made), edit(without)
    assert torch.equal(latent, expected)
    assert spent.rows == usual.rows


def test_features_of_another_prompt_are_not_read(sd1):
    made, *_ = kept(sd1)
    other = agree.encode(sd1.clip, "a red heart in snow")
    changed = replace(made, source=other, control=replace(made.control, source=other[0][0]))
    assert edit(changed)[2].rows == 2 * STEPS + 3


def test_the_files_go_with_the_trajectory(sd1, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    made, recorder, _ = kept(sd1, "disk")
    assert isinstance(recorder.store, DiskStore)
    (folder,) = tmp_path.iterdir()
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"step_{step:04}.safetensors" for step in (0, 1, 2)][-len(files) :]
    del made, recorder
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_gone_are_told(sd1, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    made, *_ = kept(sd1, "disk")
    for path in next(tmp_path.iterdir()).iterdir():
        path.unlink()
    with pytest.raises(PalimpsestError, match="gone from ComfyUI's temp folder"):
        edit(made)


def test_what_could_not_be_used_is_not_recorded(sd1):
    with pytest.raises(PalimpsestError, match="convention is destination"):
        kept(sd1, convention="destination")
    patched = sd1.model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    with pytest.raises(PalimpsestError, match="patches of other nodes"):
        kept(sd1, model=patched)


def test_a_model_without_a_unet_is_refused():
    model = make_sd3()
    positive = prompt(1)
    samples = torch.zeros(1, 16, 8, 8)
    picture = Picture(
        model, positive, positive, samples, torch.tensor([0.5, 0.25, 0.0]), 1.0, "Invert (DDIM)"
    )
    recorder = FeatureRecorder(None, picture.sigmas, MIB, MemoryStore())
    with pytest.raises(PalimpsestError, match="Keeping source features needs a UNet"):
        invert_ddim(picture, convention="current", refinement=0, recorder=recorder)


@pytest.mark.parametrize(
    ("control", "told"),
    [
        (None, "source_features is memory, but no control is connected: connect the control"),
        (BoundControl(PlugAndPlay(), name="Plug-and-Play"), "do not serve Plug-and-Play, which"),
    ],
    ids=["none", "features"],
)
def test_nothing_is_kept_that_no_edit_would_read(control, told):
    with pytest.raises(PalimpsestError, match=told):
        SourceFeatures("memory", 64, control).recorder(None)
    assert SourceFeatures("off", 64, control).recorder(None) is None
