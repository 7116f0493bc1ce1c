import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from palimpsest.pipelines.solvers import averaged, fixed_point
from palimpsest.tests.unit.analytic import distance, picture


def affine(slope, solution):
    """A map whose fixed point is `solution`, counting its evaluations."""
    calls = []

    def g(x):
        calls.append(1)
        return solution + slope * (x - solution)

    return g, calls


@given(st.floats(-5, 0.999).filter(lambda slope: abs(slope) > 1e-3))
def test_three_evaluations_solve_every_slope(slope):
    """Plain iteration needs 6900 evaluations for this at slope 0.996, and diverges below -1."""
    solution = picture(seed=1)
    g, calls = affine(slope, solution)
    assert distance(fixed_point(g, picture(seed=2), 3), solution) < 1e-10
    assert len(calls) == 3


def test_one_evaluation_is_the_map_itself():
    g, calls = affine(0.5, picture(seed=1))
    x = picture(seed=2)
    assert torch.equal(fixed_point(g, x, 1), picture(seed=1) + 0.5 * (x - picture(seed=1)))
    assert len(calls) == 1


def test_rows_are_solved_independently():
    """A row's neighbours must not change it: two rows with slopes that need other secants."""
    slopes = torch.tensor([0.9, -2.0], dtype=torch.float64).view(2, 1, 1, 1)
    g = lambda x: slopes * x.tanh() + 1
    x = picture(2, 4, 3, 5)
    alone = torch.cat(
        [
            fixed_point(lambda r, s=s: s * r.tanh() + 1, x[i : i + 1], 4)
            for i, s in enumerate(slopes)
        ]
    )
    assert distance(fixed_point(g, x, 4), alone) < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_solved_row_stays_where_it_is(dtype):
    """Its last change is 0, which nothing may be divided by."""
    solution = picture(seed=1).to(dtype)
    assert torch.equal(fixed_point(lambda x: solution.clone(), picture().to(dtype), 9), solution)


def test_a_map_that_is_not_affine_is_solved_faster_than_by_iteration():
    g = lambda x: 0.9 * torch.cos(x)
    plain = solved = picture()
    for _ in range(12):
        plain = g(plain)
    solved = fixed_point(g, solved, 12)
    assert distance(solved, g(solved)) < 1e-2 * distance(plain, g(plain))


def test_the_first_guess_is_left_alone():
    x = picture()
    fixed_point(lambda v: v * 0.3, x, 4)
    assert torch.equal(x, picture())


@given(st.floats(-0.99, -0.5), st.integers(2, 8))
def test_averaging_is_the_mean_of_the_iterates_of_a_geometric_series(slope, iterations):
    solution, start = picture(seed=1), picture(seed=2)
    g, calls = affine(slope, solution)
    mean = averaged(g, start, iterations)
    series = sum(slope**n for n in range(1, iterations + 1)) / iterations
    assert distance(mean, solution + series * (start - solution)) < 1e-12
    assert len(calls) == iterations


def test_an_average_of_one_is_the_map_itself():
    g, _ = affine(0.5, picture(seed=1))
    x = picture(seed=2)
    assert torch.equal(averaged(g, x, 1), g(x))
