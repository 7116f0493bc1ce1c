"""Stage two: the UNet, trained together with the text encoder on the pool's latents."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from .model_files import Painter, token_ids
from .train_attention import PlainAttention
from .train_data import Pool, rows_drawn
from .train_layout import LayoutHead
from .train_text import TEXT_WIDTH
from .training import Learning, Plan, train

NOISE_LEVELS = 1000
LATENT_SIZE = 16


@dataclass(frozen=True)
class DiffusionPlan(Plan):
    """How the UNet is trained."""

    widths: tuple[int, int] = (64, 128)
    steps: int = 7000


def make_scheduler() -> DDIMScheduler:
    """The noise schedule of Stable Diffusion 1."""
    return DDIMScheduler(
        num_train_timesteps=NOISE_LEVELS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )


def make_unet(widths: tuple[int, int]) -> UNet2DConditionModel:
    """A UNet of Stable Diffusion 1's kind: attention at 16 x 16 and at 8 x 8, four heads."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )


def draw_levels(count: int, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """Noise levels of one batch, evenly spread over a weight: the min-SNR-5 weight (at least 0.1).

    Drawing a level as often as its weight says, instead of weighting the loss, spends no work on
    levels that hardly count (Hang et al., arXiv 2303.09556). High levels are drawn oftener still:
    `level_weights` tells why.
    """
    ratio = alphas / (1 - alphas)
    weight = torch.where(ratio > 5, (5 / ratio).clamp_min(0.1), (5 / ratio) ** 0.25)
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    levels = torch.searchsorted(weight.cumsum(0) / weight.sum(), places.double())
    return levels.clamp(max=len(alphas) - 1)[torch.randperm(count, generator=generator)]


def level_weights(alphas: Tensor) -> Tensor:
    """How much the loss of every noise level counts: 1, and more where there is more noise.

    Where a picture is nearly all noise, the caption alone says which half an object lies in. That
    changes the noise that is to be told so little that unweighted it is not learnt for a long time.
    """
    return ((1 - alphas) / alphas).clamp_min(1).sqrt()


@torch.no_grad()
def sample(
    painter: Painter, texts: list[str], *, cfg: float = 5.0, steps: int = 30, seed: int = 0
) -> Tensor:
    """Latents `[len(texts), 4, 16, 16]` painted from noise by DDIM."""
    scheduler = make_scheduler()
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(texts), 4, LATENT_SIZE, LATENT_SIZE)
    x = torch.randn(shape, generator=generator).to(painter.unet.device)
    context = torch.cat([painter.embed([""]).expand(len(texts), -1, -1), painter.embed(texts)])
    for t in scheduler.timesteps:
        empty, full = painter.unet(torch.cat([x, x]), t, context).sample.chunk(2)
        x = scheduler.step(empty + cfg * (full - empty), t, x).prev_sample
    return x


def train_diffusion(
    latents: Tensor,
    pool: Pool,
    painter: Painter,
    plan: DiffusionPlan,
    checkpoint: Path,
    report: Callable[[str], None],
    show: Callable[[int], None],
) -> None:
    """Train `painter` in place, from `checkpoint` where it exists; it ends with averaged weights.

    `show` is called now and then, while the averaged weights are in place.
    """
    modules = nn.ModuleDict({"unet": painter.unet, "text": painter.text_encoder}).train()
    layout = unet_layout(painter.unet)
    painter.unet.set_attn_processor(PlainAttention())
    loss_of = _loss_function(latents, pool, painter, layout, plan)
    train(Learning("unet", modules, layout, loss_of), plan, checkpoint, report, show)
    layout.leave()
    modules.eval()


def unet_layout(unet: UNet2DConditionModel) -> LayoutHead:
    """A head that marks the objects from the UNet's inner features, at 8 x 8 and at 16 x 16."""
    head = LayoutHead((unet.mid_block, unet.up_blocks[0]), unet.config.block_out_channels[-1])
    return head.to(unet.device)


def _loss_function(
    latents: Tensor, pool: Pool, painter: Painter, layout: LayoutHead, plan: DiffusionPlan
) -> Callable[[int], Tensor]:
    """The loss of the batch of a step: everything random in it depends on the step alone."""
    draw = rows_drawn(pool, plan.batch)
    ids = token_ids(painter.tokenizer, [*pool.captions, ""])
    alphas = make_scheduler().alphas_cumprod.double()
    device = painter.unet.device

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 + step)
        picks = draw(generator)
        clean = latents[picks]
        noise = torch.randn(clean.shape, generator=generator)
        levels = draw_levels(plan.batch, alphas, generator)
        alpha = alphas[levels].float()[:, None, None, None]
        weights = level_weights(alpha).to(device)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        told = torch.rand(plan.batch, generator=generator) >= plan.empty_prompts
        said = torch.where(told, picks, len(ids) - 1)
        with torch.autocast(device.type, torch.bfloat16):
            context = painter.text_encoder(ids[said].to(device)).last_hidden_state
            out = painter.unet(noisy.to(device), levels.to(device), context).sample
        marked = layout.loss(pool.spots[picks].to(device), told.float().to(device))
        return (weights * (out.float() - noise.to(device)) ** 2).mean() + plan.layout * marked

    return loss_of
