"""Tiny random models in the shapes of SD 1.x, 2.x and XL, written as folders by diffusers itself.

Every shape has something the published models have not: other widths, heads, vocabularies and
special tokens. The weights are large enough for every attention edit to be visible.
"""

import json

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

#: Words of one token; any other word is spelled letter by letter.
WORDS = ("a", "an", "the", "on", "of", "in", "cat", "dog", "red", "blue", "mat", "sofa", "photo")

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def make_sd1(folder, vae=None):
    """SD 1.x: one quick_gelu encoder, the same number of heads everywhere, eps."""
    tokenizer = make_tokenizer(folder)
    pipeline = StableDiffusionPipeline(
        vae=vae or make_vae(scaling_factor=0.18215),
        text_encoder=make_encoder(tokenizer, hidden_size=32),
        tokenizer=tokenizer,
        unet=randomise(
            UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(32, 64),
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                layers_per_block=1,
                attention_head_dim=4,
                cross_attention_dim=32,
            )
        ),
        scheduler=DDIMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    write_vocabulary(folder / "tokenizer")  # both files, as the published folders have them
    return folder


def make_sd2(folder):
    """SD 2.x: one gelu encoder padded with 0, linear projections, heads of one width, v."""
    tokenizer = make_tokenizer(folder, pad_token="!")
    StableDiffusionPipeline(
        vae=make_vae(scaling_factor=0.18215),
        text_encoder=make_encoder(tokenizer, hidden_size=48, hidden_act="gelu"),
        tokenizer=tokenizer,
        unet=randomise(
            UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(64, 96),
                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
                layers_per_block=1,
                attention_head_dim=(2, 3),
                cross_attention_dim=48,
                use_linear_projection=True,
            )
        ),
        scheduler=DDIMScheduler(**SCHEDULE, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def make_sdxl(folder):
    """SDXL: two encoders, several transformer blocks, other heads at each level, sizes as input."""
    first, second = make_tokenizer(folder), make_tokenizer(folder, pad_token="!")
    StableDiffusionXLPipeline(
        vae=make_vae(scaling_factor=0.13025),
        text_encoder=make_encoder(first, hidden_size=32),
        text_encoder_2=make_encoder(second, hidden_size=48, hidden_act="gelu", projection_dim=40),
        tokenizer=first,
        tokenizer_2=second,
        unet=randomise(
            UNet2DConditionModel(
                sample_size=16,
                block_out_channels=(32, 64, 64),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                layers_per_block=2,
                transformer_layers_per_block=(1, 1, 2),
                attention_head_dim=(2, 2, 4),
                cross_attention_dim=80,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=40 + 6 * 8,
            )
        ),
        scheduler=DDIMScheduler(**SCHEDULE),
    ).save_pretrained(folder)
    return folder


def make_vae(scaling_factor):
    """An AutoencoderKL of four levels, 32 and 64 channels wide."""
    return randomise(
        AutoencoderKL(
            block_out_channels=(32, 32, 64, 64),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            scaling_factor=scaling_factor,
        )
    )


def make_tiny_vae():
    """An AutoencoderTiny, in half precision to keep the file small."""
    return randomise(AutoencoderTiny()).half()


def make_encoder(tokenizer, projection_dim=None, **config):
    """A CLIP text encoder for a tokenizer, with a projection if it is given a width."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=projection_dim or config["hidden_size"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **config,
    )
    make = CLIPTextModelWithProjection if projection_dim else CLIPTextModel
    return randomise(make(config).eval())


def make_tokenizer(folder, pad_token="<|endoftext|>"):
    """A byte-level BPE that knows WORDS as single tokens."""
    write_vocabulary(folder / "vocabulary")
    return CLIPTokenizer.from_pretrained(
        folder / "vocabulary", pad_token=pad_token, model_max_length=77
    )


def write_vocabulary(folder):
    """Write vocab.json and merges.txt: every byte alone and at a word's end, then WORDS."""
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for n in range(1, len(pieces)):
            merges.append(("".join(pieces[:n]), pieces[n]))
    merges = list(dict.fromkeys(merges))
    letters = byte_letters()
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    vocabulary += ["".join(pair) for pair in merges]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: n for n, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def byte_letters():
    """The visible letter that byte-level BPE writes for each byte; "!" is the first."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [*map(chr, visible), *(chr(256 + n) for n in range(len(hidden)))]


def randomise(module, seed=0):
    """Give a module weights under which attention and norms all matter.

    They are numbers of half precision: ComfyUI keeps text encoders so, and must lose nothing here.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 4:
            new = noise / parameter[0].numel() ** 0.5
        elif parameter.ndim == 2:
            new = 0.15 * noise
        elif name.endswith("weight"):
            new = 1 + 0.2 * noise
        else:
            new = 0.1 * noise
        parameter.data.copy_(new.half())
    return module
