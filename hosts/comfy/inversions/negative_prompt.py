"""Negative-prompt inversion on ComfyUI's MODEL, CONDITIONING and LATENT."""

from torch import Tensor

from ....pipelines.couplings import Convention
from ....pipelines.errors import PalimpsestError
from ....pipelines.inversion.negative_prompt import negative_prompt
from ....pipelines.trajectory import Trajectory
from ..attention import require_unet
from ..cost import Spent
from ..guidance import RESTRICTED, Conditioning, carried_by
from ..refusals import require_variance_preserving
from .ddim import invert_ddim
from .picture import Picture


def invert_negative_prompt(
    picture: Picture,
    *,
    interpolation: float = 0.0,
    convention: Convention = "destination",
) -> tuple[Trajectory, Spent]:
    """Negative-prompt inversion.

    Args:
        picture: The picture, at cfg 1; its negative is only read above interpolation 0.
        interpolation: See `negative_prompt`.
        convention: See `couplings.ddim`.

    Raises:
        PalimpsestError: If the model has no UNet, or a prompt is more than one embedding.
    """
    require_variance_preserving(picture.model, picture.feature)
    require_unet(picture.model.model, picture.feature, instead="take Invert (DDIM)")
    source = embedding_of(picture.positive, "positive", picture)
    null = embedding_of(picture.negative, "negative", picture) if interpolation else None
    chain, spent = invert_ddim(picture, convention=convention, refinement=0)
    return negative_prompt(chain, source, null, interpolation), spent


def embedding_of(conditioning: Conditioning, role: str, picture: Picture) -> Tensor:
    """[1 or B, tokens, channels] the one embedding that a CONDITIONING is.

    Raises:
        PalimpsestError: If it is several, or not one for each picture.
    """
    if len(conditioning) != 1:
        raise PalimpsestError(
            f"The {role} has {len(conditioning)} entries (combined, scheduled or regional "
            f"prompts), {picture.feature} takes one prompt: connect a plain CLIP Text Encode."
        )
    restricted = carried_by(conditioning[0], RESTRICTED)
    if restricted:
        raise PalimpsestError(
            f"The {role} carries {restricted}, which the embedding that {picture.feature} passes "
            "on would lose: connect the CLIP Text Encode itself."
        )
    embedding, pictures = conditioning[0][0], len(picture.samples)
    if len(embedding) not in (1, pictures):
        raise PalimpsestError(
            f"The {role} holds {len(embedding)} prompts, {pictures} pictures shall be inverted: "
            "give one prompt, or one for each picture."
        )
    return embedding
