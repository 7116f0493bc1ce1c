/**
 * The pictures that our templates begin with, until one has chosen one's own: a workflow that names
 * one and is loaded for the first time brings it into ComfyUI's input folder, as if it were chosen.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NAME = /^(palimpsest_example\w*\.webp)( \[input\])?$/;
const brought = new Set(); // since the page was loaded

app.registerExtension({
  name: "palimpsest.ExamplePictures",

  async beforeConfigureGraph(workflow) {
    const names = [...examplesIn(workflow)].filter((name) => !brought.has(name));
    if (!names.length) return;
    await Promise.all(names.map(bring));
    if (names.every(isOffered)) return;
    // Load Image offers what was there when the page was loaded; that it is asked for anew without a
    // word came later than refreshComboInNodes, which lays its own over what the page has to say.
    await (app.reloadNodeDefs ?? app.refreshComboInNodes).call(app);
  },
});

/** The names of our pictures among the values of a workflow's widgets. */
function examplesIn({ nodes = [], definitions } = {}) {
  const inside = definitions?.subgraphs?.flatMap((subgraph) => subgraph.nodes) ?? [];
  const values = [...nodes, ...inside].flatMap((node) => Object.values(node.widgets_values ?? {}));
  const names = values.map((value) => typeof value === "string" && NAME.exec(value)?.[1]);
  return new Set(names.filter(Boolean));
}

/** Whether Load Image knows of a picture. */
function isOffered(name) {
  const [kind, more] = LiteGraph.registered_node_types.LoadImage.nodeData.input.required.image;
  return (Array.isArray(kind) ? kind : (more?.options ?? [])).includes(name);
}

/** ComfyUI writes nothing where the very same file is there. */
async function bring(name) {
  brought.add(name);
  const own = await fetch(new URL(`./examples/${name}`, import.meta.url));
  const body = new FormData();
  body.append("image", new File([await own.blob()], name, { type: "image/webp" }));
  body.append("type", "input");
  await api.fetchApi("/upload/image", { method: "POST", body });
}
