"""Peak memory of learning, beyond the loaded model: Null-text inversion beside its published loop.

    python dev.py bench memory [--pixels 512] [--write]

One step of the schedule with two inner steps on a random network in the shape of Stable Diffusion
1, a third as wide. The published loop is written down plainly: every activation is kept for the
backward pass, and attention is computed with explicit maps; weights are frozen and precision is
ours, which flatters it. Each is run in a process of its own, on the accelerator if there is one.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..hosts.diffusers.null_text import invert_null_text
from ..hosts.diffusers.prompt import Prompt
from ..hosts.diffusers.unet import DiffusersUNet
from ..pipelines.attention.tokens import PromptTokens
from ..pipelines.inversion.null_text import NullText
from .tables import RESULTS, describe_machine

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

ROOT = Path(__file__).resolve().parents[1]
PAGE = RESULTS / "memory.md"

#: Of the published loop's peak.
ALLOWED = 0.6

WIDTH, TEXT, CFG, INNER = 96, 192, 7.5, 2

#: A process that measures one of them, with this checkout as its package.
CHILD = (
    "import runpy, sys; sys.path.pop(0); runpy.run_path(sys.argv[1])['load_package'](); "
    "from palimpsest.benchmarks import memory; memory.spend(sys.argv[2], int(sys.argv[3]))"
)


def device() -> torch.device:
    """The accelerator, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """A latent, and the embeddings of a prompt and of the empty one."""
    generator = torch.Generator().manual_seed(1)
    side = pixels // 8
    shapes = (1, 4, side, side), (1, 77, TEXT), (1, 77, TEXT)
    latent, text, empty = (torch.randn(shape, generator=generator) for shape in shapes)
    return latent.to(device()), text.to(device()), empty.to(device())


def diffusers_unet() -> DiffusersUNet:
    """The network as diffusers has it."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    widths = (WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=widths, cross_attention_dim=TEXT, attention_head_dim=8
    )
    schedule = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    unet = unet.to(device()).eval().requires_grad_(False)
    return DiffusersUNet(unet, schedule.alphas_cumprod)


def published(pixels: int) -> Callable[[], object]:
    """The published loop."""
    from diffusers.models.attention_processor import AttnProcessor

    unet = diffusers_unet()
    unet.unet.set_attn_processor(AttnProcessor())
    latent, text, empty = inputs(pixels)
    alpha, alpha_low = unet.alphas_cumprod[[501, 1]].tolist()

    def noise(z: Tensor, embedding: Tensor) -> Tensor:
        return unet.unet(z, torch.tensor(501, device=z.device), embedding).sample

    def move(z: Tensor, predicted: Tensor, now: float, then: float) -> Tensor:
        clean = (z - (1 - now) ** 0.5 * predicted) / now**0.5
        return then**0.5 * clean + (1 - then) ** 0.5 * predicted

    def run() -> None:
        with torch.no_grad():
            z = move(latent, noise(latent, text), alpha_low, alpha)
            conditional = noise(z, text)
        learned = empty.clone().requires_grad_()
        optimizer = torch.optim.Adam([learned], lr=1e-2)
        for _ in range(INNER):
            unconditional = noise(z, learned)
            guided = unconditional + CFG * (conditional - unconditional)
            loss = torch.nn.functional.mse_loss(move(z, guided, alpha, alpha_low), latent)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            noise(torch.cat([z, z]), torch.cat([learned, text]))

    return run


def headless(pixels: int) -> Callable[[], object]:
    """Ours on a diffusers UNet."""
    unet = diffusers_unet()
    latent, *embeddings = inputs(pixels)
    nothing = PromptTokens((), (), 0)
    prompt, empty = (Prompt(embedding, nothing) for embedding in embeddings)
    sigmas, settings = unet.sigmas[[1, 501]], NullText(CFG, INNER, epsilon=0.0)
    return lambda: invert_null_text(unet, latent, prompt, empty, sigmas, settings)


def comfy_model() -> ModelPatcher:
    """A MODEL of the same shape."""
    from ..dev import use_comfy

    use_comfy()
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    torch.manual_seed(0)
    model = comfy.supported_models.SD15(COMFY_UNET).get_model({})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    target = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model.eval(), target, offload)


def in_comfy(pixels: int) -> Callable[[], object]:
    """Ours in ComfyUI."""
    patcher = comfy_model()
    import comfy.model_management

    from ..hosts.comfy.inversions.null_text import invert_null_text as invert
    from ..hosts.comfy.inversions.picture import Picture

    latent, *embeddings = inputs(pixels)
    prompt, empty = ([[embedding.cpu(), {}]] for embedding in embeddings)
    levels = torch.tensor([14.0, 0.0])
    settings = NullText(CFG, INNER, epsilon=0.0)
    comfy.model_management.load_models_gpu([patcher])

    def run() -> None:
        with torch.inference_mode():
            picture = Picture(patcher, prompt, empty, latent.cpu(), levels, 1.0, "bench memory")
            invert(picture, settings)

    return run


COMFY_UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": WIDTH,
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "use_temporal_attention": False,
    "context_dim": TEXT,
    "adm_in_channels": None,
    "num_heads": 8,
    "legacy": False,
    "dtype": torch.float32,
}

KINDS = {"published loop": published, "ours": headless, "ours, in ComfyUI": in_comfy}


def spend(kind: str, pixels: int) -> None:
    """Run one of them and print its peak in bytes beyond the loaded model."""
    run = KINDS[kind](pixels)
    if device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        sys.stdout.write(f"\npeak {torch.cuda.max_memory_allocated() - before}\n")
        return
    before = _resident()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of loading
    run()
    sys.stdout.write(f"\npeak {_peak() - before}\n")


def _resident() -> int:
    """Bytes of memory that this process has now."""
    import psutil

    return psutil.Process().memory_info().rss


def _peak() -> int:
    """The most bytes it has had."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(kind: str, pixels: int) -> int:
    """The peak of one of them, in a process of its own."""
    command = [sys.executable, "-c", CHILD, str(ROOT / "dev.py"), kind, str(pixels)]
    done = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, check=True)
    return int(done.stdout.rpartition("peak ")[2])


def main(arguments: list[str]) -> int:
    """Measure and print; with --write also into benchmarks/results. 1 where ours takes too much."""
    parser = argparse.ArgumentParser(prog="dev.py bench memory", description=__doc__)
    parser.add_argument("--pixels", type=int, default=512, help="side of the picture")
    parser.add_argument("--write", action="store_true", help="keep the table")
    options = parser.parse_args(arguments)
    peaks = {kind: measure(kind, options.pixels) for kind in KINDS}
    whole = peaks["published loop"]
    page = [
        "# Peak memory of Null-text inversion, beyond the loaded model",
        "",
        f"{date.today().isoformat()}, {describe_machine()}; SD 1's shape at 30 % of its width, "
        f"float32, {options.pixels} x {options.pixels} pixels, one step with {INNER} inner steps.",
        "`python dev.py bench memory --write` makes this page.",
        "",
        "| | MiB | of the published loop | to hold |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {peak / 2**20:.0f} | {peak / whole:.2f} | "
            f"{'' if kind == 'published loop' else ALLOWED} |"
            for kind, peak in peaks.items()
        ),
    ]
    sys.stdout.write("\n".join(page) + "\n")
    if options.write:
        PAGE.write_text("\n".join(page) + "\n", encoding="utf-8")
    return int(max(peak for kind, peak in peaks.items() if "ours" in kind) > ALLOWED * whole)
