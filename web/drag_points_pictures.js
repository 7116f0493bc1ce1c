/** The picture and the mask that the drag-point editor shows, each loaded from its address. */

const VEIL = 0.65; // how dark it gets where nothing may change
const FINEST = 1024; // pixels along the longer side of the veil

export class Pictures {
  /** @type {HTMLImageElement | null} */
  picture = null;
  /** The mask as a veil over what may not change. @type {HTMLCanvasElement | null} */
  shade = null;
  /** Whether there is no picture at the address. */
  failed = false;
  #wanted = { picture: null, mask: null };

  /** @param {(what: "picture" | "mask") => void} onChange Called when one comes or goes. */
  constructor(onChange) {
    this.onChange = onChange;
  }

  /** @param {{picture: string | null, mask: string | null}} addresses */
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
    if (what === "mask") this.shade = image && shadeOf(image);
    else [this.picture, this.failed] = [image, failed];
    this.onChange(what);
  }
}

function shadeOf(mask) {
  const shade = document.createElement("canvas");
  const fit = Math.min(1, FINEST / Math.max(mask.naturalWidth, mask.naturalHeight));
  shade.width = Math.ceil(mask.naturalWidth * fit);
  shade.height = Math.ceil(mask.naturalHeight * fit);
  const pen = shade.getContext("2d");
  pen.drawImage(mask, 0, 0, shade.width, shade.height);
  const pixels = pen.getImageData(0, 0, shade.width, shade.height);
  const { data } = pixels;
  for (let i = 0; i < data.length; i += 4) {
    data[i + 3] = (255 - data[i]) * VEIL;
    data[i] = data[i + 1] = data[i + 2] = 16;
  }
  pen.putImageData(pixels, 0, 0);
  return shade;
}
