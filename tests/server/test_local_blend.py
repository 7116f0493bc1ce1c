"""LocalBlend and a stack of controls in a real server, on the embedded model."""

import numpy
import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, relative, saved, told

STEPS = 4


def refused(server, graph):
    with pytest.raises(Failed) as caught:
        server.run(graph)
    assert caught.value.node_type == "PalimpsestLocalBlend"
    return caught.value.message


class Blended(Editing):
    """The demo's graph with LocalBlend on its Prompt-to-Prompt."""

    def __init__(self, **wishes):
        super().__init__(steps=STEPS)
        self.blend = self.blended(**wishes)

    def blended(self, **wishes):
        known = {"words": "heart", "target_words": "", "leave_out": "", "threshold": 0.5}
        known |= {"start": 0.2, "leave_out_threshold": 0.3, "mask_mode": "intersection"}
        return self.add("PalimpsestLocalBlend", **{"control": self.words[0], **known, **wishes})

    def look(self, edit, name):
        """Save the mask of an Edit as a picture."""
        return self.show(self.add("MaskToImage", mask=edit[3])[0], f"blend/{name}")


def test_the_picture_is_kept_where_the_words_are_not_and_the_mask_is_given(server):
    graph = Blended()
    masa = graph.add("PalimpsestMasaCtrl", start=0.5, start_layer=0.4, control=graph.blend[0])
    own = {"mask": graph.scene[1], "mask_mode": "replace", "words": ""}
    edits = {
        "free": graph.edit(),
        "blend": graph.edit(control=graph.blend[0]),
        "stack": graph.edit(control=masa[0]),
        "own": graph.edit(control=graph.blended(**own)[0]),
    }
    files = {name: graph.save(node[0], f"blend/{name}") for name, node in edits.items()}
    masks = {name: graph.look(node, name) for name, node in edits.items()}
    origin = graph.save(graph.encoded[0], "blend/origin")
    entry = server.run(graph)
    picture = saved(server, entry, origin)
    latents = {name: saved(server, entry, node) for name, node in files.items()}
    rows = {name: int(told(entry, node).split()[0]) for name, node in edits.items()}
    read = {"free": 2, "blend": STEPS, "stack": 2 * STEPS, "own": 2}
    assert rows == {name: 2 * STEPS + count for name, count in read.items()}
    for name, node in masks.items():
        (shown,) = server.images(entry, node.id)
        white = torch.from_numpy(numpy.array(shown.convert("L"))) > 127
        kept = ~white[::8, ::8]
        if name == "free":
            assert not kept.any() and "LocalBlend" not in told(entry, edits[name])
            continue
        assert torch.equal(latents[name][:, :, kept], picture[:, :, kept])
        assert 0.1 < float(kept.double().mean()) < 0.9
        assert f"let {float((~kept).double().mean()):.0%} of" in told(entry, edits[name])
        assert relative(latents[name], picture) > 0.01
        images = entry["outputs"][edits[name].id]["images"]
        assert [image["type"] for image in images] == ["temp"]
    assert "images" not in entry["outputs"][edits["free"].id]


def test_a_mask_of_no_cell_leaves_the_picture_and_says_so(server):
    graph = Blended()
    black = graph.add("SolidMask", value=0.0, width=128, height=128)
    edit = graph.edit(control=graph.blended(mask=black[0])[0])
    file, origin = graph.save(edit[0], "blend/black"), graph.save(graph.encoded[0], "blend/origin")
    entry = server.run(graph)
    assert torch.equal(saved(server, entry, file), saved(server, entry, origin))
    assert "the picture is unchanged; lower its threshold" in told(entry, edit)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"words": "hart"}, "'hart' is not in the source prompt 'a red heart on grass'"),
        ({"target_words": "star"}, "'star' is not in the target prompt 'a blue heart on grass'"),
        ({"leave_out": "snow"}, "'snow' is not in the prompts, of which the first is 'a red heart"),
        ({"words": " , "}, "LocalBlend has no words: name what shall change"),
    ],
    ids=str,
)
def test_words_that_are_not_there_are_refused_with_what_is(server, wishes, said):
    graph = Blended(**wishes)
    graph.save(graph.edit(control=graph.blend[0])[0], "blend/none")
    assert said in refused(server, graph)


def test_a_control_without_prompts_has_no_words(server):
    graph = Blended()
    masa = graph.add("PalimpsestMasaCtrl", start=0.5, start_layer=0.4)
    graph.save(graph.edit(control=graph.blended(control=masa[0])[0])[0], "blend/none")
    assert "The control comes from MasaCtrl, which knows no prompts" in refused(server, graph)


def test_one_prompt_to_prompt_goes_on_from_another(server):
    graph = Editing(steps=STEPS)
    usual = graph.words.inputs
    onward = {"source": graph.scene[3], "target": "a blue heart on snow", "control": graph.words[0]}
    last = graph.add("PalimpsestPromptToPrompt", **{**usual, **onward})
    direct = graph.add("PalimpsestPromptToPrompt", **{**usual, "target": "a blue heart on snow"})
    edits = [graph.edit(control=node[0], target=node[2]) for node in (last, direct)]
    files = [graph.save(node[0], "blend/chain") for node in edits]
    entry = server.run(graph)
    assert torch.equal(*(saved(server, entry, node) for node in files))
