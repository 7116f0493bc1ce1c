"""What a trajectory demands of an edit along it, whatever host lends the model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from .attention.bank import Bank
from .attention.control import Control, Moving, rows_read, source_roles
from .attention.one_row import over_one_row
from .attention.watch import begun
from .correction import DIRECT_INVERSION, Correction, correction_along
from .denoiser import constant
from .editing import Branches, Edit, Editing
from .errors import PalimpsestError
from .kept_region import outside
from .lending import Asked, Beside, Lender
from .rows import Guess, Traced
from .trajectory import Trajectory


def edit_along(
    trajectory: Trajectory,
    lender: Lender,
    *,
    control: Control | None = None,
    correction: Correction = DIRECT_INVERSION,
    mask: Tensor | None = None,
    keep_source: bool = False,
) -> Editing:
    """An edit along a trajectory, ready to `run`.

    Args:
        trajectory: The recorded chain of the source, and what its method left for this.
        lender: Lends the denoisers.
        control: Attention control, or None.
        correction: What is done about the residual, where the trajectory leaves that to the edit.
        mask: [1 or B, 1, h, w] in 0..1, 0 where the picture is kept.
        keep_source: Follow a drifting source row to the end.

    Raises:
        PalimpsestError: If what the trajectory carries does not hold for such an edit.
    """
    for carried in trajectory.carried:
        carried.check_edit(lender.cfg)
    check_control(trajectory, control)
    correction = correction_along(trajectory, correction)
    bank = _bank(trajectory, lender, control, correction)
    for carried in trajectory.carried:
        whole = carried.loop(trajectory, lender, bank, mask)
        if whole is not None:
            return whole
    after = tuple(after for carried in trajectory.carried for after in carried.afters())
    return Edit(
        trajectory,
        _branches(trajectory, lender, bank, control),
        correction=correction,
        eta=trajectory.recipe.eta,
        bank=bank,
        keep_source=keep_source,
        after=(*after, *(bank.watches if bank else ()), *outside(mask, trajectory)),
    )


def check_control(trajectory: Trajectory, control: Control | None) -> None:
    """Refuse a control that an edit along the trajectory could not follow.

    Raises:
        PalimpsestError: In one sentence.
    """
    loops = [carried.own_loop for carried in trajectory.carried if carried.own_loop]
    if loops and isinstance(control, Moving):
        raise PalimpsestError(
            f"The trajectory is {loops[0]} a control that moves the latent before every step "
            "(pix2pix-zero) cannot follow: take the trajectory of another Invert node, or another "
            "control."
        )


def _bank(
    trajectory: Trajectory, lender: Lender, control: Control | None, correction: Correction
) -> Bank | None:
    """The bank of a control, with the inversion's features where they are this source's."""
    if control is None:
        return None
    size = tuple(trajectory.start.shape[-2:])
    moves = isinstance(control, Moving)
    control, watches, onlookers = begun(control, size)
    source, _ = _asked(trajectory)
    if len(source_roles(control)) > 1 and lender.one_row(source):
        control = over_one_row(control)
    kept = trajectory.features
    same = kept is not None and kept.key == lender.features_key()
    served = kept if correction.on_chain and same else None
    # A control that moves the target looks at the source before it asks for the target.
    pairs = not moves and _pairs(trajectory, lender, control)
    return Bank(control, served, watches, onlookers, lender.alone, pairs)


def _pairs(trajectory: Trajectory, lender: Lender, control: Control) -> bool:
    """Whether the source's rows may run beside the target's that read them."""
    if any(carried.own_loop and not carried.pairs for carried in trajectory.carried):
        return False
    return lender.pairs(*_asked(trajectory), rows_read(control))


def _asked(trajectory: Trajectory) -> tuple[Asked, Asked]:
    """What source and target are denoised under, with what the trajectory carries."""
    source, target = Asked("source"), Asked("target")
    if trajectory.recipe.source_cfg is not None:
        source = replace(source, guidance=constant(trajectory.recipe.source_cfg))
    for carried in trajectory.carried:
        source, target = carried.asked(trajectory, source, target)
    return source, target


def _branches(
    trajectory: Trajectory, lender: Lender, bank: Bank | None, control: Control | None
) -> Branches:
    """The denoisers, under what the trajectory carries."""
    source, target = _asked(trajectory)
    if bank is None:
        repeats = _repeats(trajectory, lender, source, target)
        plain = lender.denoiser(target)
        return Branches(
            plain,
            plain if repeats else lender.denoiser(source),
            traced=_traced(trajectory, lender, target),
        )
    recorded, edited = (
        replace(source, hooks=bank.recording),
        replace(
            target,
            hooks=bank.injecting,
            beside=Beside(source, bank.beside) if bank.pairs else None,
        ),
    )
    stepping = None
    if isinstance(control, Moving):
        stepping = control.mover(bank, lender, target, partial(_guesses, trajectory, lender))
    return Branches(
        lender.denoiser(edited),
        lender.denoiser(recorded),
        record=lender.recorder(recorded, source_roles(bank.control)),
        unedited=lender.denoiser(target),
        traced=_traced(trajectory, lender, edited),
        stepping=stepping,
    )


def _guesses(trajectory: Trajectory, lender: Lender, target: Asked) -> Traced:
    """The target's denoiser, with all that it has to say."""
    traced = _traced(trajectory, lender, target)
    if traced is not None:
        return traced
    denoise = lender.denoiser(target)
    return lambda x, sigma: Guess(denoise(x, sigma))


def _traced(trajectory: Trajectory, lender: Lender, target: Asked) -> Traced | None:
    """The target's denoiser where something carried makes it say more."""
    made = (carried.traced(lender, target) for carried in trajectory.carried)
    return next((traced for traced in made if traced is not None), None)


def _repeats(trajectory: Trajectory, lender: Lender, source: Asked, target: Asked) -> bool:
    """Whether the target is what the chain's noise was recorded under: nothing is edited."""
    if trajectory.recipe.strength is None:
        return False
    recorded = trajectory.denoised is not None  # else this edit is going to ask the source
    known = trajectory.recipe.source_key if recorded else lender.key(source)
    return bool(known) and known == lender.key(target)
