"""The text encoders of a diffusers folder as ComfyUI's own CLIP.

One encoder (SD 1.x, SD 2.x) gives its last hidden state; diffusers' SD 2.x folders have cut off
the layer that ComfyUI would skip. Two encoders (SDXL) give their penultimate states side by side,
without the final norm, and the projected pooled output of the second.

ComfyUI's classes come with the vocabulary, the special tokens and the widths of the published
models; the subclasses here take them from the folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.clip_model import CLIPTextModel
from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer, SDClipModel
from comfy.sdxl_clip import SDXLClipModel, SDXLTokenizer
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from ....pipelines.errors import PalimpsestError, quoted
from .config import number, read_config, whole, words, wrong_field
from .tokenizer import FolderTokenizer, read_tokenizer
from .weights import load_weights, read_weights

#: What is read of a config.json, with transformers' defaults for what it leaves out.
FIELDS = {
    "vocab_size": whole(2, 2**21, 49408),
    "hidden_size": whole(1, 2**16, 512),
    "intermediate_size": whole(1, 2**18, 2048),
    "num_hidden_layers": whole(1, 128, 12),
    "num_attention_heads": whole(1, 1024, 8),
    "max_position_embeddings": whole(3, 2**14, 77),
    "hidden_act": words("quick_gelu"),
    "layer_norm_eps": number(0, 1, 1e-5),
    "projection_dim": whole(1, 2**16, 512),
}

#: transformers' names of activations, in the words of comfy.clip_model.ACTIVATIONS.
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
}


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder of a folder, and its tokenizer.

    Attributes:
        part: Its subfolder, "text_encoder" or "text_encoder_2".
        name: What ComfyUI calls it: "clip_l" OpenAI's, "clip_g" SDXL's second, "clip_h" SD 2.x's.
        config: Its config in ComfyUI's words.
        weights: Its weights by the names of ComfyUI's CLIPTextModel.
        tokenizer: ComfyUI's tokenizer over the folder's vocabulary.
    """

    part: str
    name: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: FolderTokenizer


def load_clip(folder: Path, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Load the text encoders of a pipeline folder.

    Args:
        folder: The pipeline folder.
        disable_dynamic: What ComfyUI asks for when it needs a copy without dynamic VRAM.

    Raises:
        PalimpsestError: If ComfyUI has no module for one of them, or its weights do not fit.
    """
    parts = text_parts(folder)
    encoders = [_read_encoder(folder, part, alone=len(parts) == 1) for part in parts]
    clip = comfy.sd.CLIP(
        _target(encoders),
        parameters=sum(comfy.utils.calculate_parameters(e.weights) for e in encoders),
        state_dict=[
            {f"{encoder.name}.{key}": weight for key, weight in encoder.weights.items()}
            for encoder in encoders
        ],
        disable_dynamic=disable_dynamic,
    )
    clip.patcher.cached_patcher_init = (reload_clip, (folder,))
    return clip


def reload_clip(folder: Path, disable_dynamic: bool = False) -> Any:
    """Load only the patcher of the CLIP again; what ComfyUI calls for a copy."""
    return load_clip(folder, disable_dynamic).patcher


def text_parts(folder: Path) -> list[str]:
    """The subfolders that hold text encoders, in the order of their embeddings."""
    return [part for part in ("text_encoder", "text_encoder_2") if (folder / part).is_dir()]


def text_widths(folder: Path) -> tuple[int, int]:
    """Channels of a token's embedding, and of the pooled output of the last encoder."""
    configs = [_read_config(folder, part) for part in text_parts(folder)]
    return sum(config["hidden_size"] for config in configs), configs[-1]["projection_dim"]


def _read_config(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / "config.json"
    config = read_config(path, FIELDS)
    heads = config["num_attention_heads"]
    if config["hidden_size"] % heads:
        said = f"a number that divides the hidden_size {config['hidden_size']}"
        raise wrong_field(path, "num_attention_heads", heads, said)
    return config


def _read_encoder(folder: Path, part: str, *, alone: bool) -> TextEncoder:
    config = _read_config(folder, part)
    if config["hidden_act"] not in ACTIVATIONS:
        raise PalimpsestError(
            f"The {part} of this folder has hidden_act = {quoted(config['hidden_act'])}: ComfyUI's "
            f"own knows {', '.join(ACTIVATIONS)}; choose a model with one of these."
        )
    if not alone and config["num_hidden_layers"] < 2:
        raise PalimpsestError(
            f"The {part} of this folder has 1 layer: an SDXL model reads the last but one and "
            "needs at least 2; choose another model."
        )
    config["hidden_act"] = ACTIVATIONS[config["hidden_act"]]
    weights = _named(read_weights(folder / part, "model"))
    if "text_projection.weight" not in weights:
        config["projection_dim"] = width = config["hidden_size"]
        some = next(iter(weights.values()))
        weights["text_projection.weight"] = torch.eye(width, dtype=some.dtype)
    if alone:
        name = "clip_l" if config["hidden_act"] == "quick_gelu" else "clip_h"
    else:
        name = "clip_l" if part == "text_encoder" else "clip_g"
    _rehearse(part, config, weights)
    tokenizer = read_tokenizer(folder / part.replace("text_encoder", "tokenizer"), config, name)
    return TextEncoder(part, name, config, weights, tokenizer)


def _rehearse(part: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that do not fit before room is made for them, however much a config asks."""
    text = FolderTextModel(
        {**config, "eos_token_id": 0}, None, torch.device("meta"), comfy.ops.disable_weight_init
    )
    load_weights(text, weights, part=part, assign=True)


def _named(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of ComfyUI's CLIPTextModel."""
    named = {}
    for key, weight in weights.items():
        if key.endswith("position_ids"):  # a mere count that old files carry along
            continue
        # Newer files of an encoder without projection leave out the outer name.
        outer = key.startswith(("text_model.", "text_projection."))
        named[key if outer else f"text_model.{key}"] = weight
    return named


def _target(encoders: Sequence[TextEncoder]) -> ClipTarget:
    """What comfy.sd.CLIP builds itself from: makers of a tokenizer and of a module."""
    if len(encoders) == 1:
        only = encoders[0]
        letter = only.name.removeprefix("clip_")
        tokenizer = SD1Tokenizer(clip_name=letter, tokenizer=lambda **_: only.tokenizer)
        model = partial(SD1ClipModel, clip_name=letter, clip_model=partial(FolderEncoder, only))
    else:
        tokenizer = TwoTokenizers(*encoders)
        model = partial(TwoEncoders, *encoders)
    return ClipTarget(lambda **_: tokenizer, model)


class TwoTokenizers(SDXLTokenizer):
    """The two tokenizers of an SDXL folder."""

    def __init__(self, first: TextEncoder, second: TextEncoder) -> None:
        self.clip_l, self.clip_g = first.tokenizer, second.tokenizer


class FolderTextModel(CLIPTextModel):
    """ComfyUI's CLIP text model with any vocabulary, projection and norm."""

    def __init__(
        self, config_dict: Mapping[str, Any], dtype: Any, device: Any, operations: Any
    ) -> None:
        super().__init__(config_dict, dtype, device, operations)
        width, words = config_dict["hidden_size"], config_dict["vocab_size"]
        place = {"dtype": dtype, "device": device}
        self.set_input_embeddings(operations.Embedding(words, width, **place))
        self.text_projection = operations.Linear(
            width, config_dict["projection_dim"], bias=False, **place
        )
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = config_dict["layer_norm_eps"]


class FolderEncoder(SDClipModel):
    """One encoder of a folder, with its tokenizer's special tokens."""

    def __init__(
        self,
        encoder: TextEncoder,
        device: Any = "cpu",
        dtype: Any = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        special = encoder.tokenizer.special_tokens
        super().__init__(
            device=device,
            dtype=dtype,
            max_length=encoder.config["max_position_embeddings"],
            textmodel_json_config={**encoder.config, "eos_token_id": special["end"]},
            model_class=FolderTextModel,
            special_tokens=special,
            return_projected_pooled=False,
            model_options=dict(model_options or {}),
        )
        self.part, self.name = encoder.part, encoder.name

    def load_sd(self, sd: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
        """Load the weights, each one used and none missing; core would only log it."""
        load_weights(
            self.transformer,
            {key.removeprefix(f"{self.name}."): weight for key, weight in sd.items()},
            part=self.part,
            assign=getattr(self, "can_assign_sd", False),
        )
        return [], []


class PenultimateEncoder(FolderEncoder):
    """One of SDXL's encoders: the state before the last layer, no final norm, pooled projected."""

    def __init__(
        self,
        encoder: TextEncoder,
        device: Any = "cpu",
        dtype: Any = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(encoder, device=device, dtype=dtype, model_options=model_options)
        self.layer_norm_hidden_state = False
        # Not by arguments: core asserts a third layer there, which it does not need.
        self.set_clip_options({"layer": -2, "projected_pooled": True})
        self.options_default = (self.layer, self.layer_idx, self.return_projected_pooled)


class TwoEncoders(SDXLClipModel):
    """The two encoders of an SDXL folder."""

    def __init__(
        self,
        first: TextEncoder,
        second: TextEncoder,
        device: Any = "cpu",
        dtype: Any = None,
        model_options: Mapping[str, Any] | None = None,
    ) -> None:
        nn.Module.__init__(self)  # core's would build the published models
        place = {"device": device, "dtype": dtype}
        options = dict(model_options or {})
        self.clip_l = PenultimateEncoder(
            first, **place, model_options={**options, "model_name": "clip_l"}
        )
        self.clip_g = PenultimateEncoder(
            second, **place, model_options={**options, "model_name": "clip_g"}
        )
        self.dtypes = {dtype}

    def load_sd(self, sd: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
        """Load the weights of the encoder that their names begin with."""
        first = next(iter(sd)).startswith("clip_l.")
        return (self.clip_l if first else self.clip_g).load_sd(sd)
