"""What tells a model or a conditioning from others, as text that a file can keep."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...pipelines.trajectory import Recipe
from .coordinates import coordinates_of
from .guests import changes_calls
from .guidance import Conditioning


def fingerprint(model: ModelPatcher) -> str:
    """What tells a model from others: its architecture and a few of its weights, as text."""
    config = {k: str(v) for k, v in model.model.model_config.unet_config.items() if k != "dtype"}
    key = _probed(model)
    probe = [
        round(float(value), 4)
        for weight, *_ in model.get_key_patches(key).get(key, [])[:1]
        for value in (weight[0] if isinstance(weight, tuple) else weight).flatten()[:8]
    ]
    told = {"kind": type(model.model).__name__, "config": config, "probe": probe}
    return json.dumps(told | {"prediction": prediction(model)}, sort_keys=True)


def prediction(model: ModelPatcher) -> str:
    """What its network's output is taken for: the name of core's class for it, such as EPS."""
    kinds = type(model.get_model_object("model_sampling")).__mro__
    return next((kind.__name__ for kind in kinds if "calculate_denoised" in vars(kind)), "")


def _probed(model: ModelPatcher) -> str:
    """The model's first vector of weights: small, and other in every training."""
    weights = model.model.diffusion_model.named_parameters(prefix="diffusion_model")
    return next((name for name, weight in weights if weight.ndim == 1), "")


def same_model(one: str, other: str) -> bool:
    """Whether two fingerprints are of one model, whatever dtype it was loaded in."""
    a, b = json.loads(one), json.loads(other)
    alike = len(a["probe"]) == len(b["probe"]) and all(
        # bf16 keeps 8 bits of a weight, fp8 four: what is meant is the same number.
        abs(x - y) <= 0.07 * max(abs(x), abs(y)) + 1e-3
        for x, y in zip(a["probe"], b["probe"], strict=True)
    )
    return alike and a["kind"] == b["kind"] and a["config"] == b["config"]


def same_prediction(one: str, other: str) -> bool:
    """Whether two fingerprints take the network's output for the same; older ones do not say."""
    a, b = (json.loads(each).get("prediction", "") for each in (one, other))
    return not (a and b) or a == b


def conditioning_key(conditioning: Conditioning) -> str:
    """A digest of all numbers and words of a conditioning; "" where it holds what has none.

    ControlNets, hooks and other live objects cannot be told apart from their like.
    """
    return digest_of(conditioning)


def digest_of(value: Any) -> str:
    """A digest of tensors, numbers and words, nested; "" where it holds what has none."""
    digest = hashlib.sha256()
    return digest.hexdigest() if _feed(digest, value) else ""


def prompt_key(conditioning: Conditioning) -> str:
    """A digest of what the text encoder made of a prompt, whatever was added to it since."""
    return digest_of([entry[0] for entry in conditioning])[:16]


def source_key(model: ModelPatcher, conditionings: list[Conditioning], *, note: str = "") -> str:
    """What a source's predictions depend on besides its chain; "" where it has no name.

    Args:
        model: The model; its LoRA and other changes of weights count.
        conditionings: What the model is shown.
        note: Anything else, such as a guidance scale.
    """
    keys = [conditioning_key(conditioning) for conditioning in conditionings]
    if model.patches:  # LoRA, and whatever else changes weights
        keys.append(str(model.patches_uuid))
    if "model_sampling" in model.object_patches:
        keys.append(_sampling_key(model))
    if changes_calls(model) or not all(keys):
        return ""  # patches of calls are functions, which have no name to go by
    return " ".join([note, *keys]) if note else " ".join(keys)


def _sampling_key(model: ModelPatcher) -> str:
    """What core's ModelSampling nodes change: the prediction, its levels and its numbers."""
    sampling, digest = model.get_model_object("model_sampling"), hashlib.sha256()
    numbers = {k: v for k, v in vars(sampling).items() if isinstance(v, int | float)}
    _feed(digest, [prediction(model), numbers, dict(sampling.named_buffers())])
    return digest.hexdigest()


def guided_key(
    model: ModelPatcher, positive: Conditioning, negative: Conditioning, cfg: float
) -> str:
    """What tells a guided denoiser from others; "" where it has no name.

    Guided away from its own prompt, at whatever scale, it is the prompt's.
    """
    if cfg == 1 or conditioning_key(positive) == conditioning_key(negative):
        return source_key(model, [positive], note="1")
    return source_key(model, [positive, negative], note=f"{cfg:g}")


def _feed(digest: Any, value: Any) -> bool:
    """Feed a value into a digest; False where that is not possible."""
    if isinstance(value, Tensor):
        if value.is_nested:
            return False
        plain = value.detach().float().cpu().contiguous()
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(plain.numpy().tobytes())
        return True
    if isinstance(value, dict):
        return all(_feed(digest, pair) for pair in sorted(value.items(), key=lambda p: str(p[0])))
    if isinstance(value, list | tuple):
        digest.update(f"{type(value).__name__}{len(value)}".encode())
        return all(_feed(digest, item) for item in value)
    digest.update(repr(value).encode())
    return value is None or isinstance(value, bool | int | float | str)


def describe(model: ModelPatcher, recipe: Recipe) -> Recipe:
    """A recipe that also says which model it was and how that model scales a LATENT."""
    known = model.get_model_object("latent_format")
    cell = (1, known.latent_channels, *[1] * known.latent_dimensions)
    zero, one = (
        model.model.process_latent_out(torch.full(cell, value)).flatten().tolist()
        for value in (0.0, 1.0)
    )
    return replace(
        recipe,
        model=fingerprint(model),
        noise_scale=coordinates_of(model, "A trajectory").noise_scale,
        latent_slope=tuple(b - a for a, b in zip(zero, one, strict=True)),
        latent_offset=tuple(zero),
    )


def features_key(model: ModelPatcher, source: Conditioning) -> str:
    """What source features depend on besides the chain; "" where that has no name."""
    return source_key(model, [source])
