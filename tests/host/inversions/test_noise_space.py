"""Edit-Friendly DDPM and CycleDiffusion in both hosts: the same edit, its rows, what is exact."""

import comfy.cli_args
import folder_paths
import pytest
import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.cycle_sde import CycleRequest, cycle_sde
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.files.trajectories import load_trajectory, save_trajectory
from palimpsest.hosts.comfy.inversions.noise_space import below_skip, invert_noise
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.comfy.words import prompt_tokens
from palimpsest.hosts.diffusers import folder as diffusers_host
from palimpsest.hosts.diffusers.noise_space import invert_noise as invert_headless
from palimpsest.nodes.inversions.cyclediffusion import InvertCycleDiffusion
from palimpsest.nodes.inversions.edit_friendly import InvertEditFriendly
from palimpsest.pipelines.correction import ADD_TARGET, DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.couplings import independent, posterior
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.noise_space import EDIT_FRIENDLY, cycle_diffusion
from palimpsest.pipelines.noise import seeded
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_branches import lora, sample
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative
from palimpsest.tests.host.edits.test_sde import BATCHED, ROUNDED, fainter, spans

STEPS, CFG = 3, 3.0
SOURCE, TARGET = "a red cat on a mat", "a blue dog on a mat"
SPACES = {"edit friendly": EDIT_FRIENDLY, "cyclediffusion": cycle_diffusion()}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
every_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def words(loaded, text):
    return text if isinstance(text, list) else agree.encode(loaded.clip, text)


def levels_of(model):
    """At little noise, where random weights are not yet chaotic."""
    return schedule(model, "simple", STEPS, 0.3)


def invert(loaded, space, *, seed=1, positive=SOURCE, source_cfg=1.0, levels_at_once=8, **changes):
    model = changes.pop("model", loaded.model)
    samples = changes.pop("samples", None)
    picture = Picture(
        model,
        words(loaded, positive),
        words(loaded, ""),
        latent_for(loaded) if samples is None else samples,
        levels_of(model),
        source_cfg,
        "Invert",
        **changes,
    )
    return invert_noise(picture, space, seed=seed, levels_at_once=levels_at_once)


def request(loaded, trajectory, target=TARGET, control=False, **changes):
    source = changes.pop("source", SOURCE)
    conditionings = [words(loaded, text) for text in (source, target, "")]
    bound = None
    if control:
        tokens = (prompt_tokens(loaded.clip, text) for text in (source, target))
        made = agree.words(*tokens)
        bound = BoundControl(made, *(c[0][0] for c in conditionings[:2]))
    defaults = {
        "model": loaded.model,
        "cfg": CFG,
        "control": bound,
        "mask": None,
        "correction": DIRECT_INVERSION,
    }
    named = dict(zip(("source", "target", "negative"), conditionings, strict=True))
    return EditRequest(trajectory=trajectory, **(named | defaults | changes))


# --- one method, two hosts


@pytest.mark.parametrize(
    ("kind", "control", "space"),
    [
        ("sd1_folder", False, "edit friendly"),
        ("sd1_folder", False, "cyclediffusion"),
        ("sd1_folder", True, "edit friendly"),
        ("sd1_folder", True, "cyclediffusion"),
        ("sd2_folder", True, "cyclediffusion"),
        ("sdxl_folder", True, "edit friendly"),
    ],
)
def test_both_hosts_make_the_same_edit(kind, control, space, request_of):
    folder, space = request_of(kind), SPACES[space]
    loaded, other = agree.in_comfyui(folder), agree.headless(folder)
    trajectory, inverted = invert(loaded, space, source_cfg=2.0)
    ours, kept, spent, _ = edit(request(loaded, trajectory, control=control))
    scale = loaded.model.model.latent_format.scale_factor
    source, target, empty = (other.prompt(text, size=(64, 64)) for text in (SOURCE, TARGET, ""))
    rows = RowCount()
    theirs = invert_headless(
        other.unet,
        space,
        latent_for(loaded) * scale,
        source,
        levels_of(loaded.model).flip(0).double(),
        negative=empty,
        source_cfg=2.0,
        draw=seeded(1),
        rows=rows,
    )
    assert rows.rows == inverted.rows == 2 * STEPS
    assert relative(trajectory.denoised, theirs.denoised) < HOSTS_AGREE
    made = agree.words(source.tokens, target.tokens) if control else None
    there = other.unet.edit(theirs, source, target, empty, cfg=CFG, control=made, rows=rows).run()
    assert relative(ours, there.latent / scale) < HOSTS_AGREE
    assert rows.rows == inverted.rows + spent.rows
    # Two rows of the target a step, and one of the source in the steps whose windows are open.
    assert spent.rows == 2 * STEPS + (2 if control else 0)
    assert torch.equal(kept, latent_for(loaded))
    assert relative(ours, kept) > 30 * HOSTS_AGREE  # or agreeing would say nothing


@pytest.fixture
def request_of(request):
    return request.getfixturevalue


def test_the_chain_is_the_one_of_its_name(sd1):
    sigmas = levels_of(sd1.model).flip(0).double()
    x0 = sd1.model.model.process_latent_in(latent_for(sd1))
    chains = {"edit friendly": independent, "cyclediffusion": posterior}
    for name, space in SPACES.items():
        trajectory, _ = invert(sd1, space)
        wishes = {"eta": 0.1} if name == "cyclediffusion" else {}
        assert torch.equal(trajectory.latents, chains[name](x0, sigmas, seeded(1), **wishes))
        assert trajectory.recipe.eta == (wishes.get("eta") or 1.0)
        assert trajectory.recipe.rows == STEPS
        assert trajectory.recipe.source_cfg == 1.0


@every_space
def test_an_edit_is_the_published_step_with_recorded_noise(sd1_folder, space):
    """z = (x_next - mean_src) / s_up, then mean_tgt + s_up z; the last step lands on D."""
    model = agree.headless(sd1_folder)
    source, target, empty = (model.prompt(text, size=(64, 64)) for text in (SOURCE, TARGET, ""))
    x0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    sigmas = model.unet.ddim_sigmas(10)[: STEPS + 1]
    trajectory = invert_headless(model.unet, space, x0, source, sigmas, draw=seeded(1))
    denoisers = model.unet.denoiser(source), model.unet.denoiser(target, empty, cfg=CFG)
    chain, levels, x = trajectory.latents, sigmas.tolist(), trajectory.start
    for i in range(STEPS, 0, -1):
        up = space.eta * levels[i - 1] * (levels[i] ** 2 - levels[i - 1] ** 2) ** 0.5 / levels[i]
        c = (levels[i - 1] ** 2 - up**2) ** 0.5 / levels[i]
        means = [
            c * at + (1 - c) * denoise(at, sigmas[i])
            for at, denoise in zip((chain[i], x), denoisers, strict=True)
        ]
        z = (chain[i - 1] - means[0]) / (up or 1.0)
        x = means[1] + (up or 1.0) * z
    ours = model.unet.edit(trajectory, source, target, empty, cfg=CFG).run()
    # float32 against float32, where the published form divides by eta times a step's noise.
    assert relative(ours.latent, x) < 1e-4
    assert relative(x, x0) > 1e-2


# --- nothing edited


@pytest.fixture(scope="module", params=DTYPES.values(), ids=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def in_dtype(sd1_folder, dtype):
    """The tiny SD 1, loaded as a start of ComfyUI with `--fp16-unet` or `--bf16-unet` would."""
    flag = {torch.float16: "fp16_unet", torch.bfloat16: "bf16_unet"}.get(dtype)
    with pytest.MonkeyPatch.context() as patch:
        if flag:
            patch.setattr(comfy.cli_args.args, flag, True)
        return load_folder(sd1_folder)


@pytest.fixture(scope="module")
def headless_in_dtype(sd1_folder, dtype):
    model = diffusers_host.load_folder(sd1_folder)
    model.unet.unet.to(dtype)
    return model


@every_space
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_an_unedited_batch_comes_back_bit_for_bit_at_no_row(in_dtype, dtype, cfg, space):
    loaded = in_dtype
    assert loaded.model.model.get_dtype() == dtype
    samples = latent_for(loaded, 8, 6, batch=2).to(dtype)
    trajectory, _ = invert(loaded, space, source_cfg=cfg, samples=samples)
    latent, kept, spent, _ = edit(request(loaded, trajectory, SOURCE, cfg=cfg))
    assert torch.equal(latent.to(samples), samples)
    assert torch.equal(kept.to(samples), samples)
    assert spent.rows == 0


@every_space
@pytest.mark.parametrize("cfg", [1.0, CFG])
def test_headless_as_well(headless_in_dtype, dtype, cfg, space):
    model = headless_in_dtype
    source, empty = (model.prompt(text, size=(64, 64)) for text in (SOURCE, ""))
    x0 = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    sigmas, rows = model.unet.ddim_sigmas(10)[: STEPS + 1], RowCount()
    wishes = {"negative": empty, "source_cfg": cfg}
    trajectory = invert_headless(model.unet, space, x0, source, sigmas, **wishes)
    again = model.prompt(SOURCE, size=(64, 64))
    whole = model.unet.edit(trajectory, source, again, empty, cfg=cfg, rows=rows)
    assert torch.equal(whole.run().latent, x0)
    assert rows.rows == 0


OTHERS = {
    "another prompt": lambda sd1: {"target": TARGET},
    "another guidance": lambda sd1: {"target": SOURCE, "cfg": 2.5},
    "another negative": lambda sd1: {"target": SOURCE, "negative": words(sd1, "a sofa")},
    "a lora": lambda sd1: {"target": SOURCE, "model": lora(sd1.model, 0.05)},
    "other calls": lambda sd1: {"target": SOURCE, "model": fainter(sd1.model)},
}


@every_space
@pytest.mark.parametrize("change", OTHERS)
def test_what_differs_from_the_recording_is_an_edit(sd1, space, change):
    trajectory, _ = invert(sd1, space, source_cfg=CFG)
    latent, _, spent, _ = edit(request(sd1, trajectory, **OTHERS[change](sd1)))
    assert spent.rows == 2 * STEPS
    assert relative(latent, trajectory.origin) > 1e-4


def test_with_a_control_the_unedited_picture_is_computed_and_comes_back(exact_sd1):
    """The control's terms are other sums of the same numbers, beside a latent kept in float32."""
    trajectory, _ = invert(exact_sd1, EDIT_FRIENDLY, source_cfg=CFG)
    latent, _, spent, _ = edit(request(exact_sd1, trajectory, SOURCE, control=True))
    assert spent.rows > 2 * STEPS
    assert relative(latent, trajectory.origin) < ROUNDED


def test_a_chain_without_guesses_knows_its_source_by_the_edits(sd1):
    """What Cycle-SDE leaves where nothing was edited: no guess was needed, and none was kept."""
    prompts = [words(sd1, text) for text in (SOURCE, SOURCE, "")]
    levels = levels_of(sd1.model)
    asked = CycleRequest(
        sd1.model, *prompts, latent_for(sd1), levels, cfg=CFG, source_cfg=CFG, seed=1
    )
    _, chain, _ = cycle_sde(asked)
    assert chain.denoised is None
    latent, _, spent, _ = edit(request(sd1, chain, SOURCE))
    assert torch.equal(latent, asked.samples) and spent.rows == 0
    rewritten, _, spent, _ = edit(request(sd1, chain))
    assert spent.rows == 4 * STEPS  # both are guided
    assert relative(rewritten, asked.samples) > 1e-3


# --- what the chain brings along


@every_space
def test_the_correction_is_not_read(sd1, space):
    trajectory, _ = invert(sd1, space)
    corrections = (DIRECT_INVERSION, UNCORRECTED, ADD_TARGET)
    latents = [edit(request(sd1, trajectory, correction=c))[0] for c in corrections]
    assert torch.equal(latents[0], latents[1]) and torch.equal(latents[0], latents[2])


@every_space
def test_outside_the_mask_every_bit_stays(sd1, space):
    mask = torch.zeros(1, 64, 96)
    mask[:, :24, :40] = 1
    trajectory, _ = invert(sd1, space, samples=latent_for(sd1, 8, 12))
    latent, _, _, _ = edit(request(sd1, trajectory, mask=mask))
    same = (latent == trajectory.origin).all(1)
    assert same[:, 3:].all() and same[..., 5:].all() and not same[:, :3, :5].any()


@every_space
def test_how_many_levels_go_into_a_call_is_a_matter_of_speed(sd1, space):
    one, many = (invert(sd1, space, levels_at_once=n, source_cfg=2.0) for n in (1, 8))
    assert torch.equal(one[0].latents, many[0].latents)
    assert relative(one[0].denoised, many[0].denoised) < BATCHED
    assert one[1].rows == many[1].rows == 2 * STEPS


def test_a_source_with_spans_of_steps_is_not_batched_over_levels(sd1):
    cat, sofa = (agree.encode(sd1.clip, text) for text in ("a red cat", "a sofa"))
    parts = spans(cat, sofa, 0.8)
    one, many = (
        invert(sd1, EDIT_FRIENDLY, positive=parts, levels_at_once=n)[0].denoised for n in (1, 8)
    )
    assert torch.equal(one, many)
    for whole in (cat, sofa):  # both spans are heard
        assert relative(invert(sd1, EDIT_FRIENDLY, positive=whole)[0].denoised, one) > 1e-3


@every_space
def test_seeds_are_those_of_the_noise(sd1, space):
    first, same, other = (invert(sd1, space, seed=n)[0] for n in (1, 1, 2))
    assert torch.equal(first.latents, same.latents) and torch.equal(first.denoised, same.denoised)
    edits = [edit(request(sd1, trajectory))[0] for trajectory in (first, other)]
    assert relative(*edits) > 1e-3


@every_space
def test_a_batch_of_prompts_edits_one_picture(exact_sd1, space):
    trajectory, _ = invert(exact_sd1, space)
    texts = (TARGET, "a sofa")
    both = [
        [
            torch.cat([words(exact_sd1, text)[0][0] for text in texts]),
            words(exact_sd1, TARGET)[0][1],
        ]
    ]
    latent, _, spent, _ = edit(request(exact_sd1, trajectory, both))
    alone = torch.cat([edit(request(exact_sd1, trajectory, text))[0] for text in texts])
    assert relative(latent, alone) < agree.NEIGHBOURS
    assert spent.rows == 2 * 2 * STEPS


@every_space
def test_a_stored_chain_edits_as_the_fresh_one_does(sd1, space, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    trajectory, _ = invert(sd1, space)
    stored = load_trajectory(f"{save_trajectory(trajectory, 'chain').name} [output]")
    assert stored.recipe == trajectory.recipe
    first, second = (edit(request(sd1, t)) for t in (trajectory, stored))
    assert torch.equal(first[0], second[0])
    assert first[2].rows == second[2].rows == 2 * STEPS
    unedited, _, spent, _ = edit(request(sd1, stored, SOURCE, cfg=1.0))
    assert torch.equal(unedited, trajectory.origin) and spent.rows == 0


@every_space
def test_the_guider_walks_as_edit_does(sd1, space):
    trajectory, _ = invert(sd1, space)
    asked = request(sd1, trajectory)
    start = trajectory.in_host_scale(trajectory.start)
    out = sample(
        sd1, None, torch.zeros_like(start), start, trajectory.falling_sigmas, EditGuider(asked)
    )
    assert relative(out, edit(asked)[0]) < 1e-4


# --- the nodes


def execute(sd1, node, **changes):
    wires = {
        "model": sd1.model,
        "positive": words(sd1, SOURCE),
        "latent": {"samples": latent_for(sd1)},
    }
    widgets = {
        "steps": 10,
        "scheduler": "simple",
        "strength": 1.0,
        "source_cfg": 1.0,
        "seed": 1,
        "source_batch": 8,
    }
    own = {"skip": 6} if node is InvertEditFriendly else {"eta": 0.1}
    return node.execute(**{**wires, **widgets, **own, **changes})


def test_skipped_steps_cost_nothing_and_are_those_that_strength_leaves_out(sd1):
    made = execute(sd1, InvertEditFriendly)
    trajectory, leftover, sigmas, _ = made.args
    assert made.ui["rows"] == [4]
    assert torch.equal(sigmas, schedule(sd1.model, "simple", 10, 1.0)[6:])
    assert torch.equal(sigmas, schedule(sd1.model, "simple", 4, 0.4))
    assert torch.equal(
        execute(sd1, InvertEditFriendly, steps=4, strength=0.4, skip=0).args[0].latents,
        trajectory.latents,
    )
    given = schedule(sd1.model, "simple", 10, 1.0)
    assert torch.equal(execute(sd1, InvertEditFriendly, sigmas=given, steps=3).args[2], sigmas)
    assert torch.equal(leftover["samples"], trajectory.in_host_scale(trajectory.start))


@pytest.mark.parametrize("skip", [10, 11])
def test_a_skip_that_leaves_no_step_is_refused(sd1, skip):
    with pytest.raises(PalimpsestError, match=rf"skip is {skip}, of 10 .* set skip to 0 to 9"):
        execute(sd1, InvertEditFriendly, skip=skip)
    assert len(below_skip(torch.arange(11), 9)) == 2


@pytest.mark.parametrize("node", [InvertEditFriendly, InvertCycleDiffusion])
def test_guidance_of_the_source_needs_its_other_end(sd1, node):
    with pytest.raises(PalimpsestError, match=r"source_cfg is 3\.5, which needs a negative"):
        execute(sd1, node, source_cfg=3.5)
    made = execute(sd1, node, source_cfg=3.5, negative=words(sd1, ""))
    assert made.ui["rows"] == [2 * made.args[0].steps]
    assert made.args[0].recipe.source_cfg == 3.5


def test_eta_of_cyclediffusion_is_that_of_the_edit(sd1):
    assert execute(sd1, InvertCycleDiffusion, eta=0.4).args[0].recipe.eta == 0.4
    for eta in (0.0, 1.2):
        with pytest.raises(
            PalimpsestError, match=rf"sde / ode \(eta\) is {eta}, it must be .* from 0\.01 to 1:"
        ):
            execute(sd1, InvertCycleDiffusion, eta=eta)


@pytest.mark.parametrize("node", [InvertEditFriendly, InvertCycleDiffusion])
def test_a_call_of_no_level_is_refused(sd1, node):
    with pytest.raises(PalimpsestError, match=r"source_batch is 0, it must be .* from 1 to 256"):
        execute(sd1, node, source_batch=0)


def test_a_masked_latent_is_sent_to_edit(sd1):
    latent = {"samples": latent_for(sd1), "noise_mask": torch.ones(1, 64, 64)}
    with pytest.raises(PalimpsestError, match="give the mask to Edit"):
        execute(sd1, InvertEditFriendly, latent=latent)
