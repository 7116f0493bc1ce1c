"""A picture that says its number in a batch has that number's noise, as in core's samplers."""

import comfy.sample
import pytest
import torch
from palimpsest.hosts.comfy.latents import batch_index_of, with_samples
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.nodes.drag import CopyPaste
from palimpsest.nodes.inpaint import Inpaint
from palimpsest.nodes.inversions.cyclediffusion import InvertCycleDiffusion
from palimpsest.nodes.inversions.edit_friendly import InvertEditFriendly
from palimpsest.nodes.sde import CycleSDE, DiffEdit
from palimpsest.nodes.sdedit import SDEdit, SDEditNoise
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.noise import seeded
from palimpsest.pipelines.points import DragPoints
from palimpsest.tests.host import flow, shapes
from palimpsest.tests.host.edits.test_edit import relative

from nodes import LatentFromBatch, RepeatLatentBatch

SOURCE, TARGET, EMPTY = (flow.prompt(seed) for seed in (1, 2, 3))
SEED = 5
#: float32 in a batch of another size, through a network of random weights.
NETWORK = 1e-5


@pytest.fixture(autouse=True)
def as_core_runs_nodes():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def flux():
    with torch.inference_mode():
        return flow.make_flux()


@pytest.fixture(scope="module")
def batch(flux):
    """Three pictures, which differ and have no numbers."""
    with torch.inference_mode():
        return {"samples": shapes.latent_for(flux, batch=3)}


def taken(latent, first, length=1):
    """What core's Latent From Batch gives: it writes the numbers down."""
    return LatentFromBatch().frombatch(latent, first, length)[0]


def walk():
    return {"steps": 8, "scheduler": "simple", "t0": 0.5, "source_batch": 8, "seed": SEED}


def noising():
    return {"unit": "denoise", "strength": 0.5, "steps": 3, "scheduler": "simple", "seed": SEED}


def painting(model, latent):
    return {"model": model, "positive": TARGET, "negative": EMPTY, "latent": latent, "cfg": 2.0}


def prompts(model, latent):
    return {"model": model, "source": SOURCE, "target": TARGET, "negative": EMPTY, "latent": latent}


def picture(model, latent):
    asked = {"model": model, "positive": SOURCE, "latent": latent, "steps": 4}
    return {**asked, "scheduler": "simple", "strength": 0.6, "source_cfg": 1.0, "seed": SEED}


def cycle_sde(model, latent):
    asked = {"cfg": 2.0, "source_cfg": 1.0, "process": "sde"}
    return CycleSDE.execute(**prompts(model, latent), **walk(), **asked)


def diffedit(model, latent):
    asked = {"cfg": 2.0, "process": "sde", "mask_draws": 2, "mask_ratio": 1.0}
    return DiffEdit.execute(**prompts(model, latent), **walk(), **asked, mask_strength=0.5)


def sdedit(model, latent):
    return SDEdit.execute(**painting(model, latent), **noising(), eta=1.0, repeats=2)


def sdedit_noise(model, latent):
    return SDEditNoise.execute(model=model, latent=latent, **noising())


def inpaint(model, latent):
    asked = {"steps": 3, "scheduler": "simple", "strength": 0.5, "process": "sde", "order": "1"}
    mask = torch.ones(1, 32, 48)
    return Inpaint.execute(**painting(model, latent), **asked, mask=mask, seed=SEED)


def copy_paste(model, latent):
    points = DragPoints((48, 32), (((12, 12), (36, 12)), ((12, 20), (36, 20))))
    brush = {"radius": 1, "alpha": 1.0, "beta": 0.3, "seed": SEED}
    levels = schedule(model, "simple", 2, 0.5)
    return CopyPaste.execute(model=model, latent=latent, sigmas=levels, points=points, **brush)


def edit_friendly(model, latent):
    return InvertEditFriendly.execute(**picture(model, latent), skip=0, source_batch=8)


def cyclediffusion(model, latent):
    return InvertCycleDiffusion.execute(**picture(model, latent), eta=0.1, source_batch=8)


PAINTED = [cycle_sde, diffedit, sdedit, sdedit_noise, inpaint, copy_paste]
SEEDED = [*PAINTED, edit_friendly, cyclediffusion]
every_node = pytest.mark.parametrize("node", SEEDED, ids=lambda node: node.__name__)


def made(node, model, latent):
    """[B, ...] what a node gives that its noise has to do with."""
    first = node(model, latent).args[0]
    return first["samples"] if isinstance(first, dict) else first.latents.movedim(1, 0)


@every_node
def test_a_picture_with_a_number_is_made_alike_alone_and_in_a_batch(node, flux, batch):
    whole = made(node, flux, taken(batch, 0, 3))
    for i in range(3):
        assert relative(made(node, flux, taken(batch, i)), whole[i : i + 1]) < NETWORK


@every_node
def test_numbers_are_what_the_noise_is_drawn_by(node, flux, batch):
    first, third = (
        made(node, flux, {"samples": batch["samples"][:1], "batch_index": [i]}) for i in (0, 2)
    )
    assert relative(first, third) > 1e-3


@every_node
def test_without_numbers_a_batch_draws_as_it_always_did(node, flux, batch, monkeypatch):
    alone = {"samples": batch["samples"][:1]}
    numbered = {**alone, "batch_index": [0]}
    # The first draw is the same; nodes of a single draw give the same picture.
    same = relative(made(node, flux, alone), made(node, flux, numbered)) < 1e-6
    assert same == (node in (sdedit_noise,))


def test_the_first_draw_is_that_of_cores_samplers(flux, batch):
    like = batch["samples"]
    for numbers in ([0, 1, 2], [2, 0, 2], [4, 1, 3]):
        core = comfy.sample.prepare_noise(like, SEED, numbers)
        assert torch.equal(seeded(SEED, tuple(numbers))(like), core)


def test_repeated_pictures_have_noise_of_their_own(flux, batch):
    """Core's Repeat Latent Batch counts on where there are numbers."""
    repeated = RepeatLatentBatch().repeat(taken(batch, 1), 2)[0]
    assert repeated["batch_index"] == [1, 2]
    pair = made(sdedit, flux, repeated)
    assert relative(pair[:1], made(sdedit, flux, taken(batch, 1))) < NETWORK
    assert relative(pair[1:], pair[:1]) > 1e-3


@pytest.mark.parametrize("node", PAINTED, ids=lambda node: node.__name__)
def test_the_numbers_are_handed_on(node, flux, batch):
    assert node(flux, taken(batch, 1)).args[0]["batch_index"] == [1]


def test_what_an_empty_latent_says_of_its_size_is_not_handed_on():
    latent = {"samples": 1, "downscale_ratio_spacial": 8, "type": "x", "batch_index": [0]}
    assert with_samples(latent, 2) == {"samples": 2, "type": "x", "batch_index": [0]}
    assert with_samples(None, 2) == {"samples": 2}


@pytest.mark.parametrize("numbers", [[0], [], [-1, 0], [1.5, 0], [10**9, 0], "ab", [True, 0], 7])
def test_numbers_that_are_none_are_refused(numbers, batch):
    latent = {"samples": batch["samples"][:2], "batch_index": numbers}
    assert batch_index_of({**latent, "batch_index": [3, 1]}) == (3, 1)
    with pytest.raises(PalimpsestError, match=r"batch_index is .* for each of its 2 pictures"):
        batch_index_of(latent)
