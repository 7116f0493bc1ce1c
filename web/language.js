/**
 * The language of the front end, for what it leaves to us: the sentences of our widgets, and the
 * names of choices. Both lie in `locales/`, where the front end finds the rest.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { setWords } from "./words.js";

let nodeDefs = {};

app.registerExtension({
  name: "palimpsest.Language",

  async init() {
    const answer = await api.fetchApi("/i18n").catch(() => null);
    const all = answer?.ok ? await answer.json() : {};
    const own = all[app.ui.settings.getSettingValue("Comfy.Locale")];
    setWords(own?.palimpsest ?? {});
    nodeDefs = own?.nodeDefs ?? {};
  },

  nodeCreated(node) {
    const inputs = node.comfyClass?.startsWith("Palimpsest") && nodeDefs[node.comfyClass]?.inputs;
    for (const widget of (inputs && node.widgets) || []) {
      const { options, placeholder } = inputs[widget.name] ?? {};
      if (options) widget.options.getOptionLabel = (value) => options[value] ?? value ?? "";
      const field = widget.element ?? widget.inputEl;
      if (placeholder && field instanceof HTMLTextAreaElement) field.placeholder = placeholder;
    }
  },
});
