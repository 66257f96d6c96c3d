"""armodels train: fit a model, evaluate it exactly, leave a run directory.

Nothing here knows which model it trains. Every random draw is a function of (seed, step), so a
run continued from any checkpoint repeats the steps it lost bit for bit, and evaluating more or
less often changes no weight.
"""

import contextlib
import copy
import difflib
import itertools
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, get_type_hints

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import Tensor
from tqdm import tqdm

from armodels import build, charts, checkpoints, checks, disk, limits, memory, pictures, run, show
from armodels.checks import Between, Count, NotNegative, Number, Positive, Range
from armodels.data.base import Splits
from armodels.data.rows import Batch, Examples, take
from armodels.density.base import DensityModel
from armodels.evaluation import NoMean, describe, evaluate, knowing_nothing, log_probs
from armodels.lines import Lines, number
from armodels.schedules import Schedule
from armodels.spec import DataSpec, nats
from armodels.tracking import Tracker, read_rows


class Unfit(ValueError):
    """A model that cannot be fitted to the data."""


def stream(*key: int) -> int:
    """A seed for one purpose: well mixed, and a function of the key alone."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def seed_draws(seed: int, device: torch.device) -> None:
    """Seed what models draw from, such as dropout's noise, on the CPU and on ``device``."""
    if device.type == "cpu":
        # torch.manual_seed would note the call stack for a GPU that may yet come: 0.1 ms.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as zero inside the block.

    Adam's averages fade by a tenth a step, so those of a pixel that is seldom on soon hold
    nothing but such numbers, with which a CPU is far slower.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


BLOCK_VALUES, BLOCK_STEPS = 2**20, 20
"""Fresh values are drawn for so many steps at once, as far as they are no more than so many."""

MAX_THREADS = max(256, os.cpu_count() or 1)
"""More threads than this are no help to anybody, and some systems die of starting them."""

HARMLESS = ("eval.", "samples.", *(f"trainer.{key}" for key in (
    "max_minutes", "log_every", "checkpoint_every", "threads", "progress", "accelerator",
    "devices",
)))  # fmt: skip
"""Keys that change what is shown or where a step is computed, but not what the step is."""

# What a stream is for; the first number of its key.
_WEIGHTS, _EPOCH, _STEP, _NOISE, _SAMPLES = range(5)


@dataclass
class Settings:
    """The ``trainer`` config; see configs/trainer/default.yaml for what each key means."""

    max_epochs: Number | None
    max_steps: Number | None
    max_minutes: Positive | None
    batch_size: Count
    accumulate: Count
    max_grad_norm: Positive | None
    ema: Between | None
    patience: Count | None
    eval_every: Positive | None
    log_every: Count
    checkpoint_every: NotNegative
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    devices: Count
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"]
    compile: bool
    cuda_graphs: bool
    threads: Annotated[int, Range(1, MAX_THREADS)] | None
    progress: bool
    select: dict[str, list] | None = None

    def __post_init__(self):
        hints = get_type_hints(type(self), include_extras=True)
        checks.require_types(vars(self), hints, "trainer.")
        if self.max_epochs is None and self.max_steps is None and self.max_minutes is None:
            raise ValueError("set trainer.max_epochs, trainer.max_steps or trainer.max_minutes")
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"trainer.accumulate is {self.accumulate}, but a batch of trainer.batch_size="
                f"{self.batch_size} cannot be split into more parts than it has examples"
            )
        if self.cuda_graphs and not self.compile:
            raise ValueError(
                "trainer.cuda_graphs=true replays compiled code: set trainer.compile=true"
            )
        if not isinstance(self.select, Mapping | None):
            raise ValueError(
                f"trainer.select is {self.select!r}; it must be null, or lists of values by key, "
                f"such as {{optimizer.weight_decay: [0.01, 0.1]}}"
            )
        for key, values in (self.select or {}).items():
            if key.split(".")[0] not in ("model", "head", "optimizer", "schedule"):
                raise ValueError(
                    f"trainer.select names {key}; it chooses values of model, head, optimizer and "
                    f"schedule, whose keys begin with these words"
                )
            if not isinstance(values, list) or not values:
                raise ValueError(
                    f"trainer.select.{key} is {values!r}; it must be a list of values to try"
                )

    def candidates(self) -> list[dict[str, Any]]:
        """All combinations of the values that ``select`` names, the last key's fastest."""
        keys = self.select or {}
        return [dict(zip(keys, one, strict=True)) for one in itertools.product(*keys.values())]


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which dotted keys have other values.

    Raises:
        ValueError: It has no such key.
    """
    changed = copy.deepcopy(dict(config))
    for key, value in values.items():
        *path, last = key.split(".")
        node: Any = changed
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            near = difflib.get_close_matches(last, node or (), 1)
            hint = f"; did you mean {'.'.join([*path, *near])}?" if near else ""
            raise ValueError(f"trainer.select names {key}, which the config does not have{hint}")
        node[last] = value
    return changed


def built(config: Mapping[str, Any], spec: DataSpec, trust: build.Trust) -> DensityModel:
    """The model of a config, its weights drawn by the seed."""
    torch.manual_seed(stream(_WEIGHTS, config["seed"]))
    return build.model(config["model"], config["head"], spec, trust)


def without_typed(select: Any, overrides: list[str]) -> Any:
    """``trainer.select`` without the keys that the command line gives a value of its own."""
    if not isinstance(select, Mapping):
        return select
    typed = {item.partition("=")[0].lstrip("+") for item in overrides}
    return {key: values for key, values in select.items() if key not in typed} or None


def said(values: Mapping[str, Any]) -> str:
    """Chosen values as a user types them."""
    return " ".join(show.override(key, value) for key, value in values.items())


@dataclass
class State:
    """Where a training stands; with the weights, all that a checkpoint must hold."""

    step: int = 0
    seconds: float = 0.0  # of training and evaluations on valid
    spent: float = 0.0  # of everything, what loads and tests the model included
    examples: int = 0
    best_nats: float = math.inf
    best_step: int = 0
    valid_step: int | None = None  # of the last evaluation
    evaluations_since_best: int = 0
    window_log_prob: float = 0.0  # since the last point of the curve
    window_examples: int = 0
    since_log_prob: float = 0.0  # since the last evaluation
    since_examples: int = 0
    valid: dict[str, float] = field(default_factory=dict)
    # Of trainer.select: which candidate this is, the steps of those before, and what each had.
    candidate: int = 0
    earlier_steps: int = 0
    began: float = 0.0  # seconds of the run
    own_best_nats: float = math.inf
    tried: list[float | None] = field(default_factory=list)
    selected: int = 0

    @property
    def total_step(self) -> int:
        """Steps of all candidates."""
        return self.earlier_steps + self.step


class Average:
    """Exponential moving average of the weights, without bias towards their start.

    After t steps it is sum{ (1 - d) d^(t - i) w_i : i = 1..t } / (1 - d^t).
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.names = [name for name, _ in model.named_parameters()]
        self.params = list(model.parameters())
        self.values = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self, t: int) -> None:
        """Take in the weights after step ``t``, counted from 1."""
        weight = (1 - self.decay) / (1 - self.decay**t)
        torch._foreach_lerp_(self.values, [p.detach() for p in self.params], weight)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages by parameter name."""
        return dict(zip(self.names, self.values, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``."""
        for name, value in zip(self.names, self.values, strict=True):
            value.copy_(state[name])

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """The model holds the averages inside the block."""
        kept = [p.detach().clone() for p in self.params]
        torch._foreach_copy_(self.params, self.values)
        try:
            yield
        finally:
            torch._foreach_copy_(self.params, kept)


class Trainer:
    """One training: the model, its data, and the loop.

    Args:
        config: The resolved config of the run.
        settings: Its ``trainer`` part.
        fabric: Device, precision and processes.
        model: Built for the first candidate, not yet initialized.
        splits: The data.
        directory: Where the run writes.
        budget: The time of the run, which may have begun before; None: it begins now.
        trust: Which of the user's own classes may be built.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: Settings,
        fabric: Fabric,
        model: DensityModel,
        splits: Splits,
        directory: run.RunDirectory,
        budget: limits.Budget | None = None,
        trust: build.Trust = build.PACKAGE,
    ):
        self.base = config
        self.settings = settings
        self.fabric = fabric
        self.candidates = settings.candidates()
        self.splits = splits
        self.directory = directory
        self.seed = config["seed"]
        self.state = State()
        self.steps_per_epoch = math.ceil(len(splits.train) / settings.batch_size)
        self.total = self._total_steps()
        self.trust = trust
        self._take(0, model)
        self.weights = "ema" if self.average and config["eval"]["weights"] == "ema" else "raw"
        self.tracker: Tracker | None = None
        self._pending: list[tuple[int, Tensor, Tensor]] = []
        self._epoch_rows: tuple[int, Tensor] = (-1, torch.empty(0))
        # Fresh values are drawn for some steps at once: less to do for each.
        fit = BLOCK_VALUES // (settings.batch_size * splits.spec.num_dims)
        self.block_steps = max(1, min(fit, BLOCK_STEPS))
        self._block: tuple[tuple[int, int], Tensor] = ((-1, -1), torch.empty(0))
        self._saved_at = time.monotonic()
        self.budget = budget or limits.Budget(settings.max_minutes)
        self.watch = limits.Watch(self.budget)
        self.lines = Lines(all_of_them=sys.stdout.isatty())
        self.nothing = knowing_nothing(splits)
        self._worse = False
        self._doing = "before the first step"
        self._seconds_of: dict[str, float] = {}  # that an evaluation of a split takes
        self._next_chart = 0.0

    def _take(self, number: int, model: DensityModel | None = None) -> None:
        """Take up a candidate, as if its values had been typed; its model, or None: built here."""
        settings = self.settings
        self.config = with_values(self.base, self.candidates[number])
        self.model = self._placed(model or built(self.config, self.splits.spec, self.trust))
        self.train = self.splits.to_train(self.model.context, self.fabric.device)
        self.schedule: Schedule = build.schedule(self.config["schedule"], self.trust)
        self.schedule(0, self.total)  # refuses at once what it cannot schedule
        params = [p for p in self.model.parameters() if p.requires_grad]
        chosen = dict(self.config["optimizer"])
        if settings.precision == "16-mixed":
            # A fused optimizer unscales the gradients itself, after their norm is wanted.
            chosen.pop("fused", None)
        self.optimizer = build.optimizer(chosen, params, self.trust) if params else None
        self.rates = [g["lr"] for g in self.optimizer.param_groups] if params else []
        self.average = Average(self.model, settings.ema) if settings.ema and params else None

    def _placed(self, model: DensityModel) -> DensityModel:
        # Fabric converts to float64 too, but after a checkpoint was read into float32.
        model = model.double() if self.settings.precision == "64-true" else model
        return model.to(self.fabric.device)

    def go_on(self, **overrides: object) -> str:
        """The command that continues the run."""
        again = build.trusting(self.config)
        again |= {"model__allow_large": True} if self.config["model"].get("allow_large") else {}
        return show.command("train", resume=self.directory.path, **overrides, **again)

    def _total_steps(self) -> int | None:
        limits = []
        if self.settings.max_steps is not None:
            limits.append(self.settings.max_steps)
        if self.settings.max_epochs is not None:
            limits.append(self.settings.max_epochs * self.steps_per_epoch)
        return min(limits) if limits else None

    # Checkpoints

    def _state_dict(self) -> dict:
        return {
            "config": self.config,
            "spec": self.splits.spec.to_dict(),
            "model": self.model.state_dict(),
            "ema": self.average.state_dict() if self.average else None,
            "step": self.state.step,
            "state": asdict(self.state),
        }

    def save_last(self) -> None:
        """Write last.pt, from which the run goes on as if it had never stopped."""
        self._flush_losses()
        started = limits.now()
        self.state.spent = self.budget.spent
        if self.fabric.is_global_zero:
            optimizer = self.optimizer.state_dict() if self.optimizer else None
            checkpoints.save(
                self.directory, "last", {**self._state_dict(), "optimizer": optimizer}
            )
            if self.tracker:
                self.tracker.flush()
        self._saved_at = time.monotonic()
        # A large model on a slow disk takes longer to save than to evaluate.
        self._seconds_of["saving"] = limits.now() - started
        self._reserve()

    def take_up(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from what last.pt holds."""
        saved = checkpoint["state"]
        self.state = State(**{"own_best_nats": saved["best_nats"], **saved})
        if self.state.candidate:
            self._take(self.state.candidate)
        checkpoints.load_weights(
            self.model, checkpoint["model"], self.directory.checkpoint("last")
        )
        if self.optimizer:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        if self.average and checkpoint["ema"]:
            self.average.load_state_dict(checkpoint["ema"])
        self.budget.before = self.state.spent

    # One step

    def _rows(self, step: int) -> Tensor:
        """Rows of the training split that the global batch of ``step`` holds."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._epoch_rows[0] != epoch:
            generator = torch.Generator().manual_seed(stream(_EPOCH, self.seed, epoch))
            rows = torch.randperm(len(self.train), generator=generator)
            raw = self.train.x
            self._epoch_rows = (epoch, rows.to(raw.device) if isinstance(raw, Tensor) else rows)
        size = self.settings.batch_size
        return self._epoch_rows[1][index * size : (index + 1) * size]

    def _batch(self, step: int, rows: Tensor) -> Batch:
        """What the model is trained on at ``step``, in this process: values of ``rows``.

        Args:
            step: The step.
            rows: Those of the global batch, of which each process takes its share.
        """
        share = slice(self.fabric.global_rank, None, self.fabric.world_size)
        part = rows[share]
        if self.splits.transform is None:
            x = take(self.train.x, part).to(self.fabric.device)
            return self.train.beside(x, part)
        epoch, index = divmod(step, self.steps_per_epoch)
        block, index = divmod(index, self.block_steps)
        size = self.settings.batch_size
        if self._block[0] != (epoch, block):
            first = block * self.block_steps * size
            several = self._epoch_rows[1][first : first + self.block_steps * size]
            noise = torch.Generator(self.fabric.device)
            noise.manual_seed(stream(_NOISE, self.seed, epoch, block))
            raw = take(self.train.x, several).to(self.fabric.device)
            self._block = ((epoch, block), self.splits.transform(raw, noise))
        x = self._block[1][index * size : (index + 1) * size][share]
        return self.train.beside(x, part)

    def _step(self, net: torch.nn.Module) -> None:
        step, fabric = self.state.step, self.fabric
        rows = self._rows(step)
        mine = rows[fabric.global_rank :: fabric.world_size]
        seed_draws(stream(_STEP, self.seed, step, fabric.global_rank), fabric.device)
        factor = self.schedule(step, self.total, self._share())
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        log_prob = torch.zeros((), device=fabric.device)
        parts = self._batch(step, rows).tensor_split(self.settings.accumulate)
        for i, batch in enumerate(parts):
            with fabric.no_backward_sync(net, enabled=i + 1 < len(parts)):
                objective = net(*batch).sum()
                # Processes average their gradients: scaled so that each example counts once.
                fabric.backward(objective * (-fabric.world_size / len(rows)))
            log_prob += objective.detach()
        norm = self._clip(net)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.step += 1
        if self.average:
            self.average.update(self.state.step)
        self._pending.append((len(mine), log_prob, norm))
        self.state.examples += len(rows)

    def _clip(self, net: torch.nn.Module) -> Tensor:
        """The gradient's norm, before it is clipped where that is asked for."""
        limit = self.settings.max_grad_norm
        if limit is None and self.settings.precision != "16-mixed":  # whose gradients are scaled
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            return torch.nn.utils.get_total_norm(grads)
        return self.fabric.clip_gradients(
            net, self.optimizer, max_norm=limit or math.inf, error_if_nonfinite=False
        )

    def _flush_losses(self) -> None:
        """Bring the losses over from the device; stop at the first that is not finite.

        Done before anything is logged or saved, so that no checkpoint holds broken weights.
        """
        if not self._pending:
            return
        counts, log_probs, norms = zip(*self._pending, strict=True)
        log_probs, norms = torch.stack(log_probs).tolist(), torch.stack(norms).tolist()
        first = self.state.step - len(counts)
        for i, (log_prob, norm) in enumerate(zip(log_probs, norms, strict=True)):
            if not (math.isfinite(log_prob) and math.isfinite(norm)):
                raise FloatingPointError(
                    f"the loss became {-log_prob / max(counts[i], 1):g} at step {first + i + 1} "
                    f"(gradient norm {norm:g}); the last good checkpoint is "
                    f"{self.directory.checkpoint('last')}; "
                    f"try a lower optimizer.lr or a trainer.max_grad_norm"
                )
        for log_prob in log_probs:  # one by one: the sum must not depend on when it is taken
            self.state.window_log_prob += log_prob
            self.state.since_log_prob += log_prob
        self.state.window_examples += sum(counts)
        self.state.since_examples += sum(counts)
        self._last_norm = norms[-1]
        self._pending = []

    # What is told

    def _log_point(self, bar: tqdm) -> None:
        """One point of the training curve."""
        self._flush_losses()
        state = self.state
        train_nats = self._mean_nats(state.window_log_prob, state.window_examples)
        now = time.monotonic()
        speed = (state.examples - self._spoke[1]) / max(now - self._spoke[0], 1e-9)
        self._spoke = (now, state.examples)
        state.window_log_prob, state.window_examples = 0.0, 0
        told = f"{train_nats:.3f} nats, {speed:,.0f} examples/s"
        if self.settings.max_minutes:
            told += f", {limits.spoken(max(self.budget.end - self.budget.spent, 0))} left"
        bar.set_postfix_str(told, refresh=False)
        if self.tracker:
            self.tracker.row(
                state.total_step,
                state.total_step / self.steps_per_epoch,
                self._seconds(),
                train__nats=train_nats,
                watch__lr=self.optimizer.param_groups[0]["lr"],
                watch__grad_norm=self._last_norm,
                watch__examples_per_s=speed,
            )

    def _mean_nats(self, log_prob: float, examples: int) -> float:
        """Of all processes, each of which has its own sums."""
        sums = torch.tensor([log_prob, float(examples)])
        if self.fabric.world_size > 1:
            sums = self.fabric.all_reduce(sums.to(self.fabric.device), reduce_op="sum").cpu()
        return nats(float(sums[0] / sums[1]), self.splits.spec)

    def _seconds(self) -> float:
        return self.state.seconds + time.monotonic() - self._started

    def _chosen_weights(self):
        return self.average.applied() if self.weights == "ema" else contextlib.nullcontext()

    def _evaluate(self, split: str) -> dict[str, float]:
        examples = self.splits.examples(split, self.model.context)
        started = limits.now()
        with self._at_once(f"evaluating {split}"):
            result = evaluate(
                self.model,
                examples,
                self.config["eval"]["batch_size"],
                fabric=self.fabric,
                progress=self.settings.progress and self.fabric.is_global_zero,
                name=split,
            )
        self._seconds_of[split] = limits.now() - started
        return result.report(self.splits.spec)

    @contextlib.contextmanager
    def _at_once(self, doing: str) -> Iterator[None]:
        """A request to stop needs not wait for the end of the block: nothing is lost by it."""
        self._doing = f"while {doing}"
        with self.watch.at_once():
            yield
        self._doing = "between two steps"

    def validate(self) -> None:
        """Evaluate on valid, keep the best, draw pictures."""
        self._flush_losses()
        state = self.state
        try:
            with self._chosen_weights():
                state.valid, state.valid_step = self._evaluate("valid"), state.step
        except NoMean as error:
            last = self.directory.checkpoint("last")
            raise FloatingPointError(
                f"{error} at step {state.step}; the last good checkpoint is {last}"
                if self.optimizer
                else f"{error}; raise its margin or smoothing, or choose another"
            ) from error
        if self.tracker:
            self.tracker.row(
                state.total_step,
                state.total_step / self.steps_per_epoch,
                self._seconds(),
                valid__nats=state.valid["nats"],
                valid__bits_per_dim=state.valid["bits_per_dim"],
            )
        state.evaluations_since_best += 1
        if state.valid["nats"] < state.own_best_nats:
            state.own_best_nats = state.valid["nats"]
            state.evaluations_since_best = 0
        best = state.valid["nats"] < state.best_nats
        if best:
            state.best_nats, state.best_step = state.valid["nats"], state.step
            state.selected = state.candidate
            if self.fabric.is_global_zero:
                checkpoints.save(self.directory, "best", self._state_dict())
        self._say_line(best)
        self._judge()
        if self.tracker:
            started = limits.now()
            with self._chosen_weights(), self._at_once("drawing"):
                self._draw()
            self._seconds_of["pictures"] = limits.now() - started

    def _say_line(self, best: bool) -> None:
        """One line for an evaluation, unless many others come."""
        state, train = self.state, None
        if state.since_examples:
            train = self._mean_nats(state.since_log_prob, state.since_examples)
            state.since_log_prob, state.since_examples = 0.0, 0
        if not self.lines.due(self._progress()):
            return
        for line in self.lines.add(
            state.step / self.steps_per_epoch,
            state.step,
            train,
            (state.valid["nats"], state.valid["nats_ci95"]),
            self._seconds(),
            best=best,
        ):
            show.say(line)

    def _progress(self) -> float:
        """How much of the training is over, from 0 to 1, by steps or by time."""
        own = self.state.step / self.total if self.total else 0.0
        own = 1.0 if self.optimizer is None or self.total == 0 else max(own, self._share())
        return (self.state.candidate + own) / len(self.candidates)

    def _judge(self) -> None:
        """Say at once where the model is worse than one that knows nothing."""
        if self.nothing is None:
            return
        name, nothing = self.nothing
        valid = self.state.valid["nats"]
        worse = self._is_worse(valid)
        if worse and not self._worse:
            show.warn(
                f"{number(valid)} nats on valid at step {self.state.step} are worse than the "
                f"{number(nothing)} of {name}"
            )
        self._worse = worse

    def _is_worse(self, valid: float) -> bool:
        """Whether valid nats are worse than knowing nothing by more than their interval.

        A single example has no interval: there only what is far worse counts.
        """
        half, nothing = self.state.valid["nats_ci95"], self.nothing[1]
        return valid - (half if math.isfinite(half) else abs(nothing)) > nothing

    def warning(self) -> str | None:
        """What is wrong with a run that has ended, if anything."""
        state = self.state
        last = state.valid["nats"] if state.selected == state.candidate else state.best_nats
        if self.nothing is None or not self._is_worse(last):
            return None
        name, nothing = self.nothing
        valid = f"{number(last)} nats on valid, but {number(nothing)} of {name}"
        if state.best_nats > nothing:
            advice = "lower optimizer.lr, or train longer" if self.optimizer else "choose another"
            return f"worse than knowing nothing: {valid}; {advice}"
        return (
            f"diverged: {valid}; the best weights, of step {state.best_step}, are kept; "
            f"lower optimizer.lr, or set trainer.max_grad_norm"
        )

    def _draw(self) -> None:
        """Samples, and what the model thinks of data it was not trained on."""
        spec, step, splits = self.splits.spec, self.state.total_step, self.splits
        number = self.config["samples"]["num"]
        beside = {}
        if charts.is_table(spec):
            # A chart may take longer than an epoch of a small model: a twentieth of the time.
            if limits.now() < self._next_chart and step != self.total:
                return
            number = number and max(number, charts.MAX_POINTS)
            beside = {"data": splits.split("train")[:]}
        started = limits.now()
        if number:
            # The same noise each time: what changes from picture to picture is the model.
            generator = torch.Generator().manual_seed(stream(_SAMPLES, self.seed))
            samples = self.model.sample(
                number,
                context=self._contexts_to_draw(number),
                temperature=self.config["samples"]["temperature"],
                generator=generator,
                progress=self.settings.progress,
            )
            if splits.box is not None and self.model.context is None:
                beside |= {"box": splits.box, "true_log_prob": splits.true_log_prob}
                beside["log_prob"] = lambda x: self.model.log_prob(x.to(self.fabric.device))
            picture = charts.samples(samples, spec, **beside)
            if picture is not None:
                self.tracker.picture("view/samples", picture, step)
                with disk.atomic(self.directory.samples / f"step-{step:07d}.png") as file:
                    pictures.save(picture, file)
        if spec.kind == "image":
            shown = self.splits.examples("valid", self.model.context)[:16].to(self.fabric.device)
            with torch.no_grad():
                log_prob = self.model.log_prob_map(*shown)
            if log_prob is not None:
                self.tracker.picture("view/surprise", pictures.heat_maps(log_prob), step)
        self._next_chart = limits.now() + 20 * (limits.now() - started)

    def _contexts_to_draw(self, number: int) -> Tensor | None:
        """Every label in turn; other contexts as they come in valid."""
        wanted, device = self.model.context, self.fabric.device
        if wanted is None:
            return None
        if not wanted.shape:
            return torch.arange(number, device=device) % wanted.levels
        valid = self.splits.examples("valid", wanted)
        return valid[torch.arange(number) % len(valid)].context.to(device)

    # The loop

    def fit(self) -> None:
        """Train until a limit is reached; every candidate in turn, where there are several.

        Raises:
            limits.Stopped: A signal asked; everything is saved.
            limits.OutOfTime: The time ended before the evaluations did; everything is saved.
        """
        self._started = time.monotonic()
        state, several = self.state, len(self.candidates) > 1
        while True:
            if len(state.tried) <= state.candidate or not several:
                if several:
                    number = f"{state.candidate + 1} of {len(self.candidates)}"
                    show.say(f"trying {number}: {said(self.candidates[state.candidate])}")
                outcome = self._outcome()
                state.tried[state.candidate :] = [outcome]
                self._finish_clock()
                self.save_last()
            if state.candidate + 1 == len(self.candidates):
                break
            self._take_next()
        if several:
            self._tell_selection()

    def _outcome(self) -> float | None:
        """The best valid nats of this candidate; None: it cannot be, and others may."""
        try:
            self._train()
        except (Unfit, FloatingPointError) as reason:
            # Processes cannot agree on it: a loss may be finite for the others.
            if len(self.candidates) == 1 or self.fabric.world_size > 1:
                raise
            last = self.state.candidate + 1 == len(self.candidates)
            if last and self.state.best_nats == math.inf:
                raise
            show.say(f"left out: {reason}")
            self._pending = []
            self._take(self.state.candidate)  # no checkpoint holds broken weights
            return None
        return self.state.own_best_nats

    def _take_next(self) -> None:
        state = self.state
        state.candidate += 1
        state.earlier_steps += state.step
        state.began = self.budget.spent
        state.step = state.evaluations_since_best = state.window_examples = 0
        state.since_log_prob, state.since_examples = 0.0, 0
        state.window_log_prob, state.own_best_nats, state.valid_step = 0.0, math.inf, None
        self._epoch_rows, self._block = (-1, torch.empty(0)), ((-1, -1), torch.empty(0))
        self._take(state.candidate)

    def _tell_selection(self) -> None:
        state = self.state
        for values, valid in zip(self.candidates, state.tried, strict=True):
            outcome = "left out" if valid is None else f"{valid:.4f} valid nats"
            show.say(f"tried    {said(values)}: {outcome}")
        show.say(f"selected {said(self.candidates[state.selected])}")

    def _train(self) -> None:
        """Train one candidate until a limit is reached."""
        settings, state, fabric = self.settings, self.state, self.fabric
        self._last_norm = math.nan
        if state.step == 0:
            if self.tracker:
                show.say("initializing from the training split")
            train = self.splits.examples("train")
            try:
                with torch.no_grad(), self._at_once("initializing"):
                    self.model.initialize(
                        (batch.x.to(fabric.device) for batch in train.batches(1000)),
                        progress=settings.progress and fabric.is_global_zero,
                    )
            except ValueError as error:
                raise Unfit(str(error)) from error
            if self.average:
                self.average = Average(self.model, settings.ema)
        if self.optimizer is None:
            if state.valid_step is None:
                self.validate()
                if self.tracker and self.total:  # a line as long as the curves beside it
                    for name in ("nats", "bits_per_dim"):
                        self.tracker.scalar(f"valid/{name}", state.valid[name], self.total)
            return
        with self._at_once("measuring how long an evaluation takes"):
            holds_evaluations = self._plan()
        net: torch.nn.Module = self.model.default_objective()
        if settings.compile:
            # A graph is of one shape: the smaller batch that ends an epoch gets its own.
            graphs = {"mode": "reduce-overhead", "dynamic": False} if settings.cuda_graphs else {}
            net = torch.compile(net, **graphs)
        net, self.optimizer = fabric.setup(net, self.optimizer)
        if not self.directory.checkpoint("last").is_file():
            self.save_last()
        self._spoke = (time.monotonic(), state.examples)
        bar = tqdm(
            total=self.total,
            initial=state.step,
            desc="training",
            unit="step",
            disable=None if settings.progress and fabric.is_global_zero else True,
        )
        with bar, flushed_denormals():
            if state.step and state.valid_step != state.step:
                self._validate_if_due()  # the evaluation in which the run was stopped
            while not self._over():
                self.model.train()
                self._step(net)
                bar.update()
                if state.step % settings.log_every == 0:
                    self._log_point(bar)
                if self._validate_if_due():
                    self._save_and_restart_clock()
                elif time.monotonic() - self._saved_at >= settings.checkpoint_every:
                    self._save_and_restart_clock()
                if self._agree(self.watch.asked is not None):
                    self._save_and_restart_clock()
                    told = self._stopped(f"at step {state.step}")
                    raise limits.Stopped(self.watch.asked or limits.SIGNALS[-1], told)
            self._flush_losses()
        if state.valid_step != state.step:
            self._save_and_restart_clock()  # an exact evaluation may take longer than training
            if not holds_evaluations:
                raise limits.OutOfTime
            self.validate()

    def _validate_if_due(self) -> bool:
        """Evaluate where an evaluation is due at this step, and fits; whether it did.

        Raises:
            limits.Stopped, limits.OutOfTime: Everything is saved; it is done when the run goes on.
        """
        every = self.settings.eval_every
        if not every or self.state.step % max(1, round(every * self.steps_per_epoch)):
            return False
        parts = ("valid", "pictures", "saving", "saving")
        seconds = sum(self._seconds_of.get(name, 0.0) for name in parts)
        if self.settings.max_minutes and self._agree(not self.budget.fits(seconds)):
            return False
        try:
            self.validate()
        except (limits.Stopped, limits.OutOfTime):
            self._save_and_restart_clock()
            raise
        self._reserve()
        return True

    # Time

    def _plan(self) -> bool:
        """Measure how long the evaluations take; whether the time of the run holds them."""
        if self.settings.max_minutes is None:
            return True
        self.model.eval()
        num, per_example = 1, 0.0
        valid = self.splits.examples("valid", self.model.context)
        while True:
            part = Examples(*valid[:num])
            started = limits.now()
            log_probs(self.model, part, num)
            per_example = (limits.now() - started) / len(part)
            size = min(self.config["eval"]["batch_size"], len(valid))
            if num >= size or per_example * num > 0.2:
                break
            num *= 4
        per_example = self._agreed(per_example) / self.fabric.world_size
        for split in ("valid", "test"):
            self._seconds_of[split] = per_example * len(getattr(self.splits, split))
        fits = self._reserve()
        valid, test = (limits.spoken(self._seconds_of[split]) for split in ("valid", "test"))
        limit = limits.spoken(self.budget.limit)
        told = f"an evaluation of valid takes about {valid}, the one of test {test}"
        if fits:
            until = limits.spoken(self.budget.end)
            show.say(f"time   {limit} in all, training until {until}: {told}")
        else:
            show.warn(
                f"trainer.max_minutes={self.settings.max_minutes:g} holds no exact evaluation "
                f"({told}): the run trains until then, saves, and says how to evaluate"
            )
        return fits

    def _share(self) -> float:
        """How much of the time of this candidate is over, 0 to 1; 0 without a limit."""
        if not self.settings.max_minutes:
            return 0.0
        began, end = self.state.began, self._own_end()
        share = (self.budget.spent - began) / (end - began) if end > began else 1.0
        return self._agreed(min(share, 1.0))

    def _own_end(self) -> float:
        """Seconds of the run after which the next candidate begins: each has an equal part."""
        began, left = self.state.began, len(self.candidates) - self.state.candidate
        return began + (self.budget.end - began) / left

    def _reserve(self) -> bool:
        """Keep time for the last evaluations; whether there is enough."""
        # The last weights are saved before and after the evaluations; the best are saved and read.
        parts = {"valid": 1, "pictures": 1, "test": 1, "saving": 4}
        return self.budget.reserve(
            sum(times * self._seconds_of.get(name, 0.0) for name, times in parts.items())
        )

    def _stopped(self, when: str) -> str:
        return f"stopped {when}; go on with: {self.go_on()}"

    def interrupted(self, stop: BaseException) -> BaseException:
        """What a stop becomes for the user: where the run stands, and how it goes on."""
        if isinstance(stop, limits.OutOfTime):
            evaluate_only = self.go_on(
                trainer__max_minutes=None, trainer__max_steps=self.state.step
            )
            more = self.go_on(trainer__max_minutes=2 * self.settings.max_minutes)
            begun = self.directory.checkpoint("last").is_file()
            how = f"evaluate what is saved with: {evaluate_only}" if begun else f"try: {more}"
            return limits.OutOfTime(
                f"trainer.max_minutes={self.settings.max_minutes:g} ended {self._doing}; {how}"
            )
        if str(stop):
            return stop
        number = getattr(stop, "number", limits.SIGNALS[0])
        return limits.Stopped(number, self._stopped(self._doing))

    def _save_and_restart_clock(self) -> None:
        self._finish_clock()
        self.save_last()

    def _finish_clock(self) -> None:
        """Book the seconds so far."""
        self.state.seconds = self._seconds()
        self._started = time.monotonic()

    def _over(self) -> bool:
        state, settings = self.state, self.settings
        if self.total is not None and state.step >= self.total:
            return True
        if settings.patience and state.evaluations_since_best >= settings.patience:
            show.say(f"no better valid likelihood in {settings.patience} evaluations")
            return True
        if settings.max_minutes is None:
            return False
        return self._agree(self.budget.spent >= self._own_end())

    def _agree(self, flag: bool) -> bool:
        """Processes must stop at the same step: any asks, all stop."""
        return self._agreed(float(flag)) > 0

    def _agreed(self, value: float) -> float:
        """The largest of all processes: what they do must not differ by their clocks."""
        if self.fabric.world_size == 1:
            return value
        values = torch.tensor(value, device=self.fabric.device)
        return float(self.fabric.all_reduce(values, reduce_op="max"))

    def final_metrics(self) -> dict:
        """What the best weights had on valid and, evaluated for the only time, on test."""
        self.fabric.barrier()  # rank 0 may still be writing it
        best, spec = (
            checkpoints.load_checkpoint(self.directory.checkpoint("best")),
            self.splits.spec,
        )
        # Another model: last.pt goes on from the last weights, not from the best.
        model, self.model = self.model, self._placed(built(best["config"], spec, self.trust))
        try:
            self.model.load_state_dict(best["model"])
            if self.weights == "ema":
                self.model.load_state_dict(best["ema"], strict=False)
            parameters = self.model.num_parameters
            # An exact evaluation may take many minutes: valid had its own when this was saved.
            chosen = best["config"]["eval"]["weights"] == self.config["eval"]["weights"]
            valid = best["state"]["valid"] if chosen else self._evaluate("valid")
            try:
                reports = {"valid": valid, "test": self._evaluate("test")}
            except NoMean as error:
                every = show.command("score", run=self.directory.path, split="test")
                raise FloatingPointError(
                    f"{error}, so the run has no result; see every row with: {every}"
                ) from error
            gap = None
            if self.splits.true_log_prob is not None:
                truth = self.splits.true_log_prob(self.splits.test[:]).double().mean()
                gap = reports["test"]["nats"] + float(truth)
        finally:
            self.model = model
        state = self.state
        metrics = {
            "data": spec.name_with(self.model.context),
            "kind": spec.kind,
            "shape": list(spec.shape),
            "num_dims": spec.num_dims,
            "levels": spec.levels,
            "measure": self.model.spec.measure,
            "model": self.config["choices"]["model"],
            "parameters": parameters,
            "seed": self.seed,
            "started": self.config.get("started"),  # which runs of before it was a key lack
            "weights": self.weights,
            "best_step": state.best_step,
            "steps": state.total_step,
            "epochs": state.total_step / self.steps_per_epoch,
            "seconds": state.seconds,
            "examples_per_s": state.examples / max(state.seconds, 1e-9),
            **reports,
        }
        if len(self.candidates) > 1:
            metrics["selected"] = self.candidates[state.selected]
        if gap is not None:
            metrics["gap_to_truth"] = gap
        metrics |= checkpoints.peak_memory(self.fabric.device)
        if (warning := self.warning()) is not None:
            metrics["warning"] = warning
        return metrics | {
            "overrides": self.config["overrides"],
            "environment": checkpoints.environment(),
        }


def _fabric(settings: Settings) -> Fabric:
    """Device, precision and processes; several processes only where torchrun started them.

    The environment is named, not detected: Fabric would take the tasks of a Slurm allocation for
    processes of its own.
    """
    checkpoints.pick_device(settings.accelerator, "trainer.accelerator")
    if not checks.started_by_torchrun():
        if settings.devices > 1:
            raise ValueError(
                f"trainer.devices={settings.devices} needs one process a device; start it with: "
                f"torchrun --nproc-per-node={settings.devices} -m armodels train ..."
            )
        return Fabric(
            accelerator=settings.accelerator,
            devices=1,
            precision=settings.precision,
            plugins=[LightningEnvironment()],
        )
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=local,
        num_nodes=world // local,
        strategy="ddp",
        precision=settings.precision,
        plugins=[TorchElasticEnvironment()],
    )
    fabric.launch()
    return fabric


def _take_up(config: Mapping[str, Any]) -> tuple[dict, run.RunDirectory, list[str]]:
    """The config and directory of a run to continue, and the keys that change."""
    directory = run.RunDirectory.open(config["resume"])
    saved = directory.read_config()
    run.require_shape(saved, directory.path / "config.yaml")
    merged, names = build.override(saved, config["overrides"])
    places = {f"data.{key}" for key in checks.PATH_KEYS}
    for name in names:
        if name in places or name == "model.allow_large":
            continue
        if name.split(".")[0] in ("data", "model", "head", "seed"):
            raise ValueError(
                f"resume continues the same run, whose {name} cannot change; "
                f"start a new run instead"
            )
        if saved["trainer"].get("select") and not name.startswith(HARMLESS):
            raise ValueError(
                f"the run chooses by trainer.select, and among candidates that were trained "
                f"alike: its {name} cannot change; start a new run instead"
            )
    merged["resume"], merged["trust"] = config["resume"], config["trust"]
    # The run may be a stranger's: what protects this machine is lifted by this command alone.
    free = config["model"].get("allow_large", False)
    merged["model"] = {**merged["model"], "allow_large": free}
    kept = [o for o in saved["overrides"] if o.partition("=")[0] not in names]
    typed = [o.lstrip("+") for o in config["overrides"]]
    changes = [o for o in typed if o.partition("=")[0] in names]
    merged["overrides"] = kept + changes
    return merged, directory, names


def _refuse(config: Mapping[str, Any], trust: build.Trust) -> Settings:
    """Raise ValueError for what can be refused before any data is read; else the settings."""
    checks.require_keys(config)
    checks.require_fields(Settings, config["trainer"], "trainer.")
    settings = Settings(**config["trainer"])
    for values in settings.candidates():
        tried = with_values(config, values)
        build.schedule(tried["schedule"], trust)
        build.optimizer(tried["optimizer"], [torch.nn.Parameter(torch.zeros(1))], trust)
    return settings


def main(config: Mapping[str, Any]) -> float:
    """Train one model; returns the best valid nats, which sweeps minimize."""
    with show.logged() as log:
        return _main(config, log)


def affordable(
    config: Mapping[str, Any],
    settings: Settings,
    device: torch.device,
    spec: DataSpec,
    trust: build.Trust,
    guard: contextlib.AbstractContextManager,
) -> DensityModel:
    """The model of the config, unless it is above the budget of the machine.

    Args:
        config: Of the run.
        settings: Of its training.
        device: Where it is trained.
        spec: What a datum is.
        trust: Which of the user's own classes may be built.
        guard: Inside which it is built.
    """
    free, advice = config["model"].get("allow_large", False), memory.way_out(config["model"])
    most = memory.MOST if device.type == "cpu" and not free else None
    with memory.at_most(most, advice), guard:
        model = built(config, spec, trust)
    if not free:
        part = -(-settings.batch_size // settings.accumulate)
        needed = memory.of_training(model, part, averaged=settings.ema is not None)
        memory.require(needed, device, advice)
    return model


def _main(config: Mapping[str, Any], log: show.Log) -> float:
    resuming = bool(config["resume"])
    if resuming:
        config, directory, changed = _take_up(config)
        trust = build.Trust.of(config["trust"], directory.path / "config.yaml")
    else:
        trust, changed = build.Trust.in_own(config), None
        directory = run.RunDirectory.vacant(os.path.relpath(config["directory"]))
        select = without_typed(config["trainer"].get("select"), config["overrides"])
        config = {**config, "trainer": {**config["trainer"], "select": select}}
    settings = _refuse(config, trust)
    budget = limits.Budget(settings.max_minutes)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    fabric = _fabric(settings)
    show.muted = not fabric.is_global_zero
    directory = run.RunDirectory(fabric.broadcast(str(directory.path)))  # rank 0's, for all
    first = fabric.is_global_zero
    with directory.claimed(new=not resuming) if first else contextlib.nullcontext():
        return _begin(config, settings, budget, fabric, directory, trust, changed, log)


def _begin(
    config: Mapping[str, Any],
    settings: Settings,
    budget: limits.Budget,
    fabric: Fabric,
    directory: run.RunDirectory,
    trust: build.Trust,
    changed: list[str] | None,
    log: show.Log,
) -> float:
    """Train in a directory that is claimed; ``changed`` keys of a run that goes on, else None."""
    resuming = changed is not None
    last, path = None, directory.checkpoint("last")
    read_rows(directory.path)  # refused before anything of the run is written
    if resuming and path.is_file():
        last = checkpoints.load_checkpoint(path)
        if math.isfinite(last["state"]["best_nats"]):  # refused now, not after the last step
            checkpoints.load_checkpoint(directory.checkpoint("best"))
    source = build.source(config["data"], trust)
    own = checkpoints.spec_of(last, path) if last else source.spec
    spec = build.same_data(own, source.spec)
    for values in reversed(settings.candidates()):  # refused before any load
        tried = with_values(config, values)
        # Of candidates, only one has weights there to say how large it is.
        guarded = last and len(settings.candidates()) == 1
        guard = checkpoints.guard(tried, last, path) if guarded else contextlib.nullcontext()
        model = affordable(tried, settings, fabric.device, spec, trust, guard)
    splits = source.load()  # which may make the folder of the data
    if last and (spec := build.same_data(own, splits.spec)) != splits.spec:
        splits = replace(splits, spec=spec)
    config = build.located(config)
    trainer = Trainer(config, settings, fabric, model, splits, directory, budget, trust)
    if resuming:
        if last:
            trainer.take_up(last)
        else:
            show.say("the run was stopped before its first checkpoint: it starts again")
        if changed:
            show.say(f"resuming with a changed {', '.join(changed)}")
    if fabric.is_global_zero:
        directory.begin({**config, "resume": None, "trust": None})
        log.open(directory.path / "train.log")
    return _train(trainer)


def _train(trainer: Trainer) -> float:
    directory, spec, fabric = trainer.directory, trainer.splits.spec, trainer.fabric
    speaks = fabric.is_global_zero
    success = False
    if speaks:
        _announce(trainer)
        evaluated = trainer.state.valid_step == trainer.state.step
        trainer.tracker = Tracker(directory.path, trainer.state.total_step, evaluated)
        trainer.tracker.start(trainer.base)
    try:
        with trainer.watch, limits.unhidden():
            trainer.fit()
            metrics = trainer.final_metrics()
            # From here on all is known: who asks to stop now waits for its last files.
            if speaks:
                for split in ("valid", "test"):
                    for name in ("nats", "bits_per_dim"):
                        tag, value = f"with_best/{split}_{name}", metrics[split][name]
                        trainer.tracker.scalar(tag, value, metrics["steps"])
                directory.write_metrics(metrics)
                directory.write_status("done", warning=trainer.warning())
            success = True
            if speaks:
                _conclude(trainer, metrics)
    except (KeyboardInterrupt, limits.OutOfTime) as stop:
        told = trainer.interrupted(stop)
        if speaks and not success:
            directory.write_status("interrupted", str(told))
        raise told from None
    finally:
        if trainer.tracker:
            trainer.tracker.close(success=success)
    return trainer.state.best_nats if spec else math.nan


def _announce(trainer: Trainer) -> None:
    spec, model, splits = trainer.splits.spec, trainer.model, trainer.splits
    sizes = " / ".join(f"{len(part):,}" for part in (splits.train, splits.valid, splits.test))
    shape = "x".join(map(str, spec.shape))
    about = f"{spec.kind} {shape}, levels {spec.levels}, {sizes} train / valid / test"
    show.say(f"data   {spec.name}: {about}")
    name = trainer.config["choices"]["model"]
    show.say(f"model  {name}: {model.description}, {model.num_parameters:,} parameters")
    about = f"precision {trainer.settings.precision}, seed {trainer.seed}"
    show.say(f"on     {trainer.fabric.device}, {about}, {trainer.weights} weights evaluated")
    show.say(f"run    {trainer.directory.path}")
    if trainer.state.step:
        show.say(f"going on from step {trainer.state.step}")


def _conclude(trainer: Trainer, metrics: Mapping[str, Any]) -> None:
    path = os.path.relpath(trainer.directory.path)
    best = f"{metrics['weights']} weights of step {metrics['best_step']}"
    show.say()
    show.say(f"{metrics['data']}, {metrics['measure']}, {best}, {metrics['seconds']:.0f} s")
    for split in ("valid", "test"):
        show.say(describe(split, metrics[split]))
    if "gap_to_truth" in metrics:
        gap = f"{metrics['gap_to_truth']:.4f} nats above the true entropy of the test split"
        show.say(f"gap    {gap}")
    if "warning" in metrics:
        show.warn(metrics["warning"])
    trust = build.trusting(trainer.config)
    show.say()
    show.say("Next:")
    for line in (
        show.command("tensorboard", logdir=path),
        show.command("sample", run=path, num=64, **trust),
        show.command("complete", run=path, keep=0.5, **trust),
        show.command("eval", run=path, split="test", **trust),
        show.command("compare", os.path.dirname(path) or path),
    ):
        show.say(f"  {line}")
