/** The canvas of the drag-point editor: how large it is, how large the graph shows it, and when it is
 * drawn anew. */

import { paint } from "./drag_points_paint.js";

const SMALLEST = 0.75; // of the size that marks are designed for; when the graph is zoomed out
const SHARPEST = 4096; // pixels of the screen, along one side of the drawing

export class Screen {
  #drawing = 0;
  #sharpness = 0;

  /** @param {() => object | null} scene What is to be painted; null leaves the canvas empty. */
  constructor(canvas, scene) {
    this.canvas = canvas;
    this.scene = scene;
  }

  get box() {
    return [this.canvas.clientWidth, this.canvas.clientHeight];
  }

  get middle() {
    return this.box.map((length) => length / 2);
  }

  /** How large the graph shows the stage. */
  get #scale() {
    return (this.canvas.getBoundingClientRect().width || 1) / (this.canvas.clientWidth || 1);
  }

  /** How much larger marks are, so that they stay in reach of hand and eye. */
  get mark() {
    return Math.max(1, SMALLEST / this.#scale);
  }

  /** Whether the graph was zoomed since: that resizes nothing here, but it has to be sharper. */
  get isStale() {
    return this.#sharpness !== this.#wantedSharpness();
  }

  refresh() {
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  stop() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = 0;
  }

  #wantedSharpness() {
    return Math.min(this.#scale * window.devicePixelRatio, SHARPEST / Math.max(...this.box, 1));
  }

  #draw() {
    this.#drawing = 0;
    const { canvas } = this;
    this.#sharpness = this.#wantedSharpness();
    [canvas.width, canvas.height] = this.box.map((length) => Math.round(length * this.#sharpness));
    const scene = canvas.width && canvas.height ? this.scene() : null;
    if (!scene) return;
    const pen = canvas.getContext("2d");
    pen.scale(this.#sharpness, this.#sharpness);
    paint(pen, { ...scene, mark: this.mark });
  }
}
