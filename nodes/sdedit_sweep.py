"""SDEdit at several strengths and seeds on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io, ui
from torch import Tensor

from ..hosts.comfy.cost import Spent
from ..hosts.comfy.edits.sdedit import UNITS, SDEditRequest, paint_anew
from ..hosts.comfy.latents import batch_index_of, decode_pictures, samples_of
from ..hosts.comfy.refusals import refuse_noise_mask
from ..hosts.drawing.sheet import Sheet, draw_sheet
from ..pipelines.errors import PalimpsestError, quoted
from .border import Node
from .inputs import scheduler_input, seed_input, taken
from .sdedit import CATEGORY, FULL_MASK, STRENGTH, Noising, painting_inputs, prompt_inputs
from .wires import report

NAME = "SDEdit Sweep"

UNIT = io.Combo.Input("unit", options=list(UNITS), tooltip="What the strengths count; see SDEdit.")
STRENGTHS = io.String.Input(
    "strengths",
    default="0.2, 0.35, 0.5, 0.6, 0.7",
    tooltip="The strengths, by commas: one column each.",
)
SEEDS = io.Int.Input("seeds", default=3, min=1, max=16, tooltip="How many seeds: one row each.")


@dataclass(frozen=True)
class Columns:
    """The strengths of a sweep, and how the noise is taken away."""

    unit: str
    strengths: str
    steps: int
    scheduler: str

    def levels(self, model: ModelPatcher) -> list[tuple[Tensor, float]]:
        """Levels and first sigma of every column, as `Noising.levels` gives them."""
        return [
            Noising(self.unit, strength, self.steps, self.scheduler).levels(model)
            for strength in numbers(self.strengths)
        ]


class SDEditSweep(Node):
    """Strengths and seeds on one sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestSDEditSweep",
            display_name=NAME,
            category=CATEGORY,
            description="SDEdit at several strengths and seeds on one labelled sheet, to choose "
            "between realism and faithfulness by eye.",
            search_aliases=["sdedit", "xy plot", "grid", "sweep", "denoise comparison"],
            inputs=[
                *prompt_inputs(),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                UNIT,
                STRENGTHS,
                SEEDS,
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Steps of each."),
                scheduler_input("normal", "How the steps are spread."),
                *painting_inputs(),
                seed_input(),
                io.Mask.Input("mask", optional=True, tooltip=FULL_MASK),
            ],
            outputs=[
                io.Image.Output(display_name="sheet", tooltip="The labelled sheet."),
                io.Image.Output(
                    display_name="images", tooltip="The pictures, row by row, without labels."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def run(
        cls,
        model: ModelPatcher,
        latent: dict[str, Any],
        vae: VAE,
        seeds: int,
        seed: int,
        **asked: Any,
    ) -> io.NodeOutput:
        refuse_noise_mask(latent, NAME)
        columns = taken(Columns, asked)
        levels, sigmas = zip(*columns.levels(model), strict=True)
        rows = [(seed + row) % 2**64 for row in range(seeds)]  # the largest seed is 2^64 - 1
        numbers = batch_index_of(latent)
        first = SDEditRequest(
            model,
            **asked,
            samples=samples_of(model, latent)[:1],
            levels=levels[0],
            seed=seed,
            feature=NAME,
            batch_index=numbers and numbers[:1],
        )
        pictures, spent = _sweep(first, levels, rows, vae)
        sheet = _sheet(pictures, columns, sigmas, rows)
        shown = ui.PreviewImage(sheet, cls=cls).as_dict()
        text = f"{spent.rows} UNet rows, {spent.seconds:.1f} s"
        return io.NodeOutput(sheet, pictures, ui=shown | report(spent, text))


def _sweep(
    request: SDEditRequest, levels: Sequence[Tensor], seeds: Sequence[int], vae: VAE
) -> tuple[Tensor, Spent]:
    """[rows * columns, H, W, 3] a request at several levels and seeds, row by row; the cost."""
    pictures, spent = [], Spent(0, 0.0)
    for seed, falling in product(seeds, levels):
        painted, cost = paint_anew(replace(request, levels=falling, seed=seed))
        pictures.append(decode_pictures(vae, painted)[0])
        spent = Spent(spent.rows + cost.rows, spent.seconds + cost.seconds)
    return torch.stack(pictures), spent


def _sheet(
    images: Tensor, columns: Columns, sigmas: Sequence[float], seeds: Sequence[int]
) -> Tensor:
    """The labelled sheet, a column a strength and a row a seed."""
    values = zip(numbers(columns.strengths), sigmas, strict=True)
    return draw_sheet(
        Sheet(
            images,
            columns=[f"{value:g}  (sigma {sigma:.2g})" for value, sigma in values],
            rows=[f"seed {seed}" for seed in seeds],
            title=f"SDEdit by {columns.unit}: faithful on the left, realistic on the right",
        )
    )


def numbers(text: str) -> list[float]:
    """Strengths that are separated by commas.

    Raises:
        PalimpsestError: If there is none, or one that SDEdit itself would not take.
    """
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(STRENGTH.min <= value <= STRENGTH.max for value in found):
        raise PalimpsestError(
            f"The strengths must be numbers from {STRENGTH.min:g} to {STRENGTH.max:g} with commas "
            f"between them, got {quoted(text)}: write for example 0.3, 0.5, 0.7."
        )
    return found


NODES = [SDEditSweep]
