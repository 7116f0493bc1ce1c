"""A trial of a mutant: the tests that reach its line, in a process that reads the changed file.

The process is a copy of one that has imported what is slow to import, but nothing of ours. A test
that fails, that cannot be imported any more, or that does not end, has noticed.
"""

import importlib.machinery
import os
import resource
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Literal

import hypothesis  # noqa: F401
import pytest
import safetensors.torch  # noqa: F401
import torch
from coverage import CoverageData

from .mutants import Mutant

Verdict = Literal["noticed", "survived", "hung", "not reached"]

#: Seconds that a trial may take beyond its tests' own time, and how often it may take that time.
PATIENCE, SLOWNESS = 20, 5

#: Bytes that a trial may take beyond what it starts with.
MEMORY = 6 * 2**30


#: The test that reads what every function takes by default, and so runs no line of theirs.
READS_DEFAULTS = "tests/unit/test_defaults.py"


@dataclass(frozen=True)
class Reached:
    """What the tests reach.

    Attributes:
        tests: By file and line, the tests that come there, by pytest's names for them.
        seconds: What each takes.
    """

    tests: dict[tuple[str, int], frozenset[str]]
    seconds: dict[str, float]

    def of(self, mutant: Mutant) -> list[str]:
        """The tests of a mutant, the quickest first.

        A line that no test reaches while it runs, such as a default or a constant, is read by all
        of the test files that reach the mutant's file, and by the test of the defaults.
        """
        lines = range(mutant.line, mutant.line + mutant.before.count("\n") + 1)
        found = {t for line in lines for t in self.tests.get((mutant.path, line), ())}
        if not found:
            own = [tests for (path, _), tests in self.tests.items() if path == mutant.path]
            files = {test.split("::")[0] for test in frozenset().union(*own)} | {READS_DEFAULTS}
            found = {test for test in self.seconds if test.split("::")[0] in files}
        return sorted(found, key=lambda test: (self.seconds.get(test, 0.0), test))


def watch(groups: list[str], root: Path, folder: Path) -> Reached:
    """Run tests once, all green, and see what they reach.

    Raises:
        SystemExit: If one of them fails: what a mutant breaks could not be told.
    """
    data, report = folder / "coverage", folder / "junit.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *groups]
    command += ["--cov", root / "pipelines", "--cov-context", "test", "--cov-report", ""]
    environment = {**os.environ, "COVERAGE_FILE": str(data), "OMP_NUM_THREADS": "1"}
    if subprocess.run([*command, f"--junitxml={report}"], cwd=root, env=environment).returncode:
        raise SystemExit("The tests fail as they are: mend that first.")
    return Reached(_reached(data, root), _seconds(report))


def _reached(data: Path, root: Path) -> dict[tuple[str, int], frozenset[str]]:
    kept, found = CoverageData(str(data)), {}
    kept.read()
    for file in kept.measured_files():
        path = Path(file).relative_to(root).as_posix()
        for line, contexts in kept.contexts_by_lineno(file).items():
            found[path, line] = frozenset(name.rsplit("|", 1)[0] for name in contexts if name)
    return found


def _seconds(report: Path) -> dict[str, float]:
    cases = ET.parse(report).iter("testcase")
    return {
        f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}": float(case.get("time"))
        for case in cases
    }


def try_mutant(mutant: Mutant, tests: list[str], seconds: float, root: Path) -> Verdict:
    """Whether tests notice a mutant.

    Args:
        mutant: The change.
        tests: From `Reached.of`.
        seconds: What they take without it.
        root: Of the checkout.
    """
    if not tests:
        return "not reached"
    source = mutant.applied(root)
    process = os.fork()
    if not process:
        _end_in(int(PATIENCE + SLOWNESS * seconds))
        os._exit(_run(source, root / mutant.path, tests, root))
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return "hung" if os.WTERMSIG(status) == signal.SIGALRM else "noticed"
    return "noticed" if os.WEXITSTATUS(status) else "survived"


def _end_in(seconds: int) -> None:
    """Let this process neither run nor grow for ever."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _run(source: bytes, path: Path, tests: list[str], root: Path) -> int:
    """Run tests, with `source` in the place of what stands in the file."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(root)
    read = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader: importlib.machinery.SourceFileLoader, name: str) -> CodeType | None:
        if Path(loader.get_filename(name)) == path:
            return compile(source, str(path), "exec", dont_inherit=True)
        return read(loader, name)

    importlib.machinery.SourceFileLoader.get_code = get_code
    torch.set_num_threads(1)
    try:
        return pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])
    except BaseException:  # what a mutant does to pytest itself is noticed too
        return 1
