"""The rules of the house (design.md, section 3), read off the source."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import palimpsest
import pytest

ROOT = Path(palimpsest.__file__).parent
PRODUCT = ("pipelines", "hosts", "nodes")
SHIPPED = (*PRODUCT, "demo", "benchmarks")
HEAVY = {"diffusers", "transformers", "torchmetrics"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources(*folders):
    """The Python files of some folders."""
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name(path):
    return path.relative_to(ROOT).as_posix()


def offenders(found, *folders):
    """What `found` says of every file of some folders, where that is anything."""
    every = {name(path): found(path) for path in sources(*folders)}
    assert every, f"there are no sources in {folders}: the rule would be about nothing"
    return {file: what for file, what in every.items() if what}


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path, nodes):
    """What imports among `nodes` name: "torch.nn", or "palimpsest/hosts/comfy" for our own.

    Of `from .package import name` the name may be a module: both are told.
    """
    here = ("palimpsest", *path.relative_to(ROOT).parts[:-1])
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            home = here[: len(here) + 1 - node.level]
            module = [*home, *node.module.split(".")] if node.module else home
            yield "/".join(module)
            yield from ("/".join((*module, alias.name)) for alias in node.names)


def all_imports(path):
    return set(imported(path, ast.walk(parsed(path))))


def early_imports(path):
    """What a file imports as soon as it is imported itself."""

    def at_once(node):
        yield node
        if not isinstance(node, FUNCTIONS) and not is_for_type_checkers(node):
            for below in ast.iter_child_nodes(node):
                yield from at_once(below)

    return set(imported(path, at_once(parsed(path))))


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def part_of_the_house(module):
    """ "hosts" for "palimpsest/hosts/comfy", None for what is not ours or is the pack itself."""
    return module.split("/")[1] if module.startswith("palimpsest/") else None


def ours(path, *allowed):
    """The parts of the house that a file imports, but for those that it may."""
    return {part_of_the_house(m) for m in all_imports(path)} - {None, *allowed}


def test_pipelines_import_torch_and_each_other_only():
    def wrong(path):
        others = {m.split(".")[0] for m in all_imports(path) if not part_of_the_house(m)}
        return ours(path, "pipelines") | (others - set(sys.stdlib_module_names) - {"torch"})

    assert offenders(wrong, "pipelines") == {}


def test_hosts_know_pipelines_only():
    assert offenders(lambda path: ours(path, "hosts", "pipelines"), "hosts") == {}


def test_the_two_hosts_do_not_know_each_other():
    def other(path):
        own = name(path).split("/")[1]
        there = {m.split("/")[2] for m in all_imports(path) if m.startswith("palimpsest/hosts/")}
        return there & ({"comfy", "diffusers"} - {own})

    assert offenders(other, "hosts") == {}


def test_nobody_imports_nodes():
    found = lambda path: ours(path) & {"nodes"}
    assert offenders(found, "pipelines", "hosts", "demo", "benchmarks") == {}


def test_heavy_packages_are_imported_where_they_are_used():
    found = lambda path: HEAVY & {m.split(".")[0] for m in early_imports(path)}
    assert offenders(found, *PRODUCT) == {}


def test_no_module_imports_itself_by_a_detour():
    """Imports within functions count, those for type checkers do not."""
    modules = {
        name(path).removesuffix(".py").removesuffix("/__init__"): path for path in sources(*PRODUCT)
    }
    graph = {}
    for module, path in modules.items():
        late = set(imported(path, not_for_type_checkers(parsed(path))))
        near = {m.removeprefix("palimpsest/") for m in late}
        graph[module] = {m for m in near if m in modules and m != module}
    with_names = TopologicalSorter(graph)
    with_names.prepare()  # raises CycleError with the circle


def not_for_type_checkers(node):
    yield node
    if not is_for_type_checkers(node):
        for below in ast.iter_child_nodes(node):
            yield from not_for_type_checkers(below)


#: Prints what the pipelines have loaded, and then, inside ComfyUI, what of the heavy packages our
#: nodes add to what ComfyUI itself has loaded.
IMPORTS = """
import asyncio, importlib, json, runpy, sys
dev = runpy.run_path({dev!r})
pack = dev["load_package"]()
for module in {modules}:
    importlib.import_module("palimpsest." + module.removesuffix(".__init__"))
loaded = sorted(sys.modules)
dev["use_comfy"]()
import comfy.sd, comfy.samplers, nodes, comfy_api.latest, latent_preview
before = set(sys.modules)
asyncio.run(pack.comfy_entrypoint())
added = [m for m in set(sys.modules) - before if m.split(".")[0] in {heavy}]
print(json.dumps([loaded, added, "palimpsest.nodes.edit" in sys.modules]))
"""


@pytest.fixture(scope="module")
def imports():
    """What `IMPORTS` prints in a process of its own; one, since ComfyUI takes long to import."""
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in sources("pipelines")]
    code = IMPORTS.format(dev=str(ROOT / "dev.py"), modules=modules, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_pipelines_need_no_host(imports):
    loaded = {module.split(".")[0] for module in imports[0]}
    assert "torch" in loaded
    assert not {*HEAVY, "comfy", "nodes", "PIL"} & loaded


def test_importing_the_pack_loads_nothing_heavy(imports):
    """The pack itself was loaded with the pipelines, which load nothing heavy."""
    _, added, nodes_are_loaded = imports
    assert added == []
    assert nodes_are_loaded


FORBIDDEN = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "print": "a node pack logs",
    "pickle": "runs code of whoever wrote the file",
    "torch.load": "is pickle",
}


def test_nothing_forbidden_is_called():
    def found(path):
        calls = (node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call))
        return FORBIDDEN.keys() & ({ast.unparse(c.func) for c in calls} | all_imports(path))

    assert offenders(found, *PRODUCT) == {}


def test_functions_are_short():
    def too_long(path):
        functions = (n for n in ast.walk(parsed(path)) if isinstance(n, FUNCTIONS))
        return {f.name for f in functions if size(f) > 50}

    assert offenders(too_long, *SHIPPED) == {}


def size(function):
    """The lines of a function without its docstring."""
    first = function.body[0]
    told = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - told


def test_dev_py_needs_the_standard_library_only():
    others = {m.split(".")[0] for m in early_imports(ROOT / "dev.py")}
    assert others <= set(sys.stdlib_module_names)


def test_every_workflow_has_a_picture_and_nodes():
    workflows = sorted((ROOT / "workflows").glob("*.json"))
    assert workflows, "no workflow is shipped"
    for path in workflows:
        assert path.with_suffix(".jpg").exists(), f"{path.name} has no picture"
        # The API form has no "nodes" and would be offered as a broken template.
        assert json.loads(path.read_text(encoding="utf-8"))["nodes"]


def test_every_node_has_a_help_page():
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources("nodes"))
    ids = re.findall(r"node_id=\"(\w+)\"", code)
    assert ids, "no node states its node_id"
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert set(ids) == pages


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]], ids=["lint", "format"])
def test_ruff_is_content(check):
    command = [sys.executable, "-m", "ruff", *check, "--output-format", "concise", "--quiet"]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
