"""How training by several processes scales: measured where there are processes, computed beyond.

    torchrun --nproc-per-node=2 scripts/scaling.py

A step of W processes on a batch of B takes

    t(W) = step(B / W) + 2 (W - 1) latency + 2 (W - 1) / W * bytes / bandwidth

if nothing overlaps: each computes its share, and gradients go around a ring. ``step`` is measured
in one process alone, the latency and the bandwidth are fitted to all-reduces of two processes, and
t(2) is measured, too. One thread a process. DDP overlaps gradients with the backward pass, so it
may be faster than t; processes that share the memory of one machine may be slower.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from lightning_fabric import Fabric

import armodels
from armodels.networks.base import Network
from armodels.networks.made import MADE
from armodels.networks.pixelcnn import PixelCNN
from armodels.networks.transformer import Transformer
from armodels.training.batches import Part
from armodels.training.learner import Candidate, Learner
from armodels.training.processes import make_fabric
from armodels.training.settings import Settings

NUMBERS = (1, 2, 4, 8, 16)
MODELS: dict[str, tuple[type[Network], str, dict]] = {
    "MADE, 2 x 500": (MADE, "image", {"hidden_sizes": [500, 500]}),
    "PixelCNN, 7 x 32": (PixelCNN, "image", {"num_layers": 7, "num_channels": 32}),
    "transformer, 4 x 128": (Transformer, "text", {"num_layers": 4, "hidden_size": 128}),
}


def parse() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128, help="of all processes together")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    return parser.parse_args()


def splits_of(kind: str) -> armodels.Splits:
    """Binary pictures of 28x28, or texts of 128 of 64 symbols; values matter not."""
    generator = torch.Generator().manual_seed(0)
    shape, levels = ((1, 28, 28), 2) if kind == "image" else ((128,), 64)
    rows = torch.randint(levels, (300, *shape), generator=generator)
    given = "sequence" if kind == "text" else None
    return armodels.Splits.of(rows, rows, rows, levels=levels, name=kind, kind=given)


def timed(work: Callable[[], object], seconds: float) -> float:
    """Median seconds of what is done again and again."""
    for _ in range(2):
        work()
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < 5 or (time.perf_counter() < until and len(found) < 1000):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def learner_of(name: str, settings: Settings, fabric: Fabric) -> tuple[Learner, armodels.Splits]:
    """A model that is ready to take steps, and its data."""
    network, kind, sizes = MODELS[name]
    splits = splits_of(kind)
    torch.manual_seed(0)
    model = armodels.AutoregressiveModel.of(network, splits.spec, **sizes)
    candidate = Candidate(
        model=lambda: model,
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
        schedule=armodels.schedules.Constant(),
    )
    learner = Learner(candidate, settings, fabric)
    learner.set_up()
    learner.model.train()
    return learner, splits


def step_of(
    learner: Learner, splits: armodels.Splits, own: int, whole: int
) -> Callable[[], object]:
    """A step on so many examples of a process, of so many in all."""
    batch = splits.examples("train")[torch.arange(own) % len(splits.train)]
    part = Part(batch, slice(0, own), own)
    return lambda: learner.step([part], whole, 1.0, 1)


def all_reduce(fabric: Fabric, num_bytes: int, seconds: float) -> float:
    """Seconds that processes take to add so many bytes."""
    values = torch.zeros(num_bytes // 4)
    count = 30 if num_bytes > 2**20 else 200  # all processes must do as many
    for _ in range(3):
        fabric.all_reduce(values, reduce_op="sum")
    found = []
    for _ in range(count):
        started = time.perf_counter()
        fabric.all_reduce(values, reduce_op="sum")
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main() -> None:
    """Print the table."""
    asked = parse()
    torch.set_num_threads(1)
    settings = Settings(max_steps=1, accelerator="cpu", progress=False)
    fabric = make_fabric(settings)
    if fabric.world_size != 2:
        raise SystemExit("start it with: torchrun --nproc-per-node=2 scripts/scaling.py")
    say = print if fabric.is_global_zero else lambda *_: None
    small, large = 4, 2**25
    latency = all_reduce(fabric, small, asked.seconds) / 2
    bandwidth = large / (all_reduce(fabric, large, asked.seconds) - 2 * latency)
    say(f"all-reduce of two processes: latency {1e3 * latency:.3f} ms, {bandwidth / 1e9:.2f} GB/s")
    say(
        f"batches of {asked.batch_size}, one thread a process; milliseconds a step (times as fast)"
    )
    say(
        f"{'model':<22}{'MB':>5}  "
        + "".join(f"{f'W = {n}':>16}" for n in NUMBERS)
        + "   t(2) measured"
    )
    alone = Fabric(accelerator="cpu", devices=1)
    for name in MODELS:
        learner, splits = learner_of(name, settings, alone)
        num_bytes = 4 * learner.model.num_parameters
        steps = {}
        for number in NUMBERS:
            if fabric.is_global_zero:  # the other one leaves the machine to it
                own = asked.batch_size // number
                steps[number] = timed(step_of(learner, splits, own, own), asked.seconds)
            fabric.barrier()
        both, splits = learner_of(name, settings, fabric)
        own = asked.batch_size // 2
        step = step_of(both, splits, own, 2 * own)
        fabric.barrier()
        measured = []
        for _ in range(max(10, int(asked.seconds / 0.1))):
            started = time.perf_counter()
            step()
            measured.append(time.perf_counter() - started)
        if not fabric.is_global_zero:
            continue
        cells = []
        for number in NUMBERS:
            ring = 2 * (number - 1) * latency + 2 * (number - 1) / number * num_bytes / bandwidth
            whole = steps[number] + ring * (number > 1)
            cells.append(f"{1e3 * whole:8.1f} ({steps[1] / whole:4.1f})")
        two = statistics.median(measured)
        line = f"{name:<22}{num_bytes / 1e6:5.1f}  " + "".join(f"{cell:>16}" for cell in cells)
        print(f"{line}   {1e3 * two:.1f} ({steps[1] / two:.1f})", flush=True)


if __name__ == "__main__":
    main()
