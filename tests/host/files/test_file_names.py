"""Names that people give files: written, or refused in one sentence before anything is made."""

import errno
import os
import re
import time
from pathlib import Path

import folder_paths
import pytest
import torch
from palimpsest.hosts.comfy.files.causes import CAUSES
from palimpsest.hosts.comfy.files.identity_loras import lora_place
from palimpsest.hosts.comfy.files.names import DEVICES, FORBIDDEN
from palimpsest.hosts.comfy.files.trajectories import (
    load_trajectory,
    save_trajectory,
    trajectory_files,
    trajectory_place,
)
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.trajectory import Recipe, Trajectory

posix = pytest.mark.skipif(os.name == "nt", reason="Windows makes links for few, and has no rights")


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    """ComfyUI's folders, of this test alone; gives the output folder."""
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "output"


def small():
    latents = torch.randn(2, 1, 4, 8, 8)
    levels = torch.tensor([0.0, 1.0]).double()
    return Trajectory(latents, levels, latents[0].clone(), Recipe("ddim"))


def every(output):
    return [path.relative_to(output).as_posix() for path in output.rglob("*")]


PLACES = pytest.mark.parametrize("place", [trajectory_place, lora_place])


REFUSED = {
    "empty": ("", "leaves"),
    "blank": ("  ", "leaves"),
    "the folder": (".", "leaves"),
    "the folder above": ("..", "leaves"),
    "above": ("../cat", "leaves"),
    "above on the way": ("a/../../cat", "leaves"),
    "above as Windows has it": ("..\\cat", "leaves"),
    "absolute": ("/etc/cat", "leaves"),
    "absolute as Windows has it": ("C:\\cat", "':'"),
    "a share": ("\\\\server\\share\\cat", "leaves"),
    "NUL": ("a\0b", r"'\x00'"),
    "a line break": ("a\nb", r"'\n'"),
    "a control character": ("a\x1bb", r"'\x1b'"),
    "delete": ("a\x7fb", r"'\x7f'"),
    "half a character": ("a\ud800", "half of a character"),
    "a folder that ends with a dot": ("cats./cat", "'cats.', whose last character Windows drops"),
    "a name that ends with a space": ("cats/cat ", "'cat ', whose last character Windows drops"),
    "dots": ("a/.../cat", "'...', whose last character Windows drops"),
    "a device": ("nul", "'nul', which Windows keeps for a device"),
    "a device with more": ("Con.old/cat", "'Con.old', which Windows keeps for a device"),
    "too long": ("x" * 300, "is too long: with its number it takes 318 bytes of at most 255"),
    "a folder that is too long": ("x" * 300 + "/cat", "is too long"),
    "letters that are too long": ("猫" * 80, "it takes 258 bytes of at most 255"),
    "folders that are too long": ("x/" * 2100 + "cat", "with its folders it takes"),
    "a date that nobody filled in": ("%date:yyyy-MM-dd%/cat", "only ComfyUI's page fills in"),
}


@PLACES
@pytest.mark.parametrize(("name", "words"), REFUSED.values(), ids=REFUSED)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_made(output, place, name, words):
    with pytest.raises(PalimpsestError) as caught:
        place(name)
    said = str(caught.value)
    assert words in said, said
    assert said.startswith("The file name ") and ": use a name such as " in said, said
    assert len(said) < 250
    assert every(output) == []


@PLACES
@pytest.mark.parametrize("letter", FORBIDDEN)
def test_a_character_that_windows_has_in_no_name_is_refused(place, letter):
    with pytest.raises(PalimpsestError, match=re.escape(f"has the character {letter!r}")):
        place(f"cats/a{letter}b")


@PLACES
@pytest.mark.parametrize("device", sorted(DEVICES))
def test_a_name_that_windows_keeps_is_refused_wherever_it_stands(place, device):
    for name in (device, device.lower(), f"{device}/cat", f"cats/{device}.x", f"{device} .x"):
        with pytest.raises(PalimpsestError, match="which Windows keeps for a device"):
            place(name)
    for name in (f"x{device}", f"{device}x", f"cats/{device}_1"):
        assert place(name).name == name.rpartition("/")[2]


GOOD = [
    "cat",
    "cats/cat",
    "cats\\cat",
    "cats//cat",
    "./cat",
    "cats/",
    "a/../cat",
    "..hidden",
    ".hidden",
    "cats/..hidden",
    "cat.v2",
    " cat",
    "50 % cat",
    "%cat%",
    "猫" * 79,
    "x" * 237,
]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_is_written_offered_and_read(output, name):
    made = small()
    path = save_trajectory(made, name)
    assert path.parent.is_relative_to(output)
    (offered,) = trajectory_files()
    assert offered == f"{path.relative_to(output).as_posix()} [output]"
    assert torch.equal(load_trajectory(offered).latents, made.latents)


def test_a_place_inside_the_folder_may_be_told_in_full(output):
    assert trajectory_place(str(output / "cats" / "cat")) == output / "cats" / "cat"


def test_folders_are_parted_alike_on_every_system(output):
    assert trajectory_place("cats\\cat") == trajectory_place("cats/cat") == output / "cats" / "cat"


# --- what stands in the way


@PLACES
def test_a_file_where_a_folder_should_be_is_told_before_anything_is_made(output, place):
    (output / "loras").mkdir()
    for folder in (output, output / "loras"):
        (folder / "kept").write_text("in the way")
    for name in ("kept/cat", "kept/deep/er/cat"):
        with pytest.raises(PalimpsestError, match=CAUSES[errno.ENOTDIR]):
            place(name)


@posix
@PLACES
def test_a_link_that_leaves_or_leads_to_itself_is_refused(output, place):
    (output / "loras").mkdir()
    for folder in (output, output / "loras"):
        (folder / "out").symlink_to(output.parent)
        (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(PalimpsestError, match=r"leaves .* by a link"):
        place("out/cat")
    with pytest.raises(PalimpsestError, match=r"leads through a link to itself|stands where"):
        place("loop/cat")


@posix
@pytest.mark.skipif(os.name != "nt" and os.geteuid() == 0, reason="root may write everywhere")
@PLACES
def test_a_folder_that_cannot_be_written_to_is_told(output, place):
    output.chmod(0o500)
    with pytest.raises(PalimpsestError, match=CAUSES[errno.EACCES]):
        place("cat")


# --- what core fills in


def test_the_words_of_cores_save_image_are_filled_in_by_core(output):
    """The same name through core's own function and through ours, but for the number."""
    words = "%year%-%month%-%day%/%hour%_%minute%_%width%x%height%_%other%_%_100%"
    for _ in range(2):  # a minute may end between the two
        folder, name, *_ = folder_paths.get_save_image_path(words, str(output))
        core, ours = Path(folder, name), trajectory_place(words)
        if ours == core:
            break
    assert ours == core
    assert re.search(r"/\d{4}-\d\d-\d\d/\d\d_\d\d_0x0_%other%_%_100%$", ours.as_posix())


def test_filling_in_makes_nothing(output):
    place = trajectory_place("%year%/%month%/cat")
    assert place.relative_to(output).as_posix() == time.strftime("%Y/%m/cat")
    assert every(output) == []
