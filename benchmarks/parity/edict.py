"""EDICT beside the published code: both chains up, and both chains of an edit."""

from dataclasses import replace
from difflib import SequenceMatcher

import torch
from torch import Tensor

from ...hosts.diffusers.edict import invert_edict
from ...pipelines.attention.prompt_to_prompt import PromptToPrompt, token_weights
from ...pipelines.attention.tokens import Alignment, PromptTokens
from ...pipelines.denoiser import RowCount
from ...pipelines.errors import PalimpsestError
from ...pipelines.inversion.edict import Coupled
from ...pipelines.schedule import sigma_from_alpha, vp_scale
from .golden import Case, Folder, Result, error, input_latent


def run_edict(folder: Folder, case: Case) -> Result:
    """Inversion under the source prompt, then an edit, with attention control in the p2p cases."""
    settings, rows, sigmas = case.settings, RowCount(), _sigmas(folder, case)
    texts = (settings["prompt_src"], settings["prompt_tar"], "")
    source, target, empty = map(folder.prompt, texts)
    cfg, mixing = float(settings["guidance_scale"]), settings["mix_weight"]
    x0 = input_latent(folder, case).float() / vp_scale(sigmas[0]).float()
    trajectory = invert_edict(
        folder.unet, x0, source, empty, sigmas, cfg=cfg, mixing=mixing, rows=rows
    )
    control = None
    if case.method.endswith("p2p"):
        control = published_control(source.tokens, target.tokens)
    whole = folder.unet.edit(trajectory, source, target, empty, cfg=cfg, control=control, rows=rows)
    edited = replace(whole, record_at="edit").walk()
    top, low = vp_scale(sigmas[-1]), vp_scale(sigmas[0])
    ours = {
        "inv_x": trajectory.latents[-1] * top,
        "inv_y": trajectory.find(Coupled).partner[-1] * top,
        "edit_x": edited.x * low,
        "edit_y": edited.y * low,
    }
    return Result({key: error(z, case.tensors[key]) for key, z in ours.items()}, rows.rows)


def _sigmas(folder: Folder, case: Case) -> Tensor:
    """[N+1] rising levels of a case; on its grid the lowest two are equal.

    Raises:
        PalimpsestError: If the training steps do not divide by the case's: the published code then
            leaves its own grid, and no two of its steps agree about a level.
    """
    alphas, steps = folder.alphas_cumprod.double(), case.settings["steps"]
    if len(alphas) % steps:
        raise PalimpsestError(f"{len(alphas)} training steps do not divide by {steps} steps.")
    timesteps = sorted(case.settings["timesteps_used"])
    final = torch.tensor([case.settings["final_alpha_cumprod"]], dtype=torch.float64)
    if torch.isclose(final, alphas[:1], rtol=0, atol=1e-6):
        final = alphas[:1]  # the file rounds it
    return sigma_from_alpha(torch.cat([final, alphas[timesteps]]))


def published_control(source: PromptTokens, target: PromptTokens) -> PromptToPrompt:
    """The published control: common runs of tokens, and runs of equal length in their place.

    Padding counts as tokens. Cross-attention and every self-attention are replaced in all steps.
    """
    mapping = torch.zeros(len(source.ids), len(target.ids))
    matcher = SequenceMatcher(None, source.ids, target.ids)
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        if kind == "equal" or (kind == "replace" and a1 - a0 == b1 - b0):
            mapping[range(a0, a1), range(b0, b1)] = 1
    count = len(target.ids)
    return PromptToPrompt(
        Alignment(mapping, mapping.sum(0)),
        token_weights(count, {}),
        torch.tensor([[0.0, 1.0]] * count, dtype=torch.float64),
        self_window=(0.0, 1.0),
        self_pixels=2**31,
    )
