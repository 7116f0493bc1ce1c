"""The network M of StyleDiffusion: from tokens of a picture to a mapping of a text embedding.

References:
    Li et al. 2023, StyleDiffusion: Prompt-Embedding Inversion for Text-Based Editing,
        arXiv:2303.15649, section 3 (its authors' code where the two differ)
"""

import torch
from torch import Tensor, nn


class ValueMapping(nn.Module):
    """M: [1, E, C] image tokens to [2, T, C], the scale and the shift of T text tokens."""

    def __init__(self, image_tokens: int, text_tokens: int) -> None:
        super().__init__()
        width = 2 * text_tokens
        self.layers = nn.Sequential(
            nn.Conv1d(image_tokens, width, kernel_size=1),
            nn.Conv1d(width, width, kernel_size=1),
            nn.BatchNorm1d(width, track_running_stats=False),
            nn.LeakyReLU(),
            nn.Conv1d(width, width, kernel_size=1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)[0].unflatten(0, (2, -1))


def mapping_of(networks: list[ValueMapping], tokens: Tensor) -> Tensor:
    """[2, B, T, C] scale and shift for every picture."""
    return torch.stack(
        [network(own) for network, own in zip(networks, tokens.split(1), strict=True)], dim=1
    )


def new_networks(tokens: Tensor, text_tokens: int, seed: int) -> list[ValueMapping]:
    """One network for every picture, all alike at first: a batch learns as its pictures do."""
    made = []
    for _ in range(len(tokens)):
        # The layers draw their first weights from torch's generator of the CPU, which gets its
        # state back; those of other devices are not touched.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            made.append(ValueMapping(tokens.shape[1], text_tokens).to(tokens.device))
    return made
