"""The word picker in Prompt-to-Prompt, LocalBlend and Attention Maps, in both renderers."""

import json

import pytest
from palimpsest.tests.browser.front_end import graph_to_prompt, load_workflow, widget_values
from palimpsest.tests.browser.test_workflows import hurry, run
from palimpsest.tests.templates import file_of

P2P, BLEND, MAPS = "PalimpsestPromptToPrompt", "PalimpsestLocalBlend", "PalimpsestAttentionMaps"


def open_typed(page, name, **texts):
    """Load a shipped workflow whose prompts are typed in, not wired."""
    shipped = json.loads(file_of(name).read_text(encoding="utf-8"))
    for node in shipped["nodes"]:
        if node["type"] in (P2P, MAPS):
            cut = {entry["link"] for entry in node["inputs"] if entry["type"] == "STRING"}
            shipped["links"] = [link for link in shipped["links"] if link[0] not in cut]
            for entry in node["inputs"]:
                entry["link"] = None if entry["link"] in cut else entry["link"]
    for node in shipped["nodes"]:
        for output in node.get("outputs", []):
            left = {link[0] for link in shipped["links"]}
            output["links"] = [link for link in output["links"] or [] if link in left]
    load_workflow(page, shipped, name)
    page.wait_for_timeout(500)  # fields take their saved texts when they are first shown
    for field, text in texts.items():
        type_into(page, P2P, field, text)


def type_into(page, kind, field, value):
    page.evaluate(
        """([kind, field, value]) => {
            const node = app.graph.nodes.find(node => node.comfyClass === kind)
            node.widgets.find(widget => widget.name === field).value = value
        }""",
        [kind, field, value],
    )


def value_of(page, kind, field):
    """What Run would send of a field."""
    (node,) = [node for node in graph_to_prompt(page).values() if node["class_type"] == kind]
    return node["inputs"][field]


def picker(page, kind):
    """The rows of a node, brought into view."""
    page.evaluate(
        """kind => {
            const node = app.graph.nodes.find(node => node.comfyClass === kind)
            app.canvas.ds.scale = 1
            app.canvas.ds.offset = [250 - node.pos[0], 120 - node.pos[1]]
            app.canvas.setDirty(true, true)
            node.widgets.find(widget => widget.name === 'palimpsest_words').element.id = 'picker'
        }""",
        kind,
    )
    return page.locator("#picker")


def seen(rows):
    """Columns as a person reads them: above, and below with its state."""
    return rows.evaluate(
        """rows => [...rows.querySelectorAll('.palimpsest-words-column')].map(column => {
            const [above, below] = ['source', 'target'].map(row =>
                column.querySelector(`[data-row=${row}]`))
            const state = (below ?? above).className.match(/palimpsest-word-(\\w+)/)[1]
            return [above.textContent.trim(), below?.textContent.trim() ?? '', state]
        })"""
    )


def wait_for(page, rows, wanted):
    for _ in range(60):
        if seen(rows) == wanted:
            return
        page.wait_for_timeout(100)
    assert seen(rows) == wanted


HEART = [
    ["a", "a", "kept"],
    ["red", "blue", "changed"],
    ["heart", "heart", "kept"],
    ["on", "on", "kept"],
    ["grass", "grass", "kept"],
]


def test_it_shows_what_reads_what_after_every_change_before_any_run(page, screenshot):
    source, target = "a red heart on grass", "a blue heart on grass"
    open_typed(page, "demo", source=source, target=target)
    rows = picker(page, P2P)
    wait_for(page, rows, HEART)
    type_into(page, P2P, "target", "a big heart with dots")
    wait_for(
        page,
        rows,
        [
            ["a", "a", "kept"],
            ["red", "big", "changed"],
            ["heart", "heart", "kept"],
            ["on", "with", "changed"],
            ["grass", "dots", "changed"],
        ],
    )
    type_into(page, P2P, "mode", "refine")
    refined = [
        ["a", "a", "kept"],
        ["red", "", "gone"],
        ["", "big", "new"],
        ["heart", "heart", "kept"],
        ["on", "", "gone"],
        ["grass", "", "gone"],
        ["", "with", "new"],
        ["", "dots", "new"],
    ]
    wait_for(page, rows, refined)
    screenshot("refine")
    type_into(page, P2P, "mode", "replace")
    type_into(page, P2P, "target", "a heart")
    told = rows.locator(".palimpsest-words-told")
    told.get_by_text("Replace needs as many words in the target prompt").wait_for()
    type_into(page, P2P, "one_per_line", True)
    type_into(page, P2P, "target", "\n a blue heart on grass\na star on grass")
    wait_for(page, rows, HEART)


def test_a_click_chooses_a_word_and_its_values_go_into_the_text_fields(page, screenshot):
    source, target = "a red heart on grass", "a blue heart on grass,"
    open_typed(page, "demo", source=source, target=target)
    rows = picker(page, P2P)
    wait_for(page, rows, [*HEART[:4], ["grass", "grass,", "changed"]])
    rows.get_by_role("button", name="blue").click()
    weight = rows.locator(".palimpsest-words-weight")
    weight.fill("2.5")
    weight.press("Enter")
    rows.get_by_text("blue ×2.5").wait_for()
    assert value_of(page, P2P, "weights") == "blue: 2.5"
    rows.locator(".palimpsest-words-from").fill("0.2")
    rows.locator(".palimpsest-words-from").press("Enter")
    rows.locator(".palimpsest-words-to").fill("0.8")
    rows.locator(".palimpsest-words-to").press("Enter")
    page.wait_for_timeout(500)
    assert value_of(page, P2P, "word_windows") == "blue: 0.2-0.8"
    screenshot("weighed")
    rows.get_by_role("button", name="grass,").click()
    weight.fill("-1")
    weight.press("Enter")
    page.wait_for_timeout(500)
    assert value_of(page, P2P, "weights") == "blue: 2.5\ngrass: -1"
    rows.get_by_text("blue ×2.5").click()
    rows.get_by_role("button", name="clear").click()
    page.wait_for_timeout(500)
    assert value_of(page, P2P, "weights") == "grass: -1"
    assert value_of(page, P2P, "word_windows") == ""
    type_into(page, P2P, "weights", "heart: 3, grass: 2")  # the fields stay, and are read
    rows.get_by_text("heart ×3").wait_for()


def test_words_of_local_blend_are_chosen_by_a_click(page, screenshot):
    source, target = "a red heart on grass", "a blue star on grass"
    open_typed(page, "local_blend", source=source, target=target)
    type_into(page, BLEND, "words", "")
    rows = picker(page, BLEND)
    wait_for(page, rows, [HEART[0], HEART[1], ["heart", "star", "changed"], *HEART[3:]])
    rows.get_by_role("button", name="heart").click()
    rows.get_by_role("button", name="star").click()
    rows.get_by_role("button", name="red").click()
    page.wait_for_timeout(400)
    assert value_of(page, BLEND, "words") == "heart, red"
    assert value_of(page, BLEND, "target_words") == "star"
    pressed = rows.locator("[aria-pressed=true]").all_text_contents()
    assert sorted(pressed) == ["heart", "red", "star"]
    screenshot("blend")
    rows.get_by_role("button", name="heart").click()
    page.wait_for_timeout(400)
    assert value_of(page, BLEND, "words") == "red"


def test_words_chosen_while_the_server_answers_do_not_lose_the_answer(page):
    open_typed(page, "local_blend")
    rows = picker(page, BLEND)
    rows.get_by_role("button", name="white").wait_for()
    held = []
    page.route("**/palimpsest/words", lambda route: held.append(route))
    type_into(page, P2P, "target", "a blue triangle on a wooden floor")
    page.wait_for_timeout(500)
    type_into(page, BLEND, "words", "floor")
    page.wait_for_timeout(500)
    assert len(held) == 2  # Prompt-to-Prompt has asked as well
    for answer in held:
        answer.continue_()
    page.unroute("**/palimpsest/words")
    rows.get_by_role("button", name="blue").wait_for(timeout=5000)
    assert rows.locator("[aria-pressed=true]").all_text_contents() == ["floor"]


def test_words_of_attention_maps_are_chosen_by_a_click(page):
    open_typed(page, "attention_maps")
    page.evaluate(
        """kind => {
            const nodes = app.graph.nodes.filter(node => node.comfyClass === kind)
            app.graph.remove(nodes[1])
        }""",
        MAPS,
    )
    rows = picker(page, MAPS)
    rows.get_by_role("button", name="triangle").last.click()
    page.wait_for_timeout(400)
    assert value_of(page, MAPS, "words") == "triangle"


def test_prompts_that_come_by_wire_are_shown_after_a_run(page, server):
    load_workflow(page, file_of("demo"))
    rows = picker(page, P2P)
    rows.get_by_text("A prompt comes by wire: its words show here after a run.").wait_for()
    hurry(page, 2)
    assert run(page)["kind"] == "execution_success"
    wait_for(page, picker(page, P2P), HEART)
    scene = "app.graph.nodes.find(n => n.comfyClass === 'PalimpsestDemoScene')"
    page.evaluate(f"{scene}.widgets.find(w => w.name === 'edit_shape').value = 'star'")
    page.evaluate(f"{scene}.widgets.find(w => w.name === 'edit_color').value = 'keep'")
    assert run(page)["kind"] == "execution_success"
    page.wait_for_timeout(500)
    words = "app.graph.nodes.find(n => n.comfyClass === 'PalimpsestPromptToPrompt')"
    shown = page.evaluate(f"{words}.widgets.find(w => w.name === 'target').value")
    assert shown == "a red star on grass"
    told = page.evaluate(
        """() => app.nodeOutputs[String(app.graph.nodes
            .find(n => n.comfyClass === 'PalimpsestInvertDDIM').id)].palimpsest_text[0]"""
    )
    assert "kept from the last run" in told  # the scene is the same, whatever shall become of it


def test_nothing_of_it_is_saved_or_sent(page):
    shipped = json.loads(file_of("local_blend").read_text(encoding="utf-8"))
    load_workflow(page, shipped, "local_blend")
    page.wait_for_timeout(800)
    kept = {str(node["id"]): node["widgets_values"] for node in shipped["nodes"]}
    assert widget_values(page) == kept
    assert all("palimpsest_words" not in node["inputs"] for node in graph_to_prompt(page).values())


def test_what_is_only_read_is_no_input_of_an_app(page, request):
    """What the App builder asks of a widget, in each renderer; the picker stays to be seen."""
    load_workflow(page, file_of("demo"))
    hurry(page, 2)
    assert run(page)["kind"] == "execution_success"
    page.wait_for_timeout(500)
    widgets = page.evaluate(
        """app.graph.nodes.flatMap(node => node.widgets ?? [])
            .filter(w => /^palimpsest_/.test(w.name))
            .map(w => [w.name, w.options.disabled, w.options.canvasOnly])"""
    )
    in_canvas = "canvas" in request.node.name
    assert {name for name, *_ in widgets} == {"palimpsest_words", "palimpsest_report"}
    assert all(rest == [True, in_canvas] for _, *rest in widgets)
    assert page.locator(".palimpsest-words").first.is_visible()
    assert page.locator(".palimpsest-report").first.is_visible()


@pytest.mark.parametrize("opened", ["vue"], indirect=True)  # the builder has no other renderer
def test_the_app_builder_takes_inputs_and_no_report(page, screenshot):
    load_workflow(page, file_of("demo"))
    hurry(page, 2)
    assert run(page)["kind"] == "execution_success"
    page.evaluate(
        "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia"
        "._s.get('appMode').enterBuilder()"
    )
    taken = page.get_by_test_id("builder-io-item")
    invert = page.locator("[data-node-id]").filter(has_text="Invert (DDIM")
    for shown in (
        page.locator(".palimpsest-report").first,
        page.locator(".palimpsest-words").first,
    ):
        shown.click(force=True)
    assert shown.is_visible()
    page.wait_for_timeout(300)
    assert taken.count() == 0
    invert.get_by_text("steps", exact=True).click(force=True)
    taken.wait_for()
    screenshot("builder")
    page.get_by_role("button", name="Exit app builder").click()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"source": "a", "target": "b", "mode": "swap"}, "The mode is 'swap', it must be auto or"),
        ({"source": "a" * 5000, "target": "b", "mode": "auto"}, "The source is no text of up to"),
        ({"source": 3, "target": "b", "mode": "auto"}, "The source is no text of up to"),
        ({"source": "a", "target": "b", "mode": "auto", "weights": "c"}, "The word weights have"),
        (
            {"source": "a", "target": "b", "mode": "auto", "weights": "c: 2"},
            "The word 'c' is not in the target prompt 'b'",
        ),
        (
            {"source": "a", "target": "b", "mode": "auto", "cross_window": 7},
            "The cross window: 0 to 7 must be two rising fractions",
        ),
        ({"source": "(a:inf)", "target": "b", "mode": "auto"}, "which must be a number"),
    ],
    ids=str,
)
def test_the_server_answers_what_cannot_be_read_in_one_sentence(server, asked, said):
    assert said in server.post("palimpsest/words", asked)["error"]
