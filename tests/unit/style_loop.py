"""The published optimisation of StyleDiffusion, restated in its own VP coordinates."""

import copy

import torch
from palimpsest.tests.unit.analytic import alpha_of, vp_step
from torch import nn


def published(model, tokens, x0, sigmas, fitting, counts):
    """The published optimisation of one picture: VP latents, noise predictions, index i.

    `model.text` is [1, T, C], `model.noise(z, sigma, mapping)` gives the conditional noise and its
    maps, `model.uncond(z, sigma)` the unconditional noise.

    Returns latents from the noisiest down in VP, [scale, shift] per step, and the losses.
    """
    count = model.text.shape[1]
    alphas = alpha_of(sigmas).float()
    steps = len(sigmas) - 1
    z, chain, seen = x0 * alphas[0] ** 0.5, [x0 * alphas[0] ** 0.5], []
    with torch.no_grad():
        for k in range(steps):
            noise, maps = model.noise(z, sigmas[k + 1])
            seen.append(maps)
            z = vp_step(noise, alphas[k], alphas[k + 1], z)
            chain.append(z)
    seen.append(seen[-1])
    torch.manual_seed(fitting.seed)
    blocks = [
        nn.Conv1d(tokens.shape[1], 2 * count, 1),
        nn.Conv1d(2 * count, 2 * count, 1),
        nn.BatchNorm1d(2 * count),
        nn.LeakyReLU(),
        nn.Conv1d(2 * count, 2 * count, 1),
    ]
    network, path, styles, losses = nn.Sequential(*blocks).train(), [chain[-1]], [], []
    z = chain[-1]
    for i in range(steps):
        network, where = copy.deepcopy(network), 50 * i / steps
        rate = fitting.learning_rate * (1 - where / 100)
        adam = torch.optim.Adam(network.parameters(), lr=rate)
        now, below, sigma = alphas[steps - i], alphas[steps - i - 1], sigmas[steps - i]
        uncond = model.uncond(z, sigma)

        def guided(z=z, sigma=sigma, uncond=uncond, network=network):
            both = network(tokens)
            cond, maps = model.noise(z, sigma, (both[:, :count], both[:, count:]))
            return uncond + fitting.cfg * (cond - uncond), maps, both

        for _ in range(counts[i]):
            noise, maps, _ = guided()
            loss = nn.functional.mse_loss(vp_step(noise, now, below, z), chain[steps - i - 1])
            if fitting.map_weight:
                for a, b in zip(maps, seen[steps - i], strict=True):
                    loss = loss + fitting.map_weight * nn.functional.mse_loss(a, b)
            adam.zero_grad()
            loss.backward()
            adam.step()
            if loss.item() < fitting.early_stop + 2e-5 * where:
                break
        with torch.no_grad():
            noise, _, both = guided()
            z = vp_step(noise, now, below, z)
        path.append(z)
        styles.append(torch.stack([both[:, :count], both[:, count:]]))
        losses.append(loss.item())
    return path, styles, losses
