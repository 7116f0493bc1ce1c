"""What hooks of a host are handed, and what becomes of their answers."""

import pytest
import torch
from palimpsest.pipelines.attention.hooks import Site, hooked_feature

ROLES = ("uncond", "cond")


def feature():
    return torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("changed", [(), ("cond",), ("uncond",), ROLES], ids=str)
def test_a_feature_is_changed_in_the_rows_that_an_answer_is_for_and_in_no_other(changed):
    seen, own = [], feature()

    def hook(site, part):
        seen.append(site)
        return -part if site.role in changed else None

    made = hooked_feature(own, Site("features", 7, "cond", layers=9), ROLES, hook)
    assert seen == [Site("features", 7, role, tokens=10, layers=9) for role in ROLES]
    for role, before, after in zip(ROLES, own.chunk(2), made.chunk(2), strict=True):
        assert torch.equal(after, -before if role in changed else before)
    assert (made is own) is (not changed)
