"""Wall time of controlled edits: over plain calls of the network, and beside published controllers.

    python dev.py bench speed [--steps 10] [--repeats 3] [--pixels 512] [--controls NAME,...]
                              [--write]

A random network in the shape of Stable Diffusion 1 at 30 % of its width, on the accelerator if
there is one; at 512 x 512 pixels the maps of the published controllers take minutes a step on two
cores.
Ratios for every control, each of runs that took turns:

    our edit, over the same calls of the network with nothing around them, without ComfyUI and in it
    the same edit by a published controller (all rows, all attention maps), over ours
    our edit whose source always runs its whole network, over ours

The published controllers are `published_controls.py`; that they make the same latent is checked
first. A call of the source that is left early counts as a whole one among the plain ones.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date

import torch
from torch import Tensor, nn

from ..hosts.diffusers.attention import residual_blocks
from ..hosts.diffusers.prompt import Prompt
from ..hosts.diffusers.unet import DiffusersUNet
from ..pipelines.attention.control import Control
from ..pipelines.attention.local_blend import LocalBlend, blend_columns
from ..pipelines.attention.masactrl import MasaCtrl
from ..pipelines.attention.plug_and_play import PlugAndPlay
from ..pipelines.attention.prompt_to_prompt import rewrite_prompt
from ..pipelines.attention.stack import stacked
from ..pipelines.attention.tokens import PromptTokens, Word
from ..pipelines.correction import DIRECT_INVERSION
from ..pipelines.denoiser import RowCount
from ..pipelines.trajectory import Recipe, Trajectory
from .memory import TEXT, comfy_model, device, diffusers_unet
from .published_controls import (
    Controller,
    PublishedMasaCtrl,
    PublishedPlugAndPlay,
    PublishedPromptToPrompt,
    published_edit,
    residual_hook,
)
from .tables import RESULTS, describe_machine

PAGE = RESULTS / "speed.md"

#: Of the plain calls.
ALLOWED = 1.05

CFG = 7.5

#: What the latents of both implementations may differ by, relative to their size: float32 and the
#: chaos of random weights over ten steps.
SAME = 1e-3

#: How many turns what differs by a few hundredths takes, for one of what differs by a multiple.
OFTEN = 3

#: One word is new, so that cross-attention is a sum of two: the dearer case.
WORDS = tuple(Word(word, (i,)) for i, word in enumerate(("a", "red", "heart"), start=1))
SOURCE = PromptTokens(tuple(range(77)), WORDS, 5)
TARGET = PromptTokens((0, 1, 99, *range(3, 77)), WORDS, 5)

Run = Callable[[], object]


@dataclass(frozen=True)
class Contest:
    """A control, and the published controller beside it.

    Attributes:
        control: Ours.
        published: Made for a network and so many steps.
        own_negative: Whether the source's prompt is the negative one, as MasaCtrl is published.
    """

    control: Control
    published: Callable[[nn.Module, int], Controller]
    own_negative: bool = False


def contests() -> dict[str, Contest]:
    """All of them, for a network with the blocks of SD 1."""
    rewrite = rewrite_prompt(SOURCE, TARGET, mode="refine")
    columns = [blend_columns([p], ["heart"], [], role="prompt") for p in (SOURCE, TARGET)]
    words = torch.cat(columns)[..., 0]
    masactrl, structure = MasaCtrl(), PlugAndPlay()

    def first_step(part: float, steps: int) -> int:
        return next(step for step in range(steps + 1) if step / steps >= part)

    return {
        "Prompt-to-Prompt": Contest(rewrite, lambda *_: PublishedPromptToPrompt(rewrite)),
        "Prompt-to-Prompt + LocalBlend": Contest(
            stacked([rewrite, LocalBlend(*columns)]),
            lambda _, steps: PublishedPromptToPrompt(
                rewrite, words, 0.3, first_step(LocalBlend.start, steps)
            ),
        ),
        "MasaCtrl": Contest(
            masactrl,
            lambda _, steps: PublishedMasaCtrl(first_step(masactrl.steps[0], steps), 10),
            own_negative=True,
        ),
        "Plug-and-Play": Contest(
            structure,
            lambda network, steps: PublishedPlugAndPlay(
                8,
                first_step(structure.attention_window[1], steps),
                first_step(structure.feature_window[1], steps),
                residual_blocks(network)[int(22 * structure.block)],
            ),
        ),
    }


def embeddings(contest: Contest) -> tuple[Tensor, Tensor, Tensor]:
    """Of the source's, the target's and the negative prompt."""
    generator = torch.Generator().manual_seed(1)
    source, target, negative = torch.randn(3, 1, 77, TEXT, generator=generator).to(device())
    return (negative if contest.own_negative else source), target, negative


def made_up(sigmas: Tensor, side: int) -> Trajectory:
    """A trajectory at these levels, of a latent of so many cells a side."""
    x0, noise = torch.randn(2, 1, 4, side, side, generator=torch.Generator().manual_seed(2))
    chain = torch.stack([x0 + float(sigma) * noise for sigma in sigmas]).to(device())
    return Trajectory(chain, sigmas, chain[0], Recipe("made up"))


@contextmanager
def sizes_of(network: nn.Module) -> Iterator[list[int]]:
    """Rows of every call of a network meanwhile."""
    sizes: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    yield sizes
    hook.remove()


def seconds(run: Run) -> float:
    """Wall time of one run."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def ratio(over: Run, under: Run, repeats: int) -> list[float]:
    """Their times over one another, taken in turns; both have run before."""
    return [seconds(over) / seconds(under) for _ in range(repeats)]


def headless(
    unet: DiffusersUNet, contest: Contest, trajectory: Trajectory, *, leaves: bool = True
) -> tuple[Callable[[], Tensor], int]:
    """Our edit without ComfyUI, and its rows; `leaves` lets the source leave its network early."""
    source, target, negative = (
        Prompt(embedding, tokens)
        for embedding, tokens in zip(embeddings(contest), (SOURCE, TARGET, SOURCE), strict=True)
    )
    settings = {"cfg": CFG, "control": contest.control}
    rows = RowCount()
    unet.edit(trajectory, source, target, negative, rows=rows, **settings).run()

    def run() -> Tensor:
        whole = unet.edit(trajectory, source, target, negative, **settings)
        whole.bank.leaves = leaves
        return whole.run().latent

    return run, rows.rows


def plain_calls(network: nn.Module, sizes: list[int], side: int) -> Run:
    """Calls of a diffusers UNet of these sizes, with nothing around them."""
    text = torch.randn(1, 77, TEXT, device=device())
    z, t = torch.randn(1, 4, side, side, device=device()), torch.tensor(500)

    @torch.no_grad()
    def run() -> None:
        for rows in sizes:
            network(z.expand(rows, -1, -1, -1), t, text.expand(rows, -1, -1))

    return run


def published(
    unet: DiffusersUNet, contest: Contest, trajectory: Trajectory, timesteps: list[int]
) -> Callable[[], Tensor]:
    """The published controller's edit."""
    source, target, negative = embeddings(contest)

    def run() -> Tensor:
        controller = contest.published(unet.unet, trajectory.steps)
        if isinstance(controller, PublishedPlugAndPlay):
            undo, text = residual_hook(controller), [source, negative, target]
        else:
            undo, text = (lambda: None), [negative, negative, source, target]
        try:
            return published_edit(
                unet.unet, controller, trajectory, timesteps, torch.cat(text), CFG
            )
        finally:
            undo()

    return run


def in_comfy(contest: Contest, steps: int, side: int) -> tuple[Run, Run]:
    """Our edit in ComfyUI, and its calls with nothing around them."""
    patcher = comfy_model()

    from ..hosts.comfy.edits.bound import BoundControl
    from ..hosts.comfy.edits.edit import EditRequest, edit
    from ..hosts.comfy.schedules import schedule

    levels = schedule(patcher, "ddim_uniform", steps, 1.0).flip(0).double()
    prompts = [[[embedding.cpu(), {}]] for embedding in embeddings(contest)]
    control = BoundControl(contest.control)
    chain = made_up(levels, side).to(torch.device("cpu"))
    request = EditRequest(patcher, chain, *prompts, CFG, control, None, DIRECT_INVERSION)

    @torch.inference_mode()
    def run() -> None:
        edit(request)

    with sizes_of(patcher.model.diffusion_model) as sizes:
        run()
    text = torch.randn(1, 77, TEXT, device=device())
    z = torch.randn(1, 4, side, side, device=device())

    @torch.inference_mode()
    def plain() -> None:
        for rows in sizes:
            level, context = torch.full((rows,), 5.0, device=device()), text.expand(rows, -1, -1)
            patcher.model.apply_model(z.expand(rows, -1, -1, -1), level, c_crossattn=context)

    return run, plain


def measure(name: str, contest: Contest, steps: int, repeats: int, side: int) -> tuple[str, bool]:
    """The row of a control in the table, and whether it holds."""
    unet = diffusers_unet()
    timesteps = [1 + 1000 // steps * i for i in range(steps)]
    sigmas = unet.ddim_sigmas(steps)
    trajectory = made_up(sigmas, side)
    ours, rows = headless(unet, contest, trajectory)
    theirs = published(unet, contest, trajectory, timesteps)
    expected = theirs()
    apart = float((ours() - expected).norm() / expected.norm())
    if not apart < SAME:
        raise SystemExit(f"{name}: both edits differ by {apart:.2g}, which is above {SAME:g}.")
    with sizes_of(unet.unet) as sizes:
        ours()
    plain = plain_calls(unet.unet, sizes, side)
    plain()
    over = ratio(ours, plain, OFTEN * repeats)
    gain = ratio(theirs, ours, repeats)
    stayed = ratio(headless(unet, contest, trajectory, leaves=False)[0], ours, repeats)
    comfy_ours, comfy_plain = in_comfy(contest, steps, side)
    comfy_plain()
    comfy = ratio(comfy_ours, comfy_plain, OFTEN * repeats)
    shown = [
        f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})"
        for r in (over, comfy, gain, stayed)
    ]
    holds = max(statistics.median(over), statistics.median(comfy)) <= ALLOWED
    return f"| {name} | {rows} | {' | '.join(shown)} | {apart:.0e} |", holds


def main(arguments: list[str]) -> int:
    """Measure and print; with --write also into benchmarks/results. 1 where ours takes too long."""
    parser = argparse.ArgumentParser(prog="dev.py bench speed", description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="of the edit")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    parser.add_argument("--controls", default=",".join(contests()), help="which, by commas")
    parser.add_argument("--write", action="store_true", help="keep the table")
    options = parser.parse_args(arguments)
    lines = [
        "# Wall time of controlled edits",
        "",
        f"{date.today().isoformat()}, {describe_machine()}; {options.steps} steps, median of "
        f"{options.repeats} turns and their spread (over plain calls {OFTEN * options.repeats}), "
        f"float32, a random network of SD 1's shape at 30 % of its width, {options.pixels} x "
        f"{options.pixels} pixels. To hold: {ALLOWED} over plain calls.",
        f"`python dev.py bench speed {' '.join(arguments)}` makes this page.",
        "",
        "| control | rows | over plain calls | over plain calls, in ComfyUI | published controller "
        "over ours | a source that runs to its end over one that leaves | latents differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    every, held = contests(), True
    for name in options.controls.split(","):
        line, holds = measure(
            name, every[name], options.steps, options.repeats, options.pixels // 8
        )
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        lines.append(line)
        held &= holds
    if options.write:
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if held else 1
