"""What lies in a diffusers pipeline folder: its index and its safetensors, read and checked.

Weights are read through ComfyUI, so that its memory mapping and its flags apply. Pickled weights
(`.bin`) are never opened.
"""

from collections.abc import Mapping
from pathlib import Path

import comfy.utils
from safetensors import SafetensorError
from torch import Tensor, nn

from ....pipelines.errors import QUOTED, PalimpsestError
from ..files.numbered import SUFFIX
from ..files.safetensors_header import read_header
from .config import read_config, read_json, words, wrong_field

#: The classes that ComfyUI's own modules can stand in for, by the name of their subfolder.
SUPPORTED = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}

#: The same of a flow transformer that reads one CLIP.
SUPPORTED_FLOW = {
    "transformer": ("FluxTransformer2DModel",),
    "vae": SUPPORTED["vae"],
    "text_encoder": SUPPORTED["text_encoder"],
}


def read_index(folder: Path) -> dict[str, str]:
    """Read which class each part of a pipeline has: {"unet": "UNet2DConditionModel", ...}.

    Raises:
        PalimpsestError: If this is no folder of a Stable Diffusion shaped pipeline, nor of Flux
            with CLIP alone.
    """
    if not folder.is_dir():
        raise PalimpsestError(
            f"The model folder {folder} does not exist: choose the folder of a diffusers pipeline, "
            "the one that holds model_index.json."
        )
    index = read_config(folder / "model_index.json", {"_class_name": words("pipeline")})
    parts = {
        name: entry[1]
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }
    if "transformer" in parts:
        _check_flow(folder, parts)
        return parts
    for name, allowed in SUPPORTED.items():
        required = name != "text_encoder_2"
        if parts.get(name) not in allowed and (required or name in parts):
            raise PalimpsestError(
                f"The model folder {folder} is a {index['_class_name']} whose {name} is "
                f"{parts.get(name, 'missing')[:QUOTED]}: it must be {' or '.join(allowed)}, as in "
                "Stable Diffusion 1.x, 2.x and XL; load other models with ComfyUI's own loaders."
            )
    return parts


def _check_flow(folder: Path, parts: Mapping[str, str]) -> None:
    """Refuse a flow pipeline of classes that no one here knows."""
    others = {name: ("none",) for name in ("text_encoder_2", "text_encoder_3") if name in parts}
    for name, allowed in (SUPPORTED_FLOW | others).items():
        if parts.get(name) not in allowed:
            raise PalimpsestError(
                f"The model folder {folder} has a transformer, and its {name} is "
                f"{parts.get(name, 'missing')[:QUOTED]}: it must be {' or '.join(allowed)}, a "
                "small model of Flux's kind that reads CLIP alone; load Flux, SD 3 and their like "
                "with ComfyUI's own loaders."
            )


def read_weights(part: Path, stem: str) -> dict[str, Tensor]:
    """Read the safetensors of one part, in one file or in shards, full precision before fp16.

    Args:
        part: The part's folder, for example `.../unet`.
        stem: What its files are called, for example "diffusion_pytorch_model".

    Raises:
        PalimpsestError: If there are none, or one of them is damaged.
    """
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (part / name).is_file():
            return _read_safetensors(part / name)
    for name in (f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json"):
        if (part / name).is_file():
            files = [part / shard for shard in _shards(part / name)]
            return {key: w for file in files for key, w in _read_safetensors(file).items()}
    pickled = sorted(path.name for path in part.glob("*.bin"))
    if pickled:
        raise PalimpsestError(
            f"The folder {part} holds only pickled weights ({pickled[0]}), which can run code when "
            f"they are read: it must hold {stem}.safetensors; download that variant or convert it."
        )
    raise PalimpsestError(
        f"The folder {part} holds no weights: it must hold {stem}.safetensors; download the model "
        "again or choose another folder."
    )


def _shards(index: Path) -> list[str]:
    """The names of the files that an index parts the weights into, all of them beside it.

    Raises:
        PalimpsestError: If it names a file that is no safetensors file: core would unpickle it.
    """
    stated = read_json(index).get("weight_map")
    if not isinstance(stated, dict) or not all(isinstance(v, str) for v in stated.values()):
        raise wrong_field(index, "weight_map", stated, "the name of a file for every weight")
    # A shard is a plain name beside its index; anything else would leave the folder.
    names = {Path(name.replace("\\", "/")).name for name in stated.values()}
    for name in sorted(names):
        if not name.endswith(SUFFIX) or "\0" in name:
            said = f"a {SUFFIX} file: other weights can run code when they are read"
            raise wrong_field(index, "weight_map", name, said)
    return sorted(names)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        if not path.is_file():
            raise PalimpsestError(
                f"The weights {path} are missing, which the index beside them names: download the "
                "model again."
            )
        with path.open("rb") as file:
            read_header(file)
        return comfy.utils.load_torch_file(str(path))
    except PalimpsestError:
        raise
    except (ValueError, OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
        raise PalimpsestError(
            f"The weights {path} cannot be read ({reason}): they must be a whole safetensors file; "
            "download it again."
        ) from error


def load_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    part: str,
    assign: bool,
    names: Mapping[str, str] | None = None,
) -> None:
    """Load weights into a module: each one used, none missing.

    Args:
        module: ComfyUI's module.
        weights: By the module's own names.
        part: The subfolder, for the message.
        assign: Take the tensors over instead of copying them.
        names: The name in the file of every own name, for the message.

    Raises:
        PalimpsestError: If names or shapes do not match, with counts and the first of each.
    """
    own = module.state_dict()
    wrong = [key for key, w in weights.items() if key in own and own[key].shape != w.shape]
    if wrong:
        problems = [("of another shape", wrong)]
    else:
        missing, unknown = module.load_state_dict(weights, strict=False, assign=assign)
        problems = [("missing", missing), ("unknown", unknown)]
    said = [
        f"{len(keys)} {what} (first: {(names or {}).get(keys[0], keys[0])})"
        for what, keys in problems
        if keys
    ]
    if said:
        raise PalimpsestError(
            f"The weights of {part} do not fit its config.json, {' and '.join(said)}: both must "
            "come from the same model; download the folder again."
        )
