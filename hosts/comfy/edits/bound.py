"""A control on a wire: what it acts by, and what it was made for."""

from __future__ import annotations

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....pipelines.attention.control import Control, Moving, acts_in, source_roles
from ....pipelines.attention.prompt_batch import PromptBatch
from ....pipelines.attention.prompt_to_prompt import PromptToPrompt, chained
from ....pipelines.attention.stack import parts_of, stacked
from ....pipelines.attention.tokens import PromptTokens
from ....pipelines.attention.watch import WordedControl
from ....pipelines.errors import PalimpsestError, quoted
from ..guidance import Conditioning
from ..hooked import require_attention
from ..joint import has_joint_attention
from ..refusals import check_one_entry, check_owner


@dataclass(frozen=True)
class Words:
    """The prompts of a control, as the text encoder sees them.

    Attributes:
        source: The source prompt.
        targets: The target prompts, mostly one.
    """

    source: PromptTokens
    targets: tuple[PromptTokens, ...]


@dataclass(frozen=True, eq=False)
class BoundControl:
    """A control, and the two conditionings it was made for where it is about their words.

    Attributes:
        control: The attention control.
        source: [1, tokens, channels] embedding of the source prompt; None takes any.
        target: [prompts, tokens, channels] embeddings of the target prompts, mostly of one; None
            takes any.
        name: Of the nodes that made it, for messages.
        words: Of both prompts, for those that are put on it; None where it knows none.
        empty: The empty prompt, of the same text encoder; None where it had none.
    """

    control: Control
    source: Tensor | None = None
    target: Tensor | None = None
    name: str = "Prompt-to-Prompt"
    words: Words | None = None
    empty: Conditioning | None = None

    def on(self, before: BoundControl | None) -> BoundControl:
        """This control on top of another, which is handed on where there is no conflict.

        A Prompt-to-Prompt on another goes on from its target prompt.

        Raises:
            PalimpsestError: If they do not fit together.
        """
        if before is None:
            return self
        for other in (before, self):
            if any(isinstance(part, Moving) for part in parts_of(other.control)):
                raise PalimpsestError(
                    f"{other.name} moves the latent itself and goes with no other control: connect "
                    "it to Edit alone."
                )
        below, control = list(parts_of(before.control)), self.control
        if self.words is not None and before.words is not None:
            _check_goes_on(self, before)
            first = next(c for c in below if isinstance(c, PromptToPrompt | PromptBatch))
            below.remove(first)
            control = _chained(first, control)
        owner = before if before.words is not None else self
        return BoundControl(
            stacked([*below, control]),
            owner.source,
            before.target if self.words is None else self.target,
            f"{before.name} + {self.name}",
            _joined(before.words, self.words),
            self.empty if before.empty is None else before.empty,
        )

    def check_source(self, source: Conditioning, role: str) -> None:
        """Refuse a source whose attention the control could not read.

        Args:
            source: Conditioning of the source prompt.
            role: The name of that input, for messages.
        """
        check_one_entry(source, role)
        if self.source is not None:
            check_owner(self.source, source, role)

    def check_edit(
        self,
        model: ModelPatcher,
        source: Conditioning,
        target: Conditioning,
        negative: Conditioning,
    ) -> None:
        """Refuse a model, or conditionings, that it was not made for or could not read."""
        places = acts_in(self.control)
        if not places:
            raise PalimpsestError(
                f"{self.name} act on models of different kinds, some on UNets and others on "
                "transformers: use one of them alone."
            )
        require_attention(model.model, places, self.name, instead="edit without the control")
        if has_joint_attention(model.model):
            _check_references(source, target)
        self.check_source(source, "source")
        if self.target is not None:
            check_owner(self.target, target, "target")
        if "uncond" in source_roles(self.control):
            check_one_entry(negative, "negative")


def _check_references(source: Conditioning, target: Conditioning) -> None:
    """Refuse prompts that show the model other reference pictures: their tokens differ then."""
    shown = [
        [tuple(ref.shape) for _, more in prompt for ref in more.get("reference_latents") or ()]
        for prompt in (source, target)
    ]
    if shown[0] != shown[1]:
        raise PalimpsestError(
            f"The source carries {len(shown[0])} reference pictures, the target {len(shown[1])}, "
            "or of other sizes: a control needs the same ones in both; connect both prompts "
            "through the same Reference Latent nodes."
        )


def _joined(before: Words | None, after: Words | None) -> Words | None:
    if before is None or after is None:
        return before or after
    return Words(before.source, after.targets)


def _chained(first: Control, second: Control) -> Control:
    """One edit of the first prompt into the last ones."""
    if isinstance(second, PromptBatch):
        return PromptBatch(tuple(chained(first, each) for each in second.controls))
    return chained(first, second)


def _check_goes_on(after: BoundControl, before: BoundControl) -> None:
    """Refuse prompts that do not follow each other, and what read the words of the first."""
    between = before.words.targets
    if len(between) > 1:
        raise PalimpsestError(
            f"The control holds {len(between)} target prompts, another Prompt-to-Prompt goes on "
            "from one: set one_per_line in the last Prompt-to-Prompt alone."
        )
    if any(isinstance(p, WordedControl) and p.names_words for p in parts_of(before.control)):
        raise PalimpsestError(
            "A control that names words (LocalBlend, MasaCtrl with words) stands before a "
            "Prompt-to-Prompt, whose target it does not know: connect every Prompt-to-Prompt "
            "first, and that control after the last."
        )
    if between[0].ids != after.words.source.ids:
        raise PalimpsestError(
            f"The source of Prompt-to-Prompt is {quoted(after.words.source.text)}, the control "
            f"connected to it ends at {quoted(between[0].text)}: make them the same text, so that "
            "one edit goes on from the other."
        )
