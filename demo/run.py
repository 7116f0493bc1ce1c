"""Run the demo workflow on a running ComfyUI and collect its pictures; `dev.py demo` calls this.

    python demo/run.py URL FOLDER [PROMPT.json]

The prompt is demo_api.json, the API form of workflows/palimpsest_demo.json. Its pictures are told
apart by the last word of the `filename_prefix` of their SaveImage node: "palimpsest/demo/original",
".../reconstruction" and ".../edit". FOLDER receives them, a contact sheet and result.json.
"""

import asyncio
import io
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

PROMPT = Path(__file__).with_name("demo_api.json")
PICTURES = ("original", "reconstruction", "edit")
ENDS = ("execution_success", "execution_error", "execution_interrupted")


class DemoError(Exception):
    """The demo did not come to its end; the message says why."""


async def follow(
    url: str, prompt: dict, extra_data: dict | None = None
) -> AsyncIterator[tuple[str, dict]]:
    """Queue a prompt and yield (kind, data) of all the server tells of it, its end being the last.

    The first is ("queued", the server's answer); a latent preview is ("preview", {"bytes": ...}).
    """
    client = uuid.uuid4().hex
    session = aiohttp.ClientSession(url)
    async with session, session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as socket:
        wish = {"prompt": prompt, "client_id": client, "extra_data": extra_data or {}}
        answer = await session.post("/prompt", json=wish)
        if answer.status != 200:
            raise DemoError(f"The server refused the workflow. {refusal(await answer.json())}")
        queued = await answer.json()
        yield "queued", queued
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                yield "preview", {"bytes": message.data}
                continue
            event = message.json()
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") == queued["prompt_id"]:
                yield kind, data
                if kind in ENDS:
                    return
    raise DemoError("The server ended the connection before the workflow was done.")


def refusal(answer: dict) -> str:
    """What the server says against a prompt, node by node."""
    said = [answer["error"]["message"]]
    for node, about in answer["node_errors"].items():
        faults = "; ".join(f"{e['message']} ({e['details']})" for e in about["errors"])
        said.append(f"{about['class_type']} ({node}): {faults}")
    return "\n    ".join(said)


class Bars:
    """A progress bar for every node that has more than one step to tell of."""

    def __init__(self, prompt: dict) -> None:
        self.prompt = prompt
        self.bars: dict[str, tqdm] = {}

    def show(self, nodes: dict[str, dict]) -> None:
        for node, state in nodes.items():
            if state["max"] > 1:
                if node not in self.bars:
                    self.bars[node] = self.new_bar(node)
                bar = self.bars[node]
                bar.total = int(state["max"])
                bar.update(int(state["value"]) - bar.n)
                if state["state"] == "finished":
                    bar.close()

    def new_bar(self, node: str) -> tqdm:
        about = self.prompt[node.split(".")[0]]
        title = about.get("_meta", {}).get("title") or about["class_type"]
        looks = "{desc} {bar:30} {n_fmt:>4} of {total_fmt}  {elapsed}"
        return tqdm(desc=f"{title:28.28}", total=1, bar_format=looks, position=len(self.bars))

    def close(self) -> None:
        for bar in self.bars.values():
            bar.close()


async def execute(url: str, prompt: dict) -> dict:
    """Run a prompt with progress bars and return its history entry."""
    bars = Bars(prompt)
    try:
        async for kind, data in follow(url, prompt):
            if kind == "queued":
                prompt_id = data["prompt_id"]
            elif kind == "progress_state":
                bars.show(data["nodes"])
    finally:
        bars.close()
    if kind == "execution_interrupted":
        raise DemoError("The workflow was cancelled.")
    if kind == "execution_error":
        where, what = f"{data['node_type']} ({data['node_id']})", data["exception_message"].strip()
        raise DemoError(f"The node {where} failed: {what}")
    return await history(url, prompt_id)


async def history(url: str, prompt_id: str) -> dict:
    """The history entry of a prompt that has ended; it comes a moment after the last event."""
    async with aiohttp.ClientSession(url) as session:
        for _ in range(100):
            async with session.get(f"/history/{prompt_id}") as answer:
                entry = (await answer.json()).get(prompt_id)
            if entry:
                return entry
            await asyncio.sleep(0.1)
    raise DemoError("The server keeps no history of the workflow.")


async def fetch_pictures(url: str, prompt: dict, entry: dict) -> dict[str, Image.Image]:
    """The first picture of each SaveImage node, by the last word of its prefix."""
    pictures = {}
    async with aiohttp.ClientSession(url) as session:
        for node, output in entry["outputs"].items():
            prefix = prompt[node]["inputs"].get("filename_prefix", "")
            if output.get("images") and prefix:
                async with session.get("/view", params=output["images"][0]) as answer:
                    picture = Image.open(io.BytesIO(await answer.read()))
                pictures[prefix.rpartition("/")[2]] = picture.convert("RGB")
    missing = [name for name in PICTURES if name not in pictures]
    if missing:
        raise DemoError(f"The workflow made no picture named {' or '.join(missing)}.")
    return {name: pictures[name] for name in PICTURES}


def rows_spent(entry: dict) -> int:
    """The UNet rows that the nodes of a history entry spent; cached ones show old figures again."""
    told = entry["status"]["messages"]
    cached = {node for kind, data in told if kind == "execution_cached" for node in data["nodes"]}
    fresh = (output for node, output in entry["outputs"].items() if node not in cached)
    return sum(sum(output.get("rows", [])) for output in fresh)


def contact_sheet(pictures: dict[str, Image.Image], height: int = 384) -> Image.Image:
    """The pictures side by side, at one height, each under its name."""
    margin, head = 16, 40
    scaled = [
        p.resize((round(p.width * height / p.height), height), Image.Resampling.LANCZOS)
        for p in pictures.values()
    ]
    width = sum(p.width + margin for p in scaled) + margin
    sheet = Image.new("RGB", (width, head + height + margin), "white")
    pen, x = ImageDraw.Draw(sheet), margin
    for name, picture in zip(pictures, scaled, strict=True):
        pen.text((x, head / 2), name, fill="black", font=ImageFont.load_default(20), anchor="lm")
        sheet.paste(picture, (x, head))
        x += picture.width + margin
    return sheet


def main(arguments: list[str]) -> None:
    """Run the workflow, write what it made, and say where it lies."""
    url, folder = arguments[0], Path(arguments[1])
    prompt = json.loads(Path(*arguments[2:] or [PROMPT]).read_text(encoding="utf-8"))
    start = time.monotonic()
    entry = asyncio.run(execute(url, prompt))
    seconds = round(time.monotonic() - start, 1)
    pictures = asyncio.run(fetch_pictures(url, prompt, entry))
    pictures["sheet"] = contact_sheet(pictures)
    paths = {name: str(folder / f"{name}.png") for name in pictures}
    for name, picture in pictures.items():
        picture.save(paths[name])
    result = {**paths, "rows": rows_spent(entry), "seconds": seconds}
    (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\n{result['rows']} UNet rows in {seconds} s")
    for name, path in paths.items():
        print(f"{name:>15}  {path}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (DemoError, aiohttp.ClientError, OSError) as error:
        sys.exit(f"demo: {error}")
