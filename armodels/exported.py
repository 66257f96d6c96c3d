"""A model as files that others read: safetensors, JSON, Markdown; no pickle, nothing that runs.

``model.safetensors`` holds the weights by name, ``config.json`` all else that makes the model,
with checksums: safetensors has none of its own, so that a flipped bit would be taken for a number.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from armodels import __version__, disk

FORMAT = 1
"""Version of what config.json says; another one is refused."""

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"

_TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
"""Of tensors, as safetensors calls them; others are none that a model here has."""

_MADE_AGAIN = "export the run again, or fetch the folder anew"


def is_exported(path: Path) -> bool:
    """Whether a folder is one that ``write`` made, what lacks of it included."""
    return (path / WEIGHTS).is_file() or (path / CONFIG).is_file()


def require_vacant(out: Path) -> None:
    """Raise an error where ``out`` cannot become a new folder.

    Raises:
        FileExistsError: It holds something.
        ValueError: A file stands there, or nothing can be written.
    """
    disk.require_place(out)
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"out is {out}, which exists and is not empty; name another folder")


def write(out: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any], card: str) -> None:
    """Write the folder, whole or not at all.

    Args:
        out: The folder, which is made.
        tensors: Weights by name, on any device, of any layout; what two names share is written
            for both.
        about: What config.json says beside version and checksums: plain values.
        card: README.md.

    Raises:
        ValueError: A value is none that JSON has.
        OSError: It could not be written.
    """
    content = {"format": FORMAT, "armodels": __version__, **about}
    try:
        plain = json.loads(_text(content))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the config of the run is none that JSON can hold ({error})") from error
    if plain != _listed(content):
        raise ValueError("the config of the run is none that JSON can hold: its keys are no text")
    # Names that share memory get their own: it refuses to write it twice, and to guess.
    apart = {name: one.detach().cpu().clone().contiguous() for name, one in tensors.items()}
    with disk.atomic_folder(out) as folder:
        try:
            save_file(apart, folder / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # which says by its words alone what the disk answered
            if number := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
            raise
        sums = {WEIGHTS: _checksum(folder / WEIGHTS), CONFIG: _checksum_of(plain)}
        text = json.dumps({**plain, "sha256": sums}, indent=2)
        (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        # Its library keeps the weights for their owner alone; who may read the rest may read them.
        (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode & 0o777)
        (folder / CARD).write_text(card, encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """What ``write`` wrote, as a checkpoint has it.

    Args:
        path: The file of the weights; the config lies beside it.

    Returns:
        What config.json says, and under ``model`` the weights by name.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, changed, or of another version.
    """
    file = path.parent / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {_MADE_AGAIN}")
    content = disk.read_json(file)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{file} has format {str(content.get('format'))[:50]} (armodels "
            f"{str(content.get('armodels'))[:50]}), but this armodels {__version__} reads format "
            f"{FORMAT}"
        )
    sums = content.pop("sha256", None)
    own = _checksum_of(content)
    if not isinstance(sums, dict) or own == "none" or sums.get(CONFIG) != own:
        raise ValueError(
            f"{file} is damaged, or was changed after it was written; {_MADE_AGAIN} (where data "
            f"lies now is said by data.path= or data.root=)"
        )
    if sums.get(WEIGHTS) != _checksum(path):
        raise ValueError(f"{path} is damaged, or not that of {file}; {_MADE_AGAIN}")
    return {**content, "model": _tensors(path)}


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, which states no more than it holds: its own library sees to that."""
    try:
        with safe_open(path, "pt") as archive:
            names = list(archive.keys())
            kinds = {archive.get_slice(name).get_dtype() for name in names}
            if other := sorted(kinds - _TYPES):
                raise ValueError(f"{path} is refused: no model of armodels has tensors of {other}")
            # Copies: another program may write over the file while the model is in use.
            return {name: archive.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); {_MADE_AGAIN}") from error


def _listed(value: Any) -> Any:
    """The same with lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _listed(one) for key, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, (list, tuple)) else value


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, allow_nan=False)


def _checksum_of(content: Mapping[str, Any]) -> str:
    """Of what a config says, however it is indented."""
    try:
        text = _text(content)
    except (ValueError, RecursionError):  # NaN, or a depth, that is never written
        return "none"
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def merged(
    weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """The weights of a checkpoint, with the averages of those that have one.

    Args:
        weights: By name.
        average: By the names of some of them; None: none has.

    Raises:
        ValueError: An average is of no weight, or of another shape.
    """
    found = dict(weights)
    for name, one in (average or {}).items():
        if name not in found or found[name].shape != one.shape:
            raise ValueError(f"the checkpoint averages {name}, which is none of its weights")
        # As a model takes them up that has the type of its weights.
        found[name] = one.to(found[name].dtype)
    return found


def require_tensors(weights: Mapping[str, Any]) -> None:
    """Raise ValueError unless all weights are dense tensors under a name."""
    for name, one in weights.items():
        if not isinstance(name, str) or not isinstance(one, Tensor) or one.layout != torch.strided:
            raise ValueError(f"the checkpoint is refused: its weight {str(name)[:50]!r} is none")
