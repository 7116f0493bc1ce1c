"""Make tests/data/edit_friendly: the published Edit-Friendly edits on make_golden.py's model.

    python tests/make_golden_edit_friendly.py [FOLDER]

The loops restated in their own coordinates: noise maps z computed by dividing by the size of a
step's noise, that of the last step set to 0, both rows denoised together from the level below the
skip, windows that count the steps after it. Nothing of `pipelines/` is used. All is computed in
float64 from draws that float32 can hold, and stored in float32.

References:
    Huberman-Spiegelglas et al. 2023, An Edit Friendly DDPM Noise Space, arXiv:2304.06140
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

spec = importlib.util.spec_from_file_location(
    "make_golden", Path(__file__).with_name("make_golden.py")
)
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)

ALPHAS = base.ALPHAS
SOURCE = base.PROMPTS["src"]
STEPS = 8
#: 16 x 24 cells: more than 16 x 16 pixels of self-attention at the top, fewer below.
SHAPE = (2, 16, 24)


class SmallMaps(base.Controller):
    """The controller as it runs with little memory: self-attention of larger maps is left alone."""

    def __call__(self, maps, cross):
        if not cross and maps.shape[-1] > 16**2:
            return maps
        return super().__call__(maps, cross)


@dataclass
class Published:
    """The published loops of one case, and the samples they spend."""

    unet: torch.nn.Module
    settings: dict
    x0: torch.Tensor
    forwards: int = 0
    samples: int = 0

    def predict(self, z, t, prompts, scales):
        """Guided noise of every row; both halves are always run."""
        rows = len(prompts)
        words = torch.cat([base.encode(text)[2] for text in [""] * rows + prompts]).to(z)
        self.forwards, self.samples = self.forwards + 2, self.samples + 2 * rows
        uncond, cond = self.unet(torch.cat([z, z]), t, words).sample.chunk(2)
        scale = torch.tensor(scales, dtype=z.dtype).view(-1, 1, 1, 1)
        return uncond + scale * (cond - uncond)

    def mean(self, z, t, noise):
        """Mean of the DDPM step from t, and the size of its noise."""
        a, b = ALPHAS[t], ALPHAS[max(t - 1000 // self.settings["steps"], 0)]
        variance = (1 - b) / (1 - a) * (1 - a / b)
        clean = (z - (1 - a) ** 0.5 * noise) / a**0.5
        return b**0.5 * clean + (1 - b - variance) ** 0.5 * noise, variance**0.5

    def invert(self, draws):
        """Latents [N+1, ...] and noise maps [N, ...], both from the lowest level up."""
        rising = sorted(self.settings["timesteps"])
        latents = [self.x0]
        for t, draw in zip(rising, draws, strict=True):
            latents.append(ALPHAS[t] ** 0.5 * self.x0 + (1 - ALPHAS[t]) ** 0.5 * draw)
        maps = []
        for i, t in enumerate(rising):
            noise = self.predict(latents[i + 1], t, [SOURCE], [self.settings["cfg_src"]])
            mean, size = self.mean(latents[i + 1], t, noise)
            maps.append((latents[i] - mean) / size)
        maps[0] = torch.zeros_like(maps[0])
        return torch.cat(latents), torch.cat(maps)

    def edit(self, latents, maps, controller):
        """[N - skip + 1, rows, ...] from the level below the skip down."""
        rising, prompts = sorted(self.settings["timesteps"]), self.settings["prompts"]
        walked = len(rising) - self.settings["skip"]
        visited = [latents[walked].expand(len(prompts), -1, -1, -1)]
        for i, level in enumerate(reversed(range(walked))):
            if controller is not None:
                controller.step = i
            t = rising[level]
            noise = self.predict(visited[-1], t, prompts, self.settings["cfg_scales"])
            mean, size = self.mean(visited[-1], t, noise)
            visited.append(mean + size * maps[level])
        return torch.stack(visited)


def controller_of(settings):
    """The published controller of a case, or None where it only stores."""
    if settings["controller"] == "AttentionStore":
        return None
    cross = {"default_": settings["cross_replace_steps"]}
    replace = settings["controller"] == "AttentionReplace"
    made = base.make_controller(
        {
            **settings,
            "prompt_tar": settings["prompts"][-1],
            "cross_replace_steps": cross,
            "eq_params": None,
            "is_replace_controller": replace,
        }
    )
    return SmallMaps(**vars(made))


EDIT = {"cross_replace_steps": None, "self_replace_steps": None, "controller": "AttentionStore"}
CASES = {
    "ef_ours": EDIT
    | {
        "method": "inbarhub our_inv",
        "cfg_src": 3.5,
        "cfg_tar": 15,
        "skip": 3,
        "prompts": [base.PROMPTS["replace"]],
    },
    "ef_p2p_replace": {
        "method": "edit-friendly + p2p",
        "cfg_src": 1,
        "cfg_tar": 7.5,
        "skip": 2,
        "prompts": [SOURCE, base.PROMPTS["longer"]],
        "controller": "AttentionReplace",
        "cross_replace_steps": 0.4,
        "self_replace_steps": 0.6,
    },
    "ef_p2p_refine": {
        "method": "edit-friendly + p2p",
        "cfg_src": 3.5,
        "cfg_tar": 9,
        "skip": 3,
        "prompts": [SOURCE, base.PROMPTS["refine"]],
        "controller": "AttentionRefine",
        "cross_replace_steps": 0.6,
        "self_replace_steps": 0.2,
    },
}


def settings_of(name):
    """All settings of a case."""
    own = CASES[name]
    rows = len(own["prompts"])
    scales = [own["cfg_src"], own["cfg_tar"]][-rows:]
    timesteps = [1 + k * (1000 // STEPS) for k in reversed(range(STEPS))]
    return {
        "steps": STEPS,
        "timesteps": timesteps,
        "prompt_src": SOURCE,
        "eta": 1,
        "cfg_scales": scales,
        **own,
    }


def make_case(name, unet):
    """Settings and float32 tensors of a case."""
    settings, x0 = settings_of(name), base.latent(*SHAPE).double()
    generator = torch.Generator().manual_seed(31)
    draws = base.random(generator, STEPS, *x0.shape[1:]).float()
    run, controller = Published(unet, settings, x0), controller_of(settings)
    with torch.no_grad():
        base.watch(unet, None)
        latents, maps = run.invert(draws.double())
        before = (run.forwards, run.samples)
        base.watch(unet, controller)
        visited = run.edit(latents, maps, controller)
        inversion = dict(zip(("forwards", "samples"), before, strict=True))
        edit = {
            key: now - then
            for key, now, then in zip(inversion, (run.forwards, run.samples), before, strict=True)
        }
        if controller is not None:
            settings["control_changes"] = _changes(run, latents, maps, visited)
    tensors = {"x0": x0, "noise_draws": draws, "zs": maps, "final": visited[-1]}
    if controller is None:
        tensors |= {"wts": latents, "traj": visited}
    settings["nfe"] = {"inversion": inversion, "edit": edit}
    return settings, {key: t.float().contiguous() for key, t in tensors.items()}


def _changes(run, latents, maps, visited):
    """Which share of the edit is its control's; it must be one, or the case would test nothing."""
    base.watch(run.unet, None)
    target, free = visited[-1, 1], run.edit(latents, maps, None)[-1, 1]
    share = float((target - free).norm() / target.norm())
    if share < 0.02:
        raise SystemExit(f"The control changes {share:.1%} of the edit: it would test nothing.")
    return round(share, 4)


def main(folder):
    unet = base.make_unet().double()
    base.write(folder, "text", *base.make_text())
    for name in CASES:
        settings, tensors = make_case(name, unet)
        base.write(folder, name, settings, tensors)
        sys.stdout.write(f"{name} {settings['nfe']} {settings.get('control_changes', '')}\n")


if __name__ == "__main__":
    main(Path(*sys.argv[1:]) if sys.argv[1:] else Path(__file__).parent / "data" / "edit_friendly")
