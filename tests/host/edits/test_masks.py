"""Where a MASK lies on a latent: in every node that takes one, whatever the picture's sides are."""

import pytest
import torch
from palimpsest.hosts.comfy.edits.compare import CompareRequest, compare
from palimpsest.hosts.comfy.edits.drag import DragRequest, start_drag
from palimpsest.hosts.comfy.edits.edit import EditRequest
from palimpsest.hosts.comfy.edits.edit import edit as edit_along
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.masks import check_mask_fits, latent_mask
from palimpsest.hosts.comfy.schedules import part_of_schedule, schedule
from palimpsest.nodes.inpaint import Inpaint
from palimpsest.nodes.sde import CycleSDE, DiffEdit
from palimpsest.nodes.sdedit import SDEdit
from palimpsest.pipelines.copy_paste import Brush
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.points import DragPoints
from palimpsest.tests.host import flow
from palimpsest.tests.host.agree import encode

#: A picture whose sides are no multiples of 8: core cuts 3 pixels off the top and 2 off the left.
HEIGHT, WIDTH = 8 * 5 + 7, 8 * 6 + 5
ROWS, COLUMNS = 5, 6
TOP, LEFT = 3, 2


pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


@pytest.fixture(scope="module")
def picture():
    return torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def samples(sd1, picture):
    encoded = sd1.vae.encode(picture)
    assert encoded.shape == (1, 4, ROWS, COLUMNS)
    return encoded


def over_cell(row, column):
    """[1, H, W] white on the pixels that VAE Encode puts into one cell."""
    mask = torch.zeros(1, HEIGHT, WIDTH)
    y, x = TOP + 8 * row, LEFT + 8 * column
    mask[:, y : y + 8, x : x + 8] = 1
    return mask


def edit_chain(sd1, samples, mask):
    source, target, empty = prompts(sd1)
    levels = schedule(sd1.model, "simple", 4, 0.35)
    picture = Picture(sd1.model, source, empty, samples, levels, 1.0, "Invert (DDIM)")
    trajectory, _ = invert_ddim(picture, convention="destination", refinement=0)
    asked = EditRequest(
        sd1.model, trajectory, source, target, empty, 3.0, None, mask, DIRECT_INVERSION
    )
    return edit_along(asked)[0]


def cycle_sde(sd1, samples, mask):
    made = CycleSDE.execute(
        sd1.model,
        *prompts(sd1),
        10,
        "simple",
        0.3,
        3.0,
        1.0,
        "sde",
        1,
        8,
        {"samples": samples},
        mask=mask,
    )
    return made.args[0]["samples"]


def inpaint(sd1, samples, mask):
    _, target, empty = prompts(sd1)
    made = Inpaint.execute(
        sd1.model,
        target,
        empty,
        {"samples": samples},
        mask,
        3,
        "simple",
        0.3,
        3.0,
        "sde",
        "1",
        1,
    )
    return made.args[0]["samples"]


def sdedit(sd1, samples, mask):
    _, target, empty = prompts(sd1)
    made = SDEdit.execute(
        sd1.model,
        target,
        empty,
        {"samples": samples},
        "denoise",
        0.3,
        3,
        "simple",
        3.0,
        1.0,
        1,
        1,
        mask,
    )
    return made.args[0]["samples"]


def prompts(sd1):
    return [encode(sd1.clip, text) for text in ("a red cat", "a blue dog", "")]


EDITS = {"Edit": edit_chain, "Cycle-SDE": cycle_sde, "Inpaint": inpaint, "SDEdit": sdedit}
every_edit = pytest.mark.parametrize("node", EDITS)


@every_edit
@pytest.mark.parametrize("cell", [(0, 0), (1, 4), (4, 5)])
def test_a_mask_changes_the_cells_that_its_pixels_were_encoded_into(node, cell, sd1, samples):
    made = EDITS[node](sd1, samples, over_cell(*cell))
    changed = (made != samples).all(1)[0]
    assert changed.nonzero().tolist() == [list(cell)]
    assert torch.equal(made[..., ~changed], samples[..., ~changed])


@every_edit
@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (1, 1, HEIGHT, WIDTH)])
def test_a_mask_may_be_of_any_shape_that_core_takes(node, shape, sd1, samples):
    mask = over_cell(2, 3)
    usual, other = (EDITS[node](sd1, samples, m) for m in (mask, mask.reshape(shape)))
    assert torch.equal(other, usual)


def test_diffedit_finds_nothing_outside_a_mask(sd1, samples):
    source, target, empty = prompts(sd1)
    latent = {"samples": samples}
    levels = [10, "simple", 0.3, 3.0, "sde", 1, 2, 0.5, 0.5, 8]
    free, limited = (
        DiffEdit.execute(sd1.model, source, target, empty, latent, *levels, mask).args[1]
        for mask in (None, over_cell(2, 3)[0])
    )
    assert free[0, 2 * 8, 3 * 8] and free.sum() > 64
    assert limited[0, 16:24, 24:32].all() and limited.sum() == 64


def drag(sd1, picture, **wishes):
    points = DragPoints((WIDTH, HEIGHT), (((LEFT + 9, TOP + 9), (LEFT + 33, TOP + 9)),))
    _, target, empty = prompts(sd1)
    levels = part_of_schedule(sd1.model, "simple", 10, 0.3)
    asked = (target, empty, sd1.vae, picture, points, levels, Brush(1))
    return start_drag(DragRequest(sd1.model, *asked, cfg=1.0, **wishes))[1]


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (1, HEIGHT, WIDTH), (1, 1, HEIGHT, WIDTH)])
def test_a_drag_reads_mask_and_region_alike(shape, sd1, picture):
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[TOP + 8 : TOP + 16, LEFT + 8 : LEFT + 40] = 1
    made = drag(sd1, picture, mask=mask.reshape(shape), region=mask.reshape(shape))
    cells = torch.zeros(ROWS, COLUMNS)
    cells[1, 1:5] = 1
    assert torch.equal(made.mask[0, 0], cells)
    assert torch.equal(made.regions.masks[0], cells > 0)


def test_points_count_cells_of_the_models_size_on_a_narrow_picture(sd1):
    """Of 15 pixels only one cell is encoded, which still is 8 wide."""
    image = torch.rand(1, 64, 15, 3, generator=torch.Generator().manual_seed(1))
    points = DragPoints((15, 64), (((7, 8), (7, 40)),))
    _, target, empty = prompts(sd1)
    levels = part_of_schedule(sd1.model, "simple", 10, 0.3)
    region = torch.ones(64, 15)
    asked = (target, empty, sd1.vae, image, points, levels, Brush(1))
    made = start_drag(DragRequest(sd1.model, *asked, cfg=1.0, region=region))[1]
    assert made.moves[0][0].handle == (0, 1)


@pytest.mark.parametrize("shape", [(40, 48), (1, 40, 48), (1, 1, 40, 48)])
def test_compare_takes_a_mask_of_any_shape_that_core_takes(shape, sd1):
    source = torch.rand(1, 40, 48, 3, generator=torch.Generator().manual_seed(1))
    latent = sd1.vae.encode(source)
    mask = torch.zeros(shape)
    mask[..., :8, :8] = 1
    made = compare(CompareRequest(sd1.vae, source, None, latent, "a", mask=mask))
    assert made[0].masked


# --- the cells themselves


@pytest.fixture(scope="module")
def flux():
    return flow.make_flux()


def cells(mask, model, *shape):
    return latent_mask(mask, model, torch.zeros(shape))


def test_a_mask_of_another_size_is_stretched_over_the_picture(flux):
    small = torch.zeros(1, 4, 4)
    small[0, 1, 2] = 1
    wanted = torch.zeros(1, 1, 8, 16)
    wanted[..., 2:4, 8:12] = 1
    assert torch.equal(cells(small, flux, 1, 16, 8, 16), wanted)
    large = small.repeat_interleave(40, 1).repeat_interleave(40, 2)
    assert torch.equal(cells(large, flux, 1, 16, 8, 16), wanted)


def test_no_pixel_of_a_mask_that_is_flat_and_wide_gets_lost(flux):
    """Lower than the latent and wider: stretched along one side, gathered along the other."""
    mask = torch.zeros(1, 2, 160)
    mask[0, 1, 37] = 1
    wanted = torch.zeros(1, 1, 8, 16)
    wanted[..., 4:, 3] = 1
    assert torch.equal(cells(mask, flux, 1, 16, 8, 16), wanted)


def test_a_mask_that_overshoots_is_a_mask(flux):
    mask = torch.tensor([[-0.1, 1.1]]).repeat_interleave(8, 0).repeat_interleave(8, 1)
    assert cells(mask, flux, 1, 16, 1, 2).tolist() == [[[[0.0, 1.0]]]]


REFUSED = {
    "NaN": (torch.full((1, 16, 16), torch.nan), "The mask holds NaN or infinity"),
    "infinity": (torch.full((16, 16), torch.inf), "The mask holds NaN or infinity"),
    "empty": (torch.ones(0, 16, 16), r"mask is \(0, 16, 16\), it must be .* at least one picture"),
    "a picture": (torch.ones(1, 16, 16, 3), r"The mask is \(1, 16, 16, 3\), it must be \[batch"),
    "a row": (torch.ones(16), r"The mask is \(16,\), it must be \[batch, height, width\]"),
    "three": (torch.ones(3, 16, 16), "The mask holds 3 pictures, 2 shall be edited"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_mask_is_refused_in_a_sentence(kind, flux):
    mask, sentence = REFUSED[kind]
    with pytest.raises(PalimpsestError, match=sentence):
        check_mask_fits(mask, flux, torch.zeros(2, 16, 2, 2), 2)


def test_a_flat_mask_is_one_picture_however_high_it_is(flux):
    """It was taken for as many pictures as it has rows."""
    check_mask_fits(torch.ones(128, 128), flux, torch.zeros(2, 16, 16, 16), 2)
