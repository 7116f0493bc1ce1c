"""Folders of golden cases under test: run them, harm a copy, make one anew."""

import importlib.util
import json
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from palimpsest.benchmarks.parity import __main__ as parity
from palimpsest.benchmarks.parity import golden
from safetensors.torch import load_file, save_file

TESTS = Path(__file__).resolve().parents[2]
MODEL = TESTS / "data" / "model"


@dataclass(frozen=True)
class Cases:
    """A folder of golden cases that a script of ours made with the model of the tests.

    Attributes:
        folder: Where they are.
        script: The name of that script.
    """

    folder: Path
    script: str

    @property
    def names(self):
        """Names of all cases, sorted."""
        return golden.open_folder(self.folder, MODEL).names()

    def bench(self, *only):
        """The exit status of `bench parity`, with the cases of these names or with all of them."""
        return parity.main(
            [str(self.folder), "--model", str(MODEL), *(only and ("--only", ",".join(only)))]
        )

    def result(self, name):
        """What `bench parity` found of one case."""
        opened = golden.open_folder(self.folder, MODEL)
        case = opened.case(name)
        return parity.runner_of(case)(opened, case)

    def settings(self, name):
        """The settings of a case."""
        return json.loads((self.folder / f"{name}.json").read_text())

    def copy(self, folder):
        """A copy whose files may be changed."""
        return replace(self, folder=Path(shutil.copytree(self.folder, folder)))

    def say(self, name, **changes):
        """Write other settings into a case."""
        (self.folder / f"{name}.json").write_text(json.dumps(self.settings(name) | changes))

    def scale(self, name, **factors):
        """Multiply tensors of a case; a sequence of factors is one for each row of the tensor."""
        file = self.folder / f"{name}.safetensors"
        tensors = load_file(file)
        for key, factor in factors.items():
            # Rows come before channels, height and width.
            each = torch.as_tensor(factor)
            tensors[key] = tensors[key] * (each[:, None, None, None] if each.ndim else each)
        save_file(tensors, file)

    @cached_property
    def maker(self):
        """The script."""
        spec = importlib.util.spec_from_file_location(self.script, TESTS / f"{self.script}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def assert_made_again(self, name, unet):
        """Compare what the script makes with what is stored."""
        settings, tensors = self.maker.make_case(name, unet.double())
        stored = golden.open_folder(self.folder, MODEL).case(name)
        assert json.loads(json.dumps(settings)) == stored.settings
        assert tensors.keys() == stored.tensors.keys()
        for key, tensor in tensors.items():
            # On another machine a last bit may fall the other way.
            near = 1e-9 if stored.tensors[key].dtype == torch.float64 else 1e-6
            torch.testing.assert_close(tensor, stored.tensors[key], rtol=near, atol=near)
