"""The front end comes up with the pack in it, in both renderers; and the harness does its work."""

from palimpsest.tests.browser.front_end import graph_to_prompt, load_workflow, missing_nodes, run

PLAIN = {
    "nodes": [
        {
            "id": 1,
            "type": "EmptyImage",
            "pos": [200, 200],
            "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
            "widgets_values": [64, 64, 1, 255],
        },
        {
            "id": 2,
            "type": "SaveImage",
            "pos": [600, 200],
            "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            "widgets_values": ["tests/graph"],
        },
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    "version": 0.4,
}


def test_the_default_graph_is_drawn_by_the_asked_renderer(page, request, screenshot):
    page.evaluate("app.extensionManager.command.execute('Comfy.LoadDefaultWorkflow')")
    page.wait_for_timeout(500)
    nodes = page.evaluate("app.graph.nodes.length")
    assert nodes
    drawn_as_elements = page.locator("[data-node-id]").count()
    assert drawn_as_elements == (nodes if "vue" in request.node.name else 0)
    screenshot("default")


def test_run_makes_the_picture(page, server, screenshot):
    load_workflow(page, PLAIN)
    assert missing_nodes(page) == []
    assert graph_to_prompt(page)["1"]["inputs"]["color"] == 255
    ended = run(page)
    assert ended["kind"] == "execution_success"
    (picture,) = server.images(server.wait(ended["prompt_id"]), "2")
    assert picture.getpixel((0, 0)) == (0, 0, 255)
    page.wait_for_timeout(500)
    screenshot("done")


def test_an_unknown_node_is_told_apart(page):
    first, second = PLAIN["nodes"]
    load_workflow(page, {**PLAIN, "nodes": [{**first, "type": "NoSuchNode"}, second]})
    assert missing_nodes(page) == ["NoSuchNode"]
