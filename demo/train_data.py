"""The pool of rendered scenes that training draws from, kept on disk as memory maps."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .scenes import CANVAS, Scene, caption, held_out, render, training_content

#: Seeds of evaluation scenes start here: far above every seed of the training pool.
HELD_OUT_SEED = 1_000_000


@dataclass(frozen=True)
class Pool:
    """Rendered scenes: `images [N, 3, H, W]` and `masks [N, H, W]` as bytes, and the captions."""

    images: np.ndarray
    masks: np.ndarray
    captions: tuple[str, ...]

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` in 0..1 and masks `[B, 1, H, W]` of the scenes at `index`."""
        rows = index.numpy()
        images = torch.from_numpy(self.images[rows]).float().div_(255)
        masks = torch.from_numpy(self.masks[rows]).float().div_(255)
        return images, masks[:, None]


def training_scenes(count: int) -> list[Scene]:
    """The scenes of the training pool: seeds 0, 1, 2, ..."""
    contents = training_content()
    return [Scene.random(seed, contents) for seed in range(count)]


def held_out_scenes(count: int) -> list[Scene]:
    """One scene per held-out caption, in turn, with placements that training never saw."""
    contents = held_out()
    return [Scene.random(HELD_OUT_SEED + i, (contents[i % len(contents)],)) for i in range(count)]


def images_of(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Render scenes to images `[N, 3, H, W]` and masks `[N, 1, H, W]`, both in 0..1."""
    drawn = [render(scene) for scene in scenes]
    images = torch.stack([image for image, _ in drawn]).permute(0, 3, 1, 2).contiguous()
    return images, torch.stack([mask for _, mask in drawn])[:, None]


def load_pool(folder: Path, count: int, report: Callable[[str], None]) -> Pool:
    """Open the pool in `folder`; render it first where it is missing or of another size."""
    paths = folder / f"images_{count}.npy", folder / f"masks_{count}.npy"
    scenes = training_scenes(count)
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        report(f"rendering {count} scenes")
        _render_to(paths, scenes)
    images, masks = (np.load(path, mmap_mode="r") for path in paths)
    return Pool(images, masks, tuple(caption(scene) for scene in scenes))


def _render_to(paths: tuple[Path, Path], scenes: list[Scene]) -> None:
    """Render into files that get their final names only once they are whole."""
    drafts = [path.with_suffix(".part") for path in paths]
    shapes = (len(scenes), 3, CANVAS, CANVAS), (len(scenes), CANVAS, CANVAS)
    images, masks = (
        np.lib.format.open_memmap(draft, "w+", np.uint8, shape)
        for draft, shape in zip(drafts, shapes, strict=True)
    )
    with get_context("fork").Pool(os.cpu_count(), _one_thread) as workers:
        for i, (image, mask) in enumerate(workers.imap(_bytes_of, scenes, chunksize=64)):
            images[i], masks[i] = image, mask
        workers.close()  # leaving the block would otherwise end them by a signal
        workers.join()
    images.flush()
    masks.flush()
    for draft, path in zip(drafts, paths, strict=True):
        draft.rename(path)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _bytes_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    image, mask = render(scene)
    as_bytes = (image.permute(2, 0, 1) * 255).round().byte().numpy()
    return as_bytes, (mask * 255).round().byte().numpy()
