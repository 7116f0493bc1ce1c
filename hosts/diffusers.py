"""The pipelines without ComfyUI: on a diffusers model folder, headless.

    model = load_folder(Path("stable-diffusion-v1-5"))
    source, target, empty = map(model.prompt, ("a cat on a sofa", "a tiger on a sofa", ""))
    trajectory = model.unet.invert(model.encode(image), source, model.unet.ddim_sigmas(50))
    control = rewrite_prompt(source.tokens, target.tokens)
    edited = model.unet.edit(trajectory, source, target, empty, control=control).run()
    picture = model.decode(edited.latent)

diffusers and transformers are imported where a folder is loaded, not where this file is.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..pipelines.attention.bank import AttentionHook, Bank, Control, Role
from ..pipelines.attention.features import FeatureRecorder
from ..pipelines.attention.tokens import PromptTokens, Word
from ..pipelines.couplings import Convention, ddim
from ..pipelines.denoiser import (
    Denoiser,
    Guidance,
    RowCount,
    constant,
    guidance_of,
    guide,
    per_row,
)
from ..pipelines.editing import (
    DIRECT_INVERSION,
    Branches,
    Correction,
    Edit,
    Editing,
    correction_along,
)
from ..pipelines.errors import PalimpsestError
from ..pipelines.proximal import Mix, Proximal, ProximalGuidance, check_guided
from ..pipelines.schedule import ddim_timesteps, sigma_from_alpha, vp_scale
from ..pipelines.trajectory import Recipe, Trajectory
from .diffusers_attention import hooked
from .diffusers_edict import coupled_edit

Prediction = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt as the UNet and as the attention controls see it.

    Attributes:
        embedding: [1, tokens, channels] hidden states of the text encoder.
        tokens: The words and their positions.
        added: What an SDXL UNet takes beside them (`text_embeds`, `time_ids`); empty otherwise.
        values: [2, B, tokens, channels] what the embedding is mapped by where values are computed
            from it (StyleDiffusion), or None.
    """

    embedding: Tensor
    tokens: PromptTokens
    added: dict[str, Tensor] = field(default_factory=dict)
    values: Tensor | None = None

    @property
    def key(self) -> str:
        """What tells it from other prompts, as text."""
        tensors = (self.embedding, *self.added.values())
        return hashlib.sha256(b"".join(t.float().numpy().tobytes() for t in tensors)).hexdigest()


#: A prompt that changes with the noise level.
PromptAt = Callable[[Tensor], Prompt]


@dataclass(frozen=True, eq=False)
class DiffusersUNet:
    """A UNet2DConditionModel and the schedule it was trained on.

    Attributes:
        unet: The network.
        alphas_cumprod: [train steps] cumulative alphas.
        prediction: What it predicts.
    """

    unet: nn.Module
    alphas_cumprod: Tensor
    prediction: Prediction = "epsilon"

    @property
    def sigmas(self) -> Tensor:
        """[train steps] float64 noise level of every training timestep, rising."""
        return sigma_from_alpha(self.alphas_cumprod.double())

    def ddim_sigmas(self, steps: int) -> Tensor:
        """[steps + 1] rising levels: 0, and the published grid of timesteps 1, 21, 41, ..."""
        timesteps = ddim_timesteps(steps, train_steps=len(self.alphas_cumprod))
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.sigmas[timesteps]])

    def denoiser(
        self,
        positive: Prompt | PromptAt,
        negative: Prompt | PromptAt | None = None,
        *,
        cfg: float | Guidance = 1.0,
        hook: AttentionHook | None = None,
        mix: Mix | None = None,
        rows: RowCount | None = None,
        gradients: bool = False,
    ) -> Denoiser:
        """The posterior mean under a prompt.

        Args:
            positive: What the picture shows, or what gives it for a level.
            negative: The other end of the guidance, or what gives it for a level; not evaluated at
                cfg 1.
            cfg: Guidance scale, or one for every level.
            hook: Sees every attention call.
            mix: Guides in the place of the plain sum.
            rows: Counts the rows spent.
            gradients: Whether they flow to the prompts.
        """
        guidance = constant(cfg) if isinstance(cfg, int | float) else cfg
        if negative is None and cfg != 1:
            named = "other than 1" if callable(cfg) else cfg
            raise PalimpsestError(f"Guidance {named} needs a negative prompt; none was given.")

        @(torch.enable_grad if gradients else torch.no_grad)()
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            scale = guidance_of(guidance, sigma, x)
            guided = negative is not None and bool(torch.as_tensor(scale != 1).any())
            below = negative(sigma) if callable(negative) else negative
            above = positive(sigma) if callable(positive) else positive
            prompts = [below, above] if guided else [above]
            roles: list[Role] = ["uncond", "cond"] if guided else ["cond"]
            if guided and hook is None and bool(torch.as_tensor(scale == 0).all()):
                prompts, roles = prompts[:1], roles[:1]  # no one reads the conditional row
            z = x * per_row(vp_scale(sigma).to(x.dtype), x)
            z = z.to(self.unet.dtype).repeat(len(prompts), 1, 1, 1)
            timesteps = self._timesteps(sigma).expand(len(x)).repeat(len(prompts))
            with hooked(self.unet, hook, roles, above.values):
                out = self.unet(z, timesteps, **_conditions(prompts, len(x), z.dtype)).sample
            if rows is not None:
                rows.add(len(z))
            level = per_row(sigma, x).to(x.dtype)
            means = [self._mean(x, part.to(x.dtype), level) for part in out.chunk(len(prompts))]
            if len(means) == 1:
                return means[0]
            return mix(means[1], means[0], scale, sigma) if mix else guide(*means[::-1], scale)

        return denoise

    def _timesteps(self, sigma: Tensor) -> Tensor:
        """The training timestep nearest to every level, in the shape of `sigma`."""
        distance = self.sigmas.log().unsqueeze(-1) - sigma.double().log().reshape(1, -1)
        return distance.abs().argmin(0).reshape(sigma.shape)

    def _mean(self, x: Tensor, predicted: Tensor, sigma: Tensor) -> Tensor:
        """The posterior mean from what the network predicted."""
        if self.prediction == "epsilon":
            return x - sigma * predicted
        return x / (1 + sigma**2) - sigma * vp_scale(sigma) * predicted

    def invert(
        self,
        x0: Tensor,
        prompt: Prompt,
        sigmas: Tensor,
        *,
        convention: Convention = "destination",
        refinement: int = 0,
        recorder: FeatureRecorder | None = None,
        rows: RowCount | None = None,
    ) -> Trajectory:
        """DDIM inversion of a latent at cfg 1.

        Args:
            x0: [B, C, h, w] the picture in model scale, at `sigmas[0]`.
            prompt: Describes the picture.
            sigmas: [N+1] rising noise levels.
            convention: See `couplings.ddim`.
            refinement: See `couplings.ddim`.
            recorder: Keeps the source's features for later edits; with convention "current".
            rows: Counts the rows spent.
        """
        spent = RowCount()
        denoise = self.denoiser(prompt, hook=recorder.record if recorder else None, rows=spent)
        denoise = recorder.watch(denoise) if recorder else denoise
        latents = ddim(
            denoise, x0, sigmas, scale=vp_scale, convention=convention, refinement=refinement
        )
        if rows is not None:
            rows.add(spent.rows)
        recipe = Recipe("ddim", convention, refinement, rows=spent.rows)
        kept = recorder.result(prompt.key) if recorder else None
        return Trajectory(latents, sigmas, x0, recipe, features=kept)

    def edit(
        self,
        trajectory: Trajectory,
        source: Prompt,
        target: Prompt,
        negative: Prompt,
        *,
        cfg: float = 7.5,
        control: Control | None = None,
        correction: Correction = DIRECT_INVERSION,
        mask: Tensor | None = None,
        keep_source: bool = False,
        rows: RowCount | None = None,
    ) -> Editing:
        """An edit along a trajectory, ready to `run`.

        Args:
            trajectory: The recorded chain of the source.
            source: Describes the picture.
            target: Describes the edit.
            negative: The other end of the guidance.
            cfg: Guidance scale.
            control: Attention control, for example from `rewrite_prompt`.
            correction: What is done about the residual.
            mask: [1 or B, 1, h, w] in 0..1, 0 where the picture is kept.
            keep_source: Follow a drifting source row to the end.
            rows: Counts the rows spent.
        """
        if trajectory.partner is not None:
            prompts, wishes = (source, target, negative), {"control": control, "mask": mask}
            return coupled_edit(self, trajectory, *prompts, cfg=cfg, rows=rows, **wishes)
        bank = bank_along(trajectory, source, control, correction)
        record, inject = (bank.record, bank.inject) if bank else (None, None)
        recipe, below = trajectory.recipe, with_uncond(negative, trajectory)
        recipe.check_cfg(cfg)
        window = recipe.value_window
        of_target = below if recipe.uncond_for == "both" else negative
        of_source, above = with_values(source, trajectory), with_values(target, trajectory, window)
        source_cfg = cfg if recipe.source_cfg is None else recipe.source_cfg
        proximal, mix, mix_source = limits(recipe.proximal, cfg)
        unedited = self.denoiser(above, of_target, cfg=cfg, mix=mix_source, rows=rows)
        branches = Branches(
            target=self.denoiser(above, of_target, cfg=cfg, hook=inject, mix=mix, rows=rows),
            source=self.denoiser(
                of_source, below, cfg=source_cfg, hook=record, mix=mix_source, rows=rows
            ),
            record=self.denoiser(of_source, hook=record, rows=rows),
            unedited=unedited if bank else None,
        )
        if recipe.eta and bank is None and trajectory.uncond is None:
            recorded = trajectory.denoised is not None
            known = recipe.source if recorded else guided_key(source, negative, source_cfg)
            if known == guided_key(target, negative, cfg):  # nothing is edited: nothing is run
                branches = replace(branches, source=branches.target)
        return Edit(
            trajectory,
            branches,
            correction=correction_along(trajectory, correction),
            eta=recipe.eta,
            bank=bank,
            mask=mask,
            keep_source=keep_source,
            proximal=proximal,
        )


def limits(
    settings: Proximal | None, cfg: float
) -> tuple[ProximalGuidance | None, Mix | None, Mix | None]:
    """Proximal guidance for one edit, and how it guides the target and any other row."""
    check_guided(settings, cfg)
    if settings is None:
        return None, None, None
    made = ProximalGuidance(settings)
    return made, made.mix, made.mix_source


def bank_along(
    trajectory: Trajectory, source: Prompt, control: Control | None, correction: Correction
) -> Bank | None:
    """The bank of a control, with the inversion's features where they are this source's."""
    if control is None:
        return None
    kept = trajectory.features
    on_chain = correction_along(trajectory, correction).on_chain
    same = kept is not None and kept.key == source.key
    return Bank(control, trajectory.steps, kept if on_chain and same else None)


def guided_key(prompt: Prompt, negative: Prompt | None, cfg: float) -> str:
    """What tells a guided denoiser from others of one model, as text."""
    shown = [prompt] if cfg == 1 or negative is None else [prompt, negative]
    return " ".join([f"{cfg:g}", *(p.key for p in shown)])


def with_uncond(negative: Prompt, trajectory: Trajectory) -> Prompt | PromptAt:
    """The negative prompt, with a trajectory's own embeddings in its place where it has some."""
    if trajectory.uncond is None:
        return negative
    return lambda sigma: replace(negative, embedding=trajectory.uncond_at(sigma))


def with_values(prompt: Prompt, trajectory: Trajectory, window: float = 1.0) -> Prompt | PromptAt:
    """A prompt, its values mapped by a trajectory's own mapping where that has one.

    Args:
        prompt: Of the source or the target.
        trajectory: Carries the mapping.
        window: See `Trajectory.values_at`.
    """
    if trajectory.values is None:
        return prompt
    return lambda sigma: replace(prompt, values=trajectory.values_at(sigma, window=window))


def _conditions(prompts: list[Prompt], images: int, dtype: torch.dtype) -> dict[str, Any]:
    """The UNet's text arguments for `images` rows per prompt."""
    embeddings = torch.cat([p.embedding.expand(images, -1, -1) for p in prompts]).to(dtype)
    if not prompts[0].added:
        return {"encoder_hidden_states": embeddings}
    added = {
        key: torch.cat([p.added[key].expand(images, -1) for p in prompts]).to(dtype)
        for key in prompts[0].added
    }
    return {"encoder_hidden_states": embeddings, "added_cond_kwargs": added}


@dataclass(frozen=True, eq=False)
class DiffusersModel:
    """A whole model folder.

    Attributes:
        unet: The network and its schedule.
        vae: AutoencoderKL or AutoencoderTiny.
        encoders: Text encoders with their tokenizers, one or (SDXL) two.
    """

    unet: DiffusersUNet
    vae: nn.Module
    encoders: tuple[tuple[nn.Module, Any], ...]

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Latent [B, 4, H/8, W/8] of images [B, H, W, 3] in 0..1, in model scale."""
        posterior = self.vae.encode(image.movedim(-1, 1) * 2 - 1)
        mean = posterior.latents if hasattr(posterior, "latents") else posterior.latent_dist.mode()
        return mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """Images [B, H, W, 3] in 0..1 of latents in model scale."""
        image = self.vae.decode(latent / self.vae.config.scaling_factor).sample
        return (image / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    @torch.no_grad()
    def prompt(self, text: str, *, size: tuple[int, int] = (1024, 1024)) -> Prompt:
        """Encode a prompt.

        Args:
            text: The prompt; no weight syntax.
            size: Height and width in pixels, which SDXL is told.
        """
        tokens = prompt_tokens(self.encoders[0][1], text)
        if len(self.encoders) == 1:
            encoder, tokenizer = self.encoders[0]
            return Prompt(encoder(_ids(tokenizer, text)).last_hidden_state, tokens)
        outs = [e(_ids(t, text), output_hidden_states=True) for e, t in self.encoders]
        embedding = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
        time_ids = torch.tensor([[*size, 0, 0, *size]], dtype=embedding.dtype)
        added = {"text_embeds": outs[-1].text_embeds, "time_ids": time_ids}
        return Prompt(embedding, tokens, added)


def load_folder(folder: Path) -> DiffusersModel:
    """Load a Stable Diffusion 1.x, 2.x or XL folder in float32.

    Raises:
        PalimpsestError: If it is no such folder.
    """
    if not (folder / "model_index.json").is_file():
        raise PalimpsestError(
            f"{folder} is not a diffusers model: it holds no model_index.json. "
            "Give the folder that has unet/, vae/ and text_encoder/ in it."
        )
    import diffusers
    import transformers

    unet = diffusers.UNet2DConditionModel.from_pretrained(
        folder, subfolder="unet", torch_dtype=torch.float32, use_safetensors=True
    )
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    network = DiffusersUNet(
        unet.eval().requires_grad_(False),
        scheduler.alphas_cumprod,
        scheduler.config.prediction_type,
    )
    classes = (transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection)
    encoders = tuple(
        (
            cls.from_pretrained(folder, subfolder=f"text_encoder{n}").float().eval(),
            transformers.CLIPTokenizer.from_pretrained(folder, subfolder=f"tokenizer{n}"),
        )
        for n, cls in zip(("", "_2"), classes, strict=True)
        if (folder / f"text_encoder{n}").is_dir()
    )
    return DiffusersModel(network, _load_vae(folder).float().eval(), encoders)


def _load_vae(folder: Path) -> nn.Module:
    """The autoencoder, of the class that its config names."""
    import diffusers

    for cls in (diffusers.AutoencoderTiny, diffusers.AutoencoderKL):
        if cls.load_config(folder, subfolder="vae").get("_class_name") == cls.__name__:
            return cls.from_pretrained(folder, subfolder="vae", use_safetensors=True)
    raise PalimpsestError(f"{folder}/vae must be an AutoencoderKL or an AutoencoderTiny.")


def _ids(tokenizer: Any, text: str) -> Tensor:
    """[1, max length] token ids, padded as the model was trained."""
    return tokenizer(
        text,
        padding="max_length",
        truncation=True,
        max_length=tokenizer.model_max_length,
        return_tensors="pt",
    ).input_ids


def prompt_tokens(tokenizer: Any, text: str) -> PromptTokens:
    """Words of a prompt and the positions of their tokens.

    White space is a hard boundary for these tokenizers, so each word is tokenized alone.

    Raises:
        PalimpsestError: If the prompt is longer than the tokenizer allows.
    """
    ids = tuple(_ids(tokenizer, text)[0].tolist())
    position, words = 1, []
    for word in text.split():
        count = len(tokenizer(word, add_special_tokens=False).input_ids)
        words.append(Word(word, tuple(range(position, position + count))))
        position += count
    if position >= len(ids):
        raise PalimpsestError(
            f"The prompt has {position - 1} tokens, this model takes {len(ids) - 2}: shorten it."
        )
    return PromptTokens(ids, tuple(words), position + 1)
