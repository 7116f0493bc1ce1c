"""How well the embedded model paints what its prompt says, and how fast it is.

python dev.py bench demo_model [--count 200] [--weights DIR] [--publish]
"""

import argparse
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ..demo.judge import agreement
from ..demo.model_files import WEIGHTS, Painter, load_autoencoder, load_painter
from ..demo.scenes import Scene, caption
from ..demo.train import save_grid
from ..demo.train_autoencoder import psnr
from ..demo.train_data import held_out_scenes, images_of
from ..demo.train_diffusion import sample
from .tables import RESULTS, describe_machine

CFG = 5.0
STEPS = 30
CORES = 2

_README = Path(__file__).parent.parent / "demo" / "README.md"
#: Every kind of caption: what it is called, and how often each of its attributes must be right.
_CAPTIONS = {
    "one": ("one object", 0.95),
    "placed": ("one, placed", 0.95),
    "pair": ("two", 0.90),
    "placed pair": ("two, placed", 0.90),
}
_PLACE = 0.95
_READ_BACK = 0.99
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
_BATCH = 20
_ROW = 8


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, the value, what it must reach, whether it does."""

    name: str
    value: str
    wanted: str
    reached: bool


def main(argv: list[str]) -> int:
    """Measure, print and write the table; 1 where a figure of quality is missed."""
    parser = argparse.ArgumentParser(prog="dev.py bench demo_model", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="held-out captions of each kind")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--publish", action="store_true", help="also write into demo/README.md")
    options = parser.parse_args(argv)
    autoencoder, painter = load_autoencoder(options.weights), load_painter(options.weights)
    quality, checks, samples = [], [], []
    for kind, (name, wanted) in _CAPTIONS.items():
        scenes = held_out_scenes(options.count, kind)
        paintings = _painted(painter, autoencoder, scenes)
        samples.append(paintings[:_ROW])
        quality += _accuracy(name, paintings, scenes, wanted)
        drawings, _ = images_of(scenes)
        again = _reconstructed(autoencoder, drawings)
        if kind == "one":
            checks.append(_decibels(psnr(again, drawings)))
        checks.append(_worst(name, again, scenes))
    quality += checks
    speed = _row_time(painter)
    table = _table([*quality, speed], options.count)
    print(table)
    (RESULTS / "demo_model.md").write_text(f"# The embedded model\n\n{table}", encoding="utf-8")
    save_grid(torch.cat(samples), RESULTS / "demo_model.jpg")
    if options.publish:
        _publish(table, torch.cat(samples))
    return 0 if all(figure.reached for figure in quality) else 1


def _reconstructed(autoencoder: AutoencoderTiny, images: Tensor) -> Tensor:
    """Pictures in 0..1 through the latent space and back."""
    with torch.no_grad():
        latents = [autoencoder.encode(2 * part - 1).latents for part in images.split(_BATCH)]
        parts = [autoencoder.decode(part).sample for part in latents]
    return torch.cat(parts).add(1).div(2).clamp(0, 1)


def _painted(painter: Painter, autoencoder: AutoencoderTiny, scenes: list[Scene]) -> Tensor:
    """One picture per scene's caption, each batch from its own seed."""
    pictures = []
    for start in range(0, len(scenes), _BATCH):
        texts = [caption(scene) for scene in scenes[start : start + _BATCH]]
        latents = sample(painter, texts, cfg=CFG, steps=STEPS, seed=start)
        with torch.no_grad():
            pictures.append(autoencoder.decode(latents).sample.add(1).div(2).clamp(0, 1))
    return torch.cat(pictures)


def _shares(images: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """How often each attribute of the pictures is the one that was asked for, in 0..1."""
    read = [agreement(image.permute(1, 2, 0), s) for image, s in zip(images, scenes, strict=True)]
    return {name: sum(right[name] for right in read) / len(read) for name in read[0]}


def _accuracy(kind: str, images: Tensor, scenes: list[Scene], wanted: float) -> list[Figure]:
    """A figure for each attribute of pictures that show one kind of caption."""
    figures = []
    for name, share in _shares(images, scenes).items():
        least = _PLACE if name == "place" else wanted
        label = f"{kind}: {name.replace('_', ' ')} right"
        figures.append(Figure(label, f"{share:.1%}", f">= {least:.0%}", share >= least))
    return figures


def _worst(kind: str, images: Tensor, scenes: list[Scene]) -> Figure:
    """Whether the judge reads back what was drawn: the attribute that it misses most."""
    name, share = min(_shares(images, scenes).items(), key=lambda entry: entry[1])
    label = f"judge's check, {kind}: reconstructed drawings, at worst ({name.replace('_', ' ')})"
    return Figure(label, f"{share:.1%}", f">= {_READ_BACK:.0%}", share >= _READ_BACK)


def _decibels(value: float) -> Figure:
    return Figure("one object: reconstruction, PSNR", f"{value:.2f} dB", ">= 30 dB", value >= 30)


def _row_time(painter: Painter) -> Figure:
    """Milliseconds of one UNet row at batch 2 in fp32 on two cores: the best of 20 calls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(CORES)
    x, context = torch.randn(2, 4, 16, 16), painter.embed(["", "a red heart on sand"]).detach()
    seconds = []
    with torch.no_grad():
        for _ in range(20):
            started = time.perf_counter()
            painter.unet(x, 500, context)
            seconds.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    value = 1000 * min(seconds) / 2
    name = f"one UNet row, batch 2, fp32, {CORES} cores"
    return Figure(name, f"{value:.1f} ms", "<= 30 ms", value <= 30)


def _table(figures: list[Figure], count: int) -> str:
    lines = [
        f"{count} held-out captions of each kind, CFG {CFG:g}, {STEPS} steps of DDIM. "
        f"{date.today().isoformat()}, {describe_machine()}.",
        "",
        "| figure | measured | wanted | reached |",
        "| --- | --- | --- | --- |",
    ]
    for f in figures:
        lines.append(f"| {f.name} | {f.value} | {f.wanted} | {'yes' if f.reached else '**no**'} |")
    return "\n".join(lines) + "\n"


def _publish(table: str, paintings: Tensor) -> None:
    """Put table and samples into demo/README.md, between its two marks."""
    text = _README.read_text(encoding="utf-8")
    before, rest = text.split(_BEGIN)
    after = rest.split(_END)[1]
    _README.write_text(f"{before}{_BEGIN}\n\n{table}\n{_END}{after}", encoding="utf-8")
    save_grid(paintings, _README.parent / "samples.jpg")
