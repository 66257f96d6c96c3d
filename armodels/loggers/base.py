"""What a logger is, which there are, and the settings of a run that all of them show."""

import difflib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from armodels import disk, names
from armodels.views import Sound

Status = Literal["done", "interrupted", "failed"]
"""How a training ended."""

NEEDS = {
    "tensorboard": (),
    "csv": (),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
}
"""Loggers, and the packages that each needs beside this one's own."""

SETTINGS = ("data", "model", "head", "optimizer", "schedule", "trainer")
"""Parts of a run's config that loggers show, each key by itself."""


class Logger(ABC):
    """Gets the points, pictures and texts of one run, under the same tags as every other.

    Attributes:
        name: As ``logger=`` has it.
        complete: Whether it holds what the run recorded before this process; else it gets the
            rows of metrics.csv that it does not have.
    """

    name: str
    complete = False

    def has(self, tag: str, step: int) -> bool:
        """Whether an earlier process of the run has recorded this point."""
        return False

    @abstractmethod
    def start(self, settings: Mapping[str, float | bool | str], typed: Mapping[str, str]) -> None:
        """The run begins, or goes on.

        Args:
            settings: Of its config, as ``settings_of`` has them.
            typed: What else is said of it: the overrides, when it began.
        """

    @abstractmethod
    def points(self, values: Mapping[str, float], step: int) -> None:
        """Points of several tags at one step."""

    @abstractmethod
    def picture(self, tag: str, picture: Tensor, step: int) -> None:
        """A picture.

        Args:
            tag: Its name.
            picture: uint8 (3, H, W).
            step: Training steps so far.
        """

    @abstractmethod
    def text(self, tag: str, text: str, step: int) -> None:
        """A text of several lines.

        Args:
            tag: Its name.
            text: As it is to be read.
            step: Training steps so far.
        """

    @abstractmethod
    def sound(self, tag: str, sound: Sound, step: int) -> None:
        """A sound.

        Args:
            tag: Its name.
            sound: Mono samples.
            step: Training steps so far.
        """

    def flush(self) -> None:
        """What it got so far is to survive this process."""
        return

    @abstractmethod
    def close(self, status: Status) -> None:
        """How the training ended, and no more."""


def read_names(value: object) -> tuple[str, ...]:
    """The loggers that a ``logger`` key names, each once; metrics.csv needs none.

    Args:
        value: A name, several with commas between them, a list, or none.

    Raises:
        ValueError: It is none of these, or names one that there is not.
    """
    parts = value.split(",") if isinstance(value, str) else [] if value is None else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(one, str) for one in parts):
        raise ValueError(f"logger is {value!r}; write logger=tensorboard,wandb, or logger=none")
    parts = [one.strip() for one in parts]
    for one in parts:
        if one not in (*NEEDS, "none"):
            close = difflib.get_close_matches(one, NEEDS, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ValueError(
                f"logger has {one!r}, which is none; {hint}choose from {', '.join(NEEDS)}, or none"
            )
    if "none" in parts and len(parts) > 1:
        raise ValueError(f"logger is {','.join(parts)}; none stands alone")
    return tuple(one for one in NEEDS if one in parts and one != "csv")


def require_packages(loggers: Iterable[str]) -> None:
    """Raise ValueError where a package is missing that one of the loggers needs."""
    for name in loggers:
        if missing := [one for one in NEEDS[name] if importlib.util.find_spec(one) is None]:
            raise ValueError(
                f"logger={name} needs {' and '.join(missing)}, not installed here: "
                f"pip install 'armodels[{name}]'"
            )


def flatten(config: Mapping, prefix: str = "") -> dict[str, float | bool | str]:
    """Nested config -> dotted names of single values, of one type for a key in every run.

    A null is left out (a word for it would turn a column of numbers into words), numbers become
    floats and lists become words.
    """
    flat: dict[str, float | bool | str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif isinstance(value, (bool, str)):
            flat[name] = value
        elif isinstance(value, (int, float)):
            flat[name] = float(value)
        elif value is not None:
            flat[name] = str(value)
    return flat


def settings_of(config: Mapping) -> dict[str, float | bool | str]:
    """Settings that tell a run from others, by dotted names, of its config.

    Keys that change no number (where it ran, how often it was saved) are left out, and so are
    names of classes, for which the choices stand.
    """
    shown = {
        "choices": config["choices"],
        "seed": config["seed"],
        "sizes": ", ".join(f"{key} {one}" for key, one in names.sizes(config["model"]).items()),
        "name": config.get("name"),
        "tags": ", ".join(map(str, config.get("tags") or [])) or None,
        **{key: config[key] for key in SETTINGS},
    }
    return {
        key: value
        for key, value in flatten(shown).items()
        if not key.endswith("_target_")
        and (not key.startswith("trainer.") or names.what_was_trained([f"{key}="]))
    }


def typed_of(config: Mapping) -> dict[str, str]:
    """What was typed for a run and when it began, as far as its config says it."""
    typed = {"overrides": config.get("overrides"), "started": config.get("started")}
    return {key: str(value) for key, value in typed.items() if value}


STATE = "loggers.json"
"""File of a run directory: by which id each logger knows the run."""


def place_of(directory: Path) -> str:
    """What a logger calls a run: the last two parts of its directory, whose own is unique."""
    return "/".join(directory.absolute().parts[-2:])


def read_state(directory: Path) -> dict:
    """By which id each logger knows the run of a directory, as far as it can be read."""
    try:
        return disk.read_json(directory / STATE)
    except (OSError, ValueError):
        return {}
