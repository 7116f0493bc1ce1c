/** What mouse, pen and fingers do on the stage: presses, drags, pans and zooms. */

import { zoomOfWheel } from "./drag_points_frame.js";

const CLICK = { mouse: 3, pen: 5, touch: 8 }; // a pointer that moved less has not moved
const LONG = 550; // milliseconds; a finger that stays that long means more than a tap
const TOUCHES = ["touchstart", "touchmove", "touchend", "touchcancel"];

/**
 * @typedef {[number, number]} Point In units of the stage.
 *
 * @typedef {object} Hands What is to be done; `kind` is "mouse", "pen" or "touch".
 * @property {(at: Point, kind: string) => "end" | "new" | null} press What was taken, if anything.
 * @property {(at: Point) => void} drag
 * @property {() => void} callOff The drag shall not have been.
 * @property {() => void} release Any gesture is over.
 * @property {(by: Point) => void} pan
 * @property {(factor: number, at: Point) => void} zoom
 * @property {(at: Point | null) => void} hover
 * @property {(at: Point, kind: string) => void} menu A right click, or a long press on an end.
 * @property {() => boolean} ownsWheel
 * @property {(event: WheelEvent) => void} passWheel
 * @property {() => void} focus
 */

export class Pointers {
  /** Whether any press pans, as while Space is held. */
  panning = false;
  /** @type {{kind: string, last: Point, moved?: boolean, spread?: number} | null} */
  #gesture = null;
  /** @type {Map<number, Point>} */
  #down = new Map();
  #long = 0; // the timer of a press that may become a long one

  /**
   * @param {HTMLElement} stage
   * @param {HTMLElement} area All of the editor, the stage in it.
   * @param {Hands} hands
   */
  constructor(stage, area, hands) {
    this.stage = stage;
    this.area = area;
    this.hands = hands;
  }

  get dragging() {
    return this.#gesture?.kind === "drag";
  }

  /**
   * The graph takes the wheel, pinches and the middle button on their way down to what lies on it,
   * and the page zooms by what is left: so we listen before all of them.
   */
  listen(signal) {
    this.#down.clear();
    const first = (type, handler) =>
      document.body.addEventListener(type, handler, { signal, capture: true, passive: false });
    const onStage = (type, handler) =>
      first(type, (event) => event.target === this.stage && handler(event, this.#at(event)));
    const on = (type, handler) => this.stage.addEventListener(type, handler, { signal });
    onStage("pointerdown", (event, at) => this.#press(event, at));
    onStage("pointermove", (event, at) => this.#move(event, at));
    onStage("pointerup", (event) => this.#release(event));
    onStage("pointercancel", (event) => this.#release(event, true));
    on("pointerleave", () => this.hands.hover(null));
    on("contextmenu", (event) => this.#menu(event, this.#at(event)));
    on("mousedown", (event) => event.preventDefault()); // or the focus goes to what lies below
    on("mouseup", (event) => event.button === 1 && event.preventDefault()); // or Linux pastes
    const isOurs = (event) => this.area.contains(event.target);
    first("wheel", (event) => isOurs(event) && this.#wheel(event, this.#at(event)));
    for (const type of TOUCHES) first(type, (event) => isOurs(event) && event.stopPropagation());
  }

  /** Forget what is going on; the hands are not asked. */
  drop() {
    clearTimeout(this.#long);
    this.#gesture = null;
  }

  /** End a drag as if it had not been. */
  callOff() {
    if (!this.dragging) return;
    this.drop();
    this.hands.callOff();
  }

  /** Where a pointer is; the graph may show the stage at any scale. */
  #at(event) {
    const seen = this.stage.getBoundingClientRect();
    return [
      ((event.clientX - seen.left) * this.stage.clientWidth) / seen.width,
      ((event.clientY - seen.top) * this.stage.clientHeight) / seen.height,
    ];
  }

  #press(event, at) {
    event.stopPropagation(); // or the node is dragged
    this.hands.focus();
    this.stage.setPointerCapture(event.pointerId);
    this.#down.set(event.pointerId, at);
    if (this.#down.size === 2) this.#pinch();
    else if (event.button === 1 || event.altKey || this.panning) {
      this.#gesture = { kind: "pan", last: at };
    } else if (event.button === 0) this.#take(event.pointerType, at);
  }

  #take(kind, at) {
    const taken = this.hands.press(at, kind);
    if (!taken) return;
    this.#gesture = { kind: "drag", last: at, still: CLICK[kind] ?? CLICK.mouse, moved: false };
    if (taken === "end" && kind !== "mouse") {
      this.#long = setTimeout(() => this.#pressLong(kind, at), LONG);
    }
  }

  /** A finger has no right button: it stays where it is instead. */
  #pressLong(kind, at) {
    if (!this.dragging || this.#gesture.moved) return;
    this.callOff();
    this.#gesture = { kind: "long", last: at };
    this.hands.menu(at, kind);
  }

  #pinch() {
    this.callOff();
    const [a, b] = this.#down.values();
    this.#gesture = { kind: "pinch", last: middle(a, b), spread: distance(a, b) };
  }

  #move(event, at) {
    event.stopPropagation();
    if (this.#down.has(event.pointerId)) this.#down.set(event.pointerId, at);
    const gesture = this.#gesture;
    if (gesture?.kind === "drag") this.#drag(gesture, at);
    if (gesture?.kind === "pan") this.#pan(gesture, at);
    if (gesture?.kind === "pinch" && this.#down.size === 2) this.#spread(gesture);
    this.hands.hover(at);
  }

  #drag(gesture, at) {
    gesture.moved ||= distance(at, gesture.last) >= gesture.still;
    if (gesture.moved) this.hands.drag(at);
  }

  #pan(gesture, to) {
    this.hands.pan([to[0] - gesture.last[0], to[1] - gesture.last[1]]);
    gesture.last = to;
  }

  #spread(gesture) {
    const [a, b] = this.#down.values();
    this.hands.zoom(distance(a, b) / (gesture.spread || 1), gesture.last);
    gesture.spread = distance(a, b);
    this.#pan(gesture, middle(a, b));
  }

  #release(event, cancelled = false) {
    event.stopPropagation();
    this.#down.delete(event.pointerId);
    if (cancelled) this.callOff();
    if (this.#down.size) return; // the other finger is still there
    this.drop();
    this.hands.release();
  }

  #menu(event, at) {
    event.preventDefault();
    event.stopPropagation();
    // Some browsers also tell of a long press by themselves, which has been seen to.
    if (event.pointerType === "touch" || this.#gesture?.kind === "long") return;
    if (this.#gesture?.moved) return;
    this.callOff(); // a pen that pressed long has begun a drag
    this.hands.menu(at, event.pointerType);
  }

  #wheel(event, at) {
    if (event.ctrlKey) event.preventDefault(); // or the page is zoomed
    if (!this.hands.ownsWheel()) {
      this.hands.passWheel(event);
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    this.hands.zoom(zoomOfWheel(event), at);
    this.hands.hover(at);
  }
}

const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
