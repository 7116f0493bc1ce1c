/** The picture and the mask that the drag-point editor shows, each loaded from its address. */

import { maskOf } from "./drag_points_cells.js";

const VEIL = 0.65; // how dark it gets where nothing may change
const FINEST = 1024; // pixels along the longer side of the veil
const CHANNELS = ["red", "green", "blue", "alpha"]; // as their bytes lie

export class Pictures {
  /** @type {HTMLImageElement | null} */
  picture = null;
  /** The mask as a veil over what may not change. @type {HTMLCanvasElement | null} */
  shade = null;
  /** @type {import("./drag_points_cells.js").Mask | null} */
  mask = null;
  /** Whether there is no picture at the address. */
  failed = false;
  #wanted = { picture: null, mask: null };

  /** @param {(what: "picture" | "mask") => void} onChange Called when one comes or goes. */
  constructor(onChange) {
    this.onChange = onChange;
  }

  /**
   * @param {object} addresses
   * @param {string | null} addresses.picture
   * @param {string | null} addresses.mask Ends in # and its channel; of "alpha" it is what is seen
   *     through.
   */
  want({ picture, mask }) {
    const before = this.#wanted;
    this.#wanted = { picture, mask };
    if (picture !== before.picture) this.#load("picture", picture);
    if (mask !== before.mask) this.#load("mask", mask);
  }

  #load(what, address) {
    this.#set(what, null, false);
    if (!address) return;
    const image = new Image();
    const arrive = (loaded) => {
      if (this.#wanted[what] === address) this.#set(what, loaded, !loaded); // none came in between
    };
    image.onload = () => arrive(image);
    image.onerror = () => arrive(null);
    image.src = address;
  }

  #set(what, image, failed) {
    if (what === "mask") this.#cover(image);
    else [this.picture, this.failed] = [image, failed];
    this.onChange(what);
  }

  #cover(image) {
    this.mask = this.shade = null;
    if (!image) return;
    const channel = this.#wanted.mask.split("#").at(-1);
    const size = [image.naturalWidth, image.naturalHeight];
    this.mask = maskOf(size, drawn(image, size, channel).levels);
    const fit = Math.min(1, FINEST / Math.max(...size));
    const small = size.map((length) => Math.ceil(length * fit));
    this.shade = shadeOf(drawn(image, small, channel));
  }
}

/** A mask drawn at some size, and how white it is at every pixel. */
function drawn(image, [width, height], channel) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0, width, height);
  const pixels = pen.getImageData(0, 0, width, height);
  const levels = new Uint8Array(width * height);
  const byte = CHANNELS.indexOf(channel);
  for (let i = 0; i < levels.length; i++) {
    const value = pixels.data[4 * i + byte];
    levels[i] = channel === "alpha" ? 255 - value : value;
  }
  return { canvas, pen, pixels, levels };
}

function shadeOf({ canvas, pen, pixels, levels }) {
  const { data } = pixels;
  for (let i = 0; i < levels.length; i++) {
    data[4 * i] = data[4 * i + 1] = data[4 * i + 2] = 16;
    data[4 * i + 3] = (255 - levels[i]) * VEIL;
  }
  pen.putImageData(pixels, 0, 0);
  return canvas;
}
