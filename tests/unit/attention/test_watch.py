"""What several who bound an edit make of it together."""

from types import SimpleNamespace

import torch
from palimpsest.pipelines.attention.watch import bounds, within
from palimpsest.tests.unit.analytic import picture

LEFT, TOP = torch.zeros(1, 1, 4, 6), torch.zeros(2, 1, 4, 6)
LEFT[..., :3], TOP[:, :, :2], TOP[1] = 1, 0.5, 1


def watches(*cells):
    return [SimpleNamespace(cells=of) for of in cells]


def test_an_edit_is_where_all_of_them_let_it_be():
    assert bounds(watches()) is None and bounds(watches(None)) is None
    assert torch.equal(bounds(watches(LEFT, None)), LEFT)
    both = bounds(watches(LEFT, TOP))
    assert both.shape == TOP.shape
    assert both[0, 0, :2, :3].eq(0.5).all() and both[0].sum() == 3
    assert torch.equal(both[1:], LEFT)


def test_how_far_an_edit_is_from_its_source_is_cut_by_all_of_them():
    apart = picture(2, 3, 4, 6)
    assert within(watches(None), apart) is apart
    assert torch.equal(within(watches(LEFT, TOP), apart), TOP.to(apart) * (LEFT.to(apart) * apart))
