"""Files that are no trajectory, or a harmed one: one sentence each, before any allocation."""

import json
import os
import random
import struct

import folder_paths
import psutil
import pytest
import torch
from palimpsest.hosts.comfy.files.safetensors_header import Entry, Header, read_header
from palimpsest.hosts.comfy.files.trajectories import (
    load_trajectory,
    save_trajectory,
    trajectory_files,
    trajectory_path,
)
from palimpsest.hosts.comfy.files.trajectory_reader import MARGIN, check_memory
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from safetensors.torch import save_file

TB = 2**40


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """ComfyUI's input folder, of this test alone."""
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    return tmp_path / "input"


def recipe(**changes):
    return {"method": "ddim", **changes}


def text(**changes):
    return {"palimpsest_trajectory": "1", "recipe": json.dumps(recipe()), **changes}


def tensors():
    return {
        "latents": torch.randn(2, 1, 4, 8, 8),
        "sigmas": torch.tensor([0.0, 1.0]).double(),
        "origin": torch.randn(1, 4, 8, 8),
    }


def entries(**changes):
    """A header for the shapes of `tensors`, contiguous as it must be."""
    said, at = {}, 0
    for key, (dtype, shape, size) in {
        "latents": ("F32", [2, 1, 4, 8, 8], 2048),
        "sigmas": ("F64", [2], 16),
        "origin": ("F32", [1, 4, 8, 8], 1024),
        **changes,
    }.items():
        said[key] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return said


def write(folder, header, *, size=None, name="harmed.safetensors"):
    """Write a header, as JSON or as it is, and bytes up to a size, which take no room on disk."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / name
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        if size is None and not isinstance(header, bytes):
            size = max(e["data_offsets"][1] for k, e in header.items() if k != "__metadata__")
        file.truncate(8 + len(raw) + (size or 0))
    return path


def refusal(name="harmed.safetensors"):
    """The one sentence that Load Trajectory refuses a file with."""
    with pytest.raises(PalimpsestError) as caught:
        load_trajectory(name)
    said = str(caught.value)
    assert said.startswith(("The trajectory file", name)) and said.endswith("."), said
    assert len(said) < 400, said
    return said


def test_a_good_file_is_read_as_it_was_saved(folder):
    save_file(tensors() | {"sigmas": torch.tensor([0.0, 2.0]).double()}, folder / "a.safetensors")
    assert "is not a trajectory" in refusal("a.safetensors")
    made = tensors()
    save_file(made, folder / "a.safetensors", text())
    loaded = load_trajectory("a.safetensors")
    for key in made:
        assert torch.equal(getattr(loaded, key), made[key]), key


# --- larger than the memory


def test_a_sparse_file_of_terabytes_is_refused_at_once(folder):
    """It takes no room on the disk, and would take all of the memory."""
    levels = TB // 2**20
    said = entries(
        latents=("F32", [levels, 1, 4, 256, 256], levels * 2**20),
        sigmas=("F64", [levels], levels * 8),
        origin=("F32", [1, 4, 256, 256], 2**20),
    )
    write(folder, {"__metadata__": text(), **said})
    before = psutil.Process().memory_info().rss
    assert "needs 1649.3 GB of memory" in refusal()
    assert psutil.Process().memory_info().rss - before < 2**26


def test_a_sparse_file_that_is_no_trajectory_is_told_so(folder):
    write(folder, entries(latents=("F32", [TB // 4], TB)))
    assert "is not a trajectory" in refusal()


@pytest.mark.parametrize(("dtype", "width"), [("F32", 4), ("F64", 8), ("F16", 4), ("BF16", 4)])
def test_the_memory_that_is_needed_is_that_of_what_it_becomes(dtype, width):
    header = Header({"latents": Entry(dtype, (1000,), 0, 0)}, {})
    needed = int(1000 * width * MARGIN)
    check_memory(header, needed, "file")
    with pytest.raises(PalimpsestError, match=r"'file' needs 0\.0 GB of memory, 0\.0 are free"):
        check_memory(header, needed - 1, "file")


# --- headers


def test_bytes_that_no_tensor_names_are_refused(folder):
    write(folder, {"__metadata__": text(), **entries()}, size=TB)
    assert "its tensors need" in refusal()


def test_a_file_that_lost_its_end_is_refused(folder):
    write(folder, {"__metadata__": text(), **entries()}, size=3000)
    assert "its tensors need" in refusal()


HEADERS = {
    "empty": b"",
    "no JSON": b"[" * 40,
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep and whole": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a long integer": b'{"a": ' + b"9" * 5000 + b"}",
    "a list": b"[1, 2, 3]",
    "no UTF-8": b'{"\xff\xfe": 1}',
    "NaN": b'{"a": NaN}',
    "null": b"null",
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_that_is_none_is_refused(folder, header):
    write(folder, header)
    assert "is damaged or not a safetensors file" in refusal()


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, 10**9, 0, 1])
def test_a_header_of_another_length_is_refused(folder, length):
    (folder / "harmed.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with (folder / "harmed.safetensors").open("rb+") as file:
        file.truncate(2 * 10**9)
    assert "is damaged or not a safetensors file" in refusal()


ENTRIES = {
    "a dtype that is none": {"dtype": "F33"},
    "a dtype that is no text": {"dtype": ["F32"]},
    "a negative size": {"shape": [-2, 1, 4, 8, 8]},
    "a size with a fraction": {"shape": [2.0, 1, 4, 8, 8]},
    "a size that is true": {"shape": [2, True, 4, 8, 8]},
    "a huge size": {"shape": [2**63]},
    "huge sizes": {"shape": [2**62] * 16},
    "as many dimensions as one likes": {"shape": [1] * 100_000},
    "a shape that is none": {"shape": "22"},
    "another shape": {"shape": [2, 1, 4, 8, 9]},
    "a place that is none": {"data_offsets": [0]},
    "a place before the file": {"data_offsets": [-2048, 0]},
    "a place that runs back": {"data_offsets": [2048, 0]},
    "a place beyond the file": {"data_offsets": [10**15, 10**15 + 2048]},
    "the place of another": {"data_offsets": [16, 2064]},
    "more than it should": {"extra": 1},
    "nothing": None,
}


@pytest.mark.parametrize("change", ENTRIES.values(), ids=ENTRIES)
def test_a_tensor_that_cannot_be_is_refused(folder, change):
    said = entries()
    said["latents"] = None if change is None else said["latents"] | change
    raw = json.dumps({"__metadata__": text(), **said}).encode()
    write(folder, raw, size=2048 + 16 + 1024)
    assert "is damaged or not a safetensors file" in refusal()


@pytest.mark.parametrize("metadata", [[], "text", {"a": 1}, {"a": None}, 3])
def test_text_that_is_none_is_refused(folder, metadata):
    write(folder, {"__metadata__": metadata, **entries()})
    assert "text" in refusal()


def test_whatever_one_byte_of_the_header_becomes_it_is_read_or_refused(folder):
    """A flipped bit may leave a good file (in a name, in the recipe); never another error."""
    save_file(tensors(), folder / "good.safetensors", text())
    good = (folder / "good.safetensors").read_bytes()
    drawn = random.Random(0)
    length = 8 + int.from_bytes(good[:8], "little")
    refused = 0
    for _ in range(400):
        harmed = bytearray(good)
        harmed[drawn.randrange(length)] ^= 1 << drawn.randrange(8)
        (folder / "harmed.safetensors").write_bytes(harmed)
        try:
            load_trajectory("harmed.safetensors")
        except PalimpsestError:
            refused += 1
    assert refused > 200


# --- what it holds


WRONG = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@pytest.mark.parametrize("name", ["latents", "sigmas", "origin", "denoised"])
@pytest.mark.parametrize("dtype", WRONG)
def test_numbers_that_no_trajectory_holds_are_refused(folder, name, dtype):
    made = tensors() | {"denoised": torch.zeros(1, 1, 4, 8, 8)}
    made[name] = made[name].abs().ceil().to(WRONG[dtype])
    save_file(made, folder / "harmed.safetensors", text())
    assert f"it holds {dtype}, a trajectory F64, F32, F16, BF16" in refusal()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32_without_loss(folder, dtype):
    made = {key: value.to(dtype) for key, value in tensors().items()}
    save_file(made, folder / "half.safetensors", text())
    loaded = load_trajectory("half.safetensors")
    for key, value in made.items():
        assert getattr(loaded, key).dtype == torch.float32, key
        assert torch.equal(getattr(loaded, key), value.float()), key


@pytest.mark.parametrize("name", ["latents", "sigmas", "origin"])
@pytest.mark.parametrize("made", [torch.tensor(1.0), torch.zeros(2, 0)], ids=["0-D", "empty"])
def test_a_tensor_without_shape_or_numbers_is_refused(folder, name, made):
    save_file(tensors() | {name: made}, folder / "harmed.safetensors", text())
    assert "a tensor without shape, or without numbers" in refusal()


TEXTS = {
    "a version of 5000 digits": {"palimpsest_trajectory": "9" * 5000},
    "a version of other digits": {"palimpsest_trajectory": "²"},
    "a deep recipe": {"recipe": "[" * 100_000 + "]" * 100_000},
    "a deep field": {
        "recipe": json.dumps(recipe())[:-1] + ', "x": ' + "[" * 50_000 + "]" * 50_000 + "}"
    },
    "a field of 5000 digits": {"recipe": '{"method": "ddim", "rows": ' + "9" * 5000 + "}"},
    "a field of 400 digits": {"recipe": '{"method": "ddim", "cfg": ' + "9" * 400 + "}"},
}


@pytest.mark.parametrize("change", TEXTS.values(), ids=TEXTS)
def test_text_that_goes_beyond_parsers_is_refused(folder, change):
    save_file(tensors(), folder / "harmed.safetensors", text(**change))
    said = refusal()
    assert "damaged" in said or "trajectory format" in said


def test_what_was_loaded_does_not_change_with_the_file(folder):
    """A mapped file would: to other numbers, or, when it is cut, to the end of the process."""
    made = tensors()
    save_file(made, folder / "a.safetensors", text())
    loaded = load_trajectory("a.safetensors")
    with (folder / "a.safetensors").open("rb+") as file:
        file.truncate(0)
    assert torch.equal(loaded.latents, made["latents"])


# --- names


NAMES = {
    "NUL": "a\0b.safetensors",
    "too long": "x" * 300 + ".safetensors",
    "far too long": "x/" * 3000 + "x.safetensors",
    "half a character": "a\ud800.safetensors",
    "a loop": "loop.safetensors",
    "a loop on the way": "round/and/round.safetensors",
    "a folder": "deep.safetensors",
    "missing": "missing.safetensors",
    "a pipe": "pipe.safetensors",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("mark", ["", " [output]"], ids=["input", "output"])
def test_a_name_that_is_no_file_is_refused(folder, name, mark):
    for place in (folder, folder.parent / "output"):
        (place / "loop.safetensors").symlink_to(place / "loop.safetensors")
        (place / "round").symlink_to(place / "round")
        (place / "deep.safetensors").mkdir()
        os.mkfifo(place / "pipe.safetensors")
    with pytest.raises(PalimpsestError, match="There is no trajectory file") as caught:
        trajectory_path(name + mark)
    assert len(str(caught.value)) < 250
    assert trajectory_files() == []


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/a.safetensors", "out.safetensors"])
def test_a_file_outside_the_folders_is_neither_read_nor_offered(folder, name):
    outside = folder.parent / "a.safetensors"
    save_file(tensors(), outside, text())
    (folder / "out.safetensors").symlink_to(outside)
    assert trajectory_files() == []
    with pytest.raises(PalimpsestError, match=r"is not a \.safetensors file inside"):
        load_trajectory(name)


def test_what_we_write_is_what_our_reader_of_headers_takes(folder):
    latents = torch.randn(3, 2, 4, 8, 8)
    made = Trajectory(latents, torch.arange(3).double(), latents[0].clone(), Recipe("ddim"))
    with save_trajectory(made, "cat").open("rb") as file:
        header = read_header(file)
    assert header.tensors["latents"].shape == latents.shape
    assert header.text["palimpsest_trajectory"] == "1"
