"""Tokens of a picture: widths and patches."""

import pytest
import torch
from palimpsest.pipelines.inversion.image_tokens import fit_width, latent_tokens


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_tokens_of_the_right_width_stay_as_they_are():
    tokens = drawn(2, 9, 12)
    assert torch.equal(fit_width(tokens, 12), tokens)


def test_half_precision_is_widened():
    assert fit_width(drawn(1, 3, 12).half(), 12).dtype == torch.float32


@pytest.mark.parametrize("width", [13, 40, 768])
def test_a_wider_embedding_keeps_all_angles(width):
    tokens = drawn(1, 30, 12)
    wide = fit_width(tokens, width)
    before, after = (t[0] @ t[0].T for t in (tokens, wide))
    assert torch.allclose(after, before * width / 12, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("width", [5, 11])
def test_a_narrower_embedding_keeps_a_subspace_and_the_size_of_an_entry(width):
    identity = torch.eye(12)[None]
    projection = fit_width(identity, width)[0]  # [12, width]
    assert torch.allclose(projection.T @ projection, torch.eye(width), atol=1e-6)
    assert float(fit_width(drawn(1, 4000, 12), width).std()) == pytest.approx(1, abs=0.03)


def test_the_projection_is_always_the_same_whatever_was_drawn_before():
    first = fit_width(torch.eye(4)[None], 7)
    torch.manual_seed(99)
    assert torch.equal(fit_width(torch.eye(4)[None], 7), first)
    # The numbers themselves: a trajectory made elsewhere was learned from the same tokens.
    assert torch.allclose(first[0, 0], torch.tensor(NUMBERS), atol=1e-4)


NUMBERS = [-0.8763, 0.6606, 0.2509, 0.1296, -0.4776, 0.4811, -0.0796]


@pytest.mark.parametrize(
    ("size", "side"), [((16, 16), 1), ((8, 16), 1), ((17, 16), 2), ((64, 64), 4), ((48, 90), 6)]
)
def test_tokens_are_the_patches_row_by_row(size, side):
    latent = drawn(2, 4, *size)
    tokens = latent_tokens(latent)
    rows, columns = -(-size[0] // side), -(-size[1] // side)
    assert tokens.shape == (2, rows * columns, 4 * side**2)
    assert rows <= 16 and columns <= 16
    for row in range(rows):
        for column in range(columns):
            patch = latent[..., row * side : (row + 1) * side, column * side : (column + 1) * side]
            whole = torch.zeros(2, 4, side, side)
            whole[..., : patch.shape[2], : patch.shape[3]] = patch
            assert torch.equal(tokens[:, row * columns + column], whole.flatten(1))
