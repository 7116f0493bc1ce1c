"""The benchmark of memory: what it measures, and when it fails."""

import subprocess

import pytest
from palimpsest.benchmarks import memory


@pytest.mark.parametrize(
    ("ours", "in_comfy", "status"), [(60, 60, 0), (61, 10, 1), (10, 61, 1)], ids=str
)
def test_it_fails_where_either_host_takes_more_than_is_allowed(
    ours, in_comfy, status, tmp_path, monkeypatch, capsys
):
    peaks = dict(zip(memory.KINDS, (n * 2**20 for n in (100, ours, in_comfy)), strict=True))
    monkeypatch.setattr(memory, "measure", lambda kind, pixels: peaks[kind])
    monkeypatch.setattr(memory, "PAGE", tmp_path / "memory.md")
    assert memory.main(["--write"]) == status
    page = memory.PAGE.read_text(encoding="utf-8")
    assert page == capsys.readouterr().out
    assert f"| ours | {ours} | {ours / 100:.2f} | 0.6 |" in page
    assert "torch 2." in page


def test_explicit_maps_and_kept_activations_show(monkeypatch):
    """In a process of their own, ours first: 256 pixels have 8 maps of 4 MiB in five layers each.

    It is one process for both, since importing takes longer than what is measured.
    """
    both = memory.CHILD.replace(
        "memory.spend(", "memory.INNER = 1; memory.spend('ours', 256); memory.spend("
    )
    monkeypatch.setattr(memory, "CHILD", both)
    run, said = subprocess.run, []

    def listen(*command, **options):
        said.append(run(*command, **options))
        return said[-1]

    monkeypatch.setattr(memory.subprocess, "run", listen)
    published = memory.measure("published loop", 256)
    ours, again = (int(line.split()[1]) for line in said[0].stdout.splitlines() if "peak" in line)
    assert published == again > 5 * 8 * 4 * 2**20
    assert ours < 0.6 * published
