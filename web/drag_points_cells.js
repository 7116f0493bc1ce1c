/**
 * What a drag copies: squares of whole latent cells, and what the mask keeps of them. Pure functions,
 * with the rules of `cells_of` and `copy_paste` on the server, for the cells of most models.
 *
 * @typedef {import("./drag_points.js").Point} Point
 * @typedef {import("./drag_points.js").Pair} Pair
 * @typedef {import("./drag_points.js").Size} Size
 * @typedef {[number, number, number, number]} Box Left, top, right, bottom; the last two outside.
 *
 * @typedef {object} Mask Which cells may change.
 * @property {Size} size Of the mask's picture, in pixels.
 * @property {number} columns
 * @property {Uint8Array} open One for every cell, row by row; 0 where the picture is kept.
 */

import { t } from "./words.js";

export const CELL = 8; // pixels of the picture to a latent cell
export const PIXELS = "pixels";
export const CELLS = "latent cells";

/** The radius in latent cells: the nearest whole number, halves up, at least 1. */
export const cellsOf = (radius, unit) =>
  unit === PIXELS ? Math.max(1, Math.floor((2 * radius + CELL) / (2 * CELL))) : radius;

/** Cells across and down, and the pixels that are cut off left of them and above. */
function grid(size) {
  const cells = size.map((length) => Math.max(1, Math.floor(length / CELL)));
  const cut = size.map((length, i) => Math.floor(Math.max(0, length - cells[i] * CELL) / 2));
  return { cells, cut };
}

/** The cell of a pixel; pixels that were cut off count to the nearest one. @returns {Point} */
export function cellAt(point, size) {
  const { cells, cut } = grid(size);
  const place = (at, i) => Math.floor(Math.trunc(at - cut[i]) / CELL);
  return point.map((at, i) => Math.min(cells[i] - 1, Math.max(0, place(at, i))));
}

/** The square around a cell, which lies right below its middle. @returns {Box} In cells. */
const squareAt = ([x, y], radius) => [x - radius, y - radius, x + radius, y + radius];

/**
 * What is copied from the handle of a pair, and where it arrives: only cells of which both ends lie
 * in the picture.
 *
 * @param {Pair} pair
 * @returns {[Box, Box] | null} In cells; null if there are none.
 */
export function copied(pair, size, radius) {
  const [from, to] = pair.map((point) => cellAt(point, size));
  const { cells } = grid(size);
  const by = [to[0] - from[0], to[1] - from[1]];
  const whole = squareAt(from, radius);
  const box = whole.map((edge, i) => {
    const [length, shift] = [cells[i % 2], by[i % 2]];
    return i < 2 ? Math.max(edge, 0, -shift) : Math.min(edge, length, length - shift);
  });
  if (box[0] >= box[2] || box[1] >= box[3]) return null;
  return [box, box.map((edge, i) => edge + by[i % 2])];
}

/** A box of cells in pixels of the picture. @returns {Box} */
export function onPicture(box, size) {
  const { cut } = grid(size);
  return box.map((edge, i) => cut[i % 2] + edge * CELL);
}

/**
 * Which cells of a mask may change: those in which any pixel may.
 *
 * @param {Size} size
 * @param {ArrayLike<number>} levels One for every pixel, row by row; 0 is black.
 * @returns {Mask}
 */
export function maskOf(size, levels) {
  const { cells, cut } = grid(size);
  const open = new Uint8Array(cells[0] * cells[1]);
  const [right, bottom] = [0, 1].map((i) => Math.min(size[i], cut[i] + cells[i] * CELL));
  for (let y = cut[1]; y < bottom; y++) {
    const row = Math.floor((y - cut[1]) / CELL) * cells[0];
    for (let x = cut[0]; x < right; x++) {
      if (levels[y * size[0] + x]) open[row + Math.floor((x - cut[0]) / CELL)] = 1;
    }
  }
  return { size, columns: cells[0], open };
}

/**
 * What a run would refuse, or do otherwise than it looks: one sentence, or "".
 *
 * @param {Pair[]} pairs On the picture.
 * @param {Size} size Of the picture.
 * @param {{radius: number, unit: string}} brush As it is set; radius 0 where it is not known.
 * @param {Mask | null} mask
 */
export function warning(pairs, size, { radius, unit }, mask) {
  if (!pairs.length) return "";
  const cells = cellsOf(radius, unit);
  return (
    (radius && whatIsTooLarge(size, radius, unit, cells)) ||
    whatStays(pairs, size) ||
    (mask && whatTheMaskIs(mask, size)) ||
    (mask && whatIsKept(pairs, size, mask)) ||
    (radius && whatHangsOver(pairs, size, cells)) ||
    (radius && mask && whatIsHalfKept(pairs, size, cells, mask)) ||
    ""
  );
}

function whatIsTooLarge(size, radius, unit, cells) {
  const most = Math.floor(Math.min(...grid(size).cells) / 2);
  if (cells <= most) return "";
  const use = unit === PIXELS ? most * CELL : most;
  return t("A radius of {radius} {unit} copies more than the picture: use at most {use}.", {
    radius,
    unit: t(unit),
    use,
  });
}

const isSame = (a, b) => a[0] === b[0] && a[1] === b[1];

function whatStays(pairs, size) {
  const stays = ([from, to]) =>
    !isSame(from, to) && isSame(cellAt(from, size), cellAt(to, size));
  const number = pairs.findIndex(stays) + 1;
  if (!number) return "";
  const told =
    "Drag {number} does not leave one latent cell of {cell} pixels: pull its target further.";
  return t(told, { number, cell: CELL });
}

function whatTheMaskIs(mask, size) {
  if (!mask.open.includes(1)) {
    return t("The mask keeps all of the picture: paint white what may change, or disconnect it.");
  }
  if (isSame(mask.size, size)) return "";
  const [is, must] = [mask.size, size].map(([width, height]) => `${width} x ${height}`);
  return t("The mask is {is} pixels, the picture {must}: connect one of its size, or none.", {
    is,
    must,
  });
}

const isOpen = ({ open, columns }, [x, y]) => open[y * columns + x] === 1;

function whatIsKept(pairs, size, mask) {
  const found = firstEnd(pairs, (pair, end) => !isOpen(mask, cellAt(pair[end], size)));
  const told = "The {end} lies outside the mask: move it, or paint the mask white there.";
  return found && t(told, found);
}

function whatHangsOver(pairs, size, radius) {
  const { cells } = grid(size);
  const hangsOver = (pair, end) => {
    const [left, top, right, bottom] = squareAt(cellAt(pair[end], size), radius);
    return left < 0 || top < 0 || right > cells[0] || bottom > cells[1];
  };
  const found = firstEnd(pairs, hangsOver);
  const told = "The square at the {end} leaves the picture: move it, or take a smaller radius.";
  return found && t(told, found);
}

function whatIsHalfKept(pairs, size, radius, mask) {
  const boxes = pairs.map((pair) => copied(pair, size, radius));
  const found = firstEnd(pairs, (_, end, i) => boxes[i] && !isAllOpen(mask, boxes[i][end]));
  const told =
    "The square at the {end} leaves the mask: paint more white, move it, or take a smaller radius.";
  return found && t(told, found);
}

function isAllOpen(mask, [left, top, right, bottom]) {
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) if (!isOpen(mask, [x, y])) return false;
  }
  return true;
}

/** The first end of which something is true, in words ("handle of drag 2"), or "". */
function firstEnd(pairs, isTrue) {
  for (const [i, pair] of pairs.entries()) {
    for (const end of [0, 1]) {
      if (!isTrue(pair, end, i)) continue;
      const name = end ? t("target of drag {number}", { number: i + 1 }) : "";
      return { end: name || t("handle of drag {number}", { number: i + 1 }) };
    }
  }
  return "";
}
