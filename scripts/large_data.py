"""Train on a set larger than memory and on a small one: steps a second, and memory meanwhile.

    python scripts/large_data.py
    torchrun --nproc-per-node=2 scripts/large_data.py

The set is a file of 26 million binary pictures of 28x28 bytes, 20 GB, made on the spot: most of it
are holes, which take no room on the disk and read as zeros; rows at random places are written from
a seed. Both sets are trained on in turn, several times, by the same model. Linux alone.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

import armodels
from armodels.networks.made import MADE
from armodels.schedules import Constant
from armodels.training.batches import Batches
from armodels.training.learner import Candidate, Learner
from armodels.training.processes import make_fabric
from armodels.training.settings import Settings

PIXELS = 28 * 28


def parse() -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=20.0, help="size of the large set")
    parser.add_argument("--steps", type=int, default=300, help="of a turn")
    parser.add_argument("--turns", type=int, default=5, help="of each set")
    parser.add_argument("--folder", type=Path, help="where the file lies while it is read")
    return parser.parse_args()


def write(path: Path, num: int) -> None:
    """A file of so many pictures, of which 20,000 are drawn and all others are holes."""
    generator = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.truncate(num * PIXELS)
        for row in np.sort(generator.integers(num, size=20_000)):
            file.seek(int(row) * PIXELS)
            file.write((generator.random(PIXELS) < 0.3).astype(np.uint8).tobytes())


def memory(name: str) -> float:
    """A line of this process's status, MB: ``RssAnon`` is its own, ``RssFile`` read from files."""
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(name)]
    return int(line.split()[1]) / 1024


class Training:
    """A model that takes steps on a set; nothing is evaluated.

    Args:
        splits: The set.
        settings: Of the steps.
        fabric: The processes.
    """

    def __init__(self, splits: armodels.Splits, settings: Settings, fabric: Fabric):
        torch.manual_seed(0)
        model = armodels.AutoregressiveModel.of(MADE, splits.spec, hidden_sizes=[500])
        candidate = Candidate(
            model=lambda: model,
            optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
            schedule=Constant(),
        )
        self.batches = Batches(splits, None, settings.batch_size, 0, fabric)
        self.learner = Learner(candidate, settings, fabric)
        self.learner.set_up()
        self.learner.model.train()
        self.step = 0

    def run(self, steps: int) -> float:
        """Steps a second."""
        started = time.perf_counter()
        for _ in range(steps):
            number = len(self.batches.rows(self.step))
            parts = list(self.batches.parts(self.step, 1))
            self.learner.step(parts, number, 1.0, self.step + 1)
            self.step += 1
        return steps / (time.perf_counter() - started)


def main() -> None:
    """Print a line a turn, and the ratio at the end."""
    asked = parse()
    torch.set_num_threads(1)
    settings = Settings(max_steps=1, batch_size=100, accelerator="cpu", progress=False)
    fabric = make_fabric(settings)
    num = round(asked.gb * 1e9 / PIXELS)
    folder = fabric.broadcast(tempfile.mkdtemp(dir=asked.folder) if not fabric.global_rank else "")
    path = Path(folder) / "large.bin"
    try:
        if fabric.is_global_zero:
            write(path, num)
        fabric.barrier()
        compare(path, num, asked, settings, fabric)
        fabric.barrier()
    finally:
        if fabric.is_global_zero:
            path.unlink(missing_ok=True)
            os.rmdir(folder)


def compare(
    path: Path, num: int, asked: argparse.Namespace, settings: Settings, fabric: Fabric
) -> None:
    """Train on both sets in turn."""
    large = np.memmap(path, np.uint8, "r", shape=(num, 1, 28, 28))
    small = np.array(large[:10_000])
    say = print if fabric.is_global_zero else lambda *_: None
    size, room = path.stat().st_size / 1e9, path.stat().st_blocks * 512 / 1e6
    say(
        f"large  {num:,} pictures, {size:.1f} GB, {room:.0f} MB on the disk; small  {len(small):,}"
    )
    say(f"processes  {fabric.world_size}, one thread each; MADE of 500 units, batches of 100")
    trainings = {
        name: Training(
            armodels.Splits.of(rows, small[:100], small[:100], levels=2, name=name),
            settings,
            fabric,
        )
        for name, rows in (("small", small), ("large", large))
    }
    for training in trainings.values():
        training.run(20)
    say("turn  steps/s small  large   memory of the first process, MB: own  of files")
    ratios = []
    for turn in range(asked.turns):
        speed = {name: one.run(asked.steps) for name, one in trainings.items()}
        ratios.append(speed["large"] / speed["small"])
        own, files = memory("RssAnon"), memory("RssFile")
        about = f"{speed['small']:13.0f} {speed['large']:6.0f} {own:37.0f} {files:9.0f}"
        say(f"{turn + 1:4} {about}")
    middle = sorted(ratios)[len(ratios) // 2]
    say(f"large by small, median of {len(ratios)} turns: {middle:.2f}")


if __name__ == "__main__":
    main()
