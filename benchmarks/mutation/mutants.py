"""One-place changes of a source: what a slip of the pen, or of thought, would write there.

Operators and comparisons become their neighbours, numbers grow by one, conditions are turned round,
arguments that have a default and steps that nothing else depends on are left out. Text is left as
it is: docstrings, annotations and what an error says. So are zip's `strict`, which no input trips,
and what only a type checker reads.
"""

import ast
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}

#: Functions that are easily taken for one another.
CONFUSED = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "floor": "ceil",
    "ceil": "floor",
    "zeros_like": "ones_like",
    "ones_like": "zeros_like",
    "amax": "amin",
    "amin": "amax",
}

#: Methods that give back their own kind, so that one may be forgotten.
FORGOTTEN = {
    "abs",
    "clamp",
    "clone",
    "detach",
    "exp",
    "flip",
    "log",
    "mean",
    "round",
    "sqrt",
    "sum",
}


@dataclass(frozen=True)
class Mutant:
    """One changed place.

    Attributes:
        path: Of the file, from the root of the checkout.
        line: Of the place, from 1.
        text: What stands on that line.
        column: Where in it the place begins, from 0.
        start, end: The place in the file's bytes.
        before, after: What stands there, and what shall.
    """

    path: str
    line: int
    text: str
    column: int
    start: int
    end: int
    before: str
    after: str

    def applied(self, root: Path) -> bytes:
        """The file with its place changed."""
        source = (root / self.path).read_bytes()
        return source[: self.start] + self.after.encode() + source[self.end :]


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """Every mutant of a file, in its order."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    name, found = path.relative_to(root).as_posix(), []
    for node, after in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset
        before = source[start:end].decode()
        whole = source.splitlines()[node.lineno - 1].decode()
        column = node.col_offset - (len(whole) - len(whole.lstrip()))
        found.append(Mutant(name, node.lineno, whole.strip(), column, start, end, before, after))
    return found


def sample(mutants: Iterable[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many of them, the same for the same seed; all where there are no more, or `count` is 0."""
    every = list(mutants)
    if not 0 < count < len(every):
        return every
    chosen = random.Random(seed).sample(range(len(every)), count)
    return [every[i] for i in sorted(chosen)]


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """Nodes of a tree, and the text that takes their place."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        waiting += reversed(list(_parts(node)))
        for changed in _expressions(node):
            yield node, f"({_text(changed)})"
        if isinstance(node, ast.If | ast.While) and not _turns_anyway(node.test):
            yield node.test, f"(not ({_text(node.test)}))"
        if isinstance(node, ast.AugAssign):
            yield node, _text(_with(node, op=SWAPPED[type(node.op)]()))
        if _can_go(node):
            yield node, "pass"


def _turns_anyway(test: ast.expr) -> bool:
    """Whether a condition is turned round by what is in it, or is for type checkers alone."""
    return isinstance(test, ast.Compare | ast.UnaryOp) or ast.unparse(test) == "TYPE_CHECKING"


def _text(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(node))


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """What of a node is code, and no text for people or for type checkers."""
    if isinstance(node, ast.Raise | ast.JoinedStr) or _is_strict(node):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        yield from (part for part in _listed(value) if isinstance(part, ast.AST))


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """The same node with other parts."""
    parts = {name: value for name, value in ast.iter_fields(node)}
    return type(node)(**parts | fields)


def _expressions(node: ast.AST) -> Iterator[ast.AST]:
    """What an expression could have been."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield _with(node, ops=[*node.ops[:i], SWAPPED[type(op)](), *node.ops[i + 1 :]])
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPPED:
        yield _with(node, op=SWAPPED[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield _with(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    """What a call could have been."""
    name = node.func
    if isinstance(name, ast.Name) and name.id in CONFUSED:
        yield _with(node, func=ast.Name(CONFUSED[name.id]))
    if isinstance(name, ast.Attribute) and name.attr in CONFUSED:
        yield _with(node, func=_with(name, attr=CONFUSED[name.attr]))
    if isinstance(name, ast.Attribute) and name.attr in FORGOTTEN:
        yield name.value
    for i, given in enumerate(node.keywords):
        if not _is_strict(given):
            yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def _is_strict(node: ast.AST) -> bool:
    return isinstance(node, ast.keyword) and node.arg == "strict"


def _can_go(node: ast.AST) -> bool:
    """Whether a statement may be left out, and no name is missing after it."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call)
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    return isinstance(node, ast.AugAssign | ast.Raise | ast.Break | ast.Continue)
