"""The edits that are compared, on the embedded flow model and on the embedded UNet."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...demo.flow import FlowPainter
from ...demo.flow_files import WEIGHTS_FLOW, load_flow
from ...demo.model_files import WEIGHTS
from ...hosts.diffusers.folder import DiffusersModel, load_folder
from ...hosts.diffusers.no_inversion import noise_freshly
from ...hosts.diffusers.transformer import PATCH, DiffusersTransformer, Words
from ...pipelines.aligned import FLOW_EDIT, Manner
from ...pipelines.attention.bank import Bank
from ...pipelines.attention.consist_edit import ConsistEdit
from ...pipelines.attention.control import Control, source_roles
from ...pipelines.attention.prompt_to_prompt import rewrite_prompt
from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.fresh_noise import fresh_noise
from ...pipelines.inversion.uni_inv import uni_inv
from ...pipelines.noise import seeded
from ...pipelines.schedule import FLOW, sigma_from_t
from ...pipelines.trajectory import Trajectory
from ...pipelines.uni_edit import uni_edit
from ..inversions.scene_edits import Task

STEPS = 30
FEW = 12


@dataclass(frozen=True, eq=False)
class Edited:
    """[1, 128, 128, 3] an edited picture, and what it cost: rows, and seconds of one core."""

    image: Tensor
    rows: int
    seconds: float


@dataclass(frozen=True)
class Method:
    """A way to edit.

    Attributes:
        name: In the table.
        model: "UNet" or "flow".
        steps: Of the whole schedule.
        strength: Part of them that is walked.
        guidance: Of source and target.
        way: Makes the edit.
        manner: How an edit without inversion walks.
        words: Whether Prompt-to-Prompt holds it.
        normalise: Whether the rows of its maps are made to sum to 1.
        structure: Part of the steps in which ConsistEdit does.
        omega: Of Uni-Edit, 0 without.
    """

    name: str
    model: str
    steps: int
    strength: float
    guidance: tuple[float, float]
    way: str
    manner: Manner = FLOW_EDIT
    words: bool = False
    normalise: bool = False
    structure: float = 0.0
    omega: float = 0.0


#: By the names that --methods takes.
METHODS = {
    "unet_direct": Method(
        "Direct Inversion + Prompt-to-Prompt", "UNet", STEPS, 1.0, (1.0, 5.0), "ddim", words=True
    ),
    "unet_walk": Method("FlowEdit", "UNet", STEPS, 0.5, (3.0, 5.0), "walk"),
    "unet_walk_words": Method(
        "FlowEdit + Prompt-to-Prompt", "UNet", STEPS, 0.5, (3.0, 5.0), "walk", words=True
    ),
    "unet_few": Method(
        "DDCM, few steps", "UNet", FEW, 0.7, (1.0, 2.3), "walk", Manner(renoise=True)
    ),
    "walk": Method("FlowEdit", "flow", STEPS, 0.7, (1.5, 5.5), "walk"),
    "walk_words": Method(
        "FlowEdit + Prompt-to-Prompt", "flow", STEPS, 0.7, (1.5, 5.5), "walk", words=True
    ),
    "walk_words_even": Method(
        "the same, rows that sum to 1",
        "flow",
        STEPS,
        0.7,
        (1.5, 5.5),
        "walk",
        words=True,
        normalise=True,
    ),
    "walk_less_structure": Method(
        "FlowEdit + ConsistEdit 0.1", "flow", STEPS, 0.7, (1.5, 5.5), "walk", structure=0.1
    ),
    "walk_structure": Method(
        "FlowEdit + ConsistEdit 0.3", "flow", STEPS, 0.7, (1.5, 5.5), "walk", structure=0.3
    ),
    "walk_far": Method("FlowEdit, more noise", "flow", STEPS, 0.85, (1.5, 5.5), "walk"),
    "walk_far_words": Method(
        "the same + Prompt-to-Prompt", "flow", STEPS, 0.85, (1.5, 5.5), "walk", words=True
    ),
    "walk_sd3": Method("FlowEdit, SD 3's guidance", "flow", STEPS, 0.66, (3.5, 13.5), "walk"),
    "align": Method("FlowAlign", "flow", STEPS, 1.0, (1.0, 7.5), "align", Manner(zeta=0.01)),
    "fading": Method("DVRF", "flow", STEPS, 1.0, (1.5, 5.5), "walk", Manner(lag="fading")),
    "few": Method("DDCM, few steps", "flow", FEW, 0.7, (1.0, 2.3), "walk", Manner(renoise=True)),
    "uni": Method("Uni-Inv", "flow", STEPS, 0.6, (1.0, 4.0), "uni"),
    "uni_words": Method(
        "Uni-Inv + Prompt-to-Prompt", "flow", STEPS, 0.6, (1.0, 4.0), "uni", words=True
    ),
    "uni_edit": Method("Uni-Inv + Uni-Edit", "flow", 15, 0.6, (1.0, 1.0), "uni", omega=5.0),
}


@dataclass(frozen=True, eq=False)
class FlowModel:
    """The embedded flow model, headless; its autoencoder is the UNet's.

    Attributes:
        painter: The demo's own.
        network: Its transformer.
    """

    painter: FlowPainter
    network: DiffusersTransformer

    @classmethod
    def load(cls) -> FlowModel:
        """Read it."""
        painter = load_flow(WEIGHTS_FLOW)
        return cls(painter, DiffusersTransformer(painter.transformer))

    def prompt(self, text: str) -> Words:
        """Encode a prompt."""
        made = self.painter.embed([text])
        return Words(made.states, made.pooled)


@dataclass(frozen=True, eq=False)
class Models:
    """Both embedded models."""

    unet: DiffusersModel
    flow: FlowModel

    @classmethod
    def load(cls) -> Models:
        """Read them."""
        return cls(load_folder(WEIGHTS), FlowModel.load())


def edit(models: Models, task: Task, method: Method, seed: int) -> Edited:
    """Edit a task's picture."""
    picture, rows = models.unet.encode(task.picture), RowCount()
    started = time.process_time()
    if method.model == "UNet":
        latent = _on_unet(models.unet, picture, task, method, seed, rows)
    else:
        latent = _on_flow(models, picture, task, method, seed, rows)
    return Edited(models.unet.decode(latent), rows.rows, time.process_time() - started)


def _on_unet(
    model: DiffusersModel, x0: Tensor, task: Task, method: Method, seed: int, rows: RowCount
) -> Tensor:
    source, target, empty = (model.prompt(text) for text in (*task.captions, ""))
    sigmas = model.unet.ddim_sigmas(method.steps)[: round(method.strength * method.steps) + 1]
    scale, cfg = method.guidance
    if method.way == "ddim":
        trajectory = model.unet.invert(x0, source, sigmas, rows=rows)
    else:
        trajectory = noise_freshly(
            model.unet,
            x0,
            source,
            sigmas,
            whole=method.steps,
            negative=empty,
            source_cfg=scale,
            manner=method.manner,
            draw=seeded(seed),
            rows=rows,
        )
    control = rewrite_prompt(source.tokens, target.tokens) if method.words else None
    whole = model.unet.edit(trajectory, source, target, empty, cfg=cfg, control=control, rows=rows)
    return whole.run().latent


def _control(models: Models, task: Task, method: Method) -> Control | None:
    """What holds the picture; both models read the same tokens."""
    if method.structure:
        return ConsistEdit((0.0, method.structure))
    tokens = (models.unet.prompt(text).tokens for text in task.captions)
    return rewrite_prompt(*tokens, normalise=method.normalise) if method.words else None


def _on_flow(
    models: Models, x0: Tensor, task: Task, method: Method, seed: int, rows: RowCount
) -> Tensor:
    model, control = models.flow, _control(models, task, method)
    source, target, empty = (model.prompt(text) for text in (*task.captions, ""))
    times = torch.linspace(0, 1, method.steps + 1, dtype=torch.float64)
    sigmas = sigma_from_t(times[: round(method.strength * method.steps) + 1])
    scale, cfg = method.guidance
    known = model.network.denoiser(source, empty, cfg=scale, rows=rows)
    away = source if method.way == "align" else empty
    wanted = model.network.denoiser(target, away, cfg=cfg, rows=rows)
    if method.way == "uni":
        made = uni_inv(known, x0, sigmas, family=FLOW)
        if method.omega:
            wanted = uni_edit(wanted, known, omega=method.omega, patch=PATCH)
    else:
        options = {"manner": method.manner, "whole": method.steps}
        made = fresh_noise(known, x0, sigmas, seeded(seed), **options)
    trajectory = Trajectory(made.latents, sigmas, x0, made.recipe, carried=made.carried)
    plain = made.carried[0].edit(trajectory, wanted)
    if control is None:
        return plain.run().latent
    bank = Bank(control)
    both = "uncond" in source_roles(control)
    record = model.network.denoiser(
        source, empty, cfg=cfg if both else 1.0, rows=rows, hooks=bank.recording
    )
    held = model.network.denoiser(target, empty, cfg=cfg, rows=rows, hooks=bank.injecting)
    return replace(plain, target=held, record=record, bank=bank).run().latent
