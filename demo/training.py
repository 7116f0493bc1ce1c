"""What both stages of training share: checkpoints, and the number of threads."""

from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch

_PROBE = 4
_ROUND = 60


def save_checkpoint(path: Path, parts: dict[str, object], step: int) -> None:
    """Write everything that resuming needs; the file is replaced only once it is whole."""
    draft = path.with_suffix(".part")
    state = {name: part.state_dict() for name, part in parts.items()}  # type: ignore[attr-defined]
    torch.save({"step": step, **state}, draft)
    draft.replace(path)


def load_checkpoint(path: Path, parts: dict[str, object]) -> int:
    """Read a checkpoint into `parts` and return its step: 0 where there is none."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])  # type: ignore[attr-defined]
    return state["step"]


@dataclass
class ThreadTuner:
    """Chooses between one thread and all of them, by measurement, again and again.

    On a machine that others use too, threads that wait for one another at every layer can be
    slower than a single one. Call `tick` after every step.
    """

    most: int = field(default_factory=torch.get_num_threads)
    _seconds: dict[int, float] = field(default_factory=dict)
    _step: int = 0
    _since: float = field(default_factory=perf_counter)

    def tick(self) -> None:
        """Count a step; now and then time a few steps with each number of threads."""
        self._step += 1
        place = self._step % _ROUND
        if self.most == 1 or place % _PROBE or place > 2 * _PROBE:
            return
        now = perf_counter()
        if place:
            self._seconds[torch.get_num_threads()] = now - self._since
        self._since = now
        if place == 2 * _PROBE:
            torch.set_num_threads(min(self._seconds, key=self._seconds.__getitem__))
        else:
            torch.set_num_threads(self.most if place == 0 else 1)
