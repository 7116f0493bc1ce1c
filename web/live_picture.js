/**
 * The live picture of SDE-Drag, and its result: where nodes are elements of the page, the front end
 * shows both, one below the other, until the next run. Here the live one is shown while the node
 * runs, and the result from then on.
 *
 * Where the front end keeps its live pictures is no public interface: if it is elsewhere one day,
 * both are shown again, and nothing else is lost.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { allNodes, chain, locatorOf, nodeOfRun } from "./graph.js";

const NODE = "PalimpsestSDEDrag";

app.registerExtension({
  name: "palimpsest.LivePicture",

  setup() {
    api.addEventListener("b_preview_with_metadata", ({ detail }) => {
      const node = nodeOfRun(detail.displayNodeId);
      if (node?.comfyClass === NODE) hideResult(node, true);
    });
    for (const end of ["execution_error", "execution_interrupted"]) {
      api.addEventListener(end, () => {
        for (const node of allNodes()) if (node.comfyClass === NODE) hideResult(node, false);
      });
    }
  },

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    chain(node, "onExecuted", () => {
      pictures()?.revokePreviewsByLocatorId?.(locatorOf(node));
      hideResult(node, false);
    });
  },
});

/** The front end's store of what nodes showed. */
const pictures = () => app.extensionManager?._p?._s?.get("nodeOutput");

function hideResult(node, isHidden) {
  if (Boolean(node.hideOutputImages) === isHidden) return;
  node.hideOutputImages = isHidden;
  pictures()?.refreshNodeOutputs?.(node);
}
