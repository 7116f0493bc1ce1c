"""Nodes that edit a picture along its trajectory."""

from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..hosts.comfy.cost import cost_text
from ..hosts.comfy.edits.bound import BoundControl
from ..hosts.comfy.edits.edit import (
    EditRequest,
    Outcome,
    allowed,
    edit,
    reconstruction_text,
)
from ..hosts.comfy.edits.guider import EditGuider
from ..hosts.comfy.graph import is_wired
from ..hosts.comfy.guidance import Conditioning
from ..pipelines.correction import ADD_SOURCE, ADD_TARGET, UNCORRECTED, Correction
from ..pipelines.errors import PalimpsestError
from ..pipelines.trajectory import Trajectory as Chain
from .border import Node
from .wires import Control, Trajectory, report

CATEGORY = "palimpsest/edit"
RECONSTRUCTED = 1


CFG = io.Float.Input(
    "cfg",
    default=7.5,
    min=0.0,
    max=100.0,
    step=0.1,
    tooltip="How strongly the target prompt is followed.",
)
CONTROL = Control.Input(
    "control",
    optional=True,
    tooltip="From Prompt-to-Prompt or another control: keeps the layout. Without it only the "
    "prompt changes.",
)
MASK = io.Mask.Input(
    "mask",
    optional=True,
    tooltip="White where the picture may change; outside it every pixel of the latent "
    "stays as it was.",
)
NEGATIVE = io.Conditioning.Input(
    "negative",
    optional=True,
    tooltip="What to avoid. Left open it is the empty prompt, which Prompt-to-Prompt brings along.",
)


def _inputs(corrections: list[str]) -> list[io.Input]:
    """What Edit and Edit Guider have in common."""
    return [
        io.Model.Input("model", tooltip="The model that inverted the picture."),
        Trajectory.Input("trajectory", tooltip="From Invert: the picture at every stage."),
        io.Conditioning.Input("source", tooltip="What the picture shows now, as for Invert."),
        io.Conditioning.Input("target", tooltip="What the picture shall show."),
        NEGATIVE,
        CFG,
        io.Combo.Input(
            "correction",
            options=corrections,
            tooltip="direct inversion keeps the source exact while the target is edited; none "
            "lets it drift, as plain DDIM inversion does"
            + (
                "; add source and add target also tie the target to it: to what the source, or the "
                "target, misses of the picture."
                if len(corrections) > 2
                else "."
            )
            + " Not read where the trajectory is noise (Edit Friendly, CycleDiffusion, Cycle-SDE), "
            "which is repeated, or leads back by itself (EDICT, Uni-Inv).",
        ),
        CONTROL,
        MASK,
    ]


SCALE = io.Float.Input(
    "scale",
    default=1.0,
    min=0.0,
    max=2.0,
    step=0.05,
    tooltip="Direct inversion only: which part of the source's error is corrected.",
    advanced=True,
)
INTERVAL = io.Int.Input(
    "interval",
    default=1,
    min=1,
    max=1000,
    tooltip="Direct inversion only: correct every how many steps.",
    advanced=True,
)


class Edit(Node):
    """The edit loop of Direct Inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestEdit",
            display_name="Edit Inverted Image",
            category=CATEGORY,
            description="Paints the picture again along its trajectory with another prompt, and "
            "keeps what the prompt does not touch.",
            search_aliases=[
                "edit photo",
                "edit image",
                "image edit",
                "edit real image",
                "direct inversion",
                "pnp inversion",
                "prompt to prompt",
                "real image editing",
                "change color",
                "keep background",
                "background drift",
                "resample",
            ],
            inputs=[
                *_inputs(["direct inversion", "none", "add source", "add target"]),
                SCALE,
                INTERVAL,
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The edited picture."),
                io.Latent.Output(
                    display_name="reconstruction",
                    tooltip="The source as the edit saw it: exact under direct inversion, drifted "
                    "under none. Costs extra rows only where it drifts and is connected.",
                ),
                io.String.Output(
                    display_name="cost",
                    tooltip="UNet rows and seconds of inversion and edit, for Comparison Sheet.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    tooltip="Where the picture was let change in the last step: the mask input, "
                    "and what LocalBlend found. White all over without either.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        correction: str | None = None,
        scale: float | None = None,
        interval: int | None = None,
        **_others: Any,
    ) -> bool:
        # Connecting a reconstruction that drifts must run the node again. What comes by wire is
        # not known here (core gives None): it may drift.
        known = None not in (correction, scale, interval)
        drifts = not known or not _correction(correction, scale, interval).on_chain
        return drifts and is_wired(cls.hidden.unique_id, RECONSTRUCTED)

    @classmethod
    def run(
        cls,
        correction: str,
        scale: float,
        interval: int,
        control: BoundControl | None = None,
        mask: Tensor | None = None,
        negative: Conditioning | None = None,
        **asked: Any,
    ) -> io.NodeOutput:
        request = EditRequest(
            **asked,
            negative=_negative(negative, control, **asked),
            control=control,
            mask=mask,
            correction=_correction(correction, scale, interval),
            keep_source=is_wired(cls.hidden.unique_id, RECONSTRUCTED),
        )
        made = edit(request)
        blocked = ExecutionBlocker(None) if made.source is None else {"samples": made.source}
        cost = cost_text(made.spent, request.trajectory.recipe)
        where, shown = allowed(request, made.bounds), report(made.spent, _told(request, made))
        if made.bounds is not None:
            shown |= ui.PreviewMask(where, cls=cls).as_dict()
        return io.NodeOutput({"samples": made.latent}, blocked, cost, where, ui=shown)


def _told(request: EditRequest, made: Outcome) -> str:
    """What Edit says of its run."""
    text = f"{made.spent.rows} UNet rows, {made.spent.seconds:.1f} s"
    text += f"\nreconstruction: {reconstruction_text(made.source, request.trajectory.origin)}"
    told = [carried.told(request.trajectory, request.cfg) for carried in request.trajectory.carried]
    return "\n".join(filter(None, [text, *told, _bounds_told(made.bounds)]))


def _bounds_told(bounds: Tensor | None) -> str:
    """How much of the picture the control let change; "" where it bounds nothing."""
    if bounds is None:
        return ""
    share = float(bounds.float().mean())
    if not share:
        return (
            "LocalBlend found its words nowhere: the picture is unchanged; lower its threshold, or "
            "name other words"
        )
    return f"LocalBlend let {share:.0%} of the picture change"


class EditGuiderNode(Node):
    """The same edit for core's samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestEditGuider",
            display_name="Edit Inverted Image (Guider)",
            category=CATEGORY,
            description="Edit as a guider for SamplerCustomAdvanced, with sampler euler, the "
            "sigmas of Invert, and its noise (or its latent with noise disabled).",
            search_aliases=[
                "direct inversion",
                "guider",
                "prompt to prompt",
                "custom sampling",
                "edit image",
            ],
            inputs=_inputs(["direct inversion", "none"]),
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def run(
        cls,
        correction: str,
        control: BoundControl | None = None,
        mask: Tensor | None = None,
        negative: Conditioning | None = None,
        **asked: Any,
    ) -> io.NodeOutput:
        request = EditRequest(
            **asked,
            negative=_negative(negative, control, **asked),
            control=control,
            mask=mask,
            correction=_correction(correction, 1.0, 1),
        )
        return io.NodeOutput(EditGuider(request))


def _negative(
    given: Conditioning | None,
    control: BoundControl | None,
    *,
    trajectory: Chain,
    cfg: float,
    target: Conditioning,
    **_others: Any,
) -> Conditioning:
    """The other end of the guidance: what is connected, or else the empty prompt.

    Raises:
        PalimpsestError: If nobody knows the empty prompt, and it is needed.
    """
    if given is not None:
        return given
    if control is not None and control.empty is not None:
        return control.empty
    if cfg == 1 and trajectory.recipe.source_cfg in (None, 1):
        return target  # which is not asked for
    raise PalimpsestError(
        f"negative is not connected, which cfg {cfg:g} needs: connect a CLIP Text Encode with an "
        "empty text, or a Prompt-to-Prompt to control, which brings the empty prompt along."
    )


def _correction(name: str, scale: float, interval: int) -> Correction:
    if name == "none":
        return UNCORRECTED
    added = {"add source": ADD_SOURCE, "add target": ADD_TARGET}
    return added.get(name) or Correction(scale, interval)


NODES = [Edit, EditGuiderNode]
