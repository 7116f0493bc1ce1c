"""Make tests/data/edict: what the published EDICT code computes on the model of make_golden.py.

    python tests/make_golden_edict.py [FOLDER]

Its loop restated as it was released: latents in variance-preserving coordinates, timesteps without
an offset, noise of one latent for the step of the other, one call per prompt, and Prompt-to-Prompt
"in sequence": the source prompt runs at the latent of the edit and leaves its attention maps, the
target prompt runs there next and takes them. Nothing of `pipelines/` is used, so that agreeing with
these cases means something. All is computed and stored in float64, as the published code does.

References:
    Wallace, Gokul & Naik 2022, EDICT: Exact Diffusion Inversion via Coupled Transformations,
        arXiv:2211.12446
"""

import difflib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

spec = importlib.util.spec_from_file_location(
    "make_golden", Path(__file__).with_name("make_golden.py")
)
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)

ALPHAS = base.ALPHAS
STEPS = 10
TIMESTEPS = [k * (1000 // STEPS) for k in reversed(range(STEPS))]


class InSequence(base.Editor):
    """Attention of the target prompt, with the maps that the source prompt left."""

    def __init__(self, source, target):
        self.kept, self.mode, self.index = [], "off", 0
        self.column = torch.zeros(base.MAX_TOKENS, dtype=torch.int64)
        self.replaced = torch.zeros(base.MAX_TOKENS, dtype=torch.float64)
        ids = [base.encode(text)[1][0].tolist() for text in (source, target)]
        for kind, a, a_end, b, b_end in difflib.SequenceMatcher(None, *ids).get_opcodes():
            if kind == "equal" or (kind == "replace" and a_end - a == b_end - b):
                self.column[b:b_end] = torch.arange(a, a_end)
                self.replaced[b:b_end] = 1

    def turn(self, mode):
        """Begin a call: "save", "use" or "off"."""
        self.mode, self.index = mode, 0
        if mode == "save":
            self.kept = []

    def __call__(self, maps, cross):
        if self.mode == "save":
            self.kept.append(maps)
        if self.mode != "use":
            return maps
        source, self.index = self.kept[self.index], self.index + 1
        if not cross:
            return source
        return maps * (1 - self.replaced) + source[..., self.column] * self.replaced


@dataclass
class Run:
    """The published loop of one case, and the rows it spends."""

    unet: torch.nn.Module
    settings: dict
    spent: dict = field(default_factory=dict)

    def noise(self, z, t, text, part):
        account = self.spent.setdefault(part, {"forwards": 0, "samples": 0})
        account["forwards"] += 1
        account["samples"] += len(z)
        return self.unet(z, t, base.encode(text)[2].double()).sample

    def guided(self, z, t, text, part, control):
        uncond = self.noise(z, t, "", part)
        if control is not None:
            control.turn("save")
            self.noise(z, t, self.settings["prompt_src"], part)
            control.turn("use")
        cond = self.noise(z, t, text, part)
        if control is not None:
            control.turn("off")
        return uncond + self.settings["guidance_scale"] * (cond - uncond)

    def walk(self, pair, text, control=None, *, up):
        """Both latents after all timesteps, upwards or downwards."""
        pair, weight = list(pair), self.settings["mix_weight"]
        used = self.settings["timesteps_used"]
        base.watch(self.unet, control)
        for i, t in enumerate(reversed(used) if up else used):
            if up:
                pair[1] = (pair[1] - (1 - weight) * pair[0]) / weight
                pair[0] = (pair[0] - (1 - weight) * pair[1]) / weight
            order = (0, 1) if i % 2 == 0 else (1, 0)
            if up:  # what it would be from the other side, backwards
                order = (1, 0) if (len(used) - (i + 1)) % 2 == 0 else (0, 1)
            alpha, below = ALPHAS[t], ALPHAS[max(t - 1000 // STEPS, 0)]
            for own in order:
                part = "inversion" if up else "edit"
                noise = self.guided(pair[1 - own], t, text, part, control)
                a, b = (below, alpha) if up else (alpha, below)
                clean = (pair[own] - (1 - a) ** 0.5 * noise) / a**0.5
                pair[own] = b**0.5 * clean + (1 - b) ** 0.5 * noise
            if not up:
                pair[0] = weight * pair[0] + (1 - weight) * pair[1]
                pair[1] = (1 - weight) * pair[0] + weight * pair[1]
        return pair


METHOD = "EDICT (salesforce, PnPInversion copy)"
CASES = {
    "edict_direct": {"method": f"{METHOD} direct", "prompt_tar": base.PROMPTS["refine"]},
    "edict_p2p": {"method": f"{METHOD} p2p", "prompt_tar": base.PROMPTS["longer"]},
}


def make_case(name, unet):
    """Settings and float64 tensors of a case."""
    settings = {
        "steps": STEPS,
        "timesteps_all": TIMESTEPS,
        "timesteps_used": TIMESTEPS[2:],
        "final_alpha_cumprod": round(float(ALPHAS[0]), 5),
        "init_image_strength": 0.8,
        "guidance_scale": 3,
        "mix_weight": 0.93,
        "leapfrog_steps": True,
        "prompt_src": base.PROMPTS["src"],
        "x0": "model/latents.safetensors:x0_seed1",
    } | CASES[name]
    run, x0 = Run(unet, settings), base.latent(1).double()
    source, target = settings["prompt_src"], settings["prompt_tar"]
    control = InSequence(source, target) if name == "edict_p2p" else None
    with torch.no_grad():
        inverted = run.walk([x0, x0], source, up=True)
        edited = run.walk(inverted, target, control, up=False)
    tensors = {"x0": x0, "inv_x": inverted[0], "inv_y": inverted[1]}
    tensors |= {"edit_x": edited[0], "edit_y": edited[1]}
    about = {key: [str(t.dtype), list(t.shape)] for key, t in tensors.items()}
    return {**settings, "nfe": run.spent, "tensors": about}, tensors


def main(folder):
    unet = base.make_unet().double()
    base.write(folder, "text", *base.make_text())
    for name in CASES:
        base.write(folder, name, *make_case(name, unet))


if __name__ == "__main__":
    main(Path(*sys.argv[1:]) if sys.argv[1:] else Path(__file__).parent / "data" / "edict")
