"""Trains the demo model from nothing: `python dev.py train`.

The autoencoder comes first, to its full quality; then the latents of the whole pool are computed
once; then UNet and text encoder are trained together. Every stage saves what resuming needs.
With `--model flow` a transformer is trained instead, on the autoencoder and the texts of the UNet.
"""

import argparse
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import torch
from diffusers import AutoencoderTiny
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from .flow import FlowPainter, sample_flow
from .flow_files import WEIGHTS_FLOW, copy_parts, load_texts, write_flow
from .judge import agreement
from .layouts import KINDS
from .model_files import (
    WEIGHTS,
    Painter,
    load_autoencoder,
    load_painter,
    write_autoencoder,
    write_painter,
)
from .scenes import PLACES, Scene, caption, training_content
from .train_autoencoder import (
    AutoencoderPlan,
    embedded,
    encode_all,
    extracted,
    psnr,
    reconstruct,
    refine_decoder,
    train_autoencoder,
)
from .train_data import Pool, held_out_scenes, images_of, load_pool, training_scenes
from .train_diffusion import DiffusionPlan, make_scheduler, make_unet, sample, train_diffusion
from .train_flow import FlowPlan, new_transformer, train_flow
from .train_text import (
    extend_tokenizer,
    learn_to_read,
    make_text_encoder,
    with_more_tokens,
    write_tokenizer,
)
from .training import Plan

_GRID_ROW = 8
_ROOT = Path(__file__).parent.parent


def main(argv: list[str]) -> int:
    """Run the training; see `--help`."""
    options = _parse(argv)
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    torch.set_flush_denormal(True)  # vanishing gradients are slow numbers on a CPU
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not options.resume:
        for name in ("autoencoder.pt", "latents.pt", "decoder.pt", f"{options.model}.pt"):
            (work / name).unlink(missing_ok=True)
    pool = load_pool(work / "pool", options.scenes, _report)
    if options.model == "flow":
        _flow(options, pool, device)
        return 0
    autoencoder, latents = _autoencoder(options, pool, device)
    _diffusion(options, pool, autoencoder, latents, device)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py train", description=__doc__)
    parser.add_argument("--model", choices=("unet", "flow"), default="unet", help="what is trained")
    parser.add_argument("--resume", action="store_true", help="go on from the files in --work")
    parser.add_argument("--init", type=Path, help="start from the weights of a model folder")
    parser.add_argument("--out", type=Path, help="demo/weights or demo/weights_flow")
    parser.add_argument("--work", type=Path, help=".dev/train or .dev/train-flow")
    parser.add_argument("--scenes", type=int, default=32768, help="size of the pool")
    parser.add_argument("--autoencoder-steps", type=int, default=AutoencoderPlan.steps)
    parser.add_argument("--decoder-steps", type=int, default=AutoencoderPlan.decoder_steps)
    parser.add_argument("--unet-steps", type=int, default=DiffusionPlan.steps)
    parser.add_argument("--flow-steps", type=int, default=FlowPlan.steps)
    parser.add_argument("--rate", type=float, default=Plan.peak_rate)
    options = parser.parse_args(argv)
    flow = options.model == "flow"
    if flow and options.init:
        parser.error("--init is for the UNet; a flow model goes on with --resume.")
    options.out = options.out or (WEIGHTS_FLOW if flow else WEIGHTS)
    options.work = options.work or _ROOT / ".dev" / ("train-flow" if flow else "train")
    return options


def _report(line: str) -> None:
    print(line, flush=True)


def _autoencoder(
    options: argparse.Namespace, pool: Pool, device: torch.device
) -> tuple[AutoencoderTiny, Tensor]:
    """The trained autoencoder, written, and the latents of the pool."""
    plan = replace(
        AutoencoderPlan(), steps=options.autoencoder_steps, decoder_steps=options.decoder_steps
    )
    work: Path = options.work
    if options.init is None:
        narrow = train_autoencoder(pool, plan, work / "autoencoder.pt", device, _report)
    else:
        narrow = extracted(load_autoencoder(options.init).to(device), plan)
    latents = encode_all(narrow, pool, work / "latents.pt", _report)
    if options.init is None and plan.decoder_steps:
        refine_decoder(narrow, pool, plan, work / "decoder.pt", _report)
    write_autoencoder(options.out, embedded(narrow).cpu())
    images, _ = images_of(held_out_scenes(3 * _GRID_ROW))
    again = reconstruct(narrow, images.to(device)).cpu()
    _report(f"autoencoder: {psnr(again, images):.2f} dB on held-out scenes")
    save_grid(torch.cat([images[:8], again[:8]]), work / "reconstructions.png")
    return load_autoencoder(options.out).to(device), latents


def _diffusion(
    options: argparse.Namespace,
    pool: Pool,
    autoencoder: AutoencoderTiny,
    latents: Tensor,
    device: torch.device,
) -> None:
    """Train UNet and text encoder, and write them."""
    plan = replace(DiffusionPlan(), steps=options.unet_steps, peak_rate=options.rate)
    checkpoint: Path = options.work / "unet.pt"
    painter = _painter(options, plan, not checkpoint.exists(), device)
    texts = [caption(scene) for kind in KINDS for scene in held_out_scenes(_GRID_ROW, kind)]

    def show(step: int) -> None:
        painted = autoencoder.decode(sample(painter, texts)).sample.cpu()
        save_grid(painted.add(1).div(2), options.work / f"samples_{step:06d}.png")

    train_diffusion(latents, pool, painter, plan, checkpoint, _report, show)
    write_painter(options.out, painter, make_scheduler())
    show(plan.steps)


def _painter(
    options: argparse.Namespace, plan: DiffusionPlan, fresh: bool, device: torch.device
) -> Painter:
    """A painter to train: from `--init`, or new, with a text encoder that has learnt to read."""
    torch.manual_seed(1)
    old = None if options.init is None else load_painter(options.init)
    tokenizer = _tokenizer(options)
    if old is None:
        painter = Painter(make_unet(plan.widths), make_text_encoder(tokenizer), tokenizer)
    else:
        text_encoder = with_more_tokens(old.text_encoder, len(tokenizer))
        painter = Painter(old.unet, text_encoder, tokenizer)
    knows = old is not None and len(old.tokenizer) == len(tokenizer)
    painter = painter.to(device)
    if fresh and not knows:
        scenes = tuple(training_scenes(min(options.scenes, 8192)))
        captions = tuple(caption(content) for content in training_content())
        keep = captions if old else ()
        learn_to_read(painter.text_encoder, tokenizer, scenes, device, _report, keep)
    return painter


def _tokenizer(options: argparse.Namespace) -> CLIPTokenizer:
    """The tokenizer of `--init`, or a new one, written with all words of every kind of scene."""
    folder = options.out / "tokenizer"
    if options.init is None:
        write_tokenizer(folder, tuple(caption(content) for content in training_content()))
    elif options.init.resolve() != options.out.resolve():
        copytree(options.init / "tokenizer", folder, dirs_exist_ok=True)
    extend_tokenizer(folder, ("and", *PLACES))
    return CLIPTokenizer.from_pretrained(folder)


def _flow(options: argparse.Namespace, pool: Pool, device: torch.device) -> None:
    """Train the transformer on the words and the latents of the UNet's folder, and write all."""
    plan = replace(FlowPlan(), steps=options.flow_steps, peak_rate=options.rate)
    copy_parts(WEIGHTS, options.out)
    autoencoder = load_autoencoder(WEIGHTS).to(device)
    narrow = extracted(autoencoder, AutoencoderPlan())
    latents = encode_all(narrow, pool, options.work / "latents.pt", _report)
    painter = FlowPainter(new_transformer(plan), *load_texts(options.out)).to(device)
    scenes = [scene for kind in KINDS for scene in held_out_scenes(_GRID_ROW, kind)]
    texts = [caption(scene) for scene in scenes]

    def show(step: int) -> None:
        write_flow(options.out, painter)
        with torch.no_grad():
            images = autoencoder.decode(sample_flow(painter, texts)).sample.cpu()
        images = images.add(1).div(2).clamp(0, 1)
        save_grid(images, options.work / f"samples_{step:06d}.png")
        _report(f"flow {step}: of {len(texts)} right: {_rights(images, scenes)}")

    train_flow(latents, pool, painter, plan, options.work / "flow.pt", _report, show)
    show(plan.steps)


def _rights(images: Tensor, scenes: list[Scene]) -> str:
    """How often pictures `[N, 3, H, W]` show each attribute of their scenes, of how many."""
    right, all_of = Counter(), Counter()
    for image, scene in zip(images.permute(0, 2, 3, 1), scenes, strict=True):
        agrees = agreement(image, scene)
        all_of.update(agrees.keys())
        right.update(name for name, yes in agrees.items() if yes)
    return ", ".join(f"{name} {right[name]}/{count}" for name, count in all_of.items())


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write images `[N, 3, H, W]` in 0..1 as one picture, row by row."""
    rows = [torch.cat(list(row), 2) for row in images.clamp(0, 1).split(columns)]
    rows = [row for row in rows if row.shape == rows[0].shape]
    grid = (torch.cat(rows, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(grid.numpy()).save(path, quality=92)
