"""Device, precision and processes of a training."""

import os
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from armodels import checks, machine
from armodels.training.settings import Settings


def make_fabric(settings: Settings) -> Fabric:
    """Device, precision and processes; several processes only where torchrun started them.

    The environment is named, not detected: Fabric would take the tasks of a Slurm allocation for
    processes of its own.

    Raises:
        ValueError: There is no such device, or several are asked for without torchrun.
    """
    machine.pick_device(settings.accelerator, "trainer.accelerator")
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


def mean_of(fabric: Fabric, total: float, count: int) -> float:
    """The mean over the examples of all processes, each of which has its own sum.

    Args:
        fabric: The processes.
        total: This one's sum.
        count: Its examples.
    """
    sums: Any = torch.tensor([total, float(count)])
    if fabric.world_size > 1:
        sums = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum")
        sums = sums.cpu()
    return float(sums[0] / sums[1])
