"""Folders of golden cases: results of published code on a small model, and that model.

A case is `NAME.safetensors` beside `NAME.json`; `text.safetensors` and `text.json` of the folder
hold the schedule and every prompt with its tokens and embedding. The model of a folder of flow
cases is a folder for each of their transformers; such a case holds its own prompts.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...hosts.diffusers.prompt import Prompt
from ...hosts.diffusers.unet import DiffusersUNet
from ...pipelines.attention.tokens import PromptTokens, Word
from ...pipelines.errors import PalimpsestError
from ...pipelines.schedule import sigma_from_alpha

#: Norm of the difference over norm of the published tensor, per tensor and row.
TOLERANCE = 1e-4

#: What a folder of flow models holds, one folder each.
FLOW_MODELS = ("flux", "sd3")


@dataclass(frozen=True, eq=False)
class Case:
    """One published run: its settings and what came out."""

    name: str
    settings: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def method(self) -> str:
        """What was run, as the case says it."""
        return self.settings.get("method", "one call")

    @property
    def of_flow(self) -> bool:
        """Whether it is one of a flow transformer."""
        return self.settings.get("model") in FLOW_MODELS


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder of cases and the model they were made with."""

    path: Path
    model_path: Path

    def names(self) -> list[str]:
        """Names of all cases, sorted."""
        return sorted(p.stem for p in self.path.glob("*.json") if p.stem != "text")

    def case(self, name: str) -> Case:
        """Read one case.

        Raises:
            PalimpsestError: If one of its two files is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            settings = json.loads((self.path / f"{name}.json").read_text())
            return Case(name, settings, load_file(self.path / f"{name}.safetensors"))
        except (OSError, ValueError, SafetensorError) as error:
            raise PalimpsestError(
                f"The case {name} cannot be read: it needs {name}.json beside {name}.safetensors "
                f"({error})."
            ) from error

    @cached_property
    def _text(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        from safetensors.torch import load_file

        settings = json.loads((self.path / "text.json").read_text())
        return settings, load_file(self.path / "text.safetensors")

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """[train steps] cumulative alphas of the model's schedule."""
        return self._text[1]["alphas_cumprod"]

    def sigmas(self, case: Case) -> Tensor:
        """[N+1] rising levels: the final one, or the lowest of the schedule, and the timesteps."""
        alphas = self.alphas_cumprod.double()
        final = case.settings.get("final_alpha_cumprod", float(alphas[0]))
        levels = alphas[sorted(case.settings["timesteps"])]
        return sigma_from_alpha(torch.cat([torch.tensor([final], dtype=torch.float64), levels]))

    def prompt(self, text: str) -> Prompt:
        """A prompt of the folder by its text; no tokenizer is needed."""
        settings, tensors = self._text
        for key, known in settings["prompts"].items():
            if known == text:
                ids = tuple(tensors[f"ids_{key}"].flatten().tolist())
                return Prompt(
                    tensors[f"emb_{key}"], _tokens(text, ids, settings["word_tokens"][key])
                )
        raise PalimpsestError(f"{self.path}/text.json holds no prompt {text!r}.")

    @cached_property
    def unet(self) -> DiffusersUNet:
        """The model, loaded strictly."""
        from diffusers import UNet2DConditionModel
        from safetensors.torch import load_file

        config = json.loads((self.model_path / "unet_config.json").read_text())
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        unet = UNet2DConditionModel(**config)
        unet.load_state_dict(load_file(self.model_path / "unet.safetensors"))
        return DiffusersUNet(unet.eval().requires_grad_(False), self.alphas_cumprod)


def _tokens(text: str, ids: tuple[int, ...], pieces: list[str]) -> PromptTokens:
    """Words and positions from the list of token strings, start and end included."""
    words, position = [], 1
    for word in text.split():
        start, length = position, 0
        while length < len(word):
            length += len(pieces[position].removesuffix("</w>"))
            position += 1
        words.append(Word(word, tuple(range(start, position))))
    return PromptTokens(ids, tuple(words), len(pieces))


def open_folder(path: Path, model_path: Path) -> Folder:
    """Open a folder of cases.

    Raises:
        PalimpsestError: If the folder or the model is not there.
    """
    flows = [model_path / name / "config.json" for name in FLOW_MODELS]
    unet = [path / "text.json", model_path / "unet_config.json"]
    for needed in flows if any(file.is_file() for file in flows) else unet:
        if not needed.is_file():
            raise PalimpsestError(
                f"There is no {needed}: give a folder of golden cases, and its model by --model."
            )
    return Folder(path, model_path)


@dataclass(frozen=True)
class Result:
    """Outcome of a case: the error of every tensor compared, and the rows spent.

    The errors may be as large as the tolerance; a runner whose method magnifies rounding sets it.
    """

    errors: dict[str, float]
    rows: int
    tolerance: float = TOLERANCE

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance."""
        return self.worst[0] <= self.tolerance

    @property
    def worst(self) -> tuple[float, str]:
        """The largest error and the tensor that has it; NaN counts as infinite."""
        return max((e if e == e else math.inf, name) for name, e in self.errors.items())


def error(ours: Tensor, published: Tensor) -> float:
    """Norm of the difference over norm of the published tensor."""
    return float((ours - published).norm() / published.norm())


def input_latent(folder: Folder, case: Case) -> Tensor:
    """The input of a case: its own, or the one that it names as `FILE:KEY`."""
    from safetensors.torch import load_file

    if "x0" in case.tensors:
        return case.tensors["x0"]
    file, key = case.settings["x0"].split(":")
    return load_file(folder.model_path / Path(file).name)[key]
