"""A study: the trials of a search, in a storage that outlives every process that works on it.

Optuna proposes and remembers; each trial is an ordinary run directory in the folder of the study.
A trial belongs to a worker, who holds a lock for as long as it lives: a trial that is running and
whose worker is gone is taken up by whoever asks next.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import socket
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from filelock import FileLock, Timeout

from armodels import disk
from armodels.search import Knob

if TYPE_CHECKING:
    import optuna

MARK = "study.json"
"""The file by which the folder of a study is known."""

DEATHS = 3
"""A trial that so many processes died in has failed: it may be what kills them."""

AGE = 60
"""Seconds after which a trial of a storage that several machines share has an owner."""


def require_optuna() -> None:
    """Raise ValueError unless Optuna is there."""
    if importlib.util.find_spec("optuna") is None:
        raise ValueError(
            "armodels tune searches by Optuna, which is not installed: "
            "pip install 'armodels[sweep]'"
        )


def identity(fixed: Sequence[str], knobs: Sequence[Knob]) -> dict[str, list[str]]:
    """What makes a search this one: two commands that share it work on one study.

    Args:
        fixed: Words that every trial has.
        knobs: What it varies.
    """
    searched = sorted(f"{knob.key}={knob.typed}" for knob in knobs)
    return {"words": sorted(fixed), "searched": searched}


def short(content: Mapping) -> str:
    """Eight letters and digits that stand for an identity in the name of a folder."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


@final
class Study:
    """The folder, the storage, and this worker.

    Args:
        folder: Of the study; trials are run directories in it.
        storage: URL of a database; None: a journal file in the folder.
        content: Its identity.
        knobs: What it varies.
        defaults: Values by key with which the first trial begins.
        seed: Of what is proposed: with one worker, the trials follow from it.
        pruner: ``none``, ``halving`` or ``hyperband``.
        evaluations: On valid of a whole training; None: they are not known.

    Raises:
        FileExistsError: The folder holds something else, or the study of another command.
        ValueError: It cannot be written, or the storage not opened.
    """

    def __init__(
        self,
        folder: Path,
        storage: str | None,
        content: Mapping[str, Any],
        knobs: Sequence[Knob],
        defaults: Mapping[str, Any],
        seed: int,
        pruner: str,
        evaluations: int | None,
    ) -> None:
        self.folder = folder
        self._knobs, self._defaults, self._seed = knobs, defaults, seed
        self._shared = storage is not None
        self._require_own(content)
        (folder / "workers").mkdir(parents=True, exist_ok=True)
        if not (folder / MARK).is_file():
            disk.write_json(folder / MARK, content)
        self._lock = FileLock(folder / "workers" / "asking")
        self._worker = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        with self._lock, _unwarned():
            self._study = _open(folder, storage, _pruner(pruner, evaluations))
        saved = self._study.user_attrs.get("content")
        if saved is None:
            self._study.set_user_attr("content", dict(content))
        elif saved != content:
            raise _of_another(f"the study {folder.name} of that storage", saved, content)

    def _require_own(self, content: Mapping[str, Any]) -> None:
        """Raise FileExistsError where the folder holds anything but this very study."""
        disk.require_place(self.folder)
        if (self.folder / MARK).is_file():
            saved = disk.read_json(self.folder / MARK)
            if saved != content:
                raise _of_another(f"{self.folder}", saved, content)
        elif self.folder.is_dir():
            if any(one.name != "workers" and one.suffix != ".part" for one in self._entries()):
                raise FileExistsError(
                    f"{self.folder} exists and holds no study; choose another folder with out="
                )

    def _entries(self) -> Iterator[Path]:
        return self.folder.iterdir()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Inside the block, the trials of this worker are alive."""
        file = self.folder / "workers" / self._worker
        with FileLock(file):
            yield
        file.unlink(missing_ok=True)

    def take(self, num_trials: int) -> "Trial | None":
        """A trial to train: one whose worker is gone, or a new one; None: enough have begun.

        Args:
            num_trials: That there are in all.
        """
        import optuna

        state = optuna.trial.TrialState
        with self._lock, _unwarned():
            trials = self._study.get_trials(deepcopy=False)
            for one in trials:
                if one.state == state.RUNNING and not self._lives(one):
                    deaths = one.user_attrs.get("deaths", 0) + 1
                    trial = Trial(self, optuna.trial.Trial(self._study, one._trial_id))
                    if deaths < DEATHS:
                        trial.set("deaths", deaths)
                        return self._own(trial)
                    trial.fail(f"{deaths} processes were killed while they trained it")
            if sum(one.state != state.WAITING for one in trials) >= num_trials:
                return None
            if not trials and self._defaults:
                self._study.enqueue_trial(dict(self._defaults))
            # What is proposed follows from the seed and the trials before, whoever asks.
            seed = int(short({"seed": self._seed, "trial": len(trials)}), 16)
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            return self._own(Trial(self, self._study.ask()))

    def _own(self, trial: "Trial") -> "Trial":
        """The trial as this worker's, its values proposed."""
        trial.values = {knob.key: _suggest(trial.asked, knob) for knob in self._knobs}
        trial.set("worker", self._worker)
        return trial

    def _lives(self, one: "optuna.trial.FrozenTrial") -> bool:
        """Whether the worker of a running trial may be alive."""
        worker = one.user_attrs.get("worker")
        if worker is None:  # killed while it asked; on another machine it may be asking still
            began = one.datetime_start
            age = time.time() - began.timestamp() if began else 0.0
            return self._shared and age < AGE
        file = self.folder / "workers" / worker
        if not file.is_file():  # it ended; or its folder is on another machine
            return self._shared and not worker.startswith(f"{socket.gethostname()}.")
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
        file.unlink(missing_ok=True)
        return False

    def others(self) -> list[int]:
        """Numbers of the trials that other workers are at."""
        return [one.number for one in self.trials() if one.state.name == "RUNNING"]

    def trials(self) -> list["optuna.trial.FrozenTrial"]:
        """All trials, in order."""
        return self._study.get_trials(deepcopy=False)

    def best(self) -> "optuna.trial.FrozenTrial | None":
        """The trial of the least valid nats among those trained to their end; None: none was."""
        whole = [one for one in self.trials() if one.state.name == "COMPLETE"]
        return min(whole, key=lambda one: (one.value, one.number), default=None)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Inside the block, no other worker concludes the study."""
        with FileLock(self.folder / "workers" / "ending"):
            yield

    def importance(self) -> dict[str, float] | None:
        """How much of what makes a trial good each knob explains; None: too few trials say so."""
        import optuna

        values = {one.value for one in self.trials() if one.state.name == "COMPLETE"}
        if len(values) < 4 or len(self._knobs) < 2:
            return None
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        with _unwarned():
            return optuna.importance.get_param_importances(self._study, evaluator=evaluator)

    def directory(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.folder / f"trial-{number:04d}"

    def tell(self, trial: "Trial", value: float | None, state: str) -> None:
        """Record how a trial ended.

        Args:
            trial: Which.
            value: Its valid nats; None: it has none of its own.
            state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        """
        import optuna

        with _unwarned():
            self._study.tell(trial.asked, value, optuna.trial.TrialState[state])


@final
class Trial:
    """One trial that this worker trains.

    Args:
        study: To which it belongs.
        asked: As Optuna has it.
    """

    def __init__(self, study: Study, asked: "optuna.trial.Trial") -> None:
        self.study, self.asked = study, asked
        self.number = asked.number
        self.directory = study.directory(asked.number)
        self.values: dict[str, Any] = {}

    def set(self, name: str, value: object) -> None:
        """Keep something about it in the storage."""
        self.asked.set_user_attr(name, value)

    def hopeless(self, step: int, nats: float) -> bool:
        """Take in a point of the valid curve; whether the pruner expects nothing of the trial.

        Args:
            step: The number of the evaluation, from 1 on.
            nats: Of valid.
        """
        with _unwarned():
            self.asked.report(nats, step)
            return self.asked.should_prune()

    def given_up(self) -> bool:
        """Whether the points that were taken in before say so."""
        return self.asked.should_prune()

    def done(self, nats: float, seconds: float) -> None:
        """It is trained: its valid nats, and its seconds."""
        self.set("seconds", seconds)
        self.study.tell(self, nats, "COMPLETE")

    def prune(self) -> None:
        """The pruner expects nothing of it."""
        self.study.tell(self, None, "PRUNED")

    def fail(self, reason: str) -> None:
        """It broke, which is recorded with the reason."""
        self.set("reason", reason)
        self.study.tell(self, None, "FAIL")


def _of_another(where: str, saved: Mapping[str, Any], content: Mapping[str, Any]) -> Exception:
    """What is wrong with a study of another command: the words in which they differ."""
    both = [{word for words in one.values() for word in words} for one in (saved, content)]
    return FileExistsError(
        f"{where} is the study of another command, which differs in "
        f"{' '.join(sorted(both[0] ^ both[1]))}; choose another with out="
    )


@final
class _Lock:
    """Of the journal: the system frees it when its holder is killed, with no time to wait."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _open(folder: Path, storage: str | None, pruner: Any) -> "optuna.Study":
    """The study in its storage, made where it is new."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    kept: Any
    if storage is None:
        journal, lock = folder / "journal.log", _Lock(folder / "workers" / "journal")
        _mend(journal, lock)
        kept = optuna.storages.JournalStorage(JournalFileBackend(str(journal), cast(Any, lock)))
    else:
        kept = storage
    try:
        return optuna.create_study(
            storage=kept, study_name=folder.name, pruner=pruner, load_if_exists=True
        )
    except Exception as error:
        if storage is None:
            raise ValueError(f"{folder / 'journal.log'} is damaged: {error}") from None
        kind, _, _ = storage.partition("://")  # the rest may hold a password
        why = str(error).partition("\n")[0]
        raise ValueError(f"storage={kind}://... cannot be opened: {why}") from None


def _mend(journal: Path, lock: _Lock) -> None:
    """Take away the line that a killed process has not written to its end."""
    lock.acquire()
    try:
        if journal.is_file():
            content = journal.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(journal, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _pruner(name: str, evaluations: int | None) -> Any:
    """Optuna's pruner; halving judges first after a quarter of the evaluations of a training.

    Of those that reach a quarter the better half goes on, of those that reach two quarters again:
    what dropout or weight decay slows down at first had no chance where a quarter went on.
    """
    import optuna

    least: Any = max(1, evaluations // 4) if evaluations else "auto"
    makers: dict[str, Callable[[], Any]] = {
        "none": optuna.pruners.NopPruner,
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(
            min_resource=least, reduction_factor=2
        ),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=evaluations or "auto"
        ),
    }
    return makers[name]()


def _suggest(asked: "optuna.trial.Trial", knob: Knob) -> Any:
    """The value of a knob in a trial."""
    if knob.kind == "choice":
        return asked.suggest_categorical(knob.key, knob.values)
    if knob.kind == "whole":
        step = 1 if knob.step is None else int(knob.step)
        return asked.suggest_int(knob.key, int(knob.low), int(knob.high), step=step, log=knob.log)
    return asked.suggest_float(knob.key, knob.low, knob.high, step=knob.step, log=knob.log)


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Inside the block, Optuna says nothing of what it calls experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
