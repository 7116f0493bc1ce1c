"""Edit without a negative: the empty prompt where a control knows it, else what to do."""

import pytest
import torch
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, saved


def test_a_negative_left_open_is_the_empty_prompt_bit_for_bit(server):
    graph = Editing()
    wired, left = graph.edit(), graph.edit()
    del left.inputs["negative"]
    files = [graph.save(edit[0], name) for edit, name in ((wired, "wired"), (left, "open"))]
    entry = server.run(graph)
    one, other = (saved(server, entry, file) for file in files)
    assert torch.equal(one, other)


def test_also_for_core_s_samplers(server):
    graph = Editing()
    latents = []
    for name in ("wired", "open"):
        guider = graph.add("PalimpsestEditGuider", **graph.edit_inputs())
        if name == "open":
            del guider.inputs["negative"]
        made = graph.add(
            "SamplerCustomAdvanced",
            noise=graph.inverted[3],
            guider=guider[0],
            sampler=graph.add("KSamplerSelect", sampler_name="euler")[0],
            sigmas=graph.inverted[2],
            latent_image=graph.add("EmptyLatentImage", width=128, height=128, batch_size=1)[0],
        )
        latents.append(graph.save(made[0], f"guided_{name}"))
    entry = server.run(graph)
    one, other = (saved(server, entry, file) for file in latents)
    assert torch.equal(one, other)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_without_a_control_only_an_edit_that_needs_none_goes_without(server, cfg):
    graph = Editing()
    edit = graph.edit(cfg=cfg)
    del edit.inputs["negative"], edit.inputs["control"]
    graph.save(edit[0], f"alone_{cfg:g}")
    if cfg == 1:
        server.run(graph)
        return
    with pytest.raises(Failed, match="negative is not connected, which cfg 3 needs: connect"):
        server.run(graph)
