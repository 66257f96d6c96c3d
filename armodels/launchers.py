"""Jobs of a sweep by submitit: processes of this machine, or jobs of Slurm.

A job that is to make room saves its run, asks for a place in the queue again, and goes on in
its own run directory when it gets one. Hydra's plugin of 2022 begins a new run instead.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf, open_dict

from armodels import checks, limits, show

if TYPE_CHECKING:
    from submitit import Executor
    from submitit import Job as Submitted

GOES_ON = "the same command with skip_done=true goes on"

PATIENCE = 60
"""Seconds that jobs of this machine have to save when the sweep is stopped."""

_TARGET = "hydra_plugins.armodels.Submitit"


@dataclass
class Local:
    """Keys of ``hydra/launcher=submitit_local``: each job is a process of this machine."""

    _target_: str = _TARGET
    cluster: str = "local"
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"  # what the jobs say
    n_jobs: int = -1  # at a time; -1: as many as there are cores
    timeout_min: int = 525600  # of a job; one that takes longer saves its run and goes on
    max_num_timeout: int = 5  # so often
    signal_delay_s: int = 30  # before the end of its time a job is told to save


@dataclass
class Slurm:
    """Keys of ``hydra/launcher=submitit_slurm``: the jobs are an array of Slurm."""

    _target_: str = _TARGET
    cluster: str = "slurm"
    # All machines of the cluster share it, as the runs.
    submitit_folder: str = "${hydra.sweep.dir}/.submitit"
    name: str = "armodels"  # of the array in the queue
    timeout_min: int = (
        60  # of a job; one that takes longer saves its run, and goes on in the queue
    )
    max_num_timeout: int = 20  # so often
    signal_delay_s: int = 120  # before the end of its time a job is told to save
    array_parallelism: int = 256  # jobs at a time
    # None, here and below: what the cluster takes where nothing is said.
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    comment: str | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    gres: str | None = None
    mem_gb: int | None = None
    setup: list[str] | None = None  # lines of the shell before each job
    additional_parameters: dict[str, Any] = field(default_factory=dict)  # others of sbatch


@final
class Job:
    """One job of a sweep, which submitit pickles and runs: as often as the job is started again.

    Args:
        number: Of the job in its sweep.
        overrides: What Hydra adds to the command's own words.
        launcher: Has Hydra's context, config and task.
    """

    def __init__(self, number: int, overrides: Sequence[str], launcher: Any) -> None:
        self.number, self.overrides = number, [*overrides]
        self._context, self._task = launcher.hydra_context, launcher.task_function
        self._config = launcher.config
        self._singletons = Singleton.get_state()
        # The name of a run holds random letters: it gets one before it is started, for all starts.
        place = self._composed(None).hydra.sweep
        self._folder: str = place.subdir
        self.typed: list[str] = filter_overrides(self.overrides)
        self.directory = str(Path(place.dir) / place.subdir)
        self._words = sys.argv
        self._environment = {k: v for k, v in os.environ.items() if k.startswith("ARMODELS_")}
        self._devices = os.environ.get("CUDA_VISIBLE_DEVICES")

    def _composed(self, folder: str | None) -> Any:
        config = self._context.config_loader.load_sweep_config(self._config, self.overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = self.number
            if folder is not None:
                config.hydra.sweep.subdir = folder
        HydraConfig.instance().set_config(config)
        return config

    def checkpoint(self) -> Any:
        """What submitit runs when the job gets its place again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> dict[str, Any]:
        """Train, and return the record of the job; where it is to make room, queue it again."""
        from submitit import JobEnvironment
        from submitit.core.utils import UncompletedJobError

        here = JobEnvironment().cluster == "local"
        os.environ.update(self._environment, ARMODELS_COMES_BACK="1")
        _share(here, self._devices)
        sys.argv = self._words
        asks = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
        kept = {number: signal.getsignal(number) for number in (asks, *_MAKE_ROOM)}
        asked: list[int] = []

        def make_room(number: int, frame: object) -> None:
            if not asked:  # the run stops as by SIGTERM, which it hears wherever it is
                signal.raise_signal(signal.SIGTERM)
            asked.append(number)

        try:
            for number in kept:
                signal.signal(number, make_room)
            with limits.raising():
                return self._run()
        except KeyboardInterrupt as stop:
            for number, handler in kept.items():
                signal.signal(number, handler)
            if asked or (not here and _preempted()):
                try:
                    signal.raise_signal(asks)  # submitit's own handler, which ends the process
                except UncompletedJobError:
                    return self.failed(
                        f"its time was over more often than hydra.launcher.max_num_timeout; "
                        f"{GOES_ON}"
                    )
            number = getattr(stop, "number", signal.SIGINT)
            return self.failed(f"stopped by {signal.Signals(number).name}; {GOES_ON}")

    def _run(self) -> dict[str, Any]:
        Singleton.set_state(self._singletons)
        setup_globals()
        config = self._composed(self._folder)
        with tempfile.TemporaryDirectory(prefix="armodels-") as scratch:
            report = Path(scratch, "jobs")
            os.environ["ARMODELS_JOBS"] = str(report)
            ended = run_job(
                hydra_context=self._context,
                task_function=self._task,
                config=config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            _ = ended.return_value  # raises what broke
            return json.loads(report.read_text(encoding="utf-8"))

    def failed(self, reason: str) -> dict[str, Any]:
        """The record of the job where it has none of its own."""
        return {
            "error": reason,
            "traceback": "",
            "overrides": self.typed,
            "directory": self.directory,
        }


_MAKE_ROOM = (signal.SIGUSR1, signal.SIGUSR2) if hasattr(signal, "SIGUSR1") else ()
"""Signals by which clusters say that a job is to make room; submitit hears one of them."""


def _share(here: bool, devices: str | None) -> None:
    """Give a job what is its own of a machine: of this one all devices, of Slurm's its cores."""
    if not here:
        cores = os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE")
        if cores:  # libraries count all of the machine's
            os.environ.setdefault("OMP_NUM_THREADS", cores)
    elif devices is None:  # submitit hides them
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices


def _preempted() -> bool:
    """Whether SIGTERM came of a preemption: a job that was cancelled does not run any more.

    Slurm itself queues a preempted job again only where it has not ended when its time of grace
    is over.
    """
    command = ["squeue", "-h", "-o", "%T", "-j", os.environ["SLURM_JOB_ID"]]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return answer.stdout.strip() == "RUNNING"
    return False


@final
class Submitit(Launcher):
    """Hands the jobs of a sweep to submitit, and tells how each ended.

    Args:
        cluster: ``local`` or ``slurm``.
        submitit_folder: What submitit keeps of jobs.
        parameters: The other keys.
    """

    def __init__(self, cluster: str, submitit_folder: str, **parameters: Any) -> None:
        self._cluster, self._logs, self._parameters = cluster, submitit_folder, parameters

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Take what Hydra gives a launcher.

        Args:
            hydra_context: Loads configs.
            task_function: Does a job by its config.
            config: Of the whole command.

        Raises:
            ValueError: What starts the jobs is not there.
        """
        _require_submitit(self._cluster)
        self.hydra_context, self.task_function = hydra_context, task_function
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[Any]:
        jobs = [Job(initial_job_idx + k, words, self) for k, words in enumerate(job_overrides)]
        if self._cluster == "slurm":
            return _follow(jobs, _slurm(self._logs, self._parameters), None)
        return _follow(jobs, *_local(self._logs, self._parameters))


def register() -> None:
    """Tell Hydra of the launchers, by the names of its own plugin, whose place they take."""
    plugins, store = Plugins.instance(), ConfigStore.instance()
    # Hydra takes no launcher but of this package, where an editable install can put nothing.
    plugins.class_name_to_class[_TARGET] = Submitit
    for name, keys in {"submitit_local": Local, "submitit_slurm": Slurm}.items():
        store.store(group="hydra/launcher", name=name, node=keys, provider="armodels")


def _require_submitit(cluster: str) -> None:
    """Raise ValueError unless submitit is there, and Slurm where it is asked for."""
    if importlib.util.find_spec("submitit") is None:
        raise ValueError(
            f"hydra/launcher=submitit_{cluster} starts jobs by submitit, which is not installed: "
            f"pip install 'armodels[slurm]'"
        )
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise ValueError(
            "hydra/launcher=submitit_slurm finds no sbatch here: type the command on a machine "
            "that hands jobs to Slurm, or take hydra/launcher=submitit_local"
        )


def _slurm(logs: str, parameters: Mapping[str, Any]) -> "Executor":
    """What hands jobs to Slurm. A run is one process: of nodes and tasks there is one each."""
    from submitit import AutoExecutor

    keys = {key: _plain(value) for key, value in parameters.items() if value is not None}
    executor = AutoExecutor(
        logs, cluster="slurm", slurm_max_num_timeout=keys.pop("max_num_timeout")
    )
    # The cluster may have it otherwise where nothing is said.
    keys["additional_parameters"] = {"requeue": True, **keys["additional_parameters"]}
    shared = {"name", "timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb"}
    executor.update_parameters(
        nodes=1,
        tasks_per_node=1,
        stderr_to_stdout=True,
        **{key if key in shared else f"slurm_{key}": value for key, value in keys.items()},
    )
    return executor


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _local(logs: str, parameters: Mapping[str, Any]) -> "tuple[Executor, int]":
    """What starts processes here, and how many at a time."""
    from submitit import LocalExecutor

    keys = dict(parameters)
    jobs = keys.pop("n_jobs")
    checks.require_types({"n_jobs": jobs}, {"n_jobs": int}, "hydra.launcher.")
    if jobs == 0 or jobs < -1:
        raise ValueError(f"hydra.launcher.n_jobs is {jobs}; it must be -1, or 1 or more")
    executor = LocalExecutor(logs, max_num_timeout=keys.pop("max_num_timeout"))
    executor.update_parameters(stderr_to_stdout=True, **keys)
    return executor, _cores() if jobs == -1 else jobs


def _cores() -> int:
    import joblib

    return joblib.cpu_count()


def _follow(jobs: Sequence[Job], executor: "Executor", width: int | None) -> list[Any]:
    """Submit the jobs, and tell of each when it has ended.

    Args:
        jobs: Of a sweep.
        executor: Starts them.
        width: How many run at a time on this machine; None: Slurm has them all.

    Raises:
        limits.Stopped: Somebody wants no more; jobs of this machine have saved by then.
    """
    waiting, here = [*jobs], width is not None
    running: dict[Job, Submitted] = {}
    try:
        while waiting or running:
            some = waiting if width is None else waiting[: width - len(running)]
            waiting = waiting[len(some) :]
            if some:
                with executor.batch() if width is None else _undisturbed(width):
                    running |= {job: executor.submit(job) for job in some}
            _tell_ended(running, here)
            time.sleep(0.1 if here else 1.0)
    except BaseException as stop:
        if here:
            _stop(running)
        if here or not isinstance(stop, KeyboardInterrupt):
            raise
        number = getattr(stop, "number", signal.SIGINT)
        ids = sorted({one.job_id.partition("_")[0] for one in running.values()})
        raise limits.Stopped(
            number,
            f"the jobs stay in Slurm's queue; scancel {' '.join(ids)} ends them",
        ) from None
    return [JobReturn(status=JobStatus.COMPLETED, _return_value=None) for _ in jobs]


def _tell_ended(running: "dict[Job, Submitted]", here: bool) -> None:
    """Take out the jobs that have ended, print a line of each, and keep its record."""
    from armodels import sweeps

    for job in [job for job, submitted in running.items() if submitted.done()]:
        record = _record(job, running.pop(job), here)
        show.say(sweeps.line(job.number, record))
        with open(os.environ["ARMODELS_JOBS"], "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _record(job: Job, submitted: "Submitted", here: bool) -> dict[str, Any]:
    """What the process of a job returned, or how it ended without."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    log = os.path.relpath(submitted.paths.stdout)
    try:
        if here and not submitted.paths.result_pickle.exists():  # submitit would wait for it
            raise UncompletedJobError
        return submitted.result()
    except FailedJobError as error:
        lines = [line for line in str(error).splitlines() if line and line[0].isalpha()]
        broken = [line for line in lines if "Error: " in line]
        return job.failed(f"{broken[-1] if broken else lines[-1]}; its words are in {log}")
    except UncompletedJobError:
        calls = "" if here else f", and Slurm calls it {submitted.state}"
        return job.failed(
            f"its process was killed, perhaps for its memory{calls}; its words are in {log}; "
            f"{GOES_ON}"
        )


def _stop(running: "dict[Job, Submitted]") -> None:
    """Have jobs of this machine save and end."""
    for submitted in running.values():
        if not submitted.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(submitted.job_id), signal.SIGTERM)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and not all(one.done() for one in running.values()):
        time.sleep(0.1)
    with contextlib.suppress(OSError):
        _tell_ended(running, here=True)


@contextlib.contextmanager
def _undisturbed(width: int) -> Iterator[None]:
    """What is started inside the block has its part of the cores, and does not hear Ctrl-C.

    A terminal sends it to all; submitit would kill the jobs after a second, in which none saves.
    """
    before, threads = signal.getsignal(signal.SIGINT), os.environ.get("OMP_NUM_THREADS")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_cores() // width, 1)))
    try:
        yield
    finally:
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        signal.signal(signal.SIGINT, before)
