"""Make tests/data: a small random model, and what the published edits compute on it.

    python tests/make_golden.py [FOLDER]

The loops are those of Prompt-to-Prompt and Direct Inversion, restated as their papers and codes
have them: latents in variance-preserving coordinates, one batch of four rows [source uncond,
target uncond, source cond, target cond], every attention map computed and edited. Nothing of
`pipelines/` is used, so that agreeing with these cases means something. All is computed in
float64 and stored in float32: the files depend on the seeds alone.

References:
    Hertz et al. 2022, Prompt-to-Prompt Image Editing with Cross Attention Control, arXiv:2208.01626
    Ju et al. 2023, Direct Inversion, arXiv:2310.01506, algorithm 1
    Mokady et al. 2022, Null-text Inversion, arXiv:2211.09794
    Miyake et al. 2023, Negative-prompt Inversion, arXiv:2305.16807
    Han et al. 2023, Proximal Guidance, arXiv:2306.05414
    Parmar et al. 2023, Zero-shot Image-to-Image Translation, arXiv:2302.03027
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

MAX_TOKENS = 77

#: Transformer blocks and residual blocks of the model below.
LAYERS, BLOCKS = 7, 8
WIDTH = 32

UNET = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = [START, END, "a", "red", "blue", "circle", "square", "on", "green", "field", "with"]
VOCABULARY += ["yellow", "ultra", "marine", "flow", "ers", "brick", "wall"]

#: Words of more than one token.
PIECES = {"ultramarine": ["ultra", "marine"], "flowers": ["flow", "ers"]}

PROMPTS = {
    "uncond": "",
    "src": "a red circle on a green field",
    "replace": "a blue circle on a green field",
    "longer": "a ultramarine circle on a green wall",
    "refine": "a red circle on a green field with yellow flowers",
    "flowers": "a flowers square on a brick wall",
}


def random(generator, *shape):
    """Drawn in float64, whose draws have the same bits with every instruction set."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def alphas_cumprod():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


#: Rounded to float32 as the published codes keep them.
ALPHAS = alphas_cumprod().float().double()


# -- the model -----------------------------------------------------------------------------------


def make_unet():
    """A random UNet in which attention, prompt and noise level all matter, without chaos.

    The weights are numbers of half precision, and stored so.
    """
    unet = UNet2DConditionModel(**UNET).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(20)
    for name, parameter in unet.named_parameters():
        noise = random(generator, *parameter.shape)
        parameter.copy_((_mean(name) + _spread(name, parameter) * noise).half())
    return unet


def _mean(name):
    return 1.0 if "norm" in name and name.endswith("weight") else 0.0


def _spread(name, parameter):
    """Standard deviation of a parameter's random part."""
    if parameter.ndim < 2:
        return 0.1
    # Sharper maps or a louder output make trajectories chaotic: rounding then grows past 1e-4.
    gain = 1.2 if "to_q" in name or "to_k" in name else 0.1 if name == "conv_out.weight" else 1.0
    return gain * parameter[0].numel() ** -0.5


def encode(text):
    """Tokens, [1, 77] ids and [1, 77, 32] embedding: random, and each token sees those before."""
    words = [piece for word in text.split() for piece in PIECES.get(word, [word])]
    tokens = [START, *words, END]
    ids = [VOCABULARY.index(token) for token in tokens]
    ids += [VOCABULARY.index(END)] * (MAX_TOKENS - len(ids))
    generator = torch.Generator().manual_seed(21)
    table, places = (random(generator, count, WIDTH) for count in (len(VOCABULARY), MAX_TOKENS))
    own = table[ids] + 0.5 * places
    before = own.cumsum(0) / torch.arange(1, MAX_TOKENS + 1)[:, None]
    embedding = torch.nn.functional.layer_norm(own + before, (WIDTH,))
    return tokens, torch.tensor([ids]), embedding[None].float()


def latent(seed, height=16, width=16):
    """A smooth random picture with a little grain, in model scale."""
    generator = torch.Generator().manual_seed(seed)
    coarse = random(generator, 1, 4, height // 4, width // 4)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (smooth + 0.1 * random(generator, *smooth.shape)).float()


# -- attention maps, and who edits them ----------------------------------------------------------


class Editor:
    """Who sees every attention and may change it; this one leaves all as it is."""

    def read(self, q, k, v, cross):
        """The tensors that maps are made of, and looked up in."""
        return q, k, v

    def __call__(self, maps, cross):
        """The maps themselves."""
        return maps


class Maps:
    """An attention processor that computes every map and shows it to an editor."""

    def __init__(self, editor, cross):
        self.editor, self.cross = editor, cross

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        context = encoder_hidden_states if self.cross else hidden_states
        q, k, v = (
            projection(rows).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection, rows in (
                (attn.to_q, hidden_states),
                (attn.to_k, context),
                (attn.to_v, context),
            )
        )
        if self.editor is not None:
            q, k, v = self.editor.read(q, k, v, self.cross)
        maps = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        if self.editor is not None:
            maps = self.editor(maps, self.cross)
        return attn.to_out[0]((maps @ v).transpose(1, 2).flatten(2))


def watch(unet, editor):
    """Show the maps of every attention of the UNet to `editor`."""
    names = unet.attn_processors
    unet.set_attn_processor({name: Maps(editor, "attn2" in name) for name in names})


@dataclass
class Blend:
    """LocalBlend: cross maps of the layers of 16 x 16 places, kept and summed over the steps.

    Attributes:
        words: [2, 77] 1 at the blend words of source and target.
        out: [2, 77] the same of the words to leave out.
        thresholds: Of both.
        first: The first step after which anything is put back.
        store: Maps [2, heads, 256, 77] of every layer.
        masks: What was found, step by step.
        margin: How near any place came to its threshold.
    """

    words: torch.Tensor
    out: torch.Tensor
    thresholds: tuple[float, float]
    first: int
    store: list = field(default_factory=list)
    masks: list = field(default_factory=list)
    margin: float = 1.0
    layer: int = 0

    def see(self, maps):
        """The edited maps of one layer, of the conditional rows."""
        if maps.shape[-2] != 256:
            return
        if self.layer == len(self.store):
            self.store.append(torch.zeros_like(maps))
        self.store[self.layer] = self.store[self.layer] + maps
        self.layer += 1

    def __call__(self, z, step):
        self.layer = 0
        if step < self.first:
            return z
        mask = self.mask(self.words, self.thresholds[0], pool=True)
        if self.out.any():
            mask = mask & ~self.mask(self.out, self.thresholds[1], pool=False)
        self.masks.append(mask)
        return z[:1] + mask.to(z) * (z - z[:1])

    def mask(self, words, threshold, pool):
        maps = torch.stack(self.store, 1).flatten(1, 2)  # [2, layers * heads, 256, 77]
        maps = (maps * words[:, None, None]).sum(-1).mean(1).view(2, 1, 16, 16)
        if pool:
            maps = torch.nn.functional.max_pool2d(maps, 3, stride=1, padding=1)
        maps = maps / maps.amax((2, 3), keepdim=True)
        self.margin = min(self.margin, float((maps - threshold).abs().min()))
        found = maps > threshold
        return found[:1] | found


@dataclass
class Controller(Editor):
    """The published controllers in one: Replace or Refine, and Reweight on top of either.

    Attributes:
        alpha: [steps + 1, 77] 1 where a target token's cross window is open.
        self_steps: First step, and the one after the last, of the self window.
        mapper: [77, 77] of Replace, or the [77] source positions of Refine.
        new: [77] 1 where Refine has no source for a token.
        equalizer: [77] factors of Reweight.
        blend: Sees the edited maps, or None.
        step: Set by the loop.
    """

    alpha: torch.Tensor
    self_steps: tuple[int, int]
    mapper: torch.Tensor
    new: torch.Tensor
    equalizer: torch.Tensor
    blend: Blend | None = None
    step: int = 0

    def begin(self, step):
        self.step = step

    def __call__(self, maps, cross):
        source, target = maps[2], maps[3]
        if cross:
            alpha = self.alpha[self.step]
            edited = self._rewritten(source, target) * alpha + target * (1 - alpha)
            if self.blend is not None:
                self.blend.see(torch.stack([source, edited]))
        elif self.self_steps[0] <= self.step < self.self_steps[1] and maps.shape[-1] <= 32**2:
            edited = source
        else:
            edited = target
        return torch.stack([*maps[:3], edited])

    def _rewritten(self, source, target):
        if self.mapper.ndim == 2:
            rewritten = torch.einsum("hps,sn->hpn", source, self.mapper)
        else:
            rewritten = source[..., self.mapper] * (1 - self.new) + target * self.new
        return rewritten * self.equalizer


@dataclass
class Mutual(Editor):
    """MasaCtrl's editor: it counts the self-attentions of a call."""

    start_step: int
    start_layer: int
    step: int = 0
    layer: int = 0

    def begin(self, step):
        self.step, self.layer = step, 0

    def read(self, q, k, v, cross):
        if cross:
            return q, k, v
        self.layer += 1
        if self.step < self.start_step or self.layer - 1 < self.start_layer:
            return q, k, v
        return q, k[[0, 0, 2, 2]], v[[0, 0, 2, 2]]


@dataclass
class Features(Editor):
    """Plug-and-Play's editor, for rows [source, negative, target].

    Attributes:
        attention_steps, feature_steps: Steps in which either is injected.
        start_layer: Self-attention from here on.
        block: The residual block whose last convolution is injected.
    """

    attention_steps: int
    feature_steps: int
    start_layer: int
    block: int
    step: int = 0
    layer: int = 0

    def begin(self, step):
        self.step, self.layer = step, 0

    def read(self, q, k, v, cross):
        if cross:
            return q, k, v
        self.layer += 1
        if self.step >= self.attention_steps or self.layer - 1 < self.start_layer:
            return q, k, v
        return q[[0, 0, 0]], k[[0, 0, 0]], v

    def hook(self, unet):
        """Have the convolution of the block give every row the source's."""
        parts = [*unet.down_blocks, unet.mid_block, *unet.up_blocks]
        block = [resnet for part in parts for resnet in part.resnets][self.block]

        def inject(_module, _inputs, out):
            return out[[0, 0, 0]] if self.step < self.feature_steps else out

        return block.conv2.register_forward_hook(inject)


class Compared(Editor):
    """pix2pix-zero's editor: keeps one call's cross-attention maps, compares those of others.

    Attributes:
        kept: [rows, heads, pixels, tokens] of every layer; None where the next call is to be kept.
        loss: Of the call that was compared last.
    """

    kept = None

    def begin(self, kept):
        self.kept, self.seen, self.loss = kept, [], 0

    def __call__(self, maps, cross):
        if cross:
            if self.kept is not None:
                apart = (maps - self.kept[len(self.seen)]).flatten(0, 1)
                self.loss = self.loss + apart.square().sum((1, 2)).mean()
            self.seen.append(maps)
        return maps


def positions(text, wanted):
    """Token positions of every word that `wanted(index, word)` picks."""
    position, found = 1, []
    for index, word in enumerate(text.split(" ")):
        pieces = PIECES.get(word, [word])
        if wanted(index, word):
            found += range(position, position + len(pieces))
        position += len(pieces)
    return found


def replacement_mapper(source, target):
    """Word for word; after the last changed word every token maps to its own position."""
    pairs = [
        (positions(source, lambda k, _, i=i: k == i), positions(target, lambda k, _, i=i: k == i))
        for i, (a, b) in enumerate(zip(source.split(" "), target.split(" "), strict=True))
        if a != b
    ]
    mapper = torch.zeros(MAX_TOKENS, MAX_TOKENS, dtype=torch.float64)
    i = j = 0
    while i < MAX_TOKENS and j < MAX_TOKENS:
        if pairs and pairs[0][0][0] == i:
            ours, theirs = pairs.pop(0)
            if len(ours) == len(theirs):
                mapper[ours, theirs] = 1
            else:
                for token in theirs:
                    mapper[ours, token] = 1 / len(theirs)
            i, j = i + len(ours), j + len(theirs)
            continue
        mapper[i if pairs else j, j] = 1
        i, j = i + 1, j + 1
    return mapper


def refinement_mapper(source, target):
    """Source position of every target token, and 1 where it has none, by global alignment."""
    x, y = ([VOCABULARY.index(token) for token in encode(text)[0]] for text in (source, target))
    best = torch.zeros(len(x) + 1, len(y) + 1, dtype=torch.int64)
    way = [["left"] * (len(y) + 1) for _ in range(len(x) + 1)]
    for i in range(1, len(x) + 1):
        way[i][0] = "up"
        for j in range(1, len(y) + 1):
            left, up = best[i, j - 1], best[i - 1, j]
            diagonal = best[i - 1, j - 1] + (1 if x[i - 1] == y[j - 1] else -1)
            best[i, j] = max(left, up, diagonal)
            way[i][j] = "left" if best[i, j] == left else "up" if best[i, j] == up else "both"
    mapper, new = torch.arange(MAX_TOKENS), torch.zeros(MAX_TOKENS, dtype=torch.float64)
    i, j = len(x), len(y)
    while i > 0 or j > 0:
        if way[i][j] == "both":
            i, j = i - 1, j - 1
            mapper[j] = i
        elif way[i][j] == "left":
            j -= 1
            mapper[j], new[j] = -1, 1
        else:
            i -= 1
    return mapper, new


def make_controller(settings):
    """The controller that a case's settings ask for."""
    if "masactrl" in settings["method"]:
        return Mutual(settings["start_step"], settings["start_layer"])
    source, target = settings["prompt_src"], settings["prompt_tar"]
    windows = dict(settings["cross_replace_steps"])
    alpha = torch.zeros(settings["steps"] + 1, MAX_TOKENS, dtype=torch.float64)
    open_window(alpha, windows.pop("default_"), range(MAX_TOKENS))
    for word, bounds in windows.items():
        open_window(alpha, bounds, positions(target, lambda _, w, word=word: w == word))
    equalizer = torch.ones(MAX_TOKENS, dtype=torch.float64)
    weights = settings["eq_params"] or {"words": [], "values": []}
    for word, value in zip(weights["words"], weights["values"], strict=True):
        equalizer[positions(target, lambda _, w, word=word: w == word)] = value
    new = torch.zeros(MAX_TOKENS, dtype=torch.float64)
    if settings["is_replace_controller"]:
        mapper = replacement_mapper(source, target)
    else:
        mapper, new = refinement_mapper(source, target)
    bounds = settings["self_replace_steps"]
    first, last = (0.0, bounds) if isinstance(bounds, float) else bounds
    window = int(settings["steps"] * first), int(settings["steps"] * last)
    return Controller(alpha, window, mapper, new, equalizer, make_blend(settings))


def make_blend(settings):
    """The LocalBlend that a case's settings ask for, or None."""
    if not settings.get("blend_words"):
        return None
    marked = []
    for words in (settings["blend_words"], settings.get("substruct_words") or ([], [])):
        rows = torch.zeros(2, MAX_TOKENS, dtype=torch.float64)
        for row, text, chosen in zip(
            rows, (settings["prompt_src"], settings["prompt_tar"]), words, strict=True
        ):
            row[positions(text, lambda _, w, chosen=chosen: w in chosen)] = 1
        marked.append(rows)
    first = int(settings["lb_start_blend"] * settings["steps"])
    return Blend(*marked, settings["lb_threshold"], first)


def open_window(alpha, bounds, tokens):
    first, last = (0.0, bounds) if isinstance(bounds, float) else bounds
    tokens = list(tokens)
    alpha[:, tokens] = 0
    alpha[int(first * len(alpha)) : int(last * len(alpha)), tokens] = 1


# -- the published loops -------------------------------------------------------------------------


@dataclass
class Run:
    """The published loops of one case, and the rows they spend."""

    unet: UNet2DConditionModel
    settings: dict
    x0: torch.Tensor
    nfe: dict = field(default_factory=dict)
    nulls: dict = field(default_factory=dict)

    @property
    def source(self):
        """The prompt that the picture is inverted and walked under; MasaCtrl has one of its own."""
        return self.settings.get("prompt_src_branch", self.settings.get("prompt_src"))

    def noise(self, z, t, prompts, part):
        """Predicted noise of every row; `part` is the account its cost goes to."""
        known = [text if isinstance(text, torch.Tensor) else encode(text)[2] for text in prompts]
        embedding = torch.cat([e.to(z) for e in known])
        spent = self.nfe.setdefault(part, {"forwards": 0, "samples": 0})
        spent["forwards"] += 1
        spent["samples"] += len(z)
        return self.unet(z, t, embedding).sample

    def guided(self, z, t, part):
        """Guided noise of [source, target]."""
        texts = self.source, self.settings["prompt_tar"]
        negative = texts[0] if "negative-prompt" in self.settings["method"] else ""
        negative = self.nulls.get(t, negative)
        rows = [negative, negative, *texts]
        uncond, cond = self.noise(torch.cat([z, z]), t, rows, part).chunk(2)
        return uncond + self.settings["guidance_scale"] * self.limited(cond - uncond)

    def limited(self, difference):
        """Proximal guidance by the released "l0": one quantile over both rows."""
        if self.settings.get("prox") is None:
            return difference
        threshold = difference.abs().quantile(self.settings["quantile"])
        return difference - difference.clamp(-threshold, threshold)

    def level(self, t):
        """Cumulative alpha of a timestep; below the lowest one it is the final level."""
        return ALPHAS[max(t, 0)]

    def move(self, noise, alpha, alpha_next, z):
        """One DDIM step, up or down."""
        clean = (z - (1 - alpha) ** 0.5 * noise) / alpha**0.5
        return alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * noise

    def below(self, t):
        return t - 1000 // self.settings["steps"]

    def invert(self):
        """[N+1, 1, ...] the inversion: noise at the latent of one level, label of the next."""
        watch(self.unet, None)
        latents = [self.x0]
        for t in reversed(self.settings["timesteps"]):
            z = latents[-1]
            noise = self.noise(z, t, [self.source], "inversion")
            latents.append(self.move(noise, self.level(self.below(t)), self.level(t), z))
        return torch.stack(latents)

    def offsets(self, latents):
        """[N, 2, ...] what a guided step of either prompt misses of the chain."""
        watch(self.unet, None)
        missed = []
        for i, t in enumerate(self.settings["timesteps"]):
            z, target = (latents[-1 - i - k].expand(2, -1, -1, -1) for k in (0, 1))
            noise = self.guided(z, t, "inversion")
            missed.append(target - self.move(noise, self.level(t), self.level(self.below(t)), z))
        return torch.stack(missed)

    def learn_nulls(self, latents):
        """Null-text inversion: by timestep, the embedding in the place of the empty prompt."""
        watch(self.unet, None)
        prompt, scale = self.settings["prompt_src"], self.settings["guidance_scale"]
        z, null = latents[-1], encode("")[2].to(latents)
        for i, t in enumerate(self.settings["timesteps"]):
            null = null.clone().requires_grad_()
            optimizer = torch.optim.Adam([null], lr=1e-2 * (1 - i / 100))
            levels = self.level(t), self.level(self.below(t))
            cond = self.noise(z, t, [prompt], "inversion")
            for _ in range(self.settings["num_inner_steps"]):
                with torch.enable_grad():
                    uncond = self.noise(z, t, [null], "inversion")
                    moved = self.move(uncond + scale * (cond - uncond), *levels, z)
                    loss = torch.nn.functional.mse_loss(moved, latents[-2 - i])
                    (null.grad,) = torch.autograd.grad(loss, null)
                optimizer.step()
                if loss.item() < self.settings["early_stop_epsilon"] + i * 2e-5:
                    break
            null = null.detach()
            self.nulls[t] = null
            both = self.noise(torch.cat([z, z]), t, [null, prompt], "inversion")
            uncond, cond = both.chunk(2)
            z = self.move(uncond + scale * (cond - uncond), *levels, z)

    def edit(self, start, offsets, controller):
        """[N+1, 2, ...] source and target, the source moved by its offsets where there are any."""
        watch(self.unet, controller)
        visited = [start.expand(2, -1, -1, -1)]
        for i, t in enumerate(self.settings["timesteps"]):
            if controller is not None:
                controller.begin(i)
            z = visited[-1]
            noise = self.guided(z, t, "edit")
            z = self.move(noise, self.level(t), self.level(self.below(t)), z)
            if offsets is not None:
                z = torch.cat([z[:1] + offsets[i, :1], z[1:]])
            blend = getattr(controller, "blend", None)
            visited.append(z if blend is None else blend(z, i))
        return torch.stack(visited)


# -- the cases -----------------------------------------------------------------------------------


def run_inversion(run):
    return {"x0": run.x0, "traj": run.invert().flatten(0, 1)}


def run_offsets(run):
    return {"x0": run.x0, "noise_loss_list": run.offsets(run.invert())}


def run_direct_inversion(run):
    latents = run.invert()
    return edited(run, latents[-1], run.offsets(latents))


def run_uncorrected(run):
    latents = run.invert()
    # The published script passes through null-text inversion with no inner step: two idle rows.
    run.nfe["inversion"]["forwards"] += run.settings["steps"]
    run.nfe["inversion"]["samples"] += 2 * run.settings["steps"]
    return edited(run, latents[-1], None)


def run_drifting_masactrl(run):
    """Published under guidance in both rows, which are shown the same."""
    latents = run.invert()
    run.nfe["inversion"]["samples"] *= 2
    return edited(run, latents[-1], None) | {"inv_traj": latents.flatten(0, 1)}


def run_plug_and_play(run):
    """The source row on the inversion, under the empty prompt."""
    latents = run.invert()
    run.nfe["inversion"] = {name: 2 * n for name, n in run.nfe["inversion"].items()}  # shown only
    return featured(run, latents)


def run_shifted_plug_and_play(run):
    """The source row on the picture's reconstruction, one level too clean."""
    latents = run.invert()
    path = [latents[-1]]
    for t in run.settings["timesteps"]:
        noise = run.noise(path[-1], t, [run.source], "inversion")
        path.append(run.move(noise, run.level(t), run.level(run.below(t)), path[-1]))
    shown = torch.stack([path[-1], *path[:0:-1]])
    return featured(run, shown) | {"inverted_x": latents.flatten(0, 1)}


def featured(run, shown):
    """The edit beside a source that is shown at every level, and proof that its control matters."""
    settings = run.settings
    steps, finals = settings["steps"], []
    negative = encode(settings["negative_prompt"])[2]
    for on in (True, False):
        windows = (int(steps * settings[name]) for name in ("pnp_attn_t", "pnp_f_t"))
        editor = Features(*windows, -(-LAYERS // 2), int(0.64 * BLOCKS)) if on else None
        watch(run.unet, editor)
        handle = editor and editor.hook(run.unet)
        z, nfe = shown[-1], json.loads(json.dumps(run.nfe))
        for i, t in enumerate(settings["timesteps"]):
            if editor:
                editor.begin(i)
            rows = torch.cat([shown[-1 - i], z, z])
            noise = run.noise(rows, t, ["", negative, settings["prompt_tar"]], "edit")
            _, uncond, cond = noise.chunk(3)
            guided = uncond + settings["guidance_scale"] * (cond - uncond)
            z = run.move(guided, run.level(t), run.level(run.below(t)), z)
        if handle:
            handle.remove()
        finals.append(z)
        run.nfe = nfe if not on else run.nfe
    target, free = finals
    settings["control_changes"] = round(float((target - free).norm() / target.norm()), 4)
    if settings["control_changes"] < 0.05:
        raise SystemExit(f"The control changes {settings['control_changes']:.1%} of the edit.")
    return {"final": target, "inverted_x": shown.flatten(0, 1), "neg_emb": negative}


def run_pix2pix_zero(run):
    """As released: levels that are not those of the grid, the residual in the target as well."""
    return moved(run, corrected=True)


def run_drifting_pix2pix_zero(run):
    return moved(run, corrected=False)


def moved(run, corrected):
    """The edit whose latent follows the slope of its maps, and proof that this matters."""
    settings, finals = run.settings, []
    chain, rolls = regularised_chain(run)
    source, target = (encode(settings[key])[2].double() for key in ("prompt_src", "prompt_tar"))
    for rate in (settings["xa_guidance"], 0.0):
        nfe = json.loads(json.dumps(run.nfe))
        recon, final = walk_both(run, chain, (source, target), rate, corrected)
        finals.append(final)
        run.nfe = nfe if rate == 0 else run.nfe
    share = float((finals[0] - finals[1]).norm() / finals[0].norm())
    if share < 0.05:
        raise SystemExit(f"The control changes {share:.1%} of the edit: it would test nothing.")
    settings["control_changes"] = round(share, 4)
    own = {"recon": recon, "final": finals[0], "edit_dir": target - source}
    return own | {"rolls": torch.tensor(rolls)}


def walk_both(run, chain, embeddings, rate, corrected):
    """Ends of the source under its own prompt and of the target beside it."""
    editor, scale = Compared(), run.settings["guidance_scale"]
    watch(run.unet, editor)
    below = z = chain[-1]
    for i, t in enumerate(run.settings["timesteps"]):
        levels = run.level(t), run.level(run.below(t))
        editor.begin(None)
        noise = run.noise(torch.cat([below, below]), t, [embeddings[0]] * 2, "edit").chunk(2)[0]
        came = run.move(noise, *levels, below)
        missed = chain[-2 - i] - came if corrected else torch.zeros_like(came)
        editor.begin(editor.seen)
        both = torch.cat([z, z]).requires_grad_()
        with torch.enable_grad():
            run.noise(both, t, embeddings, "edit")
            (slope,) = torch.autograd.grad(editor.loss, both)
        both = both.detach() - rate * slope
        editor.begin(None)
        uncond, cond = run.noise(both, t, embeddings, "edit").chunk(2)
        z = run.move(uncond + scale * (cond - uncond), *levels, both[:1]) + missed
        below = came + missed
    return below, z


def regularised_chain(run):
    """The released inversion: labelled one index above its level, its noise drawn towards white."""
    watch(run.unet, None)
    settings, chain, rolls = run.settings, [run.x0], []
    draw = Random(settings["seed"])

    def pairs(e):
        loss = 0
        for channel in range(e.shape[1]):
            coarse = e[:, channel : channel + 1]
            while True:
                rolls.append(draw.randrange(coarse.shape[2] // 2))
                for axis in (2, 3):
                    loss = loss + (coarse * coarse.roll(rolls[-1], axis)).mean() ** 2
                if coarse.shape[2] <= 8:
                    break
                coarse = torch.nn.functional.avg_pool2d(coarse, 2)
        return loss

    def normal(e):
        return e.var() + e.mean() ** 2 - 1 - torch.log(e.var() + 1e-7)

    def slope(loss, e):
        with torch.enable_grad():
            e = e.detach().requires_grad_()
            return torch.autograd.grad(loss(e), e)[0]

    for t in settings["inverse_timesteps"]:
        noise = run.noise(chain[-1], t, [run.source], "inversion")
        for _ in range(settings["num_reg_steps"]):
            for _ in range(settings["num_ac_rolls"]):
                part = settings["lambda_ac"] / settings["num_ac_rolls"]
                noise = noise - part * slope(pairs, noise)
            noise = noise - settings["lambda_kl"] * slope(normal, noise)
        ends = t - 1, min(t - 1 + 1000 // settings["steps"], 999)
        chain.append(run.move(noise, *map(run.level, ends), chain[-1]))
    return torch.stack(chain), rolls


def run_negative_prompt(run):
    return edited(run, run.invert()[-1], None)


def run_null_text(run):
    latents = run.invert()
    run.learn_nulls(latents)
    nulls = torch.stack([run.nulls[t] for t in run.settings["timesteps"]])
    return edited(run, latents[-1], None) | {"uncond_embeddings": nulls}


def edited(run, start, offsets):
    """The edit, and proof that its control matters: the same without it ends elsewhere."""
    controller = make_controller(run.settings)
    visited = run.edit(start, offsets, controller)
    nfe = json.loads(json.dumps(run.nfe))
    free = run.edit(start, offsets, None)
    run.nfe = nfe
    target, uncontrolled = visited[-1, 1], free[-1, 1]
    share = float((target - uncontrolled).norm() / target.norm())
    if share < 0.05:
        raise SystemExit(f"The control changes {share:.1%} of the edit: it would test nothing.")
    run.settings["control_changes"] = round(share, 4)
    return {"final": visited[-1], "traj": visited} | blended(run, controller)


def blended(run, controller):
    """The masks of an edit with LocalBlend, and proof that rounding flips none of their cells."""
    blend = getattr(controller, "blend", None)
    if blend is None:
        return {}
    shares = [float(mask[1].double().mean()) for mask in blend.masks]
    if blend.margin < 1e-4 or not 0.1 < sum(shares) / len(shares) < 0.9:
        raise SystemExit(f"Masks of {shares}, to {blend.margin:.1e} of a flip: of no use.")
    run.settings |= {"lb_mask_mean_target": shares, "lb_min_margin": blend.margin}
    return {"lb_masks": torch.stack(blend.masks)}


EDIT = {
    "is_replace_controller": True,
    "cross_replace_steps": {"default_": 0.4},
    "self_replace_steps": 0.6,
    "blend_words": None,
    "eq_params": None,
}
MASA = {
    "prompt_src_branch": "",
    "prompt_tar": PROMPTS["replace"],
    "start_step": 1,
    "start_layer": 2,
}
PNP = {
    "prompt_tar": PROMPTS["refine"],
    "negative_prompt": PROMPTS["flowers"],
    "pnp_attn_t": 0.5,
    "pnp_f_t": 0.8,
}
ZERO = {
    "prompt_tar": PROMPTS["replace"],
    "steps": 5,
    "xa_guidance": 0.1,
    "lambda_ac": 20,
    "lambda_kl": 20,
    "num_reg_steps": 5,
    "num_ac_rolls": 5,
    "seed": 1234,
    "inverse_timesteps": None,  # those of the edit, rising
}
P2P = "PnPInversion directinversion+p2p"
NPI = "PnPInversion negative-prompt-inversion"

#: Name: the loop, the latent (seed, or seed and size), and the settings that differ.
CASES = {
    "ddim_inversion": (
        run_inversion,
        (1,),
        {"method": "PnPInversion DirectInversion.ddim_inversion (cond only, guidance 1)"},
    ),
    "directinversion_inv_replace": (
        run_offsets,
        (3, 12, 20),
        {
            "method": "PnPInversion DirectInversion.invert",
            "prompt_tar": PROMPTS["replace"],
            "steps": 5,
            "guidance_scale": 4.0,
        },
    ),
    "di_p2p_replace": (
        run_direct_inversion,
        (1,),
        EDIT | {"method": P2P, "prompt_tar": PROMPTS["longer"]},
    ),
    "di_p2p_refine": (
        run_direct_inversion,
        (2,),
        EDIT
        | {
            "method": P2P,
            "prompt_tar": PROMPTS["refine"],
            "is_replace_controller": False,
            "cross_replace_steps": {"default_": 0.8, "circle": [0.2, 0.6], "flowers": 1.0},
            "self_replace_steps": [0.2, 0.7],
        },
    ),
    "di_p2p_reweight": (
        run_direct_inversion,
        (2,),
        EDIT
        | {
            "method": P2P,
            "prompt_tar": PROMPTS["replace"],
            "eq_params": {"words": ["blue", "field"], "values": [4, -1.5]},
            "steps": 6,
        },
    ),
    "di_p2p_refine_lb": (
        run_direct_inversion,
        (2,),
        EDIT
        | {
            "method": P2P,
            "prompt_tar": PROMPTS["refine"],
            "is_replace_controller": False,
            "blend_words": [["field"], ["flowers"]],
            "substruct_words": [["circle"], ["red"]],
            "lb_threshold": [0.85, 0.95],
            "lb_start_blend": 0.2,
        },
    ),
    "ddim_p2p_replace_lb": (
        run_uncorrected,
        (1,),
        EDIT
        | {
            "method": "PnPInversion ddim+p2p",
            "prompt_tar": PROMPTS["longer"],
            "blend_words": [["circle", "red"], ["circle", "ultramarine"]],
            "lb_threshold": [0.9, 0.9],
            "lb_start_blend": 0.4,
            "steps": 6,
        },
    ),
    "ddim_p2p_replace": (
        run_uncorrected,
        (1,),
        EDIT
        | {
            "method": "PnPInversion ddim+p2p",
            "prompt_src": PROMPTS["flowers"],
            "prompt_tar": PROMPTS["src"],
            "cross_replace_steps": {"default_": 0.7},
        },
    ),
    "di_masactrl": (
        run_direct_inversion,
        (1,),
        MASA | {"method": "PnPInversion directinversion+masactrl"},
    ),
    "di_masactrl_prompt": (
        run_direct_inversion,
        (2,),
        MASA
        | {
            "method": "PnPInversion directinversion+masactrl",
            "prompt_src_branch": PROMPTS["src"],
            "prompt_tar": PROMPTS["longer"],
            "start_step": 2,
            "start_layer": 1,
            "steps": 6,
        },
    ),
    "ddim_masactrl": (
        run_drifting_masactrl,
        (1,),
        MASA | {"method": "PnPInversion ddim+masactrl"},
    ),
    "di_pnp": (run_plug_and_play, (1,), PNP | {"method": "PnPInversion di_pnp"}),
    "ddim_pnp": (
        run_shifted_plug_and_play,
        (2,),
        PNP
        | {
            "method": "PnPInversion ddim_pnp",
            "prompt_tar": PROMPTS["longer"],
            "steps": 5,
            "pnp_attn_t": 0.8,
            "pnp_f_t": 0.4,
        },
    ),
    "di_pix2pixzero": (run_pix2pix_zero, (1,), ZERO | {"method": "PnPInversion di_pix2pixzero"}),
    "ddim_pix2pixzero": (
        run_drifting_pix2pix_zero,
        (2,),
        ZERO
        | {
            "method": "PnPInversion ddim_pix2pixzero",
            "prompt_tar": PROMPTS["longer"],
            "guidance_scale": 4.0,
            "xa_guidance": 0.4,
            "num_reg_steps": 2,
            "num_ac_rolls": 3,
            "lambda_ac": 10,
            "lambda_kl": 40,
        },
    ),
    "nti_p2p_replace": (
        run_null_text,
        (1,),
        EDIT
        | {
            "method": "PnPInversion null-text-inversion+p2p",
            "prompt_tar": PROMPTS["longer"],
            "steps": 6,
            "num_inner_steps": 3,
            "early_stop_epsilon": 0.0655,  # some steps stop early
        },
    ),
    "npi_p2p_replace": (
        run_negative_prompt,
        (1,),
        EDIT | {"method": f"{NPI}+p2p (prox None)", "prompt_tar": PROMPTS["longer"]},
    ),
    "npi_proximal_l0_refine": (
        run_negative_prompt,
        (1,),
        EDIT
        | {
            "method": f"{NPI}+proximal-guidance",
            "prompt_tar": PROMPTS["refine"],
            "is_replace_controller": False,
            "prox": "l0",
            "quantile": 0.75,
            "steps": 6,
            "recon_lr": 1,
            "recon_t": 400,
            "dilate_mask": 1,
        },
    ),
}


def settings_of(name):
    """All settings of a case."""
    loop, shape, own = CASES[name]
    settings = {"steps": 8, "guidance_scale": 7.5} | own
    if "prompt_src_branch" not in own:
        settings["prompt_src"] = own.get("prompt_src", PROMPTS["src"])
    steps = settings["steps"]
    settings["timesteps"] = [1 + k * (1000 // steps) for k in reversed(range(steps))]
    if "inverse_timesteps" in settings:
        settings["inverse_timesteps"] = settings["timesteps"][::-1]
    settings |= {"steps_offset": 1, "final_alpha_cumprod": float(ALPHAS[0].float())}
    if len(shape) == 1 and loop is not run_inversion:
        settings["x0"] = f"model/latents.safetensors:x0_seed{shape[0]}"
    return settings


def make_case(name, unet):
    """Settings and float32 tensors of a case."""
    loop, shape, _ = CASES[name]
    run = Run(unet, settings_of(name), latent(*shape).double())
    with torch.no_grad():
        tensors = {key: stored(t).contiguous() for key, t in loop(run).items()}
    about = {key: [str(t.dtype), list(t.shape)] for key, t in tensors.items()}
    return {**run.settings, "nfe": run.nfe, "tensors": about}, tensors


def stored(tensor):
    """Fractions in float32, masks as bytes, whole numbers as they are."""
    if tensor.is_floating_point():
        return tensor.float()
    return tensor.byte() if tensor.dtype == torch.bool else tensor


def make_text():
    """The schedule, and tokens and embedding of every prompt."""
    coded = {key: encode(text) for key, text in PROMPTS.items()}
    tensors = {"alphas_cumprod": ALPHAS.float()}
    for key, (_, ids, embedding) in coded.items():
        tensors |= {f"ids_{key}": ids, f"emb_{key}": embedding}
    words = {key: tokens for key, (tokens, _, _) in coded.items()}
    return {"prompts": PROMPTS, "word_tokens": words}, tensors


def write_model(folder):
    folder.mkdir(parents=True, exist_ok=True)
    unet = make_unet()
    save_file({k: t.half() for k, t in unet.state_dict().items()}, folder / "unet.safetensors")
    config = {"_class_name": "UNet2DConditionModel", **UNET}
    (folder / "unet_config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({f"x0_seed{s}": latent(s) for s in (1, 2)}, folder / "latents.safetensors")
    return unet


def write(folder, name, settings, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(settings, indent=1) + "\n")
    save_file(tensors, folder / f"{name}.safetensors")


def main(folder):
    unet = write_model(folder / "model").double()
    write(folder / "quick", "text", *make_text())
    for name in CASES:
        settings, tensors = make_case(name, unet)
        write(folder / "quick", name, settings, tensors)
        sys.stdout.write(f"{name} {settings['nfe']} {settings.get('control_changes', '')}\n")


if __name__ == "__main__":
    main(Path(*sys.argv[1:]) if sys.argv[1:] else Path(__file__).parent / "data")
