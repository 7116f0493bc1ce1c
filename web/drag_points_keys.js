/** What keys do in the editor. Those that also mean something to a button act on the stage alone. */

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const ZOOMS = { "+": 1.25, "=": 1.25, "-": 0.8 };

/**
 * @typedef {object} Hands What is to be done.
 * @property {() => void} undo
 * @property {() => void} redo
 * @property {() => void} escape
 * @property {() => void} remove
 * @property {(by: [number, number]) => void} nudge In pixels of the picture.
 * @property {() => void} place A new arrow, or where one goes.
 * @property {(isBack: boolean) => boolean} next Choose another end; whether there was one.
 * @property {(factor: number) => void} zoom
 * @property {() => void} fit
 * @property {(isHeld: boolean) => void} pan
 * @property {() => void} arrive The stage was reached by a key.
 * @property {() => void} leave Something in the editor has lost the focus.
 * @property {() => void} finish A key is up again, or the editor was left.
 */

export class Keys {
  /**
   * @param {HTMLElement} element The editor.
   * @param {HTMLElement} stage What has the focus where the stage has it.
   * @param {Hands} hands
   */
  constructor(element, stage, hands) {
    this.element = element;
    this.stage = stage;
    this.hands = hands;
  }

  listen(signal) {
    const on = (type, handler) => this.element.addEventListener(type, handler, { signal });
    on("keydown", (event) => this.#press(event));
    on("keyup", (event) => this.#release(event));
    on("focusin", ({ target }) => {
      if (target === this.stage && target.matches(":focus-visible")) this.hands.arrive();
    });
    on("focusout", () => {
      this.hands.pan(false);
      this.hands.leave();
      this.hands.finish();
    });
  }

  #press(event) {
    const { key, ctrlKey, metaKey, altKey, shiftKey, target } = event;
    const isOurs =
      ctrlKey || metaKey
        ? this.#shortcut(key.toLowerCase(), shiftKey)
        : this.#anywhere(key, shiftKey) ||
          (target === this.stage && !altKey && this.#onStage(key, shiftKey));
    if (!isOurs) return;
    event.preventDefault();
    event.stopPropagation();
  }

  #shortcut(key, shift) {
    if (key === "z") shift ? this.hands.redo() : this.hands.undo();
    else if (key === "y" && !shift) this.hands.redo();
    else return false;
    return true;
  }

  #anywhere(key, shift) {
    if (key === "Escape") this.hands.escape();
    else if (key === "Delete" || key === "Backspace") this.hands.remove(); // never the node
    else if (key in STEPS) this.hands.nudge(STEPS[key].map((step) => step * (shift ? 10 : 1)));
    else return false;
    return true;
  }

  #onStage(key, shift) {
    if (key === "Tab") return this.hands.next(shift); // the last one leaves the editor
    if (key === " ") this.hands.pan(true);
    else if (key === "Enter") this.hands.place();
    else if (key === "0") this.hands.fit();
    else if (key in ZOOMS) this.hands.zoom(ZOOMS[key]);
    else return false;
    return true;
  }

  #release(event) {
    if (event.key === " " && event.target === this.stage) {
      this.hands.pan(false);
      event.preventDefault(); // or the button that takes the keys is clicked
    }
    this.hands.finish();
  }
}
