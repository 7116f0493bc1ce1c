"""pix2pix-zero on a loaded model: one source row, batches, guests, the guider; or one sentence."""

from dataclasses import replace

import pytest
import torch
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.edits.guider import EditGuider
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.nodes.inversions.ddim import InvertDDIM
from palimpsest.nodes.pix2pix_zero import Pix2PixZeroNode
from palimpsest.pipelines.attention import pix2pix_zero
from palimpsest.pipelines.attention.pix2pix_zero import Pix2PixZero
from palimpsest.pipelines.correction import ADD_SOURCE, DIRECT_INVERSION, UNCORRECTED
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree, flow
from palimpsest.tests.host.edits.test_branches import sample
from palimpsest.tests.host.edits.test_control_seams import request_on
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

STEPS = 4

#: In these tiny networks maps are worth little in one and much in another.
STRENGTH = {"sd1": 5.0, "sd2": 0.1, "sdxl": 0.02}
CONTROL = Pix2PixZero(STRENGTH["sd1"])


def bound(sd1, setting=None, control=CONTROL, **changes):
    """A request of an edit under the control."""
    made, _ = agree.request(sd1, setting or agree.Setting(latent_for(sd1), keep_source=False))
    return replace(made, control=BoundControl(control, name="pix2pix-zero"), **changes)


def headless(folder, loaded, setting):
    """The edit without ComfyUI, where no one runs a network in inference mode."""
    sigmas = schedule(loaded.model, "simple", setting.steps, setting.strength)
    scale = loaded.model.model.latent_format.scale_factor
    with torch.inference_mode(False):
        latent = setting.latent.clone()
        return agree.in_diffusers(folder, replace(setting, latent=latent), sigmas, scale)


@pytest.fixture
def use(monkeypatch):
    """Put the control where the edits of `agree` take Prompt-to-Prompt."""
    return lambda control: monkeypatch.setattr(agree, "words", lambda *_: control)


@pytest.mark.parametrize("correction", [DIRECT_INVERSION, UNCORRECTED], ids=["direct", "none"])
@pytest.mark.parametrize("family", STRENGTH)
def test_both_hosts_agree_and_run_the_same_rows(request, use, family, correction):
    use(Pix2PixZero(STRENGTH[family]))
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = agree.in_comfyui(folder)
    setting = agree.Setting(latent_for(loaded), correction=correction)
    ours, _, rows = agree.in_comfy(loaded, setting)
    theirs, _, their_rows = headless(folder, loaded, setting)
    assert relative(ours, theirs) < HOSTS_AGREE
    assert rows == their_rows == (STEPS, STEPS * (2 + 2 + 2))
    free, _, _ = agree.in_comfy(loaded, replace(setting, control=False))
    assert relative(ours, free) > 10 * HOSTS_AGREE


def test_beside_the_source_as_negative_one_row_serves_both_branches(sd1):
    made = bound(sd1)
    assert edit(replace(made, negative=made.source))[2].rows == STEPS * (1 + 2 + 2)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_both_hosts_agree_at_any_guidance(sd1, sd1_folder, use, cfg):
    use(CONTROL)
    setting = agree.Setting(latent_for(sd1), cfg=cfg, correction=ADD_SOURCE)
    ours, _, rows = agree.in_comfy(sd1, setting)
    theirs, _, their_rows = headless(sd1_folder, sd1, setting)
    assert relative(ours, theirs) < HOSTS_AGREE
    assert rows == their_rows


def test_a_batch_of_pictures_is_its_pictures(sd1, use):
    use(CONTROL)
    two = latent_for(sd1, batch=2)
    together = agree.in_comfy(sd1, agree.Setting(two))[0]
    for row in range(2):
        alone = agree.in_comfy(sd1, agree.Setting(two[row : row + 1]))[0]
        assert relative(together[row : row + 1], alone) < 1e-4


def test_the_model_is_as_it_was(sd1):
    made = bound(sd1)
    plain = edit(replace(made, control=None))[0]
    before = {name: tensor.clone() for name, tensor in sd1.model.model.state_dict().items()}
    moved = edit(made)[0]
    assert all(torch.equal(t, before[n]) for n, t in sd1.model.model.state_dict().items())
    assert not sd1.model.weight_wrapper_patches
    assert torch.equal(edit(replace(made, control=None))[0], plain)
    assert torch.equal(edit(made)[0], moved)
    assert not moved.requires_grad


def test_guidance_of_other_nodes_sees_one_point_and_both_branches(sd1):
    """What it is handed is where the step goes on from, and guesses for that point."""
    seen = []

    def look(args):
        noise = (args["input"] - args["cond_denoised"]) / args["sigma"].view(-1, 1, 1, 1)
        seen.append((args["input"].clone(), noise))
        return args["denoised"]

    model = sd1.model.clone()
    model.set_model_sampler_post_cfg_function(look)
    made = bound(sd1)
    watched = edit(replace(made, model=model))[0]
    assert len(seen) == STEPS
    assert relative(watched, edit(made)[0]) < 1e-6


def test_edit_guider_walks_the_same_way(sd1):
    made = bound(sd1)
    ours = edit(made)[0]
    start = made.trajectory.in_host_scale(made.trajectory.start)
    guider, sigmas = EditGuider(made), made.trajectory.falling_sigmas
    walked = sample(sd1, None, torch.zeros_like(start), start, sigmas, guider)
    assert relative(walked, ours) < 1e-4
    assert relative(ours, edit(replace(made, control=None))[0]) > 1e-2


def test_features_of_the_inversion_serve_it_where_the_source_is_the_negative(sd1):
    made = bound(sd1)
    asked = {"model": sd1.model, "positive": made.source, "latent": {"samples": latent_for(sd1)}}
    levels = {"steps": STEPS, "scheduler": "simple", "strength": 0.35, "cfg": 1.0}
    usual = asked | levels | {"convention": "current", "refinement": 0}
    kept = {"control": made.control, "source_features": "memory"}
    chains = [InvertDDIM.execute(**usual, **more).args[0] for more in ({}, kept)]
    done = [edit(replace(made, trajectory=t, negative=made.source)) for t in chains]
    assert [made[2].rows for made in done] == [STEPS * 5, STEPS * 4 + 1]
    assert relative(done[1][0], done[0][0]) < 1e-5


@pytest.mark.parametrize("role", ["target", "negative"])
@pytest.mark.parametrize("key", ["control", "mask", "area"])
def test_what_no_gradient_goes_with_is_refused(sd1, role, key):
    made = bound(sd1)
    ((embedding, more),) = getattr(made, role)
    with pytest.raises(PalimpsestError, match=f"The {role} conditioning carries .*pix2pix-zero"):
        edit(replace(made, **{role: [[embedding, more | {key: object()}]]}))


@pytest.mark.parametrize("role", ["source", "target", "negative"])
def test_prompts_of_other_lengths_are_refused(sd1, role):
    made, long = bound(sd1), agree.encode(sd1.clip, "cat " * 100)
    with pytest.raises(PalimpsestError, match="equally long prompts"):
        edit(replace(made, **{role: long}))


def test_where_memory_runs_out_one_sentence_says_what_to_do(sd1, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = bound(sd1)
    monkeypatch.setattr(pix2pix_zero, "map_loss", fail)
    with pytest.raises(PalimpsestError, match=r"pix2pix-zero ran out of memory: .* edit without"):
        edit(made)
    monkeypatch.undo()
    assert edit(made)[2].rows == STEPS * 6  # nothing is left behind


def test_a_model_that_predicts_a_flow_is_refused_by_its_name():
    made = request_on(flow.make_flux(), None)
    with pytest.raises(PalimpsestError, match="pix2pix-zero needs a UNet with cross-attention"):
        edit(replace(made, control=BoundControl(CONTROL, name="pix2pix-zero")))


# -- the node ------------------------------------------------------------------------------------


def made_by_node(loaded, **texts):
    usual = {"source": "a red cat", "target": "a blue cat", "xa_guidance": 0.2}
    return Pix2PixZeroNode.execute(clip=loaded.clip, **(usual | texts)).args


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_between_two_prompts_the_target_is_the_target_prompt(request, family):
    loaded = agree.in_comfyui(request.getfixturevalue(f"{family}_folder"))
    control, source, target = made_by_node(loaded)
    assert control.control == Pix2PixZero(0.2)
    for made, text in ((source, "a red cat"), (target, "a blue cat")):
        ((own, own_more),), ((known, more),) = made, agree.encode(loaded.clip, text)
        torch.testing.assert_close(own, known, atol=1e-5, rtol=1e-5)
        assert own_more.keys() == more.keys()
        if more["pooled_output"] is not None:
            torch.testing.assert_close(
                own_more["pooled_output"], more["pooled_output"], atol=1e-5, rtol=1e-5
            )


def test_between_sentences_it_is_the_source_and_the_difference_of_their_means(sd1):
    before, after = ["a cat", "the red cat"], ["a dog", "the dog on a mat", "a photo of a dog"]

    def mean(texts):
        return sum(agree.encode(sd1.clip, text)[0][0] for text in texts) / len(texts)

    lists = {"source_sentences": "\n a cat\n\nthe red cat ", "target_sentences": "\n".join(after)}
    _, ((source, _),), ((target, _),) = made_by_node(sd1, **lists)
    torch.testing.assert_close(target, source + mean(after) - mean(before), atol=1e-5, rtol=1e-5)
    assert relative(target, source) > 0.01


@pytest.mark.parametrize("given", ["source_sentences", "target_sentences"])
def test_an_empty_list_is_the_prompt_of_its_side(sd1, given):
    prompt = {"source_sentences": "a red cat", "target_sentences": "a blue cat"}
    lists = {given: "a dog\nthe dog"}
    _, _, ((short, _),) = made_by_node(sd1, **lists)
    _, _, ((whole, _),) = made_by_node(sd1, **(prompt | lists))
    assert torch.equal(short, whole)


@pytest.mark.parametrize("given", ["source_sentences", "target_sentences", "target"])
def test_a_text_that_is_longer_by_a_chunk_is_refused(sd1, given):
    with pytest.raises(PalimpsestError, match=r"takes 154 tokens, the source prompt 77"):
        made_by_node(sd1, **{given: "cat " * 100})
