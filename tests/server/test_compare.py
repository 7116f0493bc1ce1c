"""Compare, and the cost that Edit tells it, in a real server on the embedded model."""

import re

import pytest
from palimpsest.tests.harness import Failed
from palimpsest.tests.server.graphs import Editing, told
from palimpsest.tests.server.pictures import as_tensor, psnr
from torch import ones

STEPS = 3


def compared(graph, edit, label, *, mask=True, **more):
    """Add a Compare of an Edit."""
    wires = {
        "vae": graph.model[2],
        "source": graph.scene[0],
        "edit": edit[0],
        "reconstruction": edit[1],
        "cost": edit[2],
        "label": label,
    }
    return graph.add(
        "PalimpsestCompare", **wires, **({"mask": graph.scene[1]} if mask else {}), **more
    )


def numbers(text):
    """The decibels that a Compare tells, by what they are of."""
    return {what: float(n) for what, n in re.findall(r"^(\D+) ([\d.]+) dB$", text, re.MULTILINE)}


def test_two_methods_stand_below_each_other_with_what_they_are_worth(server):
    graph = Editing(steps=STEPS)
    drifts, direct = graph.edit(correction="none"), graph.edit()
    rows = [compared(graph, drifts, "DDIM")]
    rows.append(compared(graph, direct, "Direct Inversion", comparison=rows[0][0]))
    sheets = [graph.show(row[1], f"sheet {n}") for n, row in enumerate(rows)]
    source, mask = (
        graph.show(graph.scene[0], "source"),
        graph.add("MaskToImage", mask=graph.scene[1]),
    )
    shown = [source, graph.show(mask[0], "mask")]
    shown += [graph.decode(edit[output], "part") for edit in (drifts, direct) for output in (1, 0)]
    entry = server.run(graph)
    source, mask, *parts = (as_tensor(server.images(entry, node.id)[0]) for node in shown)
    everywhere, outside = ones(source.shape[:2]) > 0, mask[..., 0] == 0
    for row, edit, back, edited in zip(
        rows, (drifts, direct), parts[::2], parts[1::2], strict=True
    ):
        found, cost = numbers(told(entry, row)), told(entry, edit).split(" UNet rows")[0]
        assert found == {
            "reconstruction": pytest.approx(psnr(back, source, everywhere), abs=0.1),
            "edit, outside the mask": pytest.approx(psnr(edited, source, outside), abs=0.1),
        }
        whole, inverted = re.match(
            r"(\d+) rows, [\d.]+ s\ninversion (\d+) rows, [\d.]+ s\n", told(entry, row)
        ).groups()
        assert (int(whole), int(inverted)) == (STEPS + int(cost), STEPS)
    pages = [as_tensor(server.images(entry, node.id)[0]) for node in sheets]
    assert pages[1].shape[0] > pages[0].shape[0] + 200
    # The last cell of the last row is the edit, twice as large.
    cell = pages[1][-12 - 256 : -12, -12 - 256 : -12]
    twice = parts[-1].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert float((cell - twice).abs().max()) < 1.5 / 255


def test_a_trajectory_that_was_saved_still_knows_its_cost(server):
    graph = Editing(steps=STEPS)
    graph.add("PalimpsestSaveTrajectory", trajectory=graph.inverted[0], filename_prefix="costly")
    server.run(graph)
    graph = Editing(steps=STEPS)
    (combo,) = server.object_info()["PalimpsestLoadTrajectory"]["input"]["required"].values()
    (file,) = (name for name in combo[1]["options"] if "costly" in name)
    loaded = graph.add("PalimpsestLoadTrajectory", file=file)
    row = compared(graph, graph.edit(trajectory=loaded[0]), "loaded", mask=False)
    graph.show(row[1], "sheet")
    entry = server.run(graph)
    assert re.search(rf"^inversion {STEPS} rows, [\d.]+ s$", told(entry, row), re.MULTILINE)


def test_the_inputs_that_are_optional_may_be_left_out(server):
    graph = Editing(steps=STEPS)
    row = compared(graph, graph.edit(), "alone", mask=False)
    for name in ("reconstruction", "cost"):
        del row.inputs[name]
    sheet = graph.show(row[1], "sheet")
    entry = server.run(graph)
    assert re.fullmatch(r"edit [\d.]+ dB", told(entry, row))
    assert len(server.images(entry, sheet.id)) == 1


def test_pictures_that_do_not_belong_together_are_refused(server):
    batch, other = Editing(steps=1, batch=2), Editing(steps=1, width=64, height=64)
    for graph, words in (
        (batch, "The edit holds 2 pictures"),
        (other, "The edit is 64 x 64 pixels"),
    ):
        graph.show(compared(graph, graph.edit(), "bad")[1], "never")
        with pytest.raises(Failed) as caught:
            server.run(graph)
        assert caught.value.node_type == "PalimpsestCompare"
        assert words in caught.value.message
