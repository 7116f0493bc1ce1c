"""What the trials came to."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path, PurePosixPath

from ..tables import describe_machine
from .mutants import Mutant
from .trial import Verdict

#: Mutants that change nothing anyone could see, a JSON object a line: the fields of `Mutant` that
#: outlive other changes of its file, and why.
EQUIVALENT = Path(__file__).parent / "equivalent.jsonl"

NAMES = ("path", "text", "column", "before", "after")

Tried = Sequence[tuple[Mutant, Verdict]]


Key = tuple[str, str, int, str, str]


def equivalent() -> frozenset[Key]:
    """The mutants that are none."""
    kept = map(json.loads, EQUIVALENT.read_text(encoding="utf-8").splitlines())
    return frozenset(tuple(m[name] for name in NAMES) for m in kept)


def key(mutant: Mutant) -> Key:
    """How the list of equivalent mutants names one."""
    before, after = (" ".join(text.split()) for text in (mutant.before, mutant.after))
    return mutant.path, mutant.text, mutant.column, before, after


def table(tried: Tried) -> str:
    """By package: how many, and which part of those that mean something was noticed."""
    known, counts = equivalent(), Counter()
    for mutant, verdict in tried:
        same = verdict == "survived" and key(mutant) in known
        package = PurePosixPath(mutant.path).parent.as_posix()
        for name in (package, "all"):
            counts[name, "equivalent" if same else verdict] += 1
    lines = [
        "| package | mutants | equivalent | noticed | survived | score |",
        "|---|---|---|---|---|---|",
    ]
    packages = sorted({name for name, _ in counts} - {"all"})
    for name in (*packages, "all"):
        same, noticed = counts[name, "equivalent"], counts[name, "noticed"] + counts[name, "hung"]
        left = counts[name, "survived"] + counts[name, "not reached"]
        score = noticed / (noticed + left) if noticed + left else 1.0
        total = same + noticed + left
        lines.append(f"| {name} | {total} | {same} | {noticed} | {left} | {score:.1%} |")
    return "\n".join(lines) + "\n"


def survivors(tried: Tried) -> str:
    """Those that no test notices, a line each."""
    known = equivalent()
    lines = [
        f"{m.path}:{m.line}: {key(m)[3]} -> {key(m)[4]} in {m.text!r} ({verdict})"
        for m, verdict in tried
        if verdict in ("survived", "not reached") and key(m) not in known
    ]
    return "\n".join(lines)


def page(tried: Tried, groups: str, whole: int, seed: int) -> str:
    """The results page."""
    chosen = f"{len(tried)} of {whole}, chosen by seed {seed}" if len(tried) < whole else "all"
    left = survivors(tried)
    return f"""# Mutation testing of pipelines/

Each mutant changes one place of a file of `pipelines/`; the tests of `{groups}` that reach its line
run until one fails. *Equivalent* ones, which change nothing that could be seen, are listed with
their reasons in `benchmarks/mutation/equivalent.jsonl` and count neither way. Mutants: {chosen}.

{table(tried)}
Not noticed:

{chr(10).join(f"    {line}" for line in left.splitlines()) or "    none"}

`python dev.py bench mutation --write` makes this page. {date.today():%d %B %Y},
{describe_machine()}.
"""
