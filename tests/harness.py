"""A real ComfyUI server as tests see it: its HTTP API and its websocket."""

import asyncio
import io
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from palimpsest.demo.run import follow, rows_spent
from PIL import Image

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """The server did not queue a prompt. `node_errors` is what it says of each node."""

    def __init__(self, answer):
        self.node_errors = answer["node_errors"]
        super().__init__(json.dumps(answer, indent=1))


class Failed(Exception):
    """A prompt ended in an error; node_id, node_type and message say which and why."""

    def __init__(self, data):
        self.node_id, self.node_type = data["node_id"], data["node_type"]
        self.message = data["exception_message"].strip()
        super().__init__(f"{self.node_type} ({self.node_id}): {self.message}")


class Interrupted(Exception):
    """A prompt was cancelled."""


@dataclass(frozen=True)
class Server:
    """One running server: where it answers, the folder it works in, and what it logs."""

    url: str
    base: Path
    log_file: Path

    def get(self, path, **query):
        """The parsed JSON of a GET."""
        return json.loads(self.fetch(path, **query))

    def fetch(self, path, **query):
        """The bytes of a GET."""
        address = f"{self.url}/{path.lstrip('/')}?{urllib.parse.urlencode(query)}"
        with OPENER.open(address, timeout=60) as response:
            return response.read()

    def post(self, path, data):
        """Post JSON and return the parsed answer, or None where there is none."""
        request = urllib.request.Request(
            f"{self.url}/{path.lstrip('/')}",
            json.dumps(data).encode(),
            {"Content-Type": "application/json"},
        )
        with OPENER.open(request, timeout=60) as response:
            body = response.read()
        return json.loads(body) if body else None

    def object_info(self):
        """What the server says of every node class."""
        return self.get("object_info")

    def queue(self, prompt):
        """Queue a prompt (API form) and return its id; Refused when the server does not take it.

        It comes from a client that is not there: of a prompt of no client every open page is told.
        """
        try:
            return self.post("prompt", {"prompt": prompt, "client_id": "nobody"})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise Refused(json.load(error)) from None

    def wait(self, prompt_id, timeout=600):
        """Wait for the end of a prompt: its history entry, or Failed, or Interrupted."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            entry = self.get(f"history/{prompt_id}").get(prompt_id)
            if entry and entry["status"]["completed"]:
                return entry
            if entry and entry["status"]["status_str"] == "error":
                raise why(entry)
            time.sleep(0.1)
        raise TimeoutError(f"The prompt did not end in {timeout} s.\n{self.log()[-3000:]}")

    def run(self, prompt, timeout=600):
        """Queue a prompt and wait for its history entry."""
        return self.wait(self.queue(prompt), timeout)

    def events(self, prompt, on_event=lambda kind, data: None, extra_data=None):
        """Run a prompt and return every (kind, data) the websocket told, previews among them.

        `on_event(kind, data)` hears each as it comes, and may call `interrupt`. An error is an
        event here ("execution_error", "execution_interrupted"), not an exception. `extra_data`
        goes with the prompt: {"preview_method": "latent2rgb"} asks for previews.
        """

        async def listen():
            heard = []
            async for kind, data in follow(self.url, prompt, extra_data):
                heard.append((kind, data))
                on_event(kind, data)
            return heard

        # In a thread of its own: Playwright keeps a loop running in that of the tests.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, listen()).result()

    def interrupt(self):
        """Cancel what is running."""
        self.post("interrupt", {})

    def is_idle(self, timeout=5):
        """Whether nothing runs or waits; the queue hears of an end after its listeners."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            queue = self.get("queue")
            if not queue["queue_running"] and not queue["queue_pending"]:
                return True
            time.sleep(0.05)
        return False

    def image(self, name, subfolder="", type="output"):
        """A picture from one of the server's folders."""
        data = self.fetch("view", filename=name, subfolder=subfolder, type=type)
        return Image.open(io.BytesIO(data))

    def images(self, entry, node_id):
        """The pictures that a node showed in a history entry."""
        found = entry["outputs"][node_id]["images"]
        return [self.image(i["filename"], i["subfolder"], i["type"]) for i in found]

    def rows(self, entry):
        """The UNet rows that a prompt spent; nodes that came from the cache count nothing."""
        return rows_spent(entry)

    def log(self):
        """All that the server has logged so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")


def why(entry):
    """The exception that tells how a history entry ended."""
    messages = dict(entry["status"]["messages"])
    if "execution_interrupted" in messages:
        return Interrupted(messages["execution_interrupted"].get("node_type"))
    return Failed(messages["execution_error"])
