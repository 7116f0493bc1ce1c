"""Whatever an artist gives to a control works, or is one sentence: all controls of today, and any
that comes.

The nodes are the extension's own list; they are connected as their schemas say. On a model whose
attention a control does not know, all that it says is that.
"""

import re

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.nodes.control import PromptToPrompt
from palimpsest.pipelines.attention.control import UNET, acts_in
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.inversions.test_laws import CONTROLS, prompt, settings_of

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")
every = pytest.mark.parametrize("node", CONTROLS, ids=lambda node: node.SCHEMA.node_id[10:])

SOURCE, TARGET = "a red circle", "a red square"
STEPS = 3


@pytest.fixture(scope="module", params=["sd1_folder", "flow_folder"], ids=["UNet", "transformer"])
def loaded(request):
    """A model of each of the two sorts of attention."""
    return agree.in_comfyui(request.getfixturevalue(request.param))


def inputs_of(node):
    return {wanted.id: wanted for wanted in node.GET_SCHEMA().inputs}


def made(node, loaded, source=SOURCE, target=TARGET, **more):
    """The control of a node: its own prompts, or those of a Prompt-to-Prompt that brings the words.

    Attention of random weights is nearly even: a mask of words needs a high threshold.
    """
    words = {"words": "circle", "target_words": "square", "threshold": 0.99}
    given = {"clip": loaded.clip, "source": source, "target": target, **words, **more}
    wanted = inputs_of(node)
    asked = settings_of(node) | {key: value for key, value in given.items() if key in wanted}
    worded = "words" in wanted and asked.get("words")
    if "control" in wanted and (worded or not wanted["control"].optional):
        below = settings_of(PromptToPrompt) | {
            "clip": loaded.clip,
            "source": source,
            "target": target,
        }
        silent = {"cross_window": 0.0, "self_window": 0.0}
        asked["control"] = PromptToPrompt.execute(**(below | silent)).args[0]
    return node.execute(**asked).args[0]


def edited(loaded, control, source=SOURCE, target=TARGET, size=(8, 8), batch=1, mask=None):
    """An edit of a drawn latent under it."""
    latent = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(3))
    prompts = [prompt(loaded, text) for text in (source, target, "")]
    levels = schedule(loaded.model, "simple", STEPS, 0.6)
    picture = Picture(loaded.model, prompts[0], prompts[2], latent, levels, 1.0, "Invert (DDIM)")
    chain, _ = invert_ddim(picture, convention="destination", refinement=0)
    request = EditRequest(loaded.model, chain, *prompts, 3.0, control, mask, DIRECT_INVERSION)
    if not acts_on(loaded, control):
        said = refused(lambda: edit(request))
        assert control.name in said and type(loaded.model.model).__name__ in said
        return latent
    out = edit(request).latent
    assert out.shape == latent.shape and bool(out.isfinite().all())
    return out


def acts_on(loaded, control):
    """Whether a model has the attention that a control acts on."""
    unet = isinstance(loaded.model.model.diffusion_model, UNetModel)
    return bool(acts_in(control.control) & (UNET if unet else {"joint"}))


def refused(work):
    """What is said where the input cannot be taken: one short sentence that says what to do."""
    with pytest.raises(PalimpsestError) as caught:
        work()
    said = str(caught.value)
    assert len(said) < 400 and said.endswith(".") and "\n" not in said and "Tensor" not in said
    return said


def works_or_says(work):
    """Whether it works; what is said where it does not."""
    try:
        work()
    except PalimpsestError:
        return refused(work)
    return ""


def test_they_are_all_here():
    assert {node.SCHEMA.node_id[10:] for node in CONTROLS} >= {
        "PromptToPrompt",
        "LocalBlend",
        "MasaCtrl",
        "PlugAndPlay",
        "Pix2PixZero",
    }


@every
@pytest.mark.parametrize("size", [(9, 13), (7, 16), (8, 24), (5, 5)], ids=str)
def test_odd_and_oblong_sizes_work(loaded, node, size):
    edited(loaded, made(node, loaded), size=size)


@every
def test_a_batch_of_pictures_works(loaded, node):
    edited(loaded, made(node, loaded), batch=3)


@every
@pytest.mark.parametrize(
    ("source", "target"),
    [("", "a square"), ("a circle", ""), ("", ""), ("a circle", "a circle"), (" a   circle ", "a")],
    ids=["no source", "no target", "neither", "the same", "spaces"],
)
def test_empty_prompts_work_or_say_what_is_missing(loaded, node, source, target):
    named = {"words": "", "target_words": ""}
    if "words" in inputs_of(node) and not inputs_of(node)["control"].optional:
        words = [text.split()[-1:] or ["circle"] for text in (source, target)]
        named = {"words": words[0][0], "target_words": words[1][0]}

    def work():
        edited(loaded, made(node, loaded, source, target, **named), source, target)

    said = works_or_says(work)
    assert not said or "circle" in said or "word" in said or "prompt" in said


@every
def test_prompts_longer_than_the_encoder_takes_at_once_work_or_say_so(loaded, node):
    long = " ".join(["a red circle on a green field"] * 15)
    texts = f"{long} circle", f"{long} square"
    said = works_or_says(lambda: edited(loaded, made(node, loaded, *texts), *texts))
    assert not said or "tokens" in said


@every
def test_one_prompt_that_is_longer_than_the_other_works(loaded, node):
    long = " ".join(["a red circle on a green field"] * 15)
    for texts in ((SOURCE, f"{long} square"), (f"{long} circle", TARGET)):
        said = works_or_says(lambda texts=texts: edited(loaded, made(node, loaded, *texts), *texts))
        assert not said or "tokens" in said


@every
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a red circle and a red circle", "a red square and a red circle"),
        ("circle, circle! (circle)", "square, square! (square)"),
        ("a red circle", "a red circle and a square"),
    ],
    ids=["twice", "signs", "new"],
)
def test_words_that_are_repeated_or_in_both_prompts_work(loaded, node, source, target):
    assert (
        works_or_says(lambda: edited(loaded, made(node, loaded, source, target), source, target))
        == ""
    )


WORDED = [node for node in CONTROLS if "words" in inputs_of(node)]
MASKED = [
    (node, wanted.id)
    for node in CONTROLS
    for wanted in node.GET_SCHEMA().inputs
    if wanted.io_type == "MASK"
]


@pytest.mark.parametrize("name", ["words", "target_words"])
@pytest.mark.parametrize("node", WORDED, ids=lambda node: node.SCHEMA.node_id[10:])
def test_a_word_that_is_in_no_prompt_is_an_error_that_lists_the_words(loaded, node, name):
    said = refused(lambda: made(node, loaded, **{name: "elephant"}))
    assert "elephant" in said and re.search("red", said)


masked = pytest.mark.parametrize(
    ("node", "name"), MASKED, ids=lambda value: getattr(value, "__name__", value)
)


@masked
@pytest.mark.parametrize("words", ["circle", ""])
def test_masks_of_any_size_that_are_empty_or_full_work(loaded, node, name, words):
    for mask in (
        torch.zeros(1, 64, 64),
        torch.ones(1, 64, 64),
        torch.rand(1, 100, 37),
        torch.rand(64, 64),
        torch.ones(1, 3, 3),
    ):
        more = {name: mask, "words": words, "target_words": words and "square"}
        if "mask_mode" in inputs_of(node) and not words:
            more["mask_mode"] = "replace"
        edited(loaded, made(node, loaded, **more))


@masked
def test_masks_of_another_batch_are_refused(loaded, node, name):
    control = made(node, loaded, **{name: torch.ones(3, 64, 64)})
    if not acts_on(loaded, control):
        return edited(loaded, control)
    said = refused(lambda: edited(loaded, control))
    assert "mask holds 3 pictures" in said
    edited(loaded, control, batch=3)


@every
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_edits_own_mask_goes_with_every_control(loaded, node, value):
    edited(loaded, made(node, loaded), mask=torch.full((1, 64, 64), value))
