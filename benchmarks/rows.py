"""UNet rows per edit of 50 steps: the published code, what we allow ourselves, what we spend.

    python dev.py bench rows [--write]

A row is a batch element that went through the UNet. They are counted, not computed: every edit is
run, on the small model of the tests. With --write the table goes to benchmarks/results/rows.md.
"""

import argparse
import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..hosts.diffusers.edict import edict_sigmas, invert_edict
from ..hosts.diffusers.noise_space import invert_noise
from ..hosts.diffusers.null_text import invert_null_text
from ..hosts.diffusers.sde import Drags, sde_drag
from ..hosts.diffusers.style_diffusion import invert_style_diffusion
from ..pipelines.attention.control import Control
from ..pipelines.attention.features import FeatureRecorder
from ..pipelines.attention.local_blend import LocalBlend, blend_columns
from ..pipelines.attention.masactrl import MasaCtrl
from ..pipelines.attention.pix2pix_zero import Pix2PixZero
from ..pipelines.attention.plug_and_play import PlugAndPlay
from ..pipelines.attention.prompt_to_prompt import rewrite_prompt
from ..pipelines.attention.stack import stacked
from ..pipelines.copy_paste import Brush
from ..pipelines.correction import DIRECT_INVERSION, UNCORRECTED, Correction
from ..pipelines.denoiser import RowCount
from ..pipelines.inversion.negative_prompt import negative_prompt
from ..pipelines.inversion.noise_space import EDIT_FRIENDLY
from ..pipelines.inversion.null_text import NullText
from ..pipelines.inversion.style_diffusion import Fitting
from ..pipelines.trajectory import Trajectory
from .parity.edit_friendly import Windows
from .parity.golden import Folder, open_folder
from .tables import RESULTS, describe_machine

ROOT = Path(__file__).resolve().parents[1]
PAGE = RESULTS / "rows.md"
DATA = ROOT / "tests" / "data"

STEPS = 50
SOURCE, TARGET = "a red circle on a green field", "a blue circle on a green field"
SECOND = "a red circle on a green field with yellow flowers"


@dataclass(frozen=True, eq=False)
class Inverted:
    """An inverted picture, the model it was inverted with, and the rows that it cost."""

    folder: Folder
    trajectory: Trajectory
    rows: int


def invert() -> Inverted:
    """Invert the picture of the tests."""
    folder = open_folder(DATA / "quick", DATA / "model")
    unet, rows = folder.unet, RowCount()
    x0 = folder.case("ddim_inversion").tensors["x0"][..., :8, :8]  # no row depends on the size
    trajectory = unet.invert(x0, folder.prompt(SOURCE), unet.ddim_sigmas(STEPS), rows=rows)
    return Inverted(folder, trajectory, rows.rows)


def edit(
    picture: Inverted, correction: Correction, *, target: str = TARGET, keep_source: bool = False
) -> int:
    """Rows of one edit under Prompt-to-Prompt with the published windows."""
    source, rewritten, empty = map(picture.folder.prompt, (SOURCE, target, ""))
    rows = RowCount()
    picture.folder.unet.edit(
        picture.trajectory,
        source,
        rewritten,
        empty,
        control=rewrite_prompt(source.tokens, rewritten.tokens),
        correction=correction,
        keep_source=keep_source,
        rows=rows,
    ).run()
    return rows.rows


def whole(picture: Inverted, correction: Correction, *, keep_source: bool = False) -> int:
    """Rows of an inversion and its first edit."""
    return picture.rows + edit(picture, correction, keep_source=keep_source)


def kept_features(picture: Inverted) -> int:
    """Rows of an inversion that keeps what the control reads, and of its first edit."""
    unet, rows = picture.folder.unet, RowCount()
    source, target = map(picture.folder.prompt, (SOURCE, TARGET))
    sigmas, control = picture.trajectory.sigmas, rewrite_prompt(source.tokens, target.tokens)
    recorder = FeatureRecorder(control, sigmas, 2**30, Shelf())
    x0 = picture.trajectory.origin
    trajectory = unet.invert(x0, source, sigmas, convention="current", recorder=recorder, rows=rows)
    return whole(replace(picture, trajectory=trajectory, rows=rows.rows), DIRECT_INVERSION)


class Shelf(dict):
    """Features in a dictionary."""

    write, read = dict.__setitem__, dict.__getitem__


def negative(picture: Inverted) -> int:
    """Rows of Negative-prompt inversion and its first edit, as published: the source drifts."""
    prompt = picture.folder.prompt(SOURCE)
    trajectory = negative_prompt(picture.trajectory, prompt.embedding)
    return whole(replace(picture, trajectory=trajectory), UNCORRECTED)


def null_text(picture: Inverted, *, inner_steps: int) -> int:
    """Rows of Null-text inversion, its inner steps among them, and its first edit."""
    unet, rows = picture.folder.unet, RowCount()
    prompt, empty = map(picture.folder.prompt, (SOURCE, ""))
    x0, sigmas = picture.trajectory.origin, picture.trajectory.sigmas
    settings = NullText(inner_steps=inner_steps, epsilon=0.0)
    trajectory, _ = invert_null_text(unet, x0, prompt, empty, sigmas, settings, rows=rows)
    return whole(replace(picture, trajectory=trajectory, rows=rows.rows), DIRECT_INVERSION)


def under(picture: Inverted, *, control: Control, source: str = "", negative: str = "") -> int:
    """Rows of an inversion and its first edit under a control.

    Args:
        picture: Inverted.
        control: The control.
        source: The prompt of the source row; published is mostly the empty one.
        negative: The other end of the guidance.
    """
    source, target, below = map(picture.folder.prompt, (source, TARGET, negative))
    rows = RowCount()
    picture.folder.unet.edit(
        picture.trajectory, source, target, below, control=control, rows=rows
    ).run()
    return picture.rows + rows.rows


def local_blend(picture: Inverted) -> int:
    """Rows of an inversion and its first edit under Prompt-to-Prompt and LocalBlend."""
    source, target, empty = map(picture.folder.prompt, (SOURCE, TARGET, ""))
    tokens, words = (source.tokens, target.tokens), (["circle"], [])
    columns = [blend_columns([prompt], *words, role="prompt") for prompt in tokens]
    control, rows = stacked([rewrite_prompt(*tokens), LocalBlend(*columns)]), RowCount()
    picture.folder.unet.edit(
        picture.trajectory, source, target, empty, control=control, rows=rows
    ).run()
    return picture.rows + rows.rows


def style_diffusion(picture: Inverted, *, rounds: int) -> int:
    """Rows of StyleDiffusion, its rounds of learning, and its first edit."""
    unet, rows = picture.folder.unet, RowCount()
    prompt, empty = map(picture.folder.prompt, (SOURCE, ""))
    x0, sigmas = picture.trajectory.origin, picture.trajectory.sigmas
    fitting = Fitting(rounds, early_stop=0.0)
    trajectory, _ = invert_style_diffusion(unet, x0, prompt, empty, sigmas, fitting, rows=rows)
    return whole(replace(picture, trajectory=trajectory, rows=rows.rows), DIRECT_INVERSION)


def edit_friendly(picture: Inverted, *, skip: int) -> int:
    """Rows of Edit-Friendly inversion at guidance 1 and its first edit, windows as published."""
    unet, rows = picture.folder.unet, RowCount()
    source, target, empty = map(picture.folder.prompt, (SOURCE, TARGET, ""))
    sigmas = picture.trajectory.sigmas[: STEPS - skip + 1]
    x0, windows = picture.trajectory.origin, Windows(STEPS, STEPS - skip)
    trajectory = invert_noise(unet, EDIT_FRIENDLY, x0, source, sigmas, rows=rows)
    control = rewrite_prompt(
        source.tokens,
        target.tokens,
        cross_window=windows.cross(0.4),
        self_window=windows.own(0.6),
    )
    unet.edit(trajectory, source, target, empty, control=control, rows=rows).run()
    return rows.rows


def edict(picture: Inverted, *, published_grid: bool) -> int:
    """Rows of EDICT, 40 steps each way, on the published grid or on another one."""
    unet, rows = picture.folder.unet, RowCount()
    source, target, empty = map(picture.folder.prompt, (SOURCE, TARGET, ""))
    sigmas = edict_sigmas(unet, STEPS) if published_grid else picture.trajectory.sigmas[:41]
    trajectory = invert_edict(unet, picture.trajectory.origin, source, empty, sigmas, rows=rows)
    unet.edit(trajectory, source, target, empty, cfg=3.0, rows=rows).run()
    return rows.rows


def drag_step(picture: Inverted, *, cfg: float) -> int:
    """Rows of one step of SDE-Drag: n = 200, t0 = 0.6."""
    unet, rows = picture.folder.unet, RowCount()
    prompt, empty = map(picture.folder.prompt, (SOURCE, ""))
    sigmas = unet.ddim_sigmas(200)[:121]
    drags = Drags([((4, 4), (6, 4))], Brush(radius=2))
    sde_drag(unet, picture.trajectory.origin, prompt, empty, sigmas, drags, cfg=cfg, rows=rows)
    return rows.rows


@dataclass(frozen=True)
class Entry:
    """One line of the table: an edit, its published and allowed rows, and how to count ours."""

    name: str
    published: int
    allowed: int
    count: Callable[[Inverted], int]


#: Of design.md, section 6: what is built so far.
ENTRIES = (
    Entry(
        "Direct Inversion + Prompt-to-Prompt",
        650,
        180,
        partial(whole, correction=DIRECT_INVERSION),
    ),
    Entry("Direct Inversion + Prompt-to-Prompt, source features kept", 650, 151, kept_features),
    Entry("DDIM + Prompt-to-Prompt", 450, 210, partial(whole, correction=UNCORRECTED)),
    Entry(
        "DDIM + Prompt-to-Prompt, with its reconstruction",
        450,
        250,
        partial(whole, correction=UNCORRECTED, keep_source=True),
    ),
    Entry("Negative-prompt + Prompt-to-Prompt", 350, 180, negative),
    # Published: 500 and a row for each inner step; ours: 280 and the same. None stops early.
    Entry(
        "Null-text (50 inner steps) + Prompt-to-Prompt",
        550,
        330,
        partial(null_text, inner_steps=1),
    ),
    # Published: 600 and a row for each round; ours: 280 and the same. Learning is not cut short.
    Entry(
        "StyleDiffusion (50 rounds) + Prompt-to-Prompt",
        650,
        330,
        partial(style_diffusion, rounds=STEPS),
    ),
    Entry(
        "Edit-Friendly + Prompt-to-Prompt (skip 12)",
        328,
        144,
        partial(edit_friendly, skip=12),
    ),
    # Published: half of its rows are those of a picture that is only shown.
    Entry("EDICT (40 steps)", 720, 312, partial(edict, published_grid=True)),
    Entry("EDICT (40 steps), on another grid", 720, 320, partial(edict, published_grid=False)),
    Entry(
        "a second edit of the same trajectory",
        650,
        130,
        partial(edit, correction=DIRECT_INVERSION, target=SECOND),
    ),
    Entry("Direct Inversion + Prompt-to-Prompt with LocalBlend", 650, 200, local_blend),
    Entry("Direct Inversion + MasaCtrl", 550, 196, partial(under, control=MasaCtrl())),
    Entry(
        "Direct Inversion + MasaCtrl, the source under its own prompt",
        550,
        242,
        partial(under, control=MasaCtrl(), source=SOURCE),
    ),
    Entry("Direct Inversion + Plug-and-Play", 250, 190, partial(under, control=PlugAndPlay())),
    # Forward; 100 rows go backwards besides, there and here.
    Entry(
        "Direct Inversion + pix2pix-zero",
        350,
        300,
        partial(under, control=Pix2PixZero(), source=SOURCE, negative=SOURCE),
    ),
    Entry(
        "Direct Inversion + pix2pix-zero, another negative prompt",
        350,
        350,
        partial(under, control=Pix2PixZero(), source=SOURCE),
    ),
    # The design allows 480; at the lowest stage guidance is 1 and its unconditional row not run.
    Entry("SDE-Drag, one drag step (n 200, t0 0.6)", 480, 479, partial(drag_step, cfg=3.0)),
    Entry("SDE-Drag, one drag step, at guidance 1", 480, 240, partial(drag_step, cfg=1.0)),
)


def main(arguments: list[str]) -> int:
    """Count, and print the table; 1 where an edit costs more than is allowed."""
    parser = argparse.ArgumentParser(prog="dev.py bench rows", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/rows.md")
    options = parser.parse_args(arguments)
    picture = invert()
    print(f"{'edit, ' + str(STEPS) + ' steps':60} {'published':>9} {'allowed':>8} {'ours':>6}")
    counted = []
    for entry in ENTRIES:
        ours = entry.count(picture)
        counted.append((entry, ours))
        excess = "  too many" if ours > entry.allowed else ""
        print(f"{entry.name:60} {entry.published:9} {entry.allowed:8} {ours:6}{excess}", flush=True)
    if options.write:
        PAGE.write_text(_page(counted), encoding="utf-8")
    return int(any(ours > entry.allowed for entry, ours in counted))


def _page(counted: list[tuple[Entry, int]]) -> str:
    """The table as Markdown, with the day and the machine."""
    lines = [
        "# UNet rows per edit",
        "",
        f"{STEPS} steps, one picture, guidance 7.5, cross window 0.4, self window 0.6, unless the",
        "line says otherwise.",
        "A row is a batch element that went through the UNet.",
        "`python dev.py bench rows --write` makes this page.",
        "",
        "| edit | published | allowed | ours |",
        "|---|---|---|---|",
        *(f"| {e.name} | {e.published} | {e.allowed} | {ours} |" for e, ours in counted),
        "",
        f"Counted on {datetime.date.today():%d %B %Y}: {describe_machine()}.",
    ]
    return "\n".join(lines) + "\n"
