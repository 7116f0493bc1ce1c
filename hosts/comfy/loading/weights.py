"""What lies in a diffusers pipeline folder: JSON files and safetensors, read and checked.

Weights are read through ComfyUI, so that its memory mapping and its flags apply. Pickled weights
(`.bin`) are never opened.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.utils
from safetensors import SafetensorError
from torch import Tensor, nn

from ....pipelines.errors import PalimpsestError

#: The classes that ComfyUI's own modules can stand in for, by the name of their subfolder.
SUPPORTED = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}


def read_index(folder: Path) -> dict[str, str]:
    """Read which class each part of a pipeline has: {"unet": "UNet2DConditionModel", ...}.

    Raises:
        PalimpsestError: If this is no folder of a Stable Diffusion shaped pipeline.
    """
    if not folder.is_dir():
        raise PalimpsestError(
            f"The model folder {folder} does not exist: choose the folder of a diffusers pipeline, "
            "the one that holds model_index.json."
        )
    index = read_json(folder / "model_index.json")
    parts = {
        name: entry[1]
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }
    for name, allowed in SUPPORTED.items():
        required = name != "text_encoder_2"
        if parts.get(name) not in allowed and (required or name in parts):
            raise PalimpsestError(
                f"The model folder {folder} is a {index.get('_class_name', 'pipeline')} whose "
                f"{name} is {parts.get(name, 'missing')}: it must be {' or '.join(allowed)}, as in "
                "Stable Diffusion 1.x, 2.x and XL; load other models with ComfyUI's own loaders."
            )
    return parts


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        PalimpsestError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise PalimpsestError(
            f"The model folder has no {path.name} in {path.parent}: it must be a whole diffusers "
            "pipeline as save_pretrained writes it; download the missing file or choose another "
            "folder."
        )
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PalimpsestError(
            f"The file {path} is damaged ({error}): it must be JSON; download it again."
        ) from error
    if not isinstance(data, dict):
        raise PalimpsestError(f"The file {path} must hold a JSON object; download it again.")
    return data


def require(part: str, config: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Refuse a configuration that ComfyUI's module would silently compute otherwise.

    Args:
        part: The subfolder, for the message.
        config: Its config.json.
        fixed: The only value of each key that ComfyUI's module knows; absent and null are fine.
    """
    for key, value in fixed.items():
        if config.get(key) not in (None, value):
            raise PalimpsestError(
                f"The {part} of this folder has {key} = {config[key]!r}, ComfyUI's own computes "
                f"{value!r} only: choose a model without this variation."
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
            shards = set(read_json(part / name).get("weight_map", {}).values())
            # A shard is a plain name beside its index; anything else would leave the folder.
            files = [part / Path(str(shard)).name for shard in sorted(shards)]
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise PalimpsestError(
            f"The weights {path} are missing, which the index beside them names: download the "
            "model again."
        )
    try:
        return comfy.utils.load_torch_file(str(path))
    except (ValueError, OSError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
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
