/** The drag-point editor as an element of the page. It knows the page and no ComfyUI. */

import {
  addPair,
  begin,
  CELL,
  commit,
  frame,
  hit,
  importPoints,
  mismatch,
  moveEnd,
  NOTHING,
  openPair,
  panBy,
  parse,
  pixel,
  redo,
  removePair,
  rescale,
  told,
  toPicture,
  undo,
  WHOLE,
  zoomAt,
} from "./drag_points.js";
import { paint } from "./drag_points_paint.js";
import { make, makePanel } from "./drag_points_panel.js";
import { Pictures } from "./drag_points_pictures.js";
import { Pointers } from "./drag_points_pointers.js";

const REACH = { mouse: 12, pen: 14, touch: 24 }; // how near a press has to be to an end
const SMALLEST = 0.75; // of the size that marks are designed for; when the graph is zoomed out
const SHARPEST = 4096; // pixels of the screen, along one side of the drawing
const LOADING = "Loading the picture.";
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class PointsEditor {
  #history = begin(NOTHING);
  #known = ""; // the value that `onChange` was last called with
  /** @type {import("./drag_points.js").Grip | null} */
  #chosen = null;
  #held = null; // while an end is dragged: the history before, and how far beside it the press was
  #view = WHOLE;
  #hover = null; // in units of the stage
  #notice = "";
  #complaint = "";
  #shown = { picture: null, why: LOADING, mask: null, radius: 0 };
  #pictures = new Pictures((what) => this.#arrived(what));
  #listeners = null;
  #resizes = null;
  #drawing = 0;
  #sharpness = 0;

  /**
   * @param {() => void} onChange Called when a change is finished; `value` is new then.
   * @param {(event: WheelEvent) => void} passWheel Takes the wheel while the editor has no focus.
   */
  constructor(onChange, passWheel) {
    this.onChange = onChange;
    this.panel = makePanel({
      undo: () => this.#use(() => this.#step(undo)),
      redo: () => this.#use(() => this.#step(redo)),
      clear: () => this.#use(() => this.#commit(NOTHING)),
      rescale: () => this.#use(() => this.#commit(rescale(this.#now, this.#size))),
      fit: () => this.#use(() => this.#look(WHOLE)),
      import: () => this.#use(() => this.#import()),
    });
    this.element = this.panel.element;
    this.pointers = new Pointers(this.panel.canvas, {
      press: (at, kind) => this.#press(at, kind),
      drag: (at) => this.#drag(at),
      callOff: () => this.#callOff(),
      release: () => this.#release(),
      pan: (by) => this.#size && this.#look(panBy(this.#view, this.#size, this.#box, by)),
      zoom: (factor, at) =>
        this.#size && this.#look(zoomAt(this.#view, this.#size, this.#box, factor, at)),
      hover: (at) => this.#hoverAt(at),
      menu: (at, kind) => this.#menu(at, kind),
      ownsWheel: () => this.#size !== null && this.element.contains(document.activeElement),
      passWheel,
      focus: () => this.#focus(),
    });
    this.#refresh();
  }

  /** The points as text. What cannot be read stays as it was written. */
  get value() {
    return this.#now.text;
  }

  set value(text) {
    if (text === this.value) return;
    this.#history = begin(parse(text));
    this.#known = this.value;
    this.#forget();
    this.#refresh();
  }

  /**
   * @param {object} shown
   * @param {string | null} shown.picture Its address.
   * @param {string} shown.why What to say where there is no picture.
   * @param {string | null} shown.mask Its address.
   * @param {number} shown.radius In latent cells.
   */
  show(shown) {
    const before = this.#shown;
    this.#shown = shown;
    this.#pictures.want(shown);
    const same = Object.keys(shown).every((key) => shown[key] === before[key]);
    // A zoom of the graph resizes nothing here, but the drawing has to be sharper or coarser.
    if (!same || this.#sharpness !== this.#wantedSharpness()) this.#refresh();
  }

  /** Listen to the person; `detach` ends it. */
  attach() {
    if (this.#listeners) return;
    this.#listeners = new AbortController();
    const { signal } = this.#listeners;
    this.pointers.listen(signal);
    this.element.addEventListener("keydown", (event) => this.#key(event), { signal });
    this.element.addEventListener("keyup", (event) => this.#keyUp(event), { signal });
    this.element.addEventListener("focusout", () => this.#leave(), { signal });
    this.#resizes = new ResizeObserver(() => this.#refresh());
    this.#resizes.observe(this.panel.stage);
  }

  detach() {
    this.#listeners?.abort();
    this.#resizes?.disconnect();
    cancelAnimationFrame(this.#drawing);
    this.#listeners = this.#resizes = null;
    this.#drawing = 0;
  }

  // --- what there is

  get #now() {
    return this.#history.now;
  }

  /** Of the picture, or of the one that the points were set on while none is there. */
  get #size() {
    const { picture } = this.#pictures;
    return picture ? [picture.naturalWidth, picture.naturalHeight] : this.#now.size;
  }

  get #box() {
    return [this.panel.canvas.clientWidth, this.panel.canvas.clientHeight];
  }

  get #mismatch() {
    return mismatch(this.#now, this.#size);
  }

  #arrived(what) {
    if (what === "picture") {
      this.pointers.callOff();
      this.#view = WHOLE;
    }
    this.#refresh();
  }

  // --- what changes it

  #commit(now, tag = "", from = this.#history) {
    this.#history = commit(from, now, tag);
    this.#notice = this.#complaint = "";
    if (this.#chosen && !this.#now.pairs[this.#chosen.pair]) this.#chosen = null;
    this.#refresh();
  }

  #step(change) {
    this.#forget();
    this.#history = change(this.#history);
    this.#refresh();
  }

  #delete(index) {
    this.#chosen = null;
    this.#commit(removePair(this.#now, index));
  }

  #forget() {
    this.pointers.drop();
    this.#chosen = this.#held = null;
    this.#notice = this.#complaint = "";
  }

  /** Tell the graph, once a gesture or a key is over. */
  #finish() {
    if (this.#held || this.value === this.#known) return;
    this.#known = this.value;
    this.onChange();
  }

  #import() {
    const chooser = make("input", { type: "file", accept: ".json" });
    chooser.onchange = async () => {
      const [file] = chooser.files;
      const found = importPoints(await file.text(), this.#size);
      if (found.drags) this.#commit(found.drags);
      this.#notice = found.told ?? "";
      this.#complaint = found.complaint ? `${file.name}: ${found.complaint}` : "";
      this.#refresh();
      this.#finish();
    };
    chooser.click();
  }

  // --- what the person does

  #focus() {
    this.panel.keys.focus({ preventScroll: true });
  }

  /** A tool was pressed. */
  #use(act) {
    act();
    this.#focus();
    this.#finish();
  }

  #onPicture(at) {
    return toPicture(frame(this.#view, this.#size, this.#box), at);
  }

  #gripAt(at, kind) {
    if (this.#mismatch) return null;
    const { scale } = frame(this.#view, this.#size, this.#box);
    const reach = (REACH[kind] ?? REACH.mouse) * this.#mark;
    return hit(this.#now, this.#onPicture(at), reach / scale);
  }

  #press(at, kind) {
    if (!this.#size || this.#mismatch) return false;
    const before = this.#history;
    const grip = this.#gripAt(at, kind);
    const place = this.#onPicture(at);
    this.#chosen = grip ?? this.#begin(place);
    const [x, y] = this.#now.pairs[this.#chosen.pair][this.#chosen.end];
    const beside = grip ? [x + 0.5 - place[0], y + 0.5 - place[1]] : [0, 0];
    this.#held = { before, beside };
    this.#refresh();
    return true;
  }

  /** Press where no end is: a new arrow, or the target of one that has none yet. */
  #begin(place) {
    const open = openPair(this.#now);
    const grip = { pair: open < 0 ? this.#now.pairs.length : open, end: 1 };
    const isNew = open < 0;
    this.#commit(isNew ? addPair(this.#now, this.#size, place) : moveEnd(this.#now, grip, place));
    return grip;
  }

  #drag(at) {
    const [x, y] = this.#onPicture(at);
    const { before, beside } = this.#held;
    this.#commit(moveEnd(this.#now, this.#chosen, [x + beside[0], y + beside[1]]), "", before);
  }

  #callOff() {
    this.#history = this.#held.before;
    this.#held = this.#chosen = null;
    this.#refresh();
  }

  #release() {
    this.#held = null;
    this.#refresh();
    this.#finish();
  }

  #menu(at, kind) {
    const grip = this.#size && this.#gripAt(at, kind);
    if (grip) this.#delete(grip.pair);
    this.#finish();
  }

  #hoverAt(at) {
    this.#hover = at;
    this.#say();
    if (this.#held) return;
    this.panel.canvas.style.cursor = at && this.#size && this.#gripAt(at, "mouse") ? "grab" : "";
  }

  #key(event) {
    if (!this.#obey(event)) return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @returns {boolean} Whether the key was ours. */
  #obey({ key, ctrlKey, metaKey, shiftKey, target }) {
    if (ctrlKey || metaKey) return this.#shortcut(key.toLowerCase(), shiftKey);
    if (key === " " && target === this.panel.keys) this.pointers.panning = true;
    else if (key === "Escape") this.#escape();
    else if (key === "Delete" || key === "Backspace") this.#deleteChosen(); // never the node
    else if (key in STEPS) this.#nudge(STEPS[key], shiftKey ? 10 : 1);
    else return false;
    return true;
  }

  #shortcut(key, shift) {
    if (key === "z") this.#step(shift ? redo : undo);
    else if (key === "y" && !shift) this.#step(redo);
    else return false;
    return true;
  }

  #escape() {
    if (this.pointers.dragging) this.pointers.callOff();
    else this.#chosen = null;
    this.#refresh();
  }

  #deleteChosen() {
    if (this.#chosen && !this.#held && !this.#mismatch) this.#delete(this.#chosen.pair);
  }

  #nudge([dx, dy], pixels) {
    if (!this.#chosen || this.#held || this.#mismatch) return;
    const { pair, end } = this.#chosen;
    const [x, y] = this.#now.pairs[pair][end];
    const to = [x + dx * pixels, y + dy * pixels];
    this.#commit(moveEnd(this.#now, this.#chosen, to), `nudge ${pair} ${end}`);
  }

  #keyUp(event) {
    if (event.key === " " && event.target === this.panel.keys) {
      this.pointers.panning = false;
      event.preventDefault(); // or the button that takes the keys is clicked
    }
    this.#finish();
  }

  #leave() {
    this.pointers.panning = false;
    this.#finish();
  }

  // --- what is seen

  #look(view) {
    this.#view = view;
    this.#refresh();
  }

  #refresh() {
    this.#say();
    const { buttons } = this.panel;
    buttons.undo.disabled = !this.#history.past.length;
    buttons.redo.disabled = !this.#history.future.length;
    buttons.clear.disabled = !this.#now.text;
    buttons.rescale.hidden = !this.#mismatch;
    buttons.fit.disabled = this.#view.zoom === 1;
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  #say() {
    const { complaint, message, where, empty } = this.panel;
    complaint.textContent = this.#complaint || this.#now.complaint || this.#mismatch;
    message.textContent = message.title = this.#notice || this.#advice();
    const seen = this.#hover && this.#size && pixel(this.#onPicture(this.#hover), this.#size);
    where.textContent = seen ? `${seen[0]}, ${seen[1]}` : "";
    empty.textContent = this.#pictures.picture ? "" : this.#whyEmpty();
  }

  #whyEmpty() {
    if (!this.#shown.picture) return this.#shown.why;
    return this.#pictures.failed ? "The picture cannot be loaded: is its file still there?" : LOADING;
  }

  #advice() {
    return this.#size ? told(this.#now, this.#chosen, Boolean(this.#held)) : "";
  }

  /** How large the graph shows the stage. */
  get #scale() {
    const { canvas } = this.panel;
    return (canvas.getBoundingClientRect().width || 1) / (canvas.clientWidth || 1);
  }

  /** How much larger marks are, so that they stay in reach of hand and eye. */
  get #mark() {
    return Math.max(1, SMALLEST / this.#scale);
  }

  #wantedSharpness() {
    return Math.min(this.#scale * window.devicePixelRatio, SHARPEST / Math.max(...this.#box, 1));
  }

  #draw() {
    this.#drawing = 0;
    const { canvas } = this.panel;
    const box = this.#box;
    this.#sharpness = this.#wantedSharpness();
    [canvas.width, canvas.height] = box.map((length) => Math.round(length * this.#sharpness));
    if (!this.#size || !canvas.width || !canvas.height) return;
    const pen = canvas.getContext("2d");
    pen.scale(this.#sharpness, this.#sharpness);
    const faded = Boolean(this.#mismatch);
    paint(pen, {
      frame: frame(this.#view, this.#size, box),
      size: this.#size,
      picture: this.#pictures.picture,
      shade: this.#pictures.shade,
      pairs: (faded ? rescale(this.#now, this.#size) : this.#now).pairs,
      chosen: this.#chosen,
      radius: this.#shown.radius * CELL,
      mark: this.#mark,
      faded,
    });
  }
}
