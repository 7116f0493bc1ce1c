"""Draw the pictures that the templates for own photos begin with, until one has chosen one's own.

    python tests/make_examples.py

Run by hand. They are scenes of the demo model, drawn large: a picture, the same with a hole to be
filled (Load Image reads a mask from it), and strokes that Painter lies over its ground.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "web" / "examples"
SIDE, DOTS, COLORS = 768, 12, 6


def main() -> int:
    """Draw all three."""
    import numpy as np
    from palimpsest.demo.scenes import Scene, masks, render
    from PIL import Image, ImageFilter

    scene = Scene("red", "heart", "plain", "grass", 66.0, 62.0, 36.0, 12)
    picture, _ = render(scene, SIDE)
    drawn = Image.fromarray((picture.numpy() * 255).round().astype(np.uint8))
    save(drawn, "palimpsest_example.webp")

    object_mask = masks(scene, SIDE)
    hole = Image.fromarray((object_mask.reshape(SIDE, SIDE).numpy() * 255).astype(np.uint8))
    wide = hole.filter(ImageFilter.MaxFilter(61))
    drawn.putalpha(wide.point(lambda v: 0 if v > 127 else 255))
    save(drawn, "palimpsest_example_hole.webp")

    small = drawn.convert("RGB").resize((DOTS, DOTS), Image.Resampling.BOX)
    strokes = small.quantize(COLORS).convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    save(strokes, "palimpsest_example_strokes.webp")
    return 0


def save(picture, name):
    """Save a picture small, with the colours that lie under what is transparent."""
    FOLDER.mkdir(exist_ok=True)
    picture.save(FOLDER / name, quality=85, method=6, exact=True)
    sys.stdout.write(f"{name} {(FOLDER / name).stat().st_size // 1024} KB\n")


if __name__ == "__main__":
    runpy.run_path(str(ROOT / "dev.py"))["load_package"]()
    raise SystemExit(main())
