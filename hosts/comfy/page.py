"""What the front end asks the server for outside a run."""

from __future__ import annotations

from collections.abc import Callable

from server import PromptServer


def answer_page(method: str, address: str, answer: Callable) -> None:
    """Have the server that is running, if one is, answer an address.

    Args:
        method: "get" or "post".
        address: The path after the server's own; ComfyUI serves it under `/api` as well.
        answer: An aiohttp handler.
    """
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        getattr(server.routes, method)(address)(answer)
