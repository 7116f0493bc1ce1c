/** What a node tells after a run (`palimpsest_text` in its ui output), as text in the node itself. */

import { app } from "../../scripts/app.js";

const NAME = "palimpsest_report";
const LINE_HEIGHT = 18;
const PADDING = 26; // the element's own, and the margin that the canvas keeps around it

app.registerExtension({
  name: "palimpsest.Report",

  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Palimpsest")) return;
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.apply(this, arguments);
      showReport(this, output);
    };
  },

  /** The outputs of a workflow whose tab was opened again. */
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs)) {
      const node = findNode(locator);
      if (node?.comfyClass?.startsWith("Palimpsest")) showReport(node, output);
    }
  },
});

/** @param {string} locator A node's id, or "subgraph:id". */
function findNode(locator) {
  const [id, subgraph] = locator.split(":").reverse();
  const graph = subgraph ? app.rootGraph.subgraphs.get(subgraph) : app.rootGraph;
  return graph?.getNodeById(id);
}

/** @param {{palimpsest_text?: string[]} | null} output */
function showReport(node, output) {
  const lines = output?.palimpsest_text;
  if (!lines?.length) return;
  const widget = node.widgets?.find((w) => w.name === NAME) ?? addReport(node);
  widget.element.textContent = lines.join("\n");
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas(true, true);
}

/** One widget a node; it is no part of the saved workflow nor of the prompt. */
function addReport(node) {
  const element = document.createElement("div");
  element.className = "palimpsest-report";
  Object.assign(element.style, {
    font: `12px/${LINE_HEIGHT}px ui-monospace, monospace`,
    padding: "3px 8px",
    whiteSpace: "pre-wrap",
    overflow: "auto",
    userSelect: "text",
    color: "var(--descrip-text, #999)",
  });
  const height = () => element.textContent.split("\n").length * LINE_HEIGHT + PADDING;
  const widget = node.addDOMWidget(NAME, "palimpsest_report", element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getValue: () => element.textContent,
    setValue: () => {}, // read-only
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false;
  return widget;
}
