"""Identity LoRA: what it learns, what it leaves alone, and how strong it is where."""

import gc
import math
from pathlib import Path

import comfy.model_management
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.weight_adapter.lora import LoraDiff
from palimpsest.demo import scenes
from palimpsest.hosts.comfy.files.identity_loras import lora_place, save_lora
from palimpsest.hosts.comfy.guidance import BranchGuider
from palimpsest.hosts.comfy.learning.identity import MEASURED, IdentityRequest, train_identity
from palimpsest.hosts.comfy.learning.identity_strength import (
    chain_position,
    check_min_strength,
    strength_at,
    with_identity,
)
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.session import run
from palimpsest.hosts.drawing.loss_curve import draw_loss, round_ticks, running_mean
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.test_refusals import as_flow

WEIGHTS = Path(__file__).resolve().parents[3] / "demo" / "weights"

#: fp32: the weights' sum is made before or after the multiplication.
SUMS_DIFFER = 1e-5


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def request_for(loaded, samples=None, **changes):
    samples = latent_for(loaded) if samples is None else samples
    prompt = agree.encode(loaded.clip, "a red cat on the mat")
    setting = {"rank": 4, "steps": 3, "learning_rate": 5e-3, **changes}
    return IdentityRequest(loaded.model, prompt, {"samples": samples}, **setting)


@pytest.fixture(scope="module")
def trained(sd1):
    with torch.inference_mode():
        return train_identity(request_for(sd1, steps=4))


def denoised(model, prompt, samples, levels, *, together=False):
    """D at falling noise levels, inside a run whose schedule they are; one by one, or as one batch.

    Also x and the noise in it, all [levels, C, h, w] in model scale.
    """
    guider = BranchGuider(model)
    guider.set_conds(prompt, prompt)
    guider.set_source(prompt, prompt)

    def algorithm(session):
        generator = torch.Generator().manual_seed(0)
        shape = (len(levels), *session.x0.shape[1:])
        noise = torch.randn(shape, generator=generator)
        x = session.x0 + levels.view(-1, 1, 1, 1) * noise
        denoise = session.denoiser(session.target)
        if together:
            return denoise(x, levels), x, noise, session.x0
        rows = [denoise(x[n : n + 1], levels[n]) for n in range(len(levels))]
        return torch.cat(rows), x, noise, session.x0

    return run(guider, samples, torch.cat([levels, torch.zeros(1)]), algorithm)[0]


def levels_of(model, count):
    """Falling levels, evenly spread over the model's steps."""
    sampling = model.get_model_object("model_sampling")
    parts = ((n + 0.5) / count for n in range(count))
    return torch.tensor([float(sampling.percent_to_sigma(part)) for part in parts])


def published_loss(request, model, predicts="noise"):
    """Mean squared error of the noise, or of v, as the papers write them."""
    levels = levels_of(model, MEASURED)
    samples = request.latent["samples"]
    found, x, noise, x0 = denoised(model, request.positive, samples, levels)
    sigma = levels.view(-1, 1, 1, 1)
    if predicts == "noise":
        return float(((x - found) / sigma - noise).square().mean())
    a, s = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
    v = (a * (a * x) - found) / s
    return float((v - (a * noise - s * x0)).square().mean())


# --- What it learns


@pytest.mark.parametrize(
    ("kind", "predicts"), [("sd1_folder", "noise"), ("sd2_folder", "v"), ("sdxl_folder", "noise")]
)
def test_the_published_loss_falls_on_fixed_draws(kind, predicts, request):
    loaded = agree.in_comfyui(request.getfixturevalue(kind))
    wish = request_for(loaded, rank=16, steps=4, learning_rate=1e-2)
    lora = train_identity(wish)
    before = published_loss(wish, wish.model, predicts)
    after = published_loss(wish, with_identity(wish.model, lora.weights, 1.0), predicts)
    assert lora.before == pytest.approx(before, rel=1e-4)
    assert lora.after == pytest.approx(after, rel=1e-4)
    assert after < 0.97 * before
    assert len(lora.losses) == 4


def test_the_embedded_model_learns_a_picture_it_has_never_seen():
    demo = load_folder(WEIGHTS)
    picture = 1 - scenes.render(scenes.Scene.random(7))[0].unsqueeze(0)
    wish = request_for(demo, demo.vae.encode(picture), rank=16, steps=8, learning_rate=2e-3)
    lora = train_identity(wish)
    assert lora.after < 0.7 * lora.before


def test_only_the_projections_of_attention_are_learned(sd1, trained):
    blocks = 4  # of this model
    modules = {key.rpartition(".lora_")[0] for key in trained.weights if "lora_" in key}
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    assert len(modules) == blocks * 2 * len(ends)
    assert all(module.endswith(ends) and ".attn" in module for module in modules)
    for module in modules:
        assert trained.weights[f"{module}.lora_up.weight"].shape[1] == 4
        assert trained.weights[f"{module}.lora_down.weight"].any()
        assert float(trained.weights[f"{module}.alpha"]) == 4


def test_a_seed_always_draws_the_same_bits(sd1, trained):
    state = torch.get_rng_state()
    torch.rand(5)
    again = train_identity(request_for(sd1, steps=4))
    other = train_identity(request_for(sd1, steps=4, seed=2**64 - 1))
    assert again.losses == trained.losses
    assert all(torch.equal(again.weights[key], value) for key, value in trained.weights.items())
    assert other.losses != trained.losses
    torch.set_rng_state(state)


def test_the_global_generator_is_left_where_it_was(sd1):
    before = torch.get_rng_state()
    train_identity(request_for(sd1, steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_each_picture_of_a_batch_is_learned(sd1):
    wish = request_for(sd1, latent_for(sd1, batch=3), rank=16, steps=6)
    lora = train_identity(wish)
    assert lora.after < lora.before
    assert len(lora.losses) == 6


def test_a_lora_that_the_model_has_already_is_trained_through(sd1, trained):
    patched = with_identity(sd1.model, trained.weights, 1.0)
    wish = request_for(sd1, steps=1)
    more = train_identity(IdentityRequest(patched, wish.positive, wish.latent, steps=1))
    assert more.before == pytest.approx(trained.after, rel=1e-4)


# --- What it leaves alone


def everything(model):
    """All of a model that a run may not change, without the values of its weights."""
    modules = dict(model.model.named_modules())
    return {
        "options": str(model.model_options),
        "patches": str(model.patches.keys()),
        "wrappers": str(model.wrappers),
        "training": [name for name, module in modules.items() if module.training],
        "gradients": [n for n, p in model.model.named_parameters() if p.requires_grad or p.grad],
        "forward": [name for name, module in modules.items() if "forward" in vars(module)],
        "hooks": [name for name, module in modules.items() if module._forward_hooks],
    }


def weights_of(model):
    return {key: value.clone() for key, value in model.model.state_dict().items()}


def test_the_model_its_weights_and_its_output_stay_bit_equal(sd1):
    wish = request_for(sd1)
    levels = levels_of(sd1.model, 3)
    samples = wish.latent["samples"]
    output = denoised(sd1.model, wish.positive, samples, levels)[0]
    weights, rest = weights_of(sd1.model), everything(sd1.model)
    inputs = samples.clone(), wish.positive[0][0].clone()
    lora = train_identity(wish)
    for model in (with_identity(sd1.model, lora.weights, share) for share in (0.5, 1.0)):
        changed = denoised(model, wish.positive, samples, levels)[0]
        assert relative(changed, output) > 1e-3
        again = denoised(sd1.model, wish.positive, samples, levels)[0]
        assert torch.equal(again, output)
    assert everything(sd1.model) == rest
    after = weights_of(sd1.model)
    assert all(torch.equal(after[key], value) for key, value in weights.items())
    assert torch.equal(samples, inputs[0])
    assert torch.equal(wish.positive[0][0], inputs[1])


def test_attention_patches_of_other_nodes_do_not_enter_the_training(sd1, trained):
    model = sd1.model.clone()
    model.set_model_attn1_patch(lambda q, k, v, extra: (q, k * math.nan, v))
    wish = request_for(sd1, steps=4)
    lora = train_identity(
        IdentityRequest(model, wish.positive, wish.latent, 4, 4, wish.learning_rate)
    )
    assert lora.losses == trained.losses


@pytest.fixture
def after_the_first_step():
    """Set what is called when the first step has been made."""
    before = comfy.utils.PROGRESS_BAR_HOOK

    def call(act):
        comfy.utils.set_progress_bar_global_hook(
            lambda value, total, preview, node_id=None: act() if value == 1 else None
        )

    yield call
    comfy.utils.set_progress_bar_global_hook(before)


def out_of_memory():
    raise comfy.model_management.OOM_EXCEPTION("as if the GPU were full")


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (
            comfy.model_management.interrupt_current_processing,
            comfy.model_management.InterruptProcessingException,
        ),
        (out_of_memory, comfy.model_management.OOM_EXCEPTION),
    ],
    ids=["interrupted", "out of memory"],
)
def test_a_run_that_breaks_off_leaves_nothing_behind(
    sd1, trained, after_the_first_step, act, error
):
    wish = request_for(sd1, steps=4)
    denoised(sd1.model, wish.positive, wish.latent["samples"], levels_of(sd1.model, 1))
    weights, rest = weights_of(sd1.model), everything(sd1.model)
    random = torch.get_rng_state()
    after_the_first_step(act)
    with pytest.raises(error):
        train_identity(wish)
    after_the_first_step(lambda: None)
    assert everything(sd1.model) == rest
    assert all(torch.equal(weights_of(sd1.model)[key], value) for key, value in weights.items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not comfy.model_management.in_training
    gc.collect()
    assert not any(type(found) is LoraDiff for found in gc.get_objects())
    assert train_identity(wish).losses == trained.losses


# --- How strong it is


def test_the_strength_falls_as_a_cosine_from_the_clean_end_to_the_noisiest():
    places = torch.tensor([0, 1 / 3, 0.5, 1], dtype=torch.float64)
    assert strength_at(places, 0.5).tolist() == pytest.approx([1, 0.875, 0.75, 0.5])
    assert strength_at(places, 1.0).tolist() == [1, 1, 1, 1]


def test_the_place_in_the_chain_counts_its_levels():
    chain = torch.tensor([8.0, 4.0, 1.0, 0.5, 0.0])
    assert chain_position(chain, chain).tolist() == [1, 0.75, 0.5, 0.25, 0]
    between = torch.tensor([2.5, 100.0, 0.25])
    assert chain_position(between, chain).tolist() == [0.625, 1, 0.125]
    assert chain_position(between, torch.tensor([1.0])).tolist() == [0, 0, 0]


LOW = 0.25


@pytest.fixture(scope="module")
def four_levels(sd1):
    with torch.inference_mode():
        wish = request_for(sd1)
    return wish.positive, wish.latent["samples"], levels_of(sd1.model, 4)


@pytest.fixture(scope="module")
def at_their_strengths(sd1, trained, four_levels):
    """At each of four levels what core's loader gives at its strength, and at another one."""

    def at(strength):
        plain, _ = comfy.sd.load_lora_for_models(sd1.model, None, trained.weights, strength, 0)
        return denoised(plain, *four_levels)[0]

    # The chain is 4 levels and the clean one below them: the first step is at 1, the last at 1/4.
    f = [(1 - math.cos(math.pi * place)) / 2 for place in (1, 0.75, 0.5, 0.25)]
    strengths = [1 - part + part * LOW for part in f]
    assert strengths[0] == LOW
    with torch.inference_mode():
        return [at(strength)[n] for n, strength in enumerate(strengths)], at(1.5)


@pytest.mark.parametrize("together", [False, True], ids=["one by one", "one batch"])
def test_the_lora_acts_at_the_strength_of_its_level(
    sd1, trained, four_levels, at_their_strengths, together
):
    scheduled = with_identity(sd1.model, trained.weights, LOW)
    found = denoised(scheduled, *four_levels, together=together)[0]
    for ours, expected, louder in zip(found, *at_their_strengths, strict=True):
        assert relative(ours, expected) < SUMS_DIFFER
        assert relative(louder, expected) > 10 * SUMS_DIFFER  # another strength would be seen


def test_at_the_clean_end_it_acts_in_full(sd1, trained):
    wish = request_for(sd1)
    levels = torch.tensor([5.0, 0.03])
    # The lowest level itself is the clean end where no 0 is below it.
    falling = torch.cat([levels, levels[-1:]])
    scheduled = with_identity(sd1.model, trained.weights, 0.0)
    constant = with_identity(sd1.model, trained.weights, 1.0)
    outputs = [
        apply(model, wish, levels[1:], falling) for model in (scheduled, constant, sd1.model)
    ]
    assert relative(outputs[0], outputs[1]) < SUMS_DIFFER
    assert not torch.equal(outputs[0], outputs[2])


def test_at_strength_0_the_output_is_the_unpatched_one(sd1, trained):
    wish = request_for(sd1)
    levels = torch.tensor([5.0, 0.03])
    scheduled = with_identity(sd1.model, trained.weights, 0.0)
    outputs = [apply(model, wish, levels[:1], levels) for model in (scheduled, sd1.model)]
    assert torch.equal(*outputs)


def apply(model, wish, sigma, schedule):
    """D of the latent itself at one level of a schedule."""
    guider = BranchGuider(model)
    guider.set_conds(wish.positive, wish.positive)
    guider.set_source(wish.positive, wish.positive)
    return run(
        guider,
        wish.latent["samples"],
        schedule,
        lambda session: session.denoiser(session.target)(session.x0, sigma[0]),
    )[0]


def test_it_stacks(sd1, trained):
    """Two at half strength are one at full strength, nearly: attention is not linear."""
    wish = request_for(sd1)
    half = {k: v * (0.5 if "lora_up" in k else 1) for k, v in trained.weights.items()}
    twice = with_identity(with_identity(sd1.model, half, 0.5), half, 0.5)
    once = with_identity(sd1.model, trained.weights, 0.5)
    levels = levels_of(sd1.model, 2)
    given = wish.positive, wish.latent["samples"], levels
    assert relative(denoised(twice, *given)[0], denoised(once, *given)[0]) < SUMS_DIFFER


# --- The file


@pytest.fixture
def output(tmp_path):
    """ComfyUI's output folder, elsewhere for a test."""
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


def test_a_saved_file_is_what_cores_loader_reads(sd1, trained, output):
    paths = [save_lora(trained, lora_place("people/ann")) for _ in range(2)]
    assert [p.relative_to(output).as_posix() for p in paths] == [
        "loras/people/ann_00001.safetensors",
        "loras/people/ann_00002.safetensors",
    ]
    read = comfy.utils.load_torch_file(str(paths[0]), safe_load=True)
    loaded, _ = comfy.sd.load_lora_for_models(sd1.model, None, read, 1.0, 0)
    wish = request_for(sd1)
    given = wish.positive, wish.latent["samples"], levels_of(sd1.model, 2)
    patched = denoised(with_identity(sd1.model, trained.weights, 1.0), *given)[0]
    assert relative(denoised(loaded, *given)[0], patched) < 1e-6
    assert relative(denoised(sd1.model, *given)[0], patched) > 1e-3


@pytest.mark.parametrize("prefix", ["../ann", "/etc/ann", ".", "a/../.."])
def test_a_file_name_that_leaves_the_folder_is_refused(prefix, output):
    with pytest.raises(PalimpsestError, match="leaves the loras folder"):
        lora_place(prefix)
    assert not list(output.rglob("*"))


def test_a_file_that_cannot_be_written_is_told(trained, output):
    (output / "loras").write_text("in the way")
    with pytest.raises(PalimpsestError, match="could not be written"):
        save_lora(trained, lora_place("ann"))


# --- What is refused


def test_a_noise_mask_is_refused(sd1):
    wish = request_for(sd1)
    wish.latent["noise_mask"] = torch.ones(1, 1, 8, 8)
    with pytest.raises(PalimpsestError, match="noise mask"):
        train_identity(wish)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (torch.zeros(1, 16, 8, 8), "this model takes"),
        (torch.full((1, 4, 8, 8), math.nan), "NaN"),
    ],
    ids=["channels", "NaN"],
)
def test_a_latent_that_does_not_fit_is_refused(sd1, samples, words):
    with pytest.raises(PalimpsestError, match=words):
        train_identity(request_for(sd1, samples))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "Rank must be 1 to 128, got 0"),
        ({"rank": 129}, "Rank must be 1 to 128, got 129"),
        ({"steps": 0}, "Steps must be 1 to 10000, got 0"),
        ({"steps": 10001}, "Steps must be 1 to 10000"),
        ({"learning_rate": 0.0}, "learning rate must be above 0"),
        ({"learning_rate": math.nan}, "learning rate must be above 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(sd1, changes, words):
    with pytest.raises(PalimpsestError, match=words):
        train_identity(request_for(sd1, **changes))


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_strength_out_of_range_is_refused(value):
    with pytest.raises(PalimpsestError, match="Min strength must be 0 to 1"):
        check_min_strength(value)


def changed(wish, model=None, positive=None):
    return IdentityRequest(model or wish.model, positive or wish.positive, wish.latent)


def test_a_flow_model_is_refused(sd1):
    with pytest.raises(PalimpsestError, match="Identity LoRA takes models that predict noise"):
        train_identity(changed(request_for(sd1), as_flow(sd1.model)))


def test_a_lora_in_bypass_mode_is_refused(sd1, trained):
    bypassed, _ = comfy.sd.load_bypass_lora_for_models(sd1.model, None, trained.weights, 1.0, 0)
    with pytest.raises(PalimpsestError, match="bypass mode"):
        train_identity(changed(request_for(sd1), bypassed))


def test_several_prompts_are_refused(sd1):
    wish = request_for(sd1)
    with pytest.raises(PalimpsestError, match="2 entries"):
        train_identity(changed(wish, positive=wish.positive * 2))


def test_a_controlnet_is_refused(sd1):
    wish = request_for(sd1)
    positive = [[wish.positive[0][0], {**wish.positive[0][1], "control": object()}]]
    with pytest.raises(PalimpsestError, match="carries a ControlNet"):
        train_identity(changed(wish, positive=positive))


def test_a_training_that_diverges_says_so(sd1):
    with pytest.raises(PalimpsestError, match="lower the learning rate"):
        train_identity(request_for(sd1, latent_for(sd1) * 1e25, learning_rate=1.0, steps=40))


# --- The picture of the loss


@pytest.mark.parametrize("losses", [[0.3], [0.0, 0.0], [0.5, 0.1, 0.4] * 40, [3e5, 2e-6]])
def test_the_loss_is_drawn_whatever_it_is(losses):
    picture = draw_loss(losses, 300, 200)
    assert picture.shape == (1, 200, 300, 3)
    assert picture.min() < 0.5 < picture.max() <= 1
    blue = (picture[..., 2] - picture[..., 0]) > 0.2
    assert blue.any()


def test_the_line_is_the_mean_of_what_came_before():
    assert running_mean([4, 2, 0, 2], 2) == [4, 3, 1, 1]


@pytest.mark.parametrize(
    ("highest", "ticks"),
    [(1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0.0123, [0, 0.005, 0.01]), (70, [0, 20, 40, 60])],
)
def test_ticks_are_round_numbers(highest, ticks):
    assert round_ticks(highest, 5) == pytest.approx(ticks)
