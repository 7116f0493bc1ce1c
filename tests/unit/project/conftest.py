"""What both trainings of the demo learn from in their tests."""

import numpy as np
import pytest
import torch
from palimpsest.demo.scenes import caption
from palimpsest.demo.train_data import MIX, Pool, training_scenes
from palimpsest.demo.train_layout import spots_of


@pytest.fixture(scope="module")
def pool():
    scenes = training_scenes(4 * len(MIX))
    captions = tuple(caption(scene) for scene in scenes)
    return Pool(np.zeros(0), np.zeros(0), captions, MIX * 4, spots_of(scenes))


@pytest.fixture(scope="module")
def latents(pool):
    shape = (len(pool.captions), 4, 16, 16)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))
