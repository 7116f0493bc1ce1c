"""Make tests/data/sde: what the published SDE codes compute on the small model of make_golden.py.

    python tests/make_golden_sde.py [FOLDER]

The loops of SDE-Drag and SDEdit restated in the variance-preserving coordinates in which they were
released, with their grid, borders, guidance ramp and late blending. Nothing of `pipelines/` is
used, so that agreeing with these cases means something. All is computed in float64 from draws that
float32 can hold, and stored in float32.

References:
    Nie et al. 2023, The Blessing of Randomness, arXiv:2311.01410, eq. 6 to 8 and 12
    Meng et al. 2021, SDEdit, arXiv:2108.01073, algorithm 5, as released
"""

import importlib.util
import sys
from pathlib import Path

import torch

spec = importlib.util.spec_from_file_location(
    "make_golden", Path(__file__).with_name("make_golden.py")
)
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)

ALPHAS = base.ALPHAS
PROMPT = base.PROMPTS["src"]
STEPS = 8
LEAP = 1000 // STEPS
#: The grid of DPMSolverMultistepScheduler (linspace), falling.
TIMESTEPS = [round(999 * k / STEPS) for k in range(STEPS, 0, -1)]
BETA, ALPHA = 0.3, 1.1


class Draws:
    """Seeded noise that remembers itself, in float64 with the bits of float32."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.made = []

    def __call__(self, *shape):
        drawn = base.random(self.generator, *shape).float()
        self.made.append(drawn)
        return drawn.double()

    def tensors(self):
        return {f"draw_{i:03}_randn": drawn for i, drawn in enumerate(self.made)}


class Model:
    """Guided noise predictions; counts what it is asked."""

    def __init__(self, unet):
        self.unet = unet
        self.calls = self.samples = 0
        self.words = [base.encode(text)[2].double() for text in ("", PROMPT)]
        base.watch(unet, None)

    def noise(self, rows, timestep, guidance):
        """Of rows [n, 4, h, w]; at guidance 1 the prompt alone is asked."""
        n = len(rows)
        words = self.words if guidance != 1 else self.words[1:]
        batch = rows.repeat(len(words), 1, 1, 1)
        context = torch.cat([w.expand(n, -1, -1) for w in words])
        self.calls, self.samples = self.calls + 1, self.samples + len(batch)
        out = self.unet(batch, timestep, encoder_hidden_states=context).sample
        if guidance == 1:
            return out
        empty, worded = out.chunk(2)
        return empty + guidance * (worded - empty)

    def spent(self):
        return {"edit": {"forwards": self.calls, "samples": self.samples}}


def up(x, timestep, noise):
    """One step of the forward process, of `LEAP` timesteps."""
    ratio = ALPHAS[timestep + LEAP] / ALPHAS[timestep]
    return ratio.sqrt() * x + (1 - ratio).sqrt() * noise


def down(model, timestep, x, chain, chain_next, guidance, eta):
    """One step of Cycle-SDE: the noise that leads the chain to its next latent leads x."""
    a, a_next = ALPHAS[timestep], ALPHAS[timestep - LEAP]
    tilted, plain = model.noise(torch.cat([x, chain]), timestep, guidance).chunk(2)
    size = eta * ((1 - a_next) / (1 - a)).sqrt() * (1 - a / a_next).sqrt()

    def mean(z, noise):
        clean = (z - (1 - a).sqrt() * noise) / a.sqrt()
        return a_next.sqrt() * clean + (1 - a_next - size**2).sqrt() * noise

    recorded = (chain_next - mean(chain, plain)) / size
    return mean(x, tilted) + size * recorded


def paste(x, pairs, radius, draw):
    """The published copy-paste: its squares never reach the last row and column."""
    x = x.clone()
    edge = x.shape[-1] - 1
    for (px, py), (qx, qy) in pairs:
        left, right = min(radius, px, qx), min(radius, edge - px, edge - qx)
        top, bottom = min(radius, py, qy), min(radius, edge - py, edge - qy)
        here = (..., slice(py - top, py + bottom), slice(px - left, px + right))
        there = (..., slice(qy - top, qy + bottom), slice(qx - left, qx + right))
        copied = x[here].clone()
        x[here] = BETA * copied + (1 - BETA**2) ** 0.5 * draw(*copied.shape)
        x[there] = ALPHA * copied
    return x


ABOUT = {"steps": STEPS, "timesteps": TIMESTEPS, "prompt": PROMPT}
BRUSH = {"img_scale": BETA, "alpha": ALPHA}


def copy_paste(_unet):
    """Two pairs: one at the last column, one whose ends overlap."""
    draw, x = Draws(30), base.latent(1).double()
    source, target = [[15, 4], [6, 7]], [[11, 15], [8, 8]]
    output = paste(x, list(zip(source, target, strict=True)), 3, draw)
    tensors = {"input": x, "output": output, "source": source, "target": target}
    method = {"method": "SDE-Drag utils/drag.py copy_and_paste, restated", "r": 3}
    return method | BRUSH, tensors | draw.tensors()


def cycle(unet):
    """An untouched latent up the whole grid and back."""
    draw, model, x = Draws(31), Model(unet), base.latent(1).double()
    rising = TIMESTEPS[::-1][:-1]
    chain = [x]
    for timestep in rising:
        chain.append(up(chain[-1], timestep, draw(*x.shape)))
    x, walked = chain[-1], []
    for i, timestep in enumerate(TIMESTEPS[:-1]):
        x = down(model, timestep, x, chain[-1 - i], chain[-2 - i], 1.0, 1.0)
        walked.append(x)
    tensors = {
        "x0": chain[0],
        "noise": torch.cat(draw.made),
        "forward_sample": torch.cat(chain[:-1]),
        "forward_x_prev": torch.cat(chain[1:]),
        "backward": torch.cat(walked),
        "final": x,
    }
    method = {"method": "SDE-Drag cycle_sde.py main loop, restated", "guidance_scale": 1.0}
    return ABOUT | method | {"nfe": model.spent()}, tensors


def one_step(unet):
    """A step at eta 0.5 from an edited latent."""
    draw, model, timestep = Draws(32), Model(unet), TIMESTEPS[3]
    below = base.latent(2).double()
    chain = up(below, timestep - LEAP, draw(*below.shape))
    x = chain + 0.3 * draw(*below.shape)
    out = down(model, timestep, x, chain, below, 3.0, 0.5)
    tensors = {"sample": x, "forward_sample": below, "forward_x_prev": chain, "out": out}
    method = {"method": "Sampler.sample single call, restated", "guidance_scale": 3.0}
    about = {"timestep": timestep, "sde": True, "eta": 0.5, "nfe": model.spent()}
    return ABOUT | method | about, tensors


def whole_drag(unet):
    """Two drag steps of two pairs under a mask."""
    draw, model, x = Draws(33), Model(unet), base.latent(1).double()
    walked = int(0.6 * STEPS)
    rising = TIMESTEPS[::-1][: walked + 1]
    source, target = [[60, 70], [100, 44]], [[92, 70], [103, 66]]
    cells = [[[n // 8 for n in point] for point in points] for points in (source, target)]
    mask = torch.full((16, 16), 255, dtype=torch.uint8)
    mask[:, :3], mask[:, 3] = 0, 100
    tensors, drags = {"mask64": mask}, 2
    for i in range(drags):
        pairs = [
            [along(*ends, i, drags), along(*ends, i + 1, drags)]
            for ends in zip(*cells, strict=True)
        ]
        chain = [x]
        for timestep in rising[:-1]:
            chain.append(up(chain[-1], timestep, draw(*x.shape)))
        tensors[f"forward_noised_{i:02}"] = chain[-1]
        x = paste(chain[-1], pairs, 3, draw)
        for j in range(walked, 0, -1):
            guidance = 1 + 2 * j / (walked - 1)
            x = down(model, rising[j], x, chain[j], chain[j - 1], guidance, 1.0)
            x = torch.where(mask > 128, x, chain[j - 1])
        tensors[f"backward_{i:02}"] = x
    method = {"method": "SDE-Drag utils/drag.py drag(), restated", "drag_t": 0.6, "adapt_r": 3}
    about = {"step_size": 2, "source_px": source, "target_px": target, "nfe": model.spent()}
    return ABOUT | method | about | BRUSH, {
        "x0": base.latent(1),
        "final": x,
    } | tensors | draw.tensors()


def along(source, target, i, steps):
    """The published place after i of `steps`: fractions of a cell are cut."""
    return [a + int(i / steps * (b - a)) for a, b in zip(source, target, strict=True)]


def sdedit(_unet):
    """The released loop on a toy network, two repeats of twelve levels."""
    draw, generator = Draws(34), torch.Generator().manual_seed(35)
    levels, repeats, copies = 12, 2, 2
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).float().double()
    alphas = torch.cumprod(1 - betas, 0)
    weight = (0.3 * base.random(generator, 3, 3, 3, 3)).float()
    bias = base.random(generator, 3).float()
    image = torch.rand(3, 12, 12, generator=generator)
    mask = torch.zeros(3, 12, 12)
    mask[:, :, :5] = 1
    kept = (2 * image.double() - 1).repeat(copies, 1, 1, 1)
    x0 = kept.clone()
    for _ in range(repeats):
        noise = draw(*x0.shape)
        x = alphas[levels - 1].sqrt() * x0 + (1 - alphas[levels - 1]).sqrt() * noise
        for i in reversed(range(levels)):
            z = torch.nn.functional.conv2d(x, weight.double(), padding=1)
            predicted = torch.tanh(z + bias.double().view(1, -1, 1, 1) * i / 1000)
            mean = (x - betas[i] / (1 - alphas[i]).sqrt() * predicted) / (1 - betas[i]).sqrt()
            before = alphas[i - 1] if i else torch.tensor(1.0, dtype=torch.float64)
            variance = betas[i] * (1 - before) / (1 - alphas[i])
            painted = mean + (i > 0) * variance.sqrt() * draw(*x.shape)
            late = alphas[i].sqrt() * x0 + (1 - alphas[i]).sqrt() * noise
            x = torch.where(mask == 1, late, painted)
        x0 = torch.where(mask == 1, x0, x)
    tensors = {"img01": image, "mask": mask, "conv_weight": weight, "tbias": bias}
    tensors |= {"betas": betas, "noise_draws": torch.stack(draw.made), "final": x}
    nfe = {"edit": {"forwards": repeats * levels, "samples": repeats * levels * copies}}
    about = {"sample_step": repeats, "total_noise_levels": levels, "n": copies, "nfe": nfe}
    return {"method": "SDEdit colab_utils.utils.SDEditing, restated"} | about, tensors


CASES = {
    "sdedrag_copypaste": copy_paste,
    "sdedrag_cycle": cycle,
    "sdedrag_full": whole_drag,
    "sdedrag_step": one_step,
    "sdedit_vp": sdedit,
}


def make_case(name, unet):
    """Settings and tensors of a case, as they are stored."""
    with torch.no_grad():
        settings, tensors = CASES[name](unet)
    return settings, {key: _stored(value) for key, value in tensors.items()}


def _stored(value):
    tensor = torch.as_tensor(value)
    return tensor.float().contiguous() if tensor.is_floating_point() else tensor.contiguous()


def main(folder):
    unet = base.make_unet().double()
    base.write(folder, "text", *base.make_text())
    for name in CASES:
        base.write(folder, name, *make_case(name, unet))


if __name__ == "__main__":
    main(Path(*sys.argv[1:]) if sys.argv[1:] else Path(__file__).parent / "data" / "sde")
