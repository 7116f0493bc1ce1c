"""The trained model on disk: a folder as diffusers writes Stable Diffusion, in half precision."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WEIGHTS = Path(__file__).parent / "weights"

_TEXT_PREFIX = "text_model."
_TEXT_CONFIG = (
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "initializer_factor",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "projection_dim",
    "vocab_size",
)


@dataclass(frozen=True)
class Painter:
    """All that turns a text into a latent."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    def to(self, device: torch.device) -> "Painter":
        """The same painter with its networks moved to a device."""
        return Painter(self.unet.to(device), self.text_encoder.to(device), self.tokenizer)

    def embed(self, texts: list[str]) -> Tensor:
        """Text embeddings `[len(texts), 77, width]`."""
        ids = token_ids(self.tokenizer, texts).to(self.unet.device)
        return self.text_encoder(ids).last_hidden_state


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token numbers `[len(texts), 77]`, padded with the end token."""
    batch = tokenizer(
        texts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return batch.input_ids


def make_autoencoder() -> AutoencoderTiny:
    """An untrained autoencoder of the one tiny architecture that hosts know."""
    return AutoencoderTiny(
        encoder_block_out_channels=(64, 64, 64, 64),
        decoder_block_out_channels=(64, 64, 64, 64),
        num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1),
        latent_channels=4,
        scaling_factor=1.0,
    )


def write_autoencoder(folder: Path, autoencoder: AutoencoderTiny) -> None:
    """Write `vae/`."""
    halved = make_autoencoder()
    halved.load_state_dict(autoencoder.state_dict())
    halved.half().save_pretrained(folder / "vae")


def write_painter(folder: Path, painter: Painter, scheduler: DDIMScheduler) -> None:
    """Write `unet/`, `text_encoder/`, `scheduler/` and the index; `tokenizer/` is there already."""
    # Where weights were loaded from is nobody's business.
    shape = {name: v for name, v in painter.unet.config.items() if name != "_name_or_path"}
    unet = UNet2DConditionModel.from_config(shape)
    unet.load_state_dict(painter.unet.state_dict())
    unet.half().save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    write_text_encoder(folder, painter.text_encoder)
    write_json(folder / "model_index.json", _index())


def write_text_encoder(folder: Path, text: CLIPTextModel) -> None:
    """Write `text_encoder/`."""
    known = text.config.to_dict()
    config = {name: known[name] for name in _TEXT_CONFIG}
    head = {"architectures": ["CLIPTextModel"], "dtype": "float16"}
    write_json(folder / "text_encoder" / "config.json", {**head, **config})
    # The names of every published checkpoint: newer transformers dropped the prefix in memory.
    state = {
        f"{_TEXT_PREFIX}{name.removeprefix(_TEXT_PREFIX)}": value.half().contiguous().cpu()
        for name, value in text.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(state, folder / "text_encoder" / "model.safetensors", {"format": "pt"})


def load_autoencoder(folder: Path) -> AutoencoderTiny:
    """The autoencoder of a model folder, in single precision."""
    return AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()


def load_painter(folder: Path) -> Painter:
    """UNet, text encoder and tokenizer of a model folder, in single precision."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    return Painter(unet.eval(), load_text_encoder(folder), tokenizer)


def load_text_encoder(folder: Path) -> CLIPTextModel:
    """The text encoder of a model folder, in single precision."""
    config = CLIPTextConfig.from_json_file(folder / "text_encoder" / "config.json")
    config.dtype = torch.float32
    text_encoder = CLIPTextModel(config)
    prefix = _TEXT_PREFIX if next(iter(text_encoder.state_dict())).startswith("text") else ""
    state = {
        prefix + name.removeprefix(_TEXT_PREFIX): value.float()
        for name, value in load_file(folder / "text_encoder" / "model.safetensors").items()
    }
    text_encoder.load_state_dict(state, strict=False)
    return text_encoder.eval()


def _index() -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")
