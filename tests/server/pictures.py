"""The results of the shipped workflows, read as pictures."""

import json
from pathlib import Path

import palimpsest
from palimpsest.demo import scenes
from palimpsest.demo.judge import pixels_of_color
from torch.nn.functional import max_pool2d
from torchvision.transforms.functional import pil_to_tensor

API_FORM = Path(palimpsest.__file__).parent / "demo" / "demo_api.json"


def api_form():
    """The demo as dev.py sends it."""
    return json.loads(API_FORM.read_text(encoding="utf-8"))


def find(prompt, kind):
    """The id of the only node of a kind."""
    (key,) = (key for key, node in prompt.items() if node["class_type"] == kind)
    return key


def as_tensor(picture):
    """[H, W, 3] in 0..1."""
    return pil_to_tensor(picture.convert("RGB")).movedim(0, -1) / 255


def saved_pictures(server, prompt, entry):
    """The pictures that a prompt saved, by the last word of their prefix."""
    found = {}
    for key, node in prompt.items():
        if node["class_type"] == "SaveImage":
            (picture,) = server.images(entry, key)
            found[node["inputs"]["filename_prefix"].rpartition("/")[2]] = as_tensor(picture)
    return found


def demo_pictures(server, entry):
    """The demo's three pictures, by the last word of their prefix."""
    return saved_pictures(server, api_form(), entry)


def shown_mask(server, prompt, entry):
    """The mask [H, W] that a workflow shows: as a picture, or in the editor of Drag Points."""
    shown = [entry["outputs"].get(key, {}) for key in prompt]
    files = [output["palimpsest_mask"] for output in shown if "palimpsest_mask" in output]
    files += [
        entry["outputs"][key]["images"]
        for key, node in prompt.items()
        if node["class_type"] == "PreviewImage"
        and prompt[node["inputs"]["images"][0]]["class_type"] == "MaskToImage"
    ]
    ((file,),) = files
    return as_tensor(server.image(file["filename"], file["subfolder"], file["type"]))[..., 0]


def far_outside(mask, margin=16):
    """Where a picture is that many pixels away from all that is white in a mask: a bool [H, W]."""
    size = 2 * margin + 1
    return max_pool2d(mask[None], size, stride=1, padding=margin)[0] == 0


def demo_scenes():
    """The scene before and after the edit, as the demo asks for them."""
    prompt = api_form()
    wish = prompt[find(prompt, "PalimpsestDemoScene")]["inputs"]
    names = ("color", "shape", "texture", "background")
    scene = scenes.Scene.random(wish["seed"]).with_(**{name: wish[name] for name in names})
    edits = {name: wish[f"edit_{name}"] for name in names}
    return scene, scene.with_(**{k: v for k, v in edits.items() if v != "keep"})


def psnr(a, b, where):
    return float(-10 * (a - b)[where].square().mean().log10())


#: What the demo's edit may lose of its background, in dB, beside the VAE's round trip.
LOST = 6


def kept_outside(pictures):
    """PSNR of the edit outside the mask, and that of the VAE's round trip there."""
    outside = scenes.changed(*demo_scenes()) == 0
    original = pictures["original"]
    return tuple(psnr(pictures[name], original, outside) for name in ("edit", "reconstruction"))


def painted_inside(picture):
    """Which part of the edited object's pixels has its new colour."""
    _, after = demo_scenes()
    inside = scenes.render(after)[1] > 0.99
    return float(pixels_of_color(picture, after.color)[inside].float().mean())
