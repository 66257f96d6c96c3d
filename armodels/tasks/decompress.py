"""armodels decompress: what armodels compress wrote, as it was, bit for bit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armodels import archive, checkpoints, coding, compression, disk, exported, originals, show
from armodels.archive import Damaged, Header
from armodels.spec import DataSpec

LARGEST_FILE = 2**32
"""Bytes of a file at most: it is read whole."""


def main(config: Mapping[str, Any]) -> None:
    """Write the folder, whole or not at all.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: The folder holds something.
        ValueError: The file is damaged, or of another model or machine.
    """
    path, out = Path(str(config["path"])).expanduser(), Path(str(config["out"]))
    exported.require_vacant(out)
    if not path.is_file():
        raise FileNotFoundError(f"path {path} is missing, or is no file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"path {path} is refused: it is larger than any that armodels reads")
    try:
        header, chunks = archive.unpack(path.read_bytes())
        if header.kind == archive.FILES:
            archive.require_names(header.names)
        restored = checkpoints.from_config({**config, "device": "cpu", "data": {}})
        model = coding.require_codable(restored.model)
        compression.require_same(header, restored, anyway=config["anyway"])
        show.say(f"from   {restored.origin}")
        found, lost = compression.decompress(
            model, header, chunks, keep_going=config["keep_going"], progress=True
        )
    except Damaged as error:
        hint = ""
        if "is lost" in str(error) and not config["keep_going"]:
            hint = "; keep_going=true writes what is whole"
        raise ValueError(f"{path} is refused: {error}{hint}") from error
    if lost and not found:
        raise ValueError(f"{path} is refused: {compression.described(lost, header)}")
    _write(found, header, restored.spec, out, path)
    if lost:
        raise ValueError(f"not all of {path} came back: {compression.described(lost, header)}")


def _write(
    found: Mapping[int, Tensor], header: Header, spec: DataSpec, out: Path, path: Path
) -> None:
    """Write examples as people had them."""
    rows = sorted(found)
    with disk.atomic_folder(out) as folder:
        if header.kind == archive.FILES:
            for i in rows:
                file = folder / header.names[i]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(originals.contents(found[i], spec))
        else:
            _write_split(found, rows, header, spec, folder)
    what = "file" if header.kind == archive.FILES else "example"
    of_all = "" if len(rows) == header.count else f" of {header.count:,}"
    show.say(
        f"read   {path}: {len(rows):,}{of_all} {what}{'s' * (header.count != 1)}, "
        f"{'whose checksums are' if of_all else 'every checksum'} right"
    )
    show.say(f"wrote  {out}")


def _write_split(
    found: Mapping[int, Tensor], rows: Sequence[int], header: Header, spec: DataSpec, folder: Path
) -> None:
    """Write the values of a split, and whole sequences as files, too."""
    (split,) = header.names
    if not archive.safe_name(split):
        raise Damaged(f"it is of a split {ascii(split)[:40]}")
    arrays: dict[str, Any] = {}
    if header.kind == archive.SPLIT:
        x = torch.stack([found[i] for i in rows]) if rows else torch.zeros(0, *spec.shape)
        arrays["x"] = x.numpy()
    else:
        arrays = {f"x{i}" if header.count > 1 else "x": found[i].numpy() for i in rows}
        end = originals.ending(spec)
        for i in rows if end is not None else ():
            name = f"{split}-{i}{end}" if header.count > 1 else f"{split}{end}"
            (folder / name).write_bytes(originals.contents(found[i], spec))
    if len(rows) < header.count:
        arrays["rows"] = np.array(rows)
    np.savez_compressed(folder / f"{split}.npz", **arrays)
