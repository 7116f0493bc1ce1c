"""Finding the pack's nodes, and telling its wires apart, in both renderers."""

import pytest
from palimpsest.tests.browser.front_end import load_workflow

#: What people type who want what we do, and one node that they should see on the first screen.
WORDS = {
    "change color": "PromptToPrompt",
    "recolor": "PromptToPrompt",
    "colorize": "LocalBlend",
    "replace object": "PromptToPrompt",
    "change background": "PromptToPrompt",
    "keep background": "Edit",
    "background drift": "Edit",
    "edit photo": "Edit",
    "edit image": "Edit",
    "real image editing": "Edit",
    "prompt to prompt": "PromptToPrompt",
    "p2p": "PromptToPrompt",
    "sketch to image": "SDEdit",
    "scribble to image": "SDEdit",
    "paint over": "SDEdit",
    "img2img": "SDEdit",
    "inpaint": "Inpaint",
    "remove object": "Inpaint",
    "liquify": "SDEDrag",
    "move object": "SDEDrag",
    "drag": "DragPoints",
    "unsampler": "InvertDDIM",
    "ddim inversion": "InvertDDIM",
    "rf inversion": "InvertUniInv",
    "null text": "InvertNullText",
    "ddpm inversion": "InvertEditFriendly",
    "style transfer": "PlugAndPlay",
    "restyle": "PlugAndPlay",
    "change pose": "MasaCtrl",
    "mask from text": "DiffEdit",
    "heat map": "AttentionMaps",
    "lora from one image": "IdentityLora",
}
FIRST_SCREEN = 8

SEARCH = """words => {
    const pinia = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia
    const search = pinia._s.get('nodeDef').nodeSearchService
    return Object.fromEntries(words.map(word => [
        word, search.searchNode(word, [], {limit: 64}).map(node => node.name)]))
}"""


def test_what_an_artist_types_finds_us_on_the_first_screen(page):
    found = page.evaluate(SEARCH, list(WORDS))
    places = {
        word: found[word].index(f"Palimpsest{name}") if f"Palimpsest{name}" in found[word] else None
        for word, name in WORDS.items()
    }
    assert {w: p for w, p in places.items() if p is None or p >= FIRST_SCREEN} == {}


def test_the_search_box_shows_what_the_search_finds(page, screenshot):
    load_workflow(page, {"nodes": [], "links": [], "version": 0.4})
    page.evaluate("() => { app.extensionManager.command.execute('Workspace.SearchBox.Toggle') }")
    page.get_by_role("combobox").last.fill("unsampler")
    page.get_by_text("Invert (DDIM, Unsampler)").first.wait_for(timeout=10_000)
    assert page.get_by_text("Invert (DDIM, Unsampler)").first.is_visible()
    screenshot("search")
    page.keyboard.press("Escape")


def test_no_two_nodes_of_the_front_end_share_a_name_with_ours(page):
    names = page.evaluate(
        """() => {
            const page = document.querySelector('#vue-app').__vue_app__.config.globalProperties
            return Object.values(page.$pinia._s.get('nodeDef').nodeDefsByName)
                .map(node => [node.name, node.display_name])
        }"""
    )
    ours = {shown: name for name, shown in names if name.startswith("Palimpsest")}
    others = [shown for name, shown in names if not name.startswith("Palimpsest")]
    assert len(ours) > 30
    assert set(ours) & set(others) == set()


TYPES = ["TRAJECTORY", "CONTROL", "POINTS", "COMPARISON"]
DRAWN = """type => [
    app.canvas.constructor.link_type_colors[type],
    app.canvas.default_connection_color_byType[type],
    getComputedStyle(document.documentElement).getPropertyValue(`--color-datatype-${type}`)]"""


@pytest.mark.parametrize("palette", ["dark", "light", "solarized"])
def test_our_wires_have_colours_of_their_own_in_every_palette(page, palette, screenshot):
    page.evaluate("name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
    page.wait_for_timeout(500)
    drawn = {name: page.evaluate(DRAWN, f"PALIMPSEST_{name}") for name in TYPES}
    assert all(len(set(colors)) == 1 and colors[0] for colors in drawn.values())
    cores = page.evaluate("Object.values(app.canvas.constructor.link_type_colors)")
    assert len({colors[0] for colors in drawn.values()}) == len(TYPES)
    assert all(cores.count(colors[0]) == 1 for colors in drawn.values())
    page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
