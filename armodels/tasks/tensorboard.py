"""armodels tensorboard: TensorBoard on a folder of runs."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from armodels import show


def main(config: Mapping) -> None:
    """Run TensorBoard until it is stopped."""
    logdir = Path(config["logdir"])
    if not any(logdir.rglob("events.out.tfevents.*")):
        raise FileNotFoundError(f"{logdir} holds no TensorBoard events; train something first")
    command = ["-m", "tensorboard.main", f"--logdir={logdir}", f"--port={config['port']}"]
    show.say(f"tensorboard --logdir={logdir} --port={config['port']} (Ctrl-C stops it)")
    subprocess.run([sys.executable, *command], check=True)
