"""How well the embedded model paints what its prompt says, and how fast it is.

python dev.py bench demo_model [--count 200] [--weights DIR] [--publish]
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from ..demo.judge import judge
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
_ATTRIBUTES = ("color", "shape", "texture", "background")
_BEGIN, _END = "<!-- results -->", "<!-- end of results -->"
_BATCH = 20


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
    parser.add_argument("--count", type=int, default=200, help="how many held-out captions")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--publish", action="store_true", help="also write into demo/README.md")
    options = parser.parse_args(argv)
    autoencoder, painter = load_autoencoder(options.weights), load_painter(options.weights)
    scenes = held_out_scenes(options.count)

    drawings, _ = images_of(scenes)
    again = _through(drawings, lambda x: autoencoder.decode(autoencoder.encode(x).latents).sample)
    paintings = _painted(painter, autoencoder, scenes)
    quality = [
        *_accuracy("", paintings, scenes, 0.95),
        _decibels(psnr(again, drawings)),
        *_accuracy("judge's check: reconstructed drawings, ", again, scenes, 0.99),
    ]
    speed = _row_time(painter)
    table = _table([*quality, speed], options.count)
    print(table)
    (RESULTS / "demo_model.md").write_text(f"# The embedded model\n\n{table}", encoding="utf-8")
    save_grid(paintings[:40], RESULTS / "demo_model.jpg")
    if options.publish:
        _publish(table, paintings)
    return 0 if all(figure.reached for figure in quality) else 1


def _through(images: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
    """Pictures in 0..1 through a network that takes and gives -1..1."""
    with torch.no_grad():
        parts = [network(2 * part - 1) for part in images.split(_BATCH)]
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


def _accuracy(label: str, images: Tensor, scenes: list[Scene], wanted: float) -> list[Figure]:
    """How often each attribute of the pictures is the one that was asked for."""
    right = dict.fromkeys(_ATTRIBUTES, 0)
    for image, scene in zip(images, scenes, strict=True):
        for name, agrees in judge(image.permute(1, 2, 0)).agrees(scene).items():
            right[name] += agrees
    shares = {name: count / len(scenes) for name, count in right.items()}
    return [
        Figure(f"{label}{name} right", f"{share:.1%}", f">= {wanted:.0%}", share >= wanted)
        for name, share in shares.items()
    ]


def _decibels(value: float) -> Figure:
    return Figure("reconstruction, PSNR", f"{value:.2f} dB", ">= 30 dB", value >= 30)


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
        f"{count} held-out captions, CFG {CFG:g}, {STEPS} steps of DDIM. "
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
    save_grid(paintings[:24], _README.parent / "samples.jpg")
