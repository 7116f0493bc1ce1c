"""Core's ModelSampling nodes: what they change counts as another model, and nothing else does."""

from dataclasses import replace

import pytest
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.fingerprint import guided_key
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import agree
from palimpsest.tests.host.edits.test_edit import latent_for
from palimpsest.tests.host.guests.verdicts import Row

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

OTHER = Row("ModelSampling nodes", "works, but", "said to predict something else than")
ROWS = (OTHER,)


def said_to_predict(model, kind, zsnr=False):
    return ModelSamplingDiscrete().patch(model, kind, zsnr)[0]


def test_a_trajectory_of_another_prediction_is_refused(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1), control=False))
    with pytest.raises(PalimpsestError, match=f"{OTHER.said} V_PREDICTION: connect"):
        edit(replace(made, model=said_to_predict(sd1.model, "v_prediction")))
    edit(replace(made, model=said_to_predict(sd1.model, "eps")))


def test_a_trajectory_that_does_not_say_is_taken(sd1):
    """Files of versions that did not write it down."""
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1), control=False))
    recipe = made.trajectory.recipe
    old = replace(recipe, model=recipe.model.replace('"prediction": "EPS", ', ""))
    assert old != recipe
    edit(replace(made, trajectory=replace(made.trajectory, recipe=old)))


def test_what_a_source_guess_depends_on_knows_the_sampling(sd1):
    made, _ = agree.request(sd1, agree.Setting(latent_for(sd1), control=False))
    key = lambda model: guided_key(model, made.source, made.negative, 3.0)
    eps, again, v, zsnr = (
        key(said_to_predict(sd1.model, *how))
        for how in (("eps",), ("eps",), ("v_prediction",), ("eps", True))
    )
    assert eps and eps == again
    assert len({key(sd1.model), eps, v, zsnr}) == 4
    assert key(sd1.model) == key(sd1.model.clone())
