"""The lists in the help page of Edit say what the tests beside this file hold, and no more."""

import re
from importlib import import_module
from pathlib import Path

import palimpsest
from palimpsest.tests.host.guests.verdicts import Row

HERE = Path(__file__).parent
PAGE = Path(palimpsest.__file__).parent / "web" / "docs" / "PalimpsestEdit.md"
HEADING = "## Other nodes on the same model"


def told():
    """(node, verdict, what to know) of the lines of the page, which stand below their verdicts."""
    section = PAGE.read_text(encoding="utf-8").split(f"{HEADING}\n")[1].split("\n## ")[0]
    return [
        (node, verdict.lower(), known)
        for verdict, lines in re.findall(r"^### (.+)\n([^#]*)", section, re.M)
        for node, known in re.findall(r"^- \*\*(.+?)\*\*:? ?(.*)$", lines, re.M)
    ]


def held():
    """The rows that the tests of this folder hold."""
    files = sorted(path.stem for path in HERE.glob("test_*.py"))
    modules = [import_module(f"{__package__}.{name}") for name in files if name != "test_table"]
    rows = [row for module in modules for row in getattr(module, "ROWS", ())]
    assert len(rows) == len({row.node for row in rows}) > 0
    return rows


def test_the_page_names_exactly_the_nodes_that_are_tested_with_their_verdicts():
    page = [Row(node, verdict) for node, verdict, _ in told()]
    assert len(page) == len(set(page))
    assert set(page) == {Row(row.node, row.verdict) for row in held()}


def test_what_is_said_to_be_refused_is_said_in_the_words_of_the_refusal():
    known = {node: text for node, _, text in told()}
    for row in held():
        assert f"*{row.said}" in known[row.node] if row.said else row.verdict != "refused"
