"""How well an embedded model paints what its prompt says, and how fast it is.

python dev.py bench demo_model [--model unet|flow] [--count 200] [--weights DIR] [--publish]
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

from ..demo.flow import FlowPainter, sample_flow
from ..demo.flow_files import WEIGHTS_FLOW, load_flow
from ..demo.judge import agreement
from ..demo.model_files import WEIGHTS, Painter, load_autoencoder, load_painter
from ..demo.scenes import Scene, caption
from ..demo.train import save_grid
from ..demo.train_autoencoder import psnr
from ..demo.train_data import held_out_scenes, images_of
from ..demo.train_diffusion import sample
from .tables import RESULTS, describe_machine

STEPS = 30
CORES = 2

_README = Path(__file__).parent.parent / "demo" / "README.md"
#: Every kind of caption: what it is called.
_CAPTIONS = {
    "one": "one object",
    "placed": "one, placed",
    "pair": "two",
    "placed pair": "two, placed",
}
_READ_BACK = 0.99
_BATCH = 20
_ROW = 8


@dataclass(frozen=True, eq=False)
class Kind:
    """One of the embedded models.

    Attributes:
        title: What it is called.
        weights: Where it lies.
        load: Reads its painter.
        paint: Latents of texts, by `cfg`, `steps` and `seed`.
        cfg: Guidance that it is judged at.
        sampler: How it samples.
        file: What its results are called.
        samples: What its pictures are called beside demo/README.md.
        wanted: How often each attribute must be right, of one object and of two.
        place: How often a place must be.
    """

    title: str
    weights: Path
    load: Callable[[Path], Painter | FlowPainter]
    paint: Callable[..., Tensor]
    cfg: float
    sampler: str
    file: str
    samples: str
    wanted: tuple[float, float]
    place: float

    @property
    def marks(self) -> tuple[str, str]:
        """Between which its table stands in demo/README.md."""
        name = "results" if self.file == "demo_model" else f"results of {self.file}"
        return f"<!-- {name} -->", f"<!-- end of {name} -->"


MODELS = {
    "unet": Kind(
        "The embedded model",
        WEIGHTS,
        load_painter,
        sample,
        5.0,
        "DDIM",
        "demo_model",
        "samples.jpg",
        (0.95, 0.90),
        0.95,
    ),
    "flow": Kind(
        "The embedded flow model",
        WEIGHTS_FLOW,
        load_flow,
        sample_flow,
        4.0,
        "Euler",
        "demo_flow",
        "samples_flow.jpg",
        (0.90, 0.90),
        0.90,
    ),
}


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
    parser.add_argument("--model", choices=MODELS, default="unet", help="which of the two")
    parser.add_argument("--weights", type=Path, help="its own if not given")
    parser.add_argument("--publish", action="store_true", help="also write into demo/README.md")
    options = parser.parse_args(argv)
    model = MODELS[options.model]
    weights = options.weights or model.weights
    autoencoder, painter = load_autoencoder(weights), model.load(weights)
    quality, checks, samples = [], [], []
    for kind, name in _CAPTIONS.items():
        scenes = held_out_scenes(options.count, kind)
        paintings = _painted(model, painter, autoencoder, scenes)
        samples.append(paintings[:_ROW])
        quality += _accuracy(model, name, paintings, scenes)
        drawings, _ = images_of(scenes)
        again = _reconstructed(autoencoder, drawings)
        if kind == "one":
            checks.append(_decibels(psnr(again, drawings)))
        checks.append(_worst(name, again, scenes))
    quality += checks
    speed = _row_time(painter)
    table = _table(model, [*quality, speed], options.count)
    print(table)
    page = RESULTS / f"{model.file}.md"
    page.write_text(f"# {model.title}\n\n{table}", encoding="utf-8")
    save_grid(torch.cat(samples), page.with_suffix(".jpg"))
    if options.publish:
        _publish(model, table, torch.cat(samples))
    return 0 if all(figure.reached for figure in quality) else 1


def _reconstructed(autoencoder: AutoencoderTiny, images: Tensor) -> Tensor:
    """Pictures in 0..1 through the latent space and back."""
    with torch.no_grad():
        latents = [autoencoder.encode(2 * part - 1).latents for part in images.split(_BATCH)]
        parts = [autoencoder.decode(part).sample for part in latents]
    return torch.cat(parts).add(1).div(2).clamp(0, 1)


def _painted(
    model: Kind,
    painter: Painter | FlowPainter,
    autoencoder: AutoencoderTiny,
    scenes: list[Scene],
) -> Tensor:
    """One picture per scene's caption, each batch from its own seed."""
    pictures = []
    for start in range(0, len(scenes), _BATCH):
        texts = [caption(scene) for scene in scenes[start : start + _BATCH]]
        latents = model.paint(painter, texts, cfg=model.cfg, steps=STEPS, seed=start)
        with torch.no_grad():
            pictures.append(autoencoder.decode(latents).sample.add(1).div(2).clamp(0, 1))
    return torch.cat(pictures)


def _shares(images: Tensor, scenes: list[Scene]) -> dict[str, float]:
    """How often each attribute of the pictures is the one that was asked for, in 0..1."""
    read = [agreement(image.permute(1, 2, 0), s) for image, s in zip(images, scenes, strict=True)]
    return {name: sum(right[name] for right in read) / len(read) for name in read[0]}


def _accuracy(model: Kind, kind: str, images: Tensor, scenes: list[Scene]) -> list[Figure]:
    """A figure for each attribute of pictures that show one kind of caption."""
    figures, one = [], kind.startswith("one")
    for name, share in _shares(images, scenes).items():
        least = model.place if name == "place" else model.wanted[0 if one else 1]
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


def _row_time(painter: Painter | FlowPainter) -> Figure:
    """Milliseconds of one row at batch 2 in fp32 on two cores: the best of 20 calls."""
    threads = torch.get_num_threads()
    torch.set_num_threads(CORES)
    x, texts = torch.randn(2, 4, 16, 16), painter.embed(["", "a red heart on sand"])
    seconds, half = [], torch.full((2,), 0.5)
    with torch.no_grad():
        for _ in range(20):
            started = time.perf_counter()
            if isinstance(painter, FlowPainter):
                painter.velocity(x, half, texts)
            else:
                painter.unet(x, 500, texts)
            seconds.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    value = 1000 * min(seconds) / 2
    name = f"one row of the network, batch 2, fp32, {CORES} cores"
    return Figure(name, f"{value:.1f} ms", "<= 30 ms", value <= 30)


def _table(model: Kind, figures: list[Figure], count: int) -> str:
    lines = [
        f"{count} held-out captions of each kind, CFG {model.cfg:g}, {STEPS} steps of "
        f"{model.sampler}. {date.today().isoformat()}, {describe_machine()}.",
        "",
        "| figure | measured | wanted | reached |",
        "| --- | --- | --- | --- |",
    ]
    for f in figures:
        lines.append(f"| {f.name} | {f.value} | {f.wanted} | {'yes' if f.reached else '**no**'} |")
    return "\n".join(lines) + "\n"


def _publish(model: Kind, table: str, paintings: Tensor) -> None:
    """Put table and samples into demo/README.md, between the model's two marks."""
    text, (begin, end) = _README.read_text(encoding="utf-8"), model.marks
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    _README.write_text(f"{before}{begin}\n\n{table}\n{end}{after}", encoding="utf-8")
    save_grid(paintings, _README.parent / model.samples)
