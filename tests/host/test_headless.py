"""The headless host: what it takes from the network, and that it leaves the network as it was."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from palimpsest.benchmarks.parity.golden import open_folder
from palimpsest.hosts.diffusers.attention import hooked, transformer_blocks
from palimpsest.hosts.diffusers.folder import load_folder
from palimpsest.hosts.diffusers.prompt import Prompt, prompt_tokens
from palimpsest.hosts.diffusers.unet import DiffusersUNet
from palimpsest.pipelines.attention.hooks import NO_HOOKS, QKV, Hooks
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.schedule import vp_scale

DATA = Path(__file__).resolve().parents[1] / "data"
FOLDER = open_folder(DATA / "quick", DATA / "model")
SOURCE, TARGET = "a red circle on a green field", "a blue circle on a green field"

#: fp32 on both sides, in another order of operations.
FLOAT32 = 1e-5


def latents(batch=1):
    return torch.randn(batch, 4, 16, 16, generator=torch.Generator().manual_seed(1))


def relative(a, b):
    return float((a - b).norm() / b.norm())


def raw(z, t, prompt):
    embedding = prompt.embedding.expand(len(z), -1, -1)
    return FOLDER.unet.unet(z, t, encoder_hidden_states=embedding).sample


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("t", [0, 1, 37, 500, 999])
def test_the_denoised_latent_is_that_of_diffusers(t, prediction):
    """x in, posterior mean out; theirs is z in, `pred_original_sample` out."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction,
    )
    scheduler.set_timesteps(1000)
    model = DiffusersUNet(FOLDER.unet.unet, scheduler.alphas_cumprod, prediction)
    prompt, sigma = FOLDER.prompt(SOURCE), model.sigmas[t]
    z = latents(2)
    expected = scheduler.step(raw(z, t, prompt), t, z).pred_original_sample
    assert relative(model.denoiser(prompt)(z / vp_scale(sigma), sigma), expected) < FLOAT32


@pytest.mark.parametrize("batch", [1, 3])
def test_guidance_is_one_call_of_both_prompts(batch):
    prompt, empty, rows = FOLDER.prompt(SOURCE), FOLDER.prompt(""), RowCount()
    sigma = FOLDER.unet.sigmas[400]
    x = latents(batch) / vp_scale(sigma)
    guided = FOLDER.unet.denoiser(prompt, empty, cfg=7.5, rows=rows)(x, sigma)
    cond, uncond = (FOLDER.unet.denoiser(p)(x, sigma) for p in (prompt, empty))
    assert relative(guided, uncond + 7.5 * (cond - uncond)) < 1e-4  # 7.5 times the rounding
    assert rows.rows == 2 * batch


def test_guidance_one_does_not_run_the_negative_prompt():
    rows, sigma = RowCount(), FOLDER.unet.sigmas[400]
    prompt, empty = FOLDER.prompt(SOURCE), FOLDER.prompt("")
    ours = FOLDER.unet.denoiser(prompt, empty, cfg=1.0, rows=rows)(latents(), sigma)
    assert torch.equal(ours, FOLDER.unet.denoiser(prompt)(latents(), sigma))
    assert rows.rows == 1


def test_guidance_without_a_negative_prompt_is_refused():
    with pytest.raises(PalimpsestError, match=r"Guidance 7\.5 needs a negative prompt"):
        FOLDER.unet.denoiser(FOLDER.prompt(SOURCE), cfg=7.5)


def test_a_level_between_two_timesteps_takes_the_nearer_one():
    seen = []
    handle = FOLDER.unet.unet.register_forward_pre_hook(lambda _, args: seen.append(int(args[1])))
    try:
        sigmas = FOLDER.unet.sigmas
        for sigma in (sigmas[500] ** 0.6 * sigmas[501] ** 0.4, sigmas[0] * 0, sigmas[-1] * 2):
            FOLDER.unet.denoiser(FOLDER.prompt(SOURCE))(latents(), sigma)
    finally:
        handle.remove()
    assert seen == [500, 0, 999]


# -- hooks ---------------------------------------------------------------------------------------


class Spy:
    """A hook that changes nothing, or what `terms` says, and notes where it was asked."""

    def __init__(self, terms=lambda site, qkv: None):
        self.seen, self.terms = [], terms

    def __call__(self, site, qkv):
        self.seen.append((site.layer, site.kind, site.role))
        return self.terms(site, qkv)


def run(hook, prompts=(SOURCE,)):
    positive, *negative = (FOLDER.prompt(text) for text in prompts)
    cfg = 7.5 if negative else 1.0
    sigma = FOLDER.unet.sigmas[300]
    hooks = NO_HOOKS if hook is None else Hooks(hook)
    return FOLDER.unet.denoiser(positive, *negative, cfg=cfg, hooks=hooks)(latents(), sigma)


def test_a_hook_that_changes_nothing_changes_nothing():
    assert relative(run(Spy()), run(None)) < FLOAT32


def test_a_hook_sees_every_attention_in_the_order_in_which_it_runs():
    spy, order, handles = Spy(), [], []
    for _, module in FOLDER.unet.unet.named_modules():
        if type(module).__name__ == "BasicTransformerBlock":
            handles.append(module.register_forward_pre_hook(lambda block, *_: order.append(block)))
    try:
        run(spy, (SOURCE, ""))
    finally:
        for handle in handles:
            handle.remove()
    assert order == transformer_blocks(FOLDER.unet.unet)
    assert spy.seen == [
        (layer, kind, role)
        for layer in range(len(order))
        for kind in ("self", "cross")
        for role in ("uncond", "cond")
    ]


def test_a_term_takes_the_place_of_attention():
    silent = Spy(lambda site, qkv: (QKV(qkv.q, qkv.k, 0 * qkv.v),))
    assert relative(run(silent), run(None)) > 100 * FLOAT32


def test_each_branch_of_the_guidance_is_hooked_alone():
    """What is done to one role must leave the other as it is."""
    silent = lambda role: Spy(
        lambda site, qkv: (QKV(qkv.q, qkv.k, 0 * qkv.v),) if site.role == role else None
    )
    every = Spy(lambda site, qkv: (QKV(qkv.q, qkv.k, 0 * qkv.v),))
    cond, uncond = run(None), run(None, ("",))
    mute_cond, mute_uncond = run(every), run(every, ("",))
    guided = run(silent("cond"), (SOURCE, ""))
    assert relative(guided, uncond + 7.5 * (mute_cond - uncond)) < 1e-4
    guided = run(silent("uncond"), (SOURCE, ""))
    assert relative(guided, mute_uncond + 7.5 * (cond - mute_uncond)) < 1e-4


def fail(site, qkv):
    raise RuntimeError("in the middle of a step")


@pytest.mark.parametrize("hook", [None, Spy(), fail])
def test_the_network_is_left_as_it_was(hook):
    before = dict(FOLDER.unet.unet.attn_processors)
    weights = [p.clone() for p in FOLDER.unet.unet.parameters()]
    if hook is fail:
        with pytest.raises(RuntimeError, match="middle of a step"):
            run(hook)
    else:
        run(hook)
    after = FOLDER.unet.unet.attn_processors
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert all(map(torch.equal, weights, FOLDER.unet.unet.parameters()))


def test_hooks_may_lie_within_hooks():
    """The inner one is heard alone, and the outer one again after it."""
    unet, outer, inner = FOLDER.unet.unet, Spy(), Spy()
    with hooked(unet, Hooks(outer), ["cond"]):
        run(inner)
        assert inner.seen
        assert not outer.seen
        run(None)
        assert outer.seen


# -- invert and edit -----------------------------------------------------------------------------


def test_the_grid_of_a_run_is_the_published_one_over_zero():
    sigmas = FOLDER.unet.ddim_sigmas(10)
    assert sigmas[0] == 0
    alphas = FOLDER.alphas_cumprod.double()[1::100]
    assert torch.equal(sigmas[1:], ((1 - alphas) / alphas).sqrt())


def test_a_picture_is_inverted_and_edited():
    unet, rows = FOLDER.unet, RowCount()
    source, target, empty = map(FOLDER.prompt, (SOURCE, TARGET, ""))
    trajectory = unet.invert(latents(), source, unet.ddim_sigmas(5), rows=rows)
    assert rows.rows == trajectory.recipe.rows == 5
    control = rewrite_prompt(source.tokens, target.tokens)
    edit = unet.edit(trajectory, source, target, empty, control=control, rows=rows)
    done = edit.run()
    assert rows.rows == 5 + 10 + 3
    assert torch.equal(done.source, latents())
    free = unet.edit(trajectory, source, target, empty).run()
    assert relative(free.latent, done.latent) > 0.05


def test_an_edit_keeps_what_its_mask_keeps():
    unet, mask = FOLDER.unet, torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    source, target, empty = map(FOLDER.prompt, (SOURCE, TARGET, ""))
    trajectory = unet.invert(latents(), source, unet.ddim_sigmas(3))
    done = unet.edit(trajectory, source, target, empty, mask=mask).run()
    assert torch.equal(done.latent[..., 8:], latents()[..., 8:])
    assert not torch.equal(done.latent[..., :8], latents()[..., :8])


# -- folders -------------------------------------------------------------------------------------


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(PalimpsestError, match=r"is not a diffusers model: it holds no model_index"):
        load_folder(tmp_path)


def test_words_of_a_prompt_know_their_tokens(sd1_folder):
    tokenizer = load_folder(sd1_folder).encoders[0][1]
    tokens = prompt_tokens(tokenizer, "a cat on the tiger's mat")
    assert [word.text for word in tokens.words] == ["a", "cat", "on", "the", "tiger's", "mat"]
    whole = tokenizer("a cat on the tiger's mat").input_ids
    assert list(tokens.ids[: tokens.length]) == whole
    assert [p for word in tokens.words for p in word.positions] == list(range(1, len(whole) - 1))


def test_a_prompt_that_does_not_fit_is_refused_with_both_lengths(sd1_folder):
    tokenizer = load_folder(sd1_folder).encoders[0][1]
    assert prompt_tokens(tokenizer, "cat " * 75).length == 77
    with pytest.raises(PalimpsestError, match="has 76 tokens, this model takes 75: shorten it"):
        prompt_tokens(tokenizer, "cat " * 76)


def test_a_prompt_is_encoded_as_the_pipeline_encodes_it(sd1_folder):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(sd1_folder)
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt("a red cat", "cpu", 1, False)
    ours = load_folder(sd1_folder).prompt("a red cat")
    assert isinstance(ours, Prompt)
    assert relative(ours.embedding, theirs) < FLOAT32
