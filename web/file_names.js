/**
 * Fills in what the page fills in of core's own file names, %date:yyyy-MM-dd% and %Node.widget%, in
 * every input that its node marks with `palimpsest_file_name`. The rest, %year%, is the server's.
 */

import { app } from "../../scripts/app.js";
import { applyTextReplacements } from "../../scripts/utils.js";

app.registerExtension({
  name: "palimpsest.FileNames",

  nodeCreated(node) {
    const { required, optional } = node.constructor.nodeData?.input ?? {};
    for (const [name, spec] of Object.entries({ ...required, ...optional })) {
      const widget = spec[1]?.palimpsest_file_name && node.widgets?.find((w) => w.name === name);
      if (widget) widget.serializeValue = () => applyTextReplacements(app, widget.value);
    }
  },
});
