"""Options of a model under which hooks see the network from inside, in calls of ours alone."""

from __future__ import annotations

from typing import Any

from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel
from comfy.model_patcher import create_model_options_clone
from torch import Tensor

from ...pipelines.attention.control import UNET
from ...pipelines.attention.hooks import NO_HOOKS, AttentionHook, Hooks, Kind
from ...pipelines.errors import PalimpsestError
from .attention import hooked_options, require_unet
from .calls import TOKEN, Call
from .families import FAMILIES
from .guests import check_not_compiled, without_compiled
from .guidance import asked_by_core
from .joint import has_joint_attention, joint_options
from .residual import feature_options

#: Models in whose joint attention a control acts.
_TRANSFORMERS = (
    "a transformer in which text and picture share attention "
    f"({', '.join(family.name for family in FAMILIES)})"
)


def require_attention(
    model: BaseModel, places: frozenset[Kind], feature: str, *, instead: str = ""
) -> None:
    """Refuse models without the attention that a control acts on.

    Args:
        model: From the wire.
        places: See `control.acts_in`.
        feature: What needs it, for messages.
        instead: What can be done with the model as it is, for messages.

    Raises:
        PalimpsestError: Naming the model and the feature.
    """
    if "joint" not in places:
        return require_unet(model, feature, instead=instead)
    if isinstance(model.diffusion_model, UNetModel) and places & UNET:
        return None
    if has_joint_attention(model):
        return None
    unets = "a UNet with cross-attention (SD 1.x, SD 2.x, SDXL), or " if places & UNET else ""
    raise PalimpsestError(
        f"{feature} needs {unets}{_TRANSFORMERS}, the model is {type(model).__name__}: load such a "
        f"checkpoint{instead and f', or {instead}'}."
    )


def with_own_call(options: dict[str, Any], x: Tensor, hooks: Hooks) -> dict[str, Any]:
    """Options in which core's own call for a prediction of `x` is one of ours, and no other.

    What other nodes call while they guide, they call with options that know of no hook.
    """

    def ask(args: dict[str, Any]) -> list[Tensor]:
        given = options.get("sampler_calc_cond_batch_function", asked_by_core)
        if args["input"] is not x:
            return given(args)
        looked_at = seen(args["model"], options, hooks, Call.of(args["conds"], x))
        return given(args | {"model_options": looked_at})

    return options | {"sampler_calc_cond_batch_function": ask}


def seen(model: BaseModel, options: dict[str, Any], hooks: Hooks, call: Call) -> dict[str, Any]:
    """Options for one call of ours, which hooks see from inside; others may have made them."""
    if hooks == NO_HOOKS:
        return options
    check_not_compiled(model)
    options = create_model_options_clone(options)
    without_compiled(options)
    options.setdefault("transformer_options", {})[TOKEN] = call
    if hooks.attention is not None:
        options = attention_options(model, options, hooks.attention)
    if hooks.feature is not None:
        options = feature_options(model, options, hooks.feature)
    return options


def attention_options(model: BaseModel, options: dict, hook: AttentionHook) -> dict[str, Any]:
    """A copy of `options` in which a hook sees every attention of the network, of either sort."""
    unet = isinstance(model.diffusion_model, UNetModel)
    return (hooked_options if unet else joint_options)(model, options, hook)
