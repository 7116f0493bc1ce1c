"""The shipped workflows, in the order in which one reads them: their short names, and their titles.

A title is the name of the file: the Templates dialog shows nothing else of a pack's workflow, and
sorts by it. One that ends in .app opens as an App.
"""

from pathlib import Path

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"

TITLES = {
    "demo": "01 Change a word",
    "sde_drag": "02 Drag a thing",
    "strokes_to_picture": "03 Strokes to picture",
    "inpaint": "04 Repaint a hole",
    "photo_words_sd15": "10 Your photo, change words (SD 1.5)",
    "photo_words_sdxl": "11 Your photo, change words (SDXL)",
    "photo_drag_sd15": "12 Your photo, drag (SD 1.5).app",
    "photo_drag_sdxl": "13 Your photo, drag (SDXL).app",
    "photo_repaint_sd15": "14 Your photo, repaint an area (SD 1.5)",
    "photo_repaint_sdxl": "15 Your photo, repaint an area (SDXL)",
    "photo_strokes_sd15": "16 Your strokes to picture (SD 1.5)",
    "photo_strokes_sdxl": "17 Your strokes to picture (SDXL)",
    "edit_photo_sd15": "18 Your photo, step by step (SD 1.5)",
    "edit_photo_sdxl": "19 Your photo, step by step (SDXL)",
    "local_blend": "20 LocalBlend, only the word changes",
    "masactrl": "21 MasaCtrl, change a shape",
    "plug_and_play": "22 Plug-and-Play, keep the structure",
    "pix2pix_zero": "23 pix2pix-zero, edit directions",
    "attention_maps": "24 Attention Maps, where words look",
    "compare_inversions": "30 All inversions side by side",
    "null_text": "31 Null-text inversion",
    "negative_prompt": "32 Negative-prompt inversion",
    "stylediffusion": "33 StyleDiffusion",
    "edict": "34 EDICT",
    "uni_inv": "35 Uni-Inv",
    "edit_friendly": "36 Edit Friendly",
    "cyclediffusion": "37 CycleDiffusion",
    "core_samplers": "38 Edit with core's samplers",
    "no_inversion": "39 Edit without inversion",
    "cycle_sde": "40 Cycle-SDE, image to image",
    "diffedit": "41 DiffEdit, a mask from words",
    "stroke_edit": "42 Paint over a picture",
    "compositing": "43 Paste and harmonise",
    "copy_paste": "44 Drag by copying alone",
    "flow": "50 Flow transformer, without and with inversion",
    "joint": "51 Flow transformer, hold the layout",
}


def file_of(name: str) -> Path:
    """The file of a workflow, by its short name."""
    return WORKFLOWS / f"{TITLES[name]}.json"


def card(name: str) -> Path:
    """Its picture in the Templates dialog."""
    return WORKFLOWS / f"{TITLES[name]}.jpg"
