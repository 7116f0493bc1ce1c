"""SDEdit: noise a guide and paint it anew, from a level said in any of three ways."""

from itertools import product

import torch
from comfy_api.latest import io, ui

from ..hosts.comfy.cost import Spent
from ..hosts.comfy.edits.sdedit import UNITS, SDEditRequest, Strength, levels_of, noised, paint_anew
from ..hosts.comfy.latents import decode_pictures, samples_of
from ..hosts.comfy.refusals import refuse_noise_mask
from ..hosts.drawing.sheet import Sheet, draw_sheet
from ..pipelines.errors import PalimpsestError
from .inputs import LATENT_OUT, cfg_input, scheduler_input, seed_input, told
from .wires import report

CATEGORY = "palimpsest/sdedit"
FULL_MASK = "White where it is painted anew; the rest of the latent stays, number for number."


def _strength_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "unit",
            options=list(UNITS),
            tooltip="What strength counts: the paper's t0 on its VP or VE schedule, the part of "
            "the model's timesteps (KSampler's denoise), or the noise level sigma itself.",
        ),
        io.Float.Input(
            "strength",
            default=0.5,
            min=0.0,
            max=1000.0,
            step=0.01,
            tooltip="How much noise: more is more realistic, less is more faithful. 0.3 to 0.6 "
            "are usual for t0.",
        ),
        io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps that are walked."),
        scheduler_input("normal", "How the steps are spread."),
    ]


def _prompt_inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="An SD 1.x, 2.x, SDXL or flow model."),
        io.Conditioning.Input("positive", tooltip="What the picture shall show."),
        io.Conditioning.Input("negative", tooltip="What to avoid."),
        io.Latent.Input("latent", tooltip="The guide: strokes or a rough paste, encoded."),
    ]


def _painting_inputs() -> list[io.Input]:
    return [
        cfg_input(5.0),
        io.Float.Input(
            "eta",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            tooltip="1 is the paper's SDE, 0 the ODE.",
        ),
    ]


class SDEditNoise(io.ComfyNode):
    """The noising alone, for core's samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestSDEditNoise",
            display_name="SDEdit Noise",
            category=CATEGORY,
            description="Noises a guide to a level said in an honest unit, and gives the sigmas "
            "that finish it with any of core's samplers.",
            search_aliases=["sdedit", "img2img", "denoise strength", "add noise"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will finish it."),
                io.Latent.Input("latent", tooltip="The guide: strokes or a rough paste, encoded."),
                *_strength_inputs(),
                seed_input(),
                io.Noise.Input(
                    "noise", optional=True, tooltip="Noise of your own; the seed is not read then."
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For a sampler with added noise disabled."
                ),
                io.Sigmas.Output(display_name="sigmas", tooltip="From that level down to 0."),
            ],
        )

    @classmethod
    def execute(
        cls, model, latent, unit, strength, steps, scheduler, seed, noise=None
    ) -> io.NodeOutput:
        levels, sigma = levels_of(model, Strength(unit, strength), scheduler, steps)
        refuse_noise_mask(latent, "SDEdit")
        noisy = noised(model, latent, sigma, seed, noise)
        text = f"sigma {sigma:.3g}, {len(levels) - 1} steps"
        return io.NodeOutput({"samples": noisy}, levels, ui={"palimpsest_text": [text]})


class SDEdit(io.ComfyNode):
    """The whole loop."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestSDEdit",
            display_name="SDEdit",
            category=CATEGORY,
            description="Turns strokes or a rough paste into a picture: noises the guide and "
            "paints it anew, where a mask allows it.",
            search_aliases=["sdedit", "img2img", "stroke to image", "harmonize", "compositing"],
            inputs=[
                *_prompt_inputs(),
                *_strength_inputs(),
                *_painting_inputs(),
                io.Int.Input(
                    "repeats",
                    default=1,
                    min=1,
                    max=20,
                    tooltip="How often: each time from what came out. More is more realistic.",
                ),
                seed_input(),
                io.Mask.Input("mask", optional=True, tooltip=FULL_MASK),
            ],
            outputs=[LATENT_OUT],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        unit,
        strength,
        steps,
        scheduler,
        cfg,
        eta,
        repeats,
        seed,
        mask=None,
    ) -> io.NodeOutput:
        refuse_noise_mask(latent, "SDEdit")
        levels, sigma = levels_of(model, Strength(unit, strength), scheduler, steps)
        painted, spent = paint_anew(
            SDEditRequest(
                model,
                positive,
                negative,
                samples=samples_of(model, latent),
                levels=levels,
                cfg=cfg,
                seed=seed,
                mask=mask,
                eta=eta,
                repeats=repeats,
            )
        )
        more = f"\nfrom sigma {sigma:.3g}"
        return io.NodeOutput({"samples": painted}, ui=told(spent, len(levels) - 1, more))


class SDEditSweep(io.ComfyNode):
    """Strengths and seeds on one sheet."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PalimpsestSDEditSweep",
            display_name="SDEdit Sweep",
            category=CATEGORY,
            description="SDEdit at several strengths and seeds on one labelled sheet, to choose "
            "between realism and faithfulness by eye.",
            search_aliases=["sdedit", "xy plot", "grid", "sweep", "denoise comparison"],
            inputs=[
                *_prompt_inputs(),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Combo.Input(
                    "unit", options=list(UNITS), tooltip="What the strengths count; see SDEdit."
                ),
                io.String.Input(
                    "strengths",
                    default="0.2, 0.35, 0.5, 0.6, 0.7",
                    tooltip="The strengths, by commas: one column each.",
                ),
                io.Int.Input(
                    "seeds", default=3, min=1, max=16, tooltip="How many seeds: one row each."
                ),
                io.Int.Input("steps", default=25, min=1, max=1000, tooltip="Steps of each."),
                scheduler_input("normal", "How the steps are spread."),
                *_painting_inputs(),
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
    def execute(
        cls,
        model,
        positive,
        negative,
        latent,
        vae,
        unit,
        strengths,
        seeds,
        steps,
        scheduler,
        cfg,
        eta,
        seed,
        mask=None,
    ) -> io.NodeOutput:
        refuse_noise_mask(latent, "SDEdit Sweep")
        columns = [Strength(unit, value) for value in numbers(strengths)]
        schedules = [levels_of(model, strength, scheduler, steps) for strength in columns]
        pictures, spent = [], Spent(0, 0.0)
        for row, (levels, _) in product(range(seeds), schedules):
            painted, cost = paint_anew(
                SDEditRequest(
                    model,
                    positive,
                    negative,
                    samples=samples_of(model, latent)[:1],
                    levels=levels,
                    cfg=cfg,
                    seed=seed + row,
                    mask=mask,
                    eta=eta,
                    feature="SDEdit Sweep",
                )
            )
            pictures.append(decode_pictures(vae, painted)[0])
            spent = Spent(spent.rows + cost.rows, spent.seconds + cost.seconds)
        images = torch.stack(pictures)
        sigmas = [sigma for _, sigma in schedules]
        sheet = _sheet(images, columns, sigmas, range(seed, seed + seeds))
        shown = ui.PreviewImage(sheet, cls=cls).as_dict()
        text = f"{spent.rows} UNet rows, {spent.seconds:.1f} s"
        return io.NodeOutput(sheet, images, ui=shown | report(spent, text))


def _sheet(images, strengths, sigmas, seeds):
    """The labelled sheet, a column a strength and a row a seed."""
    labels = [f"{s.value:g}  (sigma {at:.2g})" for s, at in zip(strengths, sigmas, strict=True)]
    return draw_sheet(
        Sheet(
            images,
            columns=labels,
            rows=[f"seed {seed}" for seed in seeds],
            title=f"SDEdit by {strengths[0].unit}: faithful on the left, realistic on the right",
        )
    )


def numbers(text: str) -> list[float]:
    """Numbers that are separated by commas."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise PalimpsestError(
            f"The strengths must be numbers with commas between them, got {text!r}: write for "
            "example 0.3, 0.5, 0.7."
        )
    return found


NODES = [SDEditNoise, SDEdit, SDEditSweep]
