"""What a caller of `pipelines` gets who says nothing: published values, and what leaves things be.

A workflow's widgets hold their own values; a script that calls a pipeline holds these.
"""

import importlib
import inspect
import pkgutil

from palimpsest import pipelines

#: Of every public name the numbers, words and switches that it takes by default.
DEFAULTS = {
    # Prompt-to-Prompt: the author's own hint for both windows; 32 x 32 tokens at most.
    "attention.prompt_batch.rewrite_prompts": {
        "mode": "auto",
        "cross_window": (0.0, 0.4),
        "self_window": (0.0, 0.6),
        "self_pixels": 32 * 32,
        "weights_always": False,
    },
    "attention.prompt_to_prompt.rewrite_prompt": {
        "mode": "auto",
        "cross_window": (0.0, 0.4),
        "self_window": (0.0, 0.6),
        "self_pixels": 32 * 32,
        "weights_always": False,
        "published_tail": False,
        "normalise": False,
    },
    "attention.prompt_to_prompt.PromptToPrompt": {
        "self_window": (0.0, 0.6),
        "self_pixels": 32 * 32,
        "weights_always": False,
        "normalise": False,
    },
    "attention.tokens.replace_words": {"published_tail": False},
    "attention.room.Room": {"largest": 0},
    "attention.words.Word": {"cuts": (), "glued": False},
    "attention.hooks.Site": {
        "tokens": 0,
        "text": 0,
        "references": 0,
        "layers": 0,
        "depths": (),
        "heads": 1,
    },
    "attention.joint.MapEdit": {"normalise": False},
    "attention.own_loop.beside_source": {"targets": 0},
    # ConsistEdit as published for style and objects: structure for 0.3 of the steps.
    "attention.consist_edit.ConsistEdit": {
        "structure": (0.0, 0.3),
        "values": (0.0, 0.0),
        "layers": (0.0, 1.0),
    },
    "attention.tokens.PromptTokens": {"times": 1},
    # LocalBlend as published: a threshold of 0.3, from a fifth of the steps on.
    "attention.bank.Bank": {"watches": (), "onlookers": (), "leaves": True, "pairs": False},
    "attention.local_blend.LocalBlend": {
        "threshold": 0.3,
        "out_threshold": 0.3,
        "start": 0.2,
        "join": "intersection",
    },
    "attention.viewer.Look": {"layers": (0.0, 1.0), "every": False},
    # MasaCtrl: from step 4 of 50 and layer 10 of 16, as published.
    "attention.masactrl.MasaCtrl": {
        "steps": (0.08, 1.0),
        "layers": (0.625, 1.0),
        "union": False,
    },
    # The threshold of its masks from words is the published one.
    "attention.things.Things": {"threshold": 0.1},
    "attention.bank.Bank.fill": {"targets": 0},
    "attention.watch.Begun": {"watches": (), "onlookers": ()},
    # Plug-and-Play as published: half of the decoder's maps, the fifteenth of 22 residual blocks.
    "attention.plug_and_play.PlugAndPlay": {
        "attention_window": (0.0, 0.5),
        "feature_window": (0.0, 0.8),
        "layers": (0.5, 1.0),
        "block": 0.64,
    },
    # pix2pix-zero and its noise regularisation as published.
    "attention.pix2pix_zero.Pix2PixZero": {"xa_guidance": 0.1},
    "inversion.noise_regularisation.NoiseRegularisation": {
        "rounds": 5,
        "pair_steps": 5,
        "pair_weight": 20.0,
        "normal_weight": 20.0,
    },
    # SDE-Drag: the published brush, and two cells a step.
    "copy_paste.Brush": {"radius": 5, "alpha": 1.1, "beta": 0.3, "full_border": True},
    "drag.plan": {"stride": 2, "early_stop": False, "still": False},
    "drag.DragStep": {"mask_start": True},
    "denoiser.ramp": {"overshoot": False},
    # DiffEdit: ten draws, half of three times the mean.
    "diffedit.edit_mask": {"draws": 10, "ratio": 3.0, "draws_at_once": 5},
    # The source row is not touched unless that is asked for.
    "correction.Correction": {
        "scale": 1.0,
        "interval": 1,
        "target_strength": 0.0,
        "residual_of": "source",
    },
    "edit_along.edit_along": {"keep_source": False},
    "editing.Edit": {"eta": 0.0, "keep_source": False, "order": 1, "after": ()},
    # An edit without inversion is FlowEdit: one noise a level, the whole distance, no sampling.
    "aligned.Manner": {"renoise": False, "zeta": 0.0, "lag": "none", "plain_steps": 0},
    "inversion.fresh_noise.noised": {"draws": 1},
    "inversion.fresh_noise.fresh_noise": {"draws": 1, "levels_at_once": 8},
    "inversion.fresh_noise.FreshNoise": {
        "renoise": False,
        "zeta": 0.0,
        "lag": "none",
        "plain_steps": 0,
    },
    # Uni-Edit: omega as published; its tokens are the model's.
    "uni_edit.disagreement": {"patch": 1},
    "uni_edit.uni_edit": {"omega": 5.0, "patch": 1},
    # Gradients flow where a control asks for them.
    "lending.Asked": {"gradients": False},
    "finite.check_finite": {"what": "edit"},
    # DDIM inversion as published: the level one goes to.
    "couplings.ddim": {"convention": "destination", "refinement": 0},
    "couplings.denoise_chain": {"levels_at_once": 8},
    "cycle_sde.SourceChain": {"eta": 1.0, "levels_at_once": 8},
    "inversion.noise_space.invert_into_noise": {"levels_at_once": 8},
    "inversion.noise_space.NoiseSpace": {"strength": 1.0},
    "inversion.noise_space.cycle_diffusion": {"eta": 0.1},
    "inversion.edict.couple": {"mixing": 0.93, "rests": 0},
    "inversion.edict.Coupled": {"rests": 0},
    "inversion.edict.CoupledEdit": {"record_at": "chain"},
    "inversion.mapped_values.MappedValues": {"window": 1.0},
    "inversion.mapped_values.MappedValues.at": {"window": 1.0},
    "inversion.method.Inverted": {"carried": ()},
    "inversion.negative_embedding.NegativeEmbedding": {"rows": "both"},
    "inversion.negative_prompt.negative_prompt": {"interpolation": 0.0},
    "inversion.null_text.NullText": {
        "cfg": 7.5,
        "inner_steps": 10,
        "epsilon": 1e-5,
        "learning_rate": 1e-2,
    },
    "inversion.null_text.Adam": {"count": 0},
    "inversion.style_diffusion.Fitting": {
        "rounds": 1071,
        "cfg": 7.5,
        "learning_rate": 1e-2,
        "map_weight": 1.0,
        "early_stop": 1e-5,
        "seed": 0,
    },
    # Proximal guidance with inversion guidance: t < 400, one cell around what changed.
    "proximal.Proximal": {
        "threshold": "soft",
        "quantile": 0.5,
        "fixed": 0.0,
        "pull": 0.1,
        "below": 0.535,
        "dilate": 1,
        "over_source": False,
    },
    "schedule.step_down": {"eta": 0.0},
    "schedule.ddim_timesteps": {"train_steps": 1000, "offset": 1},
    "sdedit.sdedit": {"eta": 1.0, "order": 1, "repeats": 1, "wipe": False},
    "trajectory.Recipe": {
        "convention": "",
        "refinement": 0,
        "cfg": 1.0,
        "model": "",
        "rows": 0,
        "seconds": 0.0,
        "eta": 0.0,
        "source_key": "",
        "regularised": False,
        "latent_slope": (),
        "latent_offset": (),
        "prompt": "",
    },
    "trajectory.Trajectory": {"carried": ()},
    "denoiser.RowCount": {"rows": 0},
}


def public_callables():
    """Name and value of every public function, class and method of `pipelines`."""
    for found in pkgutil.walk_packages(pipelines.__path__, f"{pipelines.__name__}."):
        module = importlib.import_module(found.name)
        short = found.name.removeprefix(f"{pipelines.__name__}.")
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", "") != found.name:
                continue
            if not callable(value):
                continue
            yield f"{short}.{name}", value
            for part in vars(value) if inspect.isclass(value) else ():
                if not part.startswith("_") and callable(getattr(value, part)):
                    yield f"{short}.{name}.{part}", getattr(value, part)


def defaults_of(value):
    """What it takes by default, as far as a number, a word or a switch says it."""
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # a type alias, for example
        return {}
    plain = (bool, int, float, str)
    return {
        p.name: p.default
        for p in parameters
        if not p.name.startswith("_")
        if isinstance(p.default, plain)
        or (type(p.default) is tuple and all(isinstance(part, plain) for part in p.default))
    }


def test_defaults_are_the_stated_ones():
    found = {name: defaults_of(value) for name, value in public_callables()}
    assert {name: values for name, values in found.items() if values} == DEFAULTS
