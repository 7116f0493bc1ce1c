"""Peak memory of a controlled step over that of an ordinary guided call at the same size.

    python dev.py bench control_memory [--models sd1,sdxl] [--write]

Random networks with the block counts of Stable Diffusion 1 (512 x 512 pixels, 30 % of its width)
and of SDXL (1024 x 1024, 20 %). Measured is what the allocator held at most beyond weights and
inputs: in one guided call of two rows, and in the first two steps of an edit in which the control
reads most, its source row and its bank included. 1 where a control takes more than is allowed.
"""

import argparse
import gc
import sys
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor, nn

from ..hosts.diffusers.prompt import Prompt
from ..hosts.diffusers.unet import DiffusersUNet
from ..pipelines.attention.control import Control
from ..pipelines.attention.local_blend import LocalBlend, blend_columns
from ..pipelines.attention.masactrl import MasaCtrl
from ..pipelines.attention.one_row import over_one_row
from ..pipelines.attention.plug_and_play import PlugAndPlay
from ..pipelines.attention.prompt_to_prompt import rewrite_prompt
from ..pipelines.attention.stack import stacked
from ..pipelines.attention.tokens import PromptTokens, Word
from ..pipelines.editing import Editing
from ..pipelines.rows import Rows
from ..pipelines.trajectory import Recipe, Trajectory
from .tables import RESULTS, describe_machine

PAGE = RESULTS / "control_memory.md"

#: Of an ordinary guided call.
ALLOWED = 1.10

STEPS, TEXT = 10, 192


def sd1() -> nn.Module:
    """Stable Diffusion 1's blocks, at 30 % of its width."""
    from diffusers import UNet2DConditionModel

    widths = (96, 192, 384, 384)
    return UNet2DConditionModel(
        sample_size=64, block_out_channels=widths, cross_attention_dim=TEXT, attention_head_dim=8
    )


def sdxl() -> nn.Module:
    """SDXL's blocks, at 20 % of its width."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(64, 128, 256),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=TEXT,
        use_linear_projection=True,
        norm_num_groups=16,
    )


MODELS = {"sd1": sd1, "sdxl": sdxl}

#: The prompts of the edit: one word is new, so that cross-attention is a sum of two.
WORDS = tuple(Word(word, (i,)) for i, word in enumerate(("a", "red", "heart"), start=1))
SOURCE = PromptTokens(tuple(range(77)), WORDS, 5)
TARGET = PromptTokens((0, 1, 99, *range(3, 77)), WORDS, 5)


def controls() -> dict[str, tuple[Control | None, int]]:
    """Every control, and the step in which it is measured, counted from the noisiest level."""
    rewrite = rewrite_prompt(SOURCE, TARGET, mode="refine")
    marked = [blend_columns([p], ["heart"], [], role="prompt") for p in (SOURCE, TARGET)]
    blend = LocalBlend(*marked)
    return {
        "no control": (None, 0),
        "Prompt-to-Prompt, both windows open": (rewrite, 0),
        "Prompt-to-Prompt, the self window alone": (rewrite, 5),
        "Prompt-to-Prompt with LocalBlend, after its windows": (stacked([rewrite, blend]), 9),
        "MasaCtrl": (MasaCtrl(), 5),
        "MasaCtrl, source prompt empty as published": (over_one_row(MasaCtrl()), 5),
        "MasaCtrl, the same from the first layer": (over_one_row(MasaCtrl(layers=(0.0, 1.0))), 5),
        "Plug-and-Play, both windows open": (PlugAndPlay(), 0),
    }


def peak(work: Callable[[], object]) -> int:
    """The most bytes that the allocator held while it ran, beyond those before."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = seen.profiler.kineto_results.events()
    moved = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = most = 0
    for _, by in moved:
        held += by
        most = max(most, held)
    return most


@torch.no_grad()
def measure(name: str) -> dict[str, float]:
    """The peak of a step under every control over that of a guided call, on one model."""
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    network = MODELS[name]().to(device).eval().requires_grad_(False)
    unet, side = DiffusersUNet(network, schedule.alphas_cumprod), network.config.sample_size
    source, target, negative = (
        Prompt(torch.randn(1, 77, TEXT, device=device), tokens)
        for tokens in (SOURCE, TARGET, SOURCE)
    )
    sigmas = unet.ddim_sigmas(STEPS)
    x0, noise = torch.randn(2, 1, 4, side, side, device=device)
    chain = torch.stack([x0 + float(sigma) * noise for sigma in sigmas])
    trajectory = Trajectory(chain, sigmas, x0, Recipe("made up"))
    guided = unet.denoiser(target, negative, cfg=7.5)
    plain = peak(lambda: guided(chain[-1], sigmas[-1]))
    sys.stdout.write(f"{name}: a guided call {plain / 2**20:.0f} MiB\n")
    found = {}
    for label, (control, step) in controls().items():
        edit, x = unet.edit(trajectory, source, target, negative, control=control), chain[-1 - step]

        def work(edit: Editing = edit, step: int = step, x: Tensor = x) -> None:
            for _ in range(2):  # the first is the one in which room is found to be short
                edit.step(step, Rows(x, x))

        found[label] = peak(work) / plain
        sys.stdout.write(f"{name}: {label} {found[label]:.2f}\n")
        sys.stdout.flush()
    return found


def main(arguments: list[str]) -> int:
    """Measure and print; with --write also into benchmarks/results."""
    parser = argparse.ArgumentParser(prog="dev.py bench control_memory", description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS), help="which, by commas")
    parser.add_argument("--write", action="store_true", help="keep the table")
    options = parser.parse_args(arguments)
    found = {name: measure(name) for name in options.models.split(",")}
    page = [
        "# Peak memory of a controlled step, beyond the loaded model",
        "",
        f"{date.today().isoformat()}, {describe_machine()}; times that of an ordinary guided call "
        f"of the same size, bank included; to hold: {ALLOWED}. float32; SD 1's blocks at 30 % of "
        "its width and 512 x 512 pixels, SDXL's at 20 % and 1024 x 1024.",
        "`python dev.py bench control_memory --write` makes this page.",
        "",
        f"| | {' | '.join(found)} |",
        f"|---|{'---|' * len(found)}",
        *(
            f"| {label} | {' | '.join(f'{of[label]:.2f}' for of in found.values())} |"
            for label in controls()
        ),
    ]
    sys.stdout.write("\n".join(page) + "\n")
    if options.write:
        PAGE.write_text("\n".join(page) + "\n", encoding="utf-8")
    return int(max(ratio for of in found.values() for ratio in of.values()) > ALLOWED)
