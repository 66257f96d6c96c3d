"""armodels tensorboard: TensorBoard on a folder of runs."""

import threading
from collections.abc import Mapping
from pathlib import Path

from tensorboard import program

from armodels import show


def main(config: Mapping) -> None:
    """Serve TensorBoard from this process until a signal ends it.

    Raises:
        FileNotFoundError: There is nothing to show.
        OSError: The port is taken, or may not be opened.
    """
    logdir, port = Path(config["logdir"]).expanduser(), config["port"]
    if not logdir.is_dir():
        raise FileNotFoundError(f"logdir {logdir} does not exist; name a folder that holds runs")
    if not any(logdir.rglob("events.out.tfevents.*")):
        raise FileNotFoundError(f"{logdir} holds no TensorBoard events; train something first")
    board = program.TensorBoard()
    board.configure(logdir=str(logdir), port=port)
    try:
        url = board.launch()
    except program.TensorBoardPortInUseError as error:
        raise OSError(
            f"port {port} is in use, perhaps by another TensorBoard; "
            f"choose another, such as port={port + 1 if port < 65535 else 0}"
        ) from error
    except program.TensorBoardServerException as error:
        raise OSError(f"port {port} cannot be opened: {error.msg}") from error
    show.say(f"TensorBoard on {logdir} at {url} (Ctrl-C stops it)")
    forever = threading.Event()
    while not forever.wait(3600):  # without a limit, Windows would not let Ctrl-C through
        pass
