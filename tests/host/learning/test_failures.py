"""A learning run that fails leaves nothing on the thread that the next one could trip over."""

import comfy.model_management
import pytest
import torch
from palimpsest.hosts.comfy.inversions.ddim import Picture
from palimpsest.hosts.comfy.inversions.null_text import invert_null_text
from palimpsest.hosts.comfy.inversions.style_diffusion import invert_style_diffusion
from palimpsest.hosts.comfy.learning.gradients import gradients
from palimpsest.hosts.comfy.learning.identity import IdentityRequest, train_identity
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.null_text import NullText
from palimpsest.pipelines.inversion.style_diffusion import Fitting
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for
from palimpsest.tests.host.learning.test_gradients import FEATURE, picture_of, slope_of, start_of

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module")
def sd2(sd2_folder):
    return load_folder(sd2_folder)


def saved_tensor_hooks():
    """The hooks that autograd would call on this thread."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


class Boom(Exception):
    """What a block may raise."""


FAILURES = {
    "an error": Boom,
    "an error of torch": RuntimeError,
    "an interruption": comfy.model_management.InterruptProcessingException,
    "the keyboard": KeyboardInterrupt,
}


def slope_with(sd1, patch=None):
    """The slope of the network, with a patch of another node on it."""
    model = sd1.model.clone()
    if patch is not None:
        model.set_model_attn2_patch(patch)
    picture = picture_of(sd1, model)

    def algorithm(session):
        with gradients(session, FEATURE) as learning:
            return slope_of(learning, picture, start_of(learning))[1]

    return picture.run(algorithm)[0]


@pytest.mark.parametrize("computed_again", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES.keys())
def test_what_a_block_raises_does_not_reach_the_next_learning(sd1, failure, computed_again):
    before, calls = slope_with(sd1), []

    def fail(n, context, value, extra):
        calls.append(extra["block"])
        if len(calls) > 2 * computed_again:  # two attentions are called forward
            raise failure("in a block")
        return n, context, value

    with pytest.raises(failure) as kept:  # and with it the traceback and all frames
        slope_with(sd1, fail)
    assert kept.value.__traceback__ is not None
    assert saved_tensor_hooks() is None
    assert torch.equal(slope_with(sd1), before)


def learn(method, loaded, wrong):
    """A short learning run, under a prompt of another model's CLIP."""
    if method == "identity":
        request = IdentityRequest(loaded.model, wrong, {"samples": latent_for(loaded)}, 2, 1)
        return train_identity(request)
    source, levels = agree.encode(loaded.clip, "a cat"), schedule(loaded.model, "simple", 2, 0.3)
    picture = Picture(loaded.model, source, wrong, latent_for(loaded), levels, 1.0, FEATURE)
    if method == "null-text":
        return invert_null_text(picture, NullText(inner_steps=1))
    return invert_style_diffusion(picture, Fitting(2))


@pytest.mark.parametrize("method", ["null-text", "style", "identity"])
def test_a_prompt_of_another_models_clip_is_refused_before_anything_is_learned(sd1, sd2, method):
    wrong = agree.encode(sd2.clip, "a cat")
    with pytest.raises(PalimpsestError, match="is 48 wide, this model takes 32: encode the prompt"):
        learn(method, sd1, wrong)
    assert saved_tensor_hooks() is None
