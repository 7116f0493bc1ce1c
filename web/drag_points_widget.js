/** The PALIMPSEST_DRAG_EDITOR widget: the drag-point editor, and what it sees of the graph. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { viewOfFile, viewOfOutput } from "./drag_points.js";
import { CELLS } from "./drag_points_cells.js";
import { PointsEditor } from "./drag_points_view.js";
import { chain, insideOf, isWired, outputOf, sourceOf, widgetFor, widgetOf } from "./graph.js";
import { t } from "./words.js";

const TYPE = "PALIMPSEST_DRAG_EDITOR";
const MIN_HEIGHT = 300;
const LOADERS = ["LoadImage", "LoadImageOutput"];
const MASK_LOADER = "LoadImageMask";
const SCENE = "PalimpsestDemoScene";

// Nothing tells in both renderers that a widget further up has changed, by hand or by a script,
// or that a link to it was laid through a subgraph: so we look.
const LOOK_EVERY = 100; // milliseconds

app.registerExtension({
  name: "palimpsest.DragPoints",

  getCustomWidgets: () => ({
    PALIMPSEST_DRAG_EDITOR(node, name) {
      return { widget: addEditor(node, name), minWidth: 380, minHeight: 540 };
    },
  }),

  nodeCreated(node) {
    if (node.comfyClass === "PalimpsestDragPoints") keepOldUnit(node);
    if (!node.isSubgraphNode?.()) return;
    node.subgraph.events.addEventListener("widget-promoted", ({ detail }) => {
      if (detail.subgraphNode === node && detail.widget.type === TYPE) addOutside(node);
    });
  },
});

/**
 * An editor on the node of a subgraph in which Drag Points is, and whose points are shown outside.
 * The page shows nothing for an element of the page there, but takes what stands for it.
 */
function addOutside(host) {
  for (const input of host.inputs) {
    const stored = input._widget;
    if (stored?.type !== TYPE || stored.element) continue;
    input._widget = addEditor(host, input.name, () => insideOf(host, input.name), stored);
  }
}

/**
 * @param {object} node On which the editor is.
 * @param {string} name Of the widget.
 * @param {() => {node: object, hosts: object[]}} inside Drag Points, and what holds it.
 * @param {{value: string} | null} stored What keeps the points, where the widget does not.
 */
function addEditor(node, name, inside = () => ({ node, hosts: [] }), stored = null) {
  let known = stored?.value;
  const onChange = () => {
    if (stored) stored.value = known = editor.value;
    widget.callback?.(widget.value);
    // Keys reach nobody else: the graph's own history has to be told of the change.
    app.canvas.emitBeforeChange();
    app.canvas.emitAfterChange();
  };
  // The canvas renderer lays widgets over the graph and leaves the wheel to them.
  const passWheel = (event) => {
    if (editor.element.closest(".dom-widget")) app.canvas.processMouseWheel(event);
  };
  const editor = new PointsEditor(onChange, passWheel);
  if (stored) editor.value = stored.value ?? "";
  const widget = node.addDOMWidget(name, TYPE, editor.element, {
    getValue: () => editor.value,
    setValue: (text) => {
      editor.value = text;
      if (stored) stored.value = known = text;
    },
    getMinHeight: () => MIN_HEIGHT,
    hideOnZoom: false,
    hideInPanel: true,
  });
  const look = watcher(editor, inside);
  const lookAll = () => {
    if (stored && stored.value !== known) editor.value = known = stored.value;
    look();
  };
  let timer = 0;
  const begin = () => {
    editor.attach();
    timer ||= setInterval(lookAll, LOOK_EVERY);
  };
  const end = () => {
    editor.detach();
    clearInterval(timer);
    timer = 0;
  };
  chain(node, "onAdded", begin);
  chain(node, "onRemoved", end);
  if (stored) {
    if (node.graph) begin();
    chain(widget, "onRemove", end); // it is no longer shown outside
  }
  return widget;
}

/** A function that shows the editor what the graph holds now. */
function watcher(editor, inside) {
  let key;
  let stale; // an output that tells of another picture than the one that is connected now
  return () => {
    if (!editor.element.isConnected) return;
    const { node, hosts } = inside();
    if (!node) return;
    const source = sourceOf(node, "image", hosts);
    const own = ownPicture(source, hosts);
    const before = key;
    key = source && `${source.node.id} ${source.slot} ${own}`;
    const output = outputOf(node);
    if (before !== undefined && key !== before) stale = output;
    const fresh = output === stale ? undefined : output;
    const picture = own ?? address(fresh?.palimpsest_picture);
    const mask = sourceOf(node, "mask", hosts);
    const masks = mask && (ownMask(mask, hosts) ?? address(fresh?.palimpsest_mask, "#red"));
    editor.show({
      picture: picture ? api.apiURL(picture) : null,
      why: source
        ? t("Run the graph once: it brings the picture.")
        : t("Connect a picture to image."),
      mask: masks ? api.apiURL(masks) : null,
      radius: isWired(node, "radius", hosts) ? 0 : (widgetFor(node, "radius", hosts)?.value ?? 0),
      unit: widgetFor(node, "unit", hosts)?.value ?? CELLS,
    });
  };
}

const address = (files, ending = "") => (files?.length ? viewOfOutput(files[0]) + ending : null);

/** Where the picture of a node is that needs no run for it; undefined for any other. */
function ownPicture(source, hosts) {
  if (source?.node.type === SCENE) return viewOfScene(source, hosts);
  if (!LOADERS.includes(source?.node.type) || source.slot !== 0) return undefined;
  const file = widgetOf(source.node, "image")?.value;
  return file ? viewOfFile(file) : undefined;
}

/** Where the server draws what a Demo Scene is set to; undefined where a part comes by wire. */
function viewOfScene({ node, slot }, hosts) {
  const { required } = node.constructor.nodeData.input;
  const names = Object.keys(required);
  if (names.some((name) => isWired(node, name, hosts))) return undefined;
  const set = names.map((name) => [name, String(widgetFor(node, name, hosts)?.value)]);
  const asked = new URLSearchParams([...set, ["output", node.outputs[slot].name]]);
  return `/palimpsest/scene?${asked}`;
}

/** Where such a node's mask is, and its channel; undefined for any other node. */
function ownMask(source, hosts) {
  const { node, slot } = source;
  if (node.type === SCENE) {
    const scene = viewOfScene(source, hosts);
    return scene && `${scene}#red`;
  }
  const file = widgetOf(node, "image")?.value;
  const channel = maskChannelOf(node, slot);
  if (!file || !channel) return undefined;
  return `${viewOfFile(file, channel === "alpha" ? "a" : "rgb")}#${channel}`;
}

function maskChannelOf(node, slot) {
  if (LOADERS.includes(node.type)) return slot === 1 ? "alpha" : undefined;
  return node.type === MASK_LOADER ? widgetOf(node, "channel")?.value : undefined;
}

/**
 * What was saved or asked for before there was a unit counts latent cells: a workflow's node lacks
 * the value, and a prompt that is loaded as a graph sets the radius, but no unit.
 */
function keepOldUnit(node) {
  const unit = widgetOf(node, "unit");
  const radius = widgetOf(node, "radius");
  if (!unit || !radius) return;
  let isOpen = true; // as long as the page is still making the node, and no unit was set
  queueMicrotask(() => (isOpen = false));
  chain(unit, "callback", () => (isOpen = false));
  chain(radius, "callback", () => {
    if (isOpen) unit.value = CELLS;
  });
  chain(node, "onConfigure", ({ widgets_values: values }) => {
    const place = node.widgets.filter((widget) => widget.serialize !== false).indexOf(unit);
    if (Array.isArray(values) && values.length <= place) unit.value = CELLS;
  });
}
