"""Help pages: each shows what its node does in a small picture, and names a template to try it."""

import json
import re
from pathlib import Path

import palimpsest
import pytest
from palimpsest.tests.cells import broken
from palimpsest.tests.make_help_pictures import GRIDS, HELP, OTHERS, PAINTED, WIDTH
from palimpsest.tests.templates import TITLES, file_of
from PIL import Image, ImageFont

ROOT = Path(palimpsest.__file__).parent
PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "web/docs").glob("*.md"))}
PICTURES = ROOT / "web" / "docs" / "pictures"
TEMPLATE = re.compile(r"\*\*Templates > comfyui-palimpsest > ([^*]+)\*\*")

#: Nodes without a picture, and why.
UNSEEN = {
    "PalimpsestLoadDiffusersFolder": "the user's own model, of which nothing is here",
    "PalimpsestLoadTrajectory": "what it loads is seen in Preview Trajectory",
    "PalimpsestSaveTrajectory": "it makes a file",
}


def section(page, title):
    """The text below a heading of a page."""
    return page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def types_in(name):
    """The types of the nodes of a workflow."""
    stored = json.loads(file_of(name).read_text("utf-8"))
    inside = stored.get("definitions", {}).get("subgraphs", [])
    return {node["type"] for graph in (stored, *inside) for node in graph["nodes"]}


@pytest.mark.parametrize("node", sorted(PAGES.keys() - UNSEEN.keys()))
def test_a_page_shows_its_node_in_one_small_picture_near_its_top(node):
    top, _, rest = PAGES[node].partition("\n## ")
    ((told, file),) = re.findall(r"!\[(.*)\]\((.*)\)", top)
    assert file == f"pictures/{node}.jpg" and "![" not in rest
    assert len(told) > 20 and '"' not in told  # the front end puts it into quotes as it is
    path = PICTURES / f"{node}.jpg"
    assert path.stat().st_size <= 25_000
    with Image.open(path) as picture:
        assert WIDTH <= picture.width <= 1.5 * WIDTH


def test_what_has_no_picture_is_known_and_nothing_is_left_over():
    assert UNSEEN.keys() <= PAGES.keys()
    assert [node for node in UNSEEN if "![" in PAGES[node]] == []
    drawn = {path.name for path in PICTURES.iterdir()}
    assert drawn == {f"{node}.jpg" for node in PAGES.keys() - UNSEEN.keys()}
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) <= 700_000


def test_every_picture_is_drawn_by_the_script_and_once():
    assert sorted([*GRIDS, *OTHERS]) == sorted(PAGES.keys() - UNSEEN.keys())


@pytest.mark.parametrize("node", GRIDS)
def test_a_picture_shows_nodes_of_its_workflow(node):
    name, cells = GRIDS[node]
    nodes = json.loads(file_of(name).read_text("utf-8"))["nodes"]
    there = {node.get("title") for node in nodes} | {node["type"] for node in nodes}
    assert {cell.node for cell in cells} <= there


def test_captions_fit_below_their_pictures():
    captions = [*PAINTED, *(cell.caption for _, cells in GRIDS.values() for cell in cells)]
    font = ImageFont.load_default(HELP.font)
    lines = {text: broken(text, font, HELP.picture).splitlines() for text in captions}
    assert [text for text, broken_up in lines.items() if len(broken_up) > 2] == []


@pytest.mark.parametrize("node", PAGES)
def test_an_example_names_a_template_that_has_the_node(node):
    named = TEMPLATE.findall(section(PAGES[node], "Example"))
    assert named and set(named) <= set(TITLES.values())
    shipped = {title for name, title in TITLES.items() if node in types_in(name)}
    assert not shipped or shipped & set(named)


@pytest.mark.parametrize("node", PAGES)
def test_templates_are_named_in_one_form(node):
    assert (
        len(
            re.findall(
                r"Templates|palimpsest_\w+|\b[0-4]\d [A-Z]\w\w", TEMPLATE.sub("", PAGES[node])
            )
        )
        == 0
    )


@pytest.mark.parametrize("node", PAGES)
def test_a_page_has_its_sections_in_order(node):
    titles = re.findall(r"^## (.*)$", PAGES[node], re.M)
    known = ["Inputs", "Outputs", "Example", "For researchers"]
    assert [title for title in known if title in titles] == [t for t in titles if t in known]
    assert "Example" in titles
