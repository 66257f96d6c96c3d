"""armodels tune: search the values with the least valid nats; test is read once, for the best."""

import contextlib
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from armodels import candidates, errors, failing, limits, search, show
from armodels import study as studies
from armodels.run import RunDirectory
from armodels.trust import Trust, trusting

Compose = Callable[[Sequence[str], str], dict]
"""Words of a training, its directory -> its config."""

Train = Callable[[Mapping[str, Any], Callable[[float, float], bool] | None], float]
"""A config, and epochs, valid nats -> whether to give up; it returns the best valid nats."""


def main(config: Mapping[str, Any], compose: Compose, train: Train) -> None:
    """Train trials until there are enough of them, then evaluate the best on test.

    Args:
        config: Of the search.
        compose: From words to the config of a training.
        train: What trains.

    Raises:
        ValueError: It cannot be searched, or no trial was trained to its end.
    """
    studies.require_optuna()
    fixed, knobs = search.read(config["words"])
    _refuse(fixed, knobs)
    base = _composed(compose, fixed)
    if not knobs:
        fixed, knobs = _shipped(fixed, base)
    first = _composed(compose, [*fixed, *(knob.word(knob.first) for knob in knobs)])
    candidates.settings_of(first, _trust(first))
    choices = base["choices"]
    content = studies.identity(fixed, knobs)
    place = Path("outputs", choices["data"], choices["model"], f"tune-{studies.short(content)}")
    found = {knob.key: knob.holds(search.lookup(base, knob.key)) for knob in knobs}
    study = studies.Study(
        Path(config["out"] or place),
        config["storage"],
        content,
        knobs,
        {key: value for key, value in found.items() if value is not None},
        base["seed"],
        config["pruner"],
        _evaluations(base["trainer"]),
    )
    with study.working():
        _announce(study, knobs, config["num_trials"])
        try:
            while trial := study.take(config["num_trials"]):
                words = [*fixed, *(knob.word(trial.values[knob.key]) for knob in knobs)]
                show.say(f"{_line(trial, knobs)}: {_train(trial, words, compose, train)}")
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", limits.SIGNALS[0])
            raise limits.Stopped(
                number, "the search was stopped; the same command goes on with it"
            ) from None
    if others := study.others():
        number = ", ".join(map(str, others))
        return show.say(f"other workers are at trial {number}; the last of them concludes")
    with study.ending():
        return _conclude(study, fixed, knobs, compose, train)


def _refuse(fixed: Sequence[str], knobs: Sequence[search.Knob]) -> None:
    """Raise ValueError where a search cannot be of what was typed."""
    taken = {"resume": "a run that goes on has its values", "trainer.test": "trials never read it"}
    for word in [*fixed, *(knob.key for knob in knobs)]:
        key = word.partition("=")[0].lstrip("+~")
        if key in taken:
            raise ValueError(f"{key} is no key of armodels tune: {taken[key]}; leave it out")


def _composed(compose: Compose, words: Sequence[str]) -> dict:
    """The config of these words; what is wrong with them is said as of a training."""
    try:
        return compose(words, "outputs")
    except Exception as error:
        sentence = errors.explain(error, "train", [*words])
    raise ValueError(sentence)


def _shipped(fixed: list[str], base: Mapping[str, Any]) -> tuple[list[str], list[search.Knob]]:
    """The words and knobs of the space that ships with the model, without what was typed.

    Raises:
        ValueError: There is none, or all of it was typed.
    """
    model = base["choices"]["model"]
    typed = {word.partition("=")[0].lstrip("+") for word in fixed}
    space = [one for one in search.shipped(model) if one.partition("=")[0] not in typed]
    if not space:
        raise ValueError(
            f"nothing is searched, and model={model} ships no space of its own; write a value as "
            f"a search, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        )
    return search.read([*fixed, *space])


def _trust(config: Mapping[str, Any]) -> Trust:
    """The classes that this command names itself."""
    return Trust(Trust.in_own(config).names | Trust.of(config["trust"]).names)


def _evaluations(trainer: Mapping[str, Any]) -> int | None:
    """How often a whole training is evaluated on valid; None: it is not known."""
    epochs, every = trainer["max_epochs"], trainer["eval_every"]
    return int(epochs / every) if epochs and every and not trainer["max_steps"] else None


def _announce(study: studies.Study, knobs: Sequence[search.Knob], num_trials: int) -> None:
    begun = len(study.trials())
    on = f", of which {begun} have begun" if begun else ""
    show.say(f"study  {study.folder}, {num_trials} trials{on}")
    for knob in knobs:
        show.say(f"search {knob.key}={knob.typed}")


def _line(trial: studies.Trial, knobs: Sequence[search.Knob]) -> str:
    chosen = " ".join(knob.word(trial.values[knob.key]) for knob in knobs)
    return f"trial {trial.number}  {chosen}"


def _train(trial: studies.Trial, words: Sequence[str], compose: Compose, train: Train) -> str:
    """Train a trial, or go on with it; record how it ended, and say it."""
    path, began = trial.directory, time.monotonic()
    goes_on = (path / "config.yaml").is_file()
    if goes_on and trial.given_up():
        trial.prune()
        return "pruned"
    config: dict = {}
    try:
        config = compose([*words, "trainer.test=false"], str(path.absolute()))
        every = config["trainer"]["eval_every"] or 1
        if goes_on:
            config = _resumed(compose, path, config)
        path.mkdir(parents=True, exist_ok=True)
        with show.quiet():
            nats = train(
                config, lambda epochs, nats: trial.hopeless(max(1, round(epochs / every)), nats)
            )
        metrics = RunDirectory(path).read_metrics() or {}
    except limits.GivenUp:
        trial.prune()
        return "pruned"
    except Exception as error:
        reason = errors.explain(error, "train", [*words])
        if config:
            with contextlib.suppress(OSError):
                failing.note(config, reason, traceback.format_exc(), of_several=True)
        trial.fail(reason)
        return f"failed: {reason}"
    seconds = metrics.get("seconds", time.monotonic() - began)
    trial.done(nats, seconds)
    return f"valid {nats:.4f} nats, {seconds:.0f} s"


def _resumed(
    compose: Compose, path: Path, config: Mapping[str, Any], *changes: str
) -> dict[str, Any]:
    """The config by which a run of the study goes on, trusted as its own command is."""
    names = sorted(_trust(config).names)
    resume = [f"resume={show.hydra(str(path.absolute()))}", f"trust={show.hydra(names)}"]
    large = config["model"].get("allow_large", False)
    free = ["model.allow_large=true"] if large else []
    return compose([*resume, *free, *changes], str(path.absolute()))


def _conclude(
    study: studies.Study,
    fixed: Sequence[str],
    knobs: Sequence[search.Knob],
    compose: Compose,
    train: Train,
) -> None:
    """The table, the importance of each knob, the best on test, and how it is trained.

    Raises:
        ValueError: No trial was trained to its end.
    """
    show.say()
    for line in _table(study, knobs):
        show.say(line)
    best = study.best()
    if best is None:
        raise ValueError(f"no trial was trained to its end; the reasons stand in {study.folder}")
    if importance := study.importance():
        show.say()
        for key, share in importance.items():
            show.say(f"importance {share:6.1%}  {key}")
    path = study.directory(best.number)
    words = [*fixed, *(knob.word(best.params[knob.key]) for knob in knobs)]
    metrics = _tested(path, words, compose, train)
    shown = os.path.relpath(path)
    numbers = [f"{split} {metrics[split]['nats']:.4f}" for split in ("valid", "test")]
    show.say()
    show.say(f"best   trial {best.number}: {', '.join(numbers)} nats, {shown}")
    show.say()
    show.say("Next:")
    trust = trusting(RunDirectory(path).read_config())
    show.say(f"  {search.command(words)}")
    show.say(f"  {show.command('sample', run=shown, num=64, **trust)}")
    show.say(f"  {show.command('compare', os.path.relpath(study.folder))}")
    if any(path.glob("events.*")):
        show.say(f"  {show.command('tensorboard', logdir=os.path.relpath(study.folder))}")


def _tested(path: Path, words: Sequence[str], compose: Compose, train: Train) -> dict:
    """The numbers of the best run, whose weights are evaluated on test unless they were before.

    Raises:
        ValueError: Its numbers are gone.
    """
    run = RunDirectory(path)
    metrics = run.read_metrics()
    if metrics is None:
        raise ValueError(f"{path} has lost its metrics.json; train it again")
    if "test" not in metrics:
        config = compose(words, str(path.absolute()))
        changes = ["trainer.test=true"]
        if config["trainer"]["max_minutes"] is not None:  # which its training has used
            steps = (
                [] if config["trainer"]["select"] else [f"++trainer.max_steps={metrics['steps']}"]
            )
            changes += ["trainer.max_minutes=null", *steps]
        with show.quiet():
            train(_resumed(compose, path, config, *changes), None)
        metrics = run.read_metrics()
    return metrics or {}


def _table(study: studies.Study, knobs: Sequence[search.Knob]) -> list[str]:
    """One line a trial, the best first, then what was pruned and what failed."""
    rows = [["trial", "valid nats", "seconds", *(knob.key for knob in knobs), "state"]]
    rank = {"COMPLETE": 0, "PRUNED": 1, "RUNNING": 2, "WAITING": 2, "FAIL": 3}
    for one in sorted(study.trials(), key=lambda one: (rank[one.state.name], one.value or 0.0)):
        values = [
            knob.word(one.params[knob.key]).partition("=")[2] if knob.key in one.params else ""
            for knob in knobs
        ]
        state = {"COMPLETE": "done", "FAIL": "failed"}.get(one.state.name, one.state.name.lower())
        if reason := one.user_attrs.get("reason"):
            state += f": {reason}"
        nats = f"{one.value:.4f}" if one.value is not None else ""
        seconds = one.user_attrs.get("seconds")
        spent = f"{seconds:.0f}" if seconds is not None else ""
        rows.append([str(one.number), nats, spent, *values, state])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
