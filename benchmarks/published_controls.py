"""Attention controls the way the published code runs them, for `bench speed`.

Every row of both prompts runs in every step, every attention of the network is computed through its
whole maps, and a controller edits them. Written anew from the papers and for this comparison: it
makes the same pictures as ours, which `bench speed` checks before it measures anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..pipelines.attention.prompt_to_prompt import PromptToPrompt
from ..pipelines.trajectory import Trajectory

#: Rows of a batch: the source's and the target's unconditional, then their conditional ones.
SOURCE_U, TARGET_U, SOURCE_C, TARGET_C = range(4)

#: Maps of at most so many queries are stored, as published.
STORED = 32**2


@dataclass
class Place:
    """An attention of the network in a step of the edit.

    Attributes:
        cross: Whether it is cross-attention.
        layer: Position among the transformer blocks.
        layers: How many there are.
        step: Of the edit, from its noisiest level.
        steps: How many it has.
    """

    cross: bool
    layer: int
    layers: int
    step: int = 0
    steps: int = 1


class Controller:
    """Changes what an attention gathers; this one changes nothing."""

    def gather(self, place: Place, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of heads [rows, heads, tokens, channels], through the maps of all rows."""
        return self.edited(place, maps_of(q, k)) @ v

    def edited(self, place: Place, maps: Tensor) -> Tensor:
        """The maps [rows, heads, queries, keys] as the controller wants them."""
        return maps

    def blend(self, step: int, rows: Tensor) -> Tensor:
        """Latents [source, target] after a step."""
        return rows


def maps_of(q: Tensor, k: Tensor) -> Tensor:
    """Softmax maps of heads."""
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)


@dataclass
class PublishedPromptToPrompt(Controller):
    """Its controller: edits the maps of the prompt's rows and stores all that are small enough.

    Attributes:
        control: What is wanted.
        blend_words: [2, tokens] indicator of the blend words in both prompts, or None.
        threshold: Of the blend.
        start: Steps before it.
        halvings: Of the latent's side, to that of the maps that it looks at.
    """

    control: PromptToPrompt
    blend_words: Tensor | None = None
    threshold: float = 0.3
    start: int = 0
    halvings: int = 2
    sums: dict[int, Tensor] = field(default_factory=dict)

    def edited(self, place: Place, maps: Tensor) -> Tensor:
        source, target = maps[SOURCE_C], maps[TARGET_C]
        control = self.control
        if place.cross:
            control_open = control.open_tokens(place.step, place.steps).to(maps)
            own = control.alignment.aligned.to(maps)
            read = source @ control.alignment.mapping.to(maps)
            new = (read * own + target * (1 - own)) * control.weights.to(maps)
            maps[TARGET_C] = new * control_open + target * (1 - control_open)
        elif maps.shape[2] <= control.self_pixels and self._self_open(place):
            maps[TARGET_C] = source
        if maps.shape[2] <= STORED:
            key = 2 * place.layer + place.cross
            kept = maps[SOURCE_C:].clone()
            self.sums[key] = self.sums[key] + kept if key in self.sums else kept
        return maps

    def _self_open(self, place: Place) -> bool:
        start, end = self.control.self_window
        return int(place.steps * start) <= place.step < int(place.steps * end)

    def blend(self, step: int, rows: Tensor) -> Tensor:
        if self.blend_words is None or step < self.start:
            return rows
        side = rows.shape[-1] // 2**self.halvings
        words = self.blend_words.to(rows)
        found = [
            torch.einsum("rhpn,rn->rhp", maps, words).mean(1)
            for key, maps in self.sums.items()
            if key % 2 and maps.shape[2] == side * side
        ]
        maps = torch.stack(found).mean(0).unflatten(-1, (side, side))[:, None]
        pooled = nn.functional.max_pool2d(maps, 3, stride=1, padding=1)
        inside = pooled > self.threshold * pooled.amax((-2, -1), keepdim=True)
        mask = nn.functional.interpolate((inside[:1] | inside[1:]).float(), rows.shape[-2:])
        return rows[:1] + mask * (rows - rows[:1])


@dataclass
class PublishedMasaCtrl(Controller):
    """Its editor: the maps of all rows first, then those that are used.

    Attributes:
        step: The first of the edit in which the source is read.
        layer: The first transformer block.
    """

    step: int
    layer: int

    def gather(self, place: Place, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        plain = maps_of(q, k)
        if place.cross or place.step < self.step or place.layer < self.layer:
            return plain @ v
        return torch.cat(
            [
                maps_of(q[rows], k[source]) @ v[source]
                for rows, source in (
                    (slice(SOURCE_U, TARGET_U + 1), slice(SOURCE_U, SOURCE_U + 1)),
                    (slice(SOURCE_C, TARGET_C + 1), slice(SOURCE_C, SOURCE_C + 1)),
                )
            ]
        )


@dataclass
class PublishedPlugAndPlay(Controller):
    """Its injection, for three rows: the source's, and the target's two.

    Attributes:
        layers: The first transformer block.
        attention, feature: The first step in which a window is closed.
        block: The residual block whose features are the source's.
    """

    layer: int
    attention: int
    feature: int
    block: nn.Module
    step: int = 0

    def gather(self, place: Place, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.step = place.step
        if not place.cross and place.layer >= self.layer and place.step < self.attention:
            q, k = (torch.cat([t[:1]] * 3) for t in (q, k))
        return maps_of(q, k) @ v

    def inject(self, block: nn.Module, inputs: tuple, out: Tensor) -> Tensor:
        """A hook behind the residual block."""
        if self.step >= self.feature:
            return out
        around = inputs[0] if block.conv_shortcut is None else block.conv_shortcut(inputs[0])
        added = (out - around)[:1]
        return around + added


@dataclass
class _Processor:
    """Attention of a diffusers UNet by a controller."""

    controller: Controller
    place: Place

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        every = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for t in every)
        out = self.controller.gather(self.place, q, k, v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](out))


@torch.no_grad()
def published_edit(
    unet: nn.Module,
    controller: Controller,
    trajectory: Trajectory,
    timesteps: Sequence[int],
    text: Tensor,
    cfg: float,
) -> Tensor:
    """The edit of a recorded chain under Direct Inversion, all rows in every step.

    Args:
        unet: A diffusers UNet; it is left as it was.
        controller: Edits its attention.
        trajectory: The chain.
        timesteps: [N] rising, of its levels 1 to N.
        text: [rows, tokens, channels] embeddings: four rows, or Plug-and-Play's three.
        cfg: Guidance scale of the target.
    """
    before, places = unet.attn_processors, _control(unet, controller, trajectory.steps)
    x = trajectory.start
    try:
        for step in range(trajectory.steps):
            for place in places:
                place.step = step
            level = trajectory.steps - step
            now, then = (float(s) for s in trajectory.sigmas[[level, level - 1]])
            chain, chain_next = trajectory.latents[level], trajectory.latents[level - 1]
            shown = [chain, x, chain, x] if len(text) == 4 else [chain, x, x]
            z = torch.cat(shown) / (1 + now * now) ** 0.5
            noise = unet(z, torch.tensor(timesteps[level - 1]), text).sample
            unguided, prompted = noise[-3 if len(text) == 4 else -2], noise[-1]
            guided = (unguided + cfg * (prompted - unguided))[None]
            moved = x + (then - now) * guided
            x = controller.blend(step, torch.cat([chain_next, moved]))[1:]
    finally:
        unet.set_attn_processor(before)
    return x


def _control(unet: nn.Module, controller: Controller, steps: int) -> list[Place]:
    """Put a controller into every attention, in execution order; where they are."""
    blocks = [
        module
        for part in (unet.down_blocks, [unet.mid_block], unet.up_blocks)
        for block in part
        for module in block.modules()
        if type(module).__name__ == "BasicTransformerBlock"
    ]
    places = []
    for layer, block in enumerate(blocks):
        for cross, attention in ((False, block.attn1), (True, block.attn2)):
            places.append(Place(cross, layer, len(blocks), steps=steps))
            attention.set_processor(_Processor(controller, places[-1]))
    return places


def residual_hook(controller: PublishedPlugAndPlay) -> Callable[[], None]:
    """Put Plug-and-Play's feature injection behind its block; call what is given to undo it."""
    return controller.block.register_forward_hook(controller.inject).remove
