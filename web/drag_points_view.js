/** The drag-point editor as an element of the page. It knows the page and no ComfyUI. */

import { hit, importPoints, mismatch, NOTHING, pixel, rescale, told } from "./drag_points.js";
import { cellsOf, copied, onPicture, PIXELS, warning } from "./drag_points_cells.js";
import { frame, panBy, reveal, toBox, toPicture, WHOLE, zoomAt } from "./drag_points_frame.js";
import { Keys } from "./drag_points_keys.js";
import { KEYS, make, makePanel } from "./drag_points_panel.js";
import { Pictures } from "./drag_points_pictures.js";
import { Pointers } from "./drag_points_pointers.js";
import { Screen } from "./drag_points_screen.js";
import { PointsState } from "./drag_points_state.js";
import { t } from "./words.js";

const REACH = { mouse: 12, pen: 14, touch: 24 }; // how near a press has to be to an end
const LOADING = "Loading the picture.";

export class PointsEditor {
  #state = new PointsState();
  #view = WHOLE;
  #hover = null; // in units of the stage
  #shown = { picture: null, why: LOADING, mask: null, radius: 0, unit: PIXELS };
  #pictures = new Pictures((what) => this.#arrived(what));
  #listeners = null;
  #resizes = null;

  /**
   * @param {() => void} onChange Called when a change is finished; `value` is new then.
   * @param {(event: WheelEvent) => void} passWheel Takes the wheel while the editor has no focus.
   */
  constructor(onChange, passWheel) {
    this.onChange = onChange;
    this.panel = makePanel(this.#tools());
    this.element = this.panel.element;
    this.screen = new Screen(this.panel.canvas, () => this.#scene());
    const hands = { ...this.#hands(), passWheel };
    this.pointers = new Pointers(this.panel.canvas, this.element, hands);
    this.keys = new Keys(this.element, this.panel.keys, this.#keys());
    this.#refresh();
  }

  /** The points as text. What cannot be read stays as it was written. */
  get value() {
    return this.#state.now.text;
  }

  set value(text) {
    if (text === this.value) return;
    this.pointers.drop();
    this.#state.read(text);
    this.#refresh();
  }

  /**
   * @param {object} shown
   * @param {string | null} shown.picture Its address.
   * @param {string} shown.why What to say where there is no picture.
   * @param {string | null} shown.mask Its address, # and its channel.
   * @param {number} shown.radius 0 where it is not known.
   * @param {string} shown.unit What the radius counts.
   */
  show(shown) {
    const before = this.#shown;
    this.#shown = shown;
    this.#pictures.want(shown);
    const same = Object.keys(shown).every((key) => shown[key] === before[key]);
    if (!same || this.screen.isStale) this.#refresh();
  }

  /** Listen to the person; `detach` ends it. */
  attach() {
    if (this.#listeners) return;
    this.#listeners = new AbortController();
    const { signal } = this.#listeners;
    this.pointers.listen(signal);
    this.keys.listen(signal);
    this.#resizes = new ResizeObserver(() => this.#refresh());
    this.#resizes.observe(this.panel.stage);
  }

  detach() {
    this.#listeners?.abort();
    this.#resizes?.disconnect();
    this.screen.stop();
    this.#listeners = this.#resizes = null;
  }

  // --- what there is

  /** Of the picture, or of the one that the points were set on while none is there. */
  get #size() {
    const { picture } = this.#pictures;
    return picture ? [picture.naturalWidth, picture.naturalHeight] : this.#state.now.size;
  }

  get #frame() {
    return frame(this.#view, this.#size, this.screen.box);
  }

  get #mismatch() {
    return mismatch(this.#state.now, this.#size);
  }

  /** Whether there is something to set points on, and they belong to it. */
  get #isReady() {
    return this.#size !== null && !this.#mismatch;
  }

  #onPicture(at) {
    return toPicture(this.#frame, at);
  }

  #arrived(what) {
    if (what === "picture") {
      this.pointers.callOff();
      this.#view = WHOLE;
    }
    this.#refresh();
  }

  // --- what the person does

  #tools() {
    const use = (act) => () => {
      this.#do(act);
      this.#focus();
      this.#finish();
    };
    return {
      undo: use(() => this.#undo()),
      redo: use(() => this.#redo()),
      clear: use(() => this.#state.change(NOTHING)),
      rescale: use(() => this.#state.change(rescale(this.#state.now, this.#size))),
      fit: use(() => (this.#view = WHOLE)),
      import: use(() => this.#import()),
    };
  }

  /** @returns {import("./drag_points_pointers.js").Hands} All but where the wheel goes. */
  #hands() {
    return {
      press: (at, kind) => this.#press(at, kind),
      drag: (at) => this.#do(() => this.#state.drag(this.#onPicture(at))),
      callOff: () => this.#do(() => this.#state.callOff()),
      release: () => {
        this.#do(() => this.#state.release());
        this.#finish();
      },
      pan: (by) => this.#look((size, box) => panBy(this.#view, size, box, by)),
      zoom: (factor, at) => this.#zoom(factor, at),
      hover: (at) => this.#hoverAt(at),
      menu: (at, kind) => this.#menu(at, kind),
      ownsWheel: () => this.#size !== null && this.element.contains(document.activeElement),
      focus: () => this.#focus(),
    };
  }

  /** @returns {import("./drag_points_keys.js").Hands} */
  #keys() {
    const edit = (act) => this.#isReady && this.#do(act);
    return {
      undo: () => this.#do(() => this.#undo()),
      redo: () => this.#do(() => this.#redo()),
      escape: () => this.#do(() => this.#escape()),
      remove: () => edit(() => this.#state.removeChosen()),
      nudge: (by) => {
        edit(() => this.#state.nudge(by));
        this.#reveal();
      },
      place: () => edit(() => this.#state.put(this.#onPicture(this.screen.middle), this.#size)),
      next: (isBack) => this.#isReady && this.#next(isBack),
      zoom: (factor) => this.#zoom(factor, this.#chosenAt ?? this.screen.middle),
      fit: () => this.#do(() => (this.#view = WHOLE)),
      pan: (isHeld) => (this.pointers.panning = isHeld),
      arrive: () => this.#do(() => (this.#state.notice = KEYS)),
      leave: () => this.#do(() => (this.#state.notice = "")),
      finish: () => this.#finish(),
    };
  }

  #do(act) {
    act();
    this.#refresh();
  }

  /** Tell the graph, once a gesture or a key is over. */
  #finish() {
    if (this.#state.isNews()) this.onChange();
  }

  #focus() {
    this.panel.keys.focus({ preventScroll: true });
  }

  #undo() {
    this.pointers.drop();
    this.#state.undo();
  }

  #redo() {
    this.pointers.drop();
    this.#state.redo();
  }

  #escape() {
    if (this.pointers.dragging) this.pointers.callOff();
    else this.#state.chosen = null;
  }

  #import() {
    const chooser = make("input", { type: "file", accept: ".json" });
    chooser.onchange = async () => {
      const [file] = chooser.files;
      const found = importPoints(await file.text(), this.#size);
      if (found.drags) this.#state.change(found.drags);
      this.#state.notice = found.told ?? "";
      this.#state.complaint = found.complaint ? `${file.name}: ${found.complaint}` : "";
      this.#refresh();
      this.#finish();
    };
    chooser.click();
  }

  #gripAt(at, kind) {
    if (!this.#isReady) return null;
    const reach = (REACH[kind] ?? REACH.mouse) * this.screen.mark;
    return hit(this.#state.now, this.#onPicture(at), reach / this.#frame.scale);
  }

  #press(at, kind) {
    if (!this.#isReady) return null;
    const grip = this.#gripAt(at, kind);
    this.#do(() => this.#state.press(this.#onPicture(at), grip, this.#size));
    return grip ? "end" : "new";
  }

  #menu(at, kind) {
    const grip = this.#gripAt(at, kind);
    if (grip) this.#do(() => this.#state.remove(grip.pair));
    this.#finish();
  }

  #hoverAt(at) {
    this.#hover = at;
    this.#say();
    if (this.#state.held) return;
    this.panel.canvas.style.cursor = at && this.#gripAt(at, "mouse") ? "grab" : "";
  }

  #next(isBack) {
    const isThere = this.#state.next(isBack);
    this.#reveal();
    return isThere;
  }

  /** Where the end that was touched last is on the stage. */
  get #chosenAt() {
    const { place } = this.#state;
    return place && this.#isReady ? toBox(this.#frame, place.map((at) => at + 0.5)) : null;
  }

  #reveal() {
    const { place } = this.#state;
    this.#look((size, box) => (place ? reveal(this.#view, size, box, place) : this.#view));
  }

  // --- what is seen

  #look(change) {
    if (this.#size) this.#do(() => (this.#view = change(this.#size, this.screen.box)));
  }

  #zoom(factor, at) {
    this.#look((size, box) => zoomAt(this.#view, size, box, factor, at));
  }

  #refresh() {
    this.#say();
    const { buttons } = this.panel;
    buttons.undo.disabled = !this.#state.canUndo;
    buttons.redo.disabled = !this.#state.canRedo;
    buttons.clear.disabled = !this.value;
    buttons.rescale.hidden = !this.#mismatch;
    buttons.fit.disabled = this.#view.zoom === 1;
    this.screen.refresh();
  }

  #say() {
    const { said, where, empty } = this.panel;
    const { now, notice, complaint, isOpen } = this.#state;
    const at = this.#hover && this.#size && pixel(this.#onPicture(this.#hover), this.#size);
    where.textContent = at ? at.join(", ") : "";
    empty.textContent = this.#pictures.picture ? "" : this.#whyEmpty();
    const wrong = complaint || now.complaint || this.#mismatch;
    // What has to be done next goes before a warning of what is not finished.
    const warned = wrong || notice || isOpen ? "" : this.#warning;
    said.complaint.textContent = wrong;
    said.warning.textContent = warned;
    said.message.textContent = wrong || warned ? "" : notice || this.#advice;
  }

  #whyEmpty() {
    if (!this.#shown.picture) return this.#shown.why;
    const failed = "The picture cannot be loaded: is its file still there?";
    return t(this.#pictures.failed ? failed : LOADING);
  }

  get #advice() {
    const { now, chosen, held } = this.#state;
    return this.#size ? told(now, chosen, Boolean(held)) : "";
  }

  get #warning() {
    const { picture, mask } = this.#pictures;
    return picture ? warning(this.#state.now.pairs, this.#size, this.#shown, mask) : "";
  }

  #scene() {
    if (!this.#size) return null;
    const faded = Boolean(this.#mismatch);
    const { pairs } = faded ? rescale(this.#state.now, this.#size) : this.#state.now;
    return {
      frame: this.#frame,
      size: this.#size,
      picture: this.#pictures.picture,
      shade: this.#pictures.shade,
      pairs,
      squares: this.#squares(pairs),
      chosen: this.#state.chosen,
      faded,
    };
  }

  /** What every pair copies from and to, in pixels of the picture. */
  #squares(pairs) {
    const { radius, unit } = this.#shown;
    if (!radius) return [];
    const boxes = pairs.map((pair) => copied(pair, this.#size, cellsOf(radius, unit)));
    return boxes.map((both) => (both ?? []).map((box) => onPicture(box, this.#size)));
  }
}
