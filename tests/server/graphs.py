"""Prompts (API form) built node by node, and what tests read of their results."""

from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file


class Graph(dict):
    """A prompt; `add` returns the new node, whose outputs are its items: `node[0]`."""

    def add(self, kind, **inputs):
        key = str(len(self) + 1)
        self[key] = {"class_type": kind, "inputs": inputs}
        return Node(key, self[key]["inputs"])


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

    def save(self, latent, name):
        """Save a LATENT with core's node; `saved` reads it."""
        return self.add("SaveLatent", samples=latent, filename_prefix=f"latents/{name}")

    def decode(self, latent, name):
        """Decode and save a picture."""
        decoded = self.add("VAEDecode", samples=latent, vae=self.model[2])
        return self.add("SaveImage", images=decoded[0], filename_prefix=f"pictures/{name}")


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


def relative(a, b):
    """Distance of a from b, relative to b."""
    return float((a - b).norm() / b.norm())


def told(entry, node):
    """What a node said about itself."""
    return entry["outputs"][node.id]["palimpsest_text"][0]
