"""The flow model's training: its transformer alone, on the pool's latents and the UNet's words."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from .flow import FlowPainter, Words, make_transformer
from .train_attention import attend_plainly
from .train_data import Pool, rows_drawn
from .train_layout import LayoutHead
from .training import Learning, Plan, train


@dataclass(frozen=True)
class FlowPlan(Plan):
    """How the transformer is trained: its double blocks, single blocks and heads."""

    blocks: tuple[int, int] = (3, 4)
    heads: int = 6
    steps: int = 16000


def new_transformer(plan: FlowPlan) -> FluxTransformer2DModel:
    """A transformer to train: every block gives what it is given, and the last layer nothing.

    So begins a diffusion transformer (Peebles and Xie, arXiv 2212.09748): with gates that are shut.
    """
    torch.manual_seed(1)
    transformer = make_transformer(*plan.blocks, plan.heads)
    shut = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        shut += [block.norm1.linear, block.norm1_context.linear]
    shut += [block.norm.linear for block in transformer.single_transformer_blocks]
    for layer in shut:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return transformer


def draw_times(count: int, generator: torch.Generator) -> Tensor:
    """Times `[count]` in 0..1, evenly spread over two densities and shuffled.

    Half of them are logit-normal: the middle, where the velocity is hardest to tell (Esser et al.,
    arXiv 2403.03206), moved towards noise, where the caption alone says what lies where and in
    which colour. The others are even, so that the ends are seen as well: sampling starts at one.
    """
    half = count // 2
    places, even = (
        (torch.arange(n) + torch.rand(n, generator=generator)) / n for n in (half, count - half)
    )
    middle = torch.sigmoid(0.3 + torch.special.ndtri(places.double())).float()
    return torch.cat([middle, even])[torch.randperm(count, generator=generator)]


def words_of(painter: FlowPainter, captions: tuple[str, ...]) -> tuple[Words, Tensor]:
    """The words of all different captions and, last, of the empty one; which are whose `[N]`."""
    rows = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    texts = [*rows, ""]
    parts = [painter.embed(texts[i : i + 256]) for i in range(0, len(texts), 256)]
    words = Words(*(torch.cat([getattr(p, k) for p in parts]) for k in ("states", "pooled")))
    return words, torch.tensor([rows[text] for text in captions])


def train_flow(
    latents: Tensor,
    pool: Pool,
    painter: FlowPainter,
    plan: FlowPlan,
    checkpoint: Path,
    report: Callable[[str], None],
    show: Callable[[int], None],
) -> None:
    """Train `painter` in place, from `checkpoint` where it exists; it ends with averaged weights.

    `show` is called now and then, while the averaged weights are in place.
    """
    transformer = painter.transformer.train()
    layout = flow_layout(transformer)
    attend_plainly(transformer)
    loss_of = _loss_function(latents, pool, painter, layout, plan)
    with single_streams(transformer):
        train(Learning("flow", transformer, layout, loss_of), plan, checkpoint, report, show)
    layout.leave()
    transformer.eval()


def flow_layout(transformer: FluxTransformer2DModel) -> LayoutHead:
    """A head that marks the objects from the last double block and from a single one amid them."""
    single = transformer.single_transformer_blocks
    blocks = transformer.transformer_blocks[-1], single[(len(single) - 1) // 2]
    return LayoutHead(blocks, transformer.inner_dim).to(transformer.device)


@contextmanager
def single_streams(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """Inside, tokens run through the blocks in single precision, whatever the layers compute in.

    And so does the time, which takes the precision of the tokens: half of it would be some
    thousandths off.
    """
    entries = transformer.x_embedder, transformer.context_embedder
    handles = [e.register_forward_hook(lambda _m, _i, out: out.float()) for e in entries]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _loss_function(
    latents: Tensor, pool: Pool, painter: FlowPainter, layout: LayoutHead, plan: FlowPlan
) -> Callable[[int], Tensor]:
    """The loss of the batch of a step: everything random in it depends on the step alone."""
    draw = rows_drawn(pool, plan.batch)
    words, whose = words_of(painter, pool.captions)
    device = painter.transformer.device

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 + step)
        picks = draw(generator)
        clean = latents[picks]
        noise = torch.randn(clean.shape, generator=generator)
        times = draw_times(plan.batch, generator)
        t = times[:, None, None, None]
        z = (1 - t) * clean + t * noise
        told = torch.rand(plan.batch, generator=generator) >= plan.empty_prompts
        said = words.at(torch.where(told, whose[picks], len(words.pooled) - 1))
        with torch.autocast(device.type, torch.bfloat16):
            v = painter.velocity(z.to(device), times.to(device), said.to(device))
        marked = layout.loss(pool.spots[picks].to(device), told.float().to(device))
        wrong = (v.float() - (noise - clean).to(device)) ** 2
        return wrong.mean() + plan.layout * marked

    return loss_of
