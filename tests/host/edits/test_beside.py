"""A source's row in one call with its target's: the same edit, no more rows, next to no bank."""

from dataclasses import replace
from math import inf

import pytest
import torch
from comfy.conds import CONDCrossAttn
from comfy.model_patcher import ModelPatcher
from palimpsest.hosts.comfy.beside import can_run_beside
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.edits.lent import Lent as ComfyLent
from palimpsest.hosts.diffusers.lent import Lent as DiffusersLent
from palimpsest.pipelines.attention import bank
from palimpsest.pipelines.attention.bank import Bank
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for, relative
from palimpsest.tests.host.edits.test_source_controls import headless
from palimpsest.tests.host.edits.test_stacks import blended

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

STEPS = 4

#: The same kernels for other sizes of batch.
SIZES = 1e-4


@pytest.fixture(params=["words", "blend"])
def words(request, monkeypatch):
    """Prompt-to-Prompt alone, and with LocalBlend."""
    if request.param == "blend":
        monkeypatch.setattr(agree, "words", blended)


@pytest.fixture
def apart(monkeypatch):
    """From now on the source runs before the target."""

    def stop():
        monkeypatch.setattr(bank, "BESIDE_BOTH", inf)  # but not the branches from one another
        for host in (ComfyLent, DiffusersLent):
            monkeypatch.setattr(host, "pairs", lambda *_: False)

    return stop


@pytest.fixture
def held(monkeypatch):
    """The most places that a bank held in a call."""
    most = [0]
    plain = Bank._keep

    def keep(bank, site, recorded):
        try:
            plain(bank, site, recorded)
        finally:
            most[0] = max(most[0], len(bank._stored))

    monkeypatch.setattr(Bank, "_keep", keep)
    return most


def calls_of(network):
    """Rows of every call of a network, and how to look no longer."""
    sizes = []
    return sizes, network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_it_is_the_edit_of_a_source_that_ran_before(request, words, apart, held, family):
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = agree.in_comfyui(folder)
    setting = agree.Setting(latent_for(loaded))
    made, _ = agree.request(loaded, setting)
    sizes, hook = calls_of(loaded.model.model.diffusion_model)
    ours, (theirs, _, their_rows) = edit(made), headless(folder, loaded, setting)
    assert held == [1]
    together = [*sizes]
    sizes.clear()
    apart()
    before, (there, *_) = edit(made), headless(folder, loaded, setting)
    hook.remove()
    assert held[0] > 1
    assert relative(ours.latent, before.latent) < SIZES and relative(theirs, there) < SIZES
    assert ours.spent.rows == before.spent.rows == their_rows[1]
    if ours.bounds is not None:
        assert torch.equal(ours.bounds, before.bounds)
    read = before.spent.rows - 2 * STEPS
    assert together == [2, 1] * read + [2] * (STEPS - read)
    assert sizes == [1, 2] * read + [2] * (STEPS - read)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_row_of_both_branches_that_has_no_room_runs_beside_each(
    request, monkeypatch, held, family
):
    monkeypatch.setattr(agree, "words", lambda *_: PlugAndPlay(layers=(0.0, 1.0)))
    folder = request.getfixturevalue(f"{family}_folder")
    loaded = agree.in_comfyui(folder)
    setting = agree.Setting(latent_for(loaded))
    made, _ = agree.request(loaded, setting)
    roomy, (there, _, plain_rows) = edit(made), headless(folder, loaded, setting)
    read = roomy.spent.rows - 2 * STEPS
    monkeypatch.setattr(bank, "BESIDE_ONE", 1.5)
    held[0] = 0
    sizes, hook = calls_of(loaded.model.model.diffusion_model)
    ours, (theirs, _, rows) = edit(made), headless(folder, loaded, setting)
    hook.remove()
    assert relative(ours.latent, roomy.latent) < SIZES and relative(theirs, there) < SIZES
    # Once in vain; then twice a step, until only the features are read, which have room.
    again = sum(size == 1 for size in sizes[1:])
    assert sizes[:3] == [1, 2, 2] and held[0] <= 2
    assert ours.spent.rows == sum(sizes) == roomy.spent.rows + 1 + sizes[1:].count(2) // 2 - again
    assert rows[1] - plain_rows[1] == ours.spent.rows - roomy.spent.rows and read > again


def test_branches_that_run_apart_make_the_same_edit(sd1, sd1_folder, monkeypatch):
    monkeypatch.setattr(agree, "words", lambda *_: PlugAndPlay(layers=(0.0, 1.0)))
    setting = agree.Setting(latent_for(sd1))
    made, _ = agree.request(sd1, setting)
    monkeypatch.setattr(bank, "BESIDE_BOTH", inf)
    batch, (there, *_) = edit(made), headless(sd1_folder, sd1, setting)
    monkeypatch.setattr(bank, "BESIDE_BOTH", 0)
    sizes, hook = calls_of(sd1.model.model.diffusion_model)
    ours, (theirs, _, rows) = edit(made), headless(sd1_folder, sd1, setting)
    hook.remove()
    read = batch.spent.rows - 2 * STEPS
    assert sizes == [1, 1, 1] * read + [2] * (STEPS - read)
    assert ours.spent.rows == batch.spent.rows == rows[1]
    assert relative(ours.latent, batch.latent) < SIZES and relative(theirs, there) < SIZES


@pytest.mark.parametrize("cfg", [0.0, 1.0])
def test_without_a_branch_of_the_guidance_it_is_the_same(sd1, words, apart, cfg):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1), cfg=cfg))
    ours = edit(made)
    apart()
    assert relative(ours.latent, edit(made).latent) < SIZES


def test_a_batch_of_pictures_runs_beside_its_sources(sd1, words, apart):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1, batch=2)))
    sizes, hook = calls_of(sd1.model.model.diffusion_model)
    ours = edit(made)
    hook.remove()
    assert set(sizes[:2]) == {4, 2}
    apart()
    assert relative(ours.latent, edit(made).latent) < SIZES


def test_where_memory_is_short_the_source_still_runs_first(sd1, words, monkeypatch, held):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1)))
    whole = edit(made)
    assert held == [1]
    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda *_: 0)
    sizes, hook = calls_of(sd1.model.model.diffusion_model)
    split = edit(made)
    hook.remove()
    assert set(sizes) == {1} and len(sizes) == whole.spent.rows and held[0] > 1
    assert relative(split.latent, whole.latent) < 1e-4


@pytest.mark.parametrize(
    "change",
    [
        {"timestep_start": 10.0},
        {"control": object()},
        {"hooks": object()},
        {"area": (4, 4, 0, 0)},
        {"mask": torch.ones(1, 8, 8)},
        {"model_conds": {"c_crossattn": CONDCrossAttn(torch.zeros(1, 7, 32)), "y": None}},
        {"model_conds": {"c_crossattn": CONDCrossAttn(torch.zeros(1, 77, 16))}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_entries_that_core_would_not_put_into_one_batch_run_apart(change):
    plain = {"model_conds": {"c_crossattn": CONDCrossAttn(torch.zeros(1, 77, 32))}}
    other = {**plain, **change}
    both = {"positive": [plain], "negative": [plain]}
    own = {"cond": "cond", "uncond": "uncond"}
    assert can_run_beside(both, both, own)
    for role, branch in (("cond", "positive"), ("uncond", "negative")):
        for entries in ([other], [plain, plain], []):
            wrong = both | {branch: entries}
            assert not can_run_beside(both, wrong, own) and not can_run_beside(wrong, both, own)
            one = {"cond": role, "uncond": role}
            assert not can_run_beside(wrong, both, one)
            assert can_run_beside(wrong, both, {"cond": "uncond" if role == "cond" else "cond"})
            assert not can_run_beside(both, wrong, {role: "cond"})


def test_what_other_nodes_put_on_the_model_sees_the_source_run_before(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1)))
    seen = []

    def patch(x, extra):
        seen.append([*extra["cond_or_uncond"]])
        return x

    model = sd1.model.clone()
    model.set_model_attn1_patch(lambda q, k, v, extra: (patch(q, extra), k, v))
    edit(replace(made, model=model))
    assert seen and all(sorted(rows) in ([0], [0, 1]) for rows in seen)
