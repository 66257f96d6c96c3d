"""``armodels.fit``: the loop of ``armodels train``, for a model and data made in Python."""

import contextlib
import difflib
import functools
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from armodels import checkpoints, contexts, disk, limits, show
from armodels.checks import HARMLESS, Seed, checked, require_class
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.loggers.base import read_names
from armodels.objectives import AllOrders, Canonical, MixtureOrder, Objective, RandomOrder
from armodels.run import RunDirectory, require_shape
from armodels.schedules import Cosine, Schedule
from armodels.tracking import require_loggers
from armodels.training.learner import Candidate, default_objective, require_rates
from armodels.training.loop import Trainer
from armodels.training.processes import make_fabric
from armodels.training.record import InFiles, InMemory, Record
from armodels.training.result import Origin, Result
from armodels.training.settings import LIMITS, Settings, Watching, in_python
from armodels.training.streams import WEIGHTS, stream

State = Mapping[str, Any]
"""A checkpoint's content."""

Optimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def adamw(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer where nothing else is asked for."""
    return torch.optim.AdamW(params, lr=1e-3)


@checked
def fit(
    model: DensityModel,
    splits: Splits,
    settings: Settings | None = None,
    *,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    objective: Callable[[DensityModel], Objective] | None = None,
    watching: Watching | None = None,
    directory: str | os.PathLike | None = None,
    resume: bool = False,
    initialize: bool = True,
    seed: Seed = 0,
    name: str | None = None,
    logger: str | Sequence[str] = "tensorboard",
    quiet: bool = False,
    **changes: Any,
) -> Result:
    """Train a model, keep what is best on valid, and evaluate that exactly on valid and test.

    This is the loop of ``armodels train``: with the same model, data and settings it takes the
    same steps, bit for bit. The global random stream of torch is seeded anew.

    Args:
        model: Trained in place; ends with its best weights, in evaluation mode, on the device of
            the training.
        splits: The data, such as ``Splits.of(array)`` or ``armodels.load_data("digits")``.
        settings: None: at most 50 epochs and, where no limit is named, at most five minutes.
        optimizer: Parameters -> what moves them; None: AdamW with a rate of 0.001.
        schedule: Factor on the learning rate; None: half a cosine down to 0.
        objective: Model -> what training maximizes; None: what the model names itself.
        watching: What is evaluated and drawn beside the steps; None: averaged weights where
            ``settings.ema`` keeps them, and 64 samples where there is a directory.
        directory: A new run directory, which ``armodels compare`` and TensorBoard read as any
            other; None: nothing is written. ``armodels.load_model(directory)`` makes the model
            again if ``armodels.build`` made it; weights of one that was made otherwise go into
            one made alike, ``armodels.load_model(directory, model=...)``.
        resume: Go on with the run of the directory, bit for bit. Its limits and evaluations may
            change, and the values of its optimizer and schedule; what else makes a step may not.
        initialize: Set output biases, and all else that a family finds in closed form, from the
            training split before the first step, parameters that are frozen included; False: go
            on from the weights as they are, such as those of a model that is trained already.
        seed: Of every random draw.
        name: Of the model, in metrics; None: its description.
        logger: What gets the curves of a run with a directory: ``"tensorboard"``, ``"wandb"``,
            ``"mlflow"``, several of them, or ``"none"``; metrics.csv is there in any case.
        quiet: Print warnings alone.
        changes: Settings by name, such as ``max_minutes=1``; they replace those of ``settings``.

    Returns:
        The model, its numbers and its curves.

    Raises:
        TypeError: An argument is not what its type says, or there is none of that name.
        ValueError: The model, the data and the objective do not go together, settings are
            refused, the run that goes on is another one, the directory cannot be made, the
            network hears values before their step, or a logger is none or lacks its package.
        FileExistsError: The directory holds something.
        FileNotFoundError: There is no run to go on with.
        FloatingPointError: A loss is not finite.
        limits.OutOfTime: ``settings.max_minutes`` holds no exact evaluation.
        KeyboardInterrupt: A signal asked for an end; with a directory everything is saved.

    Examples:
        >>> import armodels
        >>> import torch
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> coins = torch.randint(2, (1000, 1)).expand(-1, 5)  # one coin, told five times
        >>> splits = armodels.Splits.of(coins)
        >>> model = armodels.build("made", splits.spec, hidden_sizes=[20])
        >>> adam = lambda params: torch.optim.Adam(params, lr=0.05)
        >>> result = armodels.fit(model, splits, max_epochs=12, optimizer=adam, quiet=True)
        >>> round(result.metrics["test"]["nats"], 1)  # that of one coin is log 2 = 0.69
        0.7
    """
    _require_types(model, splits, settings, schedule, watching)
    settings = _changed(settings, changes)
    _require_fit(model, splits, settings)
    if directory is None and resume:
        raise ValueError("resume=True goes on with the run of a directory: name it")
    if directory is None and {*read_names(logger)} - {"tensorboard"}:
        raise ValueError(f"logger={logger!r} records the run of a directory: name it")
    loggers = require_loggers(logger)
    watching = watching or Watching()
    schedule, seed = schedule or Cosine(), int(seed)
    optimizer = adamw if optimizer is None else optimizer
    moves = _optimizer(optimizer, model)
    directory = None if directory is None else disk.as_path(directory, "directory")
    budget = limits.Budget(settings.max_minutes)
    torch.manual_seed(stream(WEIGHTS, seed))
    trained = _objective(objective or default_objective, model)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    origin = Origin(name or model.description, seed, started)
    config = _described(origin, model, splits, settings, watching, moves, schedule)
    config["objective"] = {"_target_": _class_of(trained)}
    config["orders"] = checkpoints.orders_of(model)
    config["logger"] = list(loggers)
    candidate = Candidate(
        model=lambda: model,
        optimizer=optimizer,
        schedule=schedule,
        objective=lambda _: trained,
        initialize=initialize,
        config=config,
    )
    with in_python(), _quiet() if quiet else contextlib.nullcontext(), _threads(settings.threads):
        fabric = make_fabric(settings)
        run = None if directory is None else _run(directory, config, resume=resume)
        find = functools.partial(_last, model=model) if resume else None
        with _record(run, config, find, first=fabric.is_global_zero) as (record, last):
            trainer = Trainer(
                [candidate], splits, settings, watching, fabric, record, origin, budget
            )
            if run and last:
                trainer.take_up(last, run.checkpoint("last"))
                if trainer.state.step:
                    show.say(f"going on from step {trainer.state.step}")
            return trainer.run()


def _changed(settings: Settings | None, changes: Mapping[str, Any]) -> Settings:
    """The settings with changes.

    Raises:
        TypeError: There is no setting of that name.
        ValueError: A value is refused.
    """
    known = [field.name for field in fields(Settings)]
    for key in changes:
        if key not in known:
            others = inspect.signature(fit).parameters
            near = difflib.get_close_matches(key, [*known, *others], 1)
            hint = f"did you mean {near[0]}?" if near else f"settings are {', '.join(known)}"
            if key in ("lr", "learning_rate", "weight_decay", "betas", "momentum"):
                hint = "give optimizer=lambda params: torch.optim.AdamW(params, lr=0.001)"
            raise TypeError(f"fit has no argument {key}; {hint}")
    if settings is None:
        settings = Settings(max_minutes=None if {*LIMITS} & {*changes} else 5)
    return replace(settings, **changes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside the block, neither this package nor Fabric prints more than warnings."""
    log = logging.getLogger("lightning_fabric")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        with show.quiet():
            yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Inside the block torch computes in so many threads; None: in as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _require_fit(model: DensityModel, splits: Splits, settings: Settings) -> None:
    """Raise ValueError unless the model can be trained on the data."""
    own, spec = model.spec, splits.spec
    if (own.kind, own.shape, own.levels) != (spec.kind, spec.shape, spec.levels):
        raise ValueError(
            f"the model is one of {own.kind} {own.shape}, levels {own.levels}, but data "
            f"{spec.name} is {spec.kind} {spec.shape}, levels {spec.levels}"
        )
    if (wanted := model.context) is not None:
        if contexts.available(spec).get(wanted.name) != wanted:
            raise ValueError(f"the model is conditioned on {wanted.name}, which {spec.name} lacks")
        if wanted in spec.contexts and wanted.name not in splits.contexts:
            raise ValueError(
                f"the model is conditioned on {wanted.name}, which the spec of {spec.name} "
                f"promises, but Splits(contexts=...) does not hold"
            )
    if settings.strategy == "fsdp":
        raise ValueError(
            "strategy=fsdp parts the weights of a model, and fit trains the one it is given; use: "
            "armodels train trainer.strategy=fsdp"
        )
    if settings.select:
        raise ValueError("fit trains one model; to choose among several, call it for each")


def _require_types(
    model: object, splits: object, settings: object, schedule: object, watching: object
) -> None:
    """Raise TypeError unless each is an object of its class; the last three may be None."""
    wanted: list[tuple[str, object, type, str]] = [
        ("model", model, DensityModel, "such as armodels.AutoregressiveModel(net, head)"),
        ("splits", splits, Splits, "such as armodels.Splits.of(array)"),
        ("settings", settings, Settings, "such as armodels.Settings(max_epochs=10)"),
        ("schedule", schedule, Schedule, "such as armodels.schedules.Cosine()"),
        ("watching", watching, Watching, "such as Watching(num_samples=0)"),
    ]
    for name, value, kind, example in wanted:
        optional = value is None and name not in ("model", "splits")
        if not optional:
            require_class(name, value, kind, example)


def _optimizer(make: Optimizer, model: DensityModel) -> torch.optim.Optimizer:
    """What would move the model's weights, which it leaves as they are.

    Raises:
        TypeError: It is no optimizer.
        ValueError: It asks for more than a gradient, has no rate, or moves other weights.
    """
    example = "lambda params: torch.optim.Adam(params, lr=0.001)"
    if isinstance(make, torch.optim.Optimizer) or not callable(make):
        raise TypeError(
            f"optimizer is of type {type(make).__name__}; it must be a function of the "
            f"parameters, such as {example}"
        )
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:  # Nothing is moved, and no optimizer takes nothing.
        return adamw([torch.nn.Parameter(torch.zeros(1))])
    # Only the model's own weights have the shapes that an optimizer may choose by.
    made = make(params)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer makes {type(made).__name__} of the parameters; it must make a "
            f"torch.optim.Optimizer, as {example} does"
        )
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer {type(made).__name__} evaluates the loss anew within a step, which fit "
            f"cannot do; choose another, such as {example}"
        )
    require_rates(made)
    own = set(map(id, model.parameters()))
    if any(id(p) not in own for group in made.param_groups for p in group["params"]):
        raise ValueError(
            f"optimizer {type(made).__name__} moves weights that are not the model's; it "
            f"must move the parameters that it is given, as {example} does"
        )
    return made


def _objective(make: Callable[[DensityModel], Objective], model: DensityModel) -> Objective:
    """What training maximizes.

    Raises:
        TypeError: It is no objective.
        ValueError: The model is not of the kind that it trains, or other weights are in it.
    """
    if isinstance(make, torch.nn.Module) or not callable(make):
        raise TypeError(
            f"objective is of type {type(make).__name__}; it must be a function of the model, "
            f"such as the class armodels.objectives.Likelihood"
        )
    made = make(model)
    if not isinstance(made, Objective):
        raise TypeError(
            f"objective makes {type(made).__name__} of the model; it must make an "
            f"armodels.objectives.Objective"
        )
    name, own = type(made).__name__, getattr(made, "model", None)
    if not isinstance(own, torch.nn.Module):
        raise TypeError(
            f"objective {name} holds no model; its __init__ must begin with "
            f"super().__init__(model)"
        )
    _require_no_other_weights(made, model)
    suits = {
        AllOrders: getattr(getattr(own, "net", None), "any_order", False),
        Canonical: getattr(getattr(own, "net", None), "any_order", False),
        RandomOrder: hasattr(own, "with_order"),
        MixtureOrder: hasattr(own, "component"),
    }
    if not suits.get(type(made), True):
        raise ValueError(
            f"objective {name} does not suit the model, {model.description}; "
            f"objective=None trains what suits it"
        )
    return made


def _require_no_other_weights(objective: Objective, model: DensityModel) -> None:
    """Raise ValueError where an objective holds weights that are not those of the model.

    Nothing would move them, and no checkpoint would keep them. What ``persistent=False`` says is
    made anew by whoever makes the objective.
    """
    kept = set(map(id, model.state_dict(keep_vars=True).values()))
    state = objective.state_dict(keep_vars=True)
    others = [
        name
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and id(value) not in kept
    ]
    kind = type(objective).__name__
    if any(name.startswith("model.") for name in others):
        raise ValueError(
            f"objective {kind} holds another model than the one that is trained; it must be made "
            f"of the model that it is given, as armodels.objectives.Likelihood is"
        )
    if others:
        raise ValueError(
            f"objective {kind} has weights of its own, {', '.join(others)}, which fit neither "
            f"trains nor saves; put what is trained into the model, and what is constant into "
            f"buffers with persistent=False"
        )


def _described(
    origin: Origin,
    model: DensityModel,
    splits: Splits,
    settings: Settings,
    watching: Watching,
    moves: torch.optim.Optimizer,
    schedule: Schedule,
) -> dict[str, Any]:
    """What a run directory says of a training; it names no data."""
    rates = {k: v for k, v in moves.defaults.items() if isinstance(v, (int, float, str))}
    shape = {k: v for k, v in vars(schedule).items() if isinstance(v, (int, float, str))}
    described = {
        "seed": origin.seed,
        "data": {},
        "model": {},
        "head": {},
        **(model.built_from or {}),
        "optimizer": {"_target_": _class_of(moves), **rates},
        "schedule": {"_target_": _class_of(schedule), **shape},
        "trainer": asdict(settings),
        "eval": {"weights": watching.weights, "batch_size": watching.batch_size},
        "samples": {"num": watching.num_samples, "temperature": watching.temperature},
        "choices": {"model": origin.model, "data": splits.spec.name, "experiment": None},
        "overrides": [],
        "started": origin.started,
    }
    return _plain(described)


def _plain(value: Any) -> Any:
    """The same with NumPy's numbers as Python's own."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _class_of(made: object) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}"


def _run(directory: Path, config: dict[str, Any], *, resume: bool) -> RunDirectory:
    """The directory of a new run, or of one that goes on.

    Raises:
        FileExistsError: That of a new run holds something.
        FileNotFoundError: There is no run to go on with.
        ValueError: The run goes on by other steps than it was begun with, or the directory of
            a new one cannot be made.
    """
    if not resume:
        return RunDirectory.vacant(directory, option="directory")
    run = RunDirectory.open(directory, option="directory")
    _require_same(run, config)
    return run


def _last(run: RunDirectory, model: DensityModel) -> State | None:
    """The checkpoint from which a run goes on; None: it was stopped before its first.

    Raises:
        ValueError: It is of another model.
    """
    path = run.checkpoint("last")
    if not path.is_file():
        return None
    last = checkpoints.load_checkpoint(path)
    checkpoints.require_fit(model, last, path)
    return last


@contextlib.contextmanager
def _record(
    run: RunDirectory | None,
    config: dict[str, Any],
    find: Callable[[RunDirectory], State | None] | None,
    *,
    first: bool,
) -> Iterator[tuple[Record, State | None]]:
    """Where the training puts what it leaves behind, and what it goes on from.

    A directory is held inside the block. What ``find`` refuses leaves it as it was.
    """
    if run is None:
        yield InMemory(), None
        return

    def command(**changes: object) -> str:
        keys = ", ".join(f"{key.removeprefix('trainer__')}={v}" for key, v in changes.items())
        settings = f", Settings({keys})" if changes else ""
        return f"armodels.fit(model, splits{settings}, directory={str(run.path)!r}, resume=True)"

    with run.claimed(new=find is None) if first else contextlib.nullcontext():
        last = find(run) if find else None
        if first:
            run.begin(config)
        try:
            yield InFiles(run, config if first else None, config["logger"], command), last
        except Exception as error:
            if first and run.read_status()["status"] == "running":  # it was not interrupted
                run.write_status("failed", str(error))
            raise


_ENDS = ("max_epochs", "max_steps", "patience", "eval_every")
"""Settings that say when a training ends or is evaluated: a run may go on under others."""


def _require_same(run: RunDirectory, config: dict[str, Any]) -> None:
    """Raise ValueError unless a run goes on by the steps that it was begun with."""
    saved = run.read_config()
    require_shape(saved, run.path / "config.yaml")
    if saved["data"]:
        raise ValueError(
            f"the run of {run.path} was trained by armodels train; go on with: "
            f"armodels train {show.override('resume', run.path)}"
        )
    was, now = saved["choices"].get("data"), config["choices"]["data"]
    if was != now:
        raise ValueError(f"the run of {run.path} was trained on {was}, not on {now}")
    kept = [key for key in config["trainer"] if not f"trainer.{key}".startswith(HARMLESS)]
    pairs = [("seed", saved["seed"], config["seed"])]
    for part in ("optimizer", "objective"):  # Older runs lack an objective.
        own = config[part]["_target_"]
        if not isinstance(saved.get(part, {}), Mapping):
            file = run.path / "config.yaml"
            raise ValueError(f"{file} is damaged: {part} is not as armodels wrote it")
        pairs.append((part, saved.get(part, {}).get("_target_", own), own))
    for key in kept:
        pairs.append((key, saved["trainer"].get(key), config["trainer"][key]))
    for name, before, after in pairs:
        if name not in _ENDS and before != after:
            raise ValueError(
                f"the run of {run.path} was begun with {name}={before}, and cannot go on with "
                f"{after}; train into another directory instead"
            )
