"""Draw the pictures of the help pages anew: before and after of every node.

    python tests/make_help_pictures.py [NODE,...]

Run by hand, from a checkout whose .dev exists, whenever a workflow, the embedded model or what a
node does has changed. Every workflow is loaded into the real front end and run as it is shipped,
with its own seeds; the pictures go to web/docs/pictures, one for each node, under its id.
"""

import io
import runpy
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
runpy.run_path(str(ROOT / "dev.py"))["load_package"]()

from palimpsest.tests.cells import (
    NIGHT,
    Cell,
    Look,
    arrows,
    drawn,
    front_end,
    pictures_of,
    prompt_of,
    serving,
)
from palimpsest.tests.make_cards import CARDS, MAPS, original, perfect
from palimpsest.tests.templates import file_of

PICTURES = ROOT / "web" / "docs" / "pictures"
HELP = Look(picture=128, gap=4, below=30, font=11)
WIDTH = 2 * (HELP.picture + 2 * HELP.gap)  # what the side bar shows without making it smaller

#: Nodes whose picture is the card of a workflow.
FROM_CARDS = {
    "PalimpsestConsistEdit": "joint",
    "PalimpsestCycleSDE": "cycle_sde",
    "PalimpsestDiffEdit": "diffedit",
    "PalimpsestEditNoInversion": "no_inversion",
    "PalimpsestInpaint": "inpaint",
    "PalimpsestInvertCycleDiffusion": "cyclediffusion",
    "PalimpsestInvertEDICT": "edict",
    "PalimpsestInvertEditFriendly": "edit_friendly",
    "PalimpsestInvertNullText": "null_text",
    "PalimpsestInvertStyleDiffusion": "stylediffusion",
    "PalimpsestInvertUniInv": "uni_inv",
    "PalimpsestLocalBlend": "local_blend",
    "PalimpsestMasaCtrl": "masactrl",
    "PalimpsestPix2PixZero": "pix2pix_zero",
    "PalimpsestPlugAndPlay": "plug_and_play",
    "PalimpsestPromptToPrompt": "demo",
    "PalimpsestSDEDrag": "sde_drag",
    "PalimpsestSDEdit": "stroke_edit",
    "PalimpsestSDEditSweep": "strokes_to_picture",
}


def stage(number, caption):
    return Cell(caption, "PalimpsestTrajectoryToLatents", "latents", number)


#: Nodes whose picture is made of other cells of a workflow.
OF_CELLS = {
    "PalimpsestAttentionMaps": (
        "attention_maps",
        [
            original("a white triangle on a wooden floor"),
            Cell('where it sees "triangle"', MAPS, "maps", 2),
            Cell('where it sees "floor"', MAPS, "maps", 5),
            Cell('the mask of "triangle"', "The mask"),
        ],
    ),
    "PalimpsestCopyPaste": (
        "copy_paste",
        [
            Cell("copy from orange to blue", "Original", arrow=True),
            Cell("the noisy latent", "PalimpsestSDEditNoise", "latent"),
            Cell("copied and pasted", "Noisy, and moved"),
            Cell("finished by a sampler", "Result"),
        ],
    ),
    "PalimpsestDemoScene": (
        "demo",
        [
            original("image"),
            Cell("mask", "PalimpsestDemoScene", "mask"),
            Cell("true_edit", "PalimpsestDemoScene", "true_edit"),
            Cell(
                "another image",
                "Original",
                scene={"color": "pink", "shape": "star", "texture": "dotted", "background": "sand"},
            ),
        ],
    ),
    "PalimpsestEdit": (
        "demo",
        [
            original("a red heart on grass"),
            Cell("where it may change", "PalimpsestDemoScene", "mask"),
            Cell("its reconstruction", "Reconstruction"),
            Cell("a blue heart on grass", "Edit"),
        ],
    ),
    "PalimpsestEditGuider": (
        "core_samplers",
        [original("a red heart on grass"), Cell("a blue heart, by core's sampler", "Edit")],
    ),
    "PalimpsestInvertDDIM": (
        "demo",
        [
            original("a red heart on grass"),
            Cell("its noise", "PalimpsestInvertDDIM", "latent"),
            Cell("back from the noise", "Reconstruction"),
            Cell("back as a blue heart", "Edit"),
        ],
    ),
    "PalimpsestInvertNegativePrompt": (
        "negative_prompt",
        [
            original("a red heart on grass"),
            perfect("a perfect star, drawn"),
            Cell("a red star", "Edit"),
            Cell("with Proximal Guidance", "Edit under proximal guidance"),
        ],
    ),
    "PalimpsestLatentsToTrajectory": (
        "core_samplers",
        [stage(20, "stage 20 of 50"), Cell("an edit along the stages", "Edit")],
    ),
    "PalimpsestProximalGuidance": (
        "negative_prompt",
        [
            original("a red heart on grass"),
            perfect("a perfect star, drawn"),
            Cell("a red star, without it", "Edit"),
            Cell("with it", "Edit under proximal guidance"),
        ],
    ),
    "PalimpsestSDEditNoise": (
        "strokes_to_picture",
        [Cell("strokes", "Strokes"), Cell("noised, t0 0.5", "PalimpsestSDEditNoise", "latent")],
    ),
    "PalimpsestTrajectoryToLatents": (
        "core_samplers",
        [
            stage(0, "stage 0, the picture"),
            stage(10, "stage 10"),
            stage(20, "stage 20"),
            stage(30, "stage 30"),
        ],
    ),
}

GRIDS = {node: (name, CARDS[name]) for node, name in FROM_CARDS.items()} | OF_CELLS

#: Workflows that the others need, each with the node that is switched on in it.
ALL, DEMO, DRAG = ("compare_inversions", ""), ("demo", ""), ("sde_drag", "")
LEARNED = ("sde_drag", "PalimpsestIdentityLora")

#: Captions that the embedded model paints for its own page.
PAINTED = [
    "a striped red heart on a brick wall",
    "a turquoise circle on the left on sand",
    "a red heart and a blue star on grass",
    "a white star at the top on the sea",
]


def asked(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def painted(server, prompts):
    """What the embedded model paints of a few captions, all from one seed."""
    ways = {"seed": 0, "steps": 30, "cfg": 5, "denoise": 1}
    ways |= {"sampler_name": "ddim", "scheduler": "ddim_uniform"}
    ends = {"model": ["model", 0], "negative": ["negative", 0], "latent_image": ["empty", 0]}
    prompt = {
        "model": asked("PalimpsestLoadDemoModel"),
        "empty": asked("EmptyLatentImage", width=128, height=128, batch_size=1),
        "negative": asked("CLIPTextEncode", clip=["model", 1], text=""),
    }
    for text in PAINTED:
        sampler = asked("KSampler", positive=[f"prompt {text}", 0], **ends, **ways)
        prompt[f"prompt {text}"] = asked("CLIPTextEncode", clip=["model", 1], text=text)
        prompt[text] = sampler | {"_meta": {"title": text}}
    cells = [Cell(text, text, "LATENT") for text in PAINTED]
    return drawn(cells, pictures_of(server, prompt, cells), [], HELP)


def filmstrip(server, prompts):
    """The eight stages of Preview Trajectory, in two rows."""
    cells = [Cell("", "PalimpsestPreviewTrajectory")]
    (strip,) = pictures_of(server, prompts[DEMO], cells)
    side, half = WIDTH // 4, strip.width // 2
    page = Image.new("RGB", (4 * side, 2 * side), NIGHT)
    for row in range(2):
        piece = strip.crop((row * half, 0, (row + 1) * half, strip.height))
        page.paste(piece.resize((4 * side, side), Image.Resampling.BICUBIC), (0, row * side))
    return page


def sheet_rows(server, prompts):
    """Labels and edits of the first two rows of the sheet that Compare draws."""
    (sheet,) = pictures_of(server, prompts[ALL], CARDS["compare_inversions"])
    row, edit = 2 * 128 + 6, 2 * 128 + 12  # a picture, shown twice as large, and the gaps
    labels, top = sheet.width - 3 * row - 6, sheet.height - 9 * row - 6
    page = Image.new("RGB", (labels + edit, 2 * row), sheet.getpixel((0, 0)))
    page.paste(sheet.crop((0, top, labels, top + 2 * row)), (0, 0))
    page.paste(sheet.crop((sheet.width - edit, top, sheet.width, top + 2 * row)), (labels, 0))
    return page.resize((page.width * 3 // 4, page.height * 3 // 4), Image.Resampling.LANCZOS)


def learned_first(server, prompts):
    """A drag without Identity LoRA and with it, and what it reports of its learning."""
    without = pictures_of(server, prompts[DRAG], [Cell("dragged, without it", "Dragged")])
    cells = [Cell("dragged, with it", "Dragged"), Cell("", "PalimpsestIdentityLora")]
    dragged, loss = pictures_of(server, prompts[LEARNED], cells)
    pair = drawn([Cell("dragged, without it", ""), cells[0]], [*without, dragged], [], HELP)
    loss.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (WIDTH, pair.height + loss.height), NIGHT)
    page.paste(pair, (0, 0))
    page.paste(loss, (0, pair.height))
    return page


EDITOR = """() => {
    const node = app.graph.nodes.find(n => n.type === 'PalimpsestDragPoints')
    app.canvas.ds.scale = 1
    app.canvas.centerOnNode(node)
    app.canvas.setDirty(true, true)
    const { offset } = app.canvas.ds, box = app.canvas.canvas.getBoundingClientRect()
    const [x, y, width, height] = node.boundingRect
    return { x: box.x + x + offset[0], y: box.y + y + offset[1], width, height }
}"""


def editor(server, prompts):
    """The editor of Drag Points, as the page shows it after a run."""
    from palimpsest.tests.browser.front_end import load_workflow, run_unseen

    with front_end(server) as page:
        load_workflow(page, file_of("sde_drag"), "sde_drag")
        run_unseen(page, server)
        clip = page.evaluate(EDITOR)
        page.wait_for_timeout(1000)
        shot = Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")
    shot.thumbnail((WIDTH, 2 * WIDTH), Image.Resampling.LANCZOS)
    return shot


#: Nodes whose picture is drawn otherwise, and the prompts that it needs.
OTHERS = {
    "PalimpsestCompare": (sheet_rows, [ALL]),
    "PalimpsestDragPoints": (editor, []),
    "PalimpsestIdentityLora": (learned_first, [DRAG, LEARNED]),
    "PalimpsestLoadDemoModel": (painted, []),
    "PalimpsestPreviewTrajectory": (filmstrip, [DEMO]),
}


def picture_of(server, prompts, node):
    """The picture of a node."""
    if node in OTHERS:
        return OTHERS[node][0](server, prompts)
    workflow, cells = GRIDS[node]
    prompt = prompts[workflow, ""]
    return drawn(cells, pictures_of(server, prompt, cells), arrows(prompt), HELP)


def main(arguments) -> int:
    """Draw the pictures of the named nodes, or all."""
    nodes = arguments[0].split(",") if arguments else [*GRIDS, *OTHERS]
    needed = {node: OTHERS[node][1] if node in OTHERS else [(GRIDS[node][0], "")] for node in nodes}
    with serving() as server:
        with front_end(server) as page:
            wanted = {key for keys in needed.values() for key in keys}
            prompts = {key: prompt_of(page, *key) for key in sorted(wanted)}
        for node in sorted(nodes, key=needed.get):  # one workflow after another
            picture = picture_of(server, prompts, node)
            picture.save(PICTURES / f"{node}.jpg", quality=78, optimize=True)
            sys.stdout.write(f"{node}\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
