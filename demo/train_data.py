"""The pool of rendered scenes that training draws from, kept on disk as memory maps."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .layouts import scene_of
from .scenes import Scene, caption, held_out, masks, render, training_content
from .things import CANVAS
from .train_layout import spots_of

#: Seeds of evaluation scenes start here: far above every seed of the training pool.
HELD_OUT_SEED = 1_000_000

#: The kinds of `layouts.KINDS` in training: a batch of 16 holds each as often as it stands here,
#: and the pool as well. The rarest words and the hardest binding come oftenest.
MIX = ("one",) * 4 + ("placed",) * 3 + ("pair",) * 4 + ("placed pair",) * 5


@dataclass(frozen=True)
class Pool:
    """Rendered scenes: `images [N, 3, H, W]` and `masks [N, H, W]` of all objects as bytes.

    `captions`, `kinds` (of `layouts.KINDS`) and `spots` (of `spots_of`) are theirs.
    """

    images: np.ndarray
    masks: np.ndarray
    captions: tuple[str, ...]
    kinds: tuple[str, ...]
    spots: Tensor

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` in 0..1 and masks `[B, 1, H, W]` of the scenes at `index`."""
        rows = index.numpy()
        images = torch.from_numpy(self.images[rows]).float().div_(255)
        masks = torch.from_numpy(self.masks[rows]).float().div_(255)
        return images, masks[:, None]


def training_scenes(count: int) -> list[Scene]:
    """The scenes of the training pool: seeds 0, 1, 2, ..., their kinds in the order of `MIX`."""
    contents = training_content()
    return [scene_of(MIX[seed % len(MIX)], seed, contents) for seed in range(count)]


def held_out_scenes(count: int, kind: str = "one") -> list[Scene]:
    """Scenes of a kind whose captions and placements training never saw.

    Those of one object show the held-out contents in turn; those of two are drawn from them.
    """
    contents = held_out()
    alone = kind in ("one", "placed")
    return [
        scene_of(kind, HELD_OUT_SEED + i, (contents[i % len(contents)],) if alone else contents)
        for i in range(count)
    ]


def images_of(scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    """Render scenes to images `[N, 3, H, W]` and masks `[N, 1, H, W]`, both in 0..1."""
    images = torch.stack([render(scene)[0] for scene in scenes]).permute(0, 3, 1, 2).contiguous()
    return images, torch.stack([masks(scene).amax(0) for scene in scenes])[:, None]


def rows_drawn(pool: Pool, batch: int) -> Callable[[torch.Generator], Tensor]:
    """Draws the rows `[batch]` of a batch: a caption of a slot's kind, and a scene of it."""
    rows = {kind: _rows_of(pool, kind) for kind in set(MIX)}
    slots = [MIX[i % len(MIX)] for i in range(batch)]

    def one_of(choices: Sequence, generator: torch.Generator) -> Tensor:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def draw(generator: torch.Generator) -> Tensor:
        return torch.stack([one_of(one_of(rows[kind], generator), generator) for kind in slots])

    return draw


def _rows_of(pool: Pool, kind: str) -> list[Tensor]:
    """For each different caption of a kind the rows of the pool that show it."""
    rows: dict[str, list[int]] = {}
    for i, text in enumerate(pool.captions):
        if pool.kinds[i] == kind:
            rows.setdefault(text, []).append(i)
    return [torch.tensor(found) for found in rows.values()]


def load_pool(folder: Path, count: int, report: Callable[[str], None]) -> Pool:
    """Open the pool in `folder`; render it first where it is missing or of another size."""
    paths = folder / f"images_{count}.npy", folder / f"masks_{count}.npy"
    scenes = training_scenes(count)
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        report(f"rendering {count} scenes")
        _render_to(paths, scenes)
    images, covered = (np.load(path, mmap_mode="r") for path in paths)
    kinds = tuple(MIX[i % len(MIX)] for i in range(count))
    captions = tuple(caption(scene) for scene in scenes)
    return Pool(images, covered, captions, kinds, spots_of(scenes))


def _render_to(paths: tuple[Path, Path], scenes: list[Scene]) -> None:
    """Render into files that get their final names only once they are whole."""
    drafts = [path.with_suffix(".part") for path in paths]
    shapes = (len(scenes), 3, CANVAS, CANVAS), (len(scenes), CANVAS, CANVAS)
    images, covered = (
        np.lib.format.open_memmap(draft, "w+", np.uint8, shape)
        for draft, shape in zip(drafts, shapes, strict=True)
    )
    with get_context("fork").Pool(os.cpu_count(), _one_thread) as workers:
        for i, (image, mask) in enumerate(workers.imap(_bytes_of, scenes, chunksize=64)):
            images[i], covered[i] = image, mask
        workers.close()  # leaving the block would otherwise end them by a signal
        workers.join()
    images.flush()
    covered.flush()
    for draft, path in zip(drafts, paths, strict=True):
        draft.rename(path)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _bytes_of(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    as_bytes = (render(scene)[0].permute(2, 0, 1) * 255).round().byte().numpy()
    return as_bytes, (masks(scene).amax(0) * 255).round().byte().numpy()
