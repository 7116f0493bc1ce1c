"""The inversions that are compared, with their settings, and an edit along each.

Steps, guidance and the windows of Prompt-to-Prompt are one for all; a method says where it differs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...hosts.diffusers.edict import edict_sigmas, invert_edict
from ...hosts.diffusers.folder import DiffusersModel
from ...hosts.diffusers.negative_prompt import invert_negative_prompt
from ...hosts.diffusers.noise_space import invert_noise
from ...hosts.diffusers.null_text import invert_null_text
from ...hosts.diffusers.prompt import Prompt
from ...hosts.diffusers.style_diffusion import invert_style_diffusion
from ...pipelines.attention.prompt_to_prompt import rewrite_prompt
from ...pipelines.correction import DIRECT_INVERSION, UNCORRECTED, Correction
from ...pipelines.denoiser import RowCount
from ...pipelines.inversion.noise_space import EDIT_FRIENDLY, cycle_diffusion
from ...pipelines.inversion.null_text import NullText
from ...pipelines.inversion.style_diffusion import Fitting
from ...pipelines.inversion.uni_inv import uni_inv
from ...pipelines.proximal import Proximal
from ...pipelines.trajectory import Trajectory
from .scene_edits import Task

STEPS = 30
CFG = 5.0
CROSS_WINDOW, SELF_WINDOW = (0.0, 0.4), (0.0, 0.6)
SKIP = 7
CYCLE_STRENGTH = 0.8
EDICT_CFG, EDICT_STRENGTH = 3.0, 0.8
STYLE_ROUNDS = 240


@dataclass(frozen=True, eq=False)
class Given:
    """A picture that is inverted, and what it is inverted with.

    Attributes:
        model: The embedded model.
        latent: [1, 4, 16, 16] the picture in model scale.
        source: Its caption.
        negative: The empty prompt.
        cfg: Guidance of the edit to come, for those that learn or walk under it.
        rows: Counts the rows spent.
    """

    model: DiffusersModel
    latent: Tensor
    source: Prompt
    negative: Prompt
    cfg: float
    rows: RowCount

    @property
    def sigmas(self) -> Tensor:
        """The levels that all methods walk, rising."""
        return self.model.unet.ddim_sigmas(STEPS)


def ddim(picture: Given) -> Trajectory:
    """DDIM inversion."""
    unet = picture.model.unet
    return unet.invert(picture.latent, picture.source, picture.sigmas, rows=picture.rows)


def null_text(picture: Given) -> Trajectory:
    """Null-text inversion: ten inner steps and the early stop, as published."""
    prompts = (picture.source, picture.negative)
    trajectory, _ = invert_null_text(
        picture.model.unet,
        picture.latent,
        *prompts,
        picture.sigmas,
        NullText(picture.cfg),
        rows=picture.rows,
    )
    return trajectory


def negative_prompt(picture: Given) -> Trajectory:
    """Negative-prompt inversion."""
    unet = picture.model.unet
    return invert_negative_prompt(
        unet, picture.latent, picture.source, picture.sigmas, rows=picture.rows
    )


def proximal(picture: Given) -> Trajectory:
    """Negative-prompt inversion under proximal guidance."""
    return negative_prompt(picture).with_carried(Proximal())


def edit_friendly(picture: Given) -> Trajectory:
    """Edit-Friendly DDPM: the noisiest steps skipped, the source without guidance."""
    sigmas = picture.sigmas[: STEPS - SKIP + 1]
    unet = picture.model.unet
    return invert_noise(
        unet, EDIT_FRIENDLY, picture.latent, picture.source, sigmas, rows=picture.rows
    )


def cycle(picture: Given) -> Trajectory:
    """CycleDiffusion, eta 0.1: a part of the steps, the source without guidance."""
    sigmas = picture.sigmas[: round(CYCLE_STRENGTH * STEPS) + 1]
    unet, space = picture.model.unet, cycle_diffusion()
    return invert_noise(unet, space, picture.latent, picture.source, sigmas, rows=picture.rows)


def edict(picture: Given) -> Trajectory:
    """EDICT at its own guidance, over its own part of its own grid."""
    sigmas = edict_sigmas(picture.model.unet, STEPS, strength=EDICT_STRENGTH)
    prompts = (picture.source, picture.negative)
    unet = picture.model.unet
    return invert_edict(unet, picture.latent, *prompts, sigmas, cfg=picture.cfg, rows=picture.rows)


def aligned(picture: Given) -> Trajectory:
    """Uni-Inv, the source without guidance."""
    unet = picture.model.unet
    return unet.invert_by(
        picture.latent, picture.source, picture.sigmas, uni_inv, rows=picture.rows
    )


def style(picture: Given) -> Trajectory:
    """StyleDiffusion, with fewer rounds of learning than published."""
    prompts = (picture.source, picture.negative)
    fitting = Fitting(rounds=STYLE_ROUNDS, cfg=picture.cfg)
    trajectory, _ = invert_style_diffusion(
        picture.model.unet, picture.latent, *prompts, picture.sigmas, fitting, rows=picture.rows
    )
    return trajectory


@dataclass(frozen=True)
class Method:
    """An inversion, and the edit along it.

    Attributes:
        name: In the table.
        invert: The inversion.
        correction: What the edit does about the residual of an ODE chain.
        cfg: Guidance of the edit.
        differs: What is not as for the others.
    """

    name: str
    invert: Callable[[Given], Trajectory]
    correction: Correction = UNCORRECTED
    cfg: float = CFG
    differs: str = ""


#: By the names that --methods takes.
METHODS = {
    "ddim": Method("DDIM", ddim),
    "direct": Method("Direct Inversion", ddim, DIRECT_INVERSION),
    "null_text": Method(
        # The source row is the path that the embeddings were fitted along: nothing drifts.
        "Null-text",
        null_text,
        DIRECT_INVERSION,
        differs="10 inner steps, early stop",
    ),
    "negative_prompt": Method("Negative-prompt", negative_prompt),
    "proximal": Method(
        "Negative-prompt + proximal",
        proximal,
        differs="soft threshold at the median, pull 0.1",
    ),
    "edit_friendly": Method(
        "Edit-Friendly",
        edit_friendly,
        differs=f"the noisiest {SKIP} steps skipped, source guidance 1",
    ),
    "cycle": Method(
        "CycleDiffusion",
        cycle,
        differs=f"eta 0.1, the lower {CYCLE_STRENGTH:.0%} of the steps, source guidance 1",
    ),
    "edict": Method(
        "EDICT",
        edict,
        cfg=EDICT_CFG,
        differs=f"guidance {EDICT_CFG:g} both ways, the lower {EDICT_STRENGTH:.0%} of the steps",
    ),
    "uni_inv": Method("Uni-Inv", aligned, differs="source guidance 1"),
    "style": Method(
        "StyleDiffusion",
        style,
        DIRECT_INVERSION,
        differs=f"{STYLE_ROUNDS} rounds of learning, image tokens from the latent",
    ),
}


@dataclass(frozen=True, eq=False)
class Edited:
    """[1, 4, 16, 16] edit and source row, and what the edit cost."""

    latent: Tensor
    source: Tensor
    rows: int
    seconds: float


def edit(model: DiffusersModel, task: Task, method: Method) -> Edited:
    """Invert a task's picture and edit it."""
    source, target, negative = (model.prompt(text) for text in (*task.captions, ""))
    latent = model.encode(task.picture)
    picture = Given(model, latent, source, negative, method.cfg, RowCount())
    control = rewrite_prompt(
        source.tokens, target.tokens, cross_window=CROSS_WINDOW, self_window=SELF_WINDOW
    )
    started = time.process_time()
    trajectory = method.invert(picture)

    def walk(*, keep_source: bool, rows: RowCount | None) -> tuple[Tensor, Tensor | None]:
        edited = model.unet.edit(
            trajectory,
            source,
            target,
            negative,
            cfg=method.cfg,
            control=control,
            correction=method.correction,
            keep_source=keep_source,
            rows=rows,
        ).run()
        return edited.latent, edited.source

    latent, row = walk(keep_source=False, rows=picture.rows)
    seconds = time.process_time() - started
    if row is None:
        row = walk(keep_source=True, rows=None)[1]
    return Edited(latent, row, picture.rows.rows, seconds)
