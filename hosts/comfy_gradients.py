"""Gradients through a model that a loader node loaded, inside a session of ComfyUI.

    learner = replace(picture, model=trainable(picture.model, picture.feature))

    def algorithm(session):
        with gradients(session, picture.feature) as learning:
            denoise = learning.recorder(conds, hook)      # or `learning.denoiser(...)`
            loss = loss_of(denoise(x, sigma))             # x, sigma: [B, C, h, w], 0-d
            (slope,) = torch.autograd.grad(loss, what_is_learned)

    result, spent = learner.run(algorithm)

What is learned may be a conditioning tensor (put into the `conds` of the call) or the parameters of
anything that an attention hook or an attention patch computes with: a map of the value context of
the cross-attention, for example. Whatever is made inside the block is an ordinary tensor; a tensor
from outside it is one of inference mode, which autograd will not keep: `.clone()` it where a
formula of yours multiplies it with something learned (what the network is called with is cloned
here). Wrap in `torch.no_grad()` what needs no gradient: it then keeps nothing.

Core loads weights in inference mode, and autograd keeps no such tensors: the clone that `trainable`
makes hands every layer a copy. Each block of the UNet is computed a second time in the backward
pass, instead of keeping what is in it (Chen et al. 2016, Training Deep Nets with Sublinear Memory
Cost, arXiv:1604.06174, section 3). That second time is no row of the method, and is not counted.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import torch
import torch.utils.checkpoint
from comfy.ldm.modules.attention import BasicTransformerBlock, attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, Upsample
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..pipelines.errors import PalimpsestError
from .comfy import Conditioning, Session
from .comfy_attention import require_unet

#: What is computed again in the backward pass.
BLOCKS = (ResBlock, BasicTransformerBlock, Downsample, Upsample)

#: How much more room the network is given than sampling the same pictures takes.
ROOM = 2

#: Of a conditioning: what cannot be differentiated, or restricts where or when it holds.
NOT_LEARNED = {
    "area": "an area",
    "control": "a ControlNet",
    "end_percent": "a span of steps",
    "gligen": "GLIGEN boxes",
    "hooks": "hooks",
    "mask": "a mask",
    "start_percent": "a span of steps",
}


class OutOfMemory(PalimpsestError, torch.OutOfMemoryError):
    """There is not enough memory to learn; core, who knows this kind of error, frees its models."""


def trainable(model: ModelPatcher, feature: str) -> ModelPatcher:
    """A clone through which gradients flow; it shares the weights of `model`, and its LoRA.

    Args:
        model: With a UNet.
        feature: What the node is called, for messages.

    Raises:
        PalimpsestError: In one sentence, where no gradient can flow through it.
    """
    require_unet(model.model, feature)
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
    clone = model.clone(disable_dynamic=True)
    for name, _ in clone.model.named_parameters():
        clone.add_weight_wrapper(name, Tensor.clone)
    clone.add_wrapper(WrappersMP.PREPARE_SAMPLING, _with_room)
    return clone


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
    extras = sorted({NOT_LEARNED[key] for key in NOT_LEARNED.keys() & conditioning[0][1].keys()})
    if extras:
        raise PalimpsestError(
            f"The {role} conditioning carries {' and '.join(extras)}, {feature} learns with the "
            "prompt alone: connect the CLIP Text Encode itself."
        )


@contextmanager
def gradients(session: Session, feature: str) -> Iterator[Session]:
    """Autograd on, inside a session whose model is a `trainable` clone.

    However the block ends, the network, core's state and the memory are as they were before it. An
    interruption is noticed at each call and at each block that is computed again.

    Args:
        session: The session.
        feature: What the node is called, for messages.

    Yields:
        The same session; its denoisers can be differentiated.

    Raises:
        OutOfMemory: Where the memory does not suffice, in one sentence.
        PalimpsestError: Where another node's patch cannot be differentiated, in one sentence.
    """
    if not session.guider.model_patcher.weight_wrapper_patches:
        raise TypeError("gradients() needs a session on a clone that trainable() made.")
    network = session.guider.inner_model.diffusion_model
    options = create_model_options_clone(session.options)
    # Some of the attention kernels that a user may choose have no backward pass.
    options.setdefault("transformer_options", {})["optimized_attention_override"] = _plain
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "palimpsest_gradients", _out_of_inference_mode, options, True
    )
    try:
        with torch.inference_mode(False), torch.enable_grad(), _in_training(), _recomputed(network):
            yield replace(session, options=options, x0=session.x0.clone())
    except Exception as error:
        sentence = _sentence(error, feature)
        if sentence is None:
            raise
        traceback.clear_frames(error.__traceback__)  # they hold all that autograd kept
        raise sentence from error
    finally:
        comfy.model_management.soft_empty_cache()


def _sentence(error: Exception, feature: str) -> PalimpsestError | None:
    """What a user is told of an error of torch; None where it says enough itself."""
    text = str(error)
    memory = isinstance(error, MemoryError) or "can't allocate memory" in text
    if memory or comfy.model_management.is_oom(error):
        return OutOfMemory(
            f"{feature} ran out of memory: use a smaller picture or fewer pictures at a time, "
            "close what else uses the GPU, or take Invert (DDIM), which learns nothing."
        )
    if "Inference tensors cannot be saved for backward" in text:
        return PalimpsestError(
            f"{feature} cannot learn through what another node hooked into the model: connect the "
            "model as it was before that node (IP-Adapter, for example); LoRA may stay."
        )
    return None


def _with_room(
    executor: Callable, model: ModelPatcher, shape: Any, *args: Any, **options: Any
) -> tuple:
    """Have core free the memory for a backward pass before it loads the model."""
    return executor(model, [ROOM * shape[0], *shape[1:]], *args, **options)


def _plain(_chosen: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    return attention_pytorch(*args, **options)


def _out_of_inference_mode(executor: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Call the network with tensors that autograd may keep."""

    def ordinary(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    return executor(
        *(ordinary(value) for value in args),
        **{name: ordinary(value) for name, value in options.items()},
    )


@contextmanager
def _in_training() -> Iterator[None]:
    """Tell core that its layers must keep what gradients need."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


@contextmanager
def _recomputed(network: nn.Module) -> Iterator[None]:
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
    def compute(*args: Any, **options: Any) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        return forward(*args, **options)

    def checkpointed(*args: Any, **options: Any) -> Tensor:
        # Core writes into its options where in the network a block is: keep what it says now.
        args = tuple(dict(a) if isinstance(a, dict) else a for a in args)
        options = {key: dict(o) if isinstance(o, dict) else o for key, o in options.items()}
        return torch.utils.checkpoint.checkpoint(
            compute, *args, use_reentrant=False, preserve_rng_state=False, **options
        )

    return checkpointed
