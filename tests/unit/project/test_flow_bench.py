"""`bench flow`: both embedded models are edited, what was measured is kept, and told in a table."""

import json

import pytest
from palimpsest.benchmarks.flow import __main__ as bench
from palimpsest.benchmarks.flow.methods import METHODS, Models

QUICK = {"unet_few": 8 * 3, "few": 8 * 3, "uni_edit": 9 * 3}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    file = tmp_path / "flow.jsonl"
    monkeypatch.setattr(bench, "KEPT", file)
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    return file


def test_an_interrupted_run_goes_on_and_costs_what_is_counted(kept, capsys):
    models, names = Models.load(), list(QUICK)
    first = next(bench.measure(models, 1, names))
    rest = list(bench.measure(models, 1, names))
    assert [o.method for o in (first, *rest)] == names
    assert {o.method: o.rows for o in (first, *rest)} == QUICK
    assert list(bench.measure(models, 1, names)) == []
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["method"] for line in lines] == names
    assert len({line["weights"] for line in lines}) == 2  # each model by its own
    assert bench.main(["--kept", "--write"]) == 0
    told = capsys.readouterr().out
    page = (kept.parent / "flow.md").read_text()
    for name, rows in QUICK.items():
        line = next(line for line in told.splitlines() if f"| {METHODS[name].name} |" in line)
        assert f"| {rows} |" in line and line in page


def test_an_unknown_method_is_named(kept, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--methods", "walk,fly"])
    assert "there is no fly; there are" in capsys.readouterr().err


def test_nothing_measured_is_one_sentence(kept):
    with pytest.raises(SystemExit, match="holds nothing that these weights measured"):
        bench.main(["--kept"])
