"""armodels tensorboard: TensorBoard on a folder of runs."""

import subprocess
import sys
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

log = getLogger(__name__)


def main(config: Mapping) -> None:
    """Run TensorBoard until it is stopped."""
    logdir = Path(config["logdir"])
    if not any(logdir.rglob("events.out.tfevents.*")):
        raise FileNotFoundError(f"{logdir} holds no TensorBoard events; train something first")
    command = ["-m", "tensorboard.main", f"--logdir={logdir}", f"--port={config['port']}"]
    log.info("tensorboard --logdir=%s --port=%s (Ctrl-C stops it)", logdir, config["port"])
    subprocess.run([sys.executable, *command], check=True)
