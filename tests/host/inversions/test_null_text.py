"""Null-text inversion in both hosts."""

from dataclasses import replace

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.inversions.null_text import invert_null_text
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.diffusers.null_text import invert_null_text as invert_headless
from palimpsest.pipelines.correction import DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.denoiser import RowCount
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.negative_embedding import NegativeEmbedding
from palimpsest.pipelines.inversion.null_text import NullText
from palimpsest.pipelines.trajectory_file import from_tensors, to_tensors
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.flow import make_flux, prompt

FEATURE = "Invert (Null-text)"
STEPS, CFG = 3, 3.0
INNER = 2
SETTINGS = NullText(CFG, inner_steps=INNER, epsilon=0.0)


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def picture_of(loaded, latent=None, model=None, positive=None, negative=None):
    model = model or loaded.model
    source, empty = (agree.encode(loaded.clip, text) for text in (agree.SOURCE, ""))
    latent = latent_for(loaded) if latent is None else latent
    sigmas = schedule(model, "simple", STEPS, 0.35)
    return Picture(model, positive or source, negative or empty, latent, sigmas, 1.0, FEATURE)


def edit_of(loaded, trajectory, target=agree.TARGET, correction=DIRECT_INVERSION, cfg=CFG):
    source, target, empty = (agree.encode(loaded.clip, t) for t in (agree.SOURCE, target, ""))
    return EditRequest(
        loaded.model,
        trajectory,
        source,
        target,
        empty,
        cfg,
        None,
        None,
        correction,
        keep_source=True,
    )


@pytest.fixture(scope="module")
def learned(sd1):
    """What is learned of the picture: the trajectory, what it cost, and how near it came."""
    with torch.inference_mode():
        return invert_null_text(picture_of(sd1), SETTINGS)


@pytest.fixture(scope="module")
def untouched(sd1):
    """The same without a step of learning."""
    with torch.inference_mode():
        return invert_null_text(picture_of(sd1), replace(SETTINGS, inner_steps=0))


@pytest.mark.parametrize("kind", ["sd1_folder", "sd2_folder", "sdxl_folder"])
def test_both_hosts_learn_the_same(kind, request):
    folder = request.getfixturevalue(kind)
    loaded = agree.in_comfyui(folder)
    picture = picture_of(loaded)
    ours, spent, learned = invert_null_text(picture, SETTINGS)
    scale = loaded.model.model.latent_format.scale_factor
    with torch.inference_mode(False):
        model = agree.headless(folder)
        size = tuple(8 * n for n in picture.samples.shape[-2:])
        source, empty = (model.prompt(t, size=size) for t in (agree.SOURCE, ""))
        sigmas, rows = picture.levels.flip(0).double().clone(), RowCount()
        x0 = picture.samples.clone() * scale
        theirs, fitted = invert_headless(model.unet, x0, source, empty, sigmas, SETTINGS, rows=rows)
    assert spent.rows == rows.rows == ours.recipe.rows == STEPS * (1 + 1 + INNER + 1)
    assert learned.inner_steps == fitted.inner_steps == INNER * STEPS
    assert relative(ours.latents, theirs.latents) < 1e-3
    assert relative(ours.image, theirs.image) < 1e-6
    assert torch.equal(ours.origin, picture.samples)
    # Learning does something on this model, or agreeing about it would say nothing.
    untouched, _, before = invert_null_text(picture, replace(SETTINGS, inner_steps=0))
    assert relative(untouched.latents[0], ours.latents[0]) > 1e-2
    assert learned.loss < before.loss
    assert not model.unet.unet.is_gradient_checkpointing


def test_the_path_is_what_the_source_walks_under_its_embeddings(sd1, learned):
    trajectory, _, _ = learned
    made = edit_of(sd1, trajectory, correction=UNCORRECTED)
    _, source, _, _ = edit(made)
    ends = trajectory.in_host_scale(trajectory.latents[0])
    assert relative(source, ends) < 1e-4
    # With the plain negative it ends elsewhere.
    plain = replace(trajectory, carried=())
    assert relative(edit(replace(made, trajectory=plain))[1], ends) > 1e-3


def test_the_edit_of_what_is_there_already_is_the_path(sd1, learned):
    trajectory, _, _ = learned
    latent, _, _, _ = edit(edit_of(sd1, trajectory, target=agree.SOURCE))
    assert relative(latent, trajectory.in_host_scale(trajectory.latents[0])) < 1e-4
    assert relative(latent, trajectory.origin) < 0.5


def test_the_variants_differ_in_what_the_target_reads(sd1, learned):
    picture = picture_of(sd1)
    made = {"null-text": learned[0]} | {
        variant: invert_null_text(picture, SETTINGS, variant=variant)[0]
        for variant in ("source only", "null-latent")
    }
    paths = [t.latents for t in made.values()]
    assert torch.equal(paths[0], paths[1]) and torch.equal(paths[0], paths[2])
    assert made["null-latent"].find(NegativeEmbedding) is None
    edits = {variant: edit(edit_of(sd1, t))[0] for variant, t in made.items()}
    assert torch.equal(edits["source only"], edits["null-latent"])
    assert relative(edits["null-text"], edits["source only"]) > 1e-3
    # Null-latent has nothing that belongs to one guidance.
    edit(edit_of(sd1, made["null-latent"], cfg=2.0))


def test_an_edit_at_another_cfg_is_refused(sd1, learned):
    trajectory, _, _ = learned
    sentence = "was learned at cfg 3, the edit's cfg is 7.5: set it to 3 too"
    with pytest.raises(PalimpsestError, match=sentence):
        edit(edit_of(sd1, trajectory, cfg=7.5))
    with pytest.raises(PalimpsestError, match=sentence):
        EditGuider(edit_of(sd1, trajectory, cfg=7.5))


def test_a_file_keeps_all_that_the_edit_needs(sd1):
    trajectory, _, _ = invert_null_text(picture_of(sd1), SETTINGS, variant="source only")
    tensors, about = to_tensors(trajectory)
    assert about["palimpsest_trajectory"] == "3"
    back = from_tensors(tensors, about, name="a file")
    assert back.recipe == trajectory.recipe
    learned = [t.find(NegativeEmbedding) for t in (back, trajectory)]
    assert learned[0].settings == learned[1].settings == {"rows": "source", "cfg": CFG}
    assert torch.equal(edit(edit_of(sd1, back))[0], edit(edit_of(sd1, trajectory))[0])


def test_the_same_picture_twice_is_the_same_bit_for_bit(sd1, learned):
    first, second = learned[0], invert_null_text(picture_of(sd1), SETTINGS)[0]
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(*(t.find(NegativeEmbedding).embedding for t in (first, second)))


def test_pictures_of_a_batch_are_learned_as_if_alone(sd1):
    latent = latent_for(sd1, batch=2)
    settings = NullText(CFG, inner_steps=3, epsilon=0.15)
    both, spent, learned = invert_null_text(picture_of(sd1, latent), settings)
    alone = [invert_null_text(picture_of(sd1, latent[[b]]), settings) for b in range(2)]
    for b, (one, _, _) in enumerate(alone):
        assert relative(both.latents[:, [b]], one.latents) < 1e-3
    assert learned.inner_steps == sum(one.inner_steps for _, _, one in alone)
    assert learned.inner_steps < 2 * 3 * STEPS  # one of them stopped early
    assert spent.rows == sum(one.rows for _, one, _ in alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_too(sd1, learned, untouched, dtype):
    half = sd1.model.clone()
    half.set_model_compute_dtype(dtype)
    trajectory, _, fitted = invert_null_text(picture_of(sd1, model=half), SETTINGS)
    embedding = trajectory.find(NegativeEmbedding).embedding
    assert embedding.dtype == trajectory.latents.dtype == torch.float32
    assert fitted.loss < 0.9 * untouched[2].loss
    full = learned[0].latents
    assert relative(trajectory.latents, full) < 0.5 * relative(untouched[0].latents, full)


def test_what_it_cannot_learn_from_is_refused(sd1):
    flux = make_flux()
    sigmas, latent = torch.tensor([0.6, 0.3, 0.0]), torch.zeros(1, 16, 8, 8)
    flow = Picture(flux, prompt(1), prompt(2), latent, sigmas, 1.0, FEATURE)
    with pytest.raises(PalimpsestError, match="takes models that predict noise or v"):
        invert_null_text(flow, SETTINGS)
    source = agree.encode(sd1.clip, agree.SOURCE)
    with pytest.raises(PalimpsestError, match="The negative conditioning has 2 entries"):
        invert_null_text(picture_of(sd1, negative=source + source), SETTINGS)
    controlled = [[source[0][0], source[0][1] | {"control": object()}]]
    with pytest.raises(PalimpsestError, match="The positive conditioning carries a ControlNet"):
        invert_null_text(picture_of(sd1, positive=controlled), SETTINGS)


def failing(model, at, error):
    """The model with a network that raises at its `at`-th call, and the calls it took."""
    calls = []

    def fail(executor, *args, **options):
        calls.append(len(args[0]))
        if len(calls) == at:
            if error is None:
                comfy.model_management.interrupt_current_processing()
            else:
                raise error
        return executor(*args, **options)

    model = model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, fail)
    return model, calls


def test_out_of_memory_is_one_sentence_and_the_next_run_is_whole(sd1, learned):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    model, calls = failing(sd1.model, STEPS + 3, error)
    with pytest.raises(PalimpsestError, match="ran out of memory: use a smaller picture") as told:
        invert_null_text(picture_of(sd1, model=model), SETTINGS)
    assert comfy.model_management.is_oom(told.value)
    assert len(calls) == STEPS + 3
    again, _, _ = invert_null_text(picture_of(sd1), SETTINGS)
    assert torch.equal(again.latents, learned[0].latents)


def test_cancel_stops_before_the_next_call_and_the_next_run_is_whole(sd1, learned):
    model, calls = failing(sd1.model, STEPS + 3, None)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        invert_null_text(picture_of(sd1, model=model), SETTINGS)
    assert len(calls) == STEPS + 3
    again, _, _ = invert_null_text(picture_of(sd1), SETTINGS)
    assert torch.equal(again.latents, learned[0].latents)


def test_what_another_node_hooked_in_without_gradients_is_one_sentence(sd1):
    table = torch.ones(1)  # a tensor of inference mode, as a node would hold it

    def scale(q, k, v, extra):
        return q * table

    model = sd1.model.clone()
    model.set_model_attn2_replace(scale, "output", 3)
    with pytest.raises(PalimpsestError, match="what another node hooked into the model"):
        invert_null_text(picture_of(sd1, model=model), SETTINGS)
