"""Negative-prompt inversion and proximal guidance in both hosts."""

from dataclasses import dataclass, replace

import comfy.samplers
import pytest
import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.negative_prompt import invert_negative_prompt
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.inversions.proximal import with_proximal
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.hosts.diffusers import negative_prompt as diffusers_negative_prompt
from palimpsest.pipelines.correction import ADD_TARGET, DIRECT_INVERSION, UNCORRECTED, Correction
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.edict import Coupled
from palimpsest.pipelines.inversion.negative_embedding import NegativeEmbedding
from palimpsest.pipelines.proximal import Proximal
from palimpsest.pipelines.trajectory import Recipe
from palimpsest.tests.host import agree, flow
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative

#: Sure to act: nearly everything is limited, and drawn back nearly all the way.
STRONG = Proximal("hard", quantile=0.7, pull=0.5, below=1.0)


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@dataclass(frozen=True, eq=False)
class Wish:
    """One edit along Negative-prompt inversion, said once for both hosts."""

    latent: torch.Tensor
    correction: Correction = UNCORRECTED
    proximal: Proximal | None = None
    interpolation: float = 0.0
    control: bool = True
    cfg: float = 3.0
    negative: str = "a cat"


def pictured(loaded, wish, steps=4, strength=0.35):
    source, negative = (agree.encode(loaded.clip, t) for t in (agree.SOURCE, wish.negative))
    sigmas = schedule(loaded.model, "simple", steps, strength)
    named = "Invert (Negative-prompt)"
    return Picture(loaded.model, source, negative, wish.latent, sigmas, 1.0, named)


def wired(loaded, wish, picture=None):
    """Invert in ComfyUI and make the edit's request; also the inversion's cost."""
    picture = picture or pictured(loaded, wish)
    trajectory, spent = invert_negative_prompt(picture, interpolation=wish.interpolation)
    if wish.proximal:
        trajectory = with_proximal(trajectory, wish.proximal)
    target = agree.encode(loaded.clip, agree.TARGET)
    control = None
    if wish.control:
        tokens = [prompt_tokens(loaded.clip, t) for t in (agree.SOURCE, agree.TARGET)]
        control = BoundControl(agree.words(*tokens), picture.positive[0][0], target[0][0])
    made = EditRequest(
        loaded.model,
        trajectory,
        picture.positive,
        target,
        picture.negative,
        wish.cfg,
        control,
        None,
        wish.correction,
        keep_source=True,
    )
    return made, spent


def in_diffusers(folder, wish, sigmas, scale):
    model = agree.headless(folder)
    size = tuple(8 * n for n in wish.latent.shape[-2:])
    source, target, negative = (
        model.prompt(text, size=size) for text in (agree.SOURCE, agree.TARGET, wish.negative)
    )
    rows = RowCount()
    trajectory = diffusers_negative_prompt.invert_negative_prompt(
        model.unet,
        wish.latent * scale,
        source,
        sigmas.flip(0).double(),
        negative=negative,
        interpolation=wish.interpolation,
        rows=rows,
    )
    if wish.proximal:
        trajectory = trajectory.with_carried(wish.proximal)
    inverted = rows.rows
    edited = model.unet.edit(
        trajectory,
        source,
        target,
        negative,
        cfg=wish.cfg,
        control=agree.words(source.tokens, target.tokens) if wish.control else None,
        correction=wish.correction,
        keep_source=True,
        rows=rows,
    ).run()
    return edited.latent / scale, edited.source / scale, (inverted, rows.rows - inverted)


WISHES = {
    "published": {},
    "direct": {"correction": DIRECT_INVERSION},
    "interpolation": {"interpolation": 0.4},
    "proximal": {"proximal": STRONG},
    "soft-direct": {
        "proximal": replace(STRONG, threshold="soft", pull=0.0),
        "correction": DIRECT_INVERSION,
    },
    "fixed-add-target": {"proximal": replace(STRONG, fixed=0.02), "correction": ADD_TARGET},
}


@pytest.mark.parametrize(
    ("kind", "wish"),
    [
        *(("sd1_folder", name) for name in WISHES),
        ("sd2_folder", "soft-direct"),
        ("sdxl_folder", "published"),
        ("sdxl_folder", "interpolation"),
    ],
)
def test_both_hosts_make_the_same_edit(kind, wish, request):
    folder, changes = request.getfixturevalue(kind), WISHES[wish]
    loaded = agree.in_comfyui(folder)
    wish = Wish(latent_for(loaded), **changes)
    sigmas = schedule(loaded.model, "simple", 4, 0.35)
    scale = loaded.model.model.latent_format.scale_factor
    made, inverted = wired(loaded, wish)
    latent, source, spent, _ = edit(made)
    theirs = in_diffusers(folder, wish, sigmas, scale)
    assert (inverted.rows, spent.rows) == theirs[2]
    assert relative(latent, theirs[0]) < HOSTS_AGREE
    assert relative(source, theirs[1]) < HOSTS_AGREE
    # What is new does something here, or agreeing about it would say nothing.
    if wish.interpolation or wish.proximal:
        plain = replace(wish, interpolation=0.0, proximal=None)
        assert relative(edit(wired(loaded, plain)[0])[0], latent) > 5 * HOSTS_AGREE


def test_without_correction_the_source_row_is_one_row_and_the_target_two(sd1):
    made, inverted = wired(sd1, Wish(latent_for(sd1)))
    assert inverted.rows == 4
    assert edit(made)[2].rows == 4 * 1 + 4 * 2
    between, _ = wired(sd1, Wish(latent_for(sd1), interpolation=0.5))
    assert edit(between)[2].rows == 4 * 2 + 4 * 2


@pytest.mark.parametrize("correction", [UNCORRECTED, DIRECT_INVERSION], ids=["none", "direct"])
def test_the_edit_is_the_one_that_has_the_source_prompt_for_its_negative(sd1, correction):
    """What the method is: on a model without pooled outputs the same as wiring it by hand."""
    wish = Wish(latent_for(sd1), correction=correction)
    made, _ = wired(sd1, wish)
    chain, _ = invert_ddim(pictured(sd1, wish), convention="destination", refinement=0)
    assert torch.equal(chain.latents, made.trajectory.latents)
    by_hand = replace(made, trajectory=chain, negative=made.source)
    ours, theirs = edit(made), edit(by_hand)
    assert relative(ours[0], theirs[0]) < 1e-5
    assert relative(ours[1], theirs[1]) < 1e-5
    plain = edit(replace(made, trajectory=chain))
    assert relative(plain[0], ours[0]) > 0.01


def test_interpolation_1_is_the_edit_along_ddim(sd1):
    wish = Wish(latent_for(sd1), interpolation=1.0)
    made, _ = wired(sd1, wish)
    chain, _ = invert_ddim(pictured(sd1, wish), convention="destination", refinement=0)
    assert relative(edit(made)[0], edit(replace(made, trajectory=chain))[0]) < 1e-5


def embedding_of(made):
    """What stands for the negative in a request."""
    return made.trajectory.find(NegativeEmbedding).embedding


def test_only_above_interpolation_0_is_the_negative_read(sd1):
    wishes = [Wish(latent_for(sd1), negative=text) for text in ("a cat", "a dog on a mat")]
    assert torch.equal(*(embedding_of(wired(sd1, wish)[0]) for wish in wishes))
    between = [replace(wish, interpolation=0.5) for wish in wishes]
    assert relative(*(embedding_of(wired(sd1, wish)[0]) for wish in between)) > 1e-3


def test_prompts_of_other_lengths_meet(sd1):
    long = "a cat on a mat " * 20  # two chunks of 77 tokens
    wish = Wish(latent_for(sd1), negative=long, interpolation=0.5, control=False)
    made, _ = wired(sd1, wish)
    assert embedding_of(made).shape[2] == made.negative[0][0].shape[1] > 77
    assert bool(torch.isfinite(edit(made)[0]).all())


def test_the_inversion_twice_is_bit_identical(sd1):
    first, second = (wired(sd1, Wish(latent_for(sd1)))[0] for _ in range(2))
    assert torch.equal(first.trajectory.latents, second.trajectory.latents)
    assert torch.equal(embedding_of(first), embedding_of(second))


def test_a_batch_of_pictures_is_edited_as_its_pictures_are(sd1):
    latent = latent_for(sd1, 6, 10, batch=2)
    both = edit(wired(sd1, Wish(latent, proximal=STRONG))[0])[0]
    for i in range(2):
        single = edit(wired(sd1, Wish(latent[i : i + 1], proximal=STRONG))[0])[0]
        assert relative(both[i : i + 1], single) < 1e-4


# -- proximal guidance in ComfyUI ----------------------------------------------------------------


def test_the_edit_guider_walks_under_proximal_guidance_as_edit_does(sd1):
    made, _ = wired(sd1, Wish(latent_for(sd1), DIRECT_INVERSION, STRONG))
    expected, _, _, _ = edit(made)
    start = made.trajectory.in_host_scale(made.trajectory.start)
    guider, sampler = EditGuider(made), comfy.samplers.ksampler("euler")
    sigmas = made.trajectory.falling_sigmas
    out = guider.sample(torch.zeros_like(start), start, sampler, sigmas, seed=0)
    assert relative(out, expected) < 1e-4


def flow_request(cfg, proximal=None):
    """An edit along DDIM inversion of a tiny SD 3."""
    model = flow.make_sd3()
    source, target, negative = (flow.prompt(seed) for seed in range(3))
    generator = torch.Generator().manual_seed(4)
    latent = torch.randn(1, flow.CHANNELS, 8, 8, generator=generator)
    sigmas = schedule(model, "simple", 4, 0.5)
    picture = Picture(model, source, negative, latent, sigmas, 1.0, "Invert (DDIM)")
    trajectory, _ = invert_ddim(picture, convention="destination", refinement=0)
    if proximal:
        trajectory = with_proximal(trajectory, proximal)
    return EditRequest(
        model, trajectory, source, target, negative, cfg, None, None, DIRECT_INVERSION
    )


@pytest.mark.parametrize("family", ["sd1", "flow"])
def test_both_ends_of_the_threshold(sd1, family):
    """Nothing limited is plain guidance, everything limited is that of cfg 0."""

    def run(cfg, proximal=None):
        if family == "flow":
            return edit(flow_request(cfg, proximal))[0]
        wish = Wish(latent_for(sd1), proximal=proximal, cfg=cfg, control=False)
        return edit(wired(sd1, wish)[0])[0]

    without, guided = run(0.0), run(3.0)
    for name in ("hard", "soft"):
        nothing, everything = (Proximal(name, fixed=lam, pull=0.0) for lam in (1e-9, 1e9))
        assert relative(run(3.0, nothing), guided) < 1e-4
        assert relative(run(3.0, everything), without) < 1e-4
    assert relative(without, guided) > 0.01


def test_what_other_nodes_do_after_guidance_still_takes_effect(sd1):
    made, _ = wired(sd1, Wish(latent_for(sd1), proximal=STRONG))
    seen = []

    def halve(args):
        seen.append(args["cond_scale"])
        return args["denoised"] / 2

    model = sd1.model.clone()
    model.set_model_sampler_post_cfg_function(halve)
    changed = edit(replace(made, model=model))[0]
    assert set(seen) == {1.0, 3.0}  # source and target
    assert relative(changed, edit(made)[0]) > 0.01


def test_the_model_is_left_as_it_was(sd1):
    options = str(sd1.model.model_options)
    edit(wired(sd1, Wish(latent_for(sd1), proximal=STRONG))[0])
    assert str(sd1.model.model_options) == options


def test_the_trajectory_is_not_changed_by_its_settings(sd1):
    made, _ = wired(sd1, Wish(latent_for(sd1)))
    limited = with_proximal(made.trajectory, STRONG)
    assert made.trajectory.find(Proximal) is None
    assert limited.find(Proximal) == STRONG
    assert limited.latents is made.trajectory.latents


# -- guidance 0 ----------------------------------------------------------------------------------


def plain_request(sd1, cfg, model=None):
    setting = agree.Setting(latent_for(sd1), cfg=cfg, control=False)
    return agree.request(sd1, setting, model=model)[0]


def test_at_cfg_0_both_hosts_run_the_negative_alone(sd1, sd1_folder):
    latent, _, spent, _ = edit(plain_request(sd1, 0.0))
    assert spent.rows == 4
    almost, _, both, _ = edit(plain_request(sd1, 1e-12))
    assert both.rows == 8
    assert relative(latent, almost) < 1e-5
    setting = agree.Setting(latent_for(sd1), cfg=0.0, control=False)
    sigmas = schedule(sd1.model, "simple", 4, setting.strength)
    scale = sd1.model.model.latent_format.scale_factor
    theirs = agree.in_diffusers(sd1_folder, setting, sigmas, scale)
    assert theirs[2] == (4, 4)
    assert relative(latent, theirs[0]) < HOSTS_AGREE


def test_the_inversion_at_cfg_0_is_one_row_a_step_and_that_of_the_negative(sd1):
    source, other = (agree.encode(sd1.clip, text) for text in (agree.SOURCE, "a dog"))
    sigmas = schedule(sd1.model, "simple", 4, 0.35)

    def inverted(positive, negative, cfg):
        picture = Picture(sd1.model, positive, negative, latent_for(sd1), sigmas, cfg, "Invert")
        return invert_ddim(picture, convention="destination", refinement=0)

    ours, spent = inverted(source, other, 0.0)
    assert spent.rows == 4
    assert relative(ours.start, inverted(other, other, 1.0)[0].start) < 1e-6
    assert relative(ours.start, inverted(source, source, 1.0)[0].start) > 1e-3


def test_at_cfg_0_whoever_watches_the_guidance_sees_both_rows(sd1):
    seen = []
    model = sd1.model.clone()

    def keep(args):
        seen.append(float((args["cond_denoised"] - args["uncond_denoised"]).abs().max()))
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(keep)
    assert edit(plain_request(sd1, 0.0, model))[2].rows == 8
    assert min(seen) > 0


def test_at_cfg_0_a_control_still_finds_its_rows(sd1):
    setting = agree.Setting(latent_for(sd1), cfg=0.0, correction=UNCORRECTED)
    latent, _, (_, rows) = agree.in_comfy(sd1, setting)
    assert rows == 4 * 2 + 4 * 2
    free, _, _ = agree.in_comfy(sd1, replace(setting, control=False))
    assert relative(latent, free) < 1e-5  # it acts on the conditional row, of which nothing counts


# -- refusals ------------------------------------------------------------------------------------


def test_a_prompt_of_several_entries_is_refused(sd1):
    picture = pictured(sd1, Wish(latent_for(sd1)))
    combined = replace(picture, positive=picture.positive + picture.negative)
    with pytest.raises(PalimpsestError, match=r"The positive has 2 entries .* takes one prompt"):
        invert_negative_prompt(combined)
    combined = replace(picture, negative=picture.positive + picture.negative)
    with pytest.raises(PalimpsestError, match=r"The negative has 2 entries"):
        invert_negative_prompt(combined, interpolation=0.5)
    invert_negative_prompt(combined)  # not read


def test_prompts_that_are_not_one_for_each_picture_are_refused(sd1):
    picture = pictured(sd1, Wish(latent_for(sd1)))
    embedding, extra = picture.positive[0]
    several = replace(picture, positive=[[embedding.repeat(3, 1, 1), extra]])
    with pytest.raises(PalimpsestError, match="holds 3 prompts, 1 pictures shall be inverted"):
        invert_negative_prompt(several)


def test_a_flow_model_is_refused():
    model, source = flow.make_sd3(), flow.prompt(0)
    sigmas, latent = schedule(model, "simple", 4, 0.5), torch.zeros(1, flow.CHANNELS, 8, 8)
    named = "Invert (Negative-prompt)"
    picture = Picture(model, source, source, latent, sigmas, 1.0, named)
    with pytest.raises(PalimpsestError, match=r"^Invert \(Negative-prompt\) takes models that"):
        invert_negative_prompt(picture)


@pytest.mark.parametrize("cfg", [0.0, 1.0])
def test_proximal_guidance_without_guidance_is_refused_by_both_hosts(sd1, sd1_folder, cfg):
    wish = Wish(latent_for(sd1), proximal=STRONG, cfg=cfg)
    with pytest.raises(PalimpsestError, match=f"at cfg {cfg:g} that is nothing"):
        edit(wired(sd1, wish)[0])
    sigmas = schedule(sd1.model, "simple", 4, 0.35)
    with pytest.raises(PalimpsestError, match=f"at cfg {cfg:g} that is nothing"):
        in_diffusers(sd1_folder, wish, sigmas, 1.0)


def test_guidance_that_another_node_has_replaced_is_refused(sd1):
    from comfy_extras.nodes_model_advanced import RescaleCFG

    made, _ = wired(sd1, Wish(latent_for(sd1), proximal=STRONG))
    (rescaled,) = RescaleCFG().patch(sd1.model, 0.7)
    with pytest.raises(PalimpsestError, match=r"another node on the model \(RescaleCFG"):
        edit(replace(made, model=rescaled))
    kept = tuple(c for c in made.trajectory.carried if not isinstance(c, Proximal))
    plain = replace(made.trajectory, carried=kept)
    assert plain.find(NegativeEmbedding) is not None
    edit(replace(made, model=rescaled, trajectory=plain))


def test_two_coupled_chains_are_refused(sd1):
    made, _ = wired(sd1, Wish(latent_for(sd1)))
    chain = made.trajectory.latents
    pair = Coupled(chain, torch.stack([chain[1:], chain[1:]], 1), 0.93)
    coupled = replace(made.trajectory, recipe=Recipe("edict"), carried=(pair,))
    with pytest.raises(PalimpsestError, match="EDICT has two that are coupled"):
        with_proximal(coupled, STRONG)
