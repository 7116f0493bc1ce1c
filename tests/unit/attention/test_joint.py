"""Controls of joint attention, of text and image in one softmax, beside explicit maps."""

from dataclasses import replace

import pytest
import torch
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.consist_edit import ConsistEdit
from palimpsest.pipelines.attention.control import acts_in
from palimpsest.pipelines.attention.hooks import QKV, Site, attend
from palimpsest.pipelines.attention.joint import MapEdit
from palimpsest.pipelines.attention.local_blend import LocalBlend
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.prompt_batch import rewrite_prompts
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.stack import stacked
from palimpsest.pipelines.attention.things import Things
from palimpsest.pipelines.attention.watch import begun
from palimpsest.pipelines.attention.word_maps import columns_of, looked_at
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.unit.analytic import distance, moment, picture
from palimpsest.tests.unit.maps import (
    Refine,
    Replace,
    Reweight,
    attention,
    attention_maps,
    cross_alpha,
    look,
)
from palimpsest.tests.unit.prompts import prompt

TEXT, IMAGE, SHOWN, CHANNELS, HEADS, STEPS, LAYERS = 12, 9, 3, 16, 4, 10, 20
SIZE = (6, 6)  # two cells a token
EXACT = 1e-12


def site(text=TEXT, references=0, layer=5, role="cond"):
    tokens = text + IMAGE + references
    return Site("joint", layer, role, tokens, text, references, layers=LAYERS, heads=HEADS)


def qkv(rows=1, text=TEXT, references=0, seed=0):
    tokens = text + IMAGE + references
    return QKV(*(2 * picture(rows, tokens, CHANNELS, seed=seed + i) for i in range(3)))


def ours(control, step, target, source, at=None, place=None):
    """The rows of one branch, as a host makes them: record, then inject."""
    place = place or site()
    bank = Bank(control)
    bank.begin(moment(step, STEPS))
    longer = source.k.shape[1] - target.k.shape[1]
    there = place._replace(text=place.text + longer, tokens=place.tokens + longer)
    bank.record(there, source)
    return attend(target, place, [place.role], bank.inject, lambda term: attention(term, HEADS))


def maps_of(qkv):
    return attention_maps(qkv.q, qkv.k, HEADS)


def image(tensor, text=TEXT):
    """The part of a tensor, of tokens in the dimension before the last, that is the image's."""
    return tensor[..., text : text + IMAGE, :]


PAIRS = {
    "replace": ("a red cat on grass", "a blue tiger on grass"),
    "refine": ("a red cat", "a big red cat with a hat"),
}


def published(control, mode, step, target, source, references=0, share=None):
    """The edited map of a joint attention, whole; from the source are rows of the image alone."""
    own, other = maps_of(target), maps_of(source)
    rewrite = Replace(control.alignment.mapping)
    if mode == "refine":
        origin = control.alignment.mapping.argmax(0)
        rewrite = Refine(torch.where(control.alignment.aligned == 0, -1, origin).tolist())
    rewrite = Reweight(control.weights, rewrite)
    alpha = cross_alpha(STEPS, TEXT, float(control.cross_windows[0, 1]))[step].to(own)
    if share is None:
        share = float(step < int(control.self_window[1] * (STEPS + 1)))
    words, theirs = own[..., :TEXT], other[..., :TEXT]
    columns = slice(TEXT, TEXT + IMAGE)
    edited = [
        rewrite(theirs, words) * alpha + words * (1 - alpha),
        share * other[..., columns] + (1 - share) * own[..., columns],
        own[..., TEXT + IMAGE :],
    ]
    whole = own.clone()
    whole[..., columns, :] = torch.cat(edited, -1)[..., columns, :]
    return whole


def control_for(mode, **wishes):
    described = [prompt(text, TEXT, tiger=2) for text in PAIRS[mode]]
    word = described[1].words[1].text
    return rewrite_prompt(*described, mode=mode, weights={word: 3.0}, **wishes)


@pytest.mark.parametrize("references", [0, SHOWN])
@pytest.mark.parametrize("self_end", [0.0, 0.6])
@pytest.mark.parametrize("cross_end", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("mode", PAIRS)
def test_prompt_to_prompt_is_two_attentions_of_the_image(mode, cross_end, self_end, references):
    control = control_for(mode, cross_window=(0.0, cross_end), self_window=(0.0, self_end))
    place = site(references=references)
    for step in range(STEPS):
        target = qkv(2, references=references, seed=10 * step)
        source = qkv(2, references=references, seed=10 * step + 5)
        expected = look(published(control, mode, step, target, source), target.v)
        assert distance(ours(control, step, target, source, place=place), expected) < EXACT


@pytest.mark.parametrize("known", [7, 12])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("normalise", [False, True])
def test_prompts_of_other_lengths_and_tokens_that_are_none_of_theirs(known, share, normalise):
    """The source's prompt is longer; behind the target's stand tokens of another node."""
    longer, generator = 17, torch.Generator().manual_seed(1)
    given = torch.rand(longer, known, generator=generator, dtype=torch.float64)
    kept = torch.rand(known, generator=generator, dtype=torch.float64)
    target, source = qkv(2), qkv(2, text=longer, seed=5)
    own, other = maps_of(target)[..., TEXT:, :], maps_of(source)[..., longer:, :]
    edited = own.clone()
    edited[..., :known] = other[..., :longer] @ given + own[..., :known] * kept
    edited[..., TEXT:] = share * other[..., longer:] + (1 - share) * own[..., TEXT:]
    if normalise:
        assert (edited.sum(-1) - 1).abs().max() > 0.05
        edited = edited / edited.sum(-1, keepdim=True)
    terms = MapEdit(given, kept, share, normalise).terms(target, source, site())
    found = attend(target, site(), ["cond"], lambda *_: terms, lambda term: attention(term, HEADS))
    assert distance(image(found), look(edited, target.v)) < EXACT
    assert distance(found[:, :TEXT], attention(target, HEADS)[:, :TEXT]) < EXACT


def test_where_all_is_the_sources_no_attention_of_the_targets_image_is_computed():
    nothing, everything = torch.zeros(TEXT), torch.eye(TEXT)
    terms = MapEdit(everything, nothing, 1.0).terms(qkv(), qkv(seed=5), site())
    assert len(terms) == 2
    terms = MapEdit(everything, nothing, 0.5).terms(qkv(), qkv(seed=5), site())
    assert len(terms) == 3


@pytest.mark.parametrize("normalise", [False, True])
def test_weights_that_always_act_act_without_a_source(normalise):
    control = control_for(
        "replace",
        cross_window=(0.0, 0.0),
        self_window=(0.0, 0.0),
        weights_always=True,
        normalise=normalise,
    )
    target = qkv()
    expected = maps_of(target)
    expected[..., TEXT:, :TEXT] *= control.weights.double()
    if normalise:
        expected = expected / expected.sum(-1, keepdim=True)
    found = attend(
        target,
        site(),
        ["cond"],
        lambda place, own: control.terms(own, None, place, moment(0, STEPS)),
        lambda term: attention(term, HEADS),
    )
    assert distance(found, look(expected, target.v)) < EXACT


def test_every_prompt_of_a_batch_is_edited_as_if_it_were_alone():
    source, *targets = (prompt(text, TEXT) for text in ("a red cat", "a blue cat", "a big red cat"))
    control = rewrite_prompts(source, targets, cross_window=(0.0, 0.4), self_window=(0.0, 0.2))
    target, shown = qkv(2), qkv(1, seed=5)
    for step in (0, 3, 6):
        found = ours(control, step, target, shown)
        for row, one in enumerate(control.controls):
            alone = ours(one, step, QKV(*(t[row : row + 1] for t in target)), shown)
            assert distance(found[row : row + 1], alone) < EXACT


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("references", [0, SHOWN])
def test_masactrl_shows_every_query_the_sources_image_and_its_own_text(union, references):
    target, source = (
        qkv(2, references=references, seed=seed, text=text) for seed, text in ((0, TEXT), (5, 17))
    )
    place = site(references=references, layer=15)
    found = ours(MasaCtrl(union=union), 5, target, source, place=place)
    kept = [slice(TEXT, TEXT + IMAGE)] if union else []
    keys, values = (
        torch.cat(
            [image(s, 17), t[:, :TEXT], t[:, TEXT + IMAGE :], *(t[:, part] for part in kept)], 1
        )
        for s, t in zip(source[1:], target[1:], strict=True)
    )
    assert distance(found, attention((target.q, keys, values), HEADS)) < EXACT


def test_masactrl_begins_at_its_layer_and_at_its_step():
    target, source = qkv(), qkv(seed=5)
    free = attention(target, HEADS)
    for step, layer in ((0, 15), (5, 12)):
        found = ours(MasaCtrl(), step, target, source, place=site(layer=layer))
        assert torch.equal(found, free)


@pytest.mark.parametrize("union", [False, True])
def test_masactrl_with_masks_lets_the_image_look_inside_from_inside(union):
    of, to = torch.zeros(2, 1, 1, *SIZE).unbind(0)
    of[..., :4, :2], to[..., 2:, 4:] = 1, 1  # tokens 0, 3 and 5, 8
    inside, shown = {5, 8}, {0, 3}
    control = begun(MasaCtrl(things=Things(region=of, target_region=to), union=union), SIZE).control
    target, source = qkv(), qkv(seed=5)
    found = ours(control, 5, target, source, place=site(layer=15))
    for query in range(IMAGE):
        theirs = [n for n in range(IMAGE) if (n in shown) == (query in inside)]
        mine = [n for n in range(IMAGE) if (n in inside) == (query in inside)] if union else []
        keys, values = (
            torch.cat([t[:, :TEXT], image(s)[:, theirs], image(t)[:, mine]], 1)
            for s, t in zip(source[1:], target[1:], strict=True)
        )
        one = attention((image(target.q)[:, query : query + 1], keys, values), HEADS)
        assert distance(image(found)[:, query : query + 1], one) < EXACT
    whole = ours(MasaCtrl(union=union), 5, target, source, place=site(layer=15))
    assert torch.equal(found[:, :TEXT], whole[:, :TEXT])


@pytest.mark.parametrize("references", [0, SHOWN])
@pytest.mark.parametrize("inside", [True, False], ids=["window open", "window shut"])
def test_consistedit_mixes_the_images_tensors_as_published(inside, references):
    edited = torch.zeros(1, 1, *SIZE)
    edited[..., 0, 0], edited[..., 3, 3] = 1, 0.25  # tokens 0 and 4; any cell makes a token
    control = ConsistEdit((0.0, 0.3), things=Things(region=edited))
    target, source = (
        qkv(2, references=references, seed=seed, text=text) for seed, text in ((0, TEXT), (5, 17))
    )
    step, place = (2 if inside else 5), site(references=references)
    found = ours(begun(control, SIZE).control, step, target, source, place=place)
    m = torch.zeros(IMAGE, 1, dtype=torch.float64)
    m[0], m[4] = 1, 0.25
    a = torch.ones_like(m) if inside else 1 - m
    mixed = [
        share * image(s, 17) + (1 - share) * image(t)
        for s, t, share in zip(source, target, (a, a, 1 - m), strict=True)
    ]
    q, k, v = (
        torch.cat([t[:, :TEXT], part, t[:, TEXT + IMAGE :]], 1)
        for t, part in zip(target, mixed, strict=True)
    )
    assert distance(found, attention((q, k, v), HEADS)) < EXACT


def test_consistedit_without_a_thing_holds_structure_in_its_window_alone():
    target, source = qkv(), qkv(seed=5)
    q, k = (
        torch.cat([t[:, :TEXT], image(s)], 1) for s, t in zip(source[:2], target[:2], strict=True)
    )
    found = ours(ConsistEdit((0.0, 0.3)), 2, target, source)
    assert distance(found, attention((q, k, target.v), HEADS)) < EXACT
    bank = Bank(ConsistEdit((0.0, 0.3)))
    bank.begin(moment(5, STEPS))
    assert not bank.runs(moment(5, STEPS))
    assert bank.inject(site(), target) is None


def test_queries_keys_and_values_of_the_source_make_the_image_the_sources():
    """Where the text says the same."""
    source = qkv(seed=5)
    target = QKV(
        *(torch.cat([s[:, :TEXT], image(t)], 1) for s, t in zip(source, qkv(), strict=True))
    )
    control = ConsistEdit((0.0, 1.0), (0.0, 1.0))
    found = ours(control, 0, target, source)
    assert distance(found, attention(source, HEADS)) < EXACT


@pytest.mark.parametrize(
    ("setting", "moved"),
    [({"layers": (0.5, 1.0)}, 5), ({"structure": (0.5, 0.6)}, 12), ({"structure": (0.0, 0.0)}, 12)],
)
def test_consistedit_acts_in_its_layers_and_steps(setting, moved):
    control, target = replace(ConsistEdit(), **setting), qkv()
    found = ours(control, 0, target, qkv(seed=5), place=site(layer=moved))
    assert torch.equal(found, attention(target, HEADS))


@pytest.mark.parametrize("name", ["structure", "values", "layers"])
@pytest.mark.parametrize("part", [(-0.1, 1.0), (0.6, 0.5), (float("nan"), 1.0)])
def test_a_part_that_is_none_is_refused(name, part):
    with pytest.raises(PalimpsestError, match=f"ConsistEdit's {name}: .* two rising fractions"):
        replace(ConsistEdit(), **{name: part})


def test_words_are_looked_for_in_the_middle_blocks():
    layers = [layer for layer in range(57) if looked_at(site(layer=layer)._replace(layers=57))]
    assert layers == list(range(10, 26))  # the published 11 to 18 of Flux among them
    layers = [layer for layer in range(7) if looked_at(site(layer=layer)._replace(layers=7))]
    assert layers == [2, 3]
    for count in (1, 2, 3):
        sites = (site(layer=layer)._replace(layers=count) for layer in range(count))
        assert sum(looked_at(place) for place in sites) == 1


def looked_under_masactrl(target, source, masks):
    """[1, I, TEXT] where the target's image looks at words, its picture the source's."""
    shown = torch.ones(IMAGE, IMAGE, dtype=torch.bool)
    if masks is not None:
        of, to = (mask[0, 0, ::2, ::2].flatten() > 0 for mask in masks)
        shown = torch.stack([of == inside for inside in to])
    keys = torch.cat([target.k[:, :TEXT], image(source.k)], 1)
    q, k = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (image(target.q), keys))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    hidden = torch.cat([torch.zeros(IMAGE, TEXT, dtype=torch.bool), ~shown], 1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)[..., :TEXT].mean(1)


def looked_under_consistedit(target, source, masks, inside):
    """The same where its queries and keys are the source's, after the window around the edit."""
    rest = None if masks is None else 1 - masks[0].maximum(masks[1])[0, 0, ::2, ::2].flatten()
    share = 1.0 if inside else 0.0 if rest is None else rest.double()[:, None]
    q, k = (
        torch.cat([t[:, :TEXT], share * image(s) + (1 - share) * image(t)], 1)
        for t, s in zip(target[:2], source[:2], strict=True)
    )
    return attention_maps(q, k, HEADS)[..., TEXT:, :TEXT].mean(1)


@pytest.mark.parametrize("name", ["MasaCtrl", "ConsistEdit"])
def test_a_thing_is_found_by_its_words_in_both_pictures(name):
    """As the control edits the maps, with what was found before them."""
    of, to = columns_of([(2,)], TEXT)[None], columns_of([(1, 4)], TEXT)[None]
    things = Things((of, to), 0.5)
    control = MasaCtrl((0.0, 1.0), (0.0, 1.0), things=things)
    if name == "ConsistEdit":
        control = ConsistEdit((0.0, 0.2), things=things)
    beginning = begun(control, SIZE)
    bank = Bank(beginning.control, onlookers=beginning.onlookers)
    seen, masks = [torch.zeros(1, 3, 3, dtype=torch.float64) for _ in range(2)], None
    for step in range(5):
        target, source = qkv(seed=10 * step), qkv(seed=10 * step + 5)
        bank.begin(moment(step, STEPS))
        bank.record(site(), source)
        bank.inject(site(), target)
        found = beginning.control.seeking.masks
        assert (masks is None) == (found is None)
        assert masks is None or all(map(torch.equal, found, masks))
        if name == "MasaCtrl":
            edited = looked_under_masactrl(target, source, masks)
        else:
            edited = looked_under_consistedit(target, source, masks, step < 2)
        maps = maps_of(source)[..., TEXT:, 2].mean(1), (edited @ to.double()[0])[..., 0]
        for total, one in zip(seen, maps, strict=True):
            total += one.unflatten(1, (3, 3))
        above = [t - t.min() > 0.5 * (t.max() - t.min()) for t in seen]
        masks = [
            m[:, None].float().repeat_interleave(2, -1).repeat_interleave(2, -2) for m in above
        ]
    assert 0 < masks[0].mean() < 1


def test_every_prompt_of_a_batch_has_maps_of_its_own():
    source, *targets = (prompt(text, TEXT) for text in ("a red cat", "a blue cat", "a big red cat"))
    control = rewrite_prompts(source, targets, cross_window=(0.0, 0.4), self_window=(0.0, 0.2))
    of, to = columns_of([(2,), ()], TEXT)[None], columns_of([(1, 4), ()], TEXT)[None]
    target, shown = qkv(2), qkv(1, seed=5)

    def maps_under(one, rows):
        beginning = begun(stacked([one, LocalBlend(of, to.expand(len(rows.q), -1, -1))]), SIZE)
        bank = Bank(beginning.control, watches=beginning.watches)
        for step in (0, 3):
            bank.begin(moment(step, STEPS))
            bank.record(site(), shown)
            bank.inject(site(), rows)
        return beginning.watches[0].target.total

    together = maps_under(control, target)
    for row, one in enumerate(control.controls):
        alone = maps_under(one, QKV(*(t[row : row + 1] for t in target)))
        assert distance(together[row : row + 1], alone) < EXACT


@pytest.mark.parametrize("normalise", [False, True])
def test_local_blend_sees_the_words_of_both_as_they_are_edited(normalise):
    control = control_for("replace", self_window=(0.0, 0.3), normalise=normalise)
    of, to = columns_of([(2,), ()], TEXT)[None], columns_of([(1, 4), (5,)], TEXT)[None]
    beginning = begun(stacked([control, LocalBlend(of, to)]), SIZE)
    bank = Bank(beginning.control, watches=beginning.watches)
    blending = beginning.watches[0]
    seen = [torch.zeros(1, 2, 3, 3, dtype=torch.float64) for _ in range(2)]
    for step in range(5):
        target, source = qkv(seed=10 * step), qkv(seed=10 * step + 5)
        bank.begin(moment(step, STEPS))
        bank.record(site(), source)
        bank.inject(site(), target)
        maps = maps_of(source), published(control, "replace", step, target, source)
        for whole, columns, total in zip(maps, (of, to), seen, strict=True):
            rows = whole[..., TEXT:, :]
            rows = rows / rows.sum(-1, keepdim=True) if normalise else rows
            found = rows[..., :TEXT].mean(1) @ columns.double()
            total += found.transpose(1, 2).unflatten(2, (3, 3))
    for gathered, total in zip((blending.source, blending.target), seen, strict=True):
        assert distance(gathered.total, total) < EXACT


def test_what_acts_in_a_transformer_says_so():
    described = [prompt(text, TEXT) for text in ("a red cat", "a blue cat")]
    words = rewrite_prompt(*described)
    blend = LocalBlend(torch.zeros(1, TEXT, 2), torch.zeros(1, TEXT, 2))
    for control in (words, MasaCtrl(), blend, rewrite_prompts(described[0], described[1:])):
        assert "joint" in acts_in(control)
        assert "cross" in acts_in(control)
    assert acts_in(ConsistEdit()) == {"joint"}
    assert acts_in(stacked([words, blend])) == {"cross", "joint"}
    assert acts_in(stacked([words, ConsistEdit()])) == {"joint"}
