"""The flow model of the demo: what it is told, how it samples, and how it is trained."""

import pytest
import torch
from palimpsest.demo import train, train_flow
from palimpsest.demo.flow import (
    TEXT_LENGTH,
    FlowPainter,
    Words,
    make_transformer,
    sample_flow,
)
from palimpsest.demo.flow_files import copy_parts, load_texts
from palimpsest.demo.layouts import KINDS
from palimpsest.demo.model_files import WEIGHTS, load_text_encoder, token_ids
from palimpsest.demo.scenes import caption
from palimpsest.demo.train_attention import attend_plainly
from palimpsest.demo.train_data import MIX, held_out_scenes, training_scenes
from palimpsest.demo.train_flow import FlowPlan, draw_times, new_transformer, single_streams
from palimpsest.demo.train_layout import LayoutHead, spots_of
from palimpsest.hosts.diffusers.transformer import packed, unpacked
from transformers import CLIPTokenizer

PLAN = FlowPlan(blocks=(1, 2), heads=2, steps=4, batch=16, warm_up=1, save_seconds=0, grid_steps=2)
TEXTS = ["", "a red heart", "a white star at the top and a black cross at the bottom on the sea"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flow")
    copy_parts(WEIGHTS, folder)
    return load_texts(folder)


def some_painter(texts):
    """One whose weights are random and all matter."""
    transformer = make_transformer(*PLAN.blocks, PLAN.heads).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in transformer.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    return FlowPainter(transformer, *texts)


def some_call(painter):
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(3, 4, 16, 16, generator=generator)
    return z, torch.tensor([0.12345, 0.7, 1.0]), painter.embed(TEXTS)


def trained(latents, pool, texts, checkpoint, show):
    painter = FlowPainter(new_transformer(PLAN), *texts)
    train_flow.train_flow(latents, pool, painter, PLAN, checkpoint, lambda line: None, show)
    return painter.transformer.state_dict()


def test_a_stopped_training_goes_on_exactly(latents, pool, texts, tmp_path):
    class Stopped(Exception):
        pass

    def stop(step):
        raise Stopped

    whole = trained(latents, pool, texts, tmp_path / "whole.pt", lambda step: None)
    with pytest.raises(Stopped):
        trained(latents, pool, texts, tmp_path / "parts.pt", stop)
    parts = trained(latents, pool, texts, tmp_path / "parts.pt", lambda step: None)
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    assert not torch.equal(whole["proj_out.weight"], torch.zeros_like(whole["proj_out.weight"]))


def test_a_text_of_32_tokens_has_the_states_that_it_has_among_77(texts):
    short = FlowPainter(None, *texts).embed(TEXTS)
    encoder = load_text_encoder(WEIGHTS)
    long = encoder(token_ids(CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer"), TEXTS))
    assert short.states.shape == (3, TEXT_LENGTH, 96)
    assert torch.equal(short.states, long.last_hidden_state[:, :TEXT_LENGTH])
    assert torch.equal(short.pooled, long.pooler_output)
    ends = [1 + len(text.split()) for text in TEXTS]  # a word is a token, and one starts the text
    assert torch.equal(short.pooled, short.states[torch.arange(3), ends])


def test_every_caption_fits(texts):
    scenes = [scene for kind in KINDS for scene in held_out_scenes(200, kind)]
    captions = [caption(scene) for scene in [*scenes, *training_scenes(1024)]]
    ids = token_ids(texts[1], captions)
    assert ids.shape[1] == TEXT_LENGTH
    assert (ids[:, -1] == texts[1].eos_token_id).all()
    assert max(len(text.split()) for text in captions) + 2 < TEXT_LENGTH


def test_words_are_those_of_the_captions_and_the_last_those_of_none(pool, texts):
    painter = FlowPainter(None, *texts)
    words, whose = train_flow.words_of(painter, pool.captions)
    assert len(words.pooled) == len(set(pool.captions)) + 1
    own = words.at(whose)
    expected = painter.embed([*pool.captions])
    assert torch.allclose(own.states, expected.states, atol=1e-5)
    assert torch.allclose(own.pooled, expected.pooled, atol=1e-5)
    assert torch.allclose(words.pooled[-1:], painter.embed([""]).pooled, atol=1e-5)


def test_a_batch_shows_what_its_captions_say(pool):
    """Texts and latents are numbers here, so that a batch can be read."""
    numbers = {text: i for i, text in enumerate(dict.fromkeys(pool.captions))} | {"": -1}

    class Painter:
        transformer = torch.zeros(0)  # has a device

        def embed(self, texts):
            states = torch.tensor([float(numbers[text]) for text in texts])
            return Words(states, states)

        def velocity(self, z, t, words):
            rows = (z.mean((1, 2, 3)) / (1 - t) / 1000).round().int().tolist()
            seen.append(list(zip(rows, t.tolist(), words.pooled.int().tolist(), strict=True)))
            return z

    class Layout:
        def loss(self, spots, told):
            return torch.zeros(())

    latents, seen = 1000 * torch.arange(len(pool.captions)).float(), []
    latents = latents[:, None, None, None].expand(-1, 4, 16, 16)
    loss_of = train_flow._loss_function(latents, pool, Painter(), Layout(), PLAN)
    losses = [loss_of(step) for step in (0, 0, *range(1, 20))]
    assert losses[0] == losses[1] != losses[2]
    silent = 0
    for batch in seen:
        for (row, t, number), kind in zip(batch, MIX, strict=True):
            silent += number == -1
            if t < 0.9:
                assert pool.kinds[row] == kind
                assert number in (-1, numbers[pool.captions[row]])
    assert 10 < silent < 60  # a tenth of 336


def test_unpacking_undoes_packing():
    z = torch.arange(2 * 4 * 6 * 10.0).reshape(2, 4, 6, 10)
    assert packed(z).shape == (2, 15, 16)
    assert torch.equal(unpacked(packed(z), 3), z)


def test_times_are_spread_as_the_two_densities_say():
    count = 4000
    times = draw_times(count, torch.Generator().manual_seed(0)).double()
    ranked = times.sort().values
    share = (torch.special.ndtr(torch.logit(ranked) - 0.3) + ranked) / 2
    assert (share - (torch.arange(count) + 0.5) / count).abs().max() < 2 / count
    assert times.diff().abs().mean() > 0.2  # shuffled: the kinds of a batch stand in an order
    assert len(draw_times(5, torch.Generator())) == 5


def test_an_untrained_transformer_gives_nothing_and_learns_at_its_last_layer_first(texts):
    painter = FlowPainter(new_transformer(PLAN), *texts)
    v = painter.velocity(*some_call(painter))
    assert torch.equal(v, torch.zeros_like(v))
    (v - 1).square().mean().backward()
    assert painter.transformer.proj_out.bias.grad.abs().max() > 0


def test_plain_attention_is_the_attention_of_flux(texts):
    painter = some_painter(texts)
    with torch.no_grad():
        wanted = painter.velocity(*some_call(painter))
        attend_plainly(painter.transformer)
        found = painter.velocity(*some_call(painter))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()  # float32


def test_the_time_is_told_in_single_precision(texts):
    painter, told = some_painter(texts), []
    attend_plainly(painter.transformer)
    painter.transformer.time_text_embed.register_forward_pre_hook(
        lambda _module, inputs: told.append(inputs[0])
    )
    z, t, words = some_call(painter)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with single_streams(painter.transformer):
            painter.velocity(z, t, words)
        painter.velocity(z, t, words)
    assert torch.equal(told[0], 1000 * t)
    assert not torch.equal(told[1].float(), 1000 * t)


def test_sampling_ends_where_guidance_points():
    """Where a velocity leads straight to a point, Euler steps lead there exactly."""

    class ToPoints:
        transformer = torch.zeros(0)  # has a device

        def embed(self, texts):
            aims = torch.tensor([1.0 if text else -0.5 for text in texts])
            return Words(aims, aims)

        def velocity(self, z, t, words):
            told.append(t[0].item())
            return (z - words.pooled[:, None, None, None]) / t[:, None, None, None]

    told = []
    z = sample_flow(ToPoints(), ["a red heart"] * 2, cfg=3.0, steps=8)
    assert torch.allclose(z, torch.full((2, 4, 16, 16), -0.5 + 3 * 1.5), atol=1e-5)
    assert told == pytest.approx([i / 8 for i in range(8, 0, -1)], abs=1e-6)


def test_the_layout_is_read_off_image_tokens_row_by_row():
    class Block(torch.nn.Module):
        """Gives text tokens, and image tokens that hold a picture."""

        def forward(self, picture):
            return torch.zeros(1, 7, 2), picture.flatten(2).transpose(1, 2)

    scene = training_scenes(len(MIX))[MIX.index("placed pair")]
    spots = spots_of([scene])
    line = (torch.arange(8) + 0.5) / 8
    x, y, size = spots[..., None, None].unbind(2)
    marks = ((line - x) ** 2 + (line[:, None] - y) ** 2 < size**2).float()
    block = Block()
    layout = LayoutHead([block], 2)
    layout.layers[0].weight.data = 200 * torch.eye(2)[..., None, None]
    layout.layers[0].bias.data = torch.full((2,), -100.0)
    block(marks)
    assert layout.loss(spots, torch.ones(1)).item() < 1e-6
    block(marks.transpose(2, 3))
    assert layout.loss(spots, torch.ones(1)).item() > 1


def test_the_flow_model_starts_from_no_folder(capsys):
    with pytest.raises(SystemExit):
        train.main(["--model", "flow", "--init", "demo/weights"])
    assert "--init is for the UNet" in capsys.readouterr().err
