"""StyleDiffusion against the published loop, restated in its own VP coordinates."""

import math
from dataclasses import replace

import pytest
import torch
from palimpsest.pipelines.attention.cross_maps import CrossMaps
from palimpsest.pipelines.attention.hooks import QKV, Site
from palimpsest.pipelines.attention.value_mapping import value_context, value_contexts
from palimpsest.pipelines.couplings import ddim
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.mapped_values import MappedValues
from palimpsest.pipelines.inversion.mapping_network import new_networks
from palimpsest.pipelines.inversion.style_diffusion import (
    Fitted,
    Fitting,
    Source,
    carried_by,
    fit,
    rounds_per_step,
)
from palimpsest.pipelines.lending import Asked
from palimpsest.pipelines.schedule import vp_scale
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.pipelines.trajectory_file import from_tensors, to_tensors
from palimpsest.tests.unit.analytic import distance, geometric, picture
from palimpsest.tests.unit.style_loop import published

#: Where a gradient is 0 Adam divides its rounding by 1e-8: float32's becomes a whole step of the
#: learning, float64's a hundred-millionth of one (1e-13 seen).
FLOAT64 = 1e-9

T, C, HEADS = 5, 6, 2  # text tokens, channels, heads
SIZE = (4, 4, 4)  # one query per four cells of it: four layers of maps


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    """What is learned is made in the default dtype, and maps are cut to float32."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float32).double()


class Toy:
    """A network of one cross-attention, written with explicit maps; its latent is [B, 4, h, w].

    Its second attention sees what the first made: the maps depend on the mapping.
    """

    def __init__(self, maps=None):
        self.text, self.maps, self.calls = drawn(1, T, C, seed=1), maps, 0
        self.q, self.k, self.v, self.o = (
            drawn(4, C, seed=2),
            drawn(C, C, seed=3),
            drawn(C, C, seed=4),
            drawn(C, 4, seed=5),
        )

    def attention(self, hidden, layer, mapping):
        text = self.text.expand(len(hidden), -1, -1)
        below = text if mapping is None else text * mapping[0] + mapping[1]
        q, k, v = hidden @ self.q, text @ self.k, below @ self.v
        per_head = [
            torch.softmax(a @ b.mT / math.sqrt(C // HEADS), -1)
            for a, b in zip(q.chunk(HEADS, -1), k.chunk(HEADS, -1), strict=True)
        ]
        if self.maps is not None:
            self.maps.record(Site("cross", layer, "cond", heads=HEADS), QKV(q, k, v))
        mixed = [m @ part for m, part in zip(per_head, v.chunk(HEADS, -1), strict=True)]
        return hidden + 0.3 * torch.cat(mixed, -1) @ self.o, torch.stack(per_head, 1)

    def noise(self, z, sigma, mapping=None):
        """The conditional noise, and the maps of both attentions."""
        self.calls += len(z)
        hidden = torch.nn.functional.avg_pool2d(z, 2).flatten(2).mT + 0.1 * torch.cos(sigma)
        hidden, first = self.attention(hidden.float(), 0, mapping)
        hidden, second = self.attention(hidden, 1, mapping)
        grid = hidden.mT.unflatten(2, (SIZE[1] // 2, SIZE[2] // 2)).repeat_interleave(2, 2)
        return torch.tanh(0.5 * z + 0.2 * grid.repeat_interleave(2, 3)), [first, second]

    def uncond(self, z, sigma):
        return torch.tanh(0.6 * z + 0.05 * torch.cos(sigma).float())

    def source(self):
        def denoised(noise, x, sigma):
            return x - sigma.float() * noise(x * vp_scale(sigma).float(), sigma)

        return Source(
            plain=lambda x, s: denoised(lambda *a: self.noise(*a)[0], x, s),
            uncond=lambda x, s: denoised(self.uncond, x, s),
            mapped=lambda x, s, values: denoised(lambda *a: self.noise(*a, values)[0], x, s),
            context=(T, C),
            maps=self.maps,
        )


def levels(steps=4):
    return geometric(steps, low=0.1, high=6.0)


def pictures(batch=1, seed=0):
    return picture(batch, *SIZE, seed=seed)


def shown(batch=1, seed=11):
    return drawn(batch, 7, C, seed=seed)


@pytest.mark.parametrize("map_weight", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("early_stop", [0.0, 0.5])
def test_it_learns_what_the_published_loop_learns(map_weight, early_stop):
    fitting = Fitting(40, cfg=3.0, map_weight=map_weight, early_stop=early_stop, seed=5)
    cells = SIZE[1] * SIZE[2]
    ours = Toy(CrossMaps(cells) if map_weight else None)
    fitted = fit(ours.source(), shown(), pictures(), levels(), fitting)
    counts = rounds_per_step(4, 40)
    theirs = Toy()
    path, styles, losses = published(theirs, shown(), pictures(), levels(), fitting, counts)
    for level, (z, style, loss) in enumerate(
        zip(reversed(path[1:]), reversed(styles), reversed(losses), strict=True)
    ):
        assert distance(fitted.latents[level] * vp_scale(levels()[level]).float(), z) < FLOAT64
        assert distance(fitted.values[level], style) < FLOAT64
        assert fitted.losses[level] == pytest.approx(loss, rel=1e-3, abs=1e-7)
    assert ours.calls == theirs.calls
    assert fitted.rounds <= 40
    assert (fitted.rounds < 40) == (early_stop > 0 and map_weight < 30)  # it binds, or must not


def test_the_loss_of_every_step_falls_and_the_path_comes_back_nearer_to_the_picture():
    x0, sigmas = pictures(), levels()
    missed, losses = [], []
    for rounds in (4, 400):
        fitting = Fitting(rounds, cfg=3.0, map_weight=0.0, early_stop=0.0)
        fitted = fit(Toy().source(), shown(), x0, sigmas, fitting)
        missed.append(distance(fitted.latents[0], x0))
        losses.append(fitted.losses)
    assert all(after < 0.5 * before for before, after in zip(*losses, strict=True))
    assert missed[1] < 0.7 * missed[0]


def test_the_way_begins_where_ddim_inversion_ends():
    toy, sigmas = Toy(), levels()
    chain = ddim(toy.source().plain, pictures(), sigmas, scale=vp_scale)
    fitted = fit(Toy().source(), shown(), pictures(), sigmas, Fitting(4))
    assert torch.equal(fitted.latents[-1], chain[-1])


def test_a_batch_learns_as_its_pictures_do_and_each_rests_when_it_is_good():
    fitting = Fitting(40, cfg=3.0, early_stop=0.1, map_weight=1.0)
    maps = lambda: CrossMaps(SIZE[1] * SIZE[2])
    x0, tokens = torch.cat([pictures(), 0.1 * pictures(seed=1)]), shown(2)
    both = fit(Toy(maps()).source(), tokens, x0, levels(), fitting)
    single = [
        fit(Toy(maps()).source(), tokens[b : b + 1], x0[b : b + 1], levels(), fitting)
        for b in range(2)
    ]
    assert single[0].rounds != single[1].rounds
    assert max(own.rounds for own in single) <= both.rounds < sum(own.rounds for own in single)
    for step, loss in enumerate(both.losses):
        mean = sum(float(own.losses[step]) for own in single) / 2
        assert float(loss) == pytest.approx(mean, rel=1e-6)
    for b, own in enumerate(single):
        assert distance(both.latents[:, b], own.latents[:, 0]) < FLOAT64
        assert distance(both.values[:, :, b], own.values[:, :, 0]) < FLOAT64


def test_the_same_run_twice_gives_the_same_bits_and_leaves_the_generator_alone():
    before = torch.random.get_rng_state()
    runs = [fit(Toy().source(), shown(), pictures(), levels(), Fitting(12)) for _ in range(2)]
    assert torch.equal(runs[0].values, runs[1].values)
    assert torch.equal(before, torch.random.get_rng_state())
    other = fit(Toy().source(), shown(), pictures(), levels(), Fitting(12, seed=1))
    assert distance(other.values, runs[0].values) > 0.01


def test_progress_counts_the_steps_and_then_the_rounds():
    told = []
    fit(
        Toy().source(),
        shown(),
        pictures(),
        levels(),
        Fitting(20),
        on_step=lambda done, x, denoised: told.append((done, x.shape == denoised.shape)),
    )
    counts = rounds_per_step(4, 20)
    rounds = [4 + sum(counts[: i + 1]) for i in range(4)]
    assert told == [(n, True) for n in [1, 2, 3, 4, *rounds]]
    assert rounds[-1] == 24


def test_fifty_steps_share_the_published_rounds():
    counts = [math.ceil(100 * math.exp(-0.1 * i)) for i in range(50)]
    assert sum(counts) == 1071
    assert rounds_per_step(50, 1071) == counts


@pytest.mark.parametrize(("steps", "total"), [(1, 1), (1, 9), (7, 7), (20, 77), (50, 500)])
def test_all_rounds_are_given_away_in_the_published_proportion(steps, total):
    counts = rounds_per_step(steps, total)
    assert sum(counts) == total
    assert counts == sorted(counts, reverse=True)
    weights = [math.exp(-0.1 * 50 * i / steps) for i in range(steps)]
    # There is an a with ceil(a w) = n for all of them: n - 1 < a w <= n.
    least = max((n - 1) / w for n, w in zip(counts, weights, strict=True))
    most = min(n / w for n, w in zip(counts, weights, strict=True))
    assert least <= most


def test_fewer_rounds_than_steps_are_refused():
    with pytest.raises(PalimpsestError, match="has 3 rounds for 4 steps: give it at least one"):
        rounds_per_step(4, 3)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"cfg": 0.0}, "cfg is 0"),
        ({"cfg": math.nan}, "cfg is nan"),
        ({"learning_rate": 0.0}, "learning rate must be above 0, got 0"),
        ({"learning_rate": math.inf}, "learning rate must be above 0, got inf"),
        ({"map_weight": -1.0}, "map weight must be 0 or more, got -1"),
        ({"early_stop": -1e-9}, "early stop must be 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(wrong, sentence):
    with pytest.raises(PalimpsestError, match=sentence):
        Fitting(**wrong)


def test_a_loss_that_is_no_number_is_refused():
    toy = Toy()
    source = toy.source()
    broken = replace(source, mapped=lambda x, s, values: values.sum() * torch.nan * x)
    with pytest.raises(PalimpsestError, match=r"left the finite numbers after 0 % of the steps"):
        fit(broken, shown(), pictures(), levels(), Fitting(8))


# -- the mapping -----------------------------------------------------------------------------------


def test_a_mapping_scales_and_shifts_each_rows_own_context():
    context, values = drawn(4, T, C, seed=8), drawn(2, 2, T, C, seed=9)
    mapped = value_context(context, values)
    for row in range(4):  # two prompts for each of two pictures
        expected = context[row] * values[0, row // 2] + values[1, row // 2]
        assert torch.equal(mapped[row], expected)


@pytest.mark.parametrize("length", [3, T, 2 * T, 2 * T + 1])
def test_a_prompt_of_another_length_takes_the_mapping_in_turns(length):
    context, values = drawn(1, length, C, seed=8), drawn(2, 1, T, C, seed=9)
    mapped = value_context(context, values)
    for j in range(length):
        expected = context[0, j] * values[0, 0, j % T] + values[1, 0, j % T]
        assert torch.equal(mapped[0, j], expected)


@pytest.mark.parametrize("roles", [["uncond", "cond"], ["cond", "uncond"], ["cond"], ["uncond"]])
def test_the_unconditional_rows_stay_as_they_are(roles):
    context, values = drawn(2 * len(roles), T, C, seed=8), drawn(2, 2, T, C, seed=9)
    parts = zip(
        roles,
        context.chunk(len(roles)),
        value_contexts(context, roles, values).chunk(len(roles)),
        strict=True,
    )
    for role, before, after in parts:
        expected = before * values[0] + values[1] if role == "cond" else before
        assert torch.equal(after, expected)


def test_a_mapping_is_cast_to_the_context():
    context = drawn(1, T, C).half()
    assert value_context(context, drawn(2, 1, T, C)).dtype == torch.float16


# -- what a trajectory carries ---------------------------------------------------------------------


def carrying(values, steps=4, window=0.5):
    latents = torch.stack([pictures(2, seed=s) for s in range(steps + 1)])
    mapped = MappedValues(values, 5.0, window)
    return Trajectory(
        latents, levels(steps), pictures(2), Recipe("style diffusion"), carried=(mapped,)
    )


def test_values_are_mapped_in_all_of_an_edit_unless_a_window_is_said():
    chain = carrying(drawn(4, 2, 1, T, C))
    whole = MappedValues(chain.carried[0].values, 5.0)
    whole.check(chain)
    at = whole.at(chain, window=whole.window)
    assert [at(sigma) is not None for sigma in chain.sigmas[1:]] == [True] * 4


def test_seeds_of_all_64_bits_are_taken():
    """ComfyUI's go up to 2^64 - 1; torch's generator of the processor reads the lower 32 bits."""
    first, same, other = (new_networks(drawn(1, T, C), T, n)[0] for n in (5, 2**63 + 5, 2**64 - 1))
    weights = [torch.cat([p.flatten() for p in n.parameters()]) for n in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_edit_under_another_guidance_is_refused():
    fitted = Fitted(pictures(), drawn(4, 2, 1, T, C), 3, ())
    recipe, mapped = carried_by(fitted, Fitting(cfg=5.0), 0.25, rows=7)
    assert (recipe.rows, recipe.cfg, recipe.eta) == (7, 5.0, 0.0)
    assert (mapped.window, mapped.values is fitted.values) == (0.25, True)
    mapped.check_edit(5.0)
    with pytest.raises(PalimpsestError, match=r"learned at cfg 5, the edit's cfg is 7\.5"):
        mapped.check_edit(7.5)


@pytest.mark.parametrize("window", [-0.1, 1.1, math.nan])
def test_a_window_out_of_range_is_refused(window):
    with pytest.raises(PalimpsestError, match="value window must be 0 to 1"):
        carrying(drawn(4, 2, 2, T, C), window=window)


def test_a_file_of_it_is_of_the_third_format_and_gives_back_every_bit():
    made = carrying(drawn(4, 2, 2, T, C))
    tensors, about = to_tensors(made)
    assert about["palimpsest_trajectory"] == "3"
    read = from_tensors(tensors, about, name="a.safetensors")
    ours, theirs = (t.find(MappedValues) for t in (made, read))
    assert torch.equal(ours.values, theirs.values)
    assert (theirs.cfg, theirs.window) == (5.0, 0.5)
    assert read.recipe == made.recipe


@pytest.mark.parametrize(("window", "mapped"), [(0.0, 0), (0.5, 2), (0.74, 2), (0.75, 3), (1.0, 4)])
def test_the_window_counts_from_the_noisiest_step(window, mapped):
    made = carrying(drawn(4, 2, 2, T, C), window=window)
    values = made.find(MappedValues)
    source, target = values.asked(made, Asked("source"), Asked("target"))
    for i in range(4):
        level = 4 - i
        found = target.values(made.sigmas[level].float())
        if i < mapped:
            assert torch.equal(found, values.values[level - 1])
        else:
            assert found is None
        assert torch.equal(source.values(made.sigmas[level]), values.values[level - 1])


@pytest.mark.parametrize("shape", [(3, 2, 2, T, C), (4, 1, 2, T, C), (4, 2, 3, T, C), (4, 2, T, C)])
def test_a_mapping_that_does_not_fit_is_refused(shape):
    with pytest.raises(PalimpsestError, match="mapping of values is"):
        carrying(torch.zeros(shape))


def test_the_settings_are_the_published_ones():
    assert Fitting() == Fitting(1071, 7.5, 1e-2, 1.0, 1e-5, 0)
