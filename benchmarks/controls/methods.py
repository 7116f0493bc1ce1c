"""The controls that are compared, each with the edits that it is made for."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...hosts.diffusers.folder import DiffusersModel
from ...hosts.diffusers.prompt import Prompt
from ...pipelines.attention.control import Control
from ...pipelines.attention.local_blend import LocalBlend, blend_columns
from ...pipelines.attention.masactrl import MasaCtrl
from ...pipelines.attention.pix2pix_zero import Pix2PixZero
from ...pipelines.attention.plug_and_play import PlugAndPlay
from ...pipelines.attention.prompt_to_prompt import rewrite_prompt
from ...pipelines.attention.stack import stacked
from ...pipelines.attention.things import Things
from ...pipelines.correction import DIRECT_INVERSION, UNCORRECTED, Correction
from ...pipelines.denoiser import RowCount
from .scene_edits import KINDS, Kind, Task

STEPS = 20
CFG = 5.0

#: What fits the embedded model: it has 7 layers, and its things are sharp in its word maps.
FIRST_LAYER, THRESHOLD, GUIDED = 0.4, 0.5, 0.3

#: Guidance on the latent, and of the prompts, of pix2pix-zero.
XA_GUIDANCE, ZERO_CFG = 2.0, 2.5


@dataclass(frozen=True, eq=False)
class Given:
    """What a control is made for: the prompts of a task.

    Attributes:
        task: It.
        source, target: Its prompts.
    """

    task: Task
    source: Prompt
    target: Prompt

    @property
    def both(self) -> tuple[Prompt, Prompt]:
        """Source and target."""
        return self.source, self.target


def words(given: Given) -> Control:
    """Prompt-to-Prompt."""
    return rewrite_prompt(given.source.tokens, given.target.tokens)


def _columns(given: Given) -> tuple[Tensor, ...]:
    named = zip(given.both, given.task.words, strict=True)
    return tuple(blend_columns([p.tokens], [word], [], role="prompt") for p, word in named)


def blended(given: Given) -> Control:
    """Prompt-to-Prompt and LocalBlend around the thing that is edited."""
    return stacked([words(given), LocalBlend(*_columns(given), THRESHOLD)])


def looks(given: Given) -> Control:
    """MasaCtrl."""
    return MasaCtrl(layers=(FIRST_LAYER, 1.0))


def guided(given: Given) -> Control:
    """MasaCtrl, the thing apart from its background."""
    source, target = (columns[..., :1] for columns in _columns(given))
    return MasaCtrl(layers=(FIRST_LAYER, 1.0), things=Things((source, target), GUIDED))


def structure(given: Given) -> Control:
    """Plug-and-Play."""
    return PlugAndPlay(layers=(0.0, 1.0), block=0.5)


def zero(given: Given) -> Control:
    """pix2pix-zero between the prompts."""
    return Pix2PixZero(XA_GUIDANCE)


@dataclass(frozen=True)
class Method:
    """A control under Direct Inversion, or what it is compared with.

    Attributes:
        name: In the table.
        control: Makes it for a task; None edits by the prompt alone.
        kinds: The edits that it is made for.
        correction: What is done about the residual.
        cfg: Guidance of the edit.
    """

    name: str
    control: Callable[[Given], Control] | None
    kinds: tuple[Kind, ...] = KINDS
    correction: Correction = DIRECT_INVERSION
    cfg: float = CFG


OF_THINGS: tuple[Kind, ...] = ("color", "shape", "texture")

#: By the names that --methods takes.
METHODS = {
    # Without a control no one reads the source's row: Direct Inversion then makes the same picture.
    "ddim": Method("the prompt alone", None, correction=UNCORRECTED),
    "words": Method("Prompt-to-Prompt", words, (*OF_THINGS, "background")),
    "blend": Method("Prompt-to-Prompt + LocalBlend", blended, OF_THINGS),
    "looks": Method("MasaCtrl", looks, ("shape", "place")),
    "guided": Method("MasaCtrl, by words", guided, ("shape", "place")),
    "structure": Method("Plug-and-Play", structure, ("color", "texture", "background")),
    "zero": Method("pix2pix-zero", zero, OF_THINGS, cfg=ZERO_CFG),
}


@dataclass(frozen=True, eq=False)
class Edited:
    """[1, 128, 128, 3] an edited picture, and what inversion and edit cost."""

    image: Tensor
    rows: int
    seconds: float


def edit(model: DiffusersModel, task: Task, method: Method) -> Edited:
    """Invert a task's picture and edit it."""
    source, target, negative = (model.prompt(text) for text in (*task.captions, ""))
    unet, rows, started = model.unet, RowCount(), time.process_time()
    control = method.control and method.control(Given(task, source, target))
    if isinstance(control, Pix2PixZero):
        negative = source  # as published
    trajectory = unet.invert(model.encode(task.picture), source, unet.ddim_sigmas(STEPS), rows=rows)
    edited = unet.edit(
        trajectory,
        source,
        target,
        negative,
        cfg=method.cfg,
        control=control,
        correction=method.correction,
        rows=rows,
    ).run()
    seconds = time.process_time() - started
    return Edited(model.decode(edited.latent), rows.rows, seconds)
