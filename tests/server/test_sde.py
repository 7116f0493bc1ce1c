"""The SDE family in a real server, on the embedded model."""

import io

import torch
from palimpsest.tests.server.graphs import INPAINT, STRENGTH, WALK, Painting, relative, saved, told
from palimpsest.tests.server.pictures import as_tensor
from palimpsest.tests.server.test_running import HEADER, PREVIEW
from PIL import Image

STEPS = int(WALK["t0"] * WALK["steps"])
DOWN = STRENGTH["steps"]  # of SDEdit and its noise


def latents(server, graph, *nodes):
    """The history entry of a graph, and the samples of the first output of some of its nodes."""
    kept = [graph.save(node[0], "sde") for node in nodes]
    entry = server.run(graph)
    return entry, *(saved(server, entry, node) for node in kept)


# --- Cycle-SDE, DiffEdit, Inpaint


def test_an_unedited_picture_comes_back_number_for_number(server):
    graph = Painting()
    same = {"target": graph.source[0], "source_cfg": 3.0}
    sde, ode = (graph.cycle(process=process, **same) for process in ("sde", "ode"))
    entry, *pictures, origin = latents(server, graph, sde, ode, graph.encoded)
    assert all(torch.equal(latent, origin) for latent in pictures)
    assert told(entry, sde).startswith(f"{STEPS} steps, 0 UNet rows")
    assert told(entry, ode).startswith(f"{STEPS} steps, {STEPS} UNet rows")


def test_a_picture_is_edited_and_edited_again_along_the_same_noise(server):
    graph = Painting(batch=2)
    first = graph.cycle(mask=graph.scene[1])
    again = graph.cycle(mask=graph.scene[1], trajectory=first[1])
    del again.inputs["latent"]
    entry, edited, second, origin = latents(server, graph, first, again, graph.encoded)
    assert told(entry, again).startswith(f"{STEPS} steps, {2 * 2 * STEPS} UNet rows")
    assert torch.equal(second, edited)
    same = (edited == origin).all(1)
    assert 0.3 < same.float().mean() < 0.95
    assert same[:, 0].all()


def test_diffedit_gives_the_mask_that_it_painted_in(server):
    graph = Painting()
    edit = graph.diffedit()
    shown = graph.show(graph.add("MaskToImage", mask=edit[1])[0], "mask")
    entry, latent, origin = latents(server, graph, edit, graph.encoded)
    (mask,) = server.images(entry, shown.id)
    assert mask.size == (128, 128)
    found = as_tensor(mask)[::8, ::8, 0] == 1
    same = (latent == origin).all(1)[0]
    assert torch.equal(found, ~same)
    assert f"mask: {float(found.float().mean()):.0%} of the picture" in told(entry, edit)


def test_inpaint_paints_in_the_mask_alone(server):
    graph = Painting()
    ways = ({"process": "sde", "order": "1"}, {"process": "ode", "order": "2"})
    nodes = [graph.inpaint(**way) for way in ways]
    entry, *painted, origin = latents(server, graph, *nodes, graph.encoded)
    steps = INPAINT["steps"]
    for node, latent in zip(nodes, painted, strict=True):
        assert told(entry, node).startswith(f"{steps} steps, {2 * steps} UNet rows")
        same = (latent == origin).all(1)[0]
        assert 0.3 < same.float().mean() < 0.95 and same[0].all()
        assert bool(torch.isfinite(latent).all())


def test_a_seed_gives_the_same_bits_in_another_run(server):
    def painted(graph, seed):
        kinds = (graph.cycle, graph.diffedit, graph.sdedit, graph.inpaint)
        return [kind(seed=seed) for kind in kinds]

    graph = Painting()
    _, *first = latents(server, graph, *painted(graph, 1))
    graph = Painting()  # other wires and the same numbers: nothing comes from the cache
    graph.encoded = graph.add("RepeatLatentBatch", samples=graph.encoded[0], amount=1)
    again, others = painted(graph, 1), painted(graph, 2)
    entry, *found = latents(server, graph, *again, *others)
    assert all(entry["outputs"][node.id]["rows"][0] > 0 for node in again)
    for before, same, other in zip(first, found[:4], found[4:], strict=True):
        assert torch.equal(before, same)
        assert relative(other, before) > 1e-3


def test_all_of_the_schedule_may_be_walked(server):
    graph = Painting()
    edited = graph.cycle(steps=2, t0=1.0)
    entry, latent, origin = latents(server, graph, edited, graph.encoded)
    assert told(entry, edited).startswith("2 steps, 6 UNet rows")
    assert bool(torch.isfinite(latent).all()) and relative(latent, origin) > 1e-2


# --- SDEdit


def test_sdedit_says_where_it_began(server):
    graph = Painting(batch=2)
    painted = graph.sdedit(mask=graph.scene[1], repeats=2)
    entry, latent, origin = latents(server, graph, painted, graph.encoded)
    assert told(entry, painted).startswith(f"{DOWN} steps, {2 * 2 * 2 * DOWN} UNet rows")
    assert told(entry, painted).endswith("from sigma 3.42")
    same = (latent == origin).all(1)
    assert same[:, 0].all() and not same.all()


def test_a_noised_guide_is_painted_by_cores_sampler_as_by_sdedit(server):
    """The same noise down the ODE; rounding of some guided steps goes through the network."""
    graph = Painting()
    noised = graph.noised()
    core, ours = graph.finish(noised[0], noised[1]), graph.sdedit(eta=0.0)
    entry, by_core, by_us, origin = latents(server, graph, core, ours, graph.encoded)
    assert told(entry, noised) == f"sigma 3.42, {DOWN} steps"
    assert relative(by_core, by_us) < 1e-4
    assert relative(by_core, origin) > 1e-2


def test_a_noised_guide_enters_the_advanced_sampler(server):
    graph = Painting()
    noised = graph.noised(unit="denoise", strength=0.5)
    wires = {
        "model": graph.model[0],
        "positive": graph.target[0],
        "negative": graph.negative[0],
        "latent_image": noised[0],
    }
    schedule = {"steps": 2 * DOWN, "start_at_step": DOWN, "end_at_step": 10000}
    wishes = {
        "scheduler": "normal",
        "add_noise": "disable",
        "noise_seed": 0,
        "cfg": 3.0,
        "sampler_name": "euler",
        "return_with_leftover_noise": "disable",
    }
    advanced = graph.add("KSamplerAdvanced", **wires, **schedule, **wishes)
    custom = graph.finish(noised[0], noised[1])
    _, one, two = latents(server, graph, advanced, custom)
    assert relative(one, two) < 1e-5  # float32, the same levels


def test_noise_of_another_node_is_taken(server):
    graph = Painting()
    random = graph.add("RandomNoise", noise_seed=5)
    given = [graph.noised(noise=random[0], seed=n) for n in (1, 2)]
    _, one, two, own = latents(server, graph, *given, graph.noised())
    assert torch.equal(one, two)
    assert relative(one, own) > 0.1


def test_a_sweep_shows_every_strength_at_every_seed(server):
    graph = Painting()
    sweep = graph.sweep(mask=graph.scene[1])
    sheet, pictures = graph.show(sweep[0], "sheet"), graph.show(sweep[1], "swept")
    wishes = {"unit": "denoise", "strength": 0.6, "steps": 2, "seed": 2, "mask": graph.scene[1]}
    single = graph.decode(graph.sdedit(**wishes)[0], "alone")
    entry = server.run(graph)
    (page,) = server.images(entry, sheet.id)
    swept = server.images(entry, pictures.id)
    assert [picture.size for picture in swept] == [(128, 128)] * 4
    assert page.width > 2 * 128 and page.height > 2 * 128
    (alone,) = server.images(entry, single.id)
    assert alone.tobytes() == swept[3].tobytes()
    assert told(entry, sweep).startswith(f"{4 * 2 * 2} UNet rows")


# --- SDE-Drag and Copy-Paste


def test_copied_and_pasted_noise_is_finished_by_cores_sampler(server):
    graph = Painting()
    noised = graph.noised()
    pasted = graph.copy_paste(noised)
    core = graph.finish(pasted[0], noised[1], positive=graph.source[0])
    _, before, after, picture = latents(server, graph, noised, pasted, core)
    changed = (before != after).any(1)[0]
    # Squares of 4 x 4 around the cells (7, 7) and (10, 7), which overlap in one column.
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[5:9, 5:12] = True
    assert torch.equal(changed, expected)
    assert bool(torch.isfinite(picture).all())


def test_a_radius_in_pixels_drags_as_its_cells_do(server):
    graph = Painting()
    cells, pixels = graph.points(), graph.points(radius=16, unit="pixels")
    wired = graph.drag(cells, radius=cells[1], stride=3)
    carried = graph.drag(pixels, radius=0, stride=3)
    both = graph.drag(pixels, radius=pixels[1], stride=3)
    noised = graph.noised()
    pasted = graph.copy_paste(noised, cells), graph.copy_paste(noised, pixels, radius=0)
    _, *dragged, first, second = latents(server, graph, wired, carried, both, *pasted)
    assert all(torch.equal(latent, dragged[0]) for latent in dragged)
    assert torch.equal(first, second)


def test_a_drag_shows_every_step_while_it_runs(server):
    graph = Painting()
    drag = graph.drag(mask=graph.scene[1])
    frames, last = graph.show(drag[1], "path"), graph.decode(drag[0], "last")
    kept = [graph.save(latent, "dragged") for latent in (drag[0], graph.encoded[0])]
    heard = server.events(graph)
    assert heard[-1][0] == "execution_success", heard[-1]
    pictures = [data["bytes"] for kind, data in heard if kind == "preview"]
    assert [int.from_bytes(data[:4], "big") for data in pictures] == [PREVIEW] * 3
    shown = [Image.open(io.BytesIO(data[HEADER:])) for data in pictures]
    entry = server.wait(heard[-1][1]["prompt_id"])
    path = [as_tensor(picture) for picture in server.images(entry, frames.id)]
    assert len(path) == 3 + 1
    for live, frame in zip(shown, path[1:], strict=True):
        assert live.size == (128, 128)  # core fits previews into the size that is asked for
        assert float((as_tensor(live) - frame).abs().mean()) < 0.03  # JPEG
    (final,) = server.images(entry, last.id)
    assert torch.equal(as_tensor(final), path[-1])
    assert told(entry, drag).startswith(f"3 drag steps, {3 * (4 * STEPS - 1)} UNet rows")
    latent, origin = (saved(server, entry, node) for node in kept)
    same = (latent == origin).all(1)[0]
    assert same[0].all() and not same.all()


def test_a_dragged_batch_is_a_batch_at_every_step(server):
    graph = Painting()
    pictures = graph.add("ImageBatch", image1=graph.scene[0], image2=graph.scene[4])
    drag = graph.drag(image=pictures[0], stride=2)
    frames = graph.show(drag[1], "batch")
    entry, latent = latents(server, graph, drag)
    steps = int(told(entry, drag).split()[0])
    assert latent.shape == (2, 4, 16, 16)
    assert len(server.images(entry, frames.id)) == 2 * (steps + 1)


def test_a_drag_is_the_same_in_another_run(server):
    graph = Painting()
    _, first = latents(server, graph, graph.drag(stride=3))
    graph = Painting()  # another wire, the same picture: nothing comes from the cache
    image = graph.add("RepeatImageBatch", image=graph.scene[0], amount=1)[0]
    again, other = (graph.drag(seed=seed, image=image, stride=3) for seed in (1, 2))
    entry, same, different = latents(server, graph, again, other)
    assert entry["outputs"][again.id]["rows"][0] > 0
    assert torch.equal(first, same)
    assert relative(different, first) > 1e-3


def test_a_cancelled_drag_keeps_its_last_step(server):
    graph = Painting()
    points = graph.points([[[30, 60], [70, 60]]])
    steps = 5  # of 8 pixels each
    drag = graph.drag(points)
    frames = graph.show(drag[1], "whole")
    folder = server.base / "output" / "palimpsest"
    before = set(folder.glob("*.png"))
    asked = []

    def cancel_at_the_first_picture(kind, data):
        if kind == "preview" and not asked:
            asked.append(kind)
            server.interrupt()

    heard = server.events(graph, cancel_at_the_first_picture)
    kind, data = heard[-1]
    assert (kind, data["node_id"]) == ("execution_interrupted", drag.id)
    (kept,) = set(folder.glob("*.png")) - before
    outputs = [d["output"] for k, d in heard if k == "executed" and d["node"] == drag.id]
    ((image,), (text,)) = outputs[-1]["images"], outputs[-1]["palimpsest_text"]
    assert (image["filename"], image["subfolder"]) == (kept.name, "palimpsest")
    done = int(text.split()[2])
    assert text == f"cancelled after {done} of {steps} drag steps; kept as {kept.name}"
    assert 1 <= done < steps
    entry = server.run(graph)  # and the next run is whole
    path = [as_tensor(picture) for picture in server.images(entry, frames.id)]
    assert len(path) == steps + 1
    # Core's SaveImage cuts a picture's numbers to bytes, where ours rounds them.
    difference = (as_tensor(Image.open(kept)) - path[done]).abs()
    assert float(difference.max()) < 1.5 / 255
