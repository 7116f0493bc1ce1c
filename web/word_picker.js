/**
 * The word picker: Prompt-to-Prompt shows which word reads which after every change, and takes
 * weights and windows of single words; LocalBlend and Attention Maps take words by a click. What is
 * chosen is written into the node's own text fields.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chain, onlyToRead, outputOf, sourceOf, widgetFor, widgetOf } from "./graph.js";
import { isNamed, short, toggled, withoutValue, withValue } from "./word_values.js";
import { WordRows } from "./word_picker_view.js";
import { t } from "./words.js";

const NAME = "palimpsest_words";
const HEIGHT = 124;
const LOOK_EVERY = 150; // milliseconds; nothing tells in both renderers that a widget has changed
const PROMPTS = "PalimpsestPromptToPrompt";
const ASKED = ["mode", "weights", "word_windows", "cross_start", "cross_window"];

/** Which fields a click on a word of either row goes to, by node. */
const FIELDS = {
  PalimpsestLocalBlend: { source: "words", target: "target_words" },
  PalimpsestAttentionMaps: { target: "words" },
};

app.registerExtension({
  name: "palimpsest.WordPicker",

  nodeCreated(node) {
    if (node.comfyClass === PROMPTS || FIELDS[node.comfyClass]) addPicker(node);
  },
});

function addPicker(node) {
  const fields = FIELDS[node.comfyClass];
  const rows = new WordRows(
    (word, row) => pick(node, fields, word, row),
    fields ? null : valuesOf(node),
  );
  const widget = node.addDOMWidget(NAME, "palimpsest_words", rows.element, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getValue: () => "",
    setValue: () => {}, // it holds nothing: what is chosen is in the text fields
    getMinHeight: () => HEIGHT,
    getMaxHeight: () => HEIGHT,
  });
  widget.serialize = false;
  onlyToRead(widget);
  chain(node, "onExecuted", (output) => showWhatRan(node, output));
  const look = watcher(node, rows, fields);
  let timer = 0;
  chain(node, "onAdded", () => (timer ||= setInterval(look, LOOK_EVERY)));
  chain(node, "onRemoved", () => {
    clearInterval(timer);
    timer = 0;
  });
}

/** Prompts that come by wire: their fields, which nobody reads then, show what arrived. */
function showWhatRan(node, output) {
  for (const [place, name] of ["source", "target"].entries()) {
    const text = output?.palimpsest_prompts?.[place];
    const widget = widgetOf(node, name);
    if (text !== undefined && widget && sourceOf(node, name)) widget.value = text;
  }
}

function pick(node, fields, word, row) {
  const widget = widgetOf(node, fields[row] ?? fields.target);
  if (widget) write(widget, toggled(String(widget.value ?? ""), word));
}

/** What changes the weight and the window of a word. */
function valuesOf(node) {
  const change = (name, text) => write(widgetOf(node, name), text);
  const text = (name) => String(widgetOf(node, name)?.value ?? "");
  return {
    weight: (word, value) => change("weights", withValue(text("weights"), word, value)),
    window: (word, start, end) => {
      const lower = short(Math.min(start, end));
      change("word_windows", withValue(text("word_windows"), word, `${lower}-${end}`));
    },
    clear: (word) => {
      change("weights", withoutValue(text("weights"), word));
      change("word_windows", withoutValue(text("word_windows"), word));
    },
  };
}

function write(widget, text) {
  widget.value = text;
  widget.callback?.(text);
  app.canvas.emitBeforeChange();
  app.canvas.emitAfterChange();
}

/** A function that shows the rows what the node asks for now. */
function watcher(node, rows, fields) {
  let shown = null;
  let asked = null;
  let words = null;
  let why = "";
  const show = () => rows.show({ words, why, isOn: (word, row) => isOn(node, fields, word, row) });
  return async () => {
    if (!rows.element.isConnected) return;
    const wanted = questionOf(node);
    const picked = fields && Object.values(fields).map((name) => widgetOf(node, name)?.value);
    const question = JSON.stringify(wanted);
    const now = JSON.stringify([question, picked]);
    if (now === shown) return;
    shown = now;
    if (question !== asked) {
      asked = question;
      const told = wanted.why ? { error: wanted.why } : await ask(wanted);
      if (asked !== question) return; // another one was asked while the server answered
      words = told.error ? null : told;
      why = told.error ?? "";
    }
    show();
  };
}

function isOn(node, fields, word, row) {
  const text = fields?.[row] && widgetOf(node, fields[row])?.value;
  return Boolean(text) && isNamed(text, word);
}

/** What to ask the server, or `why` it cannot be asked. */
function questionOf(node) {
  if (node.comfyClass === "PalimpsestAttentionMaps") {
    const text = textOf(node, "text", 0);
    return text === null ? wired() : { source: text, target: text, mode: "refine" };
  }
  const prompts = node.comfyClass === PROMPTS ? node : promptsBelow(node);
  if (!prompts) return { why: t("Connect Prompt-to-Prompt to control: its words show here.") };
  const source = textOf(prompts, "source", 0);
  const target = textOf(prompts, "target", 1);
  if (source === null || target === null) return wired();
  const line = widgetOf(prompts, "one_per_line")?.value ? firstLine(target) : target;
  const asked = Object.fromEntries(ASKED.map((name) => [name, widgetOf(prompts, name)?.value]));
  return { ...asked, source, target: line };
}

const wired = () => ({ why: t("A prompt comes by wire: its words show here after a run.") });
const firstLine = (text) => text.split("\n").find((line) => line.trim()) ?? "";

/** The Prompt-to-Prompt that a control was put on. */
function promptsBelow(node) {
  for (let below = node, steps = 0; below && steps < 50; steps++) {
    below = sourceOf(below, "control")?.node;
    if (below?.comfyClass === PROMPTS) return below;
  }
  return null;
}

/** The text of an input: typed, of a text node that is wired to it, or as it was in the last run. */
function textOf(node, name, place) {
  const source = sourceOf(node, name);
  if (!source) return String(widgetFor(node, name)?.value ?? "");
  const texts = source.node.widgets?.filter((w) => typeof w.value === "string") ?? [];
  if (/^Primitive/.test(source.node.type) && texts.length === 1) return texts[0].value;
  return outputOf(node)?.palimpsest_prompts?.[place] ?? null;
}

async function ask(wanted) {
  try {
    const body = JSON.stringify(wanted);
    const answer = await api.fetchApi("/palimpsest/words", { method: "POST", body });
    return await answer.json();
  } catch {
    return { error: t("The server does not answer: start it again.") };
  }
}
