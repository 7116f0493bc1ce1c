"""What the server says of our nodes: enough for an artist to find them and to use them."""

import re
from pathlib import Path

import palimpsest
import pytest

NODES = Path(palimpsest.__file__).parent / "nodes"
IDS = sorted(
    name
    for path in NODES.rglob("*.py")
    for name in re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
)


@pytest.fixture(scope="session")
def known(server):
    return server.object_info()


def test_the_server_lists_every_node_and_no_other_of_ours(known):
    assert len(IDS) >= 12
    assert sorted(name for name in known if name.startswith("Palimpsest")) == IDS


def inputs_of(about):
    """What a person sees of a node's inputs: their specifications by name."""
    groups = (about["input"].get(group, {}) for group in ("required", "optional"))
    return {name: spec for group in groups for name, spec in group.items()}


@pytest.mark.parametrize("node", IDS)
def test_every_node_explains_itself(known, node):
    about = known[node]
    assert about["category"].startswith("palimpsest/")
    assert about["description"].endswith(".")
    assert about["search_aliases"]
    assert not about["display_name"].startswith("Palimpsest")
    assert [name for name, spec in inputs_of(about).items() if not spec[1].get("tooltip")] == []
    assert len(about["output_tooltips"] or []) == len(about["output"])
    assert all(about["output_tooltips"] or [])


@pytest.mark.parametrize("node", IDS)
def test_every_help_page_tells_of_every_input_and_output(server, known, node):
    page = server.fetch(f"extensions/comfyui-palimpsest/docs/{node}.md").decode()
    about = known[node]
    assert page.startswith(f"# {about['display_name']}\n")
    told = {title: heads(page, title) for title in ("Inputs", "Outputs")}
    shown = {spec[1].get("display_name") or n: spec for n, spec in inputs_of(about).items()}
    names = {"Inputs": shown, "Outputs": about["output_name"]}
    assert [n for title in told for n in names[title] if head_of(told[title], n) is None] == []
    marked = {name for name in shown if "advanced" in head_of(told["Inputs"], name)}
    assert marked == {name for name, spec in shown.items() if spec[1].get("advanced")}


def heads(page, title):
    """What stands before the colons in the list of a section: the names, and what they are."""
    section = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^ *- ([^:]*):", section, re.M)


def head_of(found, name):
    """The first of them that has a name; None if none has."""
    return next((head for head in found if f"**{name}**" in head), None)
