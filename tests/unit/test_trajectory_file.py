"""Trajectory files of every format: what is carried comes back, and what is damaged is said."""

import importlib
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import palimpsest
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.pipelines.carried import Carried
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.edict import Coupled
from palimpsest.pipelines.inversion.fresh_noise import FreshNoise
from palimpsest.pipelines.inversion.mapped_values import MappedValues
from palimpsest.pipelines.inversion.negative_embedding import NegativeEmbedding
from palimpsest.pipelines.inversion.uni_inv import Aligned
from palimpsest.pipelines.old_formats import carried_before_3
from palimpsest.pipelines.proximal import Proximal
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.pipelines.trajectory_file import KINDS, from_tensors, to_tensors
from palimpsest.tests.unit.analytic import geometric, picture

STEPS = 3
LATENTS = torch.stack([picture(seed=i, dtype=torch.float32) for i in range(STEPS + 1)])
SIGMAS = geometric(STEPS)

#: One of each kind, and what format 2 called it.
EXAMPLES = {
    NegativeEmbedding: NegativeEmbedding(picture(STEPS, 1, 2, 3), "source", 7.5),
    MappedValues: MappedValues(picture(STEPS, 2, 1, 2, 3), 5.0, 0.5),
    Aligned: Aligned(picture(*LATENTS[1:].shape), picture(*LATENTS[1:].shape, seed=1)),
    Coupled: Coupled(LATENTS + 1, picture(STEPS, 2, *LATENTS.shape[1:]), 0.93, 1),
    FreshNoise: FreshNoise(
        zeta=0.01,
        lag="fading",
        points=picture(STEPS, 2, *LATENTS.shape[1:]),
        guesses=picture(STEPS, 2, *LATENTS.shape[1:], seed=1),
        noise=LATENTS[0],
        whole=STEPS + 2,
    ),
    Proximal: Proximal("hard", 0.25, pull=0.5),
}
OLD = {
    NegativeEmbedding: (
        {"uncond": EXAMPLES[NegativeEmbedding].embedding},
        {"uncond_for": "source", "cfg": 7.5, "cfg_bound": True},
    ),
    MappedValues: (
        {"values": EXAMPLES[MappedValues].values},
        {"cfg": 5.0, "cfg_bound": True, "value_window": 0.5},
    ),
    Coupled: (
        {"partner": EXAMPLES[Coupled].partner, "guesses": EXAMPLES[Coupled].guesses},
        {"mixing": 0.93, "rests": 1},
    ),
    Proximal: ({}, {"proximal": {"threshold": "hard", "quantile": 0.25, "pull": 0.5}}),
}


def carrying(*carried, recipe=None, **options):
    recipe = recipe or Recipe("ddim")
    return Trajectory(LATENTS, SIGMAS, LATENTS[0], recipe, carried=carried, **options)


def same(one, other):
    return (
        type(one) is type(other)
        and one.settings == other.settings
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(t, other.tensors[name]) for name, t in one.tensors.items())
    )


def test_every_value_that_a_method_may_leave_is_known_to_files():
    """A new kind that is not in the list could be saved and never be loaded."""
    root = Path(palimpsest.__file__).parent
    for path in sorted((root / "pipelines").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        importlib.import_module(".".join(("palimpsest", *parts)).removesuffix(".__init__"))
    made = {kind for kind in Carried.__subclasses__() if kind.__module__.startswith("palimpsest")}
    assert set(KINDS) == made == set(EXAMPLES)
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_what_is_carried_comes_back(kind):
    tensors, about = to_tensors(carrying(EXAMPLES[kind]))
    assert about["palimpsest_trajectory"] == "3"
    (back,) = from_tensors(tensors, about, name="a").carried
    assert same(back, EXAMPLES[kind])


def test_several_values_are_carried_together():
    every = tuple(EXAMPLES[kind] for kind in (NegativeEmbedding, MappedValues, Proximal))
    back = from_tensors(*to_tensors(carrying(*every)), name="a")
    assert all(map(same, back.carried, every))


@pytest.mark.parametrize("kind", OLD, ids=lambda kind: kind.__name__)
def test_format_2_said_the_same_in_its_own_words(kind):
    parts, settings = OLD[kind]
    tensors, about = to_tensors(carrying())
    recipe = json.loads(about["recipe"]) | settings
    about = {"palimpsest_trajectory": "2", "recipe": json.dumps(recipe)}
    (back,) = from_tensors(tensors | parts, about, name="a").carried
    assert same(back, EXAMPLES[kind])


@pytest.mark.parametrize(
    ("recipe", "version"),
    [
        (Recipe("ddim"), "1"),
        (Recipe("markov", eta=1.0, strength=1.0), "1"),
        (Recipe("markov", eta=0.1, strength=1.0), "1"),
        (Recipe("independent", strength=1.0), "3"),
        (Recipe("markov", eta=1.0), "3"),
        (Recipe("markov", eta=1.0, strength=0.5), "3"),
    ],
    ids=str,
)
def test_a_chain_is_written_in_the_oldest_format_that_can_say_its_strength(recipe, version):
    tensors, about = to_tensors(carrying(recipe=recipe))
    assert about["palimpsest_trajectory"] == version
    assert from_tensors(tensors, about, name="a").recipe == recipe
    assert to_tensors(carrying(image=LATENTS[1]))[1]["palimpsest_trajectory"] == "3"


def test_a_value_of_a_later_version_is_named():
    tensors, about = to_tensors(carrying(EXAMPLES[Proximal]))
    about["carried"] = json.dumps({"x" * 200: {}})
    with pytest.raises(PalimpsestError, match=f"a carries a {'x' * 80}, which this version does"):
        from_tensors(tensors, about, name="a")


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_a_lost_part_of_it_is_said(kind):
    tensors, about = to_tensors(carrying(EXAMPLES[kind]))
    lost = [key for key in tensors if key.startswith(kind.name)]
    for key in lost:
        with pytest.raises(PalimpsestError, match=r"^a is damaged"):
            from_tensors({k: t for k, t in tensors.items() if k != key}, about, name="a")


NO_OBJECT = ["", "{", "3", "null", "[]", '"x"', "[" * 100_000, "1" * 5000]


@pytest.mark.parametrize("key", ["recipe", "carried"])
@pytest.mark.parametrize("text", NO_OBJECT, ids=lambda text: text[:5] or "empty")
def test_text_that_is_no_object_is_said(key, text):
    tensors, about = to_tensors(carrying(EXAMPLES[Proximal]))
    with pytest.raises(PalimpsestError, match=r"^a is damaged: its recipe cannot be read"):
        from_tensors(tensors, about | {key: text}, name="a")


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**300),
    st.floats(),
    st.text(max_size=200),
    st.lists(st.one_of(st.floats(), st.text(max_size=3), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(field=st.sampled_from([field.name for field in fields(Recipe)]), value=ANYTHING)
def test_a_recipe_holds_what_its_fields_say_or_is_refused(field, value):
    """Whatever stands in a file: a recipe of the right types and finite numbers, or a sentence."""
    tensors, about = to_tensors(carrying(recipe=Recipe("independent", strength=1.0)))
    stored = asdict(Recipe("ddim")) | {field: value}
    try:
        recipe = from_tensors(tensors, about | {"recipe": json.dumps(stored)}, name="a").recipe
    except PalimpsestError as error:
        assert str(error).startswith("a is damaged: its recipe cannot be read: " + field)
        assert len(str(error)) < 240
        return
    found, default = getattr(recipe, field), getattr(replace(Recipe("ddim"), eta=0.5), field)
    numbers = found if isinstance(found, tuple) else (found,)
    if isinstance(default, str):
        assert isinstance(found, str)
    else:
        assert all(n is None or abs(n) < 1e300 for n in numbers)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
@given(value=ANYTHING, data=st.data())
def test_settings_of_the_wrong_type_are_refused(kind, value, data):
    tensors, about = to_tensors(carrying(EXAMPLES[kind]))
    settings = json.loads(about["carried"])
    if not settings[kind.name]:
        return
    field = data.draw(st.sampled_from(sorted(settings[kind.name])))
    settings[kind.name][field] = value
    about = about | {"carried": json.dumps(settings)}
    try:
        (back,) = from_tensors(tensors, about, name="a").carried
    except PalimpsestError as error:
        assert str(error).startswith("a is damaged")
        assert len(str(error)) < 400
        return
    assert type(getattr(back, field)) in (str, int, float, bool, type(None))


@pytest.mark.parametrize(("rows", "fits"), [(2**63 - 1, True), (2**63, False), (-(2**63), False)])
def test_numbers_of_a_recipe_have_an_end(rows, fits):
    tensors, about = to_tensors(Trajectory(LATENTS, SIGMAS, LATENTS[0], Recipe("ddim", rows=rows)))
    if fits:
        assert from_tensors(tensors, about, name="a").recipe.rows == rows
        return
    with pytest.raises(PalimpsestError, match="rows is"):
        from_tensors(tensors, about, name="a")


def test_what_an_early_file_did_not_say_has_the_value_of_its_time():
    values = picture(STEPS, 2, 1, 2, 3)
    ((kind, fields),) = carried_before_3({"values": values}, {})
    assert (kind, fields["cfg"], fields["window"]) == (MappedValues, 1.0, 1.0)
