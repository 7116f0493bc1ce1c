"""What training inside ComfyUI needs of the model, whatever is trained.

Core loads weights in inference mode, and autograd keeps no such tensors: every layer is handed a
copy. Blocks of the UNet are computed a second time in the backward pass, instead of keeping what is
in them (Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174,
section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
import torch.utils.checkpoint
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, Upsample
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ....pipelines.errors import PalimpsestError
from ..attention import require_unet
from ..guidance import RESTRICTED, Conditioning, carried_by
from ..refusals import require_variance_preserving

#: What is computed again in the backward pass.
BLOCKS = (ResBlock, BasicTransformerBlock, Downsample, Upsample)

#: Of a conditioning: what cannot be differentiated, or restricts where or when it holds.
NOT_LEARNED = RESTRICTED | {
    "control": "a ControlNet",
    "gligen": "GLIGEN boxes",
    "hooks": "hooks",
}


def check_trainable(model: ModelPatcher, feature: str) -> None:
    """Refuse a model that no gradient can flow through.

    Args:
        model: From the wire.
        feature: What the node is called, for messages.

    Raises:
        PalimpsestError: In one sentence.
    """
    require_unet(model.model, feature, instead="take a node that learns nothing")
    if "multigpu_clones" in model.model_options:
        raise PalimpsestError(
            f"{feature} learns on one GPU, this model is split over several: "
            "remove the multi-GPU node."
        )
    if model.injections:
        raise PalimpsestError(
            f"The model carries a LoRA in bypass mode, which {feature} cannot learn through: "
            "load that LoRA with the plain Load LoRA node."
        )


def check_learned(conditioning: Conditioning, role: str, feature: str) -> None:
    """Refuse a conditioning under which nothing can be learned.

    Args:
        conditioning: From the wire.
        role: Of its input.
        feature: What the node is called.

    Raises:
        PalimpsestError: In one sentence.
    """
    if len(conditioning) != 1:
        raise PalimpsestError(
            f"The {role} conditioning has {len(conditioning)} entries, {feature} takes one: "
            "combine or area nodes cannot be used with it."
        )
    extras = carried_by(conditioning[0], NOT_LEARNED)
    if extras:
        raise PalimpsestError(
            f"The {role} conditioning carries {extras}, {feature} learns with the "
            "prompt alone: connect the CLIP Text Encode itself."
        )


def check_differentiable(
    model: ModelPatcher, conditionings: Mapping[str, Conditioning], feature: str
) -> None:
    """Refuse a model and prompts through which no gradient flows to a latent.

    Args:
        model: From the wire.
        conditionings: By the names of their inputs.
        feature: What the node is called, for messages.

    Raises:
        PalimpsestError: In one sentence.
    """
    require_variance_preserving(model, feature)
    check_trainable(model, feature)
    for role, conditioning in conditionings.items():
        check_learned(conditioning, role, feature)


def with_copied_weights(model: ModelPatcher) -> ModelPatcher:
    """A clone whose layers compute with copies of their weights; it shares those of `model`."""
    clone = model.clone(disable_dynamic=True)
    for name, _ in clone.model.named_parameters():
        clone.add_weight_wrapper(name, Tensor.clone)
    return clone


def plain_attention(_chosen: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """An attention override: torch's own, which has a backward pass on every device."""
    return attention_pytorch(*args, **options)


@contextmanager
def in_training() -> Iterator[None]:
    """Tell core that its layers must keep what gradients need; give back the memory after."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
        comfy.model_management.soft_empty_cache()


@contextmanager
def recomputed(network: nn.Module) -> Iterator[None]:
    """Compute each block again in the backward pass instead of keeping what is in it."""
    blocks = [block for block in network.modules() if isinstance(block, BLOCKS)]
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = _checkpointed(block.forward)
        yield
    finally:
        for block, forward in zip(blocks, before, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward


def _checkpointed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def checkpointed(*args: Any, **options: Any) -> Tensor:
        # Core writes into its options where in the network a block is: keep what it says now.
        args = tuple(dict(a) if isinstance(a, dict) else a for a in args)
        options = {key: dict(o) if isinstance(o, dict) else o for key, o in options.items()}
        once = _Once(forward)
        out = torch.utils.checkpoint.checkpoint(
            once, *args, use_reentrant=False, preserve_rng_state=False, **options
        )
        once.raise_failure()
        return out

    return checkpointed


@dataclass(eq=False)
class _Once:
    """A block for torch's checkpoint, out of whose first run no exception comes before its end.

    Torch pushes its hooks on what autograd saves in a generator, which an exception in the first
    run leaves hanging: the hooks then stay on the thread, and break whatever learns next, for as
    long as somebody keeps the traceback. The second run is in a `with` block.
    """

    forward: Callable[..., Tensor]
    ran: bool = False
    failure: BaseException | None = None

    def __call__(self, *args: Any, **options: Any) -> Tensor | None:
        first, self.ran = not self.ran, True
        try:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return self.forward(*args, **options)
        except BaseException as error:
            if not first:
                raise
            self.failure = error
            return None

    def raise_failure(self) -> None:
        """Raise what the first run ended with, if with anything."""
        failure, self.failure = self.failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # it holds this frame, and with it all that autograd kept
