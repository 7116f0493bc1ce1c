"""Gradients through a loaded model: right, and without a trace in the model or in core."""

from contextlib import ExitStack
from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfy.conds import CONDCrossAttn
from comfy.ldm.modules.attention import attention_pytorch
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.learning.gradients import OutOfMemory, gradients, trainable
from palimpsest.hosts.comfy.learning.training import check_learned
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.flow import make_flux

FEATURE = "Invert (Null-text)"


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module")
def sdxl(sdxl_folder):
    return load_folder(sdxl_folder)


def picture_of(loaded, model=None, pictures=1):
    model = model or loaded.model
    source, empty = (agree.encode(loaded.clip, text) for text in (agree.SOURCE, ""))
    latent = latent_for(loaded).repeat(pictures, 1, 1, 1)
    sigmas = schedule(model, "simple", 2, 0.35)
    return Picture(trainable(model, FEATURE), source, empty, latent, sigmas, 1.0, FEATURE)


def under(session, embedding):
    """The negative branch alone, with an embedding in it."""
    (entry,) = session.target["negative"]
    inputs = entry["model_conds"] | {"c_crossattn": CONDCrossAttn(embedding)}
    negative = [entry | {"model_conds": inputs}]
    return session.recorder({"negative": negative}, roles=("uncond",))


def start_of(session):
    return session.target["negative"][0]["model_conds"]["c_crossattn"].cond.clone()


def slope_of(session, picture, embedding):
    """The sum of the denoised latent, and its gradient."""
    leaf = embedding.clone().requires_grad_()
    total = under(session, leaf)(session.x0, picture.sigmas[1]).double().sum()
    return float(total.detach()), torch.autograd.grad(total, leaf)[0]


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_gradient_is_the_slope_of_what_the_network_gives(request, family):
    loaded = request.getfixturevalue(family)
    picture = picture_of(loaded)

    def algorithm(session):
        with gradients(session, FEATURE) as learning:
            start = start_of(learning)
            _, slope = slope_of(learning, picture, start)
            step = 1e-2 * slope / slope.norm()
            ahead, behind = (slope_of(learning, picture, start + d)[0] for d in (step, -step))
        return (ahead - behind) / 2, float((slope * step).sum())

    (measured, predicted), spent = picture.run(algorithm)
    assert predicted == pytest.approx(measured, rel=3e-3)
    assert predicted > 0
    assert spent.rows == 3  # what is computed again in the backward pass is no row


def test_a_block_that_is_computed_again_is_told_where_it_is(sd1):
    """Patches of other nodes ask for it, and core's options only say where it is now."""
    told = []

    def note(q, k, v, extra):
        told.append((extra["block"], extra["block_index"], extra["activations_shape"][-1]))
        return attention_pytorch(q, k, v, extra["n_heads"])

    model = sd1.model.clone()
    for place in (("input", 1), ("output", 3)):
        model.set_model_attn2_replace(note, *place)
    picture = picture_of(sd1, model)

    def algorithm(session):
        with gradients(session, FEATURE) as learning:
            slope_of(learning, picture, start_of(learning))

    picture.run(algorithm)
    assert len(told) > 2 and set(told[2:]) == set(told[:2])


def test_gradients_do_not_depend_on_how_the_network_was_called_before(exact_sd1):
    picture = picture_of(exact_sd1)

    def algorithm(session):
        before = under(session, start_of(session))(session.x0.double(), picture.sigmas[1])
        with gradients(session, FEATURE) as learning, torch.no_grad():
            inside = under(learning, start_of(learning))(learning.x0.double(), picture.sigmas[1])
        return before, inside

    (before, inside), _ = picture.run(algorithm)
    # Their attention may be of different kernels, which round differently.
    assert not inside.is_inference()
    assert relative(inside, before) < agree.FLOAT64


class Boom(Exception):
    """What an algorithm may raise."""


def fail_in_the_backward_pass(session, picture, error):
    leaf = start_of(session).requires_grad_()
    denoised = under(session, leaf)(session.x0, picture.sigmas[1])

    def fail(_slope):
        raise error

    denoised.register_hook(fail)
    denoised.sum().backward()


@pytest.mark.parametrize(
    ("error", "raised", "sentence"),
    [
        (Boom("boom"), Boom, "boom"),
        (
            torch.OutOfMemoryError("Tried to allocate 20.00 GiB"),
            OutOfMemory,
            r"Invert \(Null-text\) ran out of memory: use a smaller picture or fewer",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfMemory, "ran out of"),
        (
            RuntimeError("Inference tensors cannot be saved for backward. To work around"),
            PalimpsestError,
            "cannot learn through what another node hooked into the model",
        ),
    ],
)
def test_whatever_happens_nothing_is_left_behind(sd1, error, raised, sentence):
    latent = latent_for(sd1)
    picture = picture_of(sd1)
    network = sd1.model.model.diffusion_model
    forwards = {name: vars(m).get("forward") for name, m in network.named_modules()}

    def algorithm(session):
        with gradients(session, FEATURE) as learning:
            assert comfy.model_management.in_training
            fail_in_the_backward_pass(learning, picture, error)

    plain = agree.request(sd1, agree.Setting(latent))[0].trajectory.latents
    with pytest.raises(raised, match=sentence):
        picture.run(algorithm)
    assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert not comfy.model_management.in_training
    assert {name: vars(m).get("forward") for name, m in network.named_modules()} == forwards
    again = agree.request(sd1, agree.Setting(latent))[0].trajectory.latents
    assert torch.equal(again, plain)  # the model that went in is untouched
    assert not any(getattr(m, "weight_function", []) for m in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert comfy.model_management.is_oom(OutOfMemory(""))  # core then frees its models


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_interruption_is_noticed_before_the_backward_pass_computes_anything(sd1, interrupted):
    picture, layers = picture_of(sd1), []

    def algorithm(session):
        with gradients(session, FEATURE) as learning, ExitStack() as hooks:
            leaf = start_of(learning).requires_grad_()
            total = under(learning, leaf)(learning.x0, picture.sigmas[1]).sum()
            for layer in learning.guider.inner_model.diffusion_model.modules():
                if isinstance(layer, torch.nn.Linear):
                    hook = layer.register_forward_pre_hook(lambda *_: layers.append(1))
                    hooks.callback(hook.remove)
            if interrupted:
                comfy.model_management.interrupt_current_processing()
            total.backward()

    if not interrupted:
        picture.run(algorithm)
        assert layers
        return
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        picture.run(algorithm)
    assert not layers
    assert not comfy.model_management.processing_interrupted()


def test_what_is_kept_for_the_backward_pass_is_what_goes_into_the_blocks(sd1):
    picture = picture_of(sd1)

    def kept(session):
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            leaf = start_of(session).requires_grad_()
            under(session, leaf)(session.x0, picture.sigmas[1]).sum()
        return sum(sizes)

    def algorithm(session):
        with gradients(session, FEATURE) as learning:
            ours = kept(learning)
            for block in learning.guider.inner_model.diffusion_model.modules():
                vars(block).pop("forward", None)
            return ours, kept(learning)

    (ours, plain), _ = picture.run(algorithm)
    assert ours < 0.5 * plain


def test_a_session_on_another_model_is_a_mistake_of_ours(sd1):
    picture = replace(picture_of(sd1), model=sd1.model)

    def algorithm(session):
        with gradients(session, FEATURE):
            pass

    with pytest.raises(TypeError, match="on a clone that trainable"):
        picture.run(algorithm)


def test_what_cannot_be_learned_under_is_refused(sd1):
    plain = agree.encode(sd1.clip, "")
    check_learned(plain, "negative", FEATURE)
    with pytest.raises(PalimpsestError, match=r"has 2 entries, Invert \(Null-text\) takes one"):
        check_learned(plain + plain, "negative", FEATURE)
    with_control = [[plain[0][0], plain[0][1] | {"control": object(), "mask": torch.ones(1)}]]
    with pytest.raises(PalimpsestError, match="carries a ControlNet and a mask"):
        check_learned(with_control, "negative", FEATURE)


def test_models_that_gradients_do_not_flow_through_are_refused(sd1):
    with pytest.raises(PalimpsestError, match="needs a UNet with cross-attention"):
        trainable(make_flux(), FEATURE)
    split = sd1.model.clone()
    split.model_options["multigpu_clones"] = {}
    with pytest.raises(PalimpsestError, match="learns on one GPU"):
        trainable(split, FEATURE)
    bypassed = sd1.model.clone()
    bypassed.set_injections("bypass", [object()])
    with pytest.raises(PalimpsestError, match="LoRA in bypass mode"):
        trainable(bypassed, FEATURE)
