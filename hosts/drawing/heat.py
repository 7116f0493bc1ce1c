"""Heat maps over pictures."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

#: Colours of a map's values from 0 to 1, in 0..1: dark, and as bright as they are high.
COLORS = (
    (0.05, 0.03, 0.20),
    (0.40, 0.06, 0.45),
    (0.80, 0.22, 0.35),
    (0.97, 0.56, 0.15),
    (0.99, 0.95, 0.55),
)


def heat_over(pictures: Tensor, maps: Tensor) -> Tensor:
    """[B, H, W, 3] pictures as heat maps, their own forms still to be seen.

    Args:
        pictures: [B, H, W, 3] in 0..1.
        maps: [B, h, w] in 0..1, of any size.
    """
    size = pictures.shape[1:3]
    heat = interpolate(maps[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
    grey = pictures[..., :3].float().mean(-1, keepdim=True)
    return (0.3 * grey + 0.7 * colored(heat.clamp(0, 1))).clamp(0, 1)


def colored(values: Tensor) -> Tensor:
    """[..., 3] colours of values in 0..1, straight between `COLORS`."""
    stops = torch.tensor(COLORS)
    place = values * (len(stops) - 1)
    below = place.floor().clamp(max=len(stops) - 2).long()
    share = (place - below)[..., None]
    return stops[below] * (1 - share) + stops[below + 1] * share
