"""Nodes that turn a picture into the noise it came from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...hosts.comfy.edits.bound import BoundControl
from ...hosts.comfy.inversions.ddim import invert_ddim
from ...hosts.comfy.inversions.features import MIB, feature_store, features_text
from ...hosts.comfy.inversions.picture import Picture
from ...pipelines.attention.control import FeatureControl
from ...pipelines.attention.features import FeatureRecorder
from ...pipelines.couplings import Convention
from ...pipelines.errors import PalimpsestError
from ...pipelines.inversion.noise_regularisation import NoiseRegularisation, shifts_of
from ...pipelines.solvers import averaged, fixed_point
from ..inputs import taken
from ..wires import Control
from .shared import (
    ANY_MODEL,
    SIGMAS_IN,
    Asked,
    InvertNode,
    convention_input,
    inversion,
    negative_input,
    picture_inputs,
)

NAME = "Invert (DDIM)"

CFG = io.Float.Input(
    "cfg",
    default=1.0,
    min=0.0,
    max=30.0,
    step=0.1,
    tooltip="Guidance while inverting. 1 is the published choice; higher values "
    "need the negative and invert less exactly.",
)
REFINEMENT = io.Int.Input(
    "refinement",
    default=0,
    min=0,
    max=20,
    tooltip="Extra model calls per step that make the way back exact. Edit does "
    "not need them; sampling the noise with core's samplers does: try 4.",
)
AVERAGING = io.Boolean.Input(
    "averaging",
    default=False,
    optional=True,
    tooltip="Average what the refinement visits, as ReNoise does, in place of "
    "accelerating it. Read with a refinement of 1 or more.",
    advanced=True,
)
SOURCE_FEATURES = io.Combo.Input(
    "source_features",
    options=["off", "memory", "disk"],
    default="off",
    optional=True,
    tooltip="Keep what the control is going to read of the source, so that Edit "
    "need not run the source again. Needs the control and convention current.",
    advanced=True,
)
FEATURE_BUDGET = io.Int.Input(
    "feature_budget",
    default=1024,
    min=1,
    max=1_000_000,
    optional=True,
    tooltip="MiB that the source features may take. Where they take more, none "
    "are kept, the node says how much it would be, and Edit works as usual.",
    advanced=True,
)
CONTROL = Control.Input(
    "control",
    optional=True,
    tooltip="The one that Edit will use; only read to keep source features.",
)
REGULARISATION = io.Int.Input(
    "regularisation",
    default=0,
    min=0,
    max=100,
    optional=True,
    tooltip="Rounds that draw every predicted noise towards white noise, as pix2pix-zero does: 5 "
    "is published, 0 is off. Costs no model call. Needs a refinement of 0.",
    advanced=True,
)
REGULARISATION_SEED = io.Int.Input(
    "regularisation_seed",
    default=0,
    min=0,
    max=0xFFFFFFFFFFFFFFFF,
    optional=True,
    tooltip="Of the rolls by which the regularisation compares neighbours: the same seed gives the "
    "same bits. Read with a regularisation of 1 or more.",
    advanced=True,
)


class InvertDDIM(InvertNode):
    """DDIM inversion, plain or refined."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return inversion(
            node_id="PalimpsestInvertDDIM",
            display_name="Invert (DDIM, Unsampler)",
            description="Traces a picture back to the noise that the model would paint it from, "
            "and records every stage on the way: the trajectory that Edit works along.",
            search_aliases=[
                "unsampler",
                "ddim inversion",
                "unsample",
                "invert image",
                "real image editing",
                "noise from image",
                "aidi",
                "renoise",
                "rf inversion",
            ],
            inputs=[
                *picture_inputs(model=ANY_MODEL),
                CFG,
                convention_input(),
                REFINEMENT,
                SIGMAS_IN,
                negative_input("Only needed where cfg is not 1."),
                AVERAGING,
                SOURCE_FEATURES,
                FEATURE_BUDGET,
                CONTROL,
                REGULARISATION,
                REGULARISATION_SEED,
            ],
        )

    @classmethod
    def invert(
        cls,
        cfg: float,
        convention: Convention,
        refinement: int,
        averaging: bool = False,
        regularisation: int = 0,
        regularisation_seed: int = 0,
        **wires: Any,
    ) -> io.NodeOutput:
        features, asked = taken(SourceFeatures, wires), Asked(**wires)
        picture = asked.picture(NAME, cfg=cfg)
        recorder = features.recorder(picture)
        made = invert_ddim(
            picture,
            convention=convention,
            refinement=refinement,
            solve=averaged if averaging else fixed_point,
            regularise=_regularise(regularisation, regularisation_seed),
            recorder=recorder,
        )
        return asked.inverted(*made, features.told(recorder))


def _regularise(rounds: int, seed: int) -> Callable[[Tensor], Tensor] | None:
    """What becomes of every predicted noise; None leaves it."""
    if not rounds:
        return None
    return partial(NoiseRegularisation(rounds), shift=shifts_of(seed))


@dataclass(frozen=True, eq=False)
class SourceFeatures:
    """What is kept of the source for later edits, by the names of the inputs."""

    source_features: str = "off"
    feature_budget: int = 1024
    control: BoundControl | None = None

    def recorder(self, picture: Picture) -> FeatureRecorder | None:
        """What keeps the source features of an inversion, if they are wanted."""
        if self.source_features == "off":
            return None
        if self.control is None:
            raise PalimpsestError(
                f"source_features is {self.source_features}, but no control is connected: connect "
                "the control that Edit will use, or set source_features to off."
            )
        if isinstance(self.control.control, FeatureControl):
            raise PalimpsestError(
                f"Source features do not serve {self.control.name}, which reads more: "
                "set source_features to off."
            )
        self.control.check_source(picture.positive, "positive")
        budget, store = self.feature_budget * MIB, feature_store(self.source_features)
        return FeatureRecorder(self.control.control, picture.sigmas, budget, store)

    def told(self, recorder: FeatureRecorder | None) -> str:
        """What became of them, for people."""
        if recorder is None:
            return ""
        return features_text(recorder.needed, recorder.budget, self.source_features)


NODES = [InvertDDIM]
