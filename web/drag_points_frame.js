/**
 * Where a picture lies on the screen, zoomed and moved. Pure functions.
 *
 * @typedef {import("./drag_points.js").Point} Point
 * @typedef {import("./drag_points.js").Size} Size
 *
 * @typedef {object} View Which part of the picture is shown, whatever the size of the box.
 * @property {number} zoom 1 shows the whole picture.
 * @property {Point} center What lies in the middle of the box, in fractions of the picture.
 */

const MAX_ZOOM = 32;
const MARGIN = 24; // of the box, around what is revealed
const WHEEL_STEP = 0.0015; // of zoom, to a pixel of scrolling
const LINE = 16; // pixels of scrolling, to a line
const PINCH_STEP = 0.01;
const FASTEST_PINCH = 25; // pixels at once; a real wheel with Ctrl comes in larger ones

/** @type {View} */
export const WHOLE = Object.freeze({ zoom: 1, center: [0.5, 0.5] });

/**
 * How a picture lies in a box: a place p of the picture is at `left + scale * p` in the box.
 *
 * @param {View} view @param {Size} size @param {Size} box
 */
export function frame(view, size, box) {
  const scale = Math.min(box[0] / size[0], box[1] / size[1]) * view.zoom;
  const [left, top] = [0, 1].map((i) => box[i] / 2 - view.center[i] * size[i] * scale);
  return { scale, left, top };
}

export const toPicture = ({ scale, left, top }, [x, y]) => [(x - left) / scale, (y - top) / scale];
export const toBox = ({ scale, left, top }, [x, y]) => [left + x * scale, top + y * scale];

/** Zoom by a factor; what lies under `at` (in the box) stays there. @returns {View} */
export function zoomAt(view, size, box, factor, at) {
  const zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom * factor));
  const held = toPicture(frame(view, size, box), at);
  const { scale } = frame({ ...view, zoom }, size, box);
  const center = [0, 1].map((i) => (held[i] - (at[i] - box[i] / 2) / scale) / size[i]);
  return keepInside({ zoom, center }, size, box);
}

/** Move the picture by a distance in the box. @returns {View} */
export function panBy(view, size, box, [dx, dy]) {
  const { scale } = frame(view, size, box);
  const center = [view.center[0] - dx / scale / size[0], view.center[1] - dy / scale / size[1]];
  return keepInside({ ...view, center }, size, box);
}

/** Move the picture so far that a place of it is seen, and a little around it. @returns {View} */
export function reveal(view, size, box, place) {
  const seen = toBox(frame(view, size, box), place);
  const beyond = (at, length) => Math.min(0, at - MARGIN) || Math.max(0, at + MARGIN - length);
  const by = seen.map((at, i) => -beyond(at, box[i]));
  return by.some(Boolean) ? panBy(view, size, box, by) : view;
}

/**
 * How much larger a turn of the wheel shows the picture. Browsers tell of a pinch on a trackpad as
 * of a wheel with Ctrl, in much smaller steps.
 */
export function zoomOfWheel({ deltaY, deltaMode, ctrlKey }) {
  const scrolled = deltaY * (deltaMode === 0 ? 1 : LINE);
  if (!ctrlKey) return Math.exp(-scrolled * WHEEL_STEP);
  return Math.exp(-Math.min(FASTEST_PINCH, Math.max(-FASTEST_PINCH, scrolled)) * PINCH_STEP);
}

/** The picture covers the box, or lies in its middle where it is smaller. */
function keepInside({ zoom, center }, size, box) {
  const { scale } = frame({ zoom, center }, size, box);
  const kept = center.map((c, i) => {
    const half = box[i] / 2 / (scale * size[i]);
    return half >= 0.5 ? 0.5 : Math.min(1 - half, Math.max(half, c));
  });
  return { zoom, center: kept };
}
