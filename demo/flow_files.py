"""The flow model on disk: a folder as diffusers writes Flux, in half precision."""

import json
from copy import deepcopy
from pathlib import Path
from shutil import copytree

import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer

from .flow import TEXT_LENGTH, FlowPainter, make_flow_scheduler
from .model_files import load_text_encoder, write_json, write_text_encoder

WEIGHTS_FLOW = Path(__file__).parent / "weights_flow"


def copy_parts(source: Path, folder: Path) -> None:
    """Write `vae/`, `text_encoder/` and `tokenizer/` from the folder of the UNet.

    Texts are cut to 32 tokens: what the encoder makes of those does not depend on later ones.
    """
    for part in ("vae", "tokenizer"):
        copytree(source / part, folder / part, dirs_exist_ok=True)
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"model_max_length": TEXT_LENGTH})
    write_text_encoder(folder, shortened(load_text_encoder(source)))


def shortened(text_encoder: CLIPTextModel) -> CLIPTextModel:
    """The same text transformer for texts of at most 32 tokens."""
    config = deepcopy(text_encoder.config)
    config.max_position_embeddings = TEXT_LENGTH
    short = CLIPTextModel(config)
    state = {
        name: value[:TEXT_LENGTH] if name.endswith("position_embedding.weight") else value
        for name, value in text_encoder.state_dict().items()
        if not name.endswith("position_ids")
    }
    short.load_state_dict(state, strict=False)
    return short.eval()


def write_flow(folder: Path, painter: FlowPainter) -> None:
    """Write `transformer/`, `scheduler/` and the index; `copy_parts` has written the others."""
    trained = painter.transformer
    shape = {name: v for name, v in trained.config.items() if name != "_name_or_path"}
    transformer = FluxTransformer2DModel.from_config(shape)
    transformer.load_state_dict(trained.state_dict())
    transformer.half().save_pretrained(folder / "transformer")
    make_flow_scheduler().save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", _index())


def load_texts(folder: Path) -> tuple[CLIPTextModel, CLIPTokenizer]:
    """Text encoder, in single precision, and tokenizer of a model folder."""
    return load_text_encoder(folder), CLIPTokenizer.from_pretrained(folder / "tokenizer")


def load_flow(folder: Path) -> FlowPainter:
    """Transformer, text encoder and tokenizer of a model folder, in single precision."""
    transformer = FluxTransformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32
    )
    return FlowPainter(transformer.eval(), *load_texts(folder))


def _index() -> dict[str, object]:
    return {
        "_class_name": "FluxPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": [None, None],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": [None, None],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
