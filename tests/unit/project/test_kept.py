"""What a benchmark measured is kept, and goes by the weights that it was measured with."""

from dataclasses import dataclass

import pytest
from palimpsest.benchmarks import kept
from palimpsest.benchmarks.controls import __main__ as controls
from palimpsest.benchmarks.drag import __main__ as drag
from palimpsest.benchmarks.inversions import __main__ as inversions
from palimpsest.benchmarks.tables import RESULTS


@dataclass(frozen=True)
class Outcome:
    name: str
    rows: int


@pytest.fixture
def learn(tmp_path):
    """A model folder of some weights."""

    def put(content):
        folder = tmp_path / content
        (folder / "unet").mkdir(parents=True)
        (folder / "unet" / "weights.safetensors").write_text(content)
        return folder

    return put


def test_lines_of_other_weights_are_kept_and_not_read(tmp_path, learn):
    file, first, second = tmp_path / "kept.jsonl", learn("first"), learn("second")
    assert kept.kept_by(first, file) == []
    kept.keep(first, file, Outcome("a", 3))
    kept.keep(second, file, Outcome("b", 4))
    assert kept.kept_by(first, file) == [{"name": "a", "rows": 3}]
    assert kept.kept_by(second, file) == [{"name": "b", "rows": 4}]


def test_the_same_weights_in_another_place_are_the_same(tmp_path, learn):
    other = tmp_path / "moved" / "x"
    other.mkdir(parents=True)
    (other / "w.safetensors").write_text("first")
    one = kept.weights_of(learn("first"))
    assert kept.weights_of(tmp_path / "moved") == one != kept.weights_of(RESULTS)


@pytest.mark.parametrize("bench", [controls, drag, inversions], ids=lambda bench: bench.KEPT.stem)
def test_a_page_is_not_written_of_nothing(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "KEPT", tmp_path / "none.jsonl")
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"none\.jsonl holds nothing that these weights measured"):
        bench.main(["--kept", "--write", "--count", "1"])
    assert list(tmp_path.iterdir()) == []


def test_the_committed_controls_are_of_todays_weights():
    assert len(controls.kept()) == sum(1 for _ in controls.KEPT.open())


@pytest.mark.parametrize("bench", [controls, drag, inversions], ids=lambda bench: bench.KEPT.stem)
def test_every_committed_line_is_read_where_its_weights_are_todays(bench, monkeypatch):
    monkeypatch.setattr(kept, "weights_of", lambda folder: AnyWeights())
    assert len(bench.kept()) > 100


class AnyWeights:
    def __eq__(self, other):
        return True

    __hash__ = None
