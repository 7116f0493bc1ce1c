/** The words of two prompts, one above the other, as an element of the page. It knows no ComfyUI. */

import { bare, short } from "./word_values.js";
import { t } from "./words.js";

const COLORS = { kept: "#8a8a93", changed: "#e0a13a", new: "#6cbf6c", gone: "#8a8a93" };
const TOLD = {
  kept: "{word} stays: it looks where it looked",
  changed: "{word} looks where the word above looked",
  new: "{word} is new: it looks where the model likes",
  gone: "{word} is left out",
};

/**
 * @typedef {object} Shown
 * @property {{source: string[], target: object[]} | null} words As the server tells them.
 * @property {string} why What to show in their place.
 * @property {(word: string, row: "source" | "target") => boolean} isOn Whether a word is picked.
 */

export class WordRows {
  /** @type {Shown} */
  #shown = { words: null, why: "", isOn: () => false };
  #chosen = null; // the number of a word of the target, whose values are shown

  /**
   * @param {(word: string, row: "source" | "target") => void} onPick Called with a word's name.
   * @param {{weight: Function, window: Function, clear: Function} | null} values Called to change
   *   what holds for one word; null where words are only picked.
   */
  constructor(onPick, values) {
    this.onPick = onPick;
    this.values = values;
    this.element = make("div", "palimpsest-words");
    Object.assign(this.element.style, {
      font: "12px/16px ui-sans-serif, system-ui, sans-serif",
      padding: "4px 8px",
      overflow: "auto",
      color: "var(--input-text, #ddd)",
    });
  }

  /** @param {Shown} shown */
  show(shown) {
    this.#shown = shown;
    if (!shown.words || this.#chosen >= shown.words.target.length) this.#chosen = null;
    this.#draw();
  }

  #draw() {
    const { words, why } = this.#shown;
    // Who is at one value of a word is not taken from it when another one arrives.
    const editor = this.element.querySelector(".palimpsest-words-editor");
    const held = editor?.contains(document.activeElement) && words ? editor : null;
    for (const child of [...this.element.children]) if (child !== held) child.remove();
    if (!words) {
      this.element.append(told(why));
      return;
    }
    const row = make("div", "palimpsest-words-row");
    Object.assign(row.style, { display: "flex", flexWrap: "wrap", gap: "6px 4px" });
    for (const column of columnsOf(words)) row.append(this.#column(column));
    this.element.prepend(row);
    if (this.values && !held) {
      const chosen = words.target[this.#chosen];
      this.element.append(chosen ? this.#editor(chosen) : told(t("Click a word to weigh it.")));
    }
  }

  #column({ above, word, number, state }) {
    const column = make("div", "palimpsest-words-column");
    Object.assign(column.style, { display: "flex", flexDirection: "column", alignItems: "center" });
    column.title = t(TOLD[state], { word: word?.text ?? above });
    const top = this.#chip(above, "source", state === "gone" ? "gone" : "kept", state === "gone");
    const mark = make("div", "");
    mark.textContent = above && word ? "↓" : " ";
    mark.style.color = COLORS[state];
    const bottom = word
      ? this.#chip(labelOf(word), "target", word.state, false, number, word.text)
      : make("div", "");
    column.append(top, mark, bottom);
    return column;
  }

  #chip(label, row, state, struck, number, word = label) {
    const chip = make("button", `palimpsest-word palimpsest-word-${state}`);
    chip.type = "button";
    chip.textContent = label || " ";
    const on = label && this.#shown.isOn(word, row);
    const chosen = row === "target" && number === this.#chosen && this.values;
    Object.assign(chip.style, {
      all: "unset",
      cursor: label ? "pointer" : "default",
      padding: "1px 6px",
      borderRadius: "8px",
      whiteSpace: "nowrap",
      textDecoration: struck ? "line-through" : "none",
      color: on ? "#fff" : COLORS[state],
      background: on ? "#3b6ea5" : "var(--comfy-input-bg, #222)",
      outline: chosen ? "1px solid currentColor" : "none",
      visibility: label ? "visible" : "hidden",
    });
    chip.dataset.row = row;
    chip.setAttribute("aria-pressed", String(Boolean(on || chosen)));
    if (label) chip.addEventListener("click", (event) => this.#picked(event, word, row, number));
    return chip;
  }

  #picked(event, word, row, number) {
    event.stopPropagation();
    if (this.values && row === "target") {
      this.#chosen = this.#chosen === number ? null : number;
      document.activeElement?.blur();
      this.#draw();
    } else if (!this.values) {
      this.onPick(bare(word), row);
    }
  }

  /** Weight and window of the chosen word. */
  #editor(word) {
    const line = make("div", "palimpsest-words-editor");
    Object.assign(line.style, { display: "flex", flexWrap: "wrap", gap: "4px 6px", marginTop: "6px" });
    const name = make("b", "");
    name.textContent = bare(word.text);
    const weight = number(word.weight, -100, 100, 0.5, "weight", t("weight"));
    const start = number(word.window[0], 0, 1, 0.05, "from", t("from"));
    const end = number(word.window[1], 0, 1, 0.05, "to", t("to"));
    weight.input.addEventListener("change", () => this.values.weight(word.text, weight.value()));
    for (const bound of [start, end]) {
      bound.input.addEventListener("change", () =>
        this.values.window(word.text, start.value(), end.value()),
      );
    }
    const clear = make("button", "palimpsest-words-clear");
    clear.type = "button";
    clear.textContent = t("clear");
    clear.addEventListener("click", () => {
      clear.blur(); // so that the values shown are those that it leaves
      this.values.clear(word.text);
    });
    line.append(name, weight.element, start.element, end.element, clear);
    return line;
  }
}

/** What is seen of a word: its weight too, where it has one. */
const labelOf = (word) => (word.weight === 1 ? word.text : `${word.text} ×${short(word.weight)}`);

/**
 * One column for each word of the target below what it reads, and one for each word of the source
 * that is read by none, before those that may have come in its place.
 */
export function columnsOf({ source, target }) {
  const read = new Set(target.flatMap((word) => word.reads));
  const columns = [];
  let next = 0; // of the source
  const leave = (until) => {
    for (; next < until; next++) {
      if (!read.has(next)) columns.push({ above: source[next], state: "gone" });
    }
  };
  target.forEach((word, number) => {
    const ahead = target.slice(number).find((later) => later.reads.length);
    leave(ahead ? ahead.reads[0] : source.length);
    const above = word.reads.map((i) => source[i]).join(" ");
    columns.push({ above, word, number, state: word.state });
    if (word.reads.length) next = Math.max(next, word.reads.at(-1) + 1);
  });
  leave(source.length);
  return columns;
}

function make(tag, name) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  return element;
}

function told(text) {
  const line = make("div", "palimpsest-words-told");
  line.textContent = text;
  Object.assign(line.style, { color: "var(--descrip-text, #999)", marginTop: "4px" });
  return line;
}

function number(value, min, max, step, name, told) {
  const label = make("label", "");
  const input = make("input", `palimpsest-words-${name}`);
  Object.assign(input, { type: "number", min, max, step, value: short(value) });
  Object.assign(input.style, {
    width: "46px",
    font: "inherit",
    color: "inherit",
    background: "var(--comfy-input-bg, #222)",
    border: "1px solid var(--border-color, #444)",
    borderRadius: "4px",
  });
  for (const event of ["keydown", "pointerdown"]) {
    input.addEventListener(event, (e) => e.stopPropagation()); // keys are no shortcuts here
  }
  label.append(`${told} `, input);
  const inside = () => Math.min(max, Math.max(min, Number(input.value) || 0));
  return { element: label, input, value: () => short(inside()) };
}
