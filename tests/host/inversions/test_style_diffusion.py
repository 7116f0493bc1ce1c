"""StyleDiffusion in both hosts: against explicit maps, the published loop, and each other."""

import math
from dataclasses import replace
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import pytest
import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.inversions.style_diffusion import (
    encoded_tokens,
    invert_style_diffusion,
    source_of,
)
from palimpsest.hosts.comfy.learning.gradients import gradients, trainable
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.hosts.diffusers import folder as diffusers_host
from palimpsest.hosts.diffusers.attention import transformer_blocks
from palimpsest.hosts.diffusers.style_diffusion import invert_style_diffusion as headless
from palimpsest.hosts.diffusers.style_diffusion import source_of as headless_source
from palimpsest.pipelines.correction import DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.image_tokens import fit_width, latent_tokens
from palimpsest.pipelines.inversion.mapped_values import MappedValues
from palimpsest.pipelines.inversion.style_diffusion import Fitting, rounds_per_step
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.host import agree, flow
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative
from palimpsest.tests.unit.style_loop import published
from transformers import CLIPVisionConfig, CLIPVisionModel

FEATURE = "Invert (StyleDiffusion)"
WEIGHTS = Path(__file__).resolve().parents[3] / "demo" / "weights"

#: fp32 on both sides, in another order of operations.
FLOAT32 = 2e-5
#: Adam turns the rounding of a small gradient into a step of full size: latents, and mappings.
LEARNED, MAPPED = 1e-3, 1e-2
#: Core keeps levels in float32: at this one sqrt(1 + sigma^2), by which it divides, is exact there.
LEVEL = torch.tensor(0.75, dtype=torch.float64)
FAMILIES = ["sd1_folder", "sd2_folder", "sdxl_folder"]


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture
def learnt_exactly(exact_sd1):
    """SD 1.x computing in float64, and what is learned too: its layers are of the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield exact_sd1
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def demo():
    return load_folder(WEIGHTS)


def values_of(trajectory):
    return trajectory.find(MappedValues).values


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture_of(loaded, *, latent=None, sigmas=None, steps=3, strength=0.35, **changes):
    source, empty = (agree.encode(loaded.clip, text) for text in (agree.SOURCE, ""))
    latent = latent_for(loaded) if latent is None else latent
    if sigmas is None:
        sigmas = schedule(loaded.model, "simple", steps, strength)
    made = Picture(loaded.model, source, empty, latent, sigmas, 1.0, FEATURE)
    return replace(made, **changes)


# -- the published code, with explicit maps --------------------------------------------------------


class Explicit:
    """A diffusers UNet whose attention is written with maps, and its values' input mapped."""

    def __init__(self, host, prompt, negative, cells):
        self.host, self.text, self.empty = host, prompt.embedding, negative.embedding
        self.added, self.cells = prompt.added, cells

    def noise(self, z, sigma, mapping=None):
        seen, unet = {}, self.host.unet
        kept = dict(unet.attn_processors)
        names = {module: name for name, module in unet.named_modules()}
        blocks = enumerate(transformer_blocks(unet))
        order = {f"{names[block]}.attn2.processor": i for i, block in blocks}
        unet.set_attn_processor(
            {name: self.attention(order.get(name), mapping, seen) for name in kept}
        )
        try:
            noise = self.predict(z, sigma, self.text)
        finally:
            unet.set_attn_processor(kept)
        nearest = min(
            {m.shape[2] for m in seen.values()}, key=lambda n: abs(math.log(16 * n / self.cells))
        )
        return noise, [seen[i] for i in sorted(seen) if seen[i].shape[2] == nearest]

    def uncond(self, z, sigma):
        return self.predict(z, sigma, self.empty)

    def predict(self, z, sigma, text):
        t = (self.host.sigmas.log() - sigma.log()).abs().argmin()
        return self.host.unet(z, t, encoder_hidden_states=text).sample

    def attention(self, layer, mapping, seen):
        def processor(attn, hidden_states, encoder_hidden_states=None, **_others):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            below = context
            if layer is not None and mapping is not None:
                below = context * mapping[0] + mapping[1]
            q, k, v = (
                t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
                for t in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(below))
            )
            maps = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
            if layer is not None:
                seen[layer] = maps
            return attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))

        return processor


@pytest.fixture(scope="module")
def headless_sd1(sd1_folder):
    return agree.headless(sd1_folder)


def explicit(model, latent):
    source, empty = map(model.prompt, (agree.SOURCE, ""))
    return Explicit(model.unet, source, empty, latent.shape[-2:].numel()), source, empty


def test_a_mapping_is_where_values_are_computed_and_nowhere_else(headless_sd1):
    latent = drawn(1, 4, 8, 12)
    reference, source, empty = explicit(headless_sd1, latent)
    count, width = source.embedding.shape[1:]
    values = torch.stack([1 + 0.5 * drawn(1, count, width), drawn(1, count, width, seed=1)])
    unet = headless_sd1.unet
    sigma = unet.sigmas[300]
    x = latent / vp_scale(sigma).float()
    plain, mapped = (reference.noise(latent, sigma, m)[0] for m in (None, values))
    uncond = reference.uncond(latent, sigma)
    of = lambda prompt, *rest, **how: (x - unet.denoiser(prompt, *rest, **how)(x, sigma)) / sigma
    above = replace(source, values=values)
    assert relative(of(source), plain) < FLOAT32
    assert relative(of(above), mapped) < FLOAT32
    assert relative(of(above, empty, cfg=7.5), uncond + 7.5 * (mapped - uncond)) < 10 * FLOAT32
    assert relative(mapped, plain) > 0.05


@pytest.mark.parametrize("map_weight", [0.0, 1.0])
def test_the_headless_host_learns_what_the_published_loop_learns(headless_sd1, map_weight):
    with torch.inference_mode(False):
        latent = drawn(1, 4, 8, 12)
        reference, source, empty = explicit(headless_sd1, latent)
        fitting = Fitting(7, cfg=5.0, map_weight=map_weight, early_stop=0.0, seed=3)
        sigmas = headless_sd1.unet.sigmas[torch.tensor([1, 101, 201, 301])]
        unet, rows = headless_sd1.unet, RowCount()
        x0 = latent / vp_scale(sigmas[0]).float()
        made, fitted = headless(unet, x0, source, empty, sigmas, fitting, rows=rows)
        tokens = fit_width(latent_tokens(x0), source.embedding.shape[-1])
        counts = rounds_per_step(3, 7)
        path, styles, losses = published(reference, tokens, x0, sigmas, fitting, counts)
    for level, z in enumerate(reversed(path)):
        assert relative(made.latents[level] * vp_scale(sigmas[level]).float(), z) < LEARNED
    for level, (style, loss) in enumerate(zip(reversed(styles), reversed(losses), strict=True)):
        assert relative(values_of(made)[level], style) < MAPPED
        assert fitted.losses[level] == pytest.approx(loss, rel=1e-2)
    assert rows.rows == 3 + 2 * 3 + 7


# -- both hosts ------------------------------------------------------------------------------------


def in_diffusers(folder, latent, sigmas, scale, fitting):
    with torch.inference_mode(False):
        model = agree.headless(folder)
        size = tuple(8 * n for n in latent.shape[-2:])
        source, empty = (model.prompt(text, size=size) for text in (agree.SOURCE, ""))
        rows, rising = RowCount(), sigmas.flip(0).double()
        x0 = latent.clone() * scale
        return *headless(model.unet, x0, source, empty, rising, fitting, rows=rows), rows.rows


def given(prompt, conditioning):
    """A prompt of diffusers with ComfyUI's embeddings: text encoders run in float32."""
    ((embedding, extras),) = conditioning
    added = prompt.added and {
        "text_embeds": extras["pooled_output"].double(),
        "time_ids": prompt.added["time_ids"].double(),
    }
    return replace(prompt, embedding=embedding.double(), added=added)


def slope_of(source, x, values, start):
    """A number made of the prediction and the maps, and its slope along the mapping."""
    leaf, start = values.double().requires_grad_(), start.double()
    with torch.enable_grad():
        total = (source.mapped(x.double(), LEVEL, leaf) * start).sum()
        for n, seen in enumerate(source.maps.take()):
            total = total + (seen * drawn(*seen.shape, seed=n)).sum()
    return total.item(), torch.autograd.grad(total, leaf)[0]


@pytest.mark.parametrize("kind", FAMILIES)
def test_both_hosts_have_the_same_slope_along_the_mapping(kind, request, monkeypatch):
    """What is learned is chaotic on SD 2.x and SDXL with random weights; its slope is not."""
    folder = request.getfixturevalue(kind)
    loaded = load_folder(folder)
    picture = picture_of(loaded)
    start, values = drawn(*picture.samples.shape, seed=4), values_for(loaded, steps=1)[0]
    learner = replace(picture, model=trainable(loaded.model, FEATURE))
    with torch.inference_mode(False):
        model = diffusers_host.load_folder(folder)
        size = tuple(8 * n for n in picture.samples.shape[-2:])
        source = given(model.prompt(agree.SOURCE, size=size), picture.positive)
        empty = given(model.prompt("", size=size), picture.negative)
        agree.in_float64(loaded.model.model.diffusion_model, monkeypatch)
        model.unet.unet.double()

    def algorithm(session):
        with gradients(session, FEATURE) as learning:
            ours = source_of(learning, Fitting())
            return slope_of(ours, learning.x0, values, start), learning.x0

    ((ours_total, ours), x), _ = learner.run(algorithm)
    with torch.inference_mode(False):
        theirs = headless_source(model.unet, source, empty, x.double(), Fitting(), RowCount())
        total, slope = slope_of(theirs, x, values, start)
    assert ours.dtype == slope.dtype == torch.float64
    assert ours_total == pytest.approx(total, rel=agree.FLOAT64)
    assert relative(ours, slope) < agree.FLOAT64
    assert float(slope.norm()) > 0.01


def test_both_hosts_learn_the_same(sd1_folder):
    folder = sd1_folder
    loaded = agree.in_comfyui(folder)
    picture, fitting = picture_of(loaded), Fitting(7, cfg=3.0, early_stop=0.0)
    made, fitted, spent = invert_style_diffusion(picture, fitting)
    scale = loaded.model.model.latent_format.scale_factor
    theirs, other, rows = in_diffusers(folder, picture.samples, picture.levels, scale, fitting)
    assert spent.rows == rows == 3 + 2 * 3 + 7
    assert relative(made.latents, theirs.latents) < LEARNED
    assert relative(values_of(made), values_of(theirs)) < MAPPED
    assert fitted.losses == pytest.approx(other.losses, rel=1e-2)
    assert torch.equal(made.origin, picture.samples)
    assert relative(made.image, theirs.image) < FLOAT32
    assert made.recipe.cfg == 3.0
    assert made.find(MappedValues).settings == {"cfg": 3.0, "window": 0.5}


def carrying(made, values, window=1.0, cfg=3.0):
    """A trajectory with a mapping of its values."""
    return made.with_carried(MappedValues(values, cfg, window))


def request_along(loaded, trajectory, **changes):
    source, target, empty = (
        agree.encode(loaded.clip, text) for text in (agree.SOURCE, agree.TARGET, "")
    )
    tokens = [prompt_tokens(loaded.clip, text) for text in (agree.SOURCE, agree.TARGET)]
    control = BoundControl(agree.words(*tokens), source[0][0], target[0][0])
    whole = {
        "model": loaded.model,
        "trajectory": trajectory,
        "source": source,
        "target": target,
        "negative": empty,
        "cfg": 3.0,
        "control": control,
        "mask": None,
        "correction": DIRECT_INVERSION,
        "keep_source": True,
    }
    return EditRequest(**{**whole, **changes})


def plain_trajectory(loaded, steps=4):
    made, _ = agree.request(loaded, agree.Setting(latent_for(loaded), steps=steps))
    return made.trajectory


def values_for(loaded, steps=4, seed=0):
    count, width = agree.encode(loaded.clip, "")[0][0].shape[1:]
    scale = 1 + 0.3 * drawn(steps, 1, count, width, seed=seed)
    return torch.stack([scale, 0.3 * drawn(steps, 1, count, width, seed=seed + 1)], dim=1)


@pytest.mark.parametrize(
    ("kind", "window", "correction"),
    [
        ("sd1_folder", 0.5, DIRECT_INVERSION),
        ("sd1_folder", 1.0, DIRECT_INVERSION),
        ("sd1_folder", 0.5, UNCORRECTED),
        ("sd1_folder", 1.0, UNCORRECTED),
        ("sd2_folder", 1.0, DIRECT_INVERSION),
        ("sdxl_folder", 0.5, UNCORRECTED),
    ],
)
def test_both_hosts_make_the_same_edit_of_mapped_values(kind, window, correction, request):
    folder = request.getfixturevalue(kind)
    loaded = agree.in_comfyui(folder)
    plain = plain_trajectory(loaded)
    mapped = carrying(plain, values_for(loaded), window)
    ours, source, spent, _ = edit(request_along(loaded, mapped, correction=correction))
    model = agree.headless(folder)
    scale = loaded.model.model.latent_format.scale_factor
    size = tuple(8 * n for n in plain.origin.shape[-2:])
    prompts = [model.prompt(text, size=size) for text in (agree.SOURCE, agree.TARGET, "")]
    rows = RowCount()
    theirs = model.unet.edit(
        mapped,
        *prompts,
        cfg=3.0,
        control=agree.words(prompts[0].tokens, prompts[1].tokens),
        correction=correction,
        keep_source=True,
        rows=rows,
    ).run()
    assert relative(ours, theirs.latent / scale) < HOSTS_AGREE
    assert relative(source, theirs.source / scale) < HOSTS_AGREE
    assert spent.rows == rows.rows
    free, _, as_many, _ = edit(request_along(loaded, plain, correction=correction))
    assert relative(ours, free) > 30 * HOSTS_AGREE
    assert as_many.rows == spent.rows  # a mapping costs no row


def test_a_mapping_that_maps_nothing_changes_nothing(sd1):
    plain = plain_trajectory(sd1)
    values = torch.zeros_like(values_for(sd1))
    values[:, 0] = 1
    same = edit(request_along(sd1, carrying(plain, values)))[0]
    assert relative(same, edit(request_along(sd1, plain))[0]) < FLOAT32


def test_outside_the_window_the_target_is_not_mapped(sd1):
    plain, values = plain_trajectory(sd1), values_for(sd1)
    edited = lambda window, control: edit(
        request_along(sd1, carrying(plain, values, window), control=control)
    )[0]
    free = edit(request_along(sd1, plain, control=None))[0]
    assert torch.equal(edited(0.0, None), free)
    assert relative(edited(0.25, None), free) > 1e-3
    # Under a control the target reads a source whose values are mapped in every step.
    control = request_along(sd1, plain).control
    assert relative(edited(0.0, control), edit(request_along(sd1, plain))[0]) > 1e-3


def test_a_mapping_stands_beside_what_another_node_hooked_there(sd1):
    """A patch that doubles the values' input before ours is mapped by ours."""

    def doubled(n, context, value, extra):
        return n, context, 2 * value

    plain, values = plain_trajectory(sd1), values_for(sd1)
    model = sd1.model.clone()
    model.set_model_attn2_patch(doubled)
    theirs = edit(request_along(sd1, carrying(plain, values), model=model, control=None))[0]
    halved = values.clone()
    halved[:, 0] = 2 * values[:, 0]
    only_cond = edit(request_along(sd1, carrying(plain, halved), control=None))[0]
    without = edit(request_along(sd1, carrying(plain, values), control=None))[0]
    # At cfg 1 only conditional rows run, and the two are one.
    at_one = [
        edit(request_along(sd1, carrying(plain, v, cfg=1.0), model=m, control=None, cfg=1.0))[0]
        for v, m in ((values, model), (halved, sd1.model))
    ]
    assert relative(at_one[0], at_one[1]) < FLOAT32
    assert relative(theirs, only_cond) > 1e-4  # the unconditional rows are doubled, not mapped
    assert relative(theirs, without) > 1e-3


# -- what is learned -------------------------------------------------------------------------------


def test_the_edit_walks_the_path_that_was_learned(sd1):
    """The uncorrected source row, guided and mapped, is the recorded path."""
    made, _, _ = invert_style_diffusion(picture_of(sd1), Fitting(5, cfg=3.0))
    request = request_along(sd1, made, correction=UNCORRECTED, control=None)
    _, source, _, _ = edit(request)
    assert relative(source, made.in_host_scale(made.latents[0])) < FLOAT32


def test_more_rounds_lose_more_of_the_loss(sd1):
    losses = [
        invert_style_diffusion(picture_of(sd1), Fitting(n, cfg=3.0, early_stop=0.0))[1].losses
        for n in (3, 12)
    ]
    assert all(after < before for before, after in zip(*losses, strict=True))


def test_a_batch_is_learned_as_its_pictures_are(learnt_exactly):
    latent, fitting = latent_for(learnt_exactly, batch=2), Fitting(4, cfg=3.0, early_stop=0.0)
    both, _, spent = invert_style_diffusion(picture_of(learnt_exactly, latent=latent), fitting)
    for b in range(2):
        own, _, _ = invert_style_diffusion(
            picture_of(learnt_exactly, latent=latent[b : b + 1]), fitting
        )
        assert relative(both.latents[:, b], own.latents[:, 0]) < agree.FLOAT64
    assert spent.rows == 2 * (3 + 2 * 3 + 4)


def test_the_same_inversion_twice_gives_the_same_bits(sd1):
    runs = [invert_style_diffusion(picture_of(sd1), Fitting(3, cfg=3.0))[0] for _ in range(2)]
    assert torch.equal(values_of(runs[0]), values_of(runs[1]))
    assert torch.equal(runs[0].latents, runs[1].latents)


def test_the_model_is_left_as_it_was(sd1):
    before = {k: v.clone() for k, v in sd1.model.model.state_dict().items()}
    options = str(sd1.model.model_options)
    invert_style_diffusion(picture_of(sd1), Fitting(3, cfg=3.0))
    assert str(sd1.model.model_options) == options
    assert not comfy.model_management.in_training
    after = sd1.model.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_embedded_model_comes_back_nearer_than_by_ddim_at_its_guidance(demo):
    latent = demo.vae.encode(torch.full((1, 64, 64, 3), 0.2))
    latent = latent + 0.5 * drawn(*latent.shape)
    picture = picture_of(demo, latent=latent, steps=6, strength=0.9)
    made, _, _ = invert_style_diffusion(picture, Fitting(60, cfg=7.5))
    setting = agree.Setting(latent, steps=6, correction=UNCORRECTED, control=False, cfg=7.5)
    request, _ = agree.request(demo, setting, sigmas=picture.levels)
    _, drifted, _, _ = edit(replace(request, target=request.source))
    learned = made.in_host_scale(made.latents[0])
    # 0.53 times seen, and 0.42 with weights of one object alone.
    assert relative(learned, latent) < 0.6 * relative(drifted, latent)


# -- the image encoder -----------------------------------------------------------------------------

VISION = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
    "hidden_act": "quick_gelu",
    "num_channels": 3,
}


@pytest.fixture(scope="module")
def encoders():
    """The same tiny encoder in ComfyUI and in transformers."""
    with torch.inference_mode(False):
        torch.manual_seed(0)
        theirs = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
        for parameter in theirs.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter)).copy_(parameter.half())
    ours = comfy.clip_vision.ClipVisionModel({"model_type": "clip_vision_model", **VISION})
    weights = {
        k if k.startswith("vision_model.") else f"vision_model.{k}": v
        for k, v in theirs.state_dict().items()
    }
    weights["visual_projection.weight"] = torch.zeros(16, 24)
    missing, unknown = ours.load_sd(weights)
    assert not missing and [k for k in unknown if "position_ids" not in k] == []
    return ours, theirs


def test_the_tokens_are_the_encoders_own_all_of_them_normed(encoders):
    ours, theirs = encoders
    image = torch.randint(256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0)) / 255
    tokens = encoded_tokens(ours, image)
    mean, std = (torch.tensor(n) for n in (ours.image_mean, ours.image_std))
    pixels = ((image - mean) / std).movedim(-1, 1)
    body = getattr(theirs, "vision_model", theirs)
    expected = body.post_layernorm(theirs(pixels).last_hidden_state)
    assert tokens.shape == (2, 17, 24)
    # On a GPU core may run it in half. Pixels are of 8 bit, or core would round them.
    assert relative(tokens, expected) < (FLOAT32 if ours.load_device.type == "cpu" else 1e-2)


def test_an_image_encoder_is_learned_from(encoders, sd1):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    tokens = encoded_tokens(encoders[0], image)
    fitting = Fitting(4, cfg=3.0, early_stop=0.0)
    seen, _, spent = invert_style_diffusion(picture_of(sd1), fitting, tokens=tokens)
    blind, _, _ = invert_style_diffusion(picture_of(sd1), fitting)
    assert relative(values_of(seen), values_of(blind)) > 0.01
    assert spent.rows == 3 + 2 * 3 + 4
    again, _, _ = invert_style_diffusion(picture_of(sd1), fitting, tokens=1.5 * tokens + 0.1)
    assert relative(values_of(again), values_of(seen)) > 1e-4


def test_another_number_of_pictures_is_refused(sd1):
    with pytest.raises(PalimpsestError, match="image holds 2 pictures, the latent 1"):
        invert_style_diffusion(picture_of(sd1), Fitting(3), tokens=drawn(2, 5, 24))


# -- what is refused, and what ends it -------------------------------------------------------------


def test_several_entries_are_refused(sd1):
    twice = 2 * agree.encode(sd1.clip, agree.SOURCE)
    for role in ("positive", "negative"):
        with pytest.raises(PalimpsestError, match=f"The {role} conditioning has 2 entries"):
            invert_style_diffusion(picture_of(sd1, **{role: twice}), Fitting(3))


def test_a_flow_model_is_refused():
    model = flow.make_sd3()
    samples = torch.zeros(1, flow.CHANNELS, 8, 8)
    levels = schedule(model, "simple", 3, 1.0)
    picture = Picture(model, [], [], samples, levels, 1.0, FEATURE)
    with pytest.raises(PalimpsestError, match=r"^Invert \(StyleDiffusion\) takes models that pred"):
        invert_style_diffusion(picture, Fitting(3))


def test_an_interruption_is_felt_in_the_next_round(sd1, monkeypatch):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) > 12:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        invert_style_diffusion(picture_of(sd1), Fitting(300, cfg=3.0))
    monkeypatch.undo()
    assert not comfy.model_management.in_training
    invert_style_diffusion(picture_of(sd1), Fitting(3, cfg=3.0))


def test_a_stored_trajectory_of_it_is_named_by_its_method(sd1):
    made, _, _ = invert_style_diffusion(picture_of(sd1), Fitting(3, cfg=3.0), value_window=0.8)
    assert isinstance(made, Trajectory)
    expected = Recipe("style diffusion", "destination", cfg=3.0)
    for name in ("method", "convention", "cfg", "eta", "source_cfg"):
        assert getattr(made.recipe, name) == getattr(expected, name)
    assert made.find(MappedValues).window == 0.8
