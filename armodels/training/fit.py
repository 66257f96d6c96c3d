"""``armodels.fit``: the loop of ``armodels train``, for a model and data made in Python."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from armodels import contexts, limits, show
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.objectives import Objective
from armodels.run import RunDirectory
from armodels.schedules import Cosine, Schedule
from armodels.training.learner import Candidate, default_objective
from armodels.training.loop import Trainer
from armodels.training.processes import make_fabric
from armodels.training.record import InFiles, InMemory, Record
from armodels.training.result import Origin, Result
from armodels.training.settings import Settings, Watching
from armodels.training.streams import WEIGHTS, stream

Optimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def adamw(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer where nothing else is asked for."""
    return torch.optim.AdamW(params, lr=1e-3)


def fit(
    model: DensityModel,
    splits: Splits,
    settings: Settings | None = None,
    *,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    objective: Callable[[DensityModel], Objective] | None = None,
    watching: Watching | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    initialize: bool = True,
    seed: int = 0,
    name: str | None = None,
    quiet: bool = False,
) -> Result:
    """Train a model, keep what is best on valid, and evaluate that exactly on valid and test.

    This is the loop of ``armodels train``: with the same model, data and settings it takes the
    same steps, bit for bit. The global random stream of torch is seeded anew.

    Args:
        model: Trained in place; ends with its best weights, in evaluation mode, on the device of
            the training.
        splits: The data, such as ``Splits.of(array)`` or ``armodels.load_data("digits")``.
        settings: None: at most 50 epochs and at most five minutes.
        optimizer: Parameters -> what moves them; None: AdamW with a rate of 0.001.
        schedule: Factor on the learning rate; None: half a cosine down to 0.
        objective: Model -> what training maximizes; None: what the model names itself.
        watching: What is evaluated and drawn beside the steps; None: averaged weights where
            ``settings.ema`` keeps them, and 64 samples where there is a directory.
        directory: A new run directory, which ``armodels compare`` and TensorBoard read as any
            other; None: nothing is written. Its checkpoints hold weights, but not how the model
            is made: ``armodels.load_model(directory, model=...)`` puts them into one that is.
        resume: Go on with the run of the directory, bit for bit.
        initialize: Set output biases, and all else that a family finds in closed form, from the
            training split before the first step, parameters that are frozen included; False: go
            on from the weights as they are, such as those of a model that is trained already.
        seed: Of every random draw.
        name: Of the model, in metrics; None: its description.
        quiet: Print warnings alone.

    Returns:
        The model, its numbers and its curves.

    Raises:
        ValueError: The model and the data do not go together, or settings are refused.
        FileExistsError: The directory holds something.
        FileNotFoundError: There is no run to go on with.
        FloatingPointError: A loss is not finite.
        limits.OutOfTime: ``settings.max_minutes`` holds no exact evaluation.
        KeyboardInterrupt: A signal asked for an end; with a directory everything is saved.
    """
    settings = settings or Settings(max_minutes=5)
    _require_fit(model, splits, settings)
    if directory is None and resume:
        raise ValueError("resume=True goes on with the run of a directory: name it")
    watching = watching or Watching()
    schedule, optimizer = schedule or Cosine(), optimizer or adamw
    budget = limits.Budget(settings.max_minutes)
    torch.manual_seed(stream(WEIGHTS, seed))
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    origin = Origin(name or model.description, seed, started)
    config = _described(origin, splits, settings, watching, optimizer, schedule)
    candidate = Candidate(
        model=lambda: model,
        optimizer=optimizer,
        schedule=schedule,
        objective=objective or default_objective,
        initialize=initialize,
        config=config,
    )
    with _quiet() if quiet else contextlib.nullcontext(), _threads(settings.threads):
        fabric = make_fabric(settings)
        with _record(directory, config, resume=resume, first=fabric.is_global_zero) as record:
            trainer = Trainer(
                [candidate], splits, settings, watching, fabric, record, origin, budget
            )
            if directory is not None and resume and record.has("last"):
                _take_up(trainer, record, RunDirectory(directory).checkpoint("last"))
            return trainer.run()


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
    if settings.select:
        raise ValueError("fit trains one model; to choose among several, call it for each")


def _described(
    origin: Origin,
    splits: Splits,
    settings: Settings,
    watching: Watching,
    optimizer: Optimizer,
    schedule: Schedule,
) -> dict[str, Any]:
    """What a run directory says of a training; no model can be made again by it."""
    moves = optimizer([torch.nn.Parameter(torch.zeros(1))])
    rates = {k: v for k, v in moves.defaults.items() if isinstance(v, (int, float, str))}
    shape = {k: v for k, v in vars(schedule).items() if isinstance(v, (int, float, str))}
    return {
        "seed": origin.seed,
        "data": {},
        "model": {},
        "head": {},
        "optimizer": {"_target_": _class_of(moves), **rates},
        "schedule": {"_target_": _class_of(schedule), **shape},
        "trainer": asdict(settings),
        "eval": {"weights": watching.weights, "batch_size": watching.batch_size},
        "samples": {"num": watching.num_samples, "temperature": watching.temperature},
        "choices": {"model": origin.model, "data": splits.spec.name, "experiment": None},
        "overrides": [],
        "started": origin.started,
    }


def _class_of(made: object) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}"


@contextlib.contextmanager
def _record(
    directory: str | Path | None, config: dict[str, Any], *, resume: bool, first: bool
) -> Iterator[Record]:
    """Where the training puts what it leaves behind; a directory is held inside the block."""
    if directory is None:
        yield InMemory()
        return
    run = RunDirectory.open(directory) if resume else RunDirectory.vacant(directory)

    def command(**changes: object) -> str:
        keys = ", ".join(f"{key.removeprefix('trainer__')}={v}" for key, v in changes.items())
        settings = f", Settings({keys})" if changes else ""
        return f"armodels.fit(model, splits{settings}, directory={str(directory)!r}, resume=True)"

    with run.claimed(new=not resume) if first else contextlib.nullcontext():
        if first:
            run.begin(config)
        try:
            yield InFiles(run, config if first else None, command)
        except Exception as error:
            if first and run.read_status()["status"] == "running":  # it was not interrupted
                run.write_status("failed", str(error))
            raise


def _take_up(trainer: Trainer, record: Record, path: Path) -> None:
    """Go on from the last checkpoint of the directory.

    Raises:
        ValueError: It is of other data, or of another model.
    """
    last = record.load("last")
    was, now = last["spec"]["name"], trainer.splits.spec.name
    if was != now:
        raise ValueError(f"the run of {record.path} was trained on {was}, not on {now}")
    trainer.take_up(last, path)
    if trainer.state.step:
        show.say(f"going on from step {trainer.state.step}")
