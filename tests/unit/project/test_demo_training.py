"""The training of the embedded model: what a batch holds, and going on where it was stopped."""

import math
from dataclasses import replace

import pytest
import torch
from palimpsest.demo import train_diffusion
from palimpsest.demo.layouts import scene_of
from palimpsest.demo.model_files import WEIGHTS, Painter
from palimpsest.demo.scenes import training_content
from palimpsest.demo.things import CANVAS
from palimpsest.demo.train_data import MIX
from palimpsest.demo.train_diffusion import DiffusionPlan, make_unet, unet_layout
from palimpsest.demo.train_layout import spots_of
from palimpsest.demo.train_text import make_text_encoder
from transformers import CLIPTokenizer

PLAN = DiffusionPlan(widths=(32, 64), steps=4, batch=16, warm_up=1, save_seconds=0, grid_steps=2)


def new_painter():
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer")
    return Painter(make_unet(PLAN.widths), make_text_encoder(tokenizer), tokenizer)


def trained(latents, pool, checkpoint, show, plan=PLAN):
    painter, lines = new_painter(), []
    train_diffusion.train_diffusion(latents, pool, painter, plan, checkpoint, lines.append, show)
    return {**painter.unet.state_dict(), **painter.text_encoder.state_dict()}


def test_a_stopped_training_goes_on_exactly(latents, pool, tmp_path):
    class Stopped(Exception):
        pass

    def stop(step):
        raise Stopped

    whole = trained(latents, pool, tmp_path / "whole.pt", lambda step: None)
    with pytest.raises(Stopped):
        trained(latents, pool, tmp_path / "parts.pt", stop)
    parts = trained(latents, pool, tmp_path / "parts.pt", lambda step: None)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_a_longer_plan_goes_on_from_the_end_of_a_shorter_one(latents, pool, tmp_path):
    steps = []
    trained(latents, pool, tmp_path / "unet.pt", steps.append, replace(PLAN, steps=3))
    trained(latents, pool, tmp_path / "unet.pt", steps.append, replace(PLAN, steps=5))
    assert steps == [2, 4]


def test_a_batch_holds_the_kinds_of_the_mix(latents, pool):
    seen = []

    class Tokens:
        """The numbers of the rows in the place of what they show."""

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, texts, **options):
            batch = tokenizer(texts, **options)
            batch["input_ids"] = torch.arange(len(texts))[:, None].expand(-1, 77).contiguous()
            return batch

    painter = new_painter()
    tokenizer = painter.tokenizer

    def text_encoder(ids):
        seen.append(ids[:, 0].tolist())
        return painter.text_encoder(ids)

    spied = Painter(painter.unet, text_encoder, Tokens())
    layout = unet_layout(painter.unet)
    loss_of = train_diffusion._loss_function(latents, pool, spied, layout, PLAN)
    with torch.no_grad():
        assert loss_of(0) == loss_of(0) != loss_of(1)
    empty = len(pool.captions)
    for rows in seen:
        kinds = [None if row == empty else pool.kinds[row] for row in rows]
        assert all(kind in (None, wanted) for kind, wanted in zip(kinds, MIX, strict=True))
    assert seen[0] == seen[1] != seen[2]


def test_the_layout_marks_the_cells_of_the_first_object_and_of_the_second():
    scene = scene_of("placed pair", 5, training_content())
    (spots,) = spots_of([scene])
    for spot, thing in zip(spots, scene.things, strict=True):
        assert (CANVAS * spot).tolist() == pytest.approx([thing.x, thing.y, thing.size])
    assert spots_of([scene_of("one", 5, training_content())])[0, 1].tolist() == [0, 0, 0]
    painter = new_painter()
    layout = unet_layout(painter.unet)
    for layer in layout.layers:  # it says nothing of where: every cell is as likely marked as not
        torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    latent, context = torch.zeros(2, 4, 16, 16), painter.embed(["", "a red heart"])
    painter.unet(latent, 999, context)
    painter.unet(latent, 999, context)  # a picture that was painted meanwhile
    told = torch.tensor([0.0, 1.0])
    loss = layout.loss(spots.expand(2, 2, 3), told)
    assert loss.item() == pytest.approx(2 * math.log(2) / 2)
    painter.unet(latent, 999, context)
    for layer in layout.layers:
        layer.bias.data = torch.tensor([1e4, -1e4])  # all of the first, nothing of the second
    share = layout.loss(spots.expand(2, 2, 3), told).item() / 1e4
    missed = [1 - _disk(spots[0], side) + _disk(spots[1], side) for side in (8, 16)]
    assert share == pytest.approx(sum(missed) / 2 / 2, rel=1e-4)
    layout.leave()
    painter.unet(latent, 999, context)
    with pytest.raises(ValueError, match="zip"):
        layout.loss(spots.expand(2, 2, 3), told)


def _disk(spot, side):
    """Which part of the cells has its centre in a disk."""
    line = (torch.arange(side) + 0.5) / side
    inside = (line - spot[0]) ** 2 + (line[:, None] - spot[1]) ** 2 < spot[2] ** 2
    return inside.float().mean().item()
