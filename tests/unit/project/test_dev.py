"""The parts of dev.py and demo/run.py that decide something."""

import io
import os
import re
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


WORKERS = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (["unit", "-q"], ["tests/unit", "-q"]),
        (["unit", "server"], ["tests/unit", "tests/server", *WORKERS]),
        (["tests/unit/project/test_dev.py", "-x"], ["tests/unit/project/test_dev.py", "-x"]),
        (["tests/unit/project/test_dev.py::test_a"], ["tests/unit/project/test_dev.py::test_a"]),
        (["-k", "unit"], [*(f"tests/{g}" for g in dev.GROUPS[::-1]), *WORKERS, "-k", "unit"]),
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


# --- what a command is told


def dev_py(tmp_path, *arguments):
    """Run a copy of dev.py, in a checkout where nothing is installed, as a person does."""
    for name in ("benchmarks", "demo", "tests"):
        if not (tmp_path / name).exists():
            (tmp_path / name).symlink_to(dev.ROOT / name)
    copy = tmp_path / "dev.py"
    copy.write_bytes((dev.ROOT / "dev.py").read_bytes())
    command = [sys.executable, "-B", str(copy), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert not (tmp_path / ".dev").exists(), "something was installed"
    assert "Traceback" not in done.stderr
    return done


@posix
@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", dev.COMMANDS)
def test_every_command_tells_its_help_and_installs_nothing(tmp_path, command, flag):
    done = dev_py(tmp_path, command, flag)
    assert done.returncode == 0
    assert done.stdout.startswith(f"python dev.py {command}")
    assert dev.COMMANDS[command].__doc__ in done.stdout
    assert done.stderr == ""


@posix
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "drag", "--help"], ["--count", "how many drags"]),
        (["bench", "--help"], ["drag", "parity"]),
        (["train", "-h"], ["--resume", "go on from the files in --work"]),
        (["test", "unit", "--help"], ["pytest"]),
        ([], ["python dev.py demo"]),
        (["--help"], ["python dev.py demo"]),
    ],
    ids=" ".join,
)
def test_help_says_what_may_follow(tmp_path, arguments, words):
    done = dev_py(tmp_path, *arguments)
    assert done.returncode == 0
    assert [word for word in words if word not in done.stdout] == []


@posix
@pytest.mark.parametrize("name", dev.benchmarks())
def test_the_help_of_a_benchmark_names_every_option_it_has(name):
    """Read off the source, it must say no less than the program itself."""
    source = dev.benchmarks()[name].read_text(encoding="utf-8")
    said = dev.help_of("bench", [name, "--help"]).splitlines()
    names = re.findall(r"add_argument\(\s*\"([\w-]+)\"", source)
    assert len(names) == source.count(".add_argument(")
    assert [n for n in names if not any(f"{line} ".startswith(f"    {n} ") for line in said)] == []


@posix
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["comfy", "--port", "1"], "comfy takes nothing more, got '--port 1'."),
        (["demo", "now"], "demo takes nothing more, got 'now'."),
        (["bench"], "There is no benchmark ''; choose one of: "),
        (["bench", "nothing"], "There is no benchmark 'nothing'; choose one of: "),
        (["test", "unti"], "There are no tests 'unti'; choose some of unit, host, "),
        (["test", "unit", "hots"], "There are no tests 'hots'; choose some of "),
        (["start"], "There is no command 'start'; choose one of: demo, test, comfy, bench, train."),
        (["--port"], "There is no command '--port'; choose one of: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_command_does_not_take_is_one_sentence(tmp_path, arguments, sentence):
    done = dev_py(tmp_path, *arguments)
    assert done.returncode != 0
    assert done.stderr.startswith(f"dev.py: {sentence}")
    assert done.stderr.count("\n") == 1
