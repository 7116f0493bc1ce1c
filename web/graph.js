/** Where the inputs of a node come from, through links, reroutes and subgraphs. */

import { app } from "../../scripts/app.js";

const SUBGRAPH_INPUT = "-10"; // the id that ComfyUI gives to a subgraph's own inputs

/**
 * Where an input comes from in the end.
 *
 * @param {object[]} [hosts] The nodes that hold the subgraph which the node is in, as they are
 *   looked at; a subgraph that is held by several is looked at from the first one otherwise.
 * @returns {{node: object, slot: number} | null}
 */
export function sourceOf(node, input, hosts = []) {
  return follow(node.graph, node.inputs?.find((i) => i.name === input)?.link, hosts);
}

function follow(graph, id, hosts) {
  const link = id == null ? null : graph?.links.get(id);
  if (!link) return null;
  if (isOutside(link)) {
    const host = hostOf(graph, hosts);
    return host ? follow(host.graph, host.inputs[link.origin_slot]?.link, hosts) : null;
  }
  const node = graph.getNodeById(link.origin_id);
  if (node?.subgraph) {
    const output = node.subgraph.outputNode.slots[link.origin_slot];
    return follow(node.subgraph, output?.linkIds[0], hosts);
  }
  if (node?.type === "Reroute") return follow(graph, node.inputs[0].link, hosts);
  return node && { node, slot: link.origin_slot };
}

const isOutside = (link) => String(link.origin_id) === SUBGRAPH_INPUT;

/** The widget whose value a node takes in a run: its own, or the one outside that stands for it. */
export function widgetFor(node, name, hosts = []) {
  const link = node.graph?.links.get(node.inputs?.find((i) => i.name === name)?.link);
  const host = link && isOutside(link) ? hostOf(node.graph, hosts) : null;
  const outside = host?.inputs[link.origin_slot];
  if (!outside || outside.link != null) return widgetOf(node, name);
  return widgetFor(host, outside.name, hosts) ?? widgetOf(node, name);
}

/** The node inside a subgraph that an input of its host goes to first, and those on the way. */
export function insideOf(host, input) {
  const hosts = [];
  let node = host;
  for (let name = input; node?.subgraph; ) {
    hosts.unshift(node);
    const slot = node.subgraph.inputNode.slots.find((s) => s.name === name);
    const link = node.subgraph.links.get(slot?.linkIds[0]);
    const target = link && node.subgraph.getNodeById(link.target_id);
    name = target?.inputs[link.target_slot]?.name;
    node = target;
  }
  return { node, hosts };
}

/** The nodes of the workflow, those in subgraphs too. */
export const allNodes = () =>
  [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap((graph) => graph.nodes);

/** The node that holds a subgraph: one of those, or else the first. */
const hostOf = (subgraph, hosts) =>
  [...hosts, ...allNodes()].find((node) => node.subgraph === subgraph);

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
export const isWired = (node, name, hosts = []) => sourceOf(node, name, hosts) !== null;

/**
 * Make a widget one to read: the App builder offers it as no input. Each renderer asks for that in
 * its own way, and would hide the widget where the other's is said.
 */
export function onlyToRead(widget) {
  widget.options.disabled = true;
  const get = () => !LiteGraph.vueNodesMode;
  Object.defineProperty(widget.options, "canvasOnly", { get, enumerable: true });
}

export const widgetOf = (node, name) => node.widgets?.find((w) => w.name === name);
