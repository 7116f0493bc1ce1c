"""Wall time of an edit over that of the same number of plain UNet calls, in one run.

    python dev.py bench speed [--steps 10] [--repeats 5] [--write]

A random network in the shape of Stable Diffusion 1 at a quarter of its width, 512 x 512 pixels,
on the accelerator if there is one. Plain calls and edits take turns; the table has the median of
the ratios and their spread. Peak memory is measured on an accelerator only.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor

from ..hosts.diffusers.prompt import Prompt
from ..hosts.diffusers.unet import DiffusersUNet
from ..pipelines.attention.prompt_to_prompt import rewrite_prompt
from ..pipelines.attention.tokens import PromptTokens, Word
from ..pipelines.editing import Edit
from ..pipelines.trajectory import Recipe, Trajectory
from .tables import RESULTS, describe_machine

PAGE = RESULTS / "speed.md"


def random_unet(device: torch.device) -> DiffusersUNet:
    """A UNet of Stable Diffusion 1's shape, a quarter as wide, with random weights."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(96, 160, 320, 320), cross_attention_dim=192
    )
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    unet = unet.to(device, dtype).eval().requires_grad_(False)
    return DiffusersUNet(unet, schedule.alphas_cumprod)


def make_edit(unet: DiffusersUNet, steps: int, device: torch.device) -> Edit:
    """Direct Inversion + Prompt-to-Prompt of a made-up trajectory."""
    words = tuple(Word(word, (i,)) for i, word in enumerate(("a", "red", "heart"), start=1))
    tokens = PromptTokens(tuple(range(77)), words, 5)
    # A new token: cross-attention then is a sum of two, the dearer case.
    target = PromptTokens((0, 1, 99, *range(3, 77)), words, 5)
    generator = torch.Generator().manual_seed(1)

    def prompt() -> Prompt:
        embedding = torch.randn(1, 77, 192, generator=generator)
        return Prompt(embedding.to(device, unet.unet.dtype), tokens)

    sigmas = unet.ddim_sigmas(steps)
    x0 = torch.randn(1, 4, 64, 64, generator=generator)
    noise = torch.randn(x0.shape, generator=generator)
    chain = torch.stack([x0 + float(sigma) * noise for sigma in sigmas]).to(device)
    trajectory = Trajectory(chain, sigmas, chain[0], Recipe("made up"))
    control = rewrite_prompt(tokens, target, mode="refine")
    return unet.edit(trajectory, prompt(), prompt(), prompt(), control=control)


def plain_calls(unet: DiffusersUNet, edit: Edit) -> Callable[[], None]:
    """The same UNet calls, batch by batch, with nothing around them."""
    network, device = unet.unet, edit.trajectory.latents.device

    def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        z = torch.randn(rows, 4, 64, 64).to(device, network.dtype)
        text = torch.randn(rows, 77, 192).to(device, network.dtype)
        return z, torch.tensor(500), text

    batches = [
        inputs(rows)
        for source in edit.source_rows
        for rows in ((1, 2) if source == "recorded" else (2,))
    ]

    @torch.no_grad()
    def run() -> None:
        for z, timestep, text in batches:
            network(z, timestep, text)

    return run


def timed(run: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds, and peak bytes beyond what was there before (0 without an accelerator)."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    run()
    if device.type != "cuda":
        return time.perf_counter() - start, 0.0
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before


def measure(steps: int, repeats: int) -> list[str]:
    """The rows of the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    unet = random_unet(device)
    edit = make_edit(unet, steps, device)
    plain = plain_calls(unet, edit)
    for warm in (plain, edit.run):
        warm()
    ratios, memory = [], []
    for _ in range(repeats):
        calls, edited = timed(plain, device), timed(edit.run, device)
        ratios.append(edited[0] / calls[0])
        memory.append(edited[1] / calls[1] if calls[1] else float("nan"))
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    lines = [f"| wall time | {statistics.median(ratios):.3f} | {spread} | 1.05 |"]
    if device.type == "cuda":
        lines.append(f"| peak memory without the weights | {max(memory):.3f} | | 1.10 |")
    return lines


def main(arguments: list[str]) -> int:
    """Measure and print; with --write also into benchmarks/results."""
    parser = argparse.ArgumentParser(prog="dev.py bench speed")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="keep the table")
    options = parser.parse_args(arguments)
    lines = [
        "# Direct Inversion + Prompt-to-Prompt over plain UNet calls",
        "",
        f"{date.today().isoformat()}, {describe_machine()}; {options.steps} steps, "
        f"{options.repeats} turns, a quarter-width SD 1 UNet at 512 x 512.",
        "",
        "| measure | median ratio | spread | to hold |",
        "|---|---|---|---|",
        *measure(options.steps, options.repeats),
    ]
    print("\n".join(lines))
    if options.write:
        PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0
