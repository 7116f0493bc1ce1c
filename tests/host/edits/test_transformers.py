"""Attention control in every transformer that it knows, beside explicit maps inside ComfyUI."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from palimpsest.hosts.comfy.coordinates import coordinates_of, host_levels
from palimpsest.hosts.comfy.edits.bound import BoundControl
from palimpsest.hosts.comfy.edits.edit import EditRequest, edit
from palimpsest.hosts.comfy.inversions.ddim import invert_ddim
from palimpsest.hosts.comfy.inversions.picture import Picture
from palimpsest.hosts.comfy.masks import pixel_mask
from palimpsest.hosts.comfy.schedules import schedule
from palimpsest.hosts.comfy.session import run as in_a_session
from palimpsest.pipelines.attention.consist_edit import ConsistEdit
from palimpsest.pipelines.attention.keep_rest import KeepRest
from palimpsest.pipelines.attention.local_blend import LocalBlend
from palimpsest.pipelines.attention.masactrl import MasaCtrl
from palimpsest.pipelines.attention.plug_and_play import PlugAndPlay
from palimpsest.pipelines.attention.prompt_to_prompt import rewrite_prompt
from palimpsest.pipelines.attention.stack import stacked
from palimpsest.pipelines.attention.things import Things
from palimpsest.pipelines.attention.word_maps import columns_of
from palimpsest.pipelines.correction import DIRECT_INVERSION
from palimpsest.pipelines.errors import PalimpsestError
from palimpsest.tests.host import flow
from palimpsest.tests.host.edits.test_edit import relative
from palimpsest.tests.host.shapes import latent_for, make_wan
from palimpsest.tests.host.transformers import FAMILIES, explicitly, prompt
from palimpsest.tests.unit.maps import attention_maps, look
from palimpsest.tests.unit.prompts import prompt as described

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.usefixtures("as_core_runs_nodes")

STEPS = 4

#: Fused attention beside explicit maps, in float32, over all blocks and steps.
SAME = 1e-4

#: The same of what a control moves a result by: tiny models move little.
OF_ITS_WORK = 1e-2

SIDES = (8, 6)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.make()


@dataclass(frozen=True, eq=False)
class Case:
    """An edit of a tiny model."""

    model: object
    control: object = None
    source: object = None
    target: object = None
    negative: object = None
    cfg: float = 1.0
    sides: tuple = SIDES
    batch: int = 1

    def request(self):
        height, width = self.sides
        latent = latent_for(self.model, self.batch, height=height, width=width)
        source, target = self.source or prompt(1), self.target or prompt(2)
        levels = schedule(self.model, "simple", STEPS, 0.5)
        picture = Picture(self.model, source, prompt(0), latent, levels, 1.0, "Invert")
        trajectory, _ = invert_ddim(picture, convention="destination", refinement=0)
        control = self.control and BoundControl(self.control, source[0][0], target[0][0], "It")
        return EditRequest(
            self.model,
            trajectory,
            source,
            target,
            self.negative or prompt(0),
            self.cfg,
            control,
            None,
            DIRECT_INVERSION,
        )


@dataclass(frozen=True)
class Silent:
    """Has the source run in every step, and reads nothing."""

    def source_role(self, role):
        return role if role == "cond" else None

    def active(self, at):
        return True

    def reads(self, site, at):
        return False

    def kept(self, site, own, at):
        return own

    def terms(self, own, source, site, at):
        return None


def tokens_of(family, sides=SIDES):
    return math.prod(-(-n // family.patch) for n in sides)


def by_explicit_maps(family, case, rewrite):
    """The edit whose attention is made of explicit maps, by another pack's slot."""
    image = tokens_of(family, case.sides)
    options = {name: getattr(family, name) for name in ("image_first", "refiners", "round")}
    clone = explicitly(case.model, image, rewrite, **options)
    request = replace(case, control=Silent()).request()
    bounded = isinstance(case.control, KeepRest)
    request = replace(request, model=clone, mask=pixels(case.model) if bounded else None)

    def algorithm(session):
        return request.start(session).run().latent

    coordinates = coordinates_of(clone, "Edit")
    levels = host_levels(coordinates, request.trajectory.sigmas)
    origin = request.trajectory.origin
    latent, _ = in_a_session(request.guider(), origin, levels, algorithm, coordinates=coordinates)
    return case.model.model.process_latent_out(latent)


def pixels(model):
    """`EDITED` as a MASK of the picture's pixels."""
    return pixel_mask(EDITED, model)


def with_image(own, image, at):
    return torch.cat([own[:, : at.start], image, own[:, at.stop :]], 1)


def places(qkv, image, references):
    """Where the image's tokens are: the last but for the references."""
    end = qkv[0].shape[1] - references
    return slice(end - image, end)


SOURCE, TARGET = (described(text, flow.TOKENS) for text in ("a red cat", "a blue dog"))
REWRITTEN = rewrite_prompt(
    SOURCE, TARGET, cross_window=(0.0, 0.6), self_window=(0.0, 0.3), weights={"blue": 2.0}
)


def prompt_to_prompt(image, references=0):
    """As published, the image's queries on either side of the softmax."""
    mapping, weights = (t.float() for t in (REWRITTEN.alignment.mapping, REWRITTEN.weights))

    def rewrite(own, source, heads, step):
        at, there = (places(qkv, image, references) for qkv in (own, source))
        maps, theirs = (attention_maps(q, k, heads) for q, k, _ in (own, source))
        edited, shown = maps[..., at, :].clone(), theirs[..., there, :]
        if step < int(0.6 * (STEPS + 1)):
            known = len(mapping)
            edited[..., :known] = (shown[..., :known] @ mapping) * weights
        if step < int(0.3 * (STEPS + 1)):
            edited[..., at] = shown[..., there]
        return look(
            torch.cat([maps[..., : at.start, :], edited, maps[..., at.stop :, :]], -2), own[2]
        )

    return rewrite


def masactrl(image, references=0):
    """The image's keys and values of the source, in all of the blocks."""

    def rewrite(own, source, heads, step):
        at, there = (places(qkv, image, references) for qkv in (own, source))
        k, v = (with_image(t, s[:, there], at) for t, s in zip(own[1:], source[1:], strict=True))
        return look(attention_maps(own[0], k, heads), v)

    return rewrite


#: Where the tests edit, of cells.
EDITED = torch.zeros(1, 1, *SIDES)
EDITED[..., 2:5, 2:4] = 1


def consist_edit(image, references=0):
    """Structure in half of the steps, and outside of the edit to the end."""
    patch = 1 if image == math.prod(SIDES) else 2
    cells = EDITED.unfold(2, patch, patch).unfold(3, patch, patch)
    m = cells.amax((-2, -1)).flatten()[:, None]

    def rewrite(own, source, heads, step):
        at, there = (places(qkv, image, references) for qkv in (own, source))
        shares = (torch.ones_like(m) if step < 2 else 1 - m,) * 2 + (1 - m,)
        q, k, v = (
            with_image(t, a * s[:, there] + (1 - a) * t[:, at], at)
            for t, s, a in zip(own, source, shares, strict=True)
        )
        return look(attention_maps(q, k, heads), v)

    return rewrite


def keep_rest(image, references=0):
    """Keys and values of the source outside of the edit, in all of the blocks."""
    patch = 1 if image == math.prod(SIDES) else 2
    cells = EDITED.unfold(2, patch, patch).unfold(3, patch, patch)
    m = cells.amax((-2, -1)).flatten()[:, None]

    def rewrite(own, source, heads, step):
        at, there = (places(qkv, image, references) for qkv in (own, source))
        k, v = (
            with_image(t, (1 - m) * s[:, there] + m * t[:, at], at)
            for t, s in zip(own[1:], source[1:], strict=True)
        )
        return look(attention_maps(own[0], k, heads), v)

    return rewrite


CONTROLS = {
    "Prompt-to-Prompt": (REWRITTEN, prompt_to_prompt),
    "MasaCtrl": (MasaCtrl((0.0, 1.0), (0.0, 1.0)), masactrl),
    "Keep the Rest": (KeepRest(Things(region=EDITED)), keep_rest),
    "ConsistEdit": (ConsistEdit((0.0, 0.5), things=Things(region=EDITED)), consist_edit),
}


def check(family, case, restated, references=0):
    """An edit is that of explicit maps, and another than that without the control."""
    ours = edit(case.request()).latent
    image = tokens_of(family, case.sides)
    behind = references + -image % family.round
    expected = by_explicit_maps(family, case, restated(image, behind))
    free = edit(replace(case, control=None).request()).latent
    assert relative(ours, expected) < min(SAME, OF_ITS_WORK * relative(ours, free))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_does_in_every_family_what_its_maps_say(family, model, name):
    control, restated = CONTROLS[name]
    check(family, Case(model, control), restated)


@pytest.mark.parametrize("sides", [(7, 5), (9, 4)])
def test_of_odd_sides_too(family, model, sides):
    check(family, Case(model, REWRITTEN, sides=sides), prompt_to_prompt)


@pytest.mark.parametrize("name", ["Prompt-to-Prompt", "MasaCtrl"])
def test_of_prompts_of_other_lengths_too(family, model, name):
    """Behind the words of the prompts stand tokens of other nodes, more of them in the source."""
    control, restated = CONTROLS[name]
    longer = {"source": appended(prompt(1), 19), "target": appended(prompt(2), 4)}
    check(family, Case(model, control, **longer), restated)


def appended(conditioning, count):
    """A prompt with more tokens behind its own, as Apply Style Model makes it."""
    (states, more), generator = conditioning[0], torch.Generator().manual_seed(count)
    added = torch.randn(1, count, states.shape[-1], generator=generator)
    return [[torch.cat([states, added], 1), more]]


def test_every_picture_of_a_batch_is_its_own(family, model):
    case = Case(model, REWRITTEN, batch=2)
    both = edit(case.request())
    request = case.request()
    for row in range(2):
        one = replace(
            request.trajectory,
            latents=request.trajectory.latents[:, row : row + 1],
            origin=request.trajectory.origin[row : row + 1],
        )
        alone = edit(replace(request, trajectory=one))
        assert relative(both.latent[row : row + 1], alone.latent) < SAME


@pytest.mark.parametrize("tokens", [flow.TOKENS, flow.TOKENS + 4])
def test_under_guidance_the_rows_of_the_prompt_alone_are_controlled(family, model, tokens):
    """A negative of another length has a call of its own."""
    case = Case(model, REWRITTEN, cfg=2.0, negative=prompt(3, tokens))
    check(family, case, prompt_to_prompt)
    request, calls = case.request(), []
    clone = model.clone()

    def count(executor, x, *args, **more):
        calls.append(len(x))
        return executor(x, *args, **more)

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    edit(replace(request, model=clone))
    assert (2 in calls) == (tokens == flow.TOKENS or family.pads)


REFERENCED = ("Flux.1", "Flux.2", "Qwen-Image")


@pytest.mark.parametrize("name", ["Prompt-to-Prompt", "MasaCtrl", "ConsistEdit"])
@pytest.mark.parametrize("of", REFERENCED)
def test_tokens_of_reference_pictures_stay_their_own(of, name):
    family = FAMILIES[of]
    model = family.make()
    control, restated = CONTROLS[name]
    shown = {"reference_latents": [latent_for(model, height=4, width=4)]}
    source, target = ([[states, more | shown]] for ((states, more),) in (prompt(1), prompt(2)))
    case = Case(model, control, source=source, target=target)
    check(family, case, restated, references=tokens_of(family, (4, 4)))


def test_other_reference_pictures_than_the_sources_are_refused():
    model = FAMILIES["Flux.1"].make()
    (states, more) = prompt(2)[0]
    target = [[states, more | {"reference_latents": [latent_for(model, height=4, width=4)]}]]
    with pytest.raises(PalimpsestError, match="carries 0 reference pictures, the target 1"):
        edit(Case(model, REWRITTEN, target=target).request())


def test_local_blend_finds_its_words_and_keeps_the_rest(family, model):
    """Random maps are nearly even: the threshold is near to the largest value."""
    words = columns_of([(2,), ()], flow.TOKENS)[None]
    sides = (24, 20)
    at = {}
    for threshold in (0.0, 0.97, 1.0):
        control = stacked([REWRITTEN, LocalBlend(words, words, threshold=threshold, start=0.0)])
        request = Case(model, control, sides=sides).request()
        outcome = edit(request)
        assert outcome.bounds.shape == (1, 1, *sides)
        kept, origin = (
            t.reshape(*t.shape[:2], *sides) for t in (outcome.latent, request.trajectory.origin)
        )
        outside = outcome.bounds[0, 0] == 0
        assert torch.equal(kept[:, :, outside], origin[:, :, outside])
        at[threshold] = outside.float().mean().item()
    assert at[0.0] == 0 < at[0.97] < at[1.0] == 1


def test_a_mask_of_the_users_bounds_it_bit_for_bit(family, model):
    of = torch.zeros(1, flow.TOKENS, 2)
    control = stacked([REWRITTEN, LocalBlend(of, of, start=0.0, region=EDITED[0], join="replace")])
    request = Case(model, control).request()
    outcome, inside = edit(request), EDITED[0, 0] > 0
    kept, origin = (
        t.reshape(*t.shape[:2], *SIDES) for t in (outcome.latent, request.trajectory.origin)
    )
    assert torch.equal(kept[:, :, ~inside], origin[:, :, ~inside])
    assert not torch.equal(kept[:, :, inside], origin[:, :, inside])


def test_another_nodes_attention_is_asked_for_every_term(family, model):
    """As sage-attention nodes do: in the one slot that there is, whatever core hands on."""
    calls = []

    def override(func, *args, **options):
        calls.append(1)
        return func(*args, **options)

    request = Case(model, REWRITTEN).request()
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    assert relative(edit(replace(request, model=clone)).latent, edit(request).latent) < SAME
    assert len(calls) > 2 * STEPS * family.blocks


def test_what_cuts_tokens_is_refused(family, model):
    """A node that shows the network a part of the picture."""
    request = Case(model, REWRITTEN).request()
    clone = model.clone()

    def cut(executor, x, *args, **more):
        return executor(x[..., :4], *args, **more)

    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "cut", cut)
    with pytest.raises(PalimpsestError, match="cuts, merges or adds tokens"):
        edit(replace(request, model=clone))


def test_a_prompt_with_an_attention_mask_is_refused():
    model = FAMILIES["Flux.1"].make()
    tokens = flow.TOKENS + tokens_of(FAMILIES["Flux.1"])
    mask = torch.zeros(1, tokens, tokens)
    mask[..., 0] = -1.0
    masked = {"attention_mask": mask, "attention_mask_img_shape": (4, 3)}
    states, more = prompt(2)[0]
    with pytest.raises(PalimpsestError, match="carries an attention mask"):
        edit(Case(model, REWRITTEN, target=[[states, more | masked]]).request())


@pytest.mark.parametrize(
    ("control", "said"),
    [
        (PlugAndPlay(), "It needs a UNet with cross-attention"),
        (stacked([REWRITTEN, PlugAndPlay()]), "It needs a UNet with cross-attention"),
        (stacked([ConsistEdit(), PlugAndPlay()]), "some on UNets and others on transformers"),
    ],
)
def test_a_control_for_unets_is_refused(model, control, said):
    with pytest.raises(PalimpsestError, match=said):
        edit(Case(model, control).request())


def test_consistedit_is_refused_on_a_unet(sd1):
    bound = BoundControl(ConsistEdit(), name="ConsistEdit")
    said = r"ConsistEdit needs a transformer .*\(Flux, .*\), the model is BaseModel"
    with pytest.raises(PalimpsestError, match=said):
        bound.check_edit(sd1.model, prompt(1), prompt(2), prompt(0))


def test_a_transformer_without_joint_attention_is_refused():
    bound = BoundControl(MasaCtrl(), name="MasaCtrl")
    said = r"MasaCtrl needs a UNet .*, or a transformer .*, the model is WAN21"
    with pytest.raises(PalimpsestError, match=said):
        bound.check_edit(make_wan(), prompt(1), prompt(2), prompt(0))


def test_the_model_is_left_as_it_was(family, model):
    before = str(model.model_options)
    edit(Case(model, REWRITTEN).request())
    assert str(model.model_options) == before


def test_the_help_lists_the_families_that_are_tested_and_no_others():
    page = (ROOT / "web" / "docs" / "PalimpsestPromptToPrompt.md").read_text(encoding="utf-8")
    section = page.split("## Models\n")[1].split("\n## ")[0]
    _, *lists = re.findall(r"^- \*\*(.*?)\*\*:", section, re.MULTILINE)
    named = [name for line in lists for name in line.split(", ")]
    assert sorted(named) == sorted([*FAMILIES, "SD 3"])
