"""A network's description and weights as a MODEL, in the order of core's own loaders.

Only the description is ours: the network, its dtype, its device and its patching are core's, done
as `comfy.sd.load_state_dict_guess_config` does.
"""

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor, nn

from .weights import load_weights


def as_model(
    config: comfy.supported_models_base.BASE,
    blank: Callable[[], nn.Module],
    weights: dict[str, Tensor],
    part: str,
    names: Mapping[str, str],
    reload: tuple[Any, tuple],
    disable_dynamic: bool,
) -> comfy.model_patcher.ModelPatcher:
    """Make a network and load its weights.

    Args:
        config: What core calls a model config; makes the network.
        blank: Makes core's network alone, without weights.
        weights: By the names of core's network.
        part: The subfolder, for messages.
        names: The name in the file of every own name, for messages.
        reload: A function and its arguments that make the model once more.
        disable_dynamic: What ComfyUI asks for when it needs a copy without dynamic VRAM.

    Raises:
        PalimpsestError: If the weights do not fit.
    """
    management = comfy.model_management
    device = management.get_torch_device()
    _rehearse(blank, weights, part, names)
    dtype = _choose_dtype(config, weights, device)
    first = management.unet_inital_load_device(comfy.utils.calculate_parameters(weights), dtype)
    model = config.get_model(weights, device=first)
    # Core swaps the class behind this name when it starts: read it here, not at import.
    core = comfy.model_patcher.CoreModelPatcher
    patcher = (comfy.model_patcher.ModelPatcher if disable_dynamic else core)(
        model, load_device=device, offload_device=management.unet_offload_device()
    )
    load_weights(
        model.diffusion_model, weights, part=part, assign=patcher.is_dynamic(), names=names
    )
    patcher.cached_patcher_init = reload
    if first != torch.device("cpu"):
        management.load_models_gpu([patcher], force_full_load=True)
    return patcher


def _rehearse(
    blank: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    part: str,
    names: Mapping[str, str],
) -> None:
    """Refuse weights that do not fit before room is made for them, however much a config asks."""
    with torch.device("meta"):
        network = blank()
    load_weights(network, weights, part=part, assign=True, names=names)


def _choose_dtype(
    config: comfy.supported_models_base.BASE, weights: dict[str, Tensor], device: torch.device
) -> torch.dtype:
    """Let core choose the dtype of the weights, and of the computation, from its flags."""
    management = comfy.model_management
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=list(config.supported_inference_dtypes),
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    cast = management.unet_manual_cast(dtype, device, config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, cast, device=device)
    return dtype
