"""What a node may ask about the graph that is being run."""

from typing import Any

from comfy_execution.utils import get_executing_context
from server import PromptServer


def is_wired(node_id: str | None, output: int) -> bool:
    """Whether an output of a node in the running graph is connected to anything.

    Where no graph is running (a node called from Python) every output counts as connected.

    Args:
        node_id: The node's unique id.
        output: Index of the output.
    """
    graph = _running_graph(node_id)
    if graph is None:
        return True
    wire = [str(node_id), output]
    return any(
        isinstance(value, list) and len(value) == 2 and [str(value[0]), value[1]] == wire
        for node in graph.values()
        for value in node.get("inputs", {}).values()
    )


def _running_graph(node_id: str | None) -> dict[str, Any] | None:
    """The API form of the graph that is running and holds the node."""
    server = getattr(PromptServer, "instance", None)
    if server is None or node_id is None:
        return None
    running, _ = server.prompt_queue.get_current_queue_volatile()
    return next((item[2] for item in running if str(node_id) in item[2]), None)


def show_in_node(output: dict[str, list]) -> None:
    """Show an output in the node that is running, although it is going to end without one.

    ComfyUI shows what a node returns; one that refuses or is cancelled returns nothing. Where no
    graph is running (a node called from Python) there is nowhere to show it.

    Args:
        output: As a node's `ui`.
    """
    server, context = getattr(PromptServer, "instance", None), get_executing_context()
    if server is None or context is None or server.client_id is None:
        return
    node, prompt = context.node_id, context.prompt_id
    told = {"node": node, "display_node": node, "output": output, "prompt_id": prompt}
    server.send_sync("executed", told, server.client_id)
