"""Files of every format ever shipped load, and edit, for ever (tests/make_trajectories.py)."""

import shutil
from dataclasses import fields, replace
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

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / "tests" / "data" / "trajectories").glob("*.safetensors"))

#: What format 3 calls the tensors of format 2 that an inversion added; all others kept their names.
RENAMED = {
    "uncond": "negative embedding/embedding",
    "values": "mapped values/values",
    "partner": "coupled chain/partner",
    "guesses": "coupled chain/guesses",
}


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module")
def demo():
    return load_folder(ROOT / "demo" / "weights")


@pytest.fixture(scope="module")
def half():
    """The same model as a ComfyUI that was started with `--bf16-unet` loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(args, "bf16_unet", True)
        return load_folder(ROOT / "demo" / "weights")


@pytest.fixture(scope="module")
def edited(demo):
    """The edit along the trajectory of a stored file, computed for the first who asks."""
    known = {}

    def along(path, trajectory):
        if path not in known:
            known[path] = edit(request_along(demo, trajectory))
        return known[path]

    return along


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def request_along(demo, trajectory, target="a blue heart on grass", cfg=3.0):
    source, target, negative = (
        agree.encode(demo.clip, text) for text in ("a red heart on grass", target, "")
    )
    # They were made with earlier weights of the embedded model, which a file knows by their name.
    known = replace(trajectory, recipe=replace(trajectory.recipe, model=""))
    return EditRequest(
        demo.model, known, source, target, negative, cfg, None, None, DIRECT_INVERSION
    )


def test_there_is_a_file_of_every_format():
    formats = set()
    for path in FILES:
        with safe_open(path, "pt") as file:
            formats.add(int(file.metadata()["palimpsest_trajectory"]))
    assert formats == set(range(1, FORMAT + 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_stored_file_loads_and_edits(folder, edited, path):
    shutil.copy(path, folder / path.name)
    trajectory = load_trajectory(path.name)
    latent, source, spent, _ = edited(path, trajectory)
    assert bool(torch.isfinite(latent).all())
    assert latent.shape == trajectory.origin.shape
    assert not torch.equal(latent, trajectory.origin)
    assert spent.rows > 0
    if trajectory.image is None:
        assert torch.equal(source, trajectory.origin)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_saving_it_again_keeps_every_bit_in_a_format_that_is_written_today(
    demo, folder, edited, path
):
    shutil.copy(path, folder / path.name)
    trajectory = load_trajectory(path.name)
    again = save_trajectory(trajectory, "again")
    with safe_open(path, "pt") as old, safe_open(again, "pt") as new:
        kept = {key: RENAMED.get(key, key) for key in old.keys()}  # noqa: SIM118
        assert set(kept.values()) == set(new.keys())
        for before, now in kept.items():
            assert torch.equal(old.get_tensor(before), new.get_tensor(now)), before
        formats = [file.metadata()["palimpsest_trajectory"] for file in (old, new)]
        assert formats in (["1", "1"], ["2", "3"], ["3", "3"])
    back = load_trajectory(again.name)
    assert_same(back, trajectory)
    ours, expected = edit(request_along(demo, back)), edited(path, trajectory)
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])
    assert ours[2].rows == expected[2].rows


def assert_same(ours, expected):
    """Two trajectories say the same, bit for bit."""
    assert ours.recipe == expected.recipe
    assert [type(c) for c in ours.carried] == [type(c) for c in expected.carried]
    for a, b in zip((ours, *ours.carried), (expected, *expected.carried), strict=True):
        for field in fields(a):
            mine, theirs = (getattr(one, field.name) for one in (a, b))
            if isinstance(theirs, torch.Tensor):
                assert torch.equal(mine, theirs), field.name
            elif field.name not in ("recipe", "carried"):
                assert mine == theirs, field.name


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.stem.startswith("format_2")], ids=lambda path: path.stem
)
def test_format_2_is_read_as_what_its_method_writes_today(folder, path):
    pair = [path, path.with_name(path.name.replace("format_2", "format_3"))]
    for stored in pair:
        shutil.copy(stored, folder / stored.name)
    assert_same(*(load_trajectory(stored.name) for stored in pair))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_serves_a_model_of_another_dtype(demo, half, folder, edited, path):
    shutil.copy(path, folder / path.name)
    trajectory = load_trajectory(path.name)
    assert half.model.model.get_dtype() == torch.bfloat16
    latent, *_ = edit(replace(request_along(demo, trajectory), model=half.model))
    exact, *_ = edited(path, trajectory)
    assert bool(torch.isfinite(latent).all())
    assert float((latent - exact).norm() / exact.norm()) < 0.1
