import pytest
import torch
from palimpsest.pipelines.noise import seeded

LIKE = torch.zeros(2, 3, 5)


def test_a_seed_gives_the_same_bits_again_and_another_one_others():
    first, again, other = (seeded(seed)(LIKE) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_that_of_a_generator_on_the_cpu_in_the_order_of_the_draws():
    draw, generator = seeded(7), torch.Generator("cpu").manual_seed(7)
    for shape in ((2, 3, 5), (1, 1), (2, 3, 5)):
        expected = torch.randn(shape, generator=generator)
        assert torch.equal(draw(torch.zeros(shape)), expected)


def test_two_sources_do_not_share_their_state():
    one, other = seeded(7), seeded(7)
    for _ in range(3):
        assert torch.equal(one(LIKE), other(LIKE))


def test_the_global_state_is_neither_read_nor_moved():
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        drawn.append(seeded(7)(LIKE))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_every_type_sees_the_same_noise_rounded(dtype):
    ours = seeded(7)(LIKE.to(dtype))
    assert ours.dtype == dtype
    assert torch.equal(ours, seeded(7)(LIKE).to(dtype))


def test_noise_is_standard_normal():
    """A million draws: standard errors of .001 for the mean and .0007 for the size."""
    noise = seeded(7)(torch.zeros(1000, 1000))
    assert abs(float(noise.mean())) < 0.004
    assert abs(float(noise.std()) - 1) < 0.003


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_every_seed_of_the_host_is_taken(seed):
    assert torch.equal(seeded(seed)(LIKE), seeded(seed)(LIKE))
    assert not torch.equal(seeded(seed)(LIKE), seeded(seed ^ 1)(LIKE))
