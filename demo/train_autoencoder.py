"""Stage one: a tiny autoencoder, trained narrow and embedded exactly into the width hosts know.

ComfyUI and diffusers know the tiny architecture with 64 channels everywhere, which is slow to
train on a CPU. Every block is relu(conv(x) + x), so a channel whose weights are all zero stays
zero, and a block whose weights are all zero is a ReLU: a network with fewer channels and fewer
blocks fits into the known one, and both compute the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from .model_files import make_autoencoder
from .train_data import Pool, held_out_scenes, images_of
from .training import ThreadTuner, load_checkpoint, save_checkpoint

FULL_WIDTH = 64
LATENT_CHANNELS = 4

#: Channels, or a number of blocks, at 128, 64, 32 and 16 pixels.
Levels = tuple[int, int, int, int]
_FULL_BLOCKS: Levels = (1, 3, 3, 3)


@dataclass(frozen=True)
class AutoencoderPlan:
    """How the autoencoder is trained."""

    widths: Levels = (16, 32, 48, 64)
    encoder_blocks: Levels = (0, 1, 2, 3)
    decoder_blocks: Levels = (1, 2, 3, 3)
    steps: int = 5000
    decoder_steps: int = 3000
    batch: int = 8
    peak_rate: float = 2.5e-3
    latent_noise: float = 0.05
    save_seconds: float = 180.0


class Block(nn.Module):
    """relu(conv(x) + x), with the parameter names of AutoencoderTiny's block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class NarrowAutoencoder(nn.Module):
    """AutoencoderTiny with widths and depths of its own. Pictures are 0..1 on both sides."""

    def __init__(self, plan: AutoencoderPlan) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.Sequential(*_encoder_layers(plan))})
        self.decoder = nn.ModuleDict({"layers": nn.Sequential(*_decoder_layers(plan))})

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder["layers"](images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder["layers"](torch.tanh(latents / 3) * 3)


def _blocks(width: int, count: int, level: int) -> list[nn.Module]:
    """`count` real blocks, and in place of the others what a block of zero weights does."""
    spare = _FULL_BLOCKS[level] - count
    return [Block(width) for _ in range(count)] + [nn.ReLU() for _ in range(spare)]


def _encoder_layers(plan: AutoencoderPlan) -> list[nn.Module]:
    widths, blocks = plan.widths, plan.encoder_blocks
    layers = [nn.Conv2d(3, widths[0], 3, padding=1), *_blocks(widths[0], blocks[0], 0)]
    for level in (1, 2, 3):
        fine, coarse = widths[level - 1], widths[level]
        layers.append(nn.Conv2d(fine, coarse, 3, padding=1, stride=2, bias=False))
        layers += _blocks(coarse, blocks[level], level)
    return [*layers, nn.Conv2d(widths[-1], LATENT_CHANNELS, 3, padding=1)]


def _decoder_layers(plan: AutoencoderPlan) -> list[nn.Module]:
    widths, blocks = plan.widths, plan.decoder_blocks
    layers: list[nn.Module] = [nn.Conv2d(LATENT_CHANNELS, widths[-1], 3, padding=1), nn.ReLU()]
    for level in (3, 2, 1):
        coarse, fine = widths[level], widths[level - 1]
        layers += _blocks(coarse, blocks[level], level)
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(coarse, fine, 3, padding=1, bias=False)]
    layers += _blocks(widths[0], blocks[0], 0)
    return [*layers, nn.Conv2d(widths[0], 3, 3, padding=1)]


def widened(narrow: dict[str, Tensor], full: dict[str, Tensor]) -> dict[str, Tensor]:
    """Embed a narrow network's weights into a wider one's shapes; all new weights are zero."""
    wide = {name: torch.zeros_like(value) for name, value in full.items()}
    if narrow.keys() - wide.keys():
        raise ValueError(f"The wide network lacks {sorted(narrow.keys() - wide.keys())}.")
    for name, value in narrow.items():
        wide[name][tuple(slice(0, length) for length in value.shape)] = value
    return wide


def embedded(model: NarrowAutoencoder) -> AutoencoderTiny:
    """The same autoencoder in the full architecture."""
    full = make_autoencoder()
    full.load_state_dict(widened(model.state_dict(), full.state_dict()))
    return full.eval()


def extracted(full: AutoencoderTiny, plan: AutoencoderPlan) -> NarrowAutoencoder:
    """The narrow autoencoder that `embedded` made a full one of."""
    model = NarrowAutoencoder(plan)
    state = full.state_dict()
    model.load_state_dict(
        {
            name: state[name][tuple(slice(0, length) for length in value.shape)]
            for name, value in model.state_dict().items()
        }
    )
    return model.to(full.device).eval()


def encode_all(
    model: NarrowAutoencoder, pool: Pool, path: Path, report: Callable[[str], None]
) -> Tensor:
    """Latents of the whole pool, kept in the file `path`."""
    if path.exists():
        return torch.load(path, weights_only=True)
    device = next(model.parameters()).device
    parts = []
    for start in range(0, len(pool.captions), 64):
        index = torch.arange(start, min(start + 64, len(pool.captions)))
        images = pool.batch(index)[0].to(device, memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            parts.append(model.encode(images).float().cpu().contiguous())
        if start % 8192 == 0:
            report(f"latents {start}/{len(pool.captions)}")
    latents = torch.cat(parts)
    torch.save(latents, path)
    return latents


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..1, over all of them at once."""
    return -10 * math.log10(F.mse_loss(a.clamp(0, 1), b.clamp(0, 1)).item())


def reconstruct(model: NarrowAutoencoder, images: Tensor) -> Tensor:
    """Pictures through the latent space and back, in single precision."""
    with torch.no_grad():
        return torch.cat([model.decode(model.encode(part)) for part in images.split(32)])


def _pixel_loss(out: Tensor, images: Tensor, masks: Tensor) -> Tensor:
    """Squared and absolute error; colour differences and the object count more."""
    error = out.float() - images
    chroma = error - error.mean(1, keepdim=True)
    weight = (1 + masks) / (1 + masks.mean())
    return (weight * (error**2 + 2 * chroma**2 + 0.2 * error.abs())).mean()


def _latent_loss(latents: Tensor) -> Tensor:
    """How far latents are from mean 0 and variance 1, and beyond what the decoder can tell."""
    z = latents.float()
    spread = z.mean((0, 2, 3)).square().mean() + (z.var((0, 2, 3)) - 1).square().mean()
    return 2e-3 * spread + 1e-2 * F.relu(z.abs() - 2.2).square().mean()


def train_autoencoder(
    pool: Pool,
    plan: AutoencoderPlan,
    checkpoint: Path,
    device: torch.device,
    report: Callable[[str], None],
) -> NarrowAutoencoder:
    """Train both halves, from `checkpoint` or from nothing where it does not exist."""
    torch.manual_seed(0)
    model = NarrowAutoencoder(plan).to(device, memory_format=torch.channels_last)

    def loss_of(images: Tensor, masks: Tensor) -> Tensor:
        latents = model.encode(images)
        noise = plan.latent_noise * torch.randn_like(latents)
        return _pixel_loss(model.decode(latents + noise), images, masks) + _latent_loss(latents)

    run = _Run("autoencoder", model, model, plan.steps, plan.peak_rate, 0.08)
    _train(run, loss_of, pool, plan, checkpoint, report)
    return model


def refine_decoder(
    model: NarrowAutoencoder,
    pool: Pool,
    plan: AutoencoderPlan,
    checkpoint: Path,
    report: Callable[[str], None],
) -> None:
    """Train the decoder on, in place, while the encoder, and so every latent, stays as it is."""
    torch.manual_seed(1)
    model.to(memory_format=torch.channels_last).train()

    def loss_of(images: Tensor, masks: Tensor) -> Tensor:
        with torch.no_grad():
            latents = model.encode(images)
            latents = latents + plan.latent_noise * torch.randn_like(latents)
        return _pixel_loss(model.decode(latents), images, masks)

    run = _Run("decoder", model, model.decoder, plan.decoder_steps, 0.6 * plan.peak_rate, 0.03)
    _train(run, loss_of, pool, plan, checkpoint, report)


@dataclass(frozen=True)
class _Run:
    """One stretch of training: the whole model, the part that learns, steps and learning rate."""

    name: str
    model: NarrowAutoencoder
    learner: nn.Module
    steps: int
    rate: float
    rise: float


def _train(
    run: _Run,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    pool: Pool,
    plan: AutoencoderPlan,
    checkpoint: Path,
    report: Callable[[str], None],
) -> None:
    """Train the learner of a run with a learning rate that rises shortly and falls to nothing."""
    optimiser = torch.optim.AdamW(run.learner.parameters(), lr=run.rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, run.rate, total_steps=run.steps + 1, pct_start=run.rise, final_div_factor=1e3
    )
    parts = {"model": run.model, "optimiser": optimiser, "schedule": schedule}
    step = first = load_checkpoint(checkpoint, parts)
    device = next(run.model.parameters()).device
    test = images_of(held_out_scenes(64))[0].to(device)
    threads = ThreadTuner()
    started = saved = monotonic()
    while step < run.steps:
        generator = torch.Generator().manual_seed(step)
        index = torch.randint(len(pool.captions), (plan.batch,), generator=generator)
        images, masks = (
            part.to(device, memory_format=torch.channels_last) for part in pool.batch(index)
        )
        with torch.autocast(device.type, torch.bfloat16):
            loss = loss_of(images, masks)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(run.learner.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        step += 1
        threads.tick()
        if step % 200 == 0 or step == run.steps:
            quality = psnr(reconstruct(run.model, test), test)
            left = (monotonic() - started) / (step - first) * (run.steps - step) / 60
            report(f"{run.name} {step}/{run.steps}: {quality:.2f} dB, {left:.0f} min left")
        if monotonic() - saved > plan.save_seconds or step == run.steps:
            save_checkpoint(checkpoint, parts, step)
            saved = monotonic()
