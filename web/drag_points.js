/**
 * Drag points as an editor sees them: what is set, what was set before, and where its picture is.
 * Pure functions over plain data that is replaced and never changed: no page, no ComfyUI.
 *
 * @typedef {[number, number]} Point x, y; in whole pixels of the picture where not said otherwise.
 * @typedef {[Point, Point]} Pair A handle, and the target that it is dragged to.
 * @typedef {[number, number]} Size Width, height.
 * @typedef {{pair: number, end: 0 | 1}} Grip One end of a pair; 0 is the handle.
 *
 * @typedef {object} Drags
 * @property {Size | null} size Of the picture that they were set on; null while there are none.
 * @property {Pair[]} pairs
 * @property {string} text What is saved and sent; text that cannot be read stays as it is.
 * @property {string} complaint One sentence on why it cannot be read, or "".
 *
 * @typedef {{past: Drags[], now: Drags, future: Drags[], tag: string}} History
 */

import { t } from "./words.js";

export const VERSION = 1;
const MAX_HISTORY = 200;

// --- what is set

/** @type {Drags} */
export const NOTHING = Object.freeze({ size: null, pairs: [], text: "", complaint: "" });

/** @returns {Drags} */
export function drags(size, pairs) {
  if (!pairs.length) return NOTHING;
  const text = JSON.stringify({ version: VERSION, size, pairs });
  return { size, pairs, text, complaint: whatIsOutside(size, pairs) };
}

/** Read a widget's value; text that cannot be read is kept, with a complaint. @returns {Drags} */
export function parse(text) {
  if (typeof text !== "string" || !text.trim()) return NOTHING;
  const stored = json(text);
  const complaint = whatIsWrong(stored);
  if (complaint) return { ...NOTHING, text, complaint };
  const { size, pairs } = stored;
  return { size, pairs, text, complaint: whatIsOutside(size, pairs) };
}

function json(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const remedy = () => t("Undo the change, or set the points anew: what you set replaces it.");

function whatIsWrong(stored) {
  if (typeof stored !== "object" || stored === null || Array.isArray(stored)) {
    return `${t("The text in points is none that this editor wrote.")} ${remedy()}`;
  }
  const { version, size, pairs } = stored;
  if (version !== VERSION) {
    const told = t("The points are of version {version}, this editor reads {own}.", {
      version: String(version),
      own: VERSION,
    });
    return `${told} ${remedy()}`;
  }
  if (!isSize(size) || !Array.isArray(pairs) || !pairs.every(isPair)) {
    return `${t("The text in points lacks a size, or pairs of points.")} ${remedy()}`;
  }
  return "";
}

function whatIsOutside(size, pairs) {
  const number = pairs.findIndex((pair) => !pair.every((point) => isInside(point, size))) + 1;
  const told = "Drag {number} leaves the picture: move it inside, or delete it.";
  return number ? t(told, { number }) : "";
}

const isPoint = (p) => Array.isArray(p) && p.length === 2 && p.every(Number.isFinite);
const isPair = (pair) => Array.isArray(pair) && pair.length === 2 && pair.every(isPoint);
const isSize = (s) =>
  Array.isArray(s) && s.length === 2 && s.every((n) => Number.isInteger(n) && n > 0);
const isInside = ([x, y], [width, height]) => x >= 0 && y >= 0 && x < width && y < height;

/** The pixel that a place belongs to, inside the picture. @returns {Point} */
export const pixel = ([x, y], size) => [whole(x, size[0]), whole(y, size[1])];

const whole = (x, length) => Math.min(length - 1, Math.max(0, Math.floor(x)));
const same = (a, b) => a[0] === b[0] && a[1] === b[1];

/** A new pair whose target still lies on its handle; what could not be read gives way to it. */
export function addPair(now, size, at) {
  return drags(size, [...now.pairs, [pixel(at, size), pixel(at, size)]]);
}

/** @param {Grip} grip */
export function moveEnd(now, grip, to) {
  const point = pixel(to, now.size);
  if (same(now.pairs[grip.pair][grip.end], point)) return now;
  const moved = (pair) => pair.map((old, end) => (end === grip.end ? point : old));
  return drags(
    now.size,
    now.pairs.map((pair, i) => (i === grip.pair ? moved(pair) : pair)),
  );
}

/** Move both ends of a pair that goes nowhere yet. */
export function movePair(now, index, to) {
  const point = pixel(to, now.size);
  return drags(
    now.size,
    now.pairs.map((pair, i) => (i === index ? [point, point] : pair)),
  );
}

export const removePair = (now, index) =>
  drags(
    now.size,
    now.pairs.filter((_, i) => i !== index),
  );

/** The last pair that goes nowhere yet, or -1: the next press says where it goes. */
export const openPair = ({ pairs }) => pairs.findLastIndex((pair) => same(...pair));

/**
 * The end after another one, or before it: from handle to target, and on to the next pair.
 *
 * @param {Grip | null} grip Null for the first end, or the last one.
 * @returns {Grip | null} Null where there is none any more.
 */
export function nextEnd({ pairs }, grip, isBack) {
  const last = 2 * pairs.length - 1;
  const at = grip ? 2 * grip.pair + grip.end + (isBack ? -1 : 1) : isBack ? last : 0;
  return at < 0 || at > last ? null : { pair: Math.floor(at / 2), end: at % 2 };
}

/** Move the points along with a picture that was scaled to another size. */
export function rescale(now, size) {
  const scaled = ([x, y]) =>
    pixel([((x + 0.5) * size[0]) / now.size[0], ((y + 0.5) * size[1]) / now.size[1]], size);
  return drags(
    size,
    now.pairs.map((pair) => pair.map(scaled)),
  );
}

/** One sentence on why the points do not suit a picture of this size, or "". */
export function mismatch(now, size) {
  if (!size || !now.size || same(now.size, size)) return "";
  const [was, is] = [now.size, size].map(([width, height]) => `${width} x ${height}`);
  const told =
    "The points were set on a picture of {was} pixels, this one is {is}: Rescale moves them along, " +
    "Clear drops them.";
  return t(told, { was, is });
}

/** What to tell the person: where things are, or what to do next. */
export function told(now, chosen, isDragging) {
  if (!now.pairs.length) return t("Press on what shall move, and drag it to where it shall go.");
  const isOpen = !isDragging && openPair(now) >= 0;
  if (isOpen && chosen?.end === 0 && chosen.pair === openPair(now)) {
    const told = "Handle {number}: the arrow keys move it, Enter goes on to where it shall go.";
    return t(told, { number: chosen.pair + 1 });
  }
  if (isOpen) return t("Now press where it shall go, or take the arrow keys.");
  if (!chosen) return count(now.pairs);
  const [x, y] = now.pairs[chosen.pair][chosen.end];
  const where = { number: chosen.pair + 1, x, y };
  return t(chosen.end ? "Target {number} is at {x}, {y}" : "Handle {number} is at {x}, {y}", where);
}

/** The end nearest to a place, within `reach`; of two as near, the one that is drawn on top. */
export function hit(now, at, reach) {
  let best = null;
  let nearest = reach;
  for (const end of [1, 0]) {
    for (let pair = now.pairs.length - 1; pair >= 0; pair--) {
      const [x, y] = now.pairs[pair][end];
      const distance = Math.hypot(x + 0.5 - at[0], y + 0.5 - at[1]);
      if (distance < nearest) [best, nearest] = [{ pair, end }, distance];
    }
  }
  return best;
}

/**
 * Points from a file: the prompt.json of a DragBench sample, or the form that we save.
 *
 * @param {Size | null} size Of the picture that is shown; DragBench does not say it.
 * @returns {{drags: Drags, told: string} | {complaint: string}}
 */
export function importPoints(text, size) {
  const stored = json(text);
  const { source, target, prompt } = stored ?? {};
  if (Array.isArray(source) && Array.isArray(target)) {
    return importSample(source, target, prompt, size);
  }
  const read = parse(text);
  if (read.pairs.length && !read.complaint) return { drags: read, told: imported(read.pairs) };
  const none = "It holds no drag points: choose the prompt.json of a DragBench sample.";
  return { complaint: t(none) };
}

function importSample(source, target, prompt, size) {
  const pairs = source.map((handle, i) => [handle, target[i]]);
  if (!pairs.length || source.length !== target.length || !pairs.every(isPair)) {
    return { complaint: t("Its source and target are not equally many points [x, y].") };
  }
  if (!size) {
    return { complaint: t("It does not say its picture's size: show the picture first.") };
  }
  const number = pairs.findIndex((pair) => !pair.every((point) => isInside(point, size)));
  if (number >= 0) {
    const told =
      "Its drag {number} leaves the picture of {size} pixels: show the sample's own picture.";
    return { complaint: t(told, { number: number + 1, size: size.join(" x ") }) };
  }
  const whole = pairs.map((pair) => pair.map((point) => pixel(point, size)));
  const words = typeof prompt === "string" ? `: ${prompt}` : "";
  return { drags: drags(size, whole), told: imported(pairs) + words };
}

const count = ({ length }) => (length === 1 ? t("1 drag") : t("{count} drags", { count: length }));
const imported = ({ length }) =>
  length === 1 ? t("1 drag imported") : t("{count} drags imported", { count: length });

// --- what was set before

/** @returns {History} */
export const begin = (now) => ({ past: [], now, future: [], tag: "" });

/**
 * Go on from here. Changes in a row that have the same tag are undone together.
 *
 * @param {History} history @param {Drags} now
 */
export function commit(history, now, tag = "") {
  if (now.text === history.now.text) return history;
  const joined = tag && tag === history.tag;
  const past = joined ? history.past : [...history.past, history.now].slice(-MAX_HISTORY);
  return { past, now, future: [], tag };
}

/** @param {History} history */
export function undo({ past, now, future }) {
  if (!past.length) return { past, now, future, tag: "" };
  return { past: past.slice(0, -1), now: past.at(-1), future: [now, ...future], tag: "" };
}

/** @param {History} history */
export function redo({ past, now, future }) {
  if (!future.length) return { past, now, future, tag: "" };
  return { past: [...past, now], now: future[0], future: future.slice(1), tag: "" };
}

// --- where the picture is

/**
 * Where ComfyUI serves a file that a loader's widget names: "folder/name.png [input]".
 *
 * @param {"rgb" | "a"} channel The colours alone, as IMAGE has them: transparent parts are shown as
 *     what lies below; or the transparency alone.
 */
export function viewOfFile(value, channel = "rgb") {
  const [, path, type] = /^(.*?)(?: \[(input|output|temp)\])?$/s.exec(value);
  const cut = path.lastIndexOf("/");
  return view(path.slice(cut + 1), path.slice(0, Math.max(0, cut)), type ?? "input", channel);
}

/** Where ComfyUI serves a file that a node's output names. */
export const viewOfOutput = ({ filename, subfolder, type }) =>
  view(filename, subfolder, type, "rgb");

function view(filename, subfolder, type, channel) {
  const query = new URLSearchParams({ filename, subfolder, type });
  // A photo that lies on its side says so in its file, of which colours alone keep nothing.
  if (channel !== "rgb" || !/\.jpe?g$/i.test(filename)) query.set("channel", channel);
  return `/view?${query}`;
}
