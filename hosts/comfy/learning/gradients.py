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

The clone computes with copies of the weights, and each block a second time in the backward pass
(`comfy_training`). That second time is no row of the method, and is not counted.
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
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....pipelines.errors import PalimpsestError
from ..session import Session
from .training import check_trainable, in_training, plain_attention, recomputed, with_copied_weights

#: What an inversion may be replaced by.
LEARNS_NOTHING = "take Invert (DDIM), which learns nothing"

#: How much more room the network is given than sampling the same pictures takes.
ROOM = 2


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
    check_trainable(model, feature)
    clone = with_copied_weights(model)
    clone.add_wrapper(WrappersMP.PREPARE_SAMPLING, _with_room)
    return clone


@contextmanager
def gradients(session: Session, feature: str, *, instead: str = "") -> Iterator[Session]:
    """Autograd on, inside a session whose model is a `trainable` clone.

    However the block ends, the network, core's state and the memory are as they were before it. An
    interruption is noticed at each call and at each block that is computed again.

    Args:
        session: The session.
        feature: What the node is called, for messages.
        instead: What can be done without gradients, for messages; another inversion if not given.

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
    transformer = options.setdefault("transformer_options", {})
    transformer["optimized_attention_override"] = plain_attention
    for name, patches in transformer.get("patches", {}).items():
        transformer["patches"][name] = [_written_into(patch) for patch in patches]
    comfy.patcher_extension.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "palimpsest_gradients", _out_of_inference_mode, options, True
    )
    try:
        with torch.inference_mode(False), torch.enable_grad(), in_training(), recomputed(network):
            yield replace(session, options=options, x0=session.x0.clone())
    except Exception as error:
        sentence = _sentence(error, feature, instead or LEARNS_NOTHING)
        if sentence is None:
            raise
        traceback.clear_frames(error.__traceback__)  # they hold all that autograd kept
        raise sentence from error
    finally:
        comfy.model_management.soft_empty_cache()


def _sentence(error: Exception, feature: str, instead: str) -> PalimpsestError | None:
    """What a user is told of an error of torch; None where it says enough itself."""
    text = str(error)
    memory = isinstance(error, MemoryError) or "can't allocate memory" in text
    if memory or comfy.model_management.is_oom(error):
        return OutOfMemory(
            f"{feature} ran out of memory: use a smaller picture or fewer pictures at a time, "
            f"close what else uses the GPU, or {instead}."
        )
    if "Inference tensors cannot be saved for backward" in text:
        return PalimpsestError(
            f"{feature} cannot learn through what another node hooked into the model: connect the "
            "model as it was before that node (IP-Adapter, for example); LoRA may stay."
        )
    return None


def _written_into(patch: Callable[..., Any]) -> Callable[..., Any]:
    """A patch of another node that may write into what it is handed, as FreeU does.

    It gets copies, and autograd keeps copies of what it computes with.
    """

    def called(*args: Any, **options: Any) -> Any:
        with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda kept: kept):
            copies = (a.clone() if isinstance(a, Tensor) else a for a in args)
            return patch(*copies, **options)

    return called


def _with_room(
    executor: Callable, model: ModelPatcher, shape: Any, *args: Any, **options: Any
) -> tuple:
    """Have core free the memory for a backward pass before it loads the model."""
    return executor(model, [ROOM * shape[0], *shape[1:]], *args, **options)


def _out_of_inference_mode(executor: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Call the network with tensors that autograd may keep."""

    def ordinary(value: Any) -> Any:
        return value.clone() if isinstance(value, Tensor) and value.is_inference() else value

    return executor(
        *(ordinary(value) for value in args),
        **{name: ordinary(value) for name, value in options.items()},
    )
