"""Uni-Inv in a real server, on the embedded model."""

import torch
from palimpsest.tests.server.graphs import Editing, read_in, relative, saved, told
from palimpsest.tests.server.test_inversions_edict import CFG, STEPS, run
from palimpsest.tests.server.test_inversions_edict import Inverting as Other


class Inverting(Other):
    """The demo's graph, and Uni-Inv beside the other inversions."""

    def __init__(self, **wishes):
        super().__init__()
        wires = ("model", "positive", "latent", "steps", "scheduler", "strength", "negative")
        same = {name: self.edict.inputs[name] for name in wires}
        self.uni = self.add("PalimpsestInvertUniInv", **{**same, "cfg": CFG, **wishes})

    def along(self, **changes):
        """Add an Edit along Uni-Inv's trajectory."""
        return self.edit(**{"trajectory": self.uni[0], "cfg": CFG, **changes})


def test_it_stands_in_the_place_of_any_other_inversion_and_its_file_too(server):
    graph = Inverting()
    edited, same = graph.along(), graph.unedited(trajectory=graph.uni[0])
    masked = graph.along(mask=graph.scene[1])
    graph.add("PalimpsestSaveTrajectory", trajectory=graph.uni[0], filename_prefix="uni/a")
    origin = graph.save(graph.encoded[0], "origin")
    entry, latent, back, inside = run(server, graph, edited, same, masked)
    assert told(entry, graph.uni).startswith(f"{STEPS} steps, {2 * STEPS} UNet rows")
    assert told(entry, edited).startswith(f"{2 * STEPS + read_in(STEPS)} UNet rows")
    assert told(entry, edited).endswith("exact\ncorrection is not read: nothing drifts")
    picture = saved(server, entry, origin)
    assert relative(back, picture) < 1e-6
    assert relative(latent, picture) > 0.01
    kept = inside == picture
    assert 0.1 < float(kept.double().mean()) < 0.9
    about = server.object_info()
    names = [about[f"PalimpsestInvert{kind}"]["output_name"] for kind in ("DDIM", "UniInv")]
    assert names[0] == names[1]
    again = Editing(steps=STEPS)
    loaded = again.add("PalimpsestLoadTrajectory", file="uni/a_00001.safetensors [output]")
    _, second = run(server, again, again.edit(trajectory=loaded[0], cfg=CFG))
    assert torch.equal(latent, second)
