"""Files of ours are whole or not there, also when the process that writes them is killed."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import folder_paths
import palimpsest
import pytest
import torch
from palimpsest.hosts.comfy.files.causes import CAUSES, cause
from palimpsest.hosts.comfy.files.identity_loras import lora_place, save_lora
from palimpsest.hosts.comfy.files.numbered import ABANDONED, write_numbered, write_tensors
from palimpsest.hosts.comfy.files.pictures import save_picture
from palimpsest.hosts.comfy.files.trajectories import (
    load_trajectory,
    save_trajectory,
    trajectory_files,
)
from palimpsest.hosts.comfy.learning.identity import IdentityLora
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from PIL import Image
from safetensors import SafetensorError, safe_open

ROOT = Path(palimpsest.__file__).parent
posix = pytest.mark.skipif(os.name == "nt", reason="kill -9 is POSIX")


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    """ComfyUI's folders, of this test alone; gives the output folder."""
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "output"


def small():
    """A trajectory of two levels."""
    latents = torch.randn(2, 1, 4, 8, 8)
    levels = torch.tensor([0.0, 1.0]).double()
    return Trajectory(latents, levels, latents[0].clone(), Recipe("ddim"))


#: Saves one trajectory of 64 MB after the other until it is killed, as `save_trajectory` does it.
SAVING = """
import runpy, sys
from pathlib import Path
runpy.run_path({dev!r})["load_package"]()
import torch
from palimpsest.hosts.comfy.files.numbered import write_tensors
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.pipelines.trajectory_file import to_tensors
latents = torch.randn(16, 1, 4, 512, 512)
made = Trajectory(latents, torch.arange(16).double(), latents[0].clone(), Recipe("ddim"))
print("ready", flush=True)
while True:
    write_tensors(Path({output!r}) / "kept" / "cat", *to_tensors(made), "The trajectory")
"""


def killed_while_saving(output):
    """Kill a process that saves as soon as its second file has begun and is not yet whole."""
    code = SAVING.format(dev=str(ROOT / "dev.py"), output=str(output))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            names = {name for _, _, names in os.walk(output) for name in names}
            if "cat_00001.safetensors" in names and len(names) > 1:
                break
            time.sleep(0.001)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def age(folder, seconds):
    """Make a folder and what is in it older."""
    then = time.time() - seconds
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then), follow_symlinks=False)


@posix
def test_a_save_that_is_killed_leaves_no_part_of_a_file_under_a_name_that_counts(output):
    killed_while_saving(output)
    names = [path.name for path in output.rglob("*.safetensors")]
    assert "cat_00001.safetensors" in names
    assert trajectory_files() == sorted(f"kept/{name} [output]" for name in names)
    for name in trajectory_files():
        assert load_trajectory(name).latents.shape == (16, 1, 4, 512, 512)
    (left,) = (path for path in (output / "kept").iterdir() if path.is_dir())
    save_trajectory(small(), "kept/cat")
    assert left.exists(), "a save that may still be running was cleared away"
    age(left, ABANDONED + 60)
    save_trajectory(small(), "kept/cat")
    assert not left.exists()
    assert all(path.suffix == ".safetensors" for path in (output / "kept").iterdir())


def test_only_what_is_ours_and_abandoned_is_cleared_away(output):
    number = "0123456789abcdef" * 2
    ours = output / f".palimpsest-{number}.part"
    others = [
        output / f"palimpsest-{number}.part",
        output / f".palimpsest-{number[1:]}.part",
        output / f".palimpsest-{number}.part.bak",
        output / "download.part",
    ]
    for folder in (ours, *others):
        folder.mkdir()
        (folder / "file").write_text("precious")
        age(folder, ABANDONED + 60)
    fresh = output / f".palimpsest-{number[::-1]}.part"
    fresh.mkdir()
    age(fresh, ABANDONED + 60)
    (fresh / "file").write_text("being written")  # an old folder whose file is new
    save_trajectory(small(), "cat")
    assert not ours.exists()
    assert [folder for folder in (fresh, *others) if not (folder / "file").exists()] == []


@posix
def test_a_link_of_our_name_is_not_followed(output, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("precious")
    link = output / f".palimpsest-{'a' * 32}.part"
    link.symlink_to(elsewhere)
    age(elsewhere, ABANDONED + 60)
    os.utime(link, (0, 0), follow_symlinks=False)
    save_trajectory(small(), "cat")
    assert (elsewhere / "file").read_text() == "precious"


def test_empty_files_and_links_that_lead_nowhere_are_not_offered(output):
    name = f"{save_trajectory(small(), 'whole').name} [output]"
    (output / "empty.safetensors").touch()
    (output / "folder.safetensors").mkdir()
    (output / "nowhere.safetensors").symlink_to(output / "gone")
    (output / "loop.safetensors").symlink_to(output / "loop.safetensors")
    assert trajectory_files() == [name]


def lora():
    weights = {"unet.lora_up.weight": torch.randn(4, 4)}
    return IdentityLora(weights, [1.0], 1.0, 0.5, 1.0)


def as_trajectory():
    return save_trajectory(small(), "made")


def as_lora():
    return save_lora(lora(), lora_place("made"))


def as_picture():
    return (
        Path(folder_paths.get_output_directory())
        / save_picture(torch.rand(8, 8, 3), "made").filename
    )


WRITERS = pytest.mark.parametrize("write", [as_trajectory, as_lora, as_picture])


@WRITERS
def test_each_file_gets_a_number_of_its_own_and_nothing_is_left_beside_it(write):
    paths = [write() for _ in range(3)]
    assert [path.stem.strip("_")[-5:] for path in paths] == ["00001", "00002", "00003"]
    assert sorted(paths[0].parent.iterdir()) == paths
    for path in paths:
        if path.suffix == ".png":
            assert Image.open(path).size == (8, 8)
        else:
            with safe_open(path, "pt") as file:
                assert all(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118


@posix
@WRITERS
def test_a_file_has_the_rights_of_any_new_file(write, tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    assert stat.S_IMODE(write().stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_an_image_that_is_a_view_of_the_chain_is_saved_too():
    made = small()
    save_trajectory(replace(made, origin=made.latents[0]), "view")
    loaded = load_trajectory("view_00001.safetensors [output]")
    assert torch.equal(loaded.latents, made.latents)
    assert torch.equal(loaded.origin, made.latents[0])


def test_a_name_that_is_taken_is_left_alone(output):
    for number in (1, 2, 4):
        (output / f"cat_{number:05}.safetensors").write_text("precious")
    names = [save_trajectory(small(), "cat").name for _ in range(2)]
    assert names == ["cat_00003.safetensors", "cat_00005.safetensors"]
    assert (output / "cat_00004.safetensors").read_text() == "precious"


def test_a_write_that_fails_leaves_nothing(output):
    def fail(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(PalimpsestError, match="the disk is full: free some space"):
        write_numbered(output / "deep" / "cat", ".x", fail, "The thing")
    assert [path for path in output.rglob("*") if not path.is_dir()] == []
    assert list((output / "deep").iterdir()) == []


# --- why it could not be written


def test_a_name_that_is_too_long_is_not_told_to_free_space(output):
    with pytest.raises(PalimpsestError, match="the name is too long: shorten it") as caught:
        write_tensors(output / ("x" * 250), {"a": torch.zeros(1)}, {}, "The thing")
    assert len(str(caught.value)) < 250
    assert list(output.iterdir()) == []


def test_a_file_where_the_folder_should_be_is_told(output):
    (output / "kept").write_text("in the way")
    for folder in (output / "kept", output / "kept" / "deeper"):
        with pytest.raises(PalimpsestError, match="a file stands where its folder should be"):
            write_tensors(folder / "cat", {"a": torch.zeros(1)}, {}, "The thing")


LIMITED = """
import resource, runpy, sys
from pathlib import Path
runpy.run_path({dev!r})["load_package"]()
import torch
from palimpsest.hosts.comfy.files.numbered import write_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
write_tensors(Path({place!r}), {{"a": torch.zeros(10**6)}}, {{}}, "The thing")
"""


@posix
def test_what_the_system_says_through_safetensors_is_understood(output):
    """A real limit on the size of files: safetensors reports it as text alone."""
    code = LIMITED.format(dev=str(ROOT / "dev.py"), place=str(output / "cat"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "PalimpsestError: The thing could not be written to 'cat.safetensors'" in done.stderr
    assert CAUSES[errno.EFBIG] in done.stderr
    assert list(output.iterdir()) == []


@pytest.mark.parametrize("number", CAUSES, ids=lambda number: errno.errorcode[number])
def test_every_cause_is_told_alike_by_python_and_by_safetensors(number):
    text = f"I/O error: {os.strerror(number)} (os error {number})"
    own = cause(OSError(number, os.strerror(number)))
    assert own == cause(SafetensorError(text)) == CAUSES[number]


def test_a_cause_that_nobody_foresaw_is_told_as_the_system_says_it():
    assert cause(OSError(errno.EBUSY, "Device busy")).startswith("Device busy: choose another")
    assert cause(SafetensorError("Something else\nand more")).startswith("Something else: choose")
