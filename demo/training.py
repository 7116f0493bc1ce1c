"""What the stages of training share: plans, the loop, checkpoints, and the number of threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter

import torch
from torch import Tensor, nn

_PROBE = 4
_ROUND = 60


@dataclass(frozen=True)
class Plan:
    """How a network that paints is trained. A batch holds the kinds as `train_data.MIX` says."""

    steps: int
    batch: int = 32
    peak_rate: float = 1e-3
    empty_prompts: float = 0.1
    layout: float = 0.1
    warm_up: int = 200
    cool_down: float = 0.35
    decay: float = 0.999
    save_seconds: float = 180.0
    grid_steps: int = 1000


@dataclass(frozen=True)
class Learning:
    """What a training is about.

    Attributes:
        name: What its reports call it.
        modules: What is trained, averaged and kept.
        helper: What is trained beside it and thrown away.
        loss_of: The loss of the batch of a step.
    """

    name: str
    modules: nn.Module
    helper: nn.Module
    loss_of: Callable[[int], Tensor]


class Average(nn.Module):
    """An exponential moving average of modules, and a way to look through it for a while."""

    def __init__(self, modules: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.count = 0
        self.shadow = {name: value.clone() for name, value in modules.state_dict().items()}

    def update(self, modules: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        live = modules.state_dict()
        names = [name for name, value in self.shadow.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.shadow[n] for n in names], [live[n] for n in names], 1 - decay)

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = state["count"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)

    @contextmanager
    def applied(self, modules: nn.Module) -> Iterator[None]:
        """Inside, `modules` hold the averaged weights."""
        live = {name: value.clone() for name, value in modules.state_dict().items()}
        modules.load_state_dict(self.shadow)
        try:
            yield
        finally:
            modules.load_state_dict(live)


def learning_rate(step: int, plan: Plan) -> float:
    """A short rise, a long plateau, a straight fall: more steps can be planned while it runs."""
    fall = (plan.steps - step) / (plan.cool_down * plan.steps)
    return plan.peak_rate * max(0.01, min(1.0, (step + 1) / plan.warm_up, fall))


def train(
    learning: Learning,
    plan: Plan,
    checkpoint: Path,
    report: Callable[[str], None],
    show: Callable[[int], None],
) -> None:
    """Train `learning.modules` in place, from `checkpoint` where it exists, to their average.

    `show` is called now and then, while the averaged weights are in place.
    """
    modules, loss_of = learning.modules, learning.loss_of
    average = Average(modules, plan.decay)
    learners = [*modules.parameters(), *learning.helper.parameters()]
    optimiser = torch.optim.AdamW(learners, lr=plan.peak_rate, betas=(0.9, 0.99), fused=True)
    parts = {"modules": modules, "average": average, "layout": learning.helper}
    parts["optimiser"] = optimiser
    step = first = load_checkpoint(checkpoint, parts)
    threads, mean_loss = ThreadTuner(), 1.0
    started = saved = monotonic()
    while step < plan.steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, plan)
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learners, 1.0)
        optimiser.step()
        average.update(modules)
        threads.tick()
        step += 1
        mean_loss += 0.02 * (loss.item() - mean_loss)
        if step % 100 == 0:
            pace = (monotonic() - started) / (step - first)
            left = pace * (plan.steps - step) / 60
            report(
                f"{learning.name} {step}/{plan.steps}: loss {mean_loss:.4f}, {left:.0f} min left"
            )
        if monotonic() - saved > plan.save_seconds or step == plan.steps:
            save_checkpoint(checkpoint, parts, step)
            saved = monotonic()
        if step % plan.grid_steps == 0 and step < plan.steps:
            with average.applied(modules):
                show(step)
    modules.load_state_dict(average.shadow)


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
