"""Write a trajectory of every method as a file of today's format, for tests of tomorrow.

    python tests/make_trajectories.py [NAME,...]

Run by hand when a format number is new, from a checkout whose .dev exists. Files that are there are
left alone: what a version wrote is the promise. Those of formats 1 and 2 were written by the
versions that introduced them.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "tests" / "data" / "trajectories"
SOURCE, CFG, STEPS, STRENGTH = "a red heart on grass", 3.0, 3, 0.5


def make_all() -> dict:
    """A function for each file that makes its trajectory."""
    from functools import partial

    import torch
    from palimpsest.hosts.comfy.inversions.negative_prompt import invert_negative_prompt
    from palimpsest.hosts.comfy.inversions.noise_space import invert_noise
    from palimpsest.hosts.comfy.inversions.null_text import invert_null_text
    from palimpsest.hosts.comfy.inversions.picture import Picture, invert
    from palimpsest.hosts.comfy.inversions.style_diffusion import invert_style_diffusion
    from palimpsest.hosts.comfy.loading.folder import load_folder
    from palimpsest.hosts.comfy.schedules import schedule
    from palimpsest.pipelines.inversion.edict import couple
    from palimpsest.pipelines.inversion.noise_space import EDIT_FRIENDLY, cycle_diffusion
    from palimpsest.pipelines.inversion.null_text import NullText
    from palimpsest.pipelines.inversion.style_diffusion import Fitting
    from palimpsest.pipelines.inversion.uni_inv import uni_inv
    from palimpsest.pipelines.proximal import Proximal

    demo = load_folder(ROOT / "demo" / "weights")
    source, negative = (
        demo.clip.encode_from_tokens_scheduled(demo.clip.tokenize(t)) for t in (SOURCE, "")
    )
    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    levels = schedule(demo.model, "simple", STEPS, STRENGTH)

    def picture(cfg: float) -> Picture:
        return Picture(demo.model, source, negative, latent, levels, cfg, "make_trajectories")

    learned, fitted = NullText(CFG, inner_steps=2), Fitting(6, cfg=CFG)
    return {
        "negative_prompt": lambda: invert_negative_prompt(picture(1.0))[0],
        "proximal": lambda: invert_negative_prompt(picture(1.0))[0].with_carried(Proximal()),
        "null_text": lambda: invert_null_text(picture(1.0), learned)[0],
        "null_latent": lambda: invert_null_text(picture(1.0), learned, variant="null-latent")[0],
        "style_diffusion": lambda: invert_style_diffusion(picture(CFG), fitted)[0],
        "edict": lambda: invert(picture(CFG), partial(couple, mixing=0.93))[0],
        "uni_inv": lambda: invert(picture(1.0), uni_inv)[0],
        "edit_friendly": lambda: invert_noise(picture(1.0), EDIT_FRIENDLY, seed=1)[0],
        "cyclediffusion": lambda: invert_noise(picture(CFG), cycle_diffusion(), seed=1)[0],
    }


def main(names: list[str]) -> None:
    """Write the files that lack."""
    import torch
    from palimpsest.pipelines.trajectory_file import to_tensors
    from safetensors.torch import save_file

    for name, make in make_all().items():
        if names and name not in names:
            continue
        with torch.inference_mode():
            tensors, about = to_tensors(make())
        path = FILES / f"format_{about['palimpsest_trajectory']}_{name}.safetensors"
        if not path.exists():
            save_file(tensors, path, about)


if __name__ == "__main__":
    sys.path[:] = [
        entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "tests")
    ]
    dev = runpy.run_path(str(ROOT / "dev.py"))
    dev["load_package"]()
    sys.path.insert(0, str(dev["comfy_path"]()))
    arguments, sys.argv = sys.argv[1:], [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    main(",".join(arguments).split(",") if arguments else [])
