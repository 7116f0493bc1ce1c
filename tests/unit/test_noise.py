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


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_the_seeds_of_numbered_noise_are_the_same_for_ever(seed):
    """Whoever made a picture by its number must be able to make it again: no bit may move."""
    draw = seeded(seed, (1,))
    for turn in range(3):
        own = (seed + turn * 11400714819323198485) % 2**64
        generator = torch.Generator().manual_seed(own)
        _, second = (torch.randn(3, 5, generator=generator) for _ in range(2))
        assert torch.equal(draw(torch.zeros(1, 3, 5))[0], second)


def test_the_type_that_a_host_makes_tensors_of_changes_no_noise():
    expected = [draw(LIKE) for draw in (seeded(7), seeded(7, (1, 4)))]
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert all(map(torch.equal, (seeded(7)(LIKE), seeded(7, (1, 4))(LIKE)), expected))
    finally:
        torch.set_default_dtype(kept)


@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
def test_every_seed_of_the_host_is_taken(seed):
    assert torch.equal(seeded(seed)(LIKE), seeded(seed)(LIKE))
    assert not torch.equal(seeded(seed)(LIKE), seeded(seed ^ 1)(LIKE))


def test_a_picture_with_a_number_has_the_noise_of_its_number():
    batch, alone = torch.zeros(3, 4, 5, 7), torch.zeros(1, 4, 5, 7)
    whole, single, turned = seeded(7, (0, 1, 2)), seeded(7, (1,)), seeded(7, (2, 1, 1))
    for _ in range(3):
        drawn, one, other = whole(batch), single(alone), turned(batch)
        assert torch.equal(one, drawn[1:2])
        assert torch.equal(other, drawn[[2, 1, 1]])
        assert not torch.equal(drawn[0], drawn[1])


def test_the_draws_of_numbered_pictures_differ_and_follow_the_seed():
    draw, same, other = seeded(2**64 - 1, (1,)), seeded(2**64 - 1, (1,)), seeded(0, (1,))
    drawn = [draw(LIKE[:1]) for _ in range(3)]
    assert all(torch.equal(one, same(LIKE[:1])) for one in drawn)
    drawn += [other(LIKE[:1]) for _ in range(3)]
    assert len({float(noise.sum()) for noise in drawn}) == 6


def test_noise_by_numbers_has_the_shape_of_the_pictures():
    assert seeded(7, (1, 3))(torch.zeros(2, 4, 5, 7)).shape == (2, 4, 5, 7)
