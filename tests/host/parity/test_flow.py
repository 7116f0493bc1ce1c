"""Parity with published flow editing, on cases that loops restated here make of small models.

The loops walk z = (1 - t) x0 + t n by velocities of diffusers' own networks; the bench runs ours in
both hosts.
"""

import json
from itertools import pairwise

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from palimpsest.benchmarks.parity import __main__ as parity
from palimpsest.benchmarks.parity import golden
from palimpsest.hosts.diffusers.transformer import packed, places, unpacked
from palimpsest.tests.host.tiny import randomise
from safetensors.torch import load_file, save_file

SIZE, TOKENS, WIDTH, STEPS = 8, 5, 24, 4
OMEGA, ZETA, PUSH, ALPHA = 7.5, 0.01, 5.0, 0.75


def flux():
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )


def sd3():
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=WIDTH,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def drawn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class FromTheSource:
    """An attention of SD 3 in which every second row has the image's queries and keys of the first.

    Rows are by turns of the source and of the target.
    """

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        heads = lambda t: t.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        image = {name: heads(getattr(attn, f"to_{name}")(hidden_states)) for name in "qkv"}
        text = {n: heads(getattr(attn, f"add_{n}_proj")(encoder_hidden_states)) for n in "qkv"}
        for name in "qk":
            image[name] = getattr(attn, f"norm_{name}")(image[name])
            text[name] = getattr(attn, f"norm_added_{name}")(text[name])
            image[name][1::2] = image[name][0::2]
        q, k, v = (torch.cat([image[name], text[name]], 2) for name in "qkv")
        maps = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        out = (maps @ v).transpose(1, 2).flatten(2)
        out, told = out.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return attn.to_out[0](out), told if attn.context_pre_only else attn.to_add_out(told)


@torch.no_grad()
def consist_edit(network, held):
    """[N+1, 2, ...] source and target from one noise, the first steps with the source's q and k."""
    own = dict(network.attn_processors)
    rows = [torch.cat([NOISES[0], NOISES[0]])]
    states, pooled = (
        torch.cat([PROMPTS[whose][part] for whose in ("neg", "neg", "src", "tgt")])
        for part in (0, 1)
    )
    for step, (t, t_next) in enumerate(pairwise(FALLING)):
        for block in network.transformer_blocks:
            if step < held:
                block.attn.set_processor(FromTheSource())
        z = rows[-1]
        v = network(
            hidden_states=torch.cat([z, z]),
            timestep=1000 * t.expand(4),
            encoder_hidden_states=states,
            pooled_projections=pooled,
        ).sample
        network.set_attn_processor(dict(own))
        neg, cond = v.chunk(2)
        rows.append(z + (t_next - t) * (neg + 3.0 * (cond - neg)))
    return torch.stack(rows)


@torch.no_grad()
def velocity(network, z, t, words, guidance=None):
    """What a network makes of z at a 0-d time."""
    states, pooled = words
    shown = {"encoder_hidden_states": states, "pooled_projections": pooled}
    if isinstance(network, SD3Transformer2DModel):
        return network(hidden_states=z, timestep=1000 * t[None], **shown).sample
    side = SIZE // 2
    tokens = network(
        hidden_states=packed(z),
        timestep=t[None],
        guidance=torch.tensor([guidance]),
        img_ids=places(side, side),
        txt_ids=torch.zeros(TOKENS, 3),
        **shown,
    ).sample
    return unpacked(tokens, side)


X0 = drawn(1, 4, SIZE, SIZE, seed=0)
PROMPTS = {
    whose: (drawn(1, TOKENS, WIDTH, seed=seed), drawn(1, WIDTH, seed=seed + 1))
    for whose, seed in (("src", 10), ("tgt", 20), ("neg", 30))
}
NOISES = [drawn(1, 4, SIZE, SIZE, seed=40 + n) for n in range(8)]
FALLING = torch.tensor([1.0, 0.9, 0.7, 0.4, 0.0])


def cfg(network, z, t, words, scale):
    cond, neg = (velocity(network, z, t, PROMPTS[whose]) for whose in (words, "neg"))
    return neg + scale * (cond - neg)


def flow_edit(network, times, draws, n_min, ask):
    """FlowEdit: its two velocities, the noise, and the plain steps at its end."""
    noises, z_edit, used = iter(NOISES), X0.clone(), []
    pairs = list(pairwise(times))
    for t, t_next in pairs[: len(pairs) - n_min]:
        moved = []
        for _ in range(draws):
            used.append(next(noises))
            z = (1 - t) * X0 + t * used[-1]
            moved.append(ask(z_edit + z - X0, t, "tgt") - ask(z, t, "src"))
        z_edit = z_edit + (t_next - t) * sum(moved) / draws
    if n_min:
        t = pairs[-n_min][0]
        used.append(next(noises))
        z_edit = z_edit + t * (used[-1] - X0)
        for t, t_next in pairs[-n_min:]:
            z_edit = z_edit + (t_next - t) * ask(z_edit, t, "tgt")
    return z_edit, torch.stack(used)


def flow_align(network):
    d, used = torch.zeros_like(X0), []
    for (t, t_next), noise in zip(pairwise(FALLING), NOISES, strict=False):
        used.append(noise)
        z_source = (1 - t) * X0 + t * noise
        z = z_source + d
        wanted, known, there = (
            velocity(network, at, t, PROMPTS[whose])
            for at, whose in ((z, "tgt"), (z, "src"), (z_source, "src"))
        )
        pushed = known + OMEGA * (wanted - known)
        d = d + (t_next - t) * (pushed - there) + ZETA * ((z_source - t * there) - (z - t * pushed))
    return X0 + d, torch.stack(used)


def uni(network, edit):
    """Uni-Inv over a part of the times, and the steps down under Uni-Edit's guidance."""
    rising = FALLING.flip(0)[: round(ALPHA * STEPS) + 1]
    z, v = X0, torch.zeros_like(X0)
    for t, t_next in pairwise(rising):
        v = velocity(network, z + (t_next - t) * v, t_next, PROMPTS["src"], 1.0)
        z = z + (t_next - t) * v
    middle = z
    for t, t_next in pairwise(rising.flip(0)) if edit else ():
        wanted, known = (velocity(network, z, t, PROMPTS[w], 1.0) for w in ("tgt", "src"))
        apart = packed(wanted - known).abs().mean(-1)
        mu = (apart - apart.min()) / (apart.max() - apart.min())
        mu = unpacked(mu[..., None].expand(-1, -1, 16), SIZE // 2)
        z = z + (t_next - t) * (known + (mu + PUSH * (1 + mu)) * (wanted - known))
    return middle, z


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of cases beside the folder of their models."""
    root = tmp_path_factory.mktemp("golden")
    networks = {"flux": randomise(flux()).eval(), "sd3": randomise(sd3()).eval()}
    for name, network in networks.items():
        network.save_pretrained(root / "model" / name)
    (root / "cases").mkdir()

    def keep(name, settings, tensors):
        prompts = {
            f"{whose}_{kind}": tensor
            for whose in ("src", "tgt", "neg")
            for kind, tensor in zip(("embeds", "pooled"), PROMPTS[whose], strict=True)
        }
        everything = {"x0": X0, "times": FALLING, **prompts, **tensors}
        file = root / "cases" / name
        file.with_suffix(".json").write_text(json.dumps(settings))
        save_file({k: t.clone().contiguous() for k, t in everything.items()}, f"{file}.safetensors")

    of_flux, of_sd3 = networks["flux"], networks["sd3"]
    common = {"steps": STEPS, "guidance_src": 1.5, "guidance_tgt": 5.5}
    scales = {"src": 1.5, "tgt": 5.5}

    def embedded(z, t, whose):
        return velocity(of_flux, z, t, PROMPTS[whose], scales[whose])

    final, draws = flow_edit(of_flux, FALLING[1:], 1, 1, embedded)
    settings = {
        "method": "FlowEdit",
        "model": "flux",
        "n_avg": 1,
        "n_min": 1,
        "n_max": 3,
        "rows": 5,
    }
    keep("fe_flux", settings | common, {"final": final, "noise_draws": draws})

    def two_rows(z, t, whose):
        return cfg(of_sd3, z, t, whose, scales[whose])

    final, draws = flow_edit(of_sd3, FALLING[1:], 2, 0, two_rows)
    settings = {
        "method": "FlowEdit",
        "model": "sd3",
        "n_avg": 2,
        "n_min": 0,
        "n_max": 3,
        "rows": 24,
    }
    keep("fe_sd3", settings | common, {"final": final, "noise_draws": draws})

    final, draws = flow_align(of_sd3)
    settings = {"method": "FlowAlign", "model": "sd3", "omega": OMEGA, "zeta": ZETA, "rows": 12}
    keep("fa_sd3", settings | common, {"final": final, "noise_draws": draws})

    part = {"model": "flux", "alpha": ALPHA, "zero_init": True, "guidance": 1.0, "steps": STEPS}
    top, _ = uni(of_flux, edit=False)
    keep("ui_flux", {"method": "Uni-Inv", **part, "rows": 3}, {"x_top": top})
    middle, final = uni(of_flux, edit=True)
    settings = {"method": "Uni-Inv + Uni-Edit", **part, "omega": PUSH, "rows": 9}
    keep("ue_flux", settings, {"x_mid": middle, "final": final})

    for name, method, held in (
        ("ce_sd3", "ConsistEdit, image q and k from the source", 2),
        ("ce_off_sd3", "the same loop without control", 0),
    ):
        settings = {"method": method, "model": "sd3", "qk_steps": held, "guidance": 3.0, "rows": 16}
        keep(name, settings | {"steps": STEPS}, {"traj": consist_edit(of_sd3, held)})

    t = FALLING[2]
    v = velocity(of_sd3, X0, t, PROMPTS["src"])
    embeds, pooled = PROMPTS["src"]
    settings = {"model": "sd3", "guidance": None, "rows": 1}
    keep("call_sd3", settings, {"z": X0, "t": t[None], "v": v, "embeds": embeds, "pooled": pooled})
    return root


ROWS = {
    "ce_off_sd3": 16,
    "ce_sd3": 16,
    "call_sd3": 1,
    "fa_sd3": 12,
    "fe_flux": 5,
    "fe_sd3": 24,
    "ue_flux": 9,
    "ui_flux": 3,
}


def bench(root, *only):
    """The exit status; the models stand beside the cases."""
    return parity.main([str(root / "cases"), *(only and ("--only", ",".join(only)))])


def test_every_case_agrees_in_both_hosts_at_the_published_rows(made, capsys):
    assert bench(made) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[2:-1]]
    assert {name: (int(ours), int(theirs)) for name, _, ours, theirs, *_ in table} == {
        name: (rows, rows) for name, rows in ROWS.items()
    }
    opened = golden.open_folder(made / "cases", made / "model")
    found = parity.runner_of(opened.case("ue_flux"))(opened, opened.case("ue_flux")).errors
    assert set(found) == {
        f"{name} ({host})" for name in ("x_mid", "final") for host in ("headless", "ComfyUI")
    }


@pytest.fixture
def harmed(made):
    """Changes a case for a test, and puts it back."""
    kept = {path: path.read_bytes() for path in (made / "cases").iterdir()}

    def harm(name, factor=1.0, tensor="final", **changes):
        file = made / "cases" / f"{name}.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        file = file.with_suffix(".safetensors")
        tensors = load_file(file)
        save_file(tensors | {tensor: factor * tensors[tensor]}, file)

    yield harm
    for path, content in kept.items():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fe_flux", {"guidance_tgt": 5.4}),
        ("fe_flux", {"n_min": 0}),
        ("fe_sd3", {"guidance_src": 1.4}),
        ("fa_sd3", {"omega": 7.0}),
        ("ce_sd3", {"qk_steps": 1}),
        ("ce_sd3", {"guidance": 3.1}),
        ("ce_off_sd3", {"qk_steps": 1}),
        ("fa_sd3", {"zeta": 0.0}),
        ("ue_flux", {"omega": 4.5}),
        ("ui_flux", {"factor": 1.001, "tensor": "x_top"}),
    ],
    ids=str,
)
def test_a_thousandth_off_or_another_setting_fails(made, harmed, name, changes):
    tensor = {"ui_flux": "x_top", "ce_sd3": "traj", "ce_off_sd3": "traj"}.get(name, "final")
    harmed(name, **{"tensor": tensor} | changes)
    assert bench(made, name) == 1


def test_what_no_denoiser_can_say_is_left_out_and_told(made, harmed, capsys):
    harmed("ui_flux", tensor="x_top", zero_init=False)
    assert bench(made, "ui_flux", "call_sd3") == 0
    told = capsys.readouterr().out
    assert "ui_flux" in told and "left out: its first call is at t = 0" in told
    assert told.endswith("1 of 1 cases within tolerance\n")


def test_a_method_that_is_not_built_does_not_pass(made, harmed, capsys):
    harmed("fe_flux", method="FlowCycle")
    assert bench(made, "fe_flux") == 1
    assert "not built yet: FlowCycle" in capsys.readouterr().out
