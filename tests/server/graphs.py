"""Prompts (API form) built node by node, and what tests read of their results."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file


class Graph(dict):
    """A prompt; `add` returns the new node, whose outputs are its items: `node[0]`."""

    def add(self, kind, **inputs):
        key = str(len(self) + 1)
        self[key] = {"class_type": kind, "inputs": inputs}
        return Node(key, self[key]["inputs"])

    def save(self, latent, name):
        """Save a LATENT with core's node; `saved` reads it."""
        return self.add("SaveLatent", samples=latent, filename_prefix=f"latents/{name}")

    def show(self, image, name):
        """Save an IMAGE batch; `Server.images` reads it."""
        return self.add("SaveImage", images=image, filename_prefix=f"pictures/{name}")

    def decode(self, latent, name):
        """Decode and save a picture, in a graph that has a model."""
        return self.show(self.add("VAEDecode", samples=latent, vae=self.model[2])[0], name)


@dataclass(frozen=True)
class Node:
    """A node of a graph: its id, its inputs (which may be changed) and its outputs."""

    id: str
    inputs: dict

    def __getitem__(self, output):
        return [self.id, output]


class Editing(Graph):
    """The demo's graph up to the inversion; tests go on from there.

    Attributes:
        model, scene, words, described, negative, encoded, inverted: Its nodes.
    """

    def __init__(self, steps=4, width=128, height=128, batch=1, **invert):
        super().__init__()
        self.model = self.add("PalimpsestLoadDemoModel")
        self.scene = self.add("PalimpsestDemoScene", **SCENE)
        self.words = self.add(
            "PalimpsestPromptToPrompt",
            clip=self.model[1],
            source=self.scene[2],
            target=self.scene[3],
            **CONTROL,
        )
        self.described = self.add("CLIPTextEncode", clip=self.model[1], text=self.scene[2])
        self.negative = self.add("CLIPTextEncode", clip=self.model[1], text="")
        picture = self.scene[0]
        if (width, height) != (128, 128):
            size = {"width": width, "height": height, "upscale_method": "area", "crop": "disabled"}
            picture = self.add("ImageScale", image=picture, **size)[0]
        self.encoded = self.add("VAEEncode", pixels=picture, vae=self.model[2])
        if batch > 1:
            self.encoded = self.add("RepeatLatentBatch", samples=self.encoded[0], amount=batch)
        self.inverted = self.add(
            "PalimpsestInvertDDIM",
            model=self.model[0],
            positive=self.described[0],
            latent=self.encoded[0],
            **{**INVERT, "steps": steps, **invert},
        )

    def edit(self, **changes):
        """Add an Edit."""
        return self.add("PalimpsestEdit", **{**self.edit_inputs(), **EDIT, **changes})

    def edit_inputs(self):
        """What Edit and Edit Guider have in common."""
        return {
            "model": self.model[0],
            "trajectory": self.inverted[0],
            "source": self.words[1],
            "target": self.words[2],
            "negative": self.negative[0],
            "cfg": 7.5,
            "correction": "direct inversion",
            "control": self.words[0],
        }


class Painting(Graph):
    """The demo's model, scene, prompts and latent; tests of the SDE family go on from there.

    Attributes:
        model, scene, source, target, negative, encoded: Its nodes.
    """

    def __init__(self, batch=1):
        super().__init__()
        self.model = self.add("PalimpsestLoadDemoModel")
        self.scene = self.add("PalimpsestDemoScene", **SCENE)
        self.source, self.target, self.negative = (
            self.add("CLIPTextEncode", clip=self.model[1], text=text)
            for text in (self.scene[2], self.scene[3], "")
        )
        self.encoded = self.add("VAEEncode", pixels=self.scene[0], vae=self.model[2])
        if batch > 1:
            self.encoded = self.add("RepeatLatentBatch", samples=self.encoded[0], amount=batch)

    def cycle(self, **changes):
        """Add a Cycle-SDE."""
        wires = {**self._pair(), "latent": self.encoded[0]}
        return self.add("PalimpsestCycleSDE", **{**wires, **CYCLE, **changes})

    def diffedit(self, **changes):
        """Add a DiffEdit."""
        wires = {**self._pair(), "latent": self.encoded[0]}
        return self.add("PalimpsestDiffEdit", **{**wires, **DIFFEDIT, **changes})

    def inpaint(self, **changes):
        """Add an Inpaint under the scene's mask."""
        wires = {**self._single(), "mask": self.scene[1]}
        return self.add("PalimpsestInpaint", **{**wires, **INPAINT, **changes})

    def sdedit(self, **changes):
        """Add an SDEdit."""
        return self.add("PalimpsestSDEdit", **{**self._single(), **SDEDIT, **changes})

    def noised(self, **changes):
        """Add an SDEdit Noise."""
        wires = {"model": self.model[0], "latent": self.encoded[0]}
        return self.add("PalimpsestSDEditNoise", **{**wires, **STRENGTH, "seed": 1, **changes})

    def sweep(self, **changes):
        """Add an SDEdit Sweep."""
        wires = {**self._single(), "vae": self.model[2]}
        return self.add("PalimpsestSDEditSweep", **{**wires, **SWEEP, **changes})

    def points(self, pairs=(((60, 60), (84, 60)),), size=(128, 128), text=None, **changes):
        """Add Drag Points on the scene."""
        stored = json.dumps({"version": 1, "size": size, "pairs": pairs}) if text is None else text
        wishes = {"image": self.scene[0], "points": stored, "radius": 2}
        return self.add("PalimpsestDragPoints", **{**wishes, **changes})

    def drag(self, points=None, **changes):
        """Add an SDE-Drag of the scene."""
        points = points or self.points()
        wires = {
            "model": self.model[0],
            "positive": self.source[0],
            "negative": self.negative[0],
            "vae": self.model[2],
            "image": self.scene[0],
            "points": points[0],
        }
        return self.add("PalimpsestSDEDrag", **{**wires, **DRAG, **changes})

    def copy_paste(self, noised, points=None, **changes):
        """Add a Copy-Paste on the latent of an SDEdit Noise."""
        points = points or self.points()
        wires = {
            "model": self.model[0],
            "latent": noised[0],
            "sigmas": noised[1],
            "points": points[0],
        }
        return self.add("PalimpsestCopyPaste", **{**wires, **BRUSH, "seed": 1, **changes})

    def finish(self, latent, sigmas, **changes):
        """Add core's SamplerCustom without added noise."""
        wires = {
            "model": self.model[0],
            "positive": self.target[0],
            "negative": self.negative[0],
            "sampler": self.add("KSamplerSelect", sampler_name="euler")[0],
            "latent_image": latent,
            "sigmas": sigmas,
        }
        wishes = {"add_noise": False, "noise_seed": 0, "cfg": 3.0}
        return self.add("SamplerCustom", **{**wires, **wishes, **changes})

    def _pair(self):
        return {
            "model": self.model[0],
            "source": self.source[0],
            "target": self.target[0],
            "negative": self.negative[0],
        }

    def _single(self):
        return {
            "model": self.model[0],
            "positive": self.target[0],
            "negative": self.negative[0],
            "latent": self.encoded[0],
        }


SCENE = {
    "color": "red",
    "shape": "heart",
    "texture": "plain",
    "background": "grass",
    "seed": 7,
    "edit_color": "blue",
    "edit_shape": "keep",
    "edit_texture": "keep",
    "edit_background": "keep",
}
CONTROL = {"mode": "auto", "cross_window": 0.4, "self_window": 0.6, "weights": ""}
INVERT = {
    "scheduler": "simple",
    "strength": 1.0,
    "cfg": 1.0,
    "convention": "destination",
    "refinement": 0,
}
EDIT = {"scale": 1.0, "interval": 1}

WALK = {"steps": 4, "scheduler": "ddim_uniform", "t0": 0.5}
CYCLE = {
    **WALK,
    "cfg": 3.0,
    "source_cfg": 1.0,
    "process": "sde",
    "seed": 1,
    "source_batch": 8,
}
DIFFEDIT = {
    **WALK,
    "cfg": 3.0,
    "process": "sde",
    "seed": 1,
    "mask_draws": 2,
    "mask_ratio": 3.0,
    "mask_strength": 0.5,
    "source_batch": 8,
}
STRENGTH = {"unit": "t0 (VP)", "strength": 0.5, "steps": 2, "scheduler": "normal"}
SDEDIT = {**STRENGTH, "cfg": 3.0, "eta": 1.0, "repeats": 1, "seed": 1}
SWEEP = {
    "unit": "denoise",
    "strengths": "0.3, 0.6",
    "seeds": 2,
    "steps": 2,
    "scheduler": "normal",
    "cfg": 3.0,
    "eta": 1.0,
    "seed": 1,
}
INPAINT = {
    "steps": 2,
    "scheduler": "normal",
    "strength": 1.0,
    "cfg": 3.0,
    "process": "sde",
    "order": "1",
    "seed": 1,
}
BRUSH = {"radius": 2, "alpha": 1.1, "beta": 0.3}
DRAG = {
    **BRUSH,
    **WALK,
    "stride": 1,
    "cfg": 3.0,
    "eta": 1.0,
    "early_stop": False,
    "seed": 1,
    "source_batch": 8,
}


def saved(server, entry, node):
    """The samples that a SaveLatent node wrote."""
    (file,) = entry["outputs"][node.id]["latents"]
    path = server.base / "output" / file["subfolder"] / file["filename"]
    return load_file(path)["latent_tensor"]


def put_latent(server, samples, name):
    """Lay a LATENT into the input folder, where core's LoadLatent finds it under `name`.latent."""
    tensors = {"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}
    save_file(tensors, server.base / "input" / f"{name}.latent")
    return f"{name}.latent"


def read_in(steps):
    """In how many steps of an edit Prompt-to-Prompt reads the source, which then runs too."""
    return int(max(CONTROL["cross_window"], CONTROL["self_window"]) * steps)


def relative(a, b):
    """Distance of a from b, relative to b."""
    return float((a - b).norm() / b.norm())


def told(entry, node):
    """What a node said about itself."""
    return entry["outputs"][node.id]["palimpsest_text"][0]
