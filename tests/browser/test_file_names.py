"""File names that the page fills in, as it does in core's own nodes, in both renderers."""

import time

from palimpsest.tests.browser.front_end import graph_to_prompt, load_workflow, widget_values

#: The same words in core's Save Image and in our two nodes that write files.
NAME = "%date:yyyy-MM-dd%/%Steps.value% %Steps.nothing% %year% %Nobody.value%"


def graph(name):
    """A number, core's Save Image, and our nodes that write files, all under one name."""
    kinds = {
        "PrimitiveInt": [17],
        "SaveImage": [name],
        "PalimpsestSaveTrajectory": [name],
        "PalimpsestIdentityLora": [16, 100, 0.0002, 0.5, 0, "fixed", name],
    }
    nodes = [
        {"id": n, "type": kind, "pos": [300 * n, 0], "widgets_values": values}
        for n, (kind, values) in enumerate(kinds.items(), start=1)
    ]
    nodes[0]["title"] = "Steps"
    return {"nodes": nodes, "links": [], "version": 0.4}


def test_the_page_fills_in_our_names_as_it_does_cores(page):
    load_workflow(page, graph(NAME))
    before = time.strftime("%Y-%m-%d")
    prompt = graph_to_prompt(page)
    core = prompt["2"]["inputs"]["filename_prefix"]
    assert prompt["3"]["inputs"]["filename_prefix"] == core
    assert prompt["4"]["inputs"]["save_as"] == core
    date, _, rest = core.partition("/")
    assert date in {before, time.strftime("%Y-%m-%d")}
    assert rest == "17 %Steps.nothing% %year% %Nobody.value%"


def test_the_workflow_keeps_the_words(page):
    load_workflow(page, graph(NAME))
    graph_to_prompt(page)
    kept = widget_values(page)
    assert kept["3"] == [NAME]
    assert kept["4"][-1] == NAME


def test_a_name_without_words_stays_as_it_is(page):
    load_workflow(page, graph("cats/100 % cat"))
    prompt = graph_to_prompt(page)
    assert prompt["3"]["inputs"]["filename_prefix"] == "cats/100 % cat"
    assert prompt["4"]["inputs"]["save_as"] == "cats/100 % cat"
