"""A batch of target prompts edits one trajectory, each row as its prompt would alone."""

from dataclasses import replace

import pytest
import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.words import encode_batch, prompt_tokens
from palimpsest.pipelines.attention.prompt_batch import rewrite_prompts
from palimpsest.pipelines.correction import ADD_SOURCE, DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for, relative

TARGETS = ["a blue heart on grass", "a red star on grass", "a red heart on grass with flowers"]

#: fp32 in batches of other sizes; random weights enlarge rounding.
BATCHED = 1e-4


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module")
def sd1(sd1_folder):
    return agree.in_comfyui(sd1_folder)


def batch_of(loaded, made, targets, control=True):
    target = encode_batch(loaded.clip, targets)
    if not control:
        return replace(made, target=target, control=None)
    tokens = [prompt_tokens(loaded.clip, text) for text in targets]
    words = rewrite_prompts(
        prompt_tokens(loaded.clip, agree.SOURCE),
        tokens,
        cross_window=(0, 0.6),
        self_window=(0, 0.5),
    )
    bound = BoundControl(words, made.source[0][0], target[0][0])
    return replace(made, target=target, control=bound)


def alone(loaded, made, target):
    """The edit of one prompt along the same trajectory."""
    tokens = [prompt_tokens(loaded.clip, text) for text in (agree.SOURCE, target)]
    wanted = agree.encode(loaded.clip, target)
    bound = BoundControl(agree.words(*tokens), made.source[0][0], wanted[0][0])
    return edit(replace(made, target=wanted, control=bound))


@pytest.mark.parametrize(
    ("kind", "correction"),
    [
        ("sd1", DIRECT_INVERSION),
        ("sd1", UNCORRECTED),
        ("sd1", ADD_SOURCE),
        ("sdxl", UNCORRECTED),
    ],
    ids=["sd1-direct", "sd1-none", "sd1-add", "sdxl-none"],
)
def test_each_row_is_what_its_prompt_gives_alone(request, kind, correction, monkeypatch):
    loaded = agree.exact(request.getfixturevalue(f"{kind}_folder"), monkeypatch)
    setting = agree.Setting(latent_for(loaded), correction=correction)
    made, _ = agree.request(loaded, setting)
    latent, source, spent, _ = edit(batch_of(loaded, made, TARGETS))
    assert len(latent) == len(TARGETS)
    assert len(source) == 1
    rows = []
    for row, target in enumerate(TARGETS):
        expected, _, cost, _ = alone(loaded, made, target)
        assert relative(latent[row : row + 1], expected) < agree.NEIGHBOURS
        rows.append(cost.rows)
    sources = rows[0] - 2 * setting.steps
    assert spent.rows == len(TARGETS) * 2 * setting.steps + sources  # the source ran once
    assert relative(latent[0], latent[1]) > 1e-2


def test_a_prompt_for_every_picture(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1, batch=3), control=False))
    latent, *_ = edit(batch_of(sd1, made, TARGETS, control=False))
    for row, target in enumerate(TARGETS):
        one = agree.Setting(made.trajectory.origin[row : row + 1], target=target, control=False)
        expected, *_ = edit(agree.request(sd1, one)[0])
        assert relative(latent[row : row + 1], expected) < BATCHED


def test_a_mask_keeps_its_region_in_every_row(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1)))
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    latent, *_ = edit(replace(batch_of(sd1, made, TARGETS), mask=mask))
    origin = made.trajectory.origin
    assert torch.equal(latent[..., 4:], origin.expand(3, -1, -1, -1)[..., 4:])
    assert not torch.equal(latent[..., :4], origin.expand(3, -1, -1, -1)[..., :4])


def test_other_numbers_of_prompts_and_pictures_are_refused(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1, batch=2), control=False))
    with pytest.raises(PalimpsestError, match="holds 3 prompts, the trajectory 2 pictures"):
        edit(batch_of(sd1, made, TARGETS, control=False))


def test_the_guider_takes_one_prompt(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1), control=False))
    with pytest.raises(PalimpsestError, match="3 prompts, the guider takes one"):
        EditGuider(batch_of(sd1, made, TARGETS, control=False))


def test_prompts_of_other_lengths_are_refused(sd1):
    clip = sd1.clip
    with pytest.raises(PalimpsestError, match="take 77 and 154 tokens"):
        encode_batch(clip, ["a cat", "a cat " * 60])
    assert encode_batch(clip, ["a cat " * 60, "a dog " * 60])[0][0].shape[:2] == (2, 154)
