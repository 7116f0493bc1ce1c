"""What is taken and hardly meant is said in the node: of every node that has such an input."""

import asyncio

import palimpsest
import pytest
import torch
from comfy_api.latest import io
from palimpsest.hosts.comfy.fingerprint import prompt_key
from palimpsest.nodes.border import Node
from palimpsest.nodes.control import PromptToPrompt
from palimpsest.nodes.inversions.ddim import InvertDDIM
from palimpsest.nodes.notices import notices
from palimpsest.nodes.pix2pix_zero import Pix2PixZeroNode
from palimpsest.nodes.sde import CycleSDE
from palimpsest.pipelines.trajectory import Recipe, Trajectory
from palimpsest.tests.host.inversions.test_laws import prompt, settings_of

NODES = asyncio.run(asyncio.run(palimpsest.comfy_entrypoint()).get_node_list())
MASKS = [
    pytest.param(node, wanted.id, id=f"{node.SCHEMA.node_id[10:]}-{wanted.id}")
    for node in NODES
    for wanted in node.GET_SCHEMA().inputs
    if wanted.io_type == io.Mask.io_type
]
WITH_PICTURE = ("latent", "trajectory", "image")
pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")


def chain(known=""):
    latents, sigmas = torch.zeros(2, 1, 4, 8, 8), torch.tensor([0.0, 1.0], dtype=torch.float64)
    return Trajectory(latents, sigmas, torch.zeros(1, 4, 8, 8), Recipe("ddim", prompt=known))


def picture(sd1):
    """A picture of 64 x 64 pixels by every wire that brings one."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    return {"model": sd1.model, "latent": latent, "trajectory": chain()}


def told(node, sd1, **given):
    """What a node says of inputs; of those that bring a picture it is given what it takes."""
    schema = node.GET_SCHEMA()
    takes = {wanted.id for wanted in schema.inputs}
    own = {name: value for name, value in picture(sd1).items() if name in takes}
    if "image" in takes:
        own["image"] = torch.zeros(1, 64, 64, 3)
    return notices(schema, own | given)


def has_picture(node):
    """Whether a node knows the picture that its mask is of."""
    return bool({wanted.id for wanted in node.GET_SCHEMA().inputs} & set(WITH_PICTURE))


def takes_mask(node):
    """Whether a node has a mask of its own."""
    return "mask" in {wanted.id for wanted in node.GET_SCHEMA().inputs}


@pytest.mark.parametrize(("node", "name"), MASKS)
def test_a_black_mask_is_told_of(sd1, node, name):
    (said,) = told(node, sd1, **{name: torch.zeros(1, 64, 64)})
    assert said.startswith(f"{name} is black all over")
    assert ("nothing may change" in said) == (has_picture(node) and name == "mask")


@pytest.mark.parametrize(("node", "name"), MASKS)
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (24, 24), (68, 64)])
def test_a_mask_of_the_pictures_shape_is_not(sd1, node, name, size):
    mask = torch.zeros(1, *size)
    mask[0, 3, 5] = 1.0
    assert told(node, sd1, **{name: mask}) == []


@pytest.mark.parametrize("node", [node for node in NODES if has_picture(node) and takes_mask(node)])
def test_a_mask_of_another_shape_is_told_of_with_both_sizes(sd1, node):
    (said,) = told(node, sd1, mask=torch.ones(1, 64, 96))
    assert "96 x 64" in said and "64 x 64" in said and "stretched" in said


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"source": " ", "target": "a cat"}, "source is empty"),
        ({"source": "a cat", "target": ""}, "target is empty"),
        ({"source": "a cat", "target": "a cat"}, "the same text"),
        ({"source": "a cat", "target": "a cat", "weights": "cat: 2"}, ""),
        ({"source": "a cat", "target": "a dog"}, ""),
    ],
)
def test_prompts_that_ask_for_nothing_are_told_of(texts, said):
    found = notices(PromptToPrompt.GET_SCHEMA(), texts)
    assert len(found) == bool(said) and all(said in each for each in found)


def test_sentences_stand_for_a_target():
    schema = Pix2PixZeroNode.GET_SCHEMA()
    asked = {"source": "a cat", "target": "", "target_sentences": "a dog"}
    assert notices(schema, asked) == []
    assert len(notices(schema, asked | {"target_sentences": ""})) == 1
    prompts = {w.id: w.default for w in schema.inputs if w.id in ("source", "target")}
    assert prompts == {"source": "", "target": ""}


@pytest.mark.parametrize(
    ("asked", "said"), [(6, "7 steps (ddim_uniform makes 7 of 6)"), (5, "5 steps")]
)
def test_more_steps_than_were_asked_for_are_explained(sd1, asked, said):
    wires = settings_of(InvertDDIM) | {"model": sd1.model, "positive": prompt(sd1, "a cat")}
    wires |= {"latent": {"samples": torch.randn(1, 4, 8, 8)}, "scheduler": "ddim_uniform"}
    made = InvertDDIM.execute(**(wires | {"steps": asked, "strength": 1.0}))
    assert made.ui["palimpsest_text"][0].startswith(f"{said}, ")


BY_CONDITIONING = [
    node
    for node in NODES
    if {("source", "CONDITIONING"), ("target", "CONDITIONING")}
    <= {(wanted.id, wanted.io_type) for wanted in node.GET_SCHEMA().inputs}
]


@pytest.mark.parametrize("node", BY_CONDITIONING, ids=lambda node: node.SCHEMA.node_id[10:])
def test_one_prompt_as_source_and_target_is_told_of(sd1, node):
    cat, dog = prompt(sd1, "a cat"), prompt(sd1, "a dog")
    (said,) = told(node, sd1, source=cat, target=prompt(sd1, "a cat"))
    assert "the same prompt" in said
    assert told(node, sd1, source=cat, target=dog) == []
    assert told(node, sd1, source=cat, target=cat, control=object()) == []


@pytest.mark.parametrize("node", BY_CONDITIONING, ids=lambda node: node.SCHEMA.node_id[10:])
def test_a_trajectory_of_another_prompt_is_told_of(sd1, node):
    if "trajectory" not in {wanted.id for wanted in node.GET_SCHEMA().inputs}:
        pytest.skip("it takes no trajectory")
    cat, dog = prompt(sd1, "a cat"), prompt(sd1, "a dog")
    one, other = (chain(prompt_key(each)) for each in (cat, dog))
    assert told(node, sd1, source=cat, target=dog, trajectory=one) == []
    (said,) = told(node, sd1, source=cat, target=dog, trajectory=other)
    assert "another prompt than source" in said
    assert told(node, sd1, source=cat, target=dog, trajectory=chain("")) == []  # of older files


def test_notices_stand_below_the_report_and_change_no_result(sd1):
    asked = settings_of(CycleSDE) | {"steps": 2, "scheduler": "simple", "model": sd1.model}
    cat, empty = prompt(sd1, "a cat"), prompt(sd1, "")
    asked |= {"source": cat, "target": prompt(sd1, "a dog"), "negative": empty}
    asked |= {"latent": {"samples": torch.randn(1, 4, 8, 8)}, "mask": torch.zeros(1, 64, 64)}
    made = CycleSDE.execute(**asked)
    plain = CycleSDE.execute(
        **(asked | {"mask": torch.zeros(1, 64, 64).index_fill(2, torch.tensor([0]), 1.0)})
    )
    lines = made.ui["palimpsest_text"]
    assert lines[1].startswith("Note: mask is black all over: nothing may change")
    assert len(plain.ui["palimpsest_text"]) == 1 and len(lines) == 2
    assert torch.equal(made.args[0]["samples"], asked["latent"]["samples"])


def test_of_a_node_that_tells_nothing_else_too():
    class Quiet(Node):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Quiet", inputs=[io.Mask.Input("region")], outputs=[])

        @classmethod
        def run(cls, region):
            return io.NodeOutput()

    shown = Quiet.execute(region=torch.zeros(1, 8, 8)).ui
    assert [text[:12] for text in shown["palimpsest_text"]] == ["Note: region"]
