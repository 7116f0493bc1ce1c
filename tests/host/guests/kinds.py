"""One control of every kind, open and shut, for edits beside the nodes of others."""

from dataclasses import replace
from functools import cache

import pytest
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import EditRequest
from palimpsest.hosts.comfy.inversions.noise_space import invert_noise
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.pipelines.attention.local_blend import LocalBlend, blend_columns
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.stack import parts_of, stacked
from palimpsest.pipelines.attention.things import Things
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.inversion.noise_space import EDIT_FRIENDLY
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for
from palimpsest.tests.host.inversions.test_noise_space import SOURCE, TARGET

#: At little noise, where random weights are not yet chaotic.
STEPS = 2

#: Rounding of float32 over so many steps of a tiny network; what a guest does here is above 1e-3.
ROUNDING = 1e-5

#: What an edit must differ by where something is said to have an effect.
SEEN = 1e-3


def words(source, target):
    """Terms of both attentions."""
    return rewrite_prompt(source, target, cross_window=(0, 0.6), self_window=(0, 0.5))


def looks(_source, _target):
    """Mutual self-attention, which reads both rows of the source."""
    return MasaCtrl(steps=(0.3, 1.0), layers=(0.3, 1.0))


def guided(source, target):
    """The same apart inside and outside of what its words find, in the second step."""
    words = tuple(blend_columns([p], ["mat"], [], role="prompt")[..., :1] for p in (source, target))
    return MasaCtrl(steps=(0.0, 1.0), layers=(0.3, 1.0), things=Things(words, 0.5))


def structure(_source, _target):
    """Maps, and the features of a residual block."""
    return PlugAndPlay(layers=(0.0, 1.0))


def bound(source, target):
    """What keeps the picture where its words are not."""
    columns = [blend_columns([p], ["mat"], [], role="prompt") for p in (source, target)]
    return stacked([words(source, target), LocalBlend(*columns, threshold=0.8)])


def stack(source, target):
    """All of them."""
    others = looks(source, target), structure(source, target)
    return stacked([*parts_of(bound(source, target)), *others])


KINDS = {
    "Prompt-to-Prompt": words,
    "MasaCtrl": looks,
    "MasaCtrl with words": guided,
    "Plug-and-Play": structure,
    "LocalBlend": bound,
    "a stack": stack,
}
#: Those that read of the source what no other one reads; the words are in the bound.
APART = {name: KINDS[name] for name in ("MasaCtrl", "Plug-and-Play", "LocalBlend")}

every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
every_sort = pytest.mark.parametrize("kind", APART.values(), ids=APART.keys())


def own_prompt(kind):
    """The prompt under which an edit into itself is the picture.

    Plug-and-Play shows both branches of the guidance one row: they must be the same.
    """
    return "" if kind is structure else SOURCE


@cache
def prompt(loaded, text):
    """A prompt, encoded once."""
    return agree.encode(loaded.clip, text)


@cache
def control_of(loaded, kind, target=TARGET, source=SOURCE):
    """A control of a kind, for the prompts of these tests."""
    texts = source, target
    tokens = [prompt_tokens(loaded.clip, text) for text in texts]
    return BoundControl(kind(*tokens), *(prompt(loaded, text)[0][0] for text in texts))


def inverted(loaded, model=None, *, text=SOURCE, batch=1, steps=STEPS, latent=None, **prompts):
    """The picture's own noise, under which an edit into its own prompt is the picture."""
    shown = {"positive": prompt(loaded, text), "negative": prompt(loaded, ""), **prompts}
    model = model or loaded.model
    latent = latent_for(loaded, batch=batch) if latent is None else latent
    levels = schedule(model, "simple", steps, 0.3)
    picture = Picture(model, samples=latent, levels=levels, cfg=2.0, feature="Invert", **shown)
    return invert_noise(picture, EDIT_FRIENDLY, seed=1)[0]


def asked(loaded, chain, kind=None, *, target=TARGET, source=SOURCE, **changes):
    """An edit under a control of a kind; without one where none is named."""
    texts = {"source": source, "target": target, "negative": ""}
    named = {role: prompt(loaded, text) for role, text in texts.items()}
    usual = {
        "model": loaded.model,
        "trajectory": chain,
        "cfg": 2.0,
        "control": kind and control_of(loaded, kind, target, source),
        "mask": None,
        "correction": DIRECT_INVERSION,
    }
    return EditRequest(**(named | usual | changes))


def shut(made):
    """The same edit under a control that never acts."""
    parts = [_shut(part) for part in parts_of(made.control.control)]
    return replace(made, control=replace(made.control, control=stacked(parts)))


def _shut(control):
    if isinstance(control, LocalBlend):
        return replace(control, start=1.0)  # it looks, and blends in no step
    if isinstance(control, MasaCtrl):
        return replace(control, steps=(0.0, 0.0))
    if isinstance(control, PlugAndPlay):
        return replace(control, attention_window=(0.0, 0.0), feature_window=(0.0, 0.0))
    none = 0 * control.cross_windows
    return replace(control, cross_windows=none, self_window=(0.0, 0.0))
