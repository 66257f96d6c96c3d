"""Device, precision and processes of a training or an evaluation."""

import atexit
import contextlib
import os
import re
import signal
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.strategy import Strategy

from armodels import checks, limits, machine, show
from armodels.training import sharded
from armodels.training.settings import Settings

_LOST = re.compile(
    r"gloo|nccl|connection (reset|closed)|broken pipe|peer|DistBackendError|DistNetworkError", re.I
)
"""What errors say that come of a process that is gone, while others wait for it."""


class LostProcess(RuntimeError):
    """Another process that shared the work has ended."""


def make_fabric(settings: Settings) -> Fabric:
    """Device, precision and processes; several processes only where torchrun started them.

    The environment is named, not detected: Fabric would take the tasks of a Slurm allocation for
    processes of its own.

    Raises:
        ValueError: There is no such device, or there are not as many processes as are asked for.
    """
    machine.pick_device(settings.accelerator, "trainer.accelerator")
    world = checks.num_processes()
    if settings.devices not in (None, world):
        raise ValueError(
            f"trainer.devices={settings.devices} needs one process a device, and there "
            f"{'is one process' if world == 1 else f'are {world}'}; start with "
            f"{show.in_processes('armodels train', settings.devices)} and the same words"
        )
    with warnings.catch_warnings():
        # On a machine with Slurm, Fabric recommends srun, which it is not started by here.
        warnings.filterwarnings("ignore", "The `srun` command")
        if not checks.started_by_torchrun():
            _require_several(settings)
            return Fabric(
                accelerator=settings.accelerator,
                devices=1,
                precision=settings.precision,
                plugins=[LightningEnvironment()],
            )
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        fabric = Fabric(
            accelerator=settings.accelerator,
            devices=local,
            num_nodes=world // local,
            strategy=_strategy(settings.strategy, world),
            precision=settings.precision,
            plugins=[TorchElasticEnvironment()],
        )
        fabric.launch()
    atexit.register(_leave)
    show.muted = not fabric.is_global_zero  # the first one speaks for all
    return fabric


def _leave() -> None:
    """End what the processes share, before Python ends: gloo's threads abort one that is left.

    Of ten trainings on a busy machine one ended with "terminate called without an active
    exception", after its work was done; Fabric does this for NCCL alone.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _strategy(name: str, num_processes: int) -> Strategy:
    if name == "fsdp":
        return sharded.strategy(num_processes)
    # An order or a mask may leave a weight out of a step, for which DDP would wait.
    return DDPStrategy(find_unused_parameters=True)


def _require_several(settings: Settings) -> None:
    if settings.strategy == "fsdp":
        raise ValueError(
            f"trainer.strategy=fsdp parts the weights among processes, and there is one; start "
            f"with {show.in_processes('armodels train', 2)} and the same words"
        )


@contextlib.contextmanager
def together(fabric: Fabric, watch: limits.Watch | None = None) -> Iterator[None]:
    """Inside the block several processes wait for one another.

    Args:
        fabric: The processes.
        watch: Whoever asks them to stop; where that is Ctrl-C, the first one tells of it.

    Raises:
        LostProcess: Another one ended, so that what they compute together has no end.
    """
    try:
        yield
    except RuntimeError as error:
        kind = type(error).__name__
        if fabric.world_size == 1 or not _LOST.search(f"{kind}: {error}"):
            raise
        limits.expect(signal.SIGTERM)
        if watch is None or watch.asked != signal.SIGINT:
            show.muted = show.muted and fabric.global_rank != 1  # the first one may be gone
        raise LostProcess(
            f"one of {fabric.world_size} processes that shared the work has ended, so that the "
            f"others do, too"
        ) from None


def largest(fabric: Fabric, value: float) -> float:
    """The largest of all processes: what they do must not differ by their clocks."""
    if fabric.world_size == 1:
        return value
    values = torch.tensor(value, device=fabric.device)
    agreed: Any = fabric.all_reduce(values, reduce_op="max")
    return float(agreed)


def any_of(fabric: Fabric, flag: bool) -> bool:
    """Whether any process says so: all of them must stop at the same step."""
    return largest(fabric, float(flag)) > 0


def summed(fabric: Fabric, numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers of which each process has a part, added up; whole ones stay whole."""
    if fabric.world_size == 1:
        return dict(numbers)
    values = torch.tensor([*numbers.values()], dtype=torch.double, device=fabric.device)
    added: Any = fabric.all_reduce(values, reduce_op="sum")
    pairs = zip(numbers.items(), added.tolist(), strict=True)
    return {name: type(part)(whole) for (name, part), whole in pairs}


def mean_of(fabric: Fabric, total: float, count: int) -> float:
    """The mean over the examples of all processes, each of which has its own sum.

    Args:
        fabric: The processes.
        total: This one's sum.
        count: Its examples.
    """
    sums = summed(fabric, {"total": total, "count": float(count)})
    return sums["total"] / sums["count"]
