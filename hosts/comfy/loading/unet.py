"""A diffusers UNet folder as a ComfyUI MODEL: its own UNetModel under its own model management.

Only descriptions are made here: the UNet's shape, the noise schedule and the latent format.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import Timestep, UNetModel
from torch import Tensor, nn

from .noise_schedule import NoiseSchedule, read_schedule
from .patcher import as_model
from .unet_shape import UNetShape, read_shape
from .vae import latent_format
from .weights import read_weights


def load_unet(folder: Path, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Load the UNet of a pipeline folder as ComfyUI's loaders would.

    Args:
        folder: The pipeline folder.
        disable_dynamic: What ComfyUI asks for when it needs a copy without dynamic VRAM.

    Raises:
        PalimpsestError: If ComfyUI has no network for it, or its weights do not fit.
    """
    shape = read_shape(folder)
    config = FolderModel(
        shape, read_schedule(folder), latent_format(folder, xl=shape.time_id_width > 0)
    )
    names = comfy.utils.unet_to_diffusers(shape.unet_config)
    read = read_weights(folder / "unet", "diffusion_pytorch_model")
    weights = {names.get(key, key): weight for key, weight in read.items()}
    return as_model(
        config,
        lambda: UNetModel(**shape.unet_config, operations=comfy.ops.disable_weight_init),
        weights,
        "unet",
        {ours: theirs for theirs, ours in names.items()},
        (load_unet, (folder,)),
        disable_dynamic,
    )


class FolderModel(comfy.supported_models_base.BASE):
    """What core calls a model config, read from a folder instead of guessed from weights."""

    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012 - core's own declaration
    memory_usage_factor = 1.0

    def __init__(
        self,
        shape: UNetShape,
        schedule: NoiseSchedule,
        latents: comfy.latent_formats.LatentFormat,
    ) -> None:
        super().__init__(shape.unet_config)
        self.shape = shape
        self.schedule = schedule
        self.latent_format = latents
        self.sampling_settings = dict(schedule.settings)
        if shape.time_id_width:
            self.memory_usage_factor = comfy.supported_models.SDXL.memory_usage_factor

    def inpaint_model(self) -> bool:
        """Whether the UNet also takes a mask and a masked picture."""
        return self.unet_config["in_channels"] > self.latent_format.latent_channels

    def model_type(
        self, state_dict: Mapping[str, Tensor], prefix: str = ""
    ) -> comfy.model_base.ModelType:
        """What the network predicts."""
        return comfy.model_base.ModelType[self.schedule.prediction]

    def get_model(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str = "",
        device: torch.device | None = None,
    ) -> comfy.model_base.BaseModel:
        """Make the network, without weights."""
        make = FolderSDXL if self.shape.time_id_width else comfy.model_base.BaseModel
        model = make(self, model_type=self.model_type(state_dict), device=device)
        if self.inpaint_model():
            model.set_inpaint()
        if self.schedule.sigmas is not None:
            model.model_sampling.set_sigmas(self.schedule.sigmas)
        if not self.shape.uniform:
            set_heads(model.diffusion_model, self.shape)
        return model


class FolderSDXL(comfy.model_base.SDXL):
    """SDXL whose sizes are embedded in any number of channels; core's are always 256 wide."""

    def __init__(
        self,
        model_config: FolderModel,
        model_type: comfy.model_base.ModelType,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(model_config, model_type, device=device)
        self.embedder = Timestep(model_config.shape.time_id_width)


def set_heads(unet: nn.Module, shape: UNetShape) -> None:
    """Give every level its own number of heads, which UNetModel's arguments cannot say.

    The weights do not depend on it: a head is only where a projection is cut.
    """
    coarsest = len(shape.heads) - 1
    for theirs, ours in comfy.utils.unet_to_diffusers(shape.unet_config).items():
        if not theirs.endswith(".attn1.to_q.weight"):
            continue
        side, number = theirs.split(".")[:2]
        n = int(number) if number.isdigit() else 0
        level = {"down_blocks": n, "up_blocks": coarsest - n}.get(side, coarsest)
        heads = shape.heads[level]
        block = unet.get_submodule(ours.removesuffix(".attn1.to_q.weight"))
        head_width = block.n_heads * block.d_head // heads
        block.n_heads, block.d_head = heads, head_width
        for attention in (block.attn1, block.attn2):
            attention.heads, attention.dim_head = heads, head_width
