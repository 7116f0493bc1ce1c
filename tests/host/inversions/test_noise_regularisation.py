"""Noise regularisation as an option of Invert (DDIM): off by default, one chain in both hosts."""

from functools import partial

import pytest
import torch
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.nodes.inversions.ddim import InvertDDIM
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.noise_regularisation import NoiseRegularisation, shifts_of
from palimpsest.pipelines.trajectory_file import from_tensors, to_tensors
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import HOSTS_AGREE, latent_for, relative

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

STEPS = 4


def inverted(sd1, latent, **wishes):
    """The trajectory that the node makes of LATENT samples."""
    usual = {"steps": STEPS, "scheduler": "simple", "strength": 0.35, "cfg": 1.0}
    settings = {"convention": "destination", "refinement": 0}
    return InvertDDIM.execute(
        model=sd1.model,
        positive=agree.encode(sd1.clip, agree.SOURCE),
        latent={"samples": latent},
        **(usual | settings | wishes),
    ).args[0]


def test_it_is_off_where_nothing_is_said(sd1):
    latent = latent_for(sd1)
    made, off = inverted(sd1, latent), inverted(sd1, latent, regularisation=0)
    assert torch.equal(made.latents, off.latents)
    assert not made.recipe.regularised and not off.recipe.regularised


@pytest.mark.parametrize("convention", ["destination", "current"])
def test_both_hosts_regularise_alike(sd1, sd1_folder, convention):
    latent = latent_for(sd1)
    asked = {"convention": convention, "regularisation": 3, "regularisation_seed": 5}
    ours = inverted(sd1, latent, **asked)
    unet = agree.headless(sd1_folder).unet
    prompt = agree.headless(sd1_folder).prompt(agree.SOURCE)
    sigmas = schedule(sd1.model, "simple", STEPS, 0.35).flip(0).double()
    scale = sd1.model.model.latent_format.scale_factor
    theirs = unet.invert(
        latent * scale,
        prompt,
        sigmas,
        convention=convention,
        regularise=partial(NoiseRegularisation(3), shift=shifts_of(5)),
    )
    assert relative(ours.latents, theirs.latents) < HOSTS_AGREE
    assert ours.recipe.regularised and theirs.recipe.regularised
    assert ours.recipe.rows == theirs.recipe.rows == STEPS
    plain = inverted(sd1, latent, convention=convention)
    assert relative(ours.latents, plain.latents) > 10 * HOSTS_AGREE


def test_the_seed_decides_and_a_batch_is_its_pictures(sd1):
    two = latent_for(sd1, batch=2)
    asked = {"regularisation": 5, "regularisation_seed": 3}
    together = inverted(sd1, two, **asked).latents
    assert torch.equal(together, inverted(sd1, two, **asked).latents)
    assert not torch.equal(together, inverted(sd1, two, regularisation=5).latents)
    for row in range(2):
        alone = inverted(sd1, two[row : row + 1], **asked).latents
        assert relative(together[:, row : row + 1], alone) < 1e-5


def test_a_file_says_that_it_was(sd1):
    made = inverted(sd1, latent_for(sd1), regularisation=1)
    tensors, about = to_tensors(made)
    assert about["palimpsest_trajectory"] == "1"  # whoever read such a file before still does
    assert from_tensors(tensors, about, name="a file").recipe.regularised
    without = {"recipe": about["recipe"].replace('"regularised": true, ', "")}
    assert "regularised" not in without["recipe"]
    assert not from_tensors(tensors, about | without, name="an old file").recipe.regularised


def test_it_does_not_go_with_a_refinement(sd1):
    with pytest.raises(PalimpsestError, match="set the refinement to 0, or the regularisation off"):
        inverted(sd1, latent_for(sd1), regularisation=5, refinement=2)
