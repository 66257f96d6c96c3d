"""armodels tensorboard: TensorBoard on a folder of runs."""

import contextlib
import socket
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
    require_free(port)
    board = program.TensorBoard()
    board.configure(logdir=str(logdir), port=port)
    try:
        url = board.launch()
    except program.TensorBoardServerException as error:
        raise OSError(f"port {port} cannot be opened: {error.msg}") from error
    show.say(f"TensorBoard on {logdir} at {url} (Ctrl-C stops it)")
    forever = threading.Event()
    while not forever.wait(3600):  # without a limit, Windows would not let Ctrl-C through
        pass


def require_free(port: int) -> None:
    """Raise OSError where the port of this machine is in use, or is not for everybody to use."""
    with contextlib.closing(socket.socket()) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("localhost", port))
            trial.listen()
        except OSError as error:
            raise OSError(
                f"port {port} cannot be opened, perhaps because another TensorBoard has it "
                f"({error.strerror}); choose another, such as port={port % 65535 + 1}"
            ) from error
