"""A sentence of ours that ends a run stands in the node that said it, until the next run."""

from palimpsest.tests.browser.front_end import graph_to_prompt, load_workflow, run, widget_values
from palimpsest.tests.browser.test_workflows import (
    DEMO,
    few_steps,
    hurry,
    set_widget,
)
from palimpsest.tests.server.pictures import find
from palimpsest.tests.templates import file_of

SENTENCE = "The word 'purple' is not in the target prompt"


def mistakes(page):
    """Text and whether it can be read, by the id of the node in which a mistake is told."""
    return page.evaluate(
        """() => Object.fromEntries(app.graph.nodes.flatMap(node => (node.widgets ?? [])
            .filter(w => w.name === 'palimpsest_mistake')
            .map(({element}) => [node.id, [element.textContent,
                element.scrollHeight <= element.clientHeight + 1]])))"""
    )


def test_it_stands_in_the_node_until_the_next_run(page, screenshot):
    load_workflow(page, few_steps(DEMO), "mistaken")
    before, prompt = widget_values(page), graph_to_prompt(page)
    words = find(prompt, "PalimpsestPromptToPrompt")
    set_widget(page, words, "weights", "purple: 2")
    ended = run(page)
    assert ended["kind"] == "execution_error"
    assert ended["exception_type"] == "PalimpsestError"
    page.wait_for_function(
        "app.graph.nodes.some(n => n.widgets?.some(w => w.name === 'palimpsest_mistake'))"
    )
    page.keyboard.press("Escape")  # core's own dialog
    page.wait_for_timeout(500)
    ((node, (text, whole)),) = mistakes(page).items()
    assert node == words and text.startswith(SENTENCE) and whole
    assert page.locator(".palimpsest-mistake").get_by_text(SENTENCE).is_visible()
    screenshot("told")
    shown = widget_values(page)
    assert SENTENCE not in str(shown) and SENTENCE not in str(graph_to_prompt(page))
    set_widget(page, words, "weights", "")
    assert widget_values(page) == before
    assert run(page)["kind"] == "execution_success"
    assert mistakes(page) == {}


def test_it_stands_in_cores_node_where_ours_runs_there(page):
    """What is wrong with Edit Guider is found while a node of core samples."""
    load_workflow(page, file_of("core_samplers"), "sampled")
    hurry(page, 3)
    prompt = graph_to_prompt(page)
    set_widget(page, find(prompt, "KSamplerSelect"), "sampler_name", "dpmpp_2m")
    ended = run(page)
    assert (ended["kind"], ended["exception_type"]) == ("execution_error", "PalimpsestError")
    page.wait_for_timeout(500)
    ((node, (text, whole)),) = mistakes(page).items()
    assert prompt[node]["class_type"] == "SamplerCustomAdvanced"
    assert text == ended["exception_message"].strip() and whole
    page.keyboard.press("Escape")
