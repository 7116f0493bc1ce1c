"""Nodes of others, put on a model: core's own, and such as other packs are made of."""

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from comfy.samplers import calc_cond_batch
from palimpsest.hosts.comfy.attention import transformer_blocks


def node(make, *args):
    """What puts a node of core's on a model."""

    def put(model):
        out = make.execute(model, *args) if hasattr(make, "execute") else make().patch(model, *args)
        return getattr(out, "args", out)[0]

    return put


def drawn(*shape, seed=9):
    """The same numbers in every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def longer(model, tokens):
    """A node that appends tokens of its own to every prompt, as picture prompts are."""
    extra = drawn(1, tokens, 32)

    def append(n, context, value, _extra):
        added = extra.expand(len(context), -1, -1)
        return n, torch.cat([context, added], 1), torch.cat([value, added], 1)

    patched = model.clone()
    patched.set_model_attn2_patch(append)
    return patched


def blurred(model, kind, *place):
    """A node that adds to one attention what its values are on average."""

    def attend(q, k, v, extra):
        out = optimized_attention(q, k, v, extra["n_heads"], transformer_options=extra)
        return out + v.mean(1, keepdim=True)

    patched = model.clone()
    patched.set_model_patch_replace(attend, kind, *place)
    return patched


def hypernetwork(model):
    """As core's Hypernetwork Loader: other keys and values in both attentions."""

    def patch(q, k, v, _extra):
        return q, k + 0.3 * k.flip(-1), v + 0.3 * v.roll(1, -1)

    patched = model.clone()
    patched.set_model_attn1_patch(patch)
    patched.set_model_attn2_patch(patch)
    return patched


def smoothed(model):
    """As SEG: a second look with one attention's queries blurred, which guides away from it."""

    def flat(q, k, v, extra):
        mean = q.mean(1, keepdim=True).expand_as(q)
        return optimized_attention(mean, k, v, extra["n_heads"], transformer_options=extra)

    def guide(args):
        looking = model.clone()
        looking.model_options = args["model_options"].copy()
        looking.set_model_attn1_replace(flat, "middle", 0)
        seen = calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], looking.model_options
        )
        return args["denoised"] + 2.0 * (args["cond_denoised"] - seen[0])

    patched = model.clone()
    patched.set_model_sampler_post_cfg_function(guide)
    return patched


def louder_blocks(model, calls=None):
    """As SUPIR's: a function in the place of every residual block."""

    def handle(block, x, emb, *_):
        if calls is not None:
            calls.append(block)
        around = x if block.updown else block.skip_connection(x)
        return block(x, emb) if block.updown else around + 1.3 * (block(x, emb) - around)

    patched = model.clone()
    patched.set_model_patch((ResBlock, handle), "forward_timestep_embed_patch")
    return patched


def other_attention(model, calls=None):
    """As nodes that put another attention in the place of core's: here a slightly colder one."""

    def override(func, q, *rest, **options):
        if calls is not None:
            calls.append(q.shape)
        return func(1.2 * q, *rest, **options)

    patched = model.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    return patched


# --- picture prompts as IP-Adapter puts them in: once as it does it, once by other means


class PicturePrompt:
    """Keys and values of a picture for every cross-attention, and how much they count."""

    def __init__(self, model, negative):
        self.shares = (1.0, negative)
        self.blocks = transformer_blocks(model.model.diffusion_model)
        self.model, self.calls = model.model.diffusion_model, 0

    def block(self, block, number, index):
        place = {
            "input": self.model.input_blocks,
            "middle": [self.model.middle_block],
            "output": self.model.output_blocks,
        }[block][number]
        layer = next(part for part in place if hasattr(part, "transformer_blocks"))
        return layer.transformer_blocks[index]

    def attended(self, place, q, extra):
        """[B, P, C] what the picture's tokens add, by the branch of the guidance."""
        self.calls += 1
        width, seed = q.shape[-1], self.blocks.index(place)
        k, v = (drawn(1, 4, width, seed=2 * seed + i).expand(len(q), -1, -1) for i in (0, 1))
        out = optimized_attention(q, k, v, extra["n_heads"], transformer_options=extra)
        rows = [self.shares[branch] for branch in extra["cond_or_uncond"]]
        shares = torch.tensor(rows).repeat_interleave(len(q) // len(rows))
        return 0.5 * shares[:, None, None] * out


def picture_prompt(model, negative=0.0):
    """A replacement of every cross-attention, which adds a second attention to the plain one."""
    prompt, patched = PicturePrompt(model, negative), model.clone()

    def at(place):
        def attend(q, k, v, extra):
            out = optimized_attention(q, k, v, extra["n_heads"], transformer_options=extra)
            return out + prompt.attended(place, q, extra)

        return attend

    for place in prompt.blocks:
        patched.set_model_attn2_replace(at(place), *place)
    return patched, prompt


def picture_prompt_after(model, negative=0.0):
    """The same numbers without a replacement: added to what comes out of every cross-attention."""
    prompt, patched, queries = PicturePrompt(model, negative), model.clone(), []

    def look(n, context, value, _extra):
        queries.append(n)
        return n, context, value

    def add(out, extra):
        place = (*extra["block"], extra["block_index"])
        attention = prompt.block(*place).attn2
        added = prompt.attended(place, attention.to_q(queries.pop()), extra)
        return out + added @ attention.to_out[0].weight.T

    patched.set_model_attn2_patch(look)
    patched.set_model_attn2_output_patch(add)
    return patched, prompt
