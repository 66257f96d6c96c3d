"""armodels train: fit a model, evaluate it exactly, leave a run directory."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from armodels import (
    blending,
    candidates,
    checkpoints,
    checks,
    construct,
    distilling,
    limits,
    machine,
    resuming,
    run,
    show,
)
from armodels.density.stream import describe_past, reads
from armodels.evaluation import describe
from armodels.tracking import read_rows, require_loggers
from armodels.training.loop import Trainer
from armodels.training.processes import make_fabric
from armodels.training.record import InFiles
from armodels.training.result import Origin, Result
from armodels.training.settings import Settings, Watching
from armodels.trust import Trust, trusting

Hopeless = Callable[[float, float], bool]


def main(config: Mapping[str, Any], hopeless: Hopeless | None = None) -> float:
    """Train one model; returns the best valid nats, which sweeps minimize.

    Args:
        config: Of the run.
        hopeless: Epochs, valid nats -> whether the run is given up; None: it never is.

    Raises:
        limits.GivenUp: It is.
    """
    with show.logged() as log:
        return _main(config, log, hopeless)


def _main(config: Mapping[str, Any], log: show.Log, hopeless: Hopeless | None) -> float:
    resuming_run = bool(config["resume"])
    if resuming_run:
        config, directory, changed = resuming.take_up(config)
        trust = Trust.of(config["trust"], directory.path / "config.yaml")
    else:
        named = (
            Trust.in_own(config).names | Trust.of(config["trust"]).names
        )  # members' own classes
        trust, changed = Trust(named), None
        directory = run.RunDirectory.vacant(os.path.relpath(config["directory"]))
        select = config["trainer"].get("select")
        select = candidates.without_typed(select, config["overrides"])
        config = {**config, "trainer": {**config["trainer"], "select": select}}
    run.require_sizes(config)
    if not checks.started_by_torchrun() and config["trainer"]["accelerator"] in ("auto", "cuda"):
        machine.take_device()
    settings = candidates.settings_of(config, trust)
    budget = limits.Budget(settings.max_minutes)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    fabric = make_fabric(settings)
    config = {**config, "trainer": {**config["trainer"], "devices": None}}  # of the command alone
    directory = run.RunDirectory(fabric.broadcast(str(directory.path)))  # the first one's, for all
    first = fabric.is_global_zero
    loggers = require_loggers(config["logger"]) if first else ()
    with directory.claimed(new=not resuming_run) if first else contextlib.nullcontext():
        trainer, teacher = _begin(
            config, settings, budget, fabric, directory, trust, changed, hopeless, loggers
        )
        if first:
            log.open(directory.path / "train.log")
            _announce(trainer)
        trust_again = trusting(trainer.learner.candidate.config)
        try:
            trainer.run(
                functools.partial(_conclude, trust=trust_again, teacher=teacher) if first else None
            )
        except FloatingPointError:
            # Data may be impossible under a student, whose gap is a number all the same.
            if teacher and first and trainer.state.step:
                distilling.report(trainer.learner.model.eval(), teacher)
            raise
        return trainer.state.best_nats


def _begin(
    config: Mapping[str, Any],
    settings: Settings,
    budget: limits.Budget,
    fabric: Fabric,
    directory: run.RunDirectory,
    trust: Trust,
    changed: list[str] | None,
    hopeless: Hopeless | None,
    loggers: Sequence[str],
) -> tuple[Trainer, distilling.Teacher | None]:
    """What trains in a directory that is claimed; ``changed`` keys of a run that goes on."""
    last, path = None, directory.checkpoint("last")
    read_rows(directory.path)  # refused before anything of the run is written
    if changed is not None and path.is_file():
        last = checkpoints.load_checkpoint(path)
        if math.isfinite(last["state"]["best_nats"]):  # refused now, not after the last step
            best = directory.checkpoint("best")
            checkpoints.rebuild(checkpoints.load_checkpoint(best), best, trust)
    source = construct.source(config["data"], trust)
    own = checkpoints.spec_of(last, path) if last else source.spec
    spec = construct.same_data(own, source.spec)
    config, members = blending.take_up(config, spec) if last is None else (config, [])

    def guard(tried: Mapping[str, Any]) -> contextlib.AbstractContextManager:
        return checkpoints.guard(tried, last, path) if last else contextlib.nullcontext()

    config, teacher = distilling.take_up(config, spec, settings, fabric.device)
    # Whatever cannot be trained is refused before any load.
    measured = distilling.measured(teacher)
    model = candidates.first_model(config, settings, fabric.device, spec, trust, guard, measured)
    if teacher:
        distilling.require_student(model)
    blending.warn(config, spec, members)
    splits = source.load()  # which may make the folder of the data
    candidates.require_learnable(config, model, splits, fabric.device)
    if last and (spec := construct.same_data(own, splits.spec)) != splits.spec:
        splits = replace(splits, spec=spec)
    config = construct.located(config)
    go_on = _go_on(config, directory, fabric.world_size)
    several = candidates.candidates(config, settings, splits.spec, trust)
    trainer = Trainer(
        [distilling.taught(blending.filled(one, members), teacher) for one in several],
        splits,
        settings,
        watching_of(config),
        fabric,
        InFiles(directory, config if fabric.is_global_zero else None, loggers, go_on),
        origin_of(config),
        budget,
        blending.fill(model, members),
        hopeless,
    )
    if last:
        trainer.take_up(last, path)
    elif changed is not None:
        show.say("the run was stopped before its first checkpoint: it starts again")
    if changed:
        show.say(f"resuming with a changed {', '.join(changed)}")
    if fabric.is_global_zero:
        directory.begin({**config, "resume": None, "trust": None})
    return trainer, teacher


def watching_of(config: Mapping[str, Any]) -> Watching:
    """What the ``eval`` and ``samples`` parts of a config ask for."""
    evaluated, samples = config["eval"], config["samples"]
    return Watching(
        evaluated["weights"], evaluated["batch_size"], samples["num"], samples["temperature"]
    )


def origin_of(config: Mapping[str, Any]) -> Origin:
    """How a run was asked for, as its metrics say it."""
    # Runs from before ``started`` was a key have none.
    started = config.get("started")
    return Origin(config["choices"]["model"], config["seed"], started, config["overrides"])


def _go_on(
    config: Mapping[str, Any], directory: run.RunDirectory, num_processes: int
) -> Callable[..., str]:
    """The command that continues the run, as a function of the keys that change."""
    again: dict[str, Any] = dict(trusting(config))
    again |= {"model__allow_large": True} if config["model"].get("allow_large") else {}

    verb = "distill" if config.get("teacher") else "train"

    def command(**overrides: object) -> str:
        command = show.command(verb, resume=directory.path, **overrides, **again)
        return show.in_processes(command, num_processes)

    return command


def _announce(trainer: Trainer) -> None:
    spec, model, splits = trainer.splits.spec, trainer.learner.model, trainer.splits
    sizes = " / ".join(f"{len(part):,}" for part in (splits.train, splits.valid, splits.test))
    shape = "x".join(map(str, spec.shape))
    if spec.num_units:
        size = f" of {spec.unit_size} values" if spec.unit_size > 1 else ""
        shape = f"of {spec.num_units:g} {spec.unit}s{size}"
    about = f"{spec.kind} {shape}, levels {spec.levels}, {sizes} train / valid / test"
    show.say(f"data   {spec.name}: {about}")
    name, seed = trainer.origin.model, trainer.origin.seed
    about = f"{model.num_parameters:,} parameters{describe_past(model)}"
    show.say(f"model  {name}: {model.description}, {about}")
    about = f"precision {trainer.settings.precision}, seed {seed}"
    show.say(f"on     {trainer.fabric.device}, {about}, {trainer.weights} weights evaluated")
    show.say(f"run    {trainer.record.path}")
    if trainer.state.step:
        show.say(f"going on from step {trainer.state.step}")


def _conclude(
    result: Result, trust: Mapping[str, Any], teacher: distilling.Teacher | None
) -> None:
    metrics, path = result.metrics, os.path.relpath(str(result.directory))
    best = f"{metrics['weights']} weights of step {metrics['best_step']}"
    show.say()
    show.say(f"{metrics['data']}, {metrics['measure']}, {best}, {metrics['seconds']:.0f} s")
    for split in [split for split in ("valid", "test") if split in metrics]:
        show.say(describe(split, metrics[split], result.model.spec))
    if "gap_to_truth" in metrics:
        of = " a sequence" if result.model.spec.num_units else ""
        gap = f"{metrics['gap_to_truth']:.4f} nats{of} above the true entropy of the test split"
        show.say(f"gap    {gap}")
    if teacher and result.directory:
        found = distilling.report(result.model, teacher)
        run.RunDirectory(result.directory).write_metrics({**metrics, **found})
    if "warning" in metrics:
        show.warn(metrics["warning"])
    show.say()
    show.say("Next:")
    spec = result.model.spec
    known: dict[str, Any] = {"keep": 0.5}
    context = result.model.context
    if reads(result.model) and (context is None or not context.shape):
        known = {"length": "1s" if spec.waveform is not None else round(spec.num_units)}
        if spec.alphabet is not None:
            known = {"prompt": spec.alphabet.letter}
        known |= {} if context is None else {"label": 0}
    elif spec.notes is not None and spec.notes.voices:
        known = {"known": [spec.notes.voices[0]]}
    events = any(Path(path).glob("events.*"))
    for line in (
        *([show.command("tensorboard", logdir=path)] if events else []),
        show.command("sample", run=path, num=64, **trust),
        show.command("complete", run=path, **known, **trust),
        show.command("eval", run=path, split="test", **trust),
        show.command("compare", os.path.dirname(path) or path),
    ):
        show.say(f"  {line}")
