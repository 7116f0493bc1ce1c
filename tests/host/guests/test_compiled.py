"""torch.compile: calls that a control looks into run the network as it is, all others compiled."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from palimpsest.hosts.comfy.edits.edit import edit
from palimpsest.hosts.comfy.inversions.style_diffusion import invert_style_diffusion
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.pipelines.inversion.style_diffusion import Fitting
from palimpsest.tests.host.edits.test_edit import relative
from palimpsest.tests.host.guests.kinds import (
    ROUNDING,
    SEEN,
    STEPS,
    asked,
    every_kind,
    inverted,
    structure,
    words,
)
from palimpsest.tests.host.guests.test_learning import picture_under
from palimpsest.tests.host.guests.verdicts import Row

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

IN_PLACE = "The model's network was compiled in its place"
ROWS = (
    Row("TorchCompileModel", "works, but"),
    Row("Networks compiled in their place", "refused", IN_PLACE),
)


class Baked(torch.nn.Module):
    """A network that never looks at its options again, as core has torch compile it."""

    def __init__(self, network):
        super().__init__()
        self.network, self.options, self.calls = network, None, 0
        self.dtype = network.dtype

    def forward(self, *args, transformer_options=None, **options):
        self.calls += 1
        self.options = self.options or transformer_options
        here = transformer_options | {
            key: self.options.get(key, {}) for key in ("patches", "patches_replace")
        }
        return self.network(*args, transformer_options=here, **options)


@pytest.fixture
def baked(monkeypatch):
    """What core's node makes with such a compiler: the model, and the networks."""
    made = []

    def compile_(model, **_):
        made.append(Baked(model))
        return made[-1]

    def put(model):
        with monkeypatch.context() as patched:
            patched.setattr(torch, "compile", compile_)
            return TorchCompileModel.execute(model, "inductor").args[0], made[-1]

    return put


@every_kind
def test_under_core_s_node_a_control_does_what_it_does_without(sd1, kind):
    """By torch itself, which never gets to compile here: every call of the edit is looked into."""
    model, chain = TorchCompileModel.execute(sd1.model, "eager").args[0], inverted(sd1)
    plain = edit(asked(sd1, chain, kind)).latent
    ours = edit(asked(sd1, chain, kind, model=model)).latent
    assert relative(ours, plain) < 1e-4  # the source runs apart: other sizes of batch


def test_what_no_control_looks_into_runs_compiled(sd1, baked):
    model, network = baked(sd1.model)
    chain = inverted(sd1, model)
    assert network.calls == STEPS
    assert relative(chain.denoised, inverted(sd1).denoised) < ROUNDING
    network.calls = 0
    made = asked(sd1, chain, words, model=model)
    ours = edit(made).latent
    assert network.calls == 0
    free = edit(replace(made, control=None)).latent
    assert network.calls == STEPS
    assert relative(ours, free) > SEEN


def test_what_was_learned_of_one_picture_does_not_stay_in_the_network(sd1, baked):
    model, _ = baked(sd1.model)
    for seed in (0, 1):
        fitting = Fitting(4, cfg=2.0, seed=seed)
        chain = invert_style_diffusion(picture_under(sd1, sd1.model), fitting)[0]
        made = asked(sd1, chain, cfg=2.0)
        assert torch.equal(edit(replace(made, model=model)).latent, edit(made).latent)


@pytest.mark.parametrize("part", ["diffusion_model", "diffusion_model.middle_block"])
@pytest.mark.parametrize("kind", [words, structure])
def test_a_network_that_is_compiled_in_its_place_is_refused(sd1, kind, part):
    chain, model = inverted(sd1), sd1.model.clone()
    network = model.get_model_object(part)
    model.add_object_patch(part, torch.compile(network, backend="eager"))
    with pytest.raises(PalimpsestError, match=IN_PLACE):
        edit(asked(sd1, chain, kind, model=model))
    comfy.model_management.unload_all_models()
    assert sd1.model.get_model_object(part) is network
