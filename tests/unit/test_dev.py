"""The parts of dev.py and demo/run.py that decide something."""

import io
import os
import subprocess
import sys
import tarfile
import time

import psutil
import pytest
from palimpsest import dev
from palimpsest.demo.run import contact_sheet, rows_spent
from PIL import Image

posix = pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX")


def is_alive(pid):
    """Whether a process runs; one that has ended and only waits to be noted does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


FAMILY = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if {stubborn} else signal.SIG_DFL)
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


@posix
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_child_and_its_children_end_with_the_block(stubborn, monkeypatch):
    monkeypatch.setattr(dev, "PATIENCE", 0.5)
    command = [sys.executable, "-c", FAMILY.format(stubborn=stubborn)]
    with pytest.raises(KeyboardInterrupt), dev.child(command, stdout=subprocess.PIPE) as process:
        grandchild = int(process.stdout.readline())
        assert is_alive(grandchild)
        raise KeyboardInterrupt
    assert not is_alive(process.pid)
    deadline = time.monotonic() + 5
    while is_alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(grandchild)


def archive_of(**files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, target in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("UP", ".."))
            entry.type, entry.linkname = (tarfile.SYMTYPE, target) if target else (b"0", "")
            archive.addfile(entry, io.BytesIO())
    packed.seek(0)
    return tarfile.open(fileobj=packed)


def test_only_plain_files_below_the_wanted_folder_are_unpacked(tmp_path):
    archive = archive_of(
        top__vendor__It__main="",
        top__vendor__It__deep__file="",
        top__vendor__It__UP__UP__climbs="",
        top__vendor__It__link="/etc/passwd",
        top__other__file="",
    )
    dev.extract(archive, "/vendor/It/", tmp_path / "it")
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if not p.is_dir()}
    assert found == {"it/main", "it/deep/file"}


def test_the_base_folder_leads_to_this_checkout_and_is_mended(tmp_path):
    pack = dev.make_base(tmp_path) / "custom_nodes" / dev.PACK
    assert (pack / "dev.py").samefile(dev.__file__)
    pack.unlink()
    pack.symlink_to(tmp_path)
    dev.make_base(tmp_path)
    assert (pack / "dev.py").samefile(dev.__file__)


def test_a_missing_comfyui_is_told_by_its_path(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(dev.DevError, match=str(tmp_path)):
        dev.comfy_path()


def test_the_log_tail_names_the_file_and_shows_its_end(tmp_path):
    log = tmp_path / "server.log"
    log.write_text("\n".join(f"line {i}" for i in range(100)), encoding="utf-8")
    tail = dev.log_tail(log, lines=2)
    assert str(log) in tail
    assert "line 99" in tail
    assert "line 97" not in tail


WORKERS = ["-n", "2", "--dist", "loadfile"]


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (["unit", "-q"], ["tests/unit", "-q"]),
        (["unit", "server"], ["tests/unit", "tests/server", *WORKERS]),
        (["tests/unit/test_dev.py", "-x"], ["tests/unit/test_dev.py", "-x"]),
        (["tests/unit/test_dev.py::test_a"], ["tests/unit/test_dev.py::test_a"]),
        (["-k", "unit"], [*(f"tests/{g}" for g in dev.GROUPS), *WORKERS, "-k", "unit"]),
    ],
)
def test_tests_are_chosen_by_group_or_file(arguments, chosen, monkeypatch):
    asked = []
    monkeypatch.setattr(dev, "run", lambda command, **_: asked.extend(command[3:]))
    monkeypatch.setattr(dev, "need_chromium", lambda: None)
    dev.test(*arguments)
    assert asked == chosen


def test_rows_of_cached_nodes_are_not_counted_again():
    entry = {
        "status": {"messages": [["execution_cached", {"nodes": ["1"]}]]},
        "outputs": {"1": {"rows": [50]}, "2": {"rows": [101]}, "3": {"images": []}},
    }
    assert rows_spent(entry) == 101


def test_the_contact_sheet_shows_every_picture_in_order():
    colours = {"original": (255, 0, 0), "edit": (0, 0, 255)}
    sheet = contact_sheet({k: Image.new("RGB", (64, 32), v) for k, v in colours.items()}, 100)
    row = [sheet.getpixel((x, 90)) for x in range(sheet.width)]
    seen = [colour for colour in dict.fromkeys(row) if colour in colours.values()]
    assert seen == list(colours.values())
