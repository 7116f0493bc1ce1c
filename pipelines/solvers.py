"""Numerical tools that know tensors, not diffusion.

References:
    Garibi et al. 2024, ReNoise, arXiv:2403.14602, section 4.2 (averaging)
    Walker & Ni 2011, Anderson Acceleration for Fixed-Point Iterations, SIAM J. Numer. Anal. 49(4)
"""

from collections.abc import Callable

import torch
from torch import Tensor

#: Approaches x = g(x): called with the map, a first guess and a number of evaluations.
Solver = Callable[[Callable[[Tensor], Tensor], Tensor, int], Tensor]


def fixed_point(g: Callable[[Tensor], Tensor], x: Tensor, iterations: int) -> Tensor:
    """Approach x = g(x) by Anderson acceleration of depth 1.

    Depth 1 is exact after three evaluations where g is affine with one slope, also where plain
    iteration would stall or diverge.

    Args:
        g: The map on [B, ...]; its rows are solved independently.
        x: First guess.
        iterations: Evaluations of `g`, at least 1; with 1 the result is `g(x)`.
    """
    value = g(x)
    gap = value - x
    x = value
    for _ in range(iterations - 1):
        last_value, last_gap = value, gap
        value = g(x)
        gap = value - x
        x = value - _secant(gap, gap - last_gap) * (value - last_value)
    return x


def averaged(g: Callable[[Tensor], Tensor], x: Tensor, iterations: int) -> Tensor:
    """Approach x = g(x) by plain iteration, and average all that it visits.

    Where iterates circle the fixed point instead of reaching it, their mean lies nearer to it.

    Args:
        g: The map on [B, ...].
        x: First guess; not part of the mean.
        iterations: Evaluations of `g`, at least 1; with 1 the result is `g(x)`.
    """
    visited = []
    for _ in range(iterations):
        x = g(x)
        visited.append(x)
    return torch.stack(visited).mean(0)


def _secant(gap: Tensor, change: Tensor) -> Tensor:
    """Per row the multiple of `change` nearest to `gap`, shaped to broadcast over the row."""
    dot = (gap * change).flatten(1).sum(1)
    norm = change.square().flatten(1).sum(1)
    # A converged row has no change left to divide by: its step is then 0, not 0 / 0.
    tiny = 1e-30
    return (dot / norm.clamp_min(tiny)).reshape(-1, *[1] * (gap.ndim - 1))
