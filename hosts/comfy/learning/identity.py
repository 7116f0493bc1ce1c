"""Identity: a LoRA that learns one picture, so that a drag keeps its subject.

The low-rank layers, the training loop, its optimiser step and its progress are ComfyUI's own
(`comfy.weight_adapter`, `comfy_extras.nodes_train`); ours are the choice of the layers and the
loss, both as published with SDE-Drag.

- Nie et al., The Blessing of Randomness, 2023, arXiv:2311.01410
- Hu et al., LoRA, 2021, arXiv:2106.09685
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.model_sampling
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter import LoRAAdapter, WeightAdapterTrainBase
from comfy_extras import nodes_train
from torch import Tensor

from ....pipelines.errors import PalimpsestError
from ..guidance import Conditioning, check_width
from ..refusals import check_samples, require_variance_preserving
from .identity_strength import beside
from .training import (
    check_learned,
    check_trainable,
    in_training,
    plain_attention,
    recomputed,
    with_copied_weights,
)

RANKS = (1, 128)
STEPS = (1, 10000)

#: The published layers: queries, keys, values and outputs of self- and cross-attention.
PROJECTIONS = re.compile(r"\.attn[12]\.to_(q|k|v|out\.0)$")

#: The published optimiser, next to the learning rate.
ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}

#: How many fixed noise levels tell what the training did.
MEASURED = 8


@dataclass(frozen=True, eq=False)
class IdentityRequest:
    """What to learn, and how.

    Attributes:
        model: An eps- or v-prediction model with a UNet.
        positive: The prompt of the edit.
        latent: The LATENT; its samples [B, C, h, w] are learned, one at a time.
        rank: Rank of the LoRA; its alpha is the same, so its own scale is 1.
        steps: Optimiser steps.
        learning_rate: Constant.
        seed: Draws the first weights, the noise and the noise levels.
    """

    model: ModelPatcher
    positive: Conditioning
    latent: dict[str, Any]
    rank: int = 16
    steps: int = 100
    learning_rate: float = 2e-4
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            PalimpsestError: In one sentence.
        """
        require_variance_preserving(self.model, "Identity LoRA")
        check_trainable(self.model, "Identity LoRA")
        check_samples(self.model, self.latent["samples"])
        if "noise_mask" in self.latent:
            raise PalimpsestError(
                "The latent carries a noise mask, but the LoRA learns the whole picture: "
                "remove Set Latent Noise Mask and give the mask to the drag."
            )
        check_learned(self.positive, "positive", "Identity LoRA")
        check_width(self.model, self.positive, "positive")
        _check_range("Rank", self.rank, RANKS)
        _check_range("Steps", self.steps, STEPS)
        if not 0 < self.learning_rate <= 1:
            raise PalimpsestError(
                f"The learning rate must be above 0 and at most 1, got {self.learning_rate}: "
                "0.0002 is the published one."
            )


def _check_range(what: str, value: int, allowed: tuple[int, int]) -> None:
    if not allowed[0] <= value <= allowed[1]:
        raise PalimpsestError(f"{what} must be {allowed[0]} to {allowed[1]}, got {value}.")


@dataclass(frozen=True, eq=False)
class IdentityLora:
    """A trained LoRA.

    Attributes:
        weights: Core's LORA_MODEL: `lora_up.weight` [out, rank], `lora_down.weight` [rank, in] and
            `alpha` of every projection, float32, on the CPU.
        losses: Mean squared error of the network's own output at every step; they leap, since every
            step draws another noise level.
        before: The mean of that error over `MEASURED` fixed levels and noises, before the training.
        after: The same after it.
        seconds: Wall time, loading included.
    """

    weights: dict[str, Tensor]
    losses: Sequence[float]
    before: float
    after: float
    seconds: float


def train_identity(request: IdentityRequest) -> IdentityLora:
    """Train a LoRA on the request's latent; the model, its weights and other clones stay as is.

    Raises:
        PalimpsestError: In one sentence; also where the loss is no number any more.
    """
    request.check()
    start = time.perf_counter()
    losses: list[float] = []
    model = _trainable(request.model)
    # Everything else leaves the GPU first: core's estimate of memory is for sampling. Its loading
    # moves weights in place, which those made in inference mode allow in that mode alone.
    comfy.model_management.load_models_gpu([model], memory_required=1e20, force_full_load=True)
    # Core draws from torch's generator of the CPU, which gets its state back.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
        in_training(),
    ):
        torch.default_generator.manual_seed(request.seed)
        adapters = _new_adapters(model, request.rank)
        with (
            beside(model.model, adapters, torch.ones(1, device=model.load_device)),
            recomputed(model.model.diffusion_model),
        ):
            before, after = _optimise(model, request, adapters, losses.append)
        weights = {
            f"{name}.{part}": tensor.detach().to("cpu", torch.float32, copy=True)
            for name, adapter in adapters.items()
            for part, tensor in adapter.state_dict().items()
        }
    return IdentityLora(weights, losses, before, after, time.perf_counter() - start)


def _optimise(
    model: ModelPatcher,
    request: IdentityRequest,
    adapters: dict[str, WeightAdapterTrainBase],
    on_loss: Callable[[float], None],
) -> tuple[float, float]:
    """Core's training loop on the adapters, with the published optimiser and loss.

    Returns:
        The measured loss before and after.
    """
    learned = [p for a in adapters.values() for p in a.parameters() if p.requires_grad]
    dtype = _compute_dtype(model.model)
    sampler = _NetworkLoss(
        None,
        torch.optim.AdamW(learned, lr=request.learning_rate, **ADAMW),
        on_loss,
        total_steps=request.steps,
        seed=request.seed % 2**63,
        training_dtype=dtype,
        use_grad_scaler=dtype == torch.float16,
    )
    samples = request.latent["samples"].float().clone()
    embedding, about = request.positive[0]
    about = {k: v.clone() if isinstance(v, Tensor) else v for k, v in about.items()}
    guider = nodes_train.TrainGuider(model)
    guider.set_conds([[embedding.clone(), about] for _ in samples])
    pictures = torch.arange(len(samples), dtype=torch.float32)  # core counts them here
    guider.sample(torch.zeros_like(samples), samples, sampler, pictures, seed=0)
    return sampler.measured


class _NetworkLoss(nodes_train.TrainSampler):
    """Core's training loop, with the loss on what the network itself predicts: noise, or v.

    Core compares denoised pictures; that counts a level by sigma^2 (noise) or by
    sigma^2 / (1 + sigma^2) (v), which is undone here.

    Attributes:
        measured: After the run, the loss over fixed levels and noises before it and after it.
    """

    measured: tuple[float, float]

    def sample(
        self,
        model_wrap: nodes_train.TrainGuider,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        prompts = list(model_wrap.conds["positive"])
        before = self._measure(model_wrap, prompts, extra_args, latent_image)
        model_wrap.conds["positive"] = prompts  # a step leaves there only what it used
        out = super().sample(
            model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask
        )
        self.measured = before, self._measure(model_wrap, prompts, extra_args, latent_image)
        return out

    def fwd_bwd(
        self,
        model_wrap: nodes_train.TrainGuider,
        batch_sigmas: Tensor,
        *args: Any,
        **options: Any,
    ) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        squared = batch_sigmas.detach().view(-1, 1, 1, 1) ** 2
        sampling = model_wrap.inner_model.model_sampling
        predicts_v = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
        weight = (1 + squared if predicts_v else 1) / squared
        self.loss_fn = lambda denoised, clean: (weight * (denoised - clean).square()).mean()
        loss = super().fwd_bwd(model_wrap, batch_sigmas, *args, **options)
        if not math.isfinite(loss.item()):
            raise PalimpsestError(
                "The loss is not a number any more: lower the learning rate of Identity LoRA; "
                "where it was none from the first step, the latent or the model overflows, so "
                "encode the picture again and load the model in bfloat16 or float32."
            )
        return loss

    def _measure(
        self,
        model_wrap: nodes_train.TrainGuider,
        prompts: list[dict[str, Any]],
        extra_args: dict[str, Any],
        clean: Tensor,
    ) -> float:
        """Mean loss over fixed levels, spread over the model's steps, and fixed noises."""
        generator = torch.Generator().manual_seed(self.seed)
        total = 0.0
        for n in range(MEASURED):
            which = n % len(clean)
            picture = clean[which : which + 1]
            noise = torch.randn(picture.shape, generator=generator).to(picture)
            percent = (n + 0.5) / MEASURED
            sigma = model_wrap.inner_model.model_sampling.percent_to_sigma(percent)
            level = torch.tensor([float(sigma)]).to(picture)
            with torch.no_grad():
                loss = self.fwd_bwd(
                    model_wrap,
                    level,
                    noise,
                    picture,
                    prompts,
                    [which],
                    extra_args,
                    len(clean),
                    bwd=False,
                )
            total += loss.item() / MEASURED
        return total


def _compute_dtype(model: BaseModel) -> torch.dtype:
    """The dtype of the training's arithmetic, as core's trainer chooses it; float32 stays."""
    dtype = model.get_dtype()
    return dtype if dtype in (torch.float16, torch.float32) else torch.bfloat16


def _trainable(model: ModelPatcher) -> ModelPatcher:
    """A clone through which gradients flow; it shares the weights of `model`."""
    clone = with_copied_weights(model)
    # Attention patches and wrappers of other nodes are made for sampling, not for gradients; and
    # some of the attention kernels a user may choose have none.
    clone.model_options = {"transformer_options": {"optimized_attention_override": plain_attention}}
    clone.wrappers.clear()
    return clone


def _new_adapters(model: ModelPatcher, rank: int) -> dict[str, WeightAdapterTrainBase]:
    """Core's trainable low-rank layer for every projection, by module name; they add 0 at first."""
    adapters = {}
    for name, module in model.model.named_modules():
        if PROJECTIONS.search(name):
            # On the CPU always, so that a seed draws the same wherever the model lies.
            like = torch.empty(module.weight.shape, device="cpu")
            adapter = LoRAAdapter.create_train(like, rank=rank, alpha=float(rank))
            adapters[name] = adapter.to(model.load_device)
    return adapters
