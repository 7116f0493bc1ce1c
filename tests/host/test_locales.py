"""Every string of the pack in every language that it speaks: none missing, none left over."""

import asyncio
import json
import re
from pathlib import Path

import comfy.samplers
import palimpsest
import pytest
from comfy_api.latest import io

ROOT = Path(palimpsest.__file__).parent
LOCALES = ROOT / "locales"
LANGUAGES = ["ko", "zh", "zh-TW", "ja"]
HELP = ["ko", "zh"]
NODES = asyncio.run(asyncio.run(palimpsest.comfy_entrypoint()).get_node_list())
SCHEMAS = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in NODES}
every = pytest.mark.parametrize("language", LANGUAGES)

#: What text in each language has and English lacks.
LETTERS = {
    "ko": "[\uac00-\ud7a3]",
    "zh": "[\u4e00-\u9fff]",
    "zh-TW": "[\u4e00-\u9fff]",
    "ja": "[\u3040-\u30ff\u4e00-\u9fff]",
}
#: Of files and of core: their names are the same everywhere.
OWN_CHOICES = {"folder", "file", "scheduler"}


def stored(language, name):
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def english():
    """What a person sees of every node, in the form of a locale's nodeDefs.json."""
    return {name: english_of(schema) for name, schema in SCHEMAS.items()}


def english_of(schema):
    outputs = {
        str(place): {"name": output.display_name, "tooltip": output.tooltip}
        for place, output in enumerate(schema.outputs)
    }
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {wanted.id: english_input(wanted) for wanted in schema.inputs},
        "outputs": outputs,
    }


def english_input(wanted):
    told = {"name": wanted.display_name or wanted.id, "tooltip": wanted.tooltip}
    if getattr(wanted, "placeholder", None):
        told["placeholder"] = wanted.placeholder
    if isinstance(wanted, io.Combo.Input) and wanted.id not in OWN_CHOICES:
        assert wanted.options != comfy.samplers.SCHEDULER_NAMES
        told["options"] = {option: option for option in wanted.options}
    return told


def leaves(tree, path=()):
    """Every string of nested objects, by its path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def holes(text):
    return sorted(re.findall(r"\{\w+\}", text))


@every
def test_every_string_of_every_node_is_translated(language):
    wanted, there = dict(leaves(english())), dict(leaves(stored(language, "nodeDefs")))
    assert sorted(wanted.keys() - there.keys()) == []
    assert sorted(there.keys() - wanted.keys()) == []
    assert [path for path, text in there.items() if not text.strip()] == []
    sentences = [path for path in wanted if path[-1] in ("tooltip", "description")]
    letters = re.compile(LETTERS[language])
    assert [path for path in sentences if not letters.search(there[path])] == []


@every
def test_the_front_end_can_read_them(language):
    """It takes @ for a link to another text, | for a plural, and braces for a value."""
    texts = dict(leaves(stored(language, "nodeDefs")))
    assert [path for path, text in texts.items() if re.search("[@|{}]", text)] == []


@every
def test_no_two_nodes_are_called_alike(language):
    names = [node["display_name"] for node in stored(language, "nodeDefs").values()]
    assert len(set(names)) == len(names)


@every
def test_wires_and_menus_have_names(language):
    main = stored(language, "main")
    types = {t.io_type for s in SCHEMAS.values() for t in (*s.inputs, *s.outputs)}
    ours = {name for name in types if name.startswith("PALIMPSEST_")}
    menus = {part for schema in SCHEMAS.values() for part in schema.category.split("/")}
    assert main["dataTypes"].keys() == ours
    assert main["nodeCategories"].keys() == menus


def said_by_widgets():
    """Every sentence and label of `web/`: what goes through `t`, and what looks like a sentence."""
    found = {"latent cells", "pixels"}  # choices, as a sentence names them
    for path in (ROOT / "web").glob("*.js"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S)
        code = re.sub(r"(?m)(?<![:\"'`])//.*$", "", code)
        code = re.sub(r'"\s*\+\s*"', "", code)
        found |= {
            s for s in re.findall(r'"([A-Z{][^"\n]* [^"\n]*)"', code) if re.search("[a-z]", s)
        }
        found |= set(re.findall(r'\bt\("([^"]+)"', code))
        found |= set(re.findall(r'\w: \["([A-Z]\w+)", "', code))  # a label and its tooltip
    return found


@every
def test_every_sentence_of_our_widgets_is_translated_with_its_values(language):
    there = stored(language, "main")["palimpsest"]
    wanted = said_by_widgets()
    assert len(wanted) > 50
    assert sorted(wanted - there.keys()) == []
    assert sorted(there.keys() - wanted) == []
    assert [key for key, text in there.items() if holes(key) != holes(text) or not text] == []
    assert [key for key, text in there.items() if re.search("[@|]", text)] == []


PAGES = sorted((ROOT / "web" / "docs").glob("*.md"))


def shape(page):
    """What a translation keeps: headings, list items, links, pictures, lines of code."""
    counted = {"headings": r"^#+ ", "items": r"^ *- ", "code": r"^    \S", "fences": r"^```"}
    told = {name: len(re.findall(pattern, page, re.M)) for name, pattern in counted.items()}
    return told | {"links": sorted(re.findall(r"\]\(([^)]+)\)", page))}


@pytest.mark.parametrize("language", HELP)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem[10:])
def test_a_help_page_is_translated_whole(language, page):
    english = page.read_text(encoding="utf-8")
    there = (page.parent / page.stem / f"{language}.md").read_text(encoding="utf-8")
    assert shape(there) == shape(english)
    title = stored(language, "nodeDefs")[page.stem]["display_name"]
    assert there.startswith(f"# {title}\n")
    templates = r"comfyui-palimpsest > ([^*]+)\*\*"
    assert re.findall(templates, there) == re.findall(templates, english)
    words = [
        line for line in there.splitlines() if len(line) > 40 and not line.startswith((" ", "!"))
    ]
    letters = re.compile(LETTERS[language])
    links = re.compile(r"arxiv.org|github.com")
    assert [line for line in words if not letters.search(line) and not links.search(line)] == []
