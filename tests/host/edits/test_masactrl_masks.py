"""MasaCtrl with masks, the user's and those of words, in both hosts and from a node."""

from dataclasses import replace

import pytest
import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.features import feature_store
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.nodes.source_controls import MasaCtrlNode
from palimpsest.pipelines.attention.features import FeatureRecorder
from palimpsest.pipelines.attention.local_blend import blend_columns
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.stack import parts_of, stacked
from palimpsest.pipelines.attention.things import Things
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative
from palimpsest.tests.host.edits.test_source_controls import headless
from palimpsest.tests.host.edits.test_stacks import bound

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

STEPS = 4
OPEN = {"steps": (0.0, 1.0), "layers": (0.0, 1.0)}


def guided(tokens, target, **settings):
    """MasaCtrl around the heart, on a Prompt-to-Prompt that only brings the words."""
    words = tuple(
        blend_columns([p], ["heart"], [], role="prompt")[..., :1] for p in (tokens, target)
    )
    silent = rewrite_prompt(tokens, target, cross_window=(0, 0), self_window=(0, 0))
    return stacked([silent, MasaCtrl(**OPEN, things=Things(words, 0.5), **settings)])


@pytest.mark.parametrize("union", [False, True], ids=["mutual", "union"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_both_hosts_agree_and_run_the_same_rows(request, monkeypatch, family, union):
    monkeypatch.setattr(agree, "words", lambda *both: guided(*both, union=union))
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = agree.in_comfyui(folder)
    setting = agree.Setting(latent_for(loaded))
    made, inverted = agree.request(loaded, setting)
    ours, _, spent, bounds = edit(made)
    theirs, _, their_rows = headless(folder, loaded, setting)
    assert relative(ours, theirs) < HOSTS_AGREE
    assert (inverted.rows, spent.rows) == their_rows == (STEPS, 4 * STEPS)
    assert bounds is None
    plain = stacked([MasaCtrl(**OPEN, union=union)])
    whole = edit(replace(made, control=BoundControl(plain)))
    assert relative(ours, whole.latent) > 30 * HOSTS_AGREE


@pytest.fixture
def made(sd1, monkeypatch):
    monkeypatch.setattr(agree, "words", guided)
    return agree.request(sd1, agree.Setting(latent_for(sd1)))[0]


def test_each_picture_of_a_batch_has_its_own_masks(sd1, monkeypatch):
    monkeypatch.setattr(agree, "words", guided)
    two = latent_for(sd1, batch=2)
    together = edit(agree.request(sd1, agree.Setting(two))[0]).latent
    for row in range(2):
        alone = edit(agree.request(sd1, agree.Setting(two[row : row + 1]))[0]).latent
        assert relative(together[row : row + 1], alone) < 1e-5


def test_features_of_the_inversion_serve_its_words_as_well(sd1, made):
    made = replace(made, negative=made.source)  # one row of the source serves both branches
    picture = Picture(
        sd1.model,
        made.source,
        made.source,
        made.trajectory.origin,
        made.trajectory.falling_sigmas,
        1.0,
        "Invert (DDIM)",
    )
    recorder = FeatureRecorder(
        parts_of(made.control.control)[1], picture.sigmas, 2**30, feature_store("memory")
    )
    chain, _ = invert_ddim(picture, convention="current", refinement=0, recorder=recorder)
    served = edit(replace(made, trajectory=chain))
    usual = edit(replace(made, trajectory=replace(chain, features=None)))
    assert served.spent.rows < usual.spent.rows
    assert relative(served.latent, usual.latent) < 1e-5


# -- the node --------------------------------------------------------------------------------------


def by_node(control=None, **inputs):
    return MasaCtrlNode.execute(start=0.0, start_layer=0.0, control=control, **inputs).args[0]


def test_the_node_takes_its_words_from_the_prompts_below(sd1, made):
    below = bound(sd1, agree.SOURCE, agree.TARGET, cross_window=(0, 0), self_window=(0, 0))
    ours = by_node(below, words="heart", threshold=0.5)
    assert ours.name == "Prompt-to-Prompt + MasaCtrl"
    assert torch.equal(edit(replace(made, control=ours)).latent, edit(made).latent)
    assert parts_of(ours.control)[1].things.threshold == 0.5


def test_a_mask_at_the_node_reaches_the_cells_of_the_latent(made):
    height, width = (8 * n for n in made.trajectory.origin.shape[-2:])
    left = torch.zeros(1, height, width)
    left[:, :, : width // 2] = 1
    by_node_alone = edit(replace(made, control=by_node(mask=left, target_mask=1 - left))).latent
    cells = (left[:, ::8, ::8])[:, None]
    things = Things(region=cells, target_region=1 - cells)
    own = BoundControl(MasaCtrl(**OPEN, things=things))
    assert torch.equal(edit(replace(made, control=own)).latent, by_node_alone)
    assert relative(by_node_alone, edit(replace(made, control=by_node(mask=left))).latent) > 1e-3


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_masks_that_are_empty_or_full_ask_the_whole_picture(made, value):
    size = [8 * n for n in made.trajectory.origin.shape[-2:]]
    masked = by_node(mask=torch.full((1, *size), value))
    whole = edit(replace(made, control=by_node())).latent
    assert relative(edit(replace(made, control=masked)).latent, whole) < 1e-5


@pytest.mark.parametrize("name", ["mask", "target_mask"])
def test_a_bad_mask_is_refused_as_edits_own(made, name):
    control = by_node(**{name: torch.ones(3, 64, 64)})
    with pytest.raises(PalimpsestError, match="The mask holds 3 pictures, 1 shall be edited"):
        edit(replace(made, control=control))


def test_words_that_cannot_be_looked_for_are_refused(sd1):
    below = bound(sd1, agree.SOURCE, agree.TARGET)
    with pytest.raises(PalimpsestError, match="MasaCtrl looks for words, but knows no prompts"):
        by_node(words="heart")
    with pytest.raises(PalimpsestError, match="knows no prompts: connect Prompt-to-Prompt"):
        by_node(by_node(), words="heart")
    with pytest.raises(PalimpsestError, match="has target_words, but no words: name the thing"):
        by_node(below, target_words="heart")
    with pytest.raises(PalimpsestError, match="cow"):
        by_node(below, words="cow")
