"""Rows per edit, counted on the small model with most of its layers taken out."""

import json
from dataclasses import replace

import pytest
from diffusers import UNet2DConditionModel
from palimpsest.benchmarks import rows
from safetensors.torch import save_file

#: Design, section 6.
TABLE = {
    "Direct Inversion + Prompt-to-Prompt": (650, 180),
    "Direct Inversion + Prompt-to-Prompt, source features kept": (650, 151),
    "DDIM + Prompt-to-Prompt": (450, 210),
    "DDIM + Prompt-to-Prompt, with its reconstruction": (450, 250),
    "Negative-prompt + Prompt-to-Prompt": (350, 180),
    "Null-text (50 inner steps) + Prompt-to-Prompt": (550, 330),
    "StyleDiffusion (50 rounds) + Prompt-to-Prompt": (650, 330),
    "Edit-Friendly + Prompt-to-Prompt (skip 12)": (328, 144),
    "EDICT (40 steps)": (720, 312),
    "EDICT (40 steps), on another grid": (720, 320),
    "a second edit of the same trajectory": (650, 130),
    "Direct Inversion + Prompt-to-Prompt with LocalBlend": (650, 200),
    "Direct Inversion + MasaCtrl": (550, 196),
    "Direct Inversion + Plug-and-Play": (250, 190),
    # A second source row in 46 steps.
    "Direct Inversion + MasaCtrl, the source under its own prompt": (550, 242),
    # Forward: one source row, the two that are moved, and the two of the guidance.
    "Direct Inversion + pix2pix-zero": (350, 300),
    "Direct Inversion + pix2pix-zero, another negative prompt": (350, 350),
    "SDE-Drag, one drag step (n 200, t0 0.6)": (480, 479),
    "SDE-Drag, one drag step, at guidance 1": (480, 240),
}


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "PAGE", tmp_path / "rows.md")
    return tmp_path / "rows.md"


@pytest.fixture
def cheap(monkeypatch):
    """The same table without running a network: every edit costs what is allowed."""
    monkeypatch.setattr(rows, "invert", lambda: None)
    entries = tuple(replace(e, count=lambda _, n=e.allowed: n) for e in rows.ENTRIES)
    monkeypatch.setattr(rows, "ENTRIES", entries)
    return entries


@pytest.fixture
def one_block(tmp_path, monkeypatch):
    """The cases with a network of one block: no row depends on how much a row computes."""
    data = tmp_path / "data"
    (data / "model").mkdir(parents=True)
    (data / "quick").symlink_to(rows.DATA / "quick")
    config = json.loads((rows.DATA / "model" / "unet_config.json").read_text()) | {
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "mid_block_type": None,
        "block_out_channels": [8],
        "norm_num_groups": 4,
    }
    (data / "model" / "unet_config.json").write_text(json.dumps(config))
    del config["_class_name"]
    network = UNet2DConditionModel(**config)
    save_file(network.state_dict(), data / "model" / "unet.safetensors")
    monkeypatch.setattr(rows, "DATA", data)


def printed(text):
    """{edit: (published, allowed, ours)}."""
    lines = [line.rsplit(None, 3) for line in text.splitlines()[1:]]
    return {name: tuple(map(int, numbers)) for name, *numbers in lines}


def test_every_edit_costs_what_the_design_allows(one_block, page, capsys):
    assert rows.main([]) == 0
    found = printed(capsys.readouterr().out)
    assert {name: numbers[:2] for name, numbers in found.items()} == TABLE
    # Not a row less either: then one that the published edit reads would be missing.
    assert {name: numbers[2] for name, numbers in found.items()} == {
        name: allowed for name, (_, allowed) in TABLE.items()
    }
    assert not page.exists()


@pytest.mark.parametrize("index", range(len(TABLE)))
def test_one_row_too_many_fails(index, cheap, page, monkeypatch, capsys):
    worse = replace(cheap[index], count=lambda _: cheap[index].allowed + 1)
    monkeypatch.setattr(rows, "ENTRIES", (*cheap[:index], worse, *cheap[index + 1 :]))
    assert rows.main([]) == 1
    assert capsys.readouterr().out.count("too many") == 1


def test_the_page_is_written_where_asked_for_and_names_day_and_machine(cheap, page):
    assert rows.main(["--write"]) == 0
    text = page.read_text(encoding="utf-8")
    for name, (published, allowed) in TABLE.items():
        assert f"| {name} | {published} | {allowed} | {allowed} |" in text
    assert "cores, torch 2." in text
    assert "/" not in text.splitlines()[-1]  # a machine, not its paths
