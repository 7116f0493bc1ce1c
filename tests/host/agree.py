"""The same edit in both hosts, from one model folder."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.hosts.diffusers import folder as diffusers_host
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.correction import DIRECT_INVERSION, Correction
from palimpsest.pipelines.denoiser import RowCount

SOURCE, TARGET = "a red heart on grass", "a blue heart on grass"

#: What hosts may differ by under `in_float64`. Rounding grows a hundredfold in the tiny networks
#: and their slopes (measured: float32 against float64), so to 2e-14; 1e-13 was seen, and a single
#: cast to float32 gives 5e-8.
FLOAT64 = 1e-10

#: The same where the result is a LATENT, which is of float32: the last bits of float64 may turn any
#: number of it over to its neighbour, so they decide on another processor what is bit for bit here.
NEIGHBOURS = 2**-23


@cache
def in_comfyui(folder):
    """The model of a folder in ComfyUI, loaded once: whoever has it leaves it as it was."""
    with torch.inference_mode(False):
        return load_folder(folder)


@cache
def headless(folder):
    """The same without ComfyUI."""
    with torch.inference_mode(False):
        return diffusers_host.load_folder(folder)


def exact(folder, monkeypatch):
    """The model of a folder in ComfyUI, whose network computes in float64 for this test."""
    loaded = _doubled(folder)
    in_float64(loaded.model.model.diffusion_model, monkeypatch)
    return loaded


@cache
def _doubled(folder):
    """One of its own: it is never float32 again."""
    with torch.inference_mode(False):
        return load_folder(folder)


def in_float64(network, monkeypatch):
    """Have a network of ComfyUI compute in float64, and neither host cut to float32 around it."""
    network.double().dtype = torch.float64
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@dataclass(frozen=True, eq=False)
class Setting:
    """One edit, said once for both hosts."""

    latent: torch.Tensor  # LATENT samples
    steps: int = 4
    strength: float = (
        0.35  # random weights are chaotic at more noise: rounding grows 2000 times at full noise
    )
    cfg: float = 3.0
    source: str = SOURCE
    target: str = TARGET
    correction: Correction = DIRECT_INVERSION
    mask: torch.Tensor | None = None
    keep_source: bool = True
    control: bool = True


def words(tokens, target):
    return rewrite_prompt(tokens, target, cross_window=(0, 0.6), self_window=(0, 0.5))


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def request(loaded, setting, sigmas=None, model=None):
    """Invert in ComfyUI and make the edit's request; also the inversion's cost."""
    model = model or loaded.model
    source, target, empty = (encode(loaded.clip, t) for t in (setting.source, setting.target, ""))
    sigmas = (
        schedule(model, "simple", setting.steps, setting.strength) if sigmas is None else sigmas
    )
    picture = Picture(model, source, empty, setting.latent, sigmas, 1.0, "Invert (DDIM)")
    trajectory, spent = invert_ddim(picture, convention="destination", refinement=0)
    control = None
    if setting.control:
        tokens = [prompt_tokens(loaded.clip, t) for t in (setting.source, setting.target)]
        control = BoundControl(words(*tokens), source[0][0], target[0][0])
    made = EditRequest(
        model,
        trajectory,
        source,
        target,
        empty,
        setting.cfg,
        control,
        setting.mask,
        setting.correction,
        setting.keep_source,
    )
    return made, spent


def in_comfy(loaded, setting):
    """Edited and source LATENT samples, and the rows of inversion and edit."""
    made, inverted = request(loaded, setting)
    latent, source, spent, _ = edit(made)
    return latent, source, (inverted.rows, spent.rows)


def in_diffusers(folder: Path, setting, sigmas, scale):
    """The same with diffusers' network; `scale` takes LATENT samples to model scale."""
    model = headless(folder)
    size = tuple(8 * n for n in setting.latent.shape[-2:])
    source, target, empty = (
        model.prompt(text, size=size) for text in (setting.source, setting.target, "")
    )
    rising, rows = sigmas.flip(0).double(), RowCount()
    trajectory = model.unet.invert(setting.latent * scale, source, rising, rows=rows)
    inverted = rows.rows
    edited = model.unet.edit(
        trajectory,
        source,
        target,
        empty,
        cfg=setting.cfg,
        control=words(source.tokens, target.tokens) if setting.control else None,
        correction=setting.correction,
        keep_source=setting.keep_source,
        rows=rows,
    ).run()
    source_row = None if edited.source is None else edited.source / scale
    return edited.latent / scale, source_row, (inverted, rows.rows - inverted)
