"""Methods compared: the numbers of a row against closed forms, and where things are on a sheet."""

import math
from dataclasses import replace

import pytest
import torch
from palimpsest.hosts.comfy.cost import Spent, cost_text
from palimpsest.hosts.comfy.edits.compare import SHOWN, CompareRequest, compare, comparison_sheet
from palimpsest.hosts.drawing.sheet import Sheet, draw_sheet
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.trajectory import Recipe

SIDE = 64


class Vae:
    """Latents are pictures of every eighth pixel; encoding adds an error of 0.01."""

    def encode(self, image):
        return image.movedim(-1, 1)[..., ::8, ::8] + 0.01

    def decode(self, samples):
        return samples.repeat_interleave(8, -1).repeat_interleave(8, -2).movedim(1, -1)


def plain(value, side=SIDE):
    return torch.full((1, side, side, 3), value)


def latent(value, side=SIDE):
    return torch.full((1, 3, side // 8, side // 8), value)


def request(**changes):
    return replace(
        CompareRequest(Vae(), plain(0.5), latent(0.4), latent(0.51), "DDIM", "9 rows, 1.0 s"),
        **changes,
    )


def half_mask():
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, :, : SIDE // 2] = 1
    return mask


# --- numbers


def test_a_row_tells_the_decibels_of_a_known_error():
    (row,) = compare(request())
    assert row.psnr_reconstruction == pytest.approx(20, abs=1e-3)
    assert row.psnr_edit == pytest.approx(40, abs=1e-3)
    assert row.psnr_vae == pytest.approx(40, abs=1e-3)


def test_what_lies_under_the_mask_does_not_count():
    edit = latent(0.51)
    edit[..., : SIDE // 16] = 1.0
    (row,) = compare(request(edit=edit, mask=half_mask()))
    assert row.psnr_edit == pytest.approx(40, abs=1e-3)
    (whole,) = compare(request(edit=edit))
    mean = (0.5**2 + 0.01**2) / 2
    assert whole.psnr_edit == pytest.approx(-10 * math.log10(mean), abs=1e-3)


def test_a_soft_edge_of_the_mask_counts_as_inside():
    mask, edit = half_mask(), latent(0.51)
    mask[:, :, SIDE // 2 : SIDE // 2 + 8] = 0.25
    edit[..., SIDE // 16] = 1.0
    (row,) = compare(request(edit=edit, mask=mask))
    assert row.psnr_edit == pytest.approx(40, abs=1e-3)


def test_numbers_are_of_the_whole_picture_however_large():
    side = 2 * SHOWN
    edit = latent(0.5, side)
    edit[..., ::2] += 0.1
    edit[..., 1::2] -= 0.1  # gone when pairs of cells are averaged
    (row,) = compare(request(source=plain(0.5, side), reconstruction=None, edit=edit))
    assert row.psnr_edit == pytest.approx(20, abs=1e-3)
    assert row.source.shape == row.edit.shape == (SHOWN, SHOWN, 3)


def test_a_row_says_its_label_its_cost_and_its_numbers():
    rows = compare(request(cost="18 rows, 3.0 s (inversion 6 rows, 1.0 s)", mask=half_mask()))
    assert rows[0].lines == [
        "DDIM",
        "18 rows, 3.0 s",
        "inversion 6 rows, 1.0 s",
        "reconstruction\t20.0 dB",
        "edit, outside the mask\t40.0 dB",
    ]
    (short,) = compare(request(cost="", reconstruction=None, edit=latent(0.5)))
    assert short.lines == ["DDIM", "edit\texact"]


def test_rows_are_appended_and_earlier_ones_left_alone():
    first = compare(request())
    both = compare(request(label="Direct Inversion"), first)
    assert [row.label for row in both] == ["DDIM", "Direct Inversion"]
    assert len(first) == 1
    assert both[0] is first[0]


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (Recipe("ddim", rows=50, seconds=3.14), "180 rows, 12.4 s (inversion 50 rows, 3.1 s)"),
        (Recipe("ddim", rows=50), "180 rows, 9.2 s (inversion 50 rows)"),
        (Recipe("latent batch"), "130 rows, 9.2 s"),
    ],
)
def test_the_cost_of_an_edit_is_that_of_its_inversion_too(recipe, told):
    assert cost_text(Spent(130, 9.24), recipe) == told


# --- the sheet


def cells(page, rows, columns=3, side=3 * SIDE):
    """The pictures of a sheet, found from its lower right corner."""
    found = []
    for row in range(rows):
        for column in range(columns):
            bottom = page.shape[0] - 12 - (rows - 1 - row) * (side + 6)
            right = page.shape[1] - 12 - (columns - 1 - column) * (side + 6)
            found.append(page[bottom - side : bottom, right - side : right])
    return found


def test_the_sheet_shows_source_reconstruction_and_edit_of_every_row():
    rows = compare(request(edit=latent(0.8)))
    rows = compare(request(edit=latent(0.2), label="longer " * 5), rows)
    page = comparison_sheet(rows)[0]
    assert page.ndim == 3
    assert float(page.min()) >= 0
    assert float(page.max()) <= 1
    for cell, value in zip(cells(page, 2), (0.5, 0.4, 0.8, 0.5, 0.4, 0.2), strict=True):
        assert torch.allclose(cell, torch.full_like(cell, value), atol=0.5 / 255)


def test_a_reconstruction_that_was_not_followed_leaves_its_cell_empty():
    page = comparison_sheet(compare(request(reconstruction=None)))[0]
    source, empty, _ = cells(page, 1)
    assert torch.equal(source, source[:1, :1].expand_as(source))
    assert float(empty[:40].min()) > 0.9  # paper, above the words
    assert float(empty.min()) < 0.7  # and the words


def test_long_labels_push_the_pictures_aside_and_many_lines_their_rows_apart():
    pictures = torch.zeros(2, 32, 32, 3)
    narrow, wide = (
        draw_sheet(Sheet(pictures, ["a"], ["x\ny", label], "t"))[0]
        for label in ("x\ny", "x\n" + "y" * 40)
    )
    assert wide.shape[1] > narrow.shape[1] + 100
    assert wide.shape[0] == narrow.shape[0]
    high = draw_sheet(Sheet(pictures, ["a"], ["x" + "\ny" * 20, "x\ny"], "t"))[0]
    assert high.shape[0] > narrow.shape[0] + 200
    ink = high[..., 0] < 0.5
    assert not bool(ink[-6:].any()), "the last line is cut off"


def test_a_sheet_without_any_picture_is_refused():
    with pytest.raises(ValueError, match="at least one picture"):
        draw_sheet(Sheet([None], ["a"], ["b"], "t"))


# --- refusals


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"source": plain(0.5).repeat(2, 1, 1, 1)}, "The source holds 2 pictures"),
        ({"edit": latent(0.5).repeat(3, 1, 1, 1)}, "The edit holds 3 pictures"),
        ({"reconstruction": latent(0.5).repeat(2, 1, 1, 1)}, "The reconstruction holds 2"),
        ({"edit": latent(0.5, 32)}, "The edit is 32 x 32 pixels, the source 64 x 64"),
        ({"reconstruction": latent(0.5, 72)}, "The reconstruction is 72 x 72 pixels"),
        ({"mask": torch.zeros(1, 32, 64)}, "The mask is 1 x 64 x 32 pixels, the source 1 x 64 x"),
        ({"mask": torch.zeros(2, SIDE, SIDE)}, "The mask is 2 x 64 x 64 pixels"),
        ({"mask": torch.ones(1, SIDE, SIDE)}, "The mask is white everywhere"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(PalimpsestError, match=sentence) as refused:
        compare(request(**changes))
    assert str(refused.value).count("\n") == 0


def test_a_comparison_holds_pictures_of_one_size():
    rows = compare(request())
    other = request(source=plain(0.5, 32), reconstruction=None, edit=latent(0.5, 32))
    with pytest.raises(PalimpsestError, match="32 x 32 pixels, those of the comparison so far"):
        compare(other, rows)
