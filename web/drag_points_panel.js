/** What the drag-point editor is made of: a row of tools, the stage, and a line of text. */

const STYLE = `
.palimpsest-points { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box;
  min-height: 300px; font: 12px/1.4 system-ui, sans-serif; color: var(--input-text, #ddd); }
.palimpsest-points .tools { display: flex; flex-wrap: wrap; gap: 4px; }
.palimpsest-points .tools input { flex: 1 1 auto; padding: 2px 6px; border-radius: 4px;
  font: inherit; color: inherit; cursor: pointer; background: var(--comfy-input-bg, #222);
  border: 1px solid var(--border-color, #4e4e4e); }
.palimpsest-points .tools input:hover:enabled { border-color: var(--descrip-text, #999); }
.palimpsest-points .tools input:disabled { opacity: 0.45; cursor: default; }
.palimpsest-points .tools input[hidden] { display: none; }
.palimpsest-points .stage { position: relative; flex: 1 1 0; min-height: 120px; overflow: hidden;
  border-radius: 6px; background: var(--comfy-input-bg, #222);
  box-shadow: inset 0 0 0 1px var(--border-color, #4e4e4e); }
.palimpsest-points .stage:focus-within { box-shadow: inset 0 0 0 1px #3db4ff; }
.palimpsest-points canvas { position: absolute; inset: 1px; width: calc(100% - 2px);
  height: calc(100% - 2px); border-radius: 5px; touch-action: none; cursor: crosshair; }
.palimpsest-points .keys { position: absolute; width: 1px; height: 1px; padding: 0; border: 0;
  opacity: 0; pointer-events: none; }
.palimpsest-points .empty { position: absolute; inset: 0; margin: 0; padding: 16px;
  display: flex; align-items: center; justify-content: center; text-align: center;
  pointer-events: none; color: var(--descrip-text, #999); }
.palimpsest-points .complaint { position: absolute; inset: auto 1px 1px; padding: 6px 8px;
  border-radius: 0 0 5px 5px; color: #ffb3a8; background: rgb(40 12 10 / 88%);
  pointer-events: none; }
.palimpsest-points .complaint:empty { display: none; }
.palimpsest-points .told { display: flex; gap: 8px; justify-content: space-between; height: 17px;
  white-space: nowrap; color: var(--descrip-text, #999); }
.palimpsest-points .told .message { overflow: hidden; text-overflow: ellipsis; }
.palimpsest-points .told .where { font-variant-numeric: tabular-nums; }
`;

const TOOLS = {
  undo: ["Undo", "Undo (Ctrl-Z)"],
  redo: ["Redo", "Redo (Ctrl-Shift-Z)"],
  clear: ["Clear", "Delete all points"],
  rescale: ["Rescale", "Move the points along with the picture's size"],
  fit: ["Fit", "Show the whole picture"],
  import: ["Import", "Read points from a file, such as DragBench's prompt.json"],
};

/**
 * @param {Record<keyof TOOLS, () => void>} acts What each tool does.
 * @returns The elements by name; `element` holds the others, `buttons` the tools.
 */
export function makePanel(acts) {
  const style = make("style", { textContent: STYLE });
  const buttons = {};
  for (const [name, [value, title]] of Object.entries(TOOLS)) {
    buttons[name] = make("input", { type: "button", value, title, onclick: acts[name] });
  }
  const canvas = make("canvas");
  // Keys go to an <input>: ComfyUI leaves undo, Delete and the like to inputs, and to nothing else.
  const keys = make("input", { type: "button", className: "keys", ariaLabel: "Drag points" });
  const empty = make("p", { className: "empty" });
  const complaint = make("div", { className: "complaint", role: "alert" });
  const message = make("span", { className: "message", role: "status" });
  const where = make("span", { className: "where" });
  const stage = make("div", { className: "stage" }, canvas, keys, empty, complaint);
  const element = make(
    "div",
    { className: "palimpsest-points" },
    style,
    make("div", { className: "tools" }, ...Object.values(buttons)),
    stage,
    make("div", { className: "told" }, message, where),
  );
  element.dataset.captureWheel = "true"; // or the wheel zooms the graph
  return { element, stage, canvas, keys, empty, complaint, message, where, buttons };
}

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
