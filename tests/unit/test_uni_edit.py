"""Uni-Edit's guidance beside its formula, written out position by position."""

import pytest
import torch
from palimpsest.pipelines.schedule import sigma_from_t
from palimpsest.pipelines.uni_edit import disagreement, uni_edit
from palimpsest.tests.unit.analytic import Prompted, distance, picture

SOURCE, TARGET = Prompted(0.4), Prompted(-0.7)
X, SIGMA, OMEGA = picture(), torch.tensor(2.0, dtype=torch.float64), 5.0
IDENTITY = 1e-12


@pytest.mark.parametrize("patch", [1, 2])
def test_it_is_the_published_formula_for_every_picture_by_itself(patch):
    wanted, known = TARGET(X, SIGMA), SOURCE(X, SIGMA)
    out = uni_edit(TARGET, SOURCE, omega=OMEGA, patch=patch)(X, SIGMA)
    rows, columns = X.shape[-2:]
    for picture_of, t, s in zip(out, wanted, known, strict=True):
        apart = {}
        for i in range(rows):
            for j in range(columns):
                token = (slice(None), *(_cells(n, patch) for n in (i, j)))
                apart[i, j] = float((t[token] - s[token]).abs().mean())
        low, high = min(apart.values()), max(apart.values())
        for (i, j), value in apart.items():
            mu = (value - low) / (high - low)
            cell = s[:, i, j] + (mu + OMEGA * (1 + mu)) * (t[:, i, j] - s[:, i, j])
            assert distance(picture_of[:, i, j], cell) < IDENTITY


def _cells(n, patch):
    first = n // patch * patch
    return slice(first, first + patch)


def test_velocities_give_the_same_weights():
    t = torch.tensor(0.3, dtype=torch.float64)
    x, sigma = X / (1 - t), sigma_from_t(t)
    wanted, known = TARGET(x, sigma), SOURCE(x, sigma)
    velocities = [(X - guess) / t for guess in (wanted, known)]
    assert distance(disagreement(*velocities), disagreement(wanted, known)) < IDENTITY


def test_where_nothing_differs_the_source_is_followed():
    assert torch.equal(uni_edit(SOURCE, SOURCE)(X, SIGMA), SOURCE(X, SIGMA))
    assert not disagreement(X, X).any()


def test_frames_are_one_picture_with_their_tokens_in_each():
    video = picture(1, 4, 2, 4, 6)
    mu = disagreement(video, torch.zeros_like(video), 2)
    assert mu.shape == (1, 1, 2, 4, 6)
    assert float(mu.min()) == 0 and float(mu.max()) == 1
    assert torch.equal(mu[..., ::2, :], mu[..., 1::2, :])
