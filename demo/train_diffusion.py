"""Stage two: the UNet, trained together with the text encoder on the pool's latents."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from .model_files import Painter, token_ids
from .train_data import MIX, Pool
from .train_layout import LayoutHead
from .train_text import TEXT_WIDTH
from .training import ThreadTuner, load_checkpoint, save_checkpoint

NOISE_LEVELS = 1000
LATENT_SIZE = 16


@dataclass(frozen=True)
class DiffusionPlan:
    """How the UNet is trained. A batch holds the kinds of scenes as `train_data.MIX` says."""

    widths: tuple[int, int] = (64, 128)
    steps: int = 7000
    batch: int = 32
    peak_rate: float = 1e-3
    empty_prompts: float = 0.1
    layout: float = 0.1
    warm_up: int = 200
    cool_down: float = 0.35
    decay: float = 0.999
    save_seconds: float = 180.0
    grid_steps: int = 1000


class PlainAttention:
    """Attention by two matrix products: on a CPU its gradient is far quicker than the fused one."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, context),
                (attn.to_v, context),
            )
        )
        scores = (q * attn.scale) @ k.transpose(-1, -2)
        with torch.autocast(scores.device.type, enabled=False):
            weights = scores.softmax(-1)
        return attn.to_out[0]((weights @ v).transpose(1, 2).flatten(2))


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


class Average(nn.Module):
    """An exponential moving average of modules, and a way to look through it for a while."""

    def __init__(self, modules: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.count = 0
        self.shadow = {name: value.clone() for name, value in modules.state_dict().items()}

    def update(self, modules: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        live = modules.state_dict()
        names = [name for name, value in self.shadow.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in names], [live[n] for n in names], 1 - decay)

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = state["count"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)

    @contextmanager
    def applied(self, modules: nn.Module) -> Iterator[None]:
        """Inside, `modules` hold the averaged weights."""
        live = {name: value.clone() for name, value in modules.state_dict().items()}
        modules.load_state_dict(self.shadow)
        try:
            yield
        finally:
            modules.load_state_dict(live)


def learning_rate(step: int, plan: DiffusionPlan) -> float:
    """A short rise, a long plateau, a straight fall: more steps can be planned while it runs."""
    fall = (plan.steps - step) / (plan.cool_down * plan.steps)
    return plan.peak_rate * max(0.01, min(1.0, (step + 1) / plan.warm_up, fall))


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
    average = Average(modules, plan.decay)
    layout = LayoutHead(painter.unet).to(painter.unet.device)
    learning = [*modules.parameters(), *layout.parameters()]
    optimiser = torch.optim.AdamW(learning, lr=plan.peak_rate, betas=(0.9, 0.99), fused=True)
    parts = {"modules": modules, "average": average, "layout": layout, "optimiser": optimiser}
    step = first = load_checkpoint(checkpoint, parts)
    painter.unet.set_attn_processor(PlainAttention())
    loss_of = _loss_function(latents, pool, painter, layout, plan)
    threads, mean_loss = ThreadTuner(), 1.0
    started = saved = monotonic()
    while step < plan.steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, plan)
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        average.update(modules)
        threads.tick()
        step += 1
        mean_loss += 0.02 * (loss.item() - mean_loss)
        if step % 100 == 0:
            pace = (monotonic() - started) / (step - first)
            left = pace * (plan.steps - step) / 60
            report(f"unet {step}/{plan.steps}: loss {mean_loss:.4f}, {left:.0f} min left")
        if monotonic() - saved > plan.save_seconds or step == plan.steps:
            save_checkpoint(checkpoint, parts, step)
            saved = monotonic()
        if step % plan.grid_steps == 0 and step < plan.steps:
            with average.applied(modules):
                show(step)
    layout.leave()
    modules.load_state_dict(average.shadow)
    modules.eval()


def _rows_of(pool: Pool, kind: str) -> list[Tensor]:
    """For each different caption of a kind the rows of the pool that show it."""
    rows: dict[str, list[int]] = {}
    for i, text in enumerate(pool.captions):
        if pool.kinds[i] == kind:
            rows.setdefault(text, []).append(i)
    return [torch.tensor(found) for found in rows.values()]


def _loss_function(
    latents: Tensor, pool: Pool, painter: Painter, layout: LayoutHead, plan: DiffusionPlan
) -> Callable[[int], Tensor]:
    """The loss of the batch of a step: everything random in it depends on the step alone."""
    rows = {kind: _rows_of(pool, kind) for kind in set(MIX)}
    ids = token_ids(painter.tokenizer, [*pool.captions, ""])
    alphas = make_scheduler().alphas_cumprod.double()
    device = painter.unet.device
    slots = [MIX[i % len(MIX)] for i in range(plan.batch)]

    def one_of(choices: Sequence, generator: torch.Generator) -> Tensor:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 + step)
        picks = torch.stack([one_of(one_of(rows[kind], generator), generator) for kind in slots])
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
