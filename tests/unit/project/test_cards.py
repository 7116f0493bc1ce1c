"""Cards of the Templates dialog: one for every workflow, of pictures that the workflow makes."""

import json
from types import SimpleNamespace

import pytest
from palimpsest.tests.cells import Cell, Look, broken, drawn, show
from palimpsest.tests.make_cards import CARD, CARDS, card_of
from palimpsest.tests.templates import TITLES, WORKFLOWS, card, file_of
from PIL import Image


def test_every_workflow_has_its_card():
    assert {path.stem for path in WORKFLOWS.glob("*.json")} == set(TITLES.values())
    assert TITLES.keys() == CARDS.keys()
    assert all(card(name).is_file() for name in TITLES)


@pytest.mark.parametrize("name", CARDS)
def test_a_card_shows_nodes_of_its_workflow(name):
    shipped = json.loads(file_of(name).read_text(encoding="utf-8"))
    there = {node.get("title") or node["type"] for node in shipped["nodes"]}
    assert {cell.node for cell in CARDS[name]} <= there


def test_a_cell_is_shown_by_the_node_of_its_title_that_can():
    node = lambda kind: {"class_type": kind, "inputs": {}, "_meta": {"title": "With it"}}
    asked = {"4": node("PalimpsestEdit"), "7": node("SaveImage")}
    edit = {"output_name": ["latent", "mask"], "output": ["LATENT", "MASK"], "output_node": False}
    save = {"output_name": [], "output": [], "output_node": True}
    server = SimpleNamespace(object_info=lambda: {"PalimpsestEdit": edit, "SaveImage": save})
    assert show(server, asked, Cell("", "With it")) == "7" and len(asked) == 2
    assert asked_of(asked, show(server, asked, Cell("", "With it", "mask"))) == {"mask": ["4", 1]}
    asked["1"] = node("PalimpsestLoadDemoModel")
    shown = show(server, asked, Cell("", "PalimpsestEdit", "latent", 2))
    assert asked_of(asked, shown) == {"samples": ["4", 0], "vae": ["1", 2]}


def asked_of(prompt, shown):
    """What is asked of the node whose picture a node shows."""
    ((source, _),) = prompt[shown]["inputs"].values()
    return prompt[source]["inputs"]


@pytest.mark.parametrize(("count", "size"), [(4, (820, 880)), (3, (1230, 440))])
def test_a_card_is_two_rows_of_two_or_one_row(count, size):
    cells = [Cell(f"{number}", "Original", arrow=number == 1) for number in range(count)]
    colors = ["red", "lime", "blue", "white"][:count]
    pictures = [Image.new("RGB", (128, 128), color) for color in colors]
    card = card_of(cells, pictures, [[[32, 64], [96, 64]]])
    assert card.size == size
    across = CARD.picture + 2 * CARD.gap
    assert card.getpixel((across + 50, 50)) == (0, 255, 0)
    assert card.getpixel((across + 205, 205)) == (255, 255, 255)  # the arrow


def test_a_sheet_is_a_card_as_it_is():
    sheet = Image.new("RGB", (30, 20))
    assert card_of([Cell("", "All of them")], [sheet], []) is sheet


def test_a_tall_sheet_is_folded_between_its_rows():
    sheet = Image.new("RGB", (20, 80), "white")
    for row, color in enumerate(("red", "lime", "blue")):
        sheet.paste(color, (2, 26 * row, 20, 26 * row + 24))
    card = card_of([Cell("", "All of them")], [sheet], [])
    assert card.size == (40, 50)
    assert card.getpixel((10, 10)) == (255, 0, 0) and card.getpixel((10, 40)) == (0, 255, 0)
    assert card.getpixel((30, 10)) == (0, 0, 255) and card.getpixel((30, 40)) == (255, 255, 255)


def test_a_caption_takes_the_lines_that_it_needs():
    font = SimpleNamespace(getlength=len)
    assert broken("a red heart on a wooden floor", font, 12) == "a red heart\non a wooden\nfloor"
    assert broken("heart", font, 2) == "heart"


def test_arrows_are_drawn_in_the_size_of_the_picture():
    look = Look(picture=64, gap=0, below=10, font=8)
    cells, picture = [Cell("", "Original", arrow=True)], Image.new("RGB", (128, 128))
    card = drawn(cells, [picture], [[[32, 64], [96, 64]]], look)
    assert card.size == (64, 74)
    assert card.getpixel((32, 32)) == (255, 255, 255) and card.getpixel((8, 32)) == (0, 0, 0)
    assert card.getpixel((16, 32)) == (232, 144, 60) and card.getpixel((48, 32)) == (72, 132, 240)
