"""What a person does in ComfyUI's front end, as plain functions over a Playwright page."""

import json

READY = """window.app?.vueAppReady && app.graph?.nodes.length
    && !document.querySelector('#splash-loader')"""

ENDS = ["execution_success", "execution_error", "execution_interrupted"]


def open_app(page, url):
    """Open the front end and wait until the default graph can be seen."""
    page.goto(url)
    page.wait_for_function(READY, timeout=60_000)
    page.wait_for_timeout(500)  # the splash fades


def load_workflow(page, workflow, name="test"):
    """Load a workflow (a dict, or the path of its file) as a dropped file would be."""
    if not isinstance(workflow, dict):
        workflow = json.loads(workflow.read_text(encoding="utf-8"))
    page.evaluate("([wf, name]) => app.loadGraphData(wf, true, true, name)", [workflow, name])


def graph_to_prompt(page):
    """The API form that the front end makes of the graph: what Run would send."""
    return page.evaluate("async () => (await app.graphToPrompt()).output")


def node_types(page):
    """The types of the nodes in the graph."""
    return page.evaluate("app.graph.nodes.map(node => node.type)")


def missing_nodes(page):
    """The types of the nodes in the graph that this ComfyUI does not know; notes are known."""
    unknown = "node => !node.comfyClass && !node.isVirtualNode"
    return page.evaluate(f"app.graph.nodes.filter({unknown}).map(node => node.type)")


def widget_values(page):
    """What a saved workflow keeps of every node's widgets, by the node's id."""
    return page.evaluate(
        "Object.fromEntries(app.graph.serialize().nodes.map(n => [n.id, n.widgets_values ?? []]))"
    )


def click_button(page, label):
    """Press a node's button, which is an element in one renderer and painted in the other."""
    element = page.locator("[data-node-id]").get_by_text(label)
    if element.count():
        element.click()
        return
    x, y = page.evaluate(
        """label => {
            const find = node => node.widgets?.find(w => (w.label ?? w.name) === label)
            const node = app.graph.nodes.find(find), widget = find(node)
            const {scale, offset} = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect()
            const [x, y] = [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10]
            return [box.x + (x + offset[0]) * scale, box.y + (y + offset[1]) * scale]
        }""",
        label,
    )
    page.mouse.click(x, y)


def run(page, timeout=300):
    """Press Run and wait: {"kind": how it ended, "prompt_id", and on an error what failed}."""
    page.evaluate(
        """kinds => { window.ended = null; for (const kind of kinds)
            app.api.addEventListener(kind, e => { window.ended ??= {kind, ...e.detail} }) }""",
        ENDS,
    )
    page.get_by_test_id("queue-button").click()
    page.wait_for_function("window.ended", timeout=timeout * 1000)
    return page.evaluate("window.ended")


def run_unseen(page, server):
    """Run the graph as the page asks for it, and show the page only what came out.

    To redraw the page at every step, without a GPU, costs as much as the steps themselves; so the
    page is frozen meanwhile, as a browser freezes a tab that is not seen.
    """
    prompt = graph_to_prompt(page)
    tab = page.context.new_cdp_session(page)
    tab.send("Page.setWebLifecycleState", {"state": "frozen"})
    try:
        entry = server.run(prompt)
    finally:
        tab.send("Page.setWebLifecycleState", {"state": "active"})
        tab.detach()
    page.evaluate(
        """outputs => { for (const [node, output] of Object.entries(outputs))
            app.api.dispatchCustomEvent("executed", {node, display_node: node, output}) }""",
        entry["outputs"],
    )
    return prompt, entry


def open_templates(page, pack):
    """Open the Templates dialog at a pack's own page and return the names it shows there."""
    page.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("navigation").get_by_text(pack).click()
    cards = dialog.locator("[data-testid^='template-workflow-']")
    cards.first.locator("img").wait_for()
    shown = 0
    while shown < cards.count():  # more come when the last one is seen
        shown = cards.count()
        cards.last.scroll_into_view_if_needed()
        page.wait_for_timeout(700)
    return [card.get_attribute("data-testid").split("-", 2)[2] for card in cards.all()]


def choose_template(page, name):
    """Load a template from the open Templates dialog, by the title of a card that is there.

    A press on the picture is lost where the picture comes before the release: what was pressed is
    no longer there.
    """
    page.evaluate("() => { window.before = app.graph.nodes[0] }")
    page.get_by_test_id(f"template-workflow-{name}").get_by_role("heading").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.wait_for_function("app.graph.nodes.length && app.graph.nodes[0] !== window.before")


def load_template(page, pack, name):
    """Load a template as the dialog does where one is chosen, without the dialog."""
    page.evaluate(
        """async ([pack, name]) => {
            const at = `/workflow_templates/${pack}/${name}.json`
            const shipped = await (await fetch(app.api.apiURL(at))).json()
            await app.loadGraphData(shipped, true, true, name, {openSource: 'template'})
        }""",
        [pack, name],
    )


def open_template(page, pack, name):
    """Open the Templates dialog at a pack's own page, and load a template that it shows there."""
    page.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("navigation").get_by_text(pack).click()
    cards = dialog.locator("[data-testid^='template-workflow-']")
    cards.first.wait_for()
    for _ in range(100):  # more come when the last one is seen
        if dialog.get_by_test_id(f"template-workflow-{name}").count():
            break
        cards.last.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
    choose_template(page, name)
