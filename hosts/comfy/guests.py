"""What other nodes put on a model, as far as it can be seen from outside."""

from __future__ import annotations

from typing import Any

from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from ...pipelines.errors import PalimpsestError

#: Parts of a model that every loader sets, or that are known by their values.
_OWN_OBJECTS = {"model_sampling", "latent_format", "manual_cast_dtype"}

#: A LoRA beside the weights, as core's bypass loader puts it there: it reads no level.
_BYPASS = "bypass_lora"

#: What core writes into the options of a run by itself.
_OF_CORE = {"sample_sigmas"}


def read_the_level(model: ModelPatcher, options: dict[str, Any]) -> bool:
    """Whether others' functions take part in a call: what they read is the first row's level.

    Args:
        model: From the wire.
        options: Its options in this run, wrappers included.
    """
    return holds_functions(options) or _replaces_parts(model)


def changes_calls(model: ModelPatcher) -> bool:
    """Whether anything on a model but its weights changes what it predicts, ours included."""
    wrapped = (model.model_options, model.wrappers, model.callbacks)
    return any(holds_functions(kept, ours=True) for kept in wrapped) or _replaces_parts(model)


def holds_functions(options: dict[Any, Any], *, ours: bool = False) -> bool:
    """Whether options, at any depth, hold more than empty tables.

    Args:
        options: Of a model or a run.
        ours: Count what this pack put there under its own name, which handles rows of many levels.
    """
    return any(
        holds_functions(value, ours=ours) if isinstance(value, dict) else not _empty(value)
        for key, value in options.items()
        if key not in _OF_CORE and (ours or not str(key).startswith("palimpsest"))
    )


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, list) and not value)


def _replaces_parts(model: ModelPatcher) -> bool:
    """Whether parts of the network were exchanged, or code is put into it while it runs."""
    return bool(set(model.object_patches) - _OWN_OBJECTS or set(model.injections) - {_BYPASS})


def check_not_compiled(model: BaseModel) -> None:
    """Refuse a network that was compiled in its place, whole or in parts.

    Core's node for torch.compile leaves the network as it is, see `without_compiled`.

    Raises:
        PalimpsestError: In one sentence.
    """
    if any(name.endswith("_orig_mod") for name, _ in model.diffusion_model.named_modules()):
        raise PalimpsestError(
            "The model's network was compiled in its place, where a control cannot look into it: "
            "use core's TorchCompileModel, which leaves it as it is, or edit without the control."
        )


def without_compiled(options: dict[str, Any]) -> None:
    """Have calls with these options, a copy of ours, run the network as it is, not compiled.

    Compiled code does not look at the options again (core says so to torch), and would go on with
    the functions that it saw in its first call.
    """
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    wrappers.get(WrappersMP.APPLY_MODEL, {}).pop(COMPILE_KEY, None)
