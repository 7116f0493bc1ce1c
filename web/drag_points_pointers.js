/** What mouse, pen and fingers do on the stage: presses, drags, pans and zooms. */

const CLICK = 3; // a pointer that moved less has not moved
const WHEEL_STEP = 0.0015; // of zoom, to a pixel of scrolling
const LINE = 16; // pixels of scrolling, to a line

/**
 * @typedef {[number, number]} Point In units of the stage.
 *
 * @typedef {object} Hands What is to be done; `kind` is "mouse", "pen" or "touch".
 * @property {(at: Point, kind: string) => boolean} press Whether a drag begins with it.
 * @property {(at: Point) => void} drag
 * @property {() => void} callOff The drag shall not have been.
 * @property {() => void} release Any gesture is over.
 * @property {(by: Point) => void} pan
 * @property {(factor: number, at: Point) => void} zoom
 * @property {(at: Point | null) => void} hover
 * @property {(at: Point, kind: string) => void} menu
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

  /** @param {Hands} hands */
  constructor(stage, hands) {
    this.stage = stage;
    this.hands = hands;
  }

  get dragging() {
    return this.#gesture?.kind === "drag";
  }

  listen(signal) {
    const on = (type, handler, options) =>
      this.stage.addEventListener(type, (event) => handler(event, this.#at(event)), {
        signal,
        ...options,
      });
    on("pointerdown", (event, at) => this.#press(event, at));
    on("pointermove", (event, at) => this.#move(event, at));
    on("pointerup", (event) => this.#release(event));
    on("pointercancel", (event) => this.#release(event, true));
    on("pointerleave", () => this.hands.hover(null));
    on("contextmenu", (event, at) => this.#menu(event, at));
    on("wheel", (event, at) => this.#wheel(event, at), { passive: false });
    on("mousedown", (event) => event.preventDefault()); // or the focus goes to what lies below
  }

  /** Forget what is going on; the hands are not asked. */
  drop() {
    this.#gesture = null;
  }

  /** End a drag as if it had not been. */
  callOff() {
    if (!this.dragging) return;
    this.#gesture = null;
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
    } else if (event.button === 0 && this.hands.press(at, event.pointerType)) {
      this.#gesture = { kind: "drag", last: at, moved: false };
    }
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
    gesture.moved ||= distance(at, gesture.last) >= CLICK;
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
    this.#gesture = null;
    this.hands.release();
  }

  #menu(event, at) {
    event.preventDefault();
    event.stopPropagation();
    if (this.#gesture?.moved) return;
    this.callOff(); // a finger that pressed long has begun a drag
    this.hands.menu(at, event.pointerType);
  }

  #wheel(event, at) {
    if (!this.hands.ownsWheel()) {
      this.hands.passWheel(event);
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    const scrolled = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? LINE : 1);
    this.hands.zoom(Math.exp(-scrolled * WHEEL_STEP), at);
    this.hands.hover(at);
  }
}

const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);
const middle = (a, b) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
