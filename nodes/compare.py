"""The node that puts methods side by side."""

from typing import Any

from comfy_api.latest import io

from ..hosts.comfy.edits.compare import CompareRequest, compare, comparison_sheet
from ..hosts.comfy.edits.compare import Comparison as Rows
from .border import Node
from .wires import Comparison

CATEGORY = "palimpsest/compare"


RECONSTRUCTION = io.Latent.Input(
    "reconstruction",
    optional=True,
    tooltip="From Edit: the source as the edit saw it. Without it a cell is empty.",
)
COST = io.String.Input(
    "cost",
    optional=True,
    force_input=True,
    tooltip="From Edit: what inversion and edit took.",
)
MASK = io.Mask.Input(
    "mask",
    optional=True,
    tooltip="White where the picture may change: the edit is then measured where "
    "it is black. Changes nothing in the pictures.",
)
COMPARISON = Comparison.Input(
    "comparison", optional=True, tooltip="From another Comparison Sheet: the rows above."
)


class Compare(Node):
    """A row of a sheet for every method."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestCompare",
            display_name="Comparison Sheet",
            category=CATEGORY,
            description="Puts source, reconstruction and edit of one method into a row of a "
            "labelled sheet, with what they cost and how near they are to the source. Chain one "
            "node per method, and preview the sheet of the last.",
            search_aliases=["comparison", "grid", "xy plot", "psnr", "benchmark", "side by side"],
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Image.Input("source", tooltip="The picture that was encoded and inverted."),
                io.Latent.Input("edit", tooltip="From Edit: the edited picture."),
                io.String.Input("label", default="DDIM", tooltip="What the row is called."),
                RECONSTRUCTION,
                COST,
                MASK,
                COMPARISON,
            ],
            outputs=[
                Comparison.Output(
                    display_name="comparison",
                    tooltip="All rows so far, for another Comparison Sheet.",
                ),
                io.Image.Output(display_name="sheet", tooltip="The labelled sheet of all rows."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def run(
        cls,
        edit: dict[str, Any],
        reconstruction: dict[str, Any] | None = None,
        cost: str | None = None,
        comparison: Rows | None = None,
        **asked: Any,
    ) -> io.NodeOutput:
        back = None if reconstruction is None else reconstruction["samples"]
        request = CompareRequest(
            edit=edit["samples"], reconstruction=back, cost=cost or "", **asked
        )
        rows = compare(request, comparison or ())
        told = "\n".join(line.replace("\t", " ") for line in rows[-1].lines[1:])
        return io.NodeOutput(rows, comparison_sheet(rows), ui={"palimpsest_text": [told]})


NODES = [Compare]
