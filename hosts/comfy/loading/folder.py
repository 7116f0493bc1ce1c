"""A diffusers pipeline folder as ComfyUI's own MODEL, CLIP and VAE."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher

from ....pipelines.errors import QUOTED, PalimpsestError, quoted
from .clip import load_clip, text_parts, text_widths
from .search import model_folders
from .transformer import load_transformer, read_widths
from .unet import load_unet
from .unet_shape import UNetShape, read_shape
from .vae import load_vae, preview_colors, read_vae_config
from .weights import read_index


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What core's checkpoint loader returns, and just as native."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    vae: comfy.sd.VAE


def load_folder(folder: Path) -> LoadedModel:
    """Load a Stable Diffusion 1.x, 2.x or XL shaped pipeline folder of any size.

    A small transformer of Flux's kind, which reads CLIP alone, is loaded as well.

    Args:
        folder: The folder that holds model_index.json. Which folders are allowed is the caller's
            matter, see `resolve_diffusers_folder`.

    Raises:
        PalimpsestError: If it is no such pipeline, or damaged; the message says what to do.
    """
    if "transformer" in read_index(folder):
        _check_flow_parts(folder)
        model = load_transformer(folder)
    else:
        _check_parts(folder, read_shape(folder))
        model = load_unet(folder)
    loaded = LoadedModel(model=model, clip=load_clip(folder), vae=load_vae(folder))
    latents = loaded.model.model.latent_format
    if latents.latent_rgb_factors is None:
        preview_colors(loaded.vae, latents)
    return loaded


def _check_flow_parts(folder: Path) -> None:
    """Refuse parts of a flow pipeline that each load and do not belong together."""
    wanted, part = read_widths(folder), "transformer"
    context, pooled = text_widths(folder)
    latent = read_vae_config(folder)["latent_channels"]
    _fit(folder, "text encoder gives", context, "numbers a token", wanted.context, part)
    _fit(folder, "text encoder gives", pooled, "pooled numbers", wanted.pooled, part)
    _fit(folder, "vae gives", latent, "latent channels", wanted.channels, part)


def _check_parts(folder: Path, shape: UNetShape) -> None:
    """Refuse parts that each load and do not belong together."""
    config = shape.unet_config
    parts = text_parts(folder)
    needed = 2 if shape.time_id_width else 1
    if len(parts) != needed:
        raise PalimpsestError(
            f"The model folder {folder} has {len(parts)} text encoder(s), its unet reads {needed}: "
            "SDXL needs text_encoder and text_encoder_2, SD 1.x and 2.x only the first; download "
            "the folder again or choose another model."
        )
    context, pooled = text_widths(folder)
    latent = read_vae_config(folder)["latent_channels"]
    _fit(folder, "text encoders give", context, "numbers a token", config["context_dim"])
    _fit(folder, "vae gives", latent, "latent channels", config["out_channels"])
    if shape.time_id_width:
        _fit(folder, "text_encoder_2 gives", pooled, "pooled numbers", shape.pooled_width)
    if config["in_channels"] not in (latent, 2 * latent + 1):
        raise PalimpsestError(
            f"The unet of {folder} takes {config['in_channels']} channels: it must be {latent}, or "
            f"{2 * latent + 1} for an inpainting model; choose another model."
        )


def _fit(folder: Path, who: str, given: int, what: str, wanted: int, network: str = "unet") -> None:
    if given != wanted:
        raise PalimpsestError(
            f"In the model folder {folder} the {who} {given} {what}, the {network} reads "
            f"{wanted}: all parts must come from the same model; download the folder again."
        )


def diffusers_folders() -> list[str]:
    """Names of the pipeline folders under ComfyUI's `diffusers` folders, with forward slashes."""
    return sorted(_folders())


def resolve_diffusers_folder(name: str) -> Path:
    """The path of a pipeline folder by the name that `diffusers_folders` gave it.

    Raises:
        PalimpsestError: If no folder there has this name; a path that leaves them never has.
    """
    folders = _folders()
    if name not in folders:
        where = ", ".join(folder_paths.get_folder_paths("diffusers"))
        known = textwrap.shorten(
            ", ".join(sorted(folders)) or "none yet", QUOTED, placeholder="..."
        )
        raise PalimpsestError(
            f"There is no diffusers model folder {quoted(name)}: it must be one of those under "
            f"{where} ({known}); put the model there and reload the page."
        )
    return folders[name]


def _folders() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths("diffusers")):
        for path in model_folders(root):
            found.setdefault(path.relative_to(root).as_posix(), path)
    return found
