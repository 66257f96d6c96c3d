"""MLflow: a run in the store of $MLFLOW_TRACKING_URI, else in outputs/mlflow.db.

Where the records go is said by the environment alone, never by a run directory, which may be a
stranger's: that keeps nothing but the id of the run.
"""

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

from filelock import FileLock
from torch import Tensor

from armodels import disk
from armodels.loggers.base import STATE, Logger, Status, place_of, read_state
from armodels.views import Sound
from armodels.waveform import wav

STATUSES = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
LONGEST = 5000
"""Characters of a parameter or tag at most; MLflow takes 6,000 and 8,000."""

_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it would report to its makers, from a local store, too
    # By default a server that is gone is waited for so long that the training seems to hang.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def tracking_uri() -> str:
    """The store: what the environment says, else a database in the folder of outputs."""
    own = f"sqlite:///{os.path.abspath('outputs')}/mlflow.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or own


def require_store() -> None:
    """Raise ValueError where the store is of a kind that MLflow itself no longer takes."""
    uri = tracking_uri()
    allowed = os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    if (uri.startswith("file:") or "://" not in uri) and not allowed and uri != "databricks":
        raise ValueError(
            f"MLFLOW_TRACKING_URI is {uri}, a store of files, which MLflow no longer takes; "
            f"name a database such as sqlite:///mlflow.db, or unset it for outputs/mlflow.db"
        )


@contextlib.contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Inside the block no other process makes the tables of a database in a file.

    Two that make them at once break each other, and the jobs of a sweep begin together.
    """
    file = Path(uri.partition("?")[0].removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not file.parent.is_dir():
        yield
        return
    with FileLock(file.with_name(f".{file.name}.lock")):
        yield


@final
class MLflow(Logger):
    """One run of the store, which goes on where the run directory knows its id.

    Args:
        directory: The run directory.
    """

    name = "mlflow"

    def __init__(self, directory: Path) -> None:
        for key, value in _DEFAULTS.items():
            os.environ.setdefault(key, value)
        from mlflow import MlflowClient

        for other in ("mlflow", "alembic"):  # which tell how they make their tables
            logging.getLogger(other).setLevel(logging.WARNING)
        uri = tracking_uri()
        if "MLFLOW_TRACKING_URI" not in os.environ:
            Path("outputs").mkdir(exist_ok=True)
        with _alone(uri):
            self._client = MlflowClient(tracking_uri=uri)
            self._client.search_experiments(max_results=1)
        self._steps: dict[str, set[int]] = {}
        self._params: set[str] = set()
        self._id = self._found(directory) or self._begun(directory)

    def _found(self, directory: Path) -> str | None:
        """The run of the store that this directory's earlier processes recorded in."""
        from mlflow.exceptions import MlflowException

        known = read_state(directory).get("mlflow")
        if not isinstance(known, str) or not re.fullmatch(r"[0-9a-f]{32}", known):
            return None
        try:
            run = self._client.get_run(known)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # of another store
                return None
            raise
        self._client.update_run(known, status="RUNNING")
        self._params = set(run.data.params)
        self._steps = {
            tag: {point.step for point in self._client.get_metric_history(known, tag)}
            for tag in run.data.metrics
        }
        for image in self._client.list_artifacts(known, "images"):
            if found := re.match(r"images/(.+?)\+step\+(\d+)\+", image.path):
                self._steps.setdefault(found[1].replace("~", "/"), set()).add(int(found[2]))
        return known

    def _begun(self, directory: Path) -> str:
        """A new run of the store."""
        from mlflow.exceptions import MlflowException

        client = self._client
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "armodels"
        place = None  # as the store has it
        if "MLFLOW_TRACKING_URI" not in os.environ:
            place = (Path("outputs").absolute() / "mlflow-artifacts").as_uri()
        if client.get_experiment_by_name(name) is None:
            try:
                client.create_experiment(name, artifact_location=place)
            except MlflowException:  # another process has just made it
                if client.get_experiment_by_name(name) is None:
                    raise
        experiment: Any = client.get_experiment_by_name(name)
        run = client.create_run(experiment.experiment_id, run_name=place_of(directory))
        state = read_state(directory)
        disk.write_json(directory / STATE, {**state, "mlflow": run.info.run_id})
        return run.info.run_id

    def has(self, tag: str, step: int) -> bool:
        return step in self._steps.get(tag, ())

    def start(self, settings: Mapping[str, float | bool | str], typed: Mapping[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        plain = {key: str(value)[:LONGEST] for key, value in settings.items()}
        # A parameter never changes there: what a resumed run changes becomes a tag.
        new = [Param(key, value) for key, value in plain.items() if key not in self._params]
        tags = [RunTag(key, value[:LONGEST]) for key, value in typed.items()]
        if self._params:
            params = self._client.get_run(self._id).data.params
            tags += [
                RunTag(f"changed.{key}", value)
                for key, value in plain.items()
                if key in params and params[key] != value
            ]
        for i in range(0, len(new), 100):  # as many as it takes at a time
            self._client.log_batch(self._id, params=new[i : i + 100])
        self._client.log_batch(self._id, tags=tags)

    def points(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        points = [Metric(tag, float(value), now, step) for tag, value in values.items()]
        self._client.log_batch(self._id, metrics=points)

    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        if not self.has(tag, step):
            pixels = picture.permute(1, 2, 0).contiguous().numpy()
            self._client.log_image(self._id, pixels, key=tag, step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        self._client.log_text(self._id, text, f"{tag}/step-{step:07d}.txt")

    def sound(self, tag: str, sound: Sound, step: int) -> None:
        with tempfile.TemporaryDirectory(prefix="armodels-") as folder:
            file = Path(folder) / f"step-{step:07d}.wav"
            file.write_bytes(wav(sound.samples, sound.rate))
            self._client.log_artifact(self._id, str(file), tag)

    def close(self, status: Status) -> None:
        self._client.set_terminated(self._id, STATUSES[status])
