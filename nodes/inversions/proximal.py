"""The guidance that belongs to Negative-prompt inversion, for the edits of any trajectory."""

from typing import Any

from comfy_api.latest import io

from ...hosts.comfy.inversions.proximal import with_proximal
from ...pipelines.proximal import THRESHOLDS, Proximal
from ...pipelines.trajectory import Trajectory as Chain
from ..border import Node
from ..wires import Trajectory
from .shared import CATEGORY

THRESHOLD = io.Combo.Input(
    "threshold",
    options=list(THRESHOLDS),
    default="soft",
    tooltip="What is left of a change: soft makes all of it smaller, hard drops "
    "the small ones only; published l0 and l1 are what the released code does.",
)
QUANTILE = io.Float.Input(
    "quantile",
    default=0.5,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="Which part of the latent is left alone at every step: more keeps "
    "more of the picture. Not read where fixed is above 0.",
)
PULL = io.Float.Input(
    "pull",
    default=0.1,
    min=0.0,
    max=1.0,
    step=0.05,
    tooltip="Draws what was left alone back to the picture; 0 is off, 1 puts it there at once.",
)
BELOW = io.Float.Input(
    "below",
    default=0.535,
    min=0.0,
    max=1.0,
    step=0.005,
    tooltip="How noisy the picture may be where pull acts: 0 never, 1 always. The "
    "default is the published one (timestep 400 of Stable Diffusion).",
    advanced=True,
)
DILATE = io.Int.Input(
    "dilate",
    default=1,
    min=0,
    max=64,
    tooltip="By how many cells of the latent the changed part is widened before pull spares it.",
    advanced=True,
)
FIXED = io.Float.Input(
    "fixed",
    default=0.0,
    min=0.0,
    max=10.0,
    step=0.01,
    tooltip="The threshold itself instead of a quantile, in units of the model's "
    "noise; 0 takes the quantile.",
    advanced=True,
)


class ProximalGuidance(Node):
    """Settings that travel with a trajectory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestProximalGuidance",
            display_name="Proximal Guidance",
            category=CATEGORY,
            description="Stands between an Invert node and Edit: what the new prompt hardly "
            "changes is then not changed at all, which keeps the background.",
            search_aliases=["proxnpi", "prox", "proximal negative-prompt", "inversion guidance"],
            inputs=[
                Trajectory.Input("trajectory", tooltip="From an Invert node."),
                THRESHOLD,
                QUANTILE,
                PULL,
                BELOW,
                DILATE,
                FIXED,
            ],
            outputs=[
                Trajectory.Output(
                    display_name="trajectory",
                    tooltip="The same one, for Edit: its cfg must be above 1.",
                )
            ],
        )

    @classmethod
    def run(cls, trajectory: Chain, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(with_proximal(trajectory, Proximal(**settings)))


NODES = [ProximalGuidance]
