/** Colours of the pack's own wires, in every colour palette that has none for them. */

import { app } from "../../scripts/app.js";

const COLORS = {
  PALIMPSEST_TRAJECTORY: "#c8a96a",
  PALIMPSEST_CONTROL: "#e0569b",
  PALIMPSEST_POINTS: "#a3d936",
  PALIMPSEST_COMPARISON: "#8fa3b8",
};
const style = document.documentElement.style;
const variable = (type) => `--color-datatype-${type}`; // what the Vue renderer draws by

app.registerExtension({
  name: "palimpsest.WireColors",

  setup() {
    paint();
    // A palette clears the colours of all types that it does not name, and nothing tells of it.
    new MutationObserver(paint).observe(document.documentElement, { attributeFilter: ["style"] });
  },
});

function paint() {
  const wires = app.canvas.constructor.link_type_colors;
  const sockets = app.canvas.default_connection_color_byType;
  for (const [type, color] of Object.entries(COLORS)) {
    wires[type] ||= color;
    sockets[type] ||= color;
    if (!style.getPropertyValue(variable(type))) style.setProperty(variable(type), color);
  }
}
