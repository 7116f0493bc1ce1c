/** Where the inputs of a node come from, through links, reroutes and subgraphs. */

import { app } from "../../scripts/app.js";

const SUBGRAPH_INPUT = "-10"; // the id that ComfyUI gives to a subgraph's own inputs

/** @returns {{node: object, slot: number} | null} Where an input comes from in the end. */
export function sourceOf(node, input) {
  return follow(node.graph, node.inputs?.find((i) => i.name === input)?.link);
}

function follow(graph, id) {
  const link = id == null ? null : graph?.links.get(id);
  if (!link) return null;
  if (String(link.origin_id) === SUBGRAPH_INPUT) {
    const host = hostOf(graph);
    return host ? follow(host.graph, host.inputs[link.origin_slot]?.link) : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (node?.subgraph) {
    const output = node.subgraph.outputNode.slots[link.origin_slot];
    return follow(node.subgraph, output?.linkIds[0]);
  }
  if (node?.type === "Reroute") return follow(graph, node.inputs[0].link);
  return node && { node, slot: link.origin_slot };
}

/** The nodes of the workflow, those in subgraphs too. */
export const allNodes = () =>
  [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes);

/** The node that holds a subgraph; the first one where there are several. */
const hostOf = (subgraph) => allNodes().find((node) => node.subgraph === subgraph);

/** @param {string} path A node's id in a run: those of the subgraphs that hold it come first. */
export function nodeOfRun(path) {
  let graph = app.rootGraph;
  let node;
  for (const id of String(path).split(":")) {
    node = graph?.getNodeById(id);
    graph = node?.subgraph;
  }
  return node;
}

/** What ComfyUI calls a node where it keeps what nodes showed. */
export function locatorOf(node) {
  const inside = node.graph && node.graph !== app.rootGraph;
  return inside ? `${node.graph.id}:${node.id}` : String(node.id);
}

/** What a node showed after its last run. */
export const outputOf = (node) => app.nodeOutputs[locatorOf(node)];

/** Call something also where the page calls a node's own function. */
export function chain(node, event, also) {
  const before = node[event];
  node[event] = function (...given) {
    const answer = before?.apply(this, given);
    also(...given);
    return answer;
  };
}

/** Whether a widget's value comes by a wire. */
export const isWired = (node, name) =>
  node.inputs?.some((input) => input.name === name && input.link != null) ?? false;

export const widgetOf = (node, name) => node.widgets?.find((w) => w.name === name);
