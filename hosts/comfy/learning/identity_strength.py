"""A LoRA beside the weights of a model, at a strength that follows the noise.

The published strength of SDE-Drag's identity LoRA falls with the noise. Core's hooks can schedule a
LoRA on a CONDITIONING, but know one strength for a whole batch and rewrite the weights for it; here
every row has that of its own level, and nothing of the model is touched outside its call.

- Nie et al., The Blessing of Randomness, 2023, arXiv:2311.01410
- Hu et al., LoRA, 2021, arXiv:2106.09685
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.lora
import comfy.sd
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import WeightAdapterBase, WeightAdapterTrainBase
from torch import Tensor, nn

from ....pipelines.errors import PalimpsestError

#: Core's low-rank layer, fixed or in training: `h(x, out)` is what it adds to a module's output.
Adapter = WeightAdapterBase | WeightAdapterTrainBase


@contextmanager
def beside(model: BaseModel, adapters: dict[str, Adapter], strength: Tensor) -> Iterator[None]:
    """Let adapters add to the outputs of their modules.

    Args:
        model: The model whose modules they belong to.
        adapters: By the module's name.
        strength: [B] or [1] factor of every row.
    """

    def side_path(adapter: Adapter) -> Callable[..., Tensor]:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            # Other nodes may cut rows into tiles, which then follow one another.
            rows = strength.repeat_interleave(max(1, len(out) // len(strength)))
            return out + rows.view(-1, 1, 1).to(out.dtype) * adapter.h(inputs[0], out)

        return add

    with ExitStack() as stack:
        for name, adapter in adapters.items():
            hook = model.get_submodule(name).register_forward_hook(side_path(adapter))
            stack.callback(hook.remove)
        yield


def check_min_strength(value: float) -> None:
    """Refuse a strength at the noisiest level that is out of range.

    Raises:
        PalimpsestError: Naming it.
    """
    if not 0 <= value <= 1:
        raise PalimpsestError(f"Min strength must be 0 to 1, got {value}.")


def strength_at(position: Tensor, min_strength: float) -> Tensor:
    """The published strength of the LoRA over noise: a cosine from 1 down to `min_strength`.

    Args:
        position: Place in the chain of levels, 0 at the clean end, 1 at the noisiest.
        min_strength: Strength at the noisiest level.
    """
    f = (1 - torch.cos(torch.pi * position)) / 2
    return (1 - f) + f * min_strength


def chain_position(sigma: Tensor, levels: Tensor) -> Tensor:
    """[B] places of noise levels in a chain: 0 at its cleanest level, 1 at its noisiest.

    Args:
        sigma: [B] noise levels; what lies between two levels lies between their places.
        levels: [N+1] levels of the chain, in any order.
    """
    rising = levels.to(sigma).sort().values
    if len(rising) < 2:
        return torch.zeros_like(sigma)
    above = torch.searchsorted(rising, sigma.contiguous()).clamp(1, len(rising) - 1)
    low, high = rising[above - 1], rising[above]
    part = ((sigma - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
    return (above - 1 + part) / (len(rising) - 1)


def with_identity(
    model: ModelPatcher, weights: dict[str, Tensor], min_strength: float
) -> ModelPatcher:
    """A clone with the LoRA; its strength is 1 at the clean end of every run's sigmas.

    Args:
        model: The model.
        weights: `IdentityLora.weights`.
        min_strength: 0..1 strength at the noisiest level of a run; 1 patches the weights as core's
            LoRA loader does.
    """
    if min_strength == 1:
        return comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0)[0]
    dtype = model.model.get_dtype_inference()
    placed = {
        key: value.to(model.load_device, dtype if value.ndim == 2 else value.dtype)
        for key, value in weights.items()
    }
    loaded = comfy.lora.load_lora(placed, comfy.lora.model_lora_keys_unet(model.model, {}))
    adapters = {key.removesuffix(".weight"): adapter for key, adapter in loaded.items()}
    clone = model.clone()
    clone.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL, "palimpsest_identity", _following(adapters, min_strength)
    )
    return clone


def _following(adapters: dict[str, Adapter], min_strength: float) -> Callable[..., Tensor]:
    """A wrapper of core's model call in which the adapters act at the strength of the noise."""

    def follow(
        executor: Callable[..., Tensor],
        x: Tensor,
        sigma: Tensor,
        c_concat: Tensor | None,
        c_crossattn: Tensor | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any],
        **options: Any,
    ) -> Tensor:
        levels = transformer_options.get("sample_sigmas", sigma[:1])
        strength = strength_at(chain_position(sigma, levels), min_strength)
        with beside(executor.class_obj, adapters, strength):
            return executor(
                x, sigma, c_concat, c_crossattn, control, transformer_options, **options
            )

    return follow
