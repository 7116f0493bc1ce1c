"""The Templates dialog as a newcomer meets it: titles in order, cards, and one's own photos."""

import pytest
from palimpsest.dev import PACK
from palimpsest.tests.browser.front_end import (
    graph_to_prompt,
    missing_nodes,
    open_template,
    open_templates,
)
from palimpsest.tests.cells import embedded
from palimpsest.tests.server.pictures import as_tensor
from palimpsest.tests.templates import TITLES

#: Each is run in one renderer, both among them; those for SDXL differ by the model's name alone.
PHOTOS = [
    ("canvas", "photo_words_sd15"),
    ("canvas", "photo_repaint_sd15"),
    ("vue", "photo_strokes_sd15"),
    ("vue", "photo_drag_sd15"),
]


def test_titles_are_in_reading_order_and_every_card_shows_a_picture(page, screenshot):
    page.evaluate("app.extensionManager.setting.set('Comfy.Templates.SortBy', 'alphabetical')")
    names = open_templates(page, PACK)
    assert names == sorted(TITLES.values()) == list(TITLES.values())
    broken = page.evaluate(
        """() => [...document.querySelectorAll("[data-testid^='template-workflow-'] img")]
            .filter(image => image.complete && !image.naturalWidth).map(image => image.src)"""
    )
    assert broken == []
    screenshot("dialog")
    page.keyboard.press("Escape")


@pytest.mark.parametrize(("opened", "name"), PHOTOS, indirect=["opened"])
def test_a_template_for_own_photos_lacks_nothing_but_its_model(page, server, screenshot, name):
    open_template(page, PACK, TITLES[name])
    assert missing_nodes(page) == []
    told = page.get_by_text("v1-5-pruned-emaonly-fp16.safetensors is missing").first
    told.wait_for(state="attached", timeout=10_000)
    screenshot("opened")
    assert list((server.base / "input").glob("palimpsest_example*.webp"))
    models = page.evaluate("app.graph.nodes.flatMap(node => node.properties.models ?? [])")
    assert [set(model) for model in models] == [{"name", "url", "directory"}]
    assert all(model["url"].endswith(f"/{model['name']}") for model in models)
    prompt = embedded(graph_to_prompt(page))
    for node in prompt.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 8
    entry = server.run(prompt)
    (saved,) = (key for key, node in prompt.items() if node["class_type"] == "SaveImage")
    assert as_tensor(server.images(entry, saved)[0]).shape == (128, 128, 3)
