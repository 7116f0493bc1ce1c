"""The workflow that compares all inversions, run in the real front end and read off its sheet."""

import json
import re

import pytest
from palimpsest.demo.judge import judge
from palimpsest.tests.browser.front_end import load_workflow, run_unseen
from palimpsest.tests.browser.test_workflows import hurry
from palimpsest.tests.server.pictures import saved_pictures
from palimpsest.tests.templates import file_of

WORKFLOW = file_of("compare_inversions")
#: Methods whose source comes back number for number: only the VAE is between.
EXACT = {"Direct Inversion", "Edit Friendly", "CycleDiffusion", "EDICT"}
#: Few steps are enough for these to edit.
EDITED = {"DDIM", *EXACT}
SIDE, GAP = 256, 6


def labels():
    """The rows' labels, in the order of the chain."""
    shipped = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    (inside,) = shipped["definitions"]["subgraphs"]
    return [n["widgets_values"][0] for n in inside["nodes"] if n["type"] == "PalimpsestCompare"]


def cell(sheet, row, column, rows):
    """A picture of the sheet at its own size, found from the lower right corner."""
    bottom = sheet.shape[0] - 2 * GAP - (rows - 1 - row) * (SIDE + GAP)
    right = sheet.shape[1] - 2 * GAP - (2 - column) * (SIDE + GAP)
    return sheet[bottom - SIDE : bottom : 2, right - SIDE : right : 2]


@pytest.mark.parametrize("opened", ["canvas"], indirect=True)
def test_all_inversions_stand_on_one_sheet(page, server, screenshot):
    load_workflow(page, WORKFLOW, "compare_inversions")
    screenshot("loaded")
    hurry(page)
    prompt, entry = run_unseen(page, server)
    (sheet,) = saved_pictures(server, prompt, entry).values()
    names = labels()
    assert len(names) == len(set(names)) >= len(EDITED)
    assert sheet.shape[0] > len(names) * (SIDE + GAP)
    told = {
        prompt[key]["inputs"]["label"]: entry["outputs"][key]["palimpsest_text"][0]
        for key, node in prompt.items()
        if node["class_type"] == "PalimpsestCompare"
    }
    assert sorted(told) == sorted(names)
    worth = {
        name: float(re.search(r"^reconstruction ([\d.]+) dB", text, re.M)[1])
        for name, text in told.items()
    }
    best = max(worth.values())
    assert {name for name, decibels in worth.items() if decibels > best - 0.1} >= EXACT
    assert worth["DDIM"] < best - 3
    for row, name in enumerate(names):
        shown = [judge(cell(sheet, row, column, len(names))).caption for column in (0, 2)]
        assert shown[0] == "a red heart on grass", name
        assert name not in EDITED or shown[1] == "a blue heart on grass", name
    page.wait_for_timeout(1000)  # the sheet is drawn
    screenshot("done")


@pytest.mark.parametrize("name", sorted(EXACT))
def test_the_methods_are_there_that_give_the_source_back(name):
    assert name in labels()
