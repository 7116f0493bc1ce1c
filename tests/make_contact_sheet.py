"""Every template as it opens, in both renderers, on one sheet: to be looked at, one by one.

    python tests/make_contact_sheet.py

Run by hand after a layout has changed. The sheet is kept as benchmarks/results/templates.jpg.
"""

import io
import runpy
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "dev.py"))["load_package"]()

from palimpsest.tests.browser.conftest import RENDERERS, enter
from palimpsest.tests.browser.front_end import load_workflow
from palimpsest.tests.cells import front_end, serving
from palimpsest.tests.templates import TITLES, file_of

SHEET = ROOT / "benchmarks" / "results" / "templates.jpg"
WIDE, HIGH, LINE, COLUMNS = 480, 300, 20, 4


def main() -> int:
    """Open every template twice, and keep the sheet."""
    shots = {}
    with serving() as server, front_end(server) as page:
        for renderer in RENDERERS:
            enter(page, server, renderer)
            for name in TITLES:
                load_workflow(page, file_of(name), name)
                page.wait_for_timeout(1500)
                shots[name, renderer] = page.screenshot()
    rows = -(-len(shots) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * WIDE, rows * (HIGH + LINE)), "black")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    order = [(name, renderer) for name in TITLES for renderer in RENDERERS]
    for place, key in enumerate(order):
        x, y = place % COLUMNS * WIDE, place // COLUMNS * (HIGH + LINE)
        shot = Image.open(io.BytesIO(shots[key])).convert("RGB")
        sheet.paste(shot.resize((WIDE, HIGH), Image.Resampling.LANCZOS), (x, y + LINE))
        pen.text((x + 4, y + 2), f"{TITLES[key[0]]} ({key[1]})", "white", font)
    sheet.save(SHEET, quality=80)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
