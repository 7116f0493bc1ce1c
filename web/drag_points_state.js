/** What the person has set and is setting: the points, what they were, and the end in hand. No page. */

import {
  addPair,
  begin,
  commit,
  moveEnd,
  movePair,
  nextEnd,
  NOTHING,
  openPair,
  parse,
  redo,
  removePair,
  undo,
} from "./drag_points.js";
import { t } from "./words.js";

/** @typedef {import("./drag_points.js").Grip} Grip @typedef {import("./drag_points.js").Point} Point */

export class PointsState {
  /** The end that was touched last. @type {Grip | null} */
  chosen = null;
  /** While an end is dragged: what was before, and how far beside it the press was. */
  held = null;
  /** One sentence on what was done. */
  notice = "";
  /** One sentence on what could not be done. */
  complaint = "";
  #history = begin(NOTHING);
  #known = ""; // the text that `isNews` told of last
  #fresh = -1; // the pair that a key has made and that is moved as a whole until its target is chosen

  get now() {
    return this.#history.now;
  }

  get canUndo() {
    return this.#history.past.length > 0;
  }

  get canRedo() {
    return this.#history.future.length > 0;
  }

  /** Whether an arrow waits for its target, and none is in hand. */
  get isOpen() {
    return !this.held && openPair(this.now) >= 0;
  }

  /** Where the end that was touched last is. @type {Point | null} */
  get place() {
    return this.chosen && this.now.pairs[this.chosen.pair][this.chosen.end];
  }

  /** Begin anew with points as text. */
  read(text) {
    this.#history = begin(parse(text));
    this.#known = this.now.text;
    this.forget();
  }

  /** Whether the points are other ones than when this was asked last, and none is in hand. */
  isNews() {
    if (this.held || this.now.text === this.#known) return false;
    this.#known = this.now.text;
    return true;
  }

  change(now, tag = "", from = this.#history) {
    this.#history = commit(from, now, tag);
    this.notice = this.complaint = "";
    if (this.chosen && !now.pairs[this.chosen.pair]) this.chosen = null;
  }

  undo() {
    this.#step(undo);
  }

  redo() {
    this.#step(redo);
  }

  #step(step) {
    this.forget();
    this.#history = step(this.#history);
  }

  forget() {
    this.#fresh = -1;
    this.chosen = this.held = null;
    this.notice = this.complaint = "";
  }

  remove(index) {
    this.forget();
    this.change(removePair(this.now, index));
    this.notice = t("Drag {number} is deleted: Undo brings it back.", { number: index + 1 });
  }

  removeChosen() {
    if (this.chosen && !this.held) this.remove(this.chosen.pair);
  }

  // --- by hand

  /**
   * Take an end; where there is none, begin an arrow, or say where one goes that is not finished.
   *
   * @param {Point} place On the picture. @param {Grip | null} grip The end that is there.
   */
  press(place, grip, size) {
    const before = this.#history;
    this.#fresh = -1;
    this.notice = "";
    this.chosen = grip ?? this.#begin(place, size);
    const [x, y] = this.place;
    this.held = { before, beside: grip ? [x + 0.5 - place[0], y + 0.5 - place[1]] : [0, 0] };
  }

  #begin(place, size) {
    const open = openPair(this.now);
    const grip = { pair: open < 0 ? this.now.pairs.length : open, end: 1 };
    this.change(open < 0 ? addPair(this.now, size, place) : moveEnd(this.now, grip, place));
    return grip;
  }

  drag([x, y]) {
    const { before, beside } = this.held;
    this.change(moveEnd(this.now, this.chosen, [x + beside[0], y + beside[1]]), "", before);
  }

  /** The drag shall not have been. */
  callOff() {
    this.#history = this.held.before;
    this.held = this.chosen = null;
  }

  release() {
    this.held = null;
  }

  // --- by keys

  nudge([dx, dy]) {
    if (!this.chosen || this.held) return;
    const { pair, end } = this.chosen;
    const to = [this.place[0] + dx, this.place[1] + dy];
    const moved =
      pair === this.#fresh ? movePair(this.now, pair, to) : moveEnd(this.now, this.chosen, to);
    this.change(moved, `nudge ${pair} ${end}`);
  }

  /** A new arrow; or on to the target of one that has none yet. */
  put(place, size) {
    if (this.held) return;
    const open = openPair(this.now);
    this.notice = "";
    if (open < 0) this.change(addPair(this.now, size, place));
    this.#fresh = open < 0 ? this.now.pairs.length - 1 : -1;
    this.chosen = open < 0 ? { pair: this.#fresh, end: 0 } : { pair: open, end: 1 };
  }

  /** From end to end. @returns {boolean} Whether there was another one. */
  next(isBack) {
    if (this.held) return false;
    this.chosen = nextEnd(this.now, this.chosen, isBack);
    this.#fresh = -1;
    this.notice = "";
    return this.chosen !== null;
  }
}
