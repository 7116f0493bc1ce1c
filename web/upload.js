/** An upload button for every input that its node marks with `palimpsest_upload: ".suffix"`. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { t } from "./words.js";

app.registerExtension({
  name: "palimpsest.Upload",

  nodeCreated(node) {
    const { required, optional } = node.constructor.nodeData?.input ?? {};
    for (const [name, spec] of Object.entries({ ...required, ...optional })) {
      const suffix = spec[1]?.palimpsest_upload;
      if (suffix) addButton(node, name, suffix);
    }
  },
});

/** @param {string} suffix What the names of files must end with. */
function addButton(node, input, suffix) {
  const pick = async () => {
    const file = await chooseFile(suffix);
    const name = file && (await upload(file, suffix));
    if (name) select(node, input, name);
  };
  const button = node.addWidget("button", "upload a trajectory", "", pick, { serialize: false });
  button.label = t("upload a trajectory");
  button.serialize = false;
}

/** @returns {Promise<File | undefined>} */
function chooseFile(suffix) {
  const chooser = Object.assign(document.createElement("input"), { type: "file", accept: suffix });
  return new Promise((resolve) => {
    chooser.onchange = () => resolve(chooser.files[0]);
    chooser.oncancel = () => resolve(undefined);
    chooser.click();
  });
}

/**
 * Put a file into ComfyUI's input folder; where its name is taken, ComfyUI gives it another one.
 *
 * @param {File} file
 * @returns {Promise<string | undefined>} Its name there; undefined where the person was told why.
 */
async function upload(file, suffix) {
  if (!file.name.endsWith(suffix)) {
    const told = "{file} is no {suffix} file: choose one that Save Trajectory wrote.";
    complain(t(told, { file: file.name, suffix }));
    return undefined;
  }
  const body = new FormData();
  body.append("image", file);
  body.append("type", "input");
  try {
    const answer = await api.fetchApi("/upload/image", { method: "POST", body });
    if (answer.ok) return (await answer.json()).name;
    const told = "{file} was not uploaded: ComfyUI answered {status}. Try again.";
    complain(t(told, { file: file.name, status: answer.status }));
  } catch (error) {
    const told = "{file} was not uploaded: {reason}. Is ComfyUI still running?";
    complain(t(told, { file: file.name, reason: error.message }));
  }
  return undefined;
}

function select(node, input, name) {
  const widget = node.widgets.find((w) => w.name === input);
  const { values } = widget.options;
  if (!values.includes(name)) values.push(name);
  widget.value = name;
  widget.callback?.(name);
  node.setDirtyCanvas(true, true);
}

/** @param {string} detail One sentence. */
function complain(detail) {
  app.extensionManager.toast.add({ severity: "error", summary: "Palimpsest", detail, life: 8000 });
}
