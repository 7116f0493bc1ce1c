"""LocalBlend and stacks of controls in both hosts, and how one control is put on another."""

from dataclasses import replace

import pytest
import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl, Words
from palimpsest.hosts.comfy.edits.edit import allowed, edit
from palimpsest.hosts.comfy.edits.lent import Lent as ComfyLent
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.features import feature_store
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.hosts.diffusers.lent import Lent as DiffusersLent
from palimpsest.pipelines.attention.features import FeatureRecorder
from palimpsest.pipelines.attention.local_blend import LocalBlend, blend_columns
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.pix2pix_zero import Pix2PixZero
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.attention.prompt_batch import rewrite_prompts
from palimpsest.pipelines.attention.prompt_to_prompt import PromptToPrompt, rewrite_prompt
from palimpsest.pipelines.attention.stack import parts_of, stacked
from palimpsest.pipelines.attention.things import Things
from palimpsest.pipelines.attention.way import Way
from palimpsest.pipelines.correction import DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative
from palimpsest.tests.host.edits.test_source_controls import headless

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

STEPS = 4
MASACTRL = MasaCtrl(steps=(0.5, 1.0), layers=(0.5, 1.0))


def blended(tokens, target, **settings):
    """Prompt-to-Prompt and LocalBlend around the heart."""
    columns = [blend_columns([p], ["heart"], [], role="prompt") for p in (tokens, target)]
    own = LocalBlend(*columns, **{"threshold": 0.9, **settings})
    return stacked([rewrite_prompt(tokens, target, cross_window=(0, 0.6)), own])


def stack(tokens, target):
    return stacked([*parts_of(blended(tokens, target)), MASACTRL])


@pytest.mark.parametrize("correction", [DIRECT_INVERSION, UNCORRECTED], ids=["direct", "none"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("control", [blended, stack], ids=["blend", "stack"])
def test_both_hosts_agree_and_run_the_same_rows(request, monkeypatch, control, family, correction):
    monkeypatch.setattr(agree, "words", control)
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = agree.in_comfyui(folder)
    setting = agree.Setting(latent_for(loaded), correction=correction)
    made, inverted = agree.request(loaded, setting)
    ours, _, spent, bounds = edit(made)
    theirs, _, their_rows = headless(folder, loaded, setting)
    assert relative(ours, theirs) < HOSTS_AGREE
    assert (inverted.rows, spent.rows) == their_rows
    assert 0 < float(bounds.mean()) < 1
    kept = (bounds == 0).expand_as(ours)
    if correction is DIRECT_INVERSION:
        assert torch.equal(ours[kept], made.trajectory.origin[kept])
        read = {blended: STEPS, stack: 2 * STEPS}[control]  # MasaCtrl reads both rows
        assert spent.rows == 2 * STEPS + read
    else:
        assert not torch.equal(ours[kept], made.trajectory.origin[kept])


@pytest.fixture
def made(sd1, monkeypatch):
    monkeypatch.setattr(agree, "words", blended)
    return agree.request(sd1, agree.Setting(latent_for(sd1)))[0]


def test_each_picture_of_a_batch_has_its_own_mask(sd1, monkeypatch):
    monkeypatch.setattr(agree, "words", blended)
    two = latent_for(sd1, batch=2)
    together = edit(agree.request(sd1, agree.Setting(two))[0])
    for row in range(2):
        alone = edit(agree.request(sd1, agree.Setting(two[row : row + 1]))[0])
        assert torch.equal(together.bounds[row : row + 1], alone.bounds)
        assert relative(together.latent[row : row + 1], alone.latent) < 1e-5


def test_many_prompts_of_one_picture_have_a_mask_each(sd1, made):
    texts = (agree.TARGET, "a blue star on grass", "a red heart on a blue wall")
    source, *targets = (prompt_tokens(sd1.clip, text) for text in (agree.SOURCE, *texts))
    words = (["heart"], ["heart", "star", "wall"])
    columns = [
        blend_columns(prompts, own, [], role="prompt")
        for prompts, own in zip(([source], targets), words, strict=True)
    ]
    control = stacked([rewrite_prompts(source, targets), LocalBlend(*columns, threshold=0.9)])
    wanted = [agree.encode(sd1.clip, text)[0] for text in texts]
    batch = [[torch.cat([entry[0] for entry in wanted]), wanted[0][1]]]
    bound = BoundControl(control, made.source[0][0], batch[0][0])
    whole = edit(replace(made, target=batch, control=bound))
    assert whole.bounds.shape[0] == whole.latent.shape[0] == 3
    assert not torch.equal(whole.bounds[1], whole.bounds[2])
    first = edit(made)
    assert torch.equal(whole.bounds[:1], first.bounds)


def test_a_mask_from_the_user_lies_on_the_latent_and_is_told_as_pixels(made):
    height, width = (8 * n for n in made.trajectory.origin.shape[-2:])
    left = torch.zeros(1, height, width)
    left[:, :, : width // 2] = 1
    tokens = parts_of(made.control.control)
    for join in ("intersection", "replace"):
        control = stacked([tokens[0], replace(tokens[1], region=left, join=join)])
        asked = replace(made, control=replace(made.control, control=control))
        outcome = edit(asked)
        cells = (left[:, ::8, ::8] > 0)[:, None]
        expected = cells if join == "replace" else cells & (edit(made).bounds > 0)
        assert torch.equal(outcome.bounds > 0, expected)
        assert torch.equal(allowed(asked, outcome.bounds)[:, ::8, ::8] > 0, expected[:, 0])
    right = replace(asked, mask=1 - left)
    assert not allowed(right, edit(right).bounds).any()
    assert torch.equal(edit(right).latent, made.trajectory.origin)


def test_without_a_control_or_a_mask_the_whole_picture_may_change(made):
    free = replace(made, control=None)
    where = allowed(free, edit(free).bounds)
    assert bool((where == 1).all())
    assert where.shape == (1, *(8 * n for n in made.trajectory.origin.shape[-2:]))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.ones(3, 64, 64), "The mask holds 3 pictures, 1 shall be edited"),
        (torch.full((1, 64, 64), float("nan")), "The mask holds NaN or infinity"),
        (torch.ones(1, 2, 64, 64), r"The mask is \(1, 2, 64, 64\), it must be"),
        (torch.ones(0, 64, 64), r"The mask is \(0, 64, 64\), it must be"),
    ],
    ids=["batch", "nan", "shape", "empty"],
)
def test_a_bad_mask_of_a_control_is_refused_as_edits_own(made, mask, said):
    rewrite, blend = parts_of(made.control.control)
    control = stacked([rewrite, replace(blend, region=mask)])
    with pytest.raises(PalimpsestError, match=said):
        edit(replace(made, control=replace(made.control, control=control)))


def test_features_of_the_inversion_serve_the_blend_as_well(sd1, made):
    """Of the 4 steps only the first runs its source row."""
    picture = Picture(
        sd1.model,
        made.source,
        made.source,
        made.trajectory.origin,
        made.trajectory.falling_sigmas,
        1.0,
        "Invert (DDIM)",
    )
    control = made.control.control
    recorder = FeatureRecorder(control, picture.sigmas, 2**30, feature_store("memory"))
    chain, _ = invert_ddim(picture, convention="current", refinement=0, recorder=recorder)
    served = edit(replace(made, trajectory=chain))
    usual = edit(replace(made, trajectory=replace(chain, features=None)))
    assert (served.spent.rows, usual.spent.rows) == (2 * STEPS + 1, 3 * STEPS)
    assert torch.equal(served.bounds, usual.bounds)
    assert relative(served.latent, usual.latent) < 1e-4  # other sizes of batch


# -- one control on another ----------------------------------------------------------------------


def bound(sd1, source, target, control=None, **wishes):
    tokens = [prompt_tokens(sd1.clip, text) for text in (source, target)]
    own = control or rewrite_prompt(*tokens, **wishes)
    embeddings = [agree.encode(sd1.clip, text)[0][0] for text in (source, target)]
    return BoundControl(own, *embeddings, words=Words(tokens[0], (tokens[1],)))


def test_a_control_on_none_is_itself_and_one_on_another_keeps_its_prompts(sd1):
    words, masa = bound(sd1, "a cat", "a dog"), BoundControl(MASACTRL, name="MasaCtrl")
    assert masa.on(None) is masa
    for both in (masa.on(words), words.on(masa)):
        assert both.source is words.source and both.target is words.target
        assert both.words is words.words
    assert masa.on(words).name == "Prompt-to-Prompt + MasaCtrl"
    assert parts_of(masa.on(words).control) == (words.control, MASACTRL)
    assert parts_of(words.on(masa).control) == (MASACTRL, words.control)
    pnp = BoundControl(PlugAndPlay(), name="Plug-and-Play")
    assert len(parts_of(pnp.on(masa.on(words)).control)) == 3


def test_one_prompt_to_prompt_on_another_is_one_edit_into_its_target(sd1):
    texts = ("a red cat on grass", "a red dog on grass", "a red dog on snow")
    first, second = bound(sd1, *texts[:2]), bound(sd1, *texts[1:])
    masa = BoundControl(MASACTRL, name="MasaCtrl")
    both = second.on(masa.on(first))
    assert parts_of(both.control)[0] is MASACTRL and len(parts_of(both.control)) == 2
    direct = bound(sd1, texts[0], texts[2])
    assert torch.equal(
        parts_of(both.control)[1].alignment.mapping, direct.control.alignment.mapping
    )
    assert both.source is first.source and both.target is second.target
    assert both.words == Words(first.words.source, second.words.targets)


def test_a_batch_of_targets_goes_on_from_one_and_nothing_from_a_batch(sd1):
    first = bound(sd1, "a red cat", "a red dog")
    tokens = [prompt_tokens(sd1.clip, text) for text in ("a red dog", "a blue dog", "a big dog")]
    batch = BoundControl(
        rewrite_prompts(tokens[0], tokens[1:]), words=Words(tokens[0], tuple(tokens[1:]))
    )
    both = batch.on(first)
    assert all(isinstance(control, PromptToPrompt) for control in both.control.controls)
    with pytest.raises(PalimpsestError, match="The control holds 2 target prompts, another"):
        bound(sd1, "a blue dog", "a blue cat").on(both)


def test_what_does_not_go_on_is_refused(sd1):
    first = bound(sd1, "a red cat", "a red dog")
    with pytest.raises(PalimpsestError, match="is 'a red cat', the control connected to it ends"):
        bound(sd1, "a red cat", "a cat").on(first)
    blend = BoundControl(parts_of(blended_of(first))[1], name="LocalBlend")
    with pytest.raises(PalimpsestError, match=r"A control that names words \(LocalBlend"):
        bound(sd1, "a red dog", "a dog").on(blend.on(first))
    columns = tuple(mask[..., :1] for mask in (blend.control.source, blend.control.target))
    masa = BoundControl(MasaCtrl(things=Things(columns)), name="MasaCtrl")
    with pytest.raises(PalimpsestError, match=r"MasaCtrl with words\) stands before a Prompt"):
        bound(sd1, "a red dog", "a dog").on(masa.on(first))
    placed = BoundControl(MasaCtrl(things=Things(region=torch.ones(1, 8, 8))), name="MasaCtrl")
    assert bound(sd1, "a red dog", "a dog").on(placed.on(first)).name.count("+") == 2


def test_a_control_that_moves_the_latent_stands_alone(sd1):
    moving = BoundControl(Pix2PixZero(), name="pix2pix-zero")
    for first, second in ((moving, bound(sd1, "a cat", "a dog")), (bound(sd1, "a", "b"), moving)):
        with pytest.raises(PalimpsestError, match="pix2pix-zero moves the latent itself and goes"):
            second.on(first)


def blended_of(control):
    columns = [
        blend_columns([p], ["red"], [], role="prompt")
        for p in (control.words.source, control.words.targets[0])
    ]
    return stacked([control.control, LocalBlend(*columns)])


# -- leaving the source's network ----------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    "control",
    [
        lambda *tokens: rewrite_prompt(*tokens, cross_window=(0, 0.3), self_window=(0, 0.8)),
        lambda *tokens: rewrite_prompt(*tokens, cross_window=(0, 0), self_pixels=16),
        lambda *_: PlugAndPlay((0.0, 0.3), (0.0, 1.0), layers=(0.0, 1.0)),
        lambda *_: MasaCtrl((0.0, 1.0), (0.0, 0.6)),
    ],
    ids=["words", "coarse", "features", "both rows"],
)
def test_a_source_that_leaves_its_network_says_the_same(request, monkeypatch, family, control):
    """Bit for bit, in both hosts; the first whole call shows what there is to pass."""
    monkeypatch.setattr(agree, "words", control)
    for host in (ComfyLent, DiffusersLent):  # side by side with the target there is no leaving
        monkeypatch.setattr(host, "pairs", lambda *_: False)
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = agree.in_comfyui(folder)
    setting = agree.Setting(latent_for(loaded))
    made, _ = agree.request(loaded, setting)
    passed = []
    plain = Way.go

    def count(way, site):
        passed.append(site)
        plain(way, site)

    monkeypatch.setattr(Way, "go", count)
    ours, (theirs, *_), left = edit(made), headless(folder, loaded, setting), len(passed)
    passed.clear()
    plain = lambda way, site: None
    whole, (there, *_) = edit(made), headless(folder, loaded, setting)
    assert torch.equal(ours.latent, whole.latent) and torch.equal(theirs, there)
    assert ours.spent.rows == whole.spent.rows
    assert left < len(passed)
