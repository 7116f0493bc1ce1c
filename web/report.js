/**
 * What a node tells after a run, as text in the node itself: its report (`palimpsest_text` in its
 * ui output), or the sentence of the pack that ended the run, which stays until the next one.
 *
 * A node inside a closed subgraph cannot be seen: its report comes once the subgraph is opened, and
 * its sentence is shown above the graph meanwhile.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes, nodeOfRun, onlyToRead, outputOf, widgetOf } from "./graph.js";

const NAME = "palimpsest_report";
const MISTAKE = "palimpsest_mistake";
const ERROR = "PalimpsestError"; // the class of our sentences
const LINE_HEIGHT = 18;
const LETTER = 7.3; // width of one, at this font
const PADDING = 26; // the element's own, and the margin that the canvas keeps around it
const MARGIN = 46; // the same from left to right

app.registerExtension({
  name: "palimpsest.Report",

  setup() {
    let above = null; // the graph, for as long as the run is over
    api.addEventListener("execution_error", ({ detail }) => {
      const node = nodeOfMistake(detail);
      if (!node) return;
      const text = detail.exception_message.trim();
      if (showText(node, MISTAKE, text)) return;
      above = { id: MISTAKE, severity: "error", summary: node.title, detail: text };
      app.extensionManager.toast.add(above);
    });
    api.addEventListener("execution_start", () => {
      forgetMistakes();
      if (above) app.extensionManager.toast.remove(above);
      above = null;
    });
    app.canvas.canvas.addEventListener("litegraph:set-graph", () => setTimeout(showWhatIsKnown));
  },

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

/** The texts of the graph that was opened. */
function showWhatIsKnown() {
  for (const node of app.canvas.graph?.nodes ?? []) {
    if (node.comfyClass?.startsWith("Palimpsest")) showReport(node, outputOf(node));
  }
  const mistake = app.lastExecutionError;
  const node = mistake && nodeOfMistake(mistake);
  if (node) showText(node, MISTAKE, mistake.exception_message.trim());
}

/** The node in which a sentence of ours ended a run. */
const nodeOfMistake = (error) => error.exception_type === ERROR && nodeOfRun(error.node_id);

/** @param {string} locator A node's id, or "subgraph:id". */
function findNode(locator) {
  const [id, subgraph] = locator.split(":").reverse();
  const graph = subgraph ? app.rootGraph.subgraphs.get(subgraph) : app.rootGraph;
  return graph?.getNodeById(id);
}

function forgetMistakes() {
  for (const node of allNodes()) {
    const widget = widgetOf(node, MISTAKE);
    if (widget) node.removeWidget(widget);
  }
}

/** @param {{palimpsest_text?: string[]} | null} output */
function showReport(node, output) {
  const lines = output?.palimpsest_text;
  if (lines?.length) showText(node, NAME, lines.join("\n"));
}

/** @returns {boolean} Whether the node is seen; a widget of one that is not would lie anywhere. */
function showText(node, name, text) {
  if (node.graph !== app.canvas.graph) return false;
  const widget = widgetOf(node, name) ?? addText(node, name);
  widget.element.textContent = text;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas(true, true);
  return true;
}

/** A widget that is no part of the saved workflow nor of the prompt. */
function addText(node, name) {
  const element = document.createElement("div");
  element.className = name.replace("_", "-");
  Object.assign(element.style, {
    font: `12px/${LINE_HEIGHT}px ui-monospace, monospace`,
    padding: "3px 8px",
    whiteSpace: "pre-wrap",
    overflowWrap: "anywhere",
    overflow: "auto",
    userSelect: "text",
    color: name === MISTAKE ? "var(--error-text, #ff4444)" : "var(--descrip-text, #999)",
  });
  const height = () => linesOf(element.textContent, node.size[0]) * LINE_HEIGHT + PADDING;
  const widget = node.addDOMWidget(name, name, element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getValue: () => element.textContent,
    setValue: () => {}, // read-only
    getMinHeight: height,
    getMaxHeight: height,
  });
  widget.serialize = false;
  onlyToRead(widget);
  return widget;
}

/** How many lines a text takes in a node of some width. */
function linesOf(text, width) {
  const letters = Math.max(1, Math.floor((width - MARGIN) / LETTER));
  return text.split("\n").reduce((sum, line) => sum + wrapped(line, letters), 0);
}

/** How many a line becomes that is broken between words, and within those that are longer. */
function wrapped(line, letters) {
  let lines = 1;
  let used = 0; // letters of the last one
  for (const { length } of line.split(" ")) {
    const isNew = used > 0 && used + 1 + length > letters;
    if (isNew) lines++;
    used = used && !isNew ? used + 1 + length : length;
    lines += Math.max(0, Math.ceil(used / letters) - 1);
    used = used && ((used - 1) % letters) + 1;
  }
  return lines;
}
