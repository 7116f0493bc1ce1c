/** How drag points look: a picture, what may not change of it, and arrows. */

import { toBox } from "./drag_points_frame.js";

const HANDLE = "#ff8b3d";
const TARGET = "#3db4ff";
const CHOSEN = "#ffe14d";
const LIGHT = "#fff";
const DARK = "rgba(0, 0, 0, 0.65)";
const FAINT = "rgba(0, 0, 0, 0.35)";
const ENDS = [
  { color: HANDLE, size: 9 },
  { color: TARGET, size: 7 },
];
const BOARD = "rgba(128, 128, 128, 0.25)"; // where there is no picture
const SHARP_FROM = 3; // from this scale on, single pixels of the picture are seen as squares

/**
 * @param {CanvasRenderingContext2D} pen Scaled so that 1 is one unit of the stage.
 * @param {object} scene
 * @param {{scale: number, left: number, top: number}} scene.frame
 * @param {[number, number]} scene.size Of the picture.
 * @param {HTMLImageElement | null} scene.picture
 * @param {HTMLCanvasElement | null} scene.shade A veil over what may not change.
 * @param {import("./drag_points.js").Pair[]} scene.pairs
 * @param {import("./drag_points.js").Grip | null} scene.chosen
 * @param {import("./drag_points_cells.js").Box[][]} scene.squares What every pair copies, in pixels
 *     of the picture: at its handle, at its target; none where it copies nothing.
 * @param {number} scene.mark How large arrows are drawn; 1 is as designed.
 * @param {boolean} scene.faded Whether the points do not belong to this picture.
 */
export function paint(pen, scene) {
  const { frame, size, picture, shade } = scene;
  const place = [frame.left, frame.top, size[0] * frame.scale, size[1] * frame.scale];
  pen.imageSmoothingEnabled = frame.scale < SHARP_FROM;
  pen.fillStyle = BOARD;
  pen.fillRect(...place);
  if (picture) pen.drawImage(picture, ...place);
  if (shade) pen.drawImage(shade, ...place);
  pen.globalAlpha = scene.faded ? 0.4 : 1;
  arrows(pen, scene);
  pen.globalAlpha = 1;
}

function arrows(pen, { frame, pairs, squares, chosen, mark }) {
  const place = ([x, y]) => toBox(frame, [x + 0.5, y + 0.5]).map((at) => at / mark);
  const placed = pairs.map((pair) => pair.map(place));
  const corner = (at) => toBox(frame, at).map((length) => length / mark);
  const square = ([left, top, ...end]) => [...corner([left, top]), ...corner(end)];
  pen.scale(mark, mark);
  for (const boxes of squares) outline(pen, boxes.map(square));
  for (const pair of placed) arrow(pen, pair);
  placed.forEach((pair, i) => discs(pen, pair, i, chosen));
  pen.scale(1 / mark, 1 / mark);
}

function outline(pen, boxes) {
  boxes.forEach(([left, top, right, bottom], end) => {
    const square = () => pen.rect(left, top, right - left, bottom - top);
    stroke(pen, 3.5, FAINT, square);
    stroke(pen, 1.5, ENDS[end].color, square);
  });
}

function arrow(pen, [from, to]) {
  const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const gap = ENDS[0].size + ENDS[1].size;
  if (length <= gap) return;
  const [ux, uy] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
  const tip = [to[0] - ux * ENDS[1].size, to[1] - uy * ENDS[1].size];
  const barb = Math.min(10, length - gap);
  const wing = (side) => [
    tip[0] - barb * (ux - side * 0.6 * uy),
    tip[1] - barb * (uy + side * 0.6 * ux),
  ];
  pen.lineCap = pen.lineJoin = "round";
  for (const [width, color] of [[5, DARK], [2.5, LIGHT]]) {
    stroke(pen, width, color, () => {
      pen.moveTo(...from);
      pen.lineTo(...tip);
      pen.moveTo(...wing(1));
      pen.lineTo(...tip);
      pen.lineTo(...wing(-1));
    });
  }
}

function discs(pen, pair, index, chosen) {
  pair.forEach(([x, y], end) => {
    const { color, size } = ENDS[end];
    const isChosen = chosen?.pair === index && chosen.end === end;
    pen.fillStyle = color;
    stroke(pen, isChosen ? 6 : 4, DARK, () => pen.arc(x, y, size, 0, 2 * Math.PI));
    pen.fill();
    stroke(pen, isChosen ? 3 : 2, isChosen ? CHOSEN : LIGHT, () =>
      pen.arc(x, y, size, 0, 2 * Math.PI),
    );
    if (end === 0) number(pen, index + 1, x, y);
  });
}

function number(pen, told, x, y) {
  pen.font = "bold 11px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillStyle = "#1a1a1a";
  pen.fillText(told, x, y + 0.5);
}

function stroke(pen, width, color, path) {
  pen.lineWidth = width;
  pen.strokeStyle = color;
  pen.beginPath();
  path();
  pen.stroke();
}
