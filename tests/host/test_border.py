"""Every node refuses every kind of bad value at every input, in one sentence, through core's path.

The nodes are the extension's own list and the bad values are made from each input's declaration,
so that a new node or input is covered on the day it appears.
"""

import asyncio
import inspect
import math
import re
import types
from dataclasses import replace

import execution
import palimpsest
import pytest
import torch
from comfy_api.latest import io
from hypothesis import given, settings
from hypothesis import strategies as st
from palimpsest.hosts.comfy.edits.bound import BoundControl, Words
from palimpsest.hosts.comfy.loading.folder import load_folder
from palimpsest.nodes.accepted import LONGEST_TEXT, WIRES, check, shown
from palimpsest.nodes.border import Node
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.tokens import PromptTokens, Word
from palimpsest.pipelines.errors import QUOTED, PalimpsestError
from palimpsest.pipelines.points import DragPoints
from palimpsest.pipelines.trajectory import Recipe, Trajectory

OWN = io.ComfyNode.validate_inputs.__func__  # that of nodes which leave it to core
NODES = asyncio.run(asyncio.run(palimpsest.comfy_entrypoint()).get_node_list())
LONG = "long " * 100
NAN, INF = math.nan, math.inf


def inputs_of(node):
    return node.GET_SCHEMA().inputs


EACH = [(node, wanted) for node in NODES for wanted in inputs_of(node)]
each_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.SCHEMA.node_id)


@pytest.fixture(scope="module")
def wires(sd1_folder):
    return good_wires(load_folder(sd1_folder))


# --- good values, by type


def chain(latents=None):
    latents = torch.zeros(3, 1, 4, 8, 8) if latents is None else latents
    sigmas = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    return Trajectory(latents, sigmas, torch.zeros(1, 4, 8, 8), Recipe("ddim"))


def control(embedding=None):
    words = PromptTokens((0, 5, 6, 2), (Word("a", (1,)), Word("heart", (2,))), 4)
    own = torch.zeros(1, 4, 8)
    return BoundControl(
        rewrite_prompt(words, words),
        own if embedding is None else embedding,
        own,
        words=Words(words, (words,)),
    )


def prompt(embedding=None, **more):
    return [[torch.zeros(1, 77, 32) if embedding is None else embedding, more]]


def good_wires(sd1):
    """A value of every wire type; a type that is not here has no good call, which is an error."""
    return {
        "MODEL": sd1.model,
        "CLIP": sd1.clip,
        "VAE": sd1.vae,
        "CONDITIONING": prompt(),
        "LATENT": {"samples": torch.zeros(1, 4, 8, 8)},
        "IMAGE": torch.zeros(1, 64, 64, 3),
        "MASK": torch.zeros(1, 64, 64),
        "SIGMAS": torch.tensor([2.0, 1.0, 0.0]),
        "NOISE": types.SimpleNamespace(generate_noise=lambda latent: latent["samples"]),
        "CLIP_VISION": types.SimpleNamespace(encode_image=lambda image: image),
        "PALIMPSEST_TRAJECTORY": chain(),
        "PALIMPSEST_CONTROL": control(),
        "PALIMPSEST_POINTS": DragPoints((64, 64), (((1, 1), (9, 9)),)),
        "PALIMPSEST_COMPARISON": (),
    }


def good_value(wanted, wires):
    if not isinstance(wanted, io.WidgetInput):
        return wires[wanted.get_io_type()]
    if isinstance(wanted, io.Combo.Input):
        return wanted.default or (wanted.options or ["the file that its node looks for"])[0]
    return "" if wanted.default is None else wanted.default


def good_call(node, wires):
    return {wanted.id: good_value(wanted, wires) for wanted in inputs_of(node)}


# --- bad values, by type


def bad_numbers(wanted):
    below, above = wanted.min - 1, wanted.max + 1
    return [NAN, INF, -INF, below, above, 1e30, -1e30, 10**400, True, "3", None, [1]]


def bad_texts(wanted):
    return [5, b"text", ["text"], "x" * (LONGEST_TEXT + 1)]


def bad_widgets(wanted):
    if isinstance(wanted, io.Int.Input):
        return [*bad_numbers(wanted), 1.5]
    if isinstance(wanted, io.Float.Input):
        return [*bad_numbers(wanted), 1 + 2j]
    if isinstance(wanted, io.Boolean.Input):
        return [1, "yes", None, NAN]
    if isinstance(wanted, io.Combo.Input):
        return [3, None, ["auto"], *([] if wanted.id == "file" else ["nobody offers this", LONG])]
    return bad_texts(wanted)


def broken(shape, dim=0):
    """A tensor of a shape, with each of NaN, infinity and minus infinity in one place."""
    for bad in (NAN, INF, -INF):
        tensor = torch.zeros(shape)
        tensor.view(-1)[-1] = bad
        yield tensor


def bad_shapes(good):
    """Tensors of a good one's kind with nothing in them, of other ranks, or of other numbers."""
    return [
        good[:0],
        torch.zeros(()),
        torch.zeros((1,) * 6),
        good.to(torch.complex64),
        good.tolist(),
    ]


BAD_WIRES = {
    "CONDITIONING": lambda: [
        [],
        [["text", {}]],
        [[torch.zeros(1, 77, 32)]],
        prompt(torch.zeros(1, 0, 32)),
        *(prompt(t) for t in broken((1, 77, 32))),
        *(prompt(pooled_output=t) for t in broken((1, 32))),
    ],
    "LATENT": lambda: [
        {},
        {"samples": None},
        torch.zeros(1, 4, 8, 8),
        *({"samples": t} for t in bad_shapes(torch.zeros(1, 4, 8, 8))),
        *({"samples": t} for t in (torch.zeros(1, 4, 0, 8), torch.zeros(1, 4, 8, 8).int())),
        *({"samples": t} for t in broken((1, 4, 8, 8))),
    ],
    "IMAGE": lambda: [*bad_shapes(torch.zeros(1, 64, 64, 3)), *broken((1, 64, 64, 3))],
    "MASK": lambda: [
        *bad_shapes(torch.zeros(1, 64, 64)),
        torch.zeros(1, 3, 64, 64),
        torch.zeros(64),
        *broken((1, 64, 64)),
        *broken((64, 64)),
        *broken((1, 1, 64, 64)),
    ],
    "SIGMAS": lambda: [
        *bad_shapes(torch.tensor([2.0, 1.0, 0.0])),
        torch.tensor([[1.0, 0.0]]),
        *broken((3,)),
        torch.tensor([INF, 1.0, 0.0]),
    ],
    "PALIMPSEST_TRAJECTORY": lambda: [
        *(chain(t) for t in broken((3, 1, 4, 8, 8))),
        *(replace(chain(), denoised=t) for t in broken((2, 1, 4, 8, 8))),
    ],
    "PALIMPSEST_CONTROL": lambda: [control(t) for t in broken((1, 3, 8))],
    "PALIMPSEST_COMPARISON": lambda: [(1,), [1]],
}


def bad_values(wanted):
    if isinstance(wanted, io.WidgetInput):
        return bad_widgets(wanted)
    nothing = [] if wanted.optional else [None]
    return ["text", 5, object(), *nothing, *BAD_WIRES.get(wanted.get_io_type(), list)()]


# --- through core's path


def call(node, inputs):
    """Run a node as core's executor does."""
    run = execution._async_map_node_over_list(
        "prompt",
        "1",
        node,
        {name: [value] for name, value in inputs.items()},
        node.FUNCTION,
        v3_data={"hidden_inputs": {}},
    )
    (made,) = asyncio.run(run)
    return made


def check_sentence(error, name):
    message = str(error)
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", message), message
    assert len(message) <= 300 and message.endswith(".") and "\n" not in message, message
    assert len(re.findall(r"[.!](?:\s|$)", message)) == 1, message
    assert not re.search(r"Traceback|Tensor|torch|object at|\bNone\b", message), message
    assert not re.search(rf"(\S)\1{{{QUOTED}}}|(long ){{{QUOTED // 4}}}", message), message


def test_every_node_is_held_to_the_border():
    assert NODES
    for node in NODES:
        assert issubclass(node, Node)
        assert "execute" not in vars(node), "the border is in Node.execute; say `run`"


@each_node
def test_every_declaration_can_be_held(node):
    """Numbers have two ends, and a wire is of a type that the border knows."""
    for wanted in inputs_of(node):
        if isinstance(wanted, io.Int.Input | io.Float.Input):
            assert -INF < wanted.min < wanted.max < INF, wanted.id
        elif not isinstance(wanted, io.WidgetInput):
            assert wanted.get_io_type() in WIRES, wanted.id


@each_node
def test_good_values_are_taken(node, wires):
    for wanted in inputs_of(node):
        check(wanted, good_value(wanted, wires), listed=bool(getattr(wanted, "options", None)))


@each_node
def test_every_bad_value_is_refused_in_one_sentence(node, wires):
    good = good_call(node, wires)
    for wanted in inputs_of(node):
        for bad in bad_values(wanted):
            check_sentence(refusal(node, {**good, wanted.id: bad}, wanted.id, bad), shown(wanted))


def refusal(node, inputs, name, bad):
    """The error that a call ends in; anything but a PalimpsestError is a hole in the border."""
    try:
        call(node, inputs)
    except PalimpsestError as error:
        return error
    pytest.fail(f"{name} took {str(bad)[:200]}")


NUMBERS = {
    (type(w), w.min, w.max): w for _, w in EACH if isinstance(w, io.Int.Input | io.Float.Input)
}


@given(st.data())
@settings(max_examples=200, deadline=None, database=None, derandomize=True)
def test_exactly_the_declared_range_is_taken(data):
    wanted = data.draw(st.sampled_from(list(NUMBERS.values())))
    whole = isinstance(wanted, io.Int.Input)
    near = st.integers(wanted.min - 3, wanted.max + 3) if whole else st.floats()
    value = data.draw(st.one_of(near, st.sampled_from([wanted.min, wanted.max])))
    if wanted.min <= value <= wanted.max:
        check(wanted, value)
    else:
        with pytest.raises(PalimpsestError) as caught:
            check(wanted, value)
        check_sentence(caught.value, shown(wanted))


@pytest.mark.parametrize("shape", [(64, 64), (1, 64, 64), (2, 1, 64, 64)])
def test_masks_of_every_form_that_core_takes_pass(shape):
    check(io.Mask.Input("mask"), torch.ones(shape))
    check(io.Mask.Input("mask"), torch.ones(shape, dtype=torch.bool))


# --- what a node gets and gives


class Echo(Node):
    """Gives back what it got."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Echo",
            display_name="Echo",
            inputs=[
                io.Latent.Input("latent"),
                io.Float.Input("cfg", min=0.0, max=9.0),
                io.Mask.Input("mask", optional=True),
                io.String.Input("cost", optional=True, force_input=True),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Float.Output(display_name="cfg"),
                io.Mask.Output(display_name="mask"),
            ],
        )

    @classmethod
    def run(cls, latent, cfg, mask=None, cost=None):
        return io.NodeOutput(latent, cfg, mask)


def test_what_passes_is_handed_on_unchanged():
    latent, mask = {"samples": torch.ones(1, 4, 8, 8), "more": "kept"}, torch.ones(8, 8)
    made = call(Echo, {"latent": latent, "cfg": 3, "mask": mask, "cost": None})
    assert made.args[0] is latent and made.args[2] is mask
    assert made.args[1] == 3 and isinstance(made.args[1], int)
    assert Echo.execute(latent, 3, mask).args[0] is latent  # from Python, by position
    assert call(Echo, {"latent": latent, "cfg": 3.0, "mask": None}).args[2] is None


class Overflow(Echo):
    """Gives what no result may be."""

    @classmethod
    def run(cls, latent, cfg, mask=None, cost=None):
        samples = latent["samples"].half() * 1e5 * 1e5
        return io.NodeOutput({"samples": samples}, cfg, mask)


def test_a_result_that_is_no_number_is_no_success():
    with pytest.raises(PalimpsestError, match="Echo made a latent with NaN or infinity") as caught:
        call(Overflow, {"latent": {"samples": torch.ones(1, 4, 8, 8)}, "cfg": 3.0})
    assert "cfg" in str(caught.value) and "float32" in str(caught.value)
    check_sentence(caught.value, "latent")


class Encode(Echo):
    """Gives a prompt that no number is left of."""

    @classmethod
    def define_schema(cls):
        text = io.Conditioning.Output(display_name="target")
        return io.Schema("Encode", display_name="Encode", outputs=[text])

    @classmethod
    def run(cls):
        return io.NodeOutput(prompt(torch.full((1, 3, 8), NAN)))


def test_what_is_made_of_prompts_alone_names_the_prompt_as_the_cause():
    with pytest.raises(PalimpsestError, match=r"Encode made a target .* such as \(word:inf\)"):
        call(Encode, {})


VALIDATING = [node for node in NODES if node.validate_inputs.__func__ is not OWN]


@pytest.mark.parametrize("node", VALIDATING, ids=lambda node: node.SCHEMA.node_id)
def test_what_lacks_or_comes_by_wire_is_left_to_core_before_the_run(node):
    """Core asks a node about values that it does not have yet: as None, or not at all."""
    named = inspect.signature(node.validate_inputs).parameters
    assert node.validate_inputs() is True
    wired = dict.fromkeys(wanted.id for wanted in inputs_of(node) if wanted.id in named)
    assert node.validate_inputs(**wired) is True
