/**
 * The pictures that our templates begin with, until one has chosen one's own: a workflow that names
 * one and is loaded for the first time brings it into ComfyUI's input folder, as if it were chosen.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NAME = /^(palimpsest_example\w*\.webp)( \[input\])?$/;

app.registerExtension({
  name: "palimpsest.ExamplePictures",

  async beforeConfigureGraph(workflow) {
    const missing = [];
    for (const name of examplesIn(workflow)) if (!(await isThere(name))) missing.push(name);
    if (!missing.length) return;
    await Promise.all(missing.map(bring));
    await app.refreshComboInNodes(); // Load Image offers what was there when the page was loaded
  },
});

/** The names of our pictures among the values of a workflow's widgets. */
function examplesIn({ nodes = [], definitions } = {}) {
  const inside = definitions?.subgraphs?.flatMap((subgraph) => subgraph.nodes) ?? [];
  const values = [...nodes, ...inside].flatMap((node) => Object.values(node.widgets_values ?? {}));
  const names = values.map((value) => typeof value === "string" && NAME.exec(value)?.[1]);
  return new Set(names.filter(Boolean));
}

async function isThere(name) {
  const query = new URLSearchParams({ filename: name, type: "input", preview: "webp;1" });
  const answer = await api.fetchApi(`/view?${query}`).catch(() => null);
  return answer?.ok ?? true; // a server that does not answer is told of by whoever needs it
}

async function bring(name) {
  const own = await fetch(new URL(`./examples/${name}`, import.meta.url));
  const body = new FormData();
  body.append("image", new File([await own.blob()], name, { type: "image/webp" }));
  body.append("type", "input");
  await api.fetchApi("/upload/image", { method: "POST", body });
}
