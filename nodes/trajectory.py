"""Nodes that look at trajectories, keep them, and turn them into latents and back."""

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io, ui
from torch import Tensor

from ..hosts.comfy.files.trajectories import (
    load_trajectory,
    save_trajectory,
    trajectory_files,
    trajectory_from_latents,
    trajectory_path,
    trajectory_place,
)
from ..hosts.comfy.latents import decode_pictures, samples_of
from ..hosts.comfy.refusals import check_has_picture
from ..pipelines.errors import PalimpsestError
from ..pipelines.trajectory import Trajectory as Chain
from .border import Node
from .wires import Trajectory

CATEGORY = "palimpsest/trajectory"


FRAMES = io.Int.Input("frames", default=8, min=2, max=64, tooltip="How many stages to show.")


class PreviewTrajectory(Node):
    """A filmstrip of what the model guessed at every stage."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestPreviewTrajectory",
            display_name="Preview Trajectory",
            category=CATEGORY,
            description="Shows the picture that the model saw at stages of the inversion, from "
            "noise on the left to the picture itself on the right. Runs no model but the VAE.",
            search_aliases=["filmstrip", "inspect inversion", "x0 preview"],
            inputs=[
                Trajectory.Input("trajectory", tooltip="From Invert."),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                FRAMES,
            ],
            outputs=[
                io.Image.Output(
                    display_name="filmstrip", tooltip="The stages side by side, one row a picture."
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def run(cls, trajectory: Chain, vae: VAE, frames: int) -> io.NodeOutput:
        _, guesses = trajectory.clean_estimates(frames)
        check_has_picture(trajectory.origin, "Preview Trajectory")
        pictures = [decode_pictures(vae, trajectory.in_host_scale(guess)) for guess in guesses]
        strip = torch.cat(pictures, dim=2)
        return io.NodeOutput(strip, ui=ui.PreviewImage(strip, cls=cls))


class TrajectoryToLatents(Node):
    """All stages as one LATENT batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestTrajectoryToLatents",
            display_name="Trajectory to Latents",
            category=CATEGORY,
            description="Gives all stages of a trajectory as one latent batch, the clean picture "
            "first, for any node that takes latents.",
            search_aliases=["latent batch", "noisy latents"],
            inputs=[Trajectory.Input("trajectory", tooltip="From Invert.")],
            outputs=[
                io.Latent.Output(
                    display_name="latents", tooltip="Stage by stage, the clean picture first."
                ),
                io.Sigmas.Output(display_name="sigmas", tooltip="The stages' noise levels."),
            ],
        )

    @classmethod
    def run(cls, trajectory: Chain) -> io.NodeOutput:
        noisy = trajectory.in_host_scale(trajectory.latents[1:]).flatten(0, 1)
        levels = torch.cat([trajectory.origin.to(noisy), noisy])
        return io.NodeOutput({"samples": levels}, trajectory.falling_sigmas)


class LatentsToTrajectory(Node):
    """A LATENT batch of all stages as a trajectory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestLatentsToTrajectory",
            display_name="Latents to Trajectory",
            category=CATEGORY,
            description="Makes a trajectory from a latent batch that holds all stages, the clean "
            "picture first: the way back from Trajectory to Latents.",
            search_aliases=["latent batch", "trajectory from latents"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the latents are for."),
                io.Latent.Input("latents", tooltip="Stage by stage, the clean picture first."),
                io.Sigmas.Input("sigmas", tooltip="The stages' noise levels, falling to 0."),
            ],
            outputs=[Trajectory.Output(display_name="trajectory", tooltip="For Edit.")],
        )

    @classmethod
    def run(cls, model: ModelPatcher, latents: dict[str, Any], sigmas: Tensor) -> io.NodeOutput:
        return io.NodeOutput(trajectory_from_latents(model, samples_of(model, latents), sigmas))


FILENAME_PREFIX = io.String.Input(
    "filename_prefix",
    default="trajectories/palimpsest",
    tooltip="Name, with folders if you like, inside the output folder.",
    extra_dict={"palimpsest_file_name": True},
)


class SaveTrajectory(Node):
    """A trajectory as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestSaveTrajectory",
            display_name="Save Trajectory",
            category=CATEGORY,
            description="Saves a trajectory as a safetensors file in ComfyUI's output folder, "
            "under a new number each time.",
            search_aliases=["export trajectory", "save latents"],
            inputs=[Trajectory.Input("trajectory", tooltip="From Invert."), FILENAME_PREFIX],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        if filename_prefix is None:  # it comes by wire, when the node runs
            return True
        try:
            trajectory_place(filename_prefix)
        except PalimpsestError as error:
            return str(error)
        return True

    @classmethod
    def run(cls, trajectory: Chain, filename_prefix: str) -> io.NodeOutput:
        path = save_trajectory(trajectory, filename_prefix)
        return io.NodeOutput(ui={"palimpsest_text": [f"saved as {path.name}"]})


class LoadTrajectory(Node):
    """A trajectory from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestLoadTrajectory",
            display_name="Load Trajectory",
            category=CATEGORY,
            description="Loads a trajectory that Save Trajectory wrote.",
            search_aliases=["import trajectory", "load latents"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=trajectory_files(),
                    tooltip="A file in ComfyUI's input or output folder; Upload adds one.",
                    extra_dict={"palimpsest_upload": ".safetensors"},
                )
            ],
            outputs=[Trajectory.Output(display_name="trajectory", tooltip="For Edit.")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        if file is None:  # it comes by wire, or core itself says that it lacks
            return True
        try:
            trajectory_path(file)
        except PalimpsestError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        stat = trajectory_path(file).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"

    @classmethod
    def run(cls, file: str) -> io.NodeOutput:
        return io.NodeOutput(load_trajectory(file))


NODES = [
    PreviewTrajectory,
    TrajectoryToLatents,
    LatentsToTrajectory,
    SaveTrajectory,
    LoadTrajectory,
]
