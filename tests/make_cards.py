"""Draw the pictures of the workflows anew: those of the Templates dialog and of the README.

    python tests/make_cards.py [NAME,...]

Run by hand, from a checkout whose .dev exists, whenever a workflow or the embedded model has
changed. Every workflow is loaded into the real front end and run as it is shipped; a card shows
what came out. Those for photographs need models that are not here: their cards are left alone.
"""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "dev.py"))["load_package"]()

from palimpsest.tests.cells import (
    Cell,
    Look,
    arrows,
    drawn,
    embedded,
    front_end,
    pictures_of,
    prompt_of,
    serving,
)
from palimpsest.tests.templates import card

CARD = Look(picture=400, gap=5, below=30, font=18)


def original(caption):
    return Cell(caption, "Original")


def perfect(caption="a perfect edit, drawn", node="A perfect edit, drawn"):
    return Cell(caption, node)


MAPS = "Attention Maps of every word"

CARDS = {
    "attention_maps": [
        original("a white triangle on a wooden floor"),
        Cell('where it sees "triangle"', MAPS, "maps", 2),
        Cell('where it sees "floor"', MAPS, "maps", 5),
        Cell("a red triangle, in the mask of the word", "Edit, within the mask"),
    ],
    "compare_inversions": [Cell("", "All of them")],
    "compositing": [
        Cell("an object", "First picture"),
        Cell("a picture", "Second picture"),
        Cell("pasted", "Pasted"),
        Cell("harmonised", "Harmonised"),
    ],
    "copy_paste": [
        Cell("drag it there", "Original", arrow=True),
        Cell("noisy, and moved", "Noisy, and moved"),
        Cell("finished", "Result"),
    ],
    "core_samplers": [
        original("a red heart on grass"),
        Cell("stage 20 of its trajectory", "Stage 20, decoded"),
        Cell("a blue heart, by core's sampler", "Edit"),
        perfect(),
    ],
    "cycle_sde": [
        original("a red heart on grass"),
        Cell("a red cross, SDE", "SDE"),
        Cell("a red cross, ODE", "ODE"),
        Cell("a red circle, along the same noise", "Second edit"),
    ],
    "cyclediffusion": [
        original("a red heart on grass"),
        Cell("a red star", "First edit"),
        perfect("a perfect star, drawn", "A perfect first edit, drawn"),
        Cell("a red circle, along the same noise", "Second edit"),
    ],
    "demo": [
        original("a red heart on grass"),
        Cell("a blue heart on grass", "Edit"),
        Cell("a red cross on grass", "Edit", scene={"edit_color": "keep", "edit_shape": "cross"}),
        Cell(
            "a red heart on a wooden floor",
            "Edit",
            scene={"edit_color": "keep", "edit_background": "a wooden floor"},
        ),
    ],
    "diffedit": [
        original("a turquoise circle on sand"),
        Cell("the mask that was found", "Mask that was found"),
        Cell("a turquoise square, SDE", "SDE"),
        Cell("a turquoise square, ODE", "ODE"),
    ],
    "edict": [
        original("a red heart on grass"),
        perfect(),
        Cell("a blue heart, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with Prompt-to-Prompt", "Edit, with Prompt-to-Prompt"),
    ],
    "edit_friendly": [
        original("a red heart on grass"),
        Cell("a red star, first seed", "First seed"),
        perfect(),
        Cell("a red star, second seed", "Second seed"),
    ],
    "inpaint": [
        original("a red heart on grass"),
        Cell("painted anew", "Mask"),
        Cell("a blue star, SDE", "SDE, order 2"),
        Cell("a blue star, ODE", "ODE, order 2"),
    ],
    "local_blend": [
        original("a white triangle on a wooden floor"),
        Cell("a red triangle, by Prompt-to-Prompt", "Edit, by Prompt-to-Prompt alone"),
        Cell("with LocalBlend", "Edit, with LocalBlend"),
        Cell("where it was let change", "Edit, with LocalBlend", "mask"),
    ],
    "masactrl": [
        original("a dotted yellow circle on a wooden floor"),
        perfect(),
        Cell("a star, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with MasaCtrl", "Edit, with MasaCtrl"),
    ],
    "negative_prompt": [
        original("a red heart on grass"),
        perfect(),
        Cell("a red star", "Edit"),
        Cell("under proximal guidance", "Edit under proximal guidance"),
    ],
    "null_text": [
        original("a red heart on grass"),
        Cell("a blue heart on grass", "Edit"),
        Cell("its reconstruction", "Reconstruction"),
        perfect(),
    ],
    "pix2pix_zero": [
        original("a red heart on grass"),
        perfect(),
        Cell("a red cross, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with pix2pix-zero", "Edit, with pix2pix-zero"),
    ],
    "plug_and_play": [
        original("a red heart on grass"),
        perfect(),
        Cell("a white heart, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with Plug-and-Play", "Edit, with Plug-and-Play"),
    ],
    "sde_drag": [
        Cell("drag it there", "Original", arrow=True),
        Cell("after two steps", "The way, step by step", frame=2),
        Cell("after four", "The way, step by step", frame=4),
        Cell("done", "Dragged"),
    ],
    "stroke_edit": [
        original("a red heart"),
        Cell("painted over", "Painted over"),
        Cell("where it may change", "Mask"),
        Cell("a blue heart", "Edit"),
    ],
    "strokes_to_picture": [
        Cell("strokes", "Strokes"),
        Cell("strength 0.3", "PalimpsestSDEditSweep", "images", 1),
        Cell("strength 0.5", "PalimpsestSDEditSweep", "images", 2),
        Cell("strength 0.7", "PalimpsestSDEditSweep", "images", 3),
    ],
    "stylediffusion": [
        original("a red heart on grass"),
        Cell("a blue heart on grass", "Edit"),
        Cell("reconstructed by DDIM alone", "Reconstruction by DDIM alone"),
        Cell("reconstructed, learned", "Reconstruction, learned"),
    ],
    "flow": [
        original("a red heart on grass"),
        perfect(),
        Cell("striped, without inversion", "Edited without inversion"),
        Cell("striped, along Uni-Inv", "Edited along Uni-Inv"),
    ],
    "joint": [
        original("a red heart on grass"),
        Cell("dotted, by the prompt alone", "By the prompt alone"),
        Cell("with Prompt-to-Prompt", "With Prompt-to-Prompt"),
        Cell("with ConsistEdit", "With ConsistEdit"),
    ],
    "no_inversion": [
        original("a red heart on grass"),
        perfect(),
        Cell("a red cross, by the prompt alone", "Edited by the prompt alone"),
        Cell("a blue heart, with Prompt-to-Prompt", "Edited with Prompt-to-Prompt"),
    ],
    "uni_inv": [
        original("a red heart on grass"),
        perfect(),
        Cell("a blue heart, by the prompt alone", "Edit, by the prompt alone"),
        Cell("with Prompt-to-Prompt", "Edit, with Prompt-to-Prompt"),
    ],
}


def photo(title, *cells):
    """The cards of a template for own photos, drawn with the embedded model in their place."""
    return {f"{title}_{model}": list(cells) for model in ("sd15", "sdxl")}


PHOTO = Cell("your photo", "LoadImage", "IMAGE")
CARDS |= photo("photo_words", PHOTO, Cell("a blue heart on grass", "Result"))
CARDS |= photo(
    "photo_drag", replace(PHOTO, arrow=True, caption="drag it there"), Cell("done", "Result")
)
CARDS |= photo(
    "photo_repaint",
    PHOTO,
    Cell("painted anew", "LoadImage", "MASK"),
    Cell("a blue star on grass", "Result"),
)
CARDS |= photo(
    "photo_strokes", Cell("your strokes", "Painter", "IMAGE"), Cell("a picture", "Result")
)
CARDS |= photo(
    "edit_photo",
    PHOTO,
    Cell("what the VAE keeps of it", "Reconstruction: what the VAE keeps of your picture"),
    Cell("a blue heart on grass", "Edit"),
)


def folded(sheet):
    """A labelled sheet as a card; one that is much too tall goes on beside its first half."""
    from PIL import Image

    if sheet.height < 1.5 * sheet.width:
        return sheet
    paper = sheet.getpixel((0, 0))
    lines = (sheet.crop((0, y, sheet.width, y + 1)) for y in range(sheet.height))
    blank = [y for y, line in enumerate(lines) if line.getcolors() == [(sheet.width, paper)]]
    fold = min((y for y in blank if y > sheet.height / 2), default=sheet.height)
    page = Image.new("RGB", (2 * sheet.width, fold), paper)
    page.paste(sheet.crop((0, 0, sheet.width, fold)), (0, 0))
    page.paste(sheet.crop((0, fold, sheet.width, sheet.height)), (sheet.width, 0))
    return page


def card_of(cells, pictures, pairs):
    """A card: of a sheet that has its own labels the sheet as it is."""
    return drawn(cells, pictures, pairs, CARD) if cells[0].caption else folded(pictures[0])


def main(arguments) -> int:
    """Draw the named cards, or all."""
    names = arguments[0].split(",") if arguments else list(CARDS)
    with serving() as server:
        with front_end(server) as page:
            prompts = {name: embedded(prompt_of(page, name)) for name in names}
        for name in names:
            pictures = pictures_of(server, prompts[name], CARDS[name])
            made = card_of(CARDS[name], pictures, arrows(prompts[name]))
            made.save(card(name), quality=90)
            sys.stdout.write(f"{name}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
