"""These tests run ComfyUI's own code in this process, on the CPU where there is nothing better."""

from palimpsest.dev import use_comfy

use_comfy()

import gc
import sys

import pytest
import torch
from palimpsest.demo.flow import FlowPainter, make_transformer
from palimpsest.demo.flow_files import copy_parts, load_texts, write_flow
from palimpsest.demo.model_files import WEIGHTS
from palimpsest.tests.host import agree, tiny


def pytest_collection_finish():
    """Core collects all garbage whenever a model was dropped: spare it what the imports made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    """Two inversions that a test compares are two inversions; `test_memory` is about the rest."""
    for name in ("nodes.inversions.shared", "hosts.comfy.edits.no_inversion"):
        module = sys.modules.get(f"palimpsest.{name}")
        if module is not None:
            monkeypatch.setattr(
                module, "remembered", lambda method, wires, invert, is_small: (invert(), False)
            )


@pytest.fixture
def as_core_runs_nodes():
    """Nodes run in inference mode: `pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")`."""
    with torch.inference_mode():
        yield


def _folder(make, tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / make.__name__.removeprefix("make_"))


@pytest.fixture(scope="session")
def sd1_folder(tmp_path_factory):
    return _folder(tiny.make_sd1, tmp_path_factory)


@pytest.fixture(scope="session")
def sd2_folder(tmp_path_factory):
    return _folder(tiny.make_sd2, tmp_path_factory)


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory):
    return _folder(tiny.make_sdxl, tmp_path_factory)


@pytest.fixture(scope="session")
def flow_folder(tmp_path_factory):
    """A tiny transformer of Flux's kind with random weights, and the embedded text encoder."""
    folder = tmp_path_factory.mktemp("flow") / "flow"
    with torch.inference_mode(False):
        copy_parts(WEIGHTS, folder)
        painter = FlowPainter(make_transformer(1, 1, 2), *load_texts(folder))
        tiny.randomise(painter.transformer)
        write_flow(folder, painter)
    return folder


@pytest.fixture(scope="session")
def sd1(sd1_folder):
    """The tiny SD 1 as core's MODEL, CLIP and VAE; a test leaves it as it was."""
    return agree.in_comfyui(sd1_folder)


@pytest.fixture
def exact_sd1(sd1_folder, monkeypatch):
    """SD 1.x in ComfyUI, whose network computes in float64 for this test."""
    return agree.exact(sd1_folder, monkeypatch)
