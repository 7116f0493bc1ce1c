"""Transformers of core's with a joint attention of text and image: how each lays it out.

What a hook has to know of an attention, which block it is in and how many of its tokens are text,
core tells in another way in every network, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from comfy.ldm.chroma.model import Chroma
from comfy.ldm.flux.model import Flux
from comfy.ldm.hidream.model import HiDreamImageTransformer2DModel
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT
from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor, nn


@dataclass
class Block:
    """The block that runs now; made for one denoiser, and told by what `Family.follow` put there.

    Attributes:
        layer: Its number, over all blocks.
        text: Tokens of text in its attention.
        filled: Tokens behind those of the image, up to a round number.
    """

    layer: int = 0
    text: int = 0
    filled: int = 0


@dataclass(frozen=True)
class Family:
    """A network of core's.

    Attributes:
        network: Its class.
        name: For people.
        layers: Number of its blocks.
        follow: Puts into transformer options of a call what tells a `Block` where it is.
        counts: Whether every attention is that of the next block, for want of a better sign; below
            0 it is none of them.
        image_first: Whether text comes after the image.
        settled: Turns queries or keys [..., C] of every head, rotated by position, to where the
            image's position does not depend on the text's length; None where it never does.
    """

    network: type[nn.Module]
    name: str
    layers: Callable[[nn.Module], int]
    follow: Callable[[nn.Module, dict[str, Any], Block], None]
    counts: bool = False
    image_first: bool = False
    settled: Callable[[nn.Module, Tensor, int], Tensor] | None = None


def family_of(network: nn.Module) -> Family | None:
    """The family of a network; None where it has no joint attention that is known here."""
    return next((family for family in FAMILIES if isinstance(network, family.network)), None)


def image_tokens(network: nn.Module, size: tuple[int, ...]) -> int:
    """Tokens of a latent of so many cells along its last sides; odd sides are filled up.

    Of video, frames are tokens each.
    """
    *frames, height, width = size
    patch = network.patch_size
    count = -(-height // patch) * -(-width // patch)
    for number in frames:
        count *= number
    return count


def _by_queries(network: nn.Module, options: dict[str, Any], block: Block) -> None:
    """By core's patch of the queries, which is told all of it; single blocks follow double ones."""
    doubles = len(getattr(network, "double_blocks", ()))

    def look(q: Tensor, k: Tensor, v: Tensor, *, extra_options: dict, **_: Any) -> dict:
        """A patch of core's that changes nothing."""
        after = doubles if extra_options["block_type"] == "single" else 0
        block.layer = after + extra_options["block_index"]
        block.text = extra_options["img_slice"][0]
        return {}

    patches = options.setdefault("patches", {})
    patches["attn1_patch"] = [*patches.get("attn1_patch", []), look]


def _by_blocks(network: nn.Module, options: dict[str, Any], block: Block) -> None:
    """By core's replacement of whole blocks; what another node put there runs in ours."""
    replaced = options.setdefault("patches_replace", {})
    before = replaced.get("dit", {})
    replaced["dit"] = before | {
        ("double_block", number): _told(block, number, before.get(("double_block", number)))
        for number in range(len(network.joint_blocks))
    }


def _told(block: Block, number: int, before: Callable | None) -> Callable[[dict, dict], dict]:
    """A block of core's that says which it is before it runs."""

    def run(args: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
        block.layer, block.text = number, args["txt"].shape[1]
        return extra["original_block"](args) if before is None else before(args, extra)

    return run


def _by_calls(network: nn.Module, options: dict[str, Any], block: Block) -> None:
    """By core's wrapper of the whole network, which begins to count the attentions anew.

    Every block sees the tokens of T5, those of Llama's last layer, and those of one of its layers.
    """

    def begin(
        executor: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        y: Tensor,
        context: Tensor,
        llama: Tensor,
        *more: Any,
    ) -> Tensor:
        block.layer, block.text = -1, context.shape[1] + 2 * llama.shape[2]
        return executor(x, t, y, context, llama, *more)

    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "palimpsest_blocks", begin, options)


def _by_calls_refined(network: nn.Module, options: dict[str, Any], block: Block) -> None:
    """The same where blocks of text alone and of the image alone come first, and all are filled up.

    Where reference pictures stand before the image, the tokens are not those that are expected.
    """
    refiners = len(network.context_refiner) + len(network.noise_refiner)
    multiple = network.pad_tokens_multiple or 1

    def begin(
        executor: Callable[..., Tensor],
        x: Tensor,
        t: Tensor,
        context: Tensor,
        *more: Any,
        **rest: Any,
    ) -> Tensor:
        image = image_tokens(network, tuple(x.shape[2:]))
        block.layer, block.filled = -1 - refiners, -image % multiple
        block.text = context.shape[1] + -context.shape[1] % multiple
        return executor(x, t, context, *more, **rest)

    add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "palimpsest_blocks", begin, options)


def _image_at_origin(network: nn.Module, tokens: Tensor, text: int) -> Tensor:
    """Queries or keys turned back along the first axis by the place of the image, after the text.

    Attention knows distances alone: it does not change where all tokens are turned alike.
    """
    width, theta = network.axes_dims[0], network.rope_embedder.theta
    rates = theta ** -(torch.arange(0, width, 2, device=tokens.device, dtype=torch.float64) / width)
    angles = (rates * (text + 1)).float()
    first, rest = tokens[..., :width].float(), tokens[..., width:]
    even, odd = first.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([even * cos + odd * sin, odd * cos - even * sin], -1).flatten(-2)
    return torch.cat([turned.to(tokens), rest], -1)


def _of_two_streams(network: nn.Module) -> int:
    return len(network.double_blocks) + len(network.single_blocks)


FAMILIES = (
    Family(Flux, "Flux", _of_two_streams, _by_queries),
    Family(Chroma, "Chroma", _of_two_streams, _by_queries),
    Family(
        QwenImageTransformer2DModel,
        "Qwen-Image",
        lambda network: len(network.transformer_blocks),
        _by_queries,
    ),
    Family(MMDiT, "SD 3", lambda network: len(network.joint_blocks), _by_blocks),
    Family(
        HiDreamImageTransformer2DModel,
        "HiDream-I1",
        lambda network: len(network.double_stream_blocks) + len(network.single_stream_blocks),
        _by_calls,
        counts=True,
        image_first=True,
    ),
    Family(
        NextDiT,
        "Lumina 2 and Z-Image",
        lambda network: len(network.layers),
        _by_calls_refined,
        counts=True,
        settled=_image_at_origin,
    ),
)
