"""What bad input to the SDE family gets: one clear sentence, and a server that goes on."""

from itertools import product

import pytest
import torch
from palimpsest.tests.harness import Failed, Refused
from palimpsest.tests.server.graphs import WALK, Painting, put_latent, told
from palimpsest.tests.server.test_bad_input import clear, other_model

CYCLE, DIFFEDIT, INPAINT = "PalimpsestCycleSDE", "PalimpsestDiffEdit", "PalimpsestInpaint"
SDEDIT, NOISE, SWEEP = "PalimpsestSDEdit", "PalimpsestSDEditNoise", "PalimpsestSDEditSweep"
POINTS, DRAG, PASTE = "PalimpsestDragPoints", "PalimpsestSDEDrag", "PalimpsestCopyPaste"

CASES = {}


def case(node, *words):
    """A function that makes a bad graph; the node that refuses it, and what it has to say."""

    def register(make):
        CASES[make.__name__.removeprefix("_").replace("_", " ")] = (make, node, words)
        return make

    return register


@pytest.fixture(scope="module")
def refused(server):
    """Asserts that a graph is refused; after the first refusal of each node a good one runs."""
    tried = set()

    def refused(made, node, words):
        assert_refused(server, made, node, words)
        if node not in tried:
            good = Painting()
            good.save(good.sdedit(steps=1)[0], "after")
            server.run(good)
            tried.add(node)

    return refused


def assert_refused(server, made, node, words):
    graph, latent = made
    graph.save(latent, "never")
    before = left_behind(server)
    with pytest.raises(Failed) as caught:
        server.run(graph)
    message = caught.value.message
    assert caught.value.node_type == node, message
    assert clear(message), message
    assert all(word in message for word in words), message
    assert left_behind(server) == before


def left_behind(server):
    """Files in the output folder, but those of the good run afterwards."""
    found = (server.base / "output").rglob("*")
    return {path for path in found if path.is_file() and not path.name.startswith("after")}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_in_one_clear_sentence(server, refused, name):
    make, node, words = CASES[name]
    refused(make(server), node, words)


# --- what all nodes of latents refuse

LATENTS = {CYCLE: "cycle", DIFFEDIT: "diffedit", INPAINT: "inpaint", SDEDIT: "sdedit"}
LATENTS |= {NOISE: "noised", SWEEP: "sweep"}


def on_latent(graph, node, latent):
    return graph, getattr(graph, LATENTS[node])(latent=latent)[0]


def as_latent(graph, node, made):
    """Sweep gives pictures, which are encoded so that there is a latent to save."""
    graph, out = made
    if node == SWEEP:
        out = graph.add("VAEEncode", pixels=out, vae=graph.model[2])[0]
    return graph, out


@pytest.mark.parametrize("node", LATENTS)
def test_a_noise_mask_is_refused(refused, node):
    graph = Painting()
    wires = {"samples": graph.encoded[0], "mask": graph.scene[1]}
    masked = graph.add("SetLatentNoiseMask", **wires)
    made = as_latent(graph, node, on_latent(graph, node, masked[0]))
    refused(made, node, ("noise mask", "remove Set Latent Noise Mask"))


BAD_LATENTS = {
    "NaN": (torch.full((1, 4, 16, 16), float("nan")), ("NaN", "VAE")),
    "infinite": (torch.full((1, 4, 16, 16), float("inf")), ("NaN", "VAE")),
    "channels": (torch.ones(1, 16, 16, 16), ("16", "this model takes [batch, 4", "own VAE")),
}


# What is infinite is found as NaN is: once is enough.
@pytest.mark.parametrize(
    ("node", "kind"),
    [(SDEDIT, "infinite"), *product([*LATENTS, PASTE], ["NaN", "channels"])],
)
def test_a_latent_that_the_model_cannot_take_is_refused(server, refused, node, kind):
    samples, words = BAD_LATENTS[kind]
    graph = Painting()
    name = put_latent(server, samples, f"sde_{kind}")
    loaded = graph.add("LoadLatent", latent=name)
    if node == PASTE:
        made = graph, graph.copy_paste(graph.noised(), latent=loaded[0])[0]
    else:
        made = as_latent(graph, node, on_latent(graph, node, loaded[0]))
    refused(made, node, words)


@pytest.mark.parametrize("node", [CYCLE, DIFFEDIT, INPAINT, SDEDIT, DRAG])
def test_a_mask_batch_that_does_not_match_is_refused(refused, node):
    graph = Painting(batch=2)
    image = graph.add("RepeatImageBatch", image=graph.scene[0], amount=2)
    three = graph.add("RepeatImageBatch", image=graph.scene[0], amount=3)
    mask = graph.add("ImageToMask", image=three[0], channel="red")
    if node == DRAG:
        made = graph.drag(mask=mask[0], image=image[0])
    else:
        made = getattr(graph, LATENTS[node])(mask=mask[0])
    refused((graph, made[0]), node, ("mask", "3", "2", "one for each picture"))


@pytest.mark.parametrize("node", [CYCLE, DIFFEDIT, DRAG])
def test_a_walk_of_no_step_is_refused(refused, node):
    graph = Painting()
    make = graph.drag if node == DRAG else getattr(graph, LATENTS[node])
    steps = WALK["steps"]
    words = (f"Strength 0 of {steps} steps leaves no step", f"raise it to at least {1 / steps}")
    refused((graph, make(t0=0.0)[0]), node, words)


@pytest.mark.parametrize("node", [INPAINT, SDEDIT, NOISE, SWEEP])
def test_a_schedule_without_so_many_levels_is_refused(refused, node):
    graph = Painting()
    part = {"strengths": "0.3", "unit": "denoise"} if node == SWEEP else {"strength": 0.3}
    made = getattr(graph, LATENTS[node])(steps=900, scheduler="simple", **part)
    words = ("levels", "fewer steps")
    refused(as_latent(graph, node, (graph, made[0])), node, words)


# --- Cycle-SDE and DiffEdit


@case(CYCLE, "needs a picture", "latent", "trajectory")
def _neither_a_latent_nor_a_trajectory(server):
    graph = Painting()
    edited = graph.cycle()
    del edited.inputs["latent"]
    return graph, edited[0]


@case(CYCLE, "trajectory", "another model")
def _the_trajectory_of_another_model(server):
    graph = Painting()
    other = other_model(server, graph)
    texts = [graph.add("CLIPTextEncode", clip=other[1], text=text)[0] for text in ("a cat", "")]
    wires = {"model": other[0], "source": texts[0], "target": texts[0], "negative": texts[1]}
    made = graph.cycle(**wires, source_cfg=3.0)
    return graph, graph.cycle(trajectory=made[1])[0]


@case(DIFFEDIT, "say the same", "change the target prompt")
def _one_prompt_twice_for_diffedit(server):
    graph = Painting()
    return graph, graph.diffedit(target=graph.source[0])[0]


# --- SDEdit


@case(SDEDIT, "sigma 900", "this model knows", "choose a strength from")
def _a_sigma_above_the_models(server):
    graph = Painting()
    return graph, graph.sdedit(unit="sigma", strength=900.0)[0]


@case(NOISE, "sigma 0", "this model knows")
def _a_sigma_of_0(server):
    graph = Painting()
    return graph, graph.noised(unit="sigma", strength=0.0)[0]


@case(NOISE, "t0 (VE) 1", "this model knows", "choose a strength from")
def _a_t0_that_is_more_noise_than_the_model_knows(server):
    graph = Painting()
    return graph, graph.noised(unit="t0 (VE)", strength=1.0)[0]


@case(SDEDIT, "above 0 and at most 1", "denoise", "got 5")
def _a_denoise_of_5(server):
    graph = Painting()
    return graph, graph.sdedit(unit="denoise", strength=5.0)[0]


@case(NOISE, "latent is (1, 4, 8, 8)", "inverted picture's size")
def _inverted_noise_of_another_size(server):
    graph = Painting()
    inverted = graph.add(
        "PalimpsestInvertDDIM",
        model=graph.model[0],
        positive=graph.source[0],
        latent=graph.encoded[0],
        steps=1,
        scheduler="simple",
        strength=1.0,
        cfg=1.0,
        convention="destination",
        refinement=0,
    )
    small = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    return graph, graph.noised(noise=inverted[3], latent=small[0])[0]


def swept(**changes):
    graph = Painting()
    return as_latent(graph, SWEEP, (graph, graph.sweep(**changes)[0]))


@case(SWEEP, "strengths must be numbers", "'a, b'", "0.3, 0.5")
def _strengths_that_are_words(server):
    return swept(strengths="a, b")


@case(SWEEP, "strengths must be numbers", "' , '")
def _no_strengths(server):
    return swept(strengths=" , ")


@case(SWEEP, "above 0 and at most 1", "got 2")
def _a_strength_in_a_sweep_that_is_too_large(server):
    return swept(strengths="0.3, 2")


@case(SWEEP, "nan", "strength")
def _a_strength_that_is_not_a_number(server):
    return swept(strengths="nan", unit="sigma")


# --- Drag Points, SDE-Drag and Copy-Paste


def dragged(**changes):
    """SDE-Drag on points that were set so."""
    graph = Painting()
    options = {key: changes.pop(key) for key in ("radius", "region", "mask") if key in changes}
    return graph, graph.drag(graph.points(**changes), **options)[0]


@case(POINTS, "No points are set", "drag it to where")
def _no_points(server):
    return dragged(text="")


@case(POINTS, "cannot be read", "editor on Drag Points")
def _malformed_points(server):
    return dragged(text='{"version": 1, "size": [128, 128], "pairs": [[1, 2]]}')


@case(POINTS, "handle of drag 1", "outside the picture of 128 x 128")
def _points_outside_the_picture(server):
    return dragged(pairs=[[[200, 20], [10, 20]]])


@case(POINTS, "256 x 256", "128 x 128", "set the points anew")
def _points_of_another_pictures_size(server):
    return dragged(size=(256, 256))


@case(POINTS, "Drag 1 ends where it begins")
def _coincident_points(server):
    return dragged(pairs=[[[20, 20], [20, 20]]])


@case(DRAG, "one and the same latent cell of 8 x 8 pixels", "pull its target further")
def _points_in_one_latent_cell(server):
    return dragged(pairs=[[[17, 17], [22, 20]]])


@case(PASTE, "one and the same latent cell", "pull its target further")
def _points_in_one_latent_cell_of_copy_paste(server):
    graph = Painting()
    points = graph.points([[[17, 17], [22, 20]]])
    return graph, graph.copy_paste(graph.noised(), points)[0]


@case(DRAG, "points were set on a picture of 128 x 128", "96 x 64")
def _the_points_of_another_picture(server):
    graph = Painting()
    size = {"width": 96, "height": 64, "upscale_method": "area", "crop": "disabled"}
    small = graph.add("ImageScale", image=graph.scene[0], **size)
    return graph, graph.drag(image=small[0])[0]


@case(PASTE, "points were set on a picture of 128 x 128", "latent is of 64 x 64")
def _the_points_of_another_latent(server):
    graph = Painting()
    small = graph.add("EmptyLatentImage", width=64, height=64, batch_size=1)
    return graph, graph.copy_paste(graph.noised(latent=small[0]))[0]


@case(DRAG, "radius is 20 cells", "latent of 16 x 16", "at most 8")
def _a_radius_larger_than_the_picture(server):
    return dragged(radius=20)


@case(PASTE, "radius is 20 cells", "latent of 16 x 16", "at most 8")
def _a_radius_larger_than_the_latent(server):
    graph = Painting()
    return graph, graph.copy_paste(graph.noised(), radius=20)[0]


@case(DRAG, "radius is 0", "as set on Drag Points", "set unit on Drag Points to pixels")
def _no_radius_anywhere(server):
    return dragged(radius=0)


@case(PASTE, "radius is 0", "as set on Drag Points", "set unit on Drag Points to pixels")
def _no_radius_anywhere_for_copy_paste(server):
    graph = Painting()
    return graph, graph.copy_paste(graph.noised(), radius=0)[0]


@case(DRAG, "radius on Drag Points is 100 pixels", "picture of 128 x 128", "at most 64")
def _a_radius_in_pixels_that_is_larger_than_the_picture(server):
    graph = Painting()
    return graph, graph.drag(graph.points(radius=100, unit="pixels"), radius=0)[0]


@case(POINTS, "radius is 500 latent cells", "may be 128", "set unit to pixels")
def _a_radius_of_too_many_cells(server):
    graph = Painting()
    return graph, graph.drag(graph.points(radius=500, unit="latent cells"))[0]


@case(PASTE, "sigmas", "empty")
def _no_sigmas(server):
    graph = Painting()
    wishes = {"scheduler": "simple", "steps": 3, "denoise": 0.0}
    none = graph.add("BasicScheduler", model=graph.model[0], **wishes)
    return graph, graph.copy_paste(graph.noised(), sigmas=none[0])[0]


def painted(graph, value, x=0, y=0, width=128, height=128):
    """A mask of the picture that holds a value in a rectangle and 1 - value elsewhere."""
    around = graph.add("SolidMask", value=1.0 - value, width=128, height=128)
    part = graph.add("SolidMask", value=value, width=width, height=height)
    wires = {"destination": around[0], "source": part[0], "x": x, "y": y}
    operation = "add" if value else "multiply"
    return graph.add("MaskComposite", **wires, operation=operation)[0]


@case(DRAG, "mask keeps the handle of drag 1", "black", "paint it white")
def _a_mask_that_excludes_the_handle(server):
    graph = Painting()
    return graph, graph.drag(mask=painted(graph, 0.0, 48, 48, 16, 32))[0]


@case(DRAG, "mask keeps the target of drag 1", "black")
def _a_mask_that_excludes_the_target(server):
    graph = Painting()
    return graph, graph.drag(mask=painted(graph, 1.0, 48, 48, 20, 32))[0]


@case(DRAG, "region is black at cell (7, 7)", "paint what shall move")
def _a_region_that_excludes_the_handle(server):
    graph = Painting()
    return graph, graph.drag(region=painted(graph, 1.0, 80, 80, 16, 16))[0]


@case(PASTE, "region is black at cell (7, 7)", "paint what shall move")
def _a_region_of_copy_paste_that_excludes_the_handle(server):
    graph = Painting()
    region = painted(graph, 1.0, 80, 80, 16, 16)
    return graph, graph.copy_paste(graph.noised(), region=region)[0]


# --- numbers that no widget gives


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cycle", {"t0": 1.5}),
        ("cycle", {"steps": 0}),
        ("cycle", {"source_batch": 0}),
        ("diffedit", {"mask_draws": 0}),
        ("diffedit", {"mask_strength": 0.0}),
        ("sdedit", {"repeats": 0}),
        ("sdedit", {"eta": 1.5}),
        ("drag", {"stride": 0}),
        ("drag", {"beta": 2.0}),
        ("drag", {"radius": -1}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_a_number_out_of_range_is_not_queued(server, name, changes):
    graph = Painting()
    node = getattr(graph, name)(**changes)
    graph.save(node[0], "never")
    with pytest.raises(Refused) as caught:
        server.queue(graph)
    assert list(caught.value.node_errors) == [node.id]


def test_a_small_walk_of_a_large_schedule_is_taken(server):
    graph = Painting()
    edited = graph.cycle(steps=1000, scheduler="simple", t0=0.002)
    graph.save(edited[0], "walked")
    assert told(server.run(graph), edited).startswith("2 steps, 6 UNet rows")
