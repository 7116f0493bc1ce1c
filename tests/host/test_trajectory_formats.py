"""Files of every format ever shipped load, and edit, for ever (tests/make_trajectories.py)."""

import shutil
from dataclasses import replace
from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.cli_args import args
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.files.trajectories import load_trajectory, save_trajectory
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.trajectory_file import FORMAT
from palimpsest.tests.host import agree
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "tests" / "data" / "trajectories").glob("*.safetensors"))


@pytest.fixture(autouse=True)
def as_core_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def demo():
    return load_folder(ROOT / "demo" / "weights")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def request_along(demo, trajectory, target="a blue heart on grass", cfg=3.0):
    source, target, negative = (
        agree.encode(demo.clip, text) for text in ("a red heart on grass", target, "")
    )
    return EditRequest(
        demo.model, trajectory, source, target, negative, cfg, None, None, DIRECT_INVERSION
    )


def test_there_is_a_file_of_every_format():
    formats = set()
    for path in FILES:
        with safe_open(path, "pt") as file:
            formats.add(int(file.metadata()["palimpsest_trajectory"]))
    assert formats == set(range(1, FORMAT + 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_stored_file_loads_and_edits(demo, folder, path):
    shutil.copy(path, folder / path.name)
    trajectory = load_trajectory(path.name)
    latent, source, spent = edit(request_along(demo, trajectory))
    assert bool(torch.isfinite(latent).all())
    assert latent.shape == trajectory.origin.shape
    assert not torch.equal(latent, trajectory.origin)
    assert spent.rows > 0
    if trajectory.image is None:
        assert torch.equal(source, trajectory.origin)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_saving_it_again_keeps_every_bit_and_its_format(folder, path):
    shutil.copy(path, folder / path.name)
    again = save_trajectory(load_trajectory(path.name), "again")
    with safe_open(path, "pt") as old, safe_open(again, "pt") as new:
        kept = set(old.keys())
        assert kept == set(new.keys())
        for key in kept:
            assert torch.equal(old.get_tensor(key), new.get_tensor(key)), key
        assert old.metadata()["palimpsest_trajectory"] == new.metadata()["palimpsest_trajectory"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_serves_a_model_of_another_dtype(demo, folder, path, monkeypatch):
    shutil.copy(path, folder / path.name)
    trajectory = load_trajectory(path.name)
    monkeypatch.setattr(args, "bf16_unet", True)
    half = load_folder(ROOT / "demo" / "weights")
    assert half.model.model.get_dtype() == torch.bfloat16
    made = request_along(demo, trajectory)
    latent, *_ = edit(replace(made, model=half.model))
    exact, *_ = edit(made)
    assert bool(torch.isfinite(latent).all())
    assert float((latent - exact).norm() / exact.norm()) < 0.1
