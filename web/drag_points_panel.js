/** What the drag-point editor is made of: a row of tools, the stage, and what it says below. */

import { t } from "./words.js";

const STYLE = `
.palimpsest-points { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box;
  min-height: 300px; font: 12px/1.4 system-ui, sans-serif; color: var(--input-text, #ddd);
  touch-action: none; }
.palimpsest-points .tools { display: flex; flex-wrap: wrap; gap: 4px; }
.palimpsest-points .tools input { flex: 1 1 auto; padding: 2px 6px; border-radius: 4px;
  font: inherit; color: inherit; cursor: pointer; background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #4e4e4e); }
.palimpsest-points .tools input:hover:enabled { border-color: var(--descrip-text, #999); }
.palimpsest-points .tools input:disabled { opacity: 0.45; cursor: default; }
.palimpsest-points .tools input[hidden] { display: none; }
.palimpsest-points .where { flex: none; width: 72px; height: 1.4em; padding: 3px 0;
  margin-left: auto; text-align: right; white-space: nowrap; color: var(--descrip-text, #999);
  font-variant-numeric: tabular-nums; }
.palimpsest-points .stage { position: relative; flex: 1 1 0; min-height: 120px; overflow: hidden;
  border-radius: 6px; background: var(--comfy-input-bg, #222);
  box-shadow: inset 0 0 0 1px var(--border-color, #4e4e4e); }
.palimpsest-points .stage:focus-within { box-shadow: inset 0 0 0 1px #3db4ff; }
.palimpsest-points canvas { position: absolute; inset: 1px; width: calc(100% - 2px);
  height: calc(100% - 2px); border-radius: 5px; cursor: crosshair; }
.palimpsest-points .keys { position: absolute; width: 1px; height: 1px; padding: 0; border: 0;
  opacity: 0; pointer-events: none; }
.palimpsest-points .empty { position: absolute; inset: 0; margin: 0; padding: 8px 16px;
  display: flex; align-items: flex-end; justify-content: center; text-align: center;
  pointer-events: none; color: var(--descrip-text, #999); }
.palimpsest-points .told { flex: none; height: 38px; overflow: hidden auto; }
.palimpsest-points .told > * { padding: 2px 6px; border-radius: 4px; }
.palimpsest-points .told > :empty { display: none; }
.palimpsest-points .message { padding: 2px 0; color: var(--descrip-text, #999); }
.palimpsest-points .warning { color: #ffd98a; background: rgb(52 40 8); }
.palimpsest-points .complaint { color: #ffb3a8; background: rgb(52 16 12); }
`;

const TOOLS = {
  undo: ["Undo", "Undo (Ctrl-Z)"],
  redo: ["Redo", "Redo (Ctrl-Shift-Z)"],
  clear: ["Clear", "Delete all points"],
  rescale: ["Rescale", "Move the points along with the picture's size"],
  fit: ["Fit", "Show the whole picture"],
  import: ["Import", "Read points from a file, such as DragBench's prompt.json"],
};
export const KEYS =
  "Enter adds an arrow, Tab goes from end to end, the arrow keys move an end, Delete deletes.";

/**
 * @param {Record<keyof TOOLS, () => void>} acts What each tool does.
 * @returns The elements by name; `element` holds the others, `buttons` the tools.
 */
export function makePanel(acts) {
  const style = make("style", { textContent: STYLE });
  const buttons = {};
  for (const [name, [value, title]] of Object.entries(TOOLS)) {
    const said = { value: t(value), title: t(title) };
    buttons[name] = make("input", { type: "button", name, ...said, onclick: acts[name] });
  }
  const canvas = make("canvas");
  // Keys go to an <input>: ComfyUI leaves undo, Delete and the like to inputs, and to nothing else.
  const label = { ariaLabel: t("Drag points"), ariaDescription: t(KEYS) };
  const keys = make("input", { type: "button", className: "keys", ...label });
  const empty = make("p", { className: "empty" });
  const where = make("span", { className: "where" });
  // What is said has room of its own: the picture must not move under the hand when it changes.
  const said = {
    complaint: make("div", { className: "complaint", role: "alert" }),
    warning: make("div", { className: "warning", role: "status" }),
    message: make("div", { className: "message", role: "status" }),
  };
  const stage = make("div", { className: "stage" }, canvas, keys, empty);
  const element = make(
    "div",
    { className: "palimpsest-points" },
    style,
    make("div", { className: "tools" }, ...Object.values(buttons), where),
    stage,
    make("div", { className: "told" }, ...Object.values(said)),
  );
  element.dataset.captureWheel = "true"; // or the wheel zooms the graph
  return { element, stage, canvas, keys, empty, where, said, buttons };
}

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
