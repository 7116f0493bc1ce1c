"""The checkout as the package `palimpsest`, and one real server for all who want to speak to it."""

import re
import runpy
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parents[1]

# ComfyUI has modules named like our folders (nodes, tests, utils): the root is never searched.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
runpy.run_path(str(ROOT / "dev.py"))["load_package"]()

# Whoever ends the tests ends their servers too: fixtures are torn down on an interrupt only.
signal.signal(signal.SIGTERM, signal.default_int_handler)

torch.set_num_threads(min(2, torch.get_num_threads()))


class ByRenderer(LoadFileScheduling):
    """Files stay together, and the browser's tests by their renderer: each worker opens one."""

    def _split_scope(self, nodeid):
        renderer = re.search(r"^tests/browser/.*[\[-](canvas|vue)[\]-]", nodeid)
        return renderer[1] if renderer else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`, the tests are dealt out by `ByRenderer`."""
    return ByRenderer(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A real ComfyUI with this checkout in its custom_nodes; see palimpsest.tests.harness.

    Beside it lies a node of the tests that lets a model run out of memory.
    """
    from palimpsest.dev import serve
    from palimpsest.tests.harness import Server

    base = tmp_path_factory.mktemp("comfy")
    log = base / "server.log"
    (base / "custom_nodes").mkdir()
    shutil.copy(ROOT / "tests" / "server" / "out_of_memory.py", base / "custom_nodes")
    with serve(base, log) as (url, _):
        yield Server(url, base, log)
