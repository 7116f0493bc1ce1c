"""Mutation testing of pipelines/: whether the tests notice a change of one place.

    python dev.py bench mutation [--count 400] [--seed 10] [--only inversion/edict] [--write]

Every mutant is tried in a process of its own, against the unit tests that reach its line. What
survives is listed: it is a hole in the tests, or it changes nothing, and then
benchmarks/mutation/equivalent.jsonl says why. --count 0 tries every mutant there is. With --write
the table goes to benchmarks/results/mutation.md.
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..tables import RESULTS
from .mutants import Mutant, mutants_of, sample
from .page import page, survivors, table
from .trial import Reached, Verdict, try_mutant, watch

ROOT = Path(__file__).resolve().parents[2]
PAGE = RESULTS / "mutation.md"


def tried(mutants: list[Mutant], reached: Reached, jobs: int) -> Iterator[tuple[Mutant, Verdict]]:
    """Try mutants, some at a time, in their order."""
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        verdicts = pool.imap(partial(_try, reached), mutants)
        yield from zip(mutants, verdicts, strict=True)
        pool.close()  # a worker that is ended from outside complains
        pool.join()


def _try(reached: Reached, mutant: Mutant) -> Verdict:
    tests = reached.of(mutant)
    seconds = sum(reached.seconds.get(test, 0.0) for test in tests)
    return try_mutant(mutant, tests, seconds, ROOT)


def main(arguments: list[str]) -> int:
    """Try the mutants and print the table; 1 if fewer than 95 % were noticed."""
    parser = argparse.ArgumentParser(prog="dev.py bench mutation", description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="how many; 0 for all")
    parser.add_argument("--seed", type=int, default=10, help="which ones")
    parser.add_argument("--only", default="", help="files whose path holds this")
    parser.add_argument("--tests", default="tests/unit", help="groups of tests, by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="how many at a time")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/mutation.md")
    options = parser.parse_args(arguments)
    files = [path for path in sorted((ROOT / "pipelines").rglob("*.py"))]
    every = [m for path in files for m in mutants_of(path, ROOT) if options.only in m.path]
    chosen = sample(every, options.count, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        reached = watch(options.tests.split(","), ROOT, Path(folder))
    results = []
    for mutant, verdict in tried(chosen, reached, options.jobs):
        results.append((mutant, verdict))
        if verdict in ("survived", "not reached"):
            print(
                survivors([results[-1]]) or f"(equivalent) {mutant.path}:{mutant.line}", flush=True
            )
    print(f"\n{table(results)}\n{survivors(results)}")
    if options.write:
        told = page(results, options.tests, len(every), options.seed)
        PAGE.write_text(told, encoding="utf-8")
    return 0
