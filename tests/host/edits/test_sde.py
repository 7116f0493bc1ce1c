"""The SDE family on ComfyUI's models: what is kept bit for bit, what it costs, what is heard."""

import math
from dataclasses import replace

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import folder_paths
import node_helpers
import pytest
import torch
from palimpsest.hosts.comfy.edits.cycle_sde import CycleRequest, Draws, cycle_sde, diffedit
from palimpsest.hosts.comfy.edits.drag import DragRequest, start_drag
from palimpsest.hosts.comfy.edits.sdedit import (
    SDEditRequest,
    Strength,
    levels_of,
    noised,
    paint_anew,
)
from palimpsest.hosts.comfy.files.trajectories import load_trajectory, save_trajectory
from palimpsest.hosts.comfy.schedules import part_of_schedule, schedule
from palimpsest.hosts.diffusers import sde as diffusers_sde
from palimpsest.nodes.drag import SDEDrag
from palimpsest.nodes.sde import CycleSDE
from palimpsest.pipelines.copy_paste import Brush
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.points import DragPoints
from palimpsest.tests.host import agree
from palimpsest.tests.host.agree import NEIGHBOURS, encode
from palimpsest.tests.host.edits.test_branches import lora
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative

#: A few numbers of float32 (6e-8 each) on the way through a network in float64; 1.7e-7 seen.
ROUNDED = 1e-5
#: fp32 in another batch, and so in another order of operations; the network passes it on.
BATCHED = 1e-5
STEPS = 3
SOURCE, TARGET = "a red cat on a mat", "a blue dog on a mat"


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


FAMILIES = ["sd1_folder", "sd2_folder", "sdxl_folder"]


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request):
    return agree.in_comfyui(request.getfixturevalue(request.param))


def request_for(loaded, source=SOURCE, target=TARGET, **changes):
    """A Cycle-SDE of three steps at little noise, where random weights are not yet chaotic."""
    defaults = {
        "samples": latent_for(loaded),
        "levels": part_of_schedule(loaded.model, "simple", 10, 0.3),
        "cfg": 3.0,
        "seed": 1,
    }
    prompts = [
        text if isinstance(text, list) else encode(loaded.clip, text)
        for text in (source, target, "")
    ]
    model = changes.pop("model", loaded.model)
    return CycleRequest(model, *prompts, **(defaults | changes))


def again(request, chain, **changes):
    """The request with an earlier chain in the latent's place."""
    return replace(request, samples=None, levels=None, trajectory=chain, **changes)


# --- Cycle-SDE


@pytest.fixture(scope="module")
def first_edit(sd1):
    """Latent, chain and cost of the edit that many tests start from, computed once."""
    with torch.inference_mode():
        return cycle_sde(request_for(sd1))


@pytest.mark.parametrize(
    ("kind", "eta"),
    [("sd1_folder", 1.0), ("sd1_folder", 0.0), ("sd2_folder", 1.0), ("sdxl_folder", 0.0)],
)
def test_both_hosts_make_the_same_edit(kind, eta, request):
    folder = request.getfixturevalue(kind)
    loaded = agree.in_comfyui(folder)
    asked = request_for(loaded, eta=eta, source_cfg=2.0)
    ours, _, spent = cycle_sde(asked)
    other = agree.headless(folder)
    scale = loaded.model.model.latent_format.scale_factor
    rows = RowCount()
    theirs = diffusers_sde.cycle_sde(
        other.unet,
        asked.samples * scale,
        *(other.prompt(text, size=(64, 64)) for text in (SOURCE, TARGET, "")),
        asked.levels.flip(0).double(),
        cfg=3.0,
        source_cfg=2.0,
        eta=eta,
        seed=1,
        rows=rows,
    )
    assert relative(ours, theirs / scale) < HOSTS_AGREE
    assert spent.rows == rows.rows
    assert relative(ours, asked.samples) > 30 * HOSTS_AGREE  # or agreeing would say nothing


@pytest.mark.parametrize(("process", "rows"), [("sde", 0), ("ode", 2 * STEPS)])
def test_an_unedited_batch_comes_back_bit_for_bit(loaded, process, rows):
    """By the SDE at no row at all; by the ODE at those of the inversion of two pictures."""
    latent = {"samples": latent_for(loaded, 8, 6, batch=2)}
    prompts = [encode(loaded.clip, text) for text in (SOURCE, SOURCE, "")]
    made = CycleSDE.execute(
        loaded.model, *prompts, 10, "simple", 0.3, 3.0, 3.0, process, 1, 8, latent
    )
    assert torch.equal(made.args[0]["samples"], latent["samples"])
    assert made.ui["rows"] == [rows]
    assert made.ui["palimpsest_text"][0].startswith(f"{STEPS} steps, {rows} UNet rows, ")


def test_the_same_prompt_under_another_guidance_is_an_edit(sd1):
    asked = request_for(sd1, SOURCE, SOURCE, source_cfg=1.0)
    latent, _, spent = cycle_sde(asked)
    assert relative(latent, asked.samples) > 1e-3
    assert spent.rows == 3 * STEPS


@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_outside_the_mask_every_bit_stays(sd1, eta):
    mask = torch.zeros(2, 64, 96)
    mask[0, :24, :40] = 1
    mask[1, 40:, :] = 1
    asked = request_for(sd1, samples=latent_for(sd1, 8, 12, batch=2), mask=mask, eta=eta)
    latent, _, _ = cycle_sde(asked)
    same = (latent == asked.samples).all(1)
    assert same[0, 3:].all() and same[0, :, 5:].all() and not same[0, :3, :5].any()
    assert same[1, :5].all() and not same[1, 5:].any()


def test_a_batch_is_edited_as_its_pictures_are(exact_sd1):
    """Without noise, of which every picture has its own."""
    both = request_for(exact_sd1, samples=latent_for(exact_sd1, batch=2), eta=0.0)
    latent, chain, spent = cycle_sde(both)
    single = [cycle_sde(replace(both, samples=both.samples[i : i + 1])) for i in range(2)]
    assert relative(latent, torch.cat([one for one, _, _ in single])) < NEIGHBOURS
    assert spent.rows == 2 * single[0][2].rows
    assert chain.latents.shape[:2] == (STEPS + 1, 2)


def test_seeds_are_those_of_the_chain(sd1, first_edit):
    first = first_edit[0]
    again_, other = (cycle_sde(request_for(sd1, seed=n))[0] for n in (1, 2))
    assert torch.equal(first, again_)
    assert relative(other, first) > 1e-3


@pytest.mark.parametrize(("source_cfg", "source_rows"), [(1.0, 1), (2.0, 2)])
def test_a_second_edit_of_a_chain_costs_the_target_alone(sd1, source_cfg, source_rows):
    asked = request_for(sd1, source_cfg=source_cfg)
    first, chain, spent = cycle_sde(asked)
    second, kept, less = cycle_sde(again(asked, chain))
    assert torch.equal(second, first)
    assert (spent.rows, less.rows) == ((source_rows + 2) * STEPS, 2 * STEPS)
    assert torch.equal(kept.latents, chain.latents)
    other, _, less = cycle_sde(again(asked, chain, target=encode(sd1.clip, "a sofa")))
    assert less.rows == 2 * STEPS
    assert relative(other, first) > 1e-3


@pytest.fixture
def output_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))


def test_a_chain_from_a_file_is_as_good(sd1, first_edit, output_folder):
    asked, (first, chain, _) = request_for(sd1), first_edit
    stored = load_trajectory(f"{save_trajectory(chain, 'chain').name} [output]")
    second, _, less = cycle_sde(again(asked, stored))
    assert torch.equal(second, first)
    assert less.rows == 2 * STEPS


SOURCES_ANEW = {
    "prompt": (lambda sd1: {"source": encode(sd1.clip, "a sofa")}, 1),
    "guidance": (lambda sd1: {"source_cfg": 2.0}, 2),
    "weights": (lambda sd1: {"model": lora(sd1.model, 0.05)}, 1),
    "calls": (lambda sd1: {"model": fainter(sd1.model)}, 1),
}


def fainter(model):
    """The model with another node's change of what it predicts."""
    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(lambda args: 0.9 * args["denoised"])
    return patched


@pytest.mark.parametrize("change", SOURCES_ANEW)
def test_another_source_is_computed_anew(sd1, first_edit, change):
    make, source_rows = SOURCES_ANEW[change]
    changes = make(sd1)
    asked, (_, chain, _) = request_for(sd1), first_edit
    wanted, _, _ = cycle_sde(replace(asked, **changes))
    got, kept, spent = cycle_sde(again(asked, chain, **changes))
    assert spent.rows == (source_rows + 2) * STEPS
    assert torch.equal(got, wanted)
    _, _, less = cycle_sde(again(asked, kept, **changes))
    # What another node does to the calls has no name by which it could be known again.
    assert less.rows == (2 + (source_rows if change == "calls" else 0)) * STEPS


def test_a_run_that_edits_nothing_does_not_rename_what_the_chain_knows(sd1, first_edit):
    asked, (_, chain, _) = request_for(sd1), first_edit
    sofa = encode(sd1.clip, "a sofa")
    kept, passed_on, spent = cycle_sde(
        again(asked, chain, source=sofa, target=sofa, source_cfg=3.0)
    )
    assert torch.equal(kept, asked.samples) and spent.rows == 0
    wishes = {"source": sofa, "source_cfg": 3.0}
    wanted, _, _ = cycle_sde(replace(asked, **wishes))
    got, _, spent = cycle_sde(again(asked, passed_on, **wishes))
    assert torch.equal(got, wanted)
    assert spent.rows == 4 * STEPS


def spans(first, second, middle):
    """Two conditionings, each for its own part of the steps, as core's nodes make them."""
    one = node_helpers.conditioning_set_values(first, {"start_percent": 0.0, "end_percent": middle})
    two = node_helpers.conditioning_set_values(
        second, {"start_percent": middle, "end_percent": 1.0}
    )
    return [*one, *two]


def test_a_source_with_spans_of_steps_is_not_batched_over_levels(sd1):
    cat, sofa = (encode(sd1.clip, text) for text in ("a red cat", "a sofa"))
    asked = request_for(sd1, spans(cat, sofa, 0.8))
    one, many = (cycle_sde(replace(asked, levels_at_once=n))[0] for n in (1, 8))
    assert torch.equal(one, many)
    for whole in (cat, sofa):  # both spans are heard
        assert relative(cycle_sde(replace(asked, source=whole))[0], one) > 1e-3


def test_how_many_levels_go_into_a_call_is_a_matter_of_speed(exact_sd1):
    one, many = (cycle_sde(request_for(exact_sd1, levels_at_once=n)) for n in (1, 8))
    assert relative(one[0], many[0]) < NEIGHBOURS
    assert one[2].rows == many[2].rows


def late_guidance(model, above):
    """Guidance of another node that acts above a level, which it reads off the first row."""

    def after(args):
        louder = 1.5 if float(args["sigma"][0]) > above else 1.0
        return args["denoised"] * louder

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(after)
    return patched


def test_guidance_of_other_nodes_sees_one_level_a_call(sd1, first_edit):
    asked = request_for(sd1)
    middle = float(asked.levels[1])
    model = late_guidance(sd1.model, middle)
    one, many = (cycle_sde(replace(asked, model=model, levels_at_once=n))[0] for n in (1, 8))
    assert relative(many, one) < BATCHED
    assert relative(first_edit[0], one) > 1e-3


# --- DiffEdit


def test_diffedit_edits_where_it_found_the_prompts_to_disagree(loaded):
    asked = request_for(loaded, samples=latent_for(loaded, 8, 12, batch=2), feature="DiffEdit")
    latent, found, chain, spent = diffedit(asked, Draws(count=3, ratio=2.0))
    assert found.shape == (2, 8, 12) and set(found.unique().tolist()) == {0.0, 1.0}
    same = (latent == asked.samples).all(1)
    assert same[found == 0].all() and not same[found == 1].any()
    # Three draws under two guided prompts, then the edit; for each picture.
    assert spent.rows == 2 * (3 * 4 + 3 * STEPS)
    assert chain.steps == STEPS


def test_a_mask_limits_what_diffedit_may_find(sd1):
    asked = request_for(sd1, feature="DiffEdit")
    _, free, _, _ = diffedit(asked, Draws(count=2, ratio=1.0))
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    latent, found, _, _ = diffedit(replace(asked, mask=mask), Draws(count=2, ratio=1.0))
    assert free[:, 4:].any()
    assert torch.equal(found[:, :4], free[:, :4]) and not found[:, 4:].any()
    assert torch.equal(latent[..., 4:, :], asked.samples[..., 4:, :])
    black, _, _, _ = diffedit(replace(asked, mask=0 * mask), Draws(count=2))
    assert torch.equal(black, asked.samples)


def test_how_diffedits_draws_are_batched_is_a_matter_of_speed(sd1):
    asked = request_for(sd1, feature="DiffEdit", samples=latent_for(sd1, batch=2))
    masks = [diffedit(replace(asked, levels_at_once=n), Draws(count=3))[1] for n in (1, 8)]
    assert torch.equal(*masks)


def test_diffedit_of_one_prompt_says_that_there_is_nothing_to_edit(sd1):
    with pytest.raises(PalimpsestError, match=r"say the same of this picture.*change the target"):
        diffedit(request_for(sd1, SOURCE, SOURCE, feature="DiffEdit"), Draws(count=2))


@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_a_level_that_diffedit_cannot_compare_at_is_refused(sd1, strength):
    with pytest.raises(PalimpsestError, match="mask's strength must be above 0 and at most 1"):
        diffedit(request_for(sd1), Draws(strength=strength))


# --- SDEdit and inpainting


def painting(loaded, **changes):
    defaults = {
        "samples": latent_for(loaded),
        "levels": schedule(loaded.model, "simple", STEPS, 0.3),
        "cfg": 3.0,
        "seed": 1,
    }
    prompts = [encode(loaded.clip, text) for text in (TARGET, "")]
    model = changes.pop("model", loaded.model)
    return SDEditRequest(model, *prompts, **(defaults | changes))


def top_left():
    mask = torch.zeros(1, 64, 64)
    mask[:, :24, :40] = 1
    return mask


def kept_below_and_right(latent, origin):
    same = (latent == origin).all(1)
    return same[:, 3:].all() and same[..., 5:].all() and not same[:, :3, :5].any()


@pytest.mark.parametrize(("kind", "eta"), [*zip(FAMILIES, [1.0, 0.5, 0.0], strict=True)])
def test_sdedit_keeps_every_bit_of_the_kept_region(kind, eta, request):
    loaded = agree.in_comfyui(request.getfixturevalue(kind))
    asked = painting(loaded, mask=top_left(), eta=eta, repeats=2)
    latent, spent = paint_anew(asked)
    assert kept_below_and_right(latent, asked.samples)
    assert bool(torch.isfinite(latent).all())
    assert spent.rows == 2 * 2 * STEPS


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("eta", [1.0, 0.0])
def test_inpainting_from_pure_noise_keeps_the_rest(sd1, order, eta):
    asked = painting(
        sd1,
        levels=schedule(sd1.model, "normal", 4, 1.0),
        mask=top_left(),
        eta=eta,
        order=order,
        wipe=True,
    )
    latent, spent = paint_anew(asked)
    assert kept_below_and_right(latent, asked.samples)
    assert bool(torch.isfinite(latent).all())
    assert spent.rows == 2 * 4


def test_the_orders_are_two_walks(sd1):
    levels = schedule(sd1.model, "normal", 4, 0.3)
    one, two = (paint_anew(painting(sd1, levels=levels, order=n, eta=0.0))[0] for n in (1, 2))
    assert relative(one, two) > 1e-4


def test_the_second_order_ode_is_cores_dpmpp_2m(sd1):
    """On eps models both walk x in log sigma; rounding of every step goes through the network."""
    levels = schedule(sd1.model, "karras", 5, 0.4)
    sigma = float(levels[0])
    asked = painting(sd1, levels=levels, order=2, eta=0.0)
    ours, _ = paint_anew(asked)
    leftover = noised(sd1.model, {"samples": asked.samples}, sigma, 1, None)
    guider = comfy.samplers.CFGGuider(sd1.model)
    guider.set_conds(asked.positive, asked.negative)
    guider.set_cfg(3.0)
    sampler = comfy.samplers.ksampler("dpmpp_2m")
    core = guider.sample(torch.zeros_like(leftover), leftover, sampler, levels, seed=0)
    assert relative(ours, core) < 1e-4


def test_what_is_wiped_is_forgotten(sd1):
    samples = latent_for(sd1)
    other = samples.clone()
    other[..., :3, :5] = 0
    wishes = {"mask": top_left(), "levels": schedule(sd1.model, "normal", 3, 0.3)}

    def difference(**more):
        return relative(
            *(paint_anew(painting(sd1, samples=s, **wishes, **more))[0] for s in (samples, other))
        )

    # It is taken away in float32, and that rounding goes through the network.
    assert difference(wipe=True) < BATCHED
    assert difference() > 1e-2


def vp_sigma(t0):
    """DDPM's linear schedule in float64, as the paper has it."""
    alpha = 1.0
    for i in range(round(1000 * t0)):
        alpha *= 1 - (1e-4 + i * (0.02 - 1e-4) / 999)
    return math.sqrt((1 - alpha) / alpha)


@pytest.mark.parametrize("scheduler", ["normal", "karras", "ddim_uniform"])
@pytest.mark.parametrize(
    ("strength", "sigma"),
    [
        (Strength("t0 (VP)", 0.5), vp_sigma(0.5)),
        (Strength("t0 (VE)", 0.5), 0.02 * 37800**0.5),
        (Strength("sigma", 2.5), 2.5),
    ],
    ids=lambda value: getattr(value, "unit", ""),
)
def test_a_walk_begins_at_the_very_sigma_of_its_strength(sd1, strength, sigma, scheduler):
    levels, said = levels_of(sd1.model, strength, scheduler, 3)
    assert said == pytest.approx(sigma, rel=1e-12)
    assert levels[0] == torch.tensor(said, dtype=torch.float32)
    assert len(levels) == 4 and float(levels[-1]) == 0 and bool((levels.diff() < 0).all())
    seen = []

    def keep(executor, x, t, *args, **options):
        seen.append(t.clone())
        return executor(x, t, *args, **options)

    model = sd1.model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, keep)
    paint_anew(painting(sd1, model=model, levels=levels))
    assert torch.equal(seen[0], levels[:1].expand(2))


@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple"])
@pytest.mark.parametrize("denoise", [0.3, 0.55, 1.0])
def test_denoise_counts_as_cores_sampler_does(sd1, scheduler, denoise):
    levels, said = levels_of(sd1.model, Strength("denoise", denoise), scheduler, 6)
    core = comfy.samplers.KSampler(
        sd1.model, 6, torch.device("cpu"), "euler", scheduler, denoise
    ).sigmas
    assert torch.equal(levels, core)
    assert said == float(core[0])


@pytest.mark.parametrize(
    ("strength", "words"),
    [
        (Strength("sigma", 900.0), "sigma 900 is sigma 900, this model knows 0.0292 to 14.61"),
        (Strength("sigma", 0.001), "this model knows"),
        (Strength("t0 (VE)", 0.9), "this model knows"),
        (Strength("t0 (VP)", 1.2), "above 0 and at most 1 in the unit t0"),
        (Strength("denoise", 0.0), "above 0 and at most 1 in the unit denoise"),
    ],
    ids=str,
)
def test_a_strength_that_the_model_does_not_know_is_refused(sd1, strength, words):
    with pytest.raises(PalimpsestError, match=words.replace("(", r"\(")):
        levels_of(sd1.model, strength, "normal", 4)


# --- SDE-Drag


def picture(width=64, height=64, batch=1):
    generator = torch.Generator().manual_seed(8)
    return torch.rand(batch, height, width, 3, generator=generator)


def dragging(loaded, **changes):
    defaults = {
        "image": picture(),
        "points": DragPoints((64, 64), (((20, 20), (44, 20)),)),
        "levels": part_of_schedule(loaded.model, "simple", 10, 0.3),
        "brush": Brush(1),
        "cfg": 3.0,
        "seed": 1,
    }
    prompts = [encode(loaded.clip, text) for text in (SOURCE, "")]
    model = changes.pop("model", loaded.model)
    return DragRequest(model, *prompts, loaded.vae, **(defaults | changes))


def dragged(request, tell=lambda *_: None):
    """The path of a drag, and the latent that it began with."""
    path, whole = start_drag(request)
    undragged = path.latent
    whole.run(path, tell)
    return path, undragged


@pytest.fixture(scope="module")
def first_drag(sd1):
    """The path of the drag that many tests compare with, computed once."""
    with torch.inference_mode():
        return dragged(dragging(sd1))[0]


@pytest.mark.parametrize(("kind", "eta"), [*zip(FAMILIES, [1.0, 0.0, 1.0], strict=True)])
def test_a_drag_keeps_every_bit_outside_its_mask(kind, eta, request):
    loaded = agree.in_comfyui(request.getfixturevalue(kind))
    mask = torch.zeros(1, 64, 64)
    mask[:, 8:32] = 1
    path, undragged = dragged(dragging(loaded, mask=mask, eta=eta))
    same = (path.latent == undragged).all(1)
    assert same[:, 0].all() and same[:, 4:].all() and not same[:, 1:4].any()
    assert len(path.pictures) == path.steps + 1 == 3
    assert torch.equal(path.pictures[-1], loaded.vae.decode(path.latent))


@pytest.mark.parametrize(("eta", "source_batch"), [(1.0, 1), (1.0, 8), (0.0, 8)])
def test_a_drag_step_costs_four_rows_a_level_and_half_of_them_without_guidance(
    sd1, eta, source_batch
):
    """At the lowest level guidance is 1, so that the target needs one row less there, and the
    source too where that level is alone in its call."""
    invert = 0 if eta else STEPS
    wishes = {"eta": eta, "levels_at_once": source_batch}
    guided, _ = dragged(dragging(sd1, **wishes))
    plain, _ = dragged(dragging(sd1, cfg=1.0, **wishes))
    assert guided.rows == guided.steps * (4 * STEPS - 1 - (source_batch == 1) + invert)
    assert plain.rows == plain.steps * (2 * STEPS + invert)


def test_a_seed_gives_the_same_bits_and_another_one_others(sd1, first_drag):
    first = first_drag.latent
    same, other = (dragged(dragging(sd1, seed=n))[0].latent for n in (1, 2))
    assert torch.equal(first, same)
    assert relative(other, first) > 1e-3


def test_how_many_levels_of_the_picture_go_into_a_call_is_a_matter_of_speed(exact_sd1):
    one, many = (dragged(dragging(exact_sd1, levels_at_once=n))[0].latent for n in (1, 8))
    assert relative(one, many) < NEIGHBOURS


def plainly_guided(model):
    """The guidance that core has anyway, as other nodes would put theirs in."""

    def formula(args):
        return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]

    patched = model.clone()
    patched.set_model_sampler_cfg_function(formula)
    patched.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    return patched


def test_guidance_functions_of_other_nodes_get_the_scale_of_every_level(exact_sd1):
    plain, _ = dragged(dragging(exact_sd1))
    hooked, _ = dragged(dragging(exact_sd1, model=plainly_guided(exact_sd1.model)))
    assert relative(hooked.latent, plain.latent) < ROUNDED  # core hands scales over in float32
    level = float(part_of_schedule(exact_sd1.model, "simple", 10, 0.3)[1])
    late, _ = dragged(dragging(exact_sd1, model=late_guidance(exact_sd1.model, level)))
    one, _ = dragged(
        dragging(exact_sd1, model=late_guidance(exact_sd1.model, level), levels_at_once=1)
    )
    assert relative(late.latent, one.latent) < NEIGHBOURS


def test_the_region_moves_and_not_a_square(sd1, first_drag):
    square = torch.zeros(1, 64, 64)
    square[:, 8:24, 8:24] = 1  # the cells 1 and 2, which radius 1 takes around cell 2
    by_region, thin = (
        dragged(dragging(sd1, region=region))[0].latent
        for region in (square, square * (torch.arange(64) >= 16))
    )
    by_brush = first_drag.latent
    assert torch.equal(by_brush, by_region)
    assert relative(thin, by_brush) > 1e-3


@pytest.mark.parametrize(("width", "height"), [(70, 61), (67, 79)])
def test_a_picture_whose_sides_are_no_multiple_of_8_is_cut_as_its_vae_cuts_it(sd1, width, height):
    """The VAE keeps the middle; a point lies in the cell of what was kept."""
    points = DragPoints((width, height), (((20, 20), (52, 36)),))
    cells = (width // 8, height // 8)
    left, top = (width % 8 // 2, height % 8 // 2)
    image = picture(width, height)
    path, undragged = dragged(dragging(sd1, image=image, points=points))
    assert undragged.shape[-2:] == (cells[1], cells[0])
    assert path.pictures[0].shape[1:3] == (8 * cells[1], 8 * cells[0])
    cut = image[:, top : top + 8 * cells[1], left : left + 8 * cells[0]]
    moved = tuple(tuple((x - left, y - top) for x, y in pair) for pair in points.pairs)
    whole = DragPoints((8 * cells[0], 8 * cells[1]), moved)
    assert torch.equal(dragged(dragging(sd1, image=cut, points=whole))[0].latent, path.latent)


def test_mask_and_region_lie_on_what_was_cut_out(sd1):
    """Of 70 pixels the VAE keeps 64, from the fourth on: the last cell begins at pixel 59."""
    points = DragPoints((70, 64), (((60, 4), (52, 4)),))
    mask = torch.zeros(1, 64, 70)
    mask[:, :8, 52:61] = 1
    asked = dragging(sd1, image=picture(70, 64), points=points, mask=mask, region=mask)
    _, drag = start_drag(asked)
    cells = torch.zeros(8, 8)
    cells[0, 6:] = 1
    assert torch.equal(drag.mask[0, 0], cells)
    assert torch.equal(drag.regions.masks[0], cells > 0)
    with pytest.raises(PalimpsestError, match="mask keeps the handle of drag 1"):
        start_drag(replace(asked, mask=mask * (torch.arange(70) < 59)))


def test_a_batch_of_pictures_is_dragged_together(sd1):
    image = picture(batch=2)
    mask = torch.ones(2, 64, 64)
    mask[1, 32:] = 0
    path, undragged = dragged(dragging(sd1, image=image, mask=mask))
    assert path.latent.shape == undragged.shape == (2, 4, 8, 8)
    assert all(shown.shape == (2, 64, 64, 3) for shown in path.pictures)
    same = (path.latent == undragged).all(1)
    assert not same[0].any() and same[1, 4:].all() and not same[1, :4].any()


def test_a_short_drag_may_stop_early(sd1):
    pairs = (((20, 20), (52, 20)), ((12, 52), (20, 52)))
    points = DragPoints((64, 64), pairs)
    crawled, stopped = (
        dragged(dragging(sd1, points=points, early_stop=stop))[0] for stop in (False, True)
    )
    assert crawled.steps == stopped.steps == 2
    assert relative(crawled.latent, stopped.latent) > 1e-3


def test_an_undragged_walk_tells_of_every_step(sd1):
    told = []
    path, _ = dragged(dragging(sd1), lambda done, total, shown: told.append((done, total, shown)))
    total = 2 * STEPS * path.steps
    assert {t for _, t, _ in told} == {total}
    done = [n for n, _, _ in told]
    assert done == sorted(done) and done[-1] == total
    shown = [(n, picture) for n, _, picture in told if picture is not None]
    assert [n for n, _ in shown] == [2 * STEPS, 4 * STEPS]
    assert all(torch.equal(a, b) for (_, a), b in zip(shown, path.pictures[1:], strict=True))


def test_what_was_dragged_before_a_cancel_is_kept(sd1, first_drag):
    whole = first_drag

    def cancel(done, total, shown):
        if shown is not None:
            comfy.model_management.interrupt_current_processing()

    path, drag = start_drag(dragging(sd1))
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        drag.run(path, cancel)
    assert len(path.pictures) == 2 and path.steps == 2
    assert torch.equal(path.pictures[1], whole.pictures[1])
    assert torch.equal(dragged(dragging(sd1))[0].latent, whole.latent)  # and the next run is whole


def test_the_node_gives_the_whole_way(sd1):
    """Two pictures at three stages: the undragged one, and one after each of two drag steps."""
    prompts = [encode(sd1.clip, text) for text in (SOURCE, "")]
    points = DragPoints((64, 64), (((20, 20), (44, 20)),))
    options = [1, 1.1, 0.3, 10, "simple", 0.3, 2, 1.0, 1.0, False, 1, 8]
    made = SDEDrag.execute(sd1.model, *prompts, sd1.vae, picture(batch=2), points, *options)
    latent, frames = made.args
    assert latent["samples"].shape == (2, 4, 8, 8)
    assert frames.shape == (3 * 2, 64, 64, 3)
    assert made.ui["palimpsest_text"][0].startswith("2 drag steps, 24 UNet rows, ")
