"""Examples as a file of a few bits, and back: chunks, checks, and what a decoder must have.

A chunk is one walk: its examples lie side by side, for the encoder as for the decoder, so that
both make the same sums in the same order. Nothing else promises the same bits of a sum of floats.
"""

import copy
import hashlib
import json
import math
import platform
import re
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from armodels import __version__, archive, coding
from armodels.archive import Damaged, Header, Machine
from armodels.checkpoints import Restored, orders_of
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.stream import reads

CHUNK = 48 * 1024
"""Bytes that a chunk is meant to have: its checksums and the coder's end add about 30 to them."""

WIDEST = 2048
"""Examples of a chunk at most, where nothing is said of it."""

MOST_SEQUENCES = 256
"""Whole texts, sounds or pieces of a chunk at most, where nothing is said of it."""

MOST_VALUES = 2**31
"""Values of a chunk at most, with what pads the shorter of its examples."""

STATE = 2**30
"""Bytes at most that the state of a chunk's walk takes, where nothing is said of it."""


@final
@dataclass(frozen=True)
class Compressed:
    """A file, and how it came about.

    Attributes:
        data: All of its bytes.
        header: What it says before its chunks.
        nats: -log p of all examples, by the parameters that coded them.
        num_values: Values of all examples.
        encode_seconds: Spent on encoding.
        check_seconds: Spent on decoding it again; None: it was not checked.
    """

    data: bytes
    header: Header
    nats: float
    num_values: int
    encode_seconds: float
    check_seconds: float | None


@final
@dataclass(frozen=True)
class Lost:
    """A chunk that could not be decoded.

    Attributes:
        chunk: Its number.
        rows: The examples that it held.
        why: In words.
    """

    chunk: int
    rows: list[int]
    why: str


def fingerprint(restored: Restored) -> bytes:
    """8 bytes that follow from all that makes a model's distribution: weights, orders, config.

    Args:
        restored: The model.
    """
    model, spec = restored.model, restored.spec
    found = hashlib.sha256()
    made = {key: restored.config.get(key) for key in ("model", "head")}
    about = [made, spec.kind, list(spec.shape), spec.levels, orders_of(model)]
    found.update(json.dumps(about, sort_keys=True, default=str).encode())
    for name, one in sorted(model.state_dict().items()):
        found.update(f"{name} {one.dtype} {tuple(one.shape)}".encode())
        found.update(one.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if spec.alphabet is not None:
        found.update(repr(spec.alphabet).encode())
    return found.digest()[:8]


def _numbers(version: str) -> tuple[int, ...]:
    """The first three numbers of a version."""
    found = [min(int(one), 255) for one in re.findall(r"\d+", version.partition("+")[0])[:3]]
    return (*found, 0, 0, 0)[:3]


def machine_of(model: DensityModel) -> Machine:
    """What the numbers of a model here depend on.

    Args:
        model: Of which the weights' type is asked.
    """
    from importlib.metadata import version

    floats = (one for one in model.state_dict().values() if one.is_floating_point())
    double = all(one.dtype == torch.double for one in floats)
    coder = version("constriction")
    vectors = torch.backends.cpu.get_cpu_capability()
    about = [
        torch.__version__, __version__, coder, np.__version__, platform.machine(), vectors,
        platform.system(), torch.backends.mkl.is_available(), torch.backends.mkldnn.is_available(),
        torch.get_float32_matmul_precision(),
    ]  # fmt: skip
    return Machine(
        (*_numbers(torch.__version__), *_numbers(__version__), *_numbers(coder)),
        hashlib.sha256(json.dumps(about).encode()).digest()[:4],
        "float64" if double else "float32",
        vectors if vectors in archive.VECTORS else "other",
    )


def require_same(header: Header, restored: Restored, *, anyway: bool = False) -> None:
    """Raise ValueError unless a file is of this model, and was written where numbers are the same.

    Args:
        header: Of the file.
        restored: The model.
        anyway: Pass over what is different of the machine: checksums say what came of it.
    """
    if header.model != fingerprint(restored):
        raise ValueError(
            "it was written by another model (other weights, another order or config) than "
            f"{restored.path}; name the run that wrote it, "
            "and the same checkpoint and eval.weights"
        )
    here, there = machine_of(restored.model), header.machine
    if here == there or anyway:
        return
    differences = [
        f"{name} {'.'.join(map(str, there.versions[i : i + 3]))} (here "
        f"{'.'.join(map(str, here.versions[i : i + 3]))})"
        for i, name in ((0, "torch"), (3, "armodels"), (6, "constriction"))
        if there.versions[i : i + 3] != here.versions[i : i + 3]
    ]
    for name in ("vectors", "dtype", "threads"):
        if getattr(there, name) != getattr(here, name):
            differences.append(f"{name} {getattr(there, name)} (here {getattr(here, name)})")
    what = ", ".join(differences) or "another build of torch or NumPy, or another system"
    raise ValueError(
        f"it was written with {what}, where sums may be rounded otherwise; decode it there, or "
        f"try anyway=true: checksums tell whether every value came out right"
    )


def batch_for(model: AutoregressiveModel, events: Sequence[Tensor]) -> int:
    """Examples of a chunk: as many as make it large enough, and no more than memory takes.

    Args:
        model: Codes them.
        events: All of them.
    """
    if reads(model) or not len(events):
        values = max((one.numel() for one in events), default=1)
        return max(1, min(len(events), MOST_SEQUENCES, 2**22 // max(values, 1)))
    with torch.no_grad():
        some = torch.stack([events[i] for i in range(min(8, len(events)))])
        each = max(float(-model.log_prob(some).double().mean()) / math.log(2) / 8, 1e-3)
        state = model.net.start(model.net.pack(), 1)
    size = sum(one.numel() * one.element_size() for one in state.values())
    return max(1, min(WIDEST, len(events), math.ceil(CHUNK / each), STATE // max(size, 1)))


def _value_sum(events: Sequence[Tensor]) -> int:
    """CRC-32 of values, as little-endian numbers."""
    found = 0
    for one in events:
        array = one.contiguous().numpy()
        found = zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes(), found)
    return found


def compress(
    model: AutoregressiveModel,
    events: Sequence[Tensor],
    header: Header,
    *,
    check: bool = True,
    progress: bool = False,
) -> Compressed:
    """Examples as the bytes of a file.

    Args:
        model: See ``coding.require_codable``; on the CPU.
        events: Each of the model's shape, or (T,) of a model that reads.
        header: Without what follows from its chunks.
        check: Decode each chunk again by a copy of the model, and compare.
        progress: Show a bar with an ETA once a second has passed.

    Raises:
        ValueError: A value is none of the model's levels, what the model says is no distribution,
            or encoder and decoder do not agree.
    """
    adapt = header.adapt or None
    num_chunks = math.ceil(header.count / header.batch)
    lengths, sums, value_sums, chunks = [], [], [], []
    nats, encoding, checking = 0.0, 0.0, 0.0
    with _bar(model, header, num_chunks, "coding", progress, 1 + check) as bar:
        for chunk in range(num_chunks):
            some = [events[i] for i in header.rows(chunk)]
            for one in some:
                model.spec.check(one[None]) if header.kind == archive.SPLIT else None
            began = time.perf_counter()
            coded = _encoded(model, some, adapt, bar.update)
            encoding += time.perf_counter() - began
            if check:
                began = time.perf_counter()
                _require_back(model, some, coded.data, adapt, chunk, bar.update)
                checking += time.perf_counter() - began
            nats += coded.nats
            chunks.append(coded.data)
            lengths.append(len(coded.data))
            sums.append(zlib.crc32(coded.data))
            value_sums.append(_value_sum(some))
    whole = replace(header, lengths=tuple(lengths), sums=tuple(sums), value_sums=tuple(value_sums))
    data = b"".join([archive.pack(whole), *chunks])
    num_values = sum(one.numel() for one in events)
    return Compressed(data, whole, nats, num_values, encoding, checking if check else None)


def _bar(
    model: AutoregressiveModel, header: Header, num_chunks: int, what: str, shown: bool, times: int
) -> tqdm:
    """A bar over the steps of all chunks."""
    width = model.net.order_table.shape[1]
    if header.sizes:
        steps = sum(max(header.sizes[i] for i in header.rows(c)) for c in range(num_chunks))
    else:
        steps = num_chunks * model.spec.num_dims
    return tqdm(
        total=times * steps // width,
        desc=what,
        unit="step",
        delay=1,
        disable=None if shown else True,
    )


def _encoded(
    model: AutoregressiveModel,
    events: Sequence[Tensor],
    adapt: float | None,
    tell: Callable[[], object],
) -> coding.Coded:
    if not events[0].numel():
        return coding.Coded(b"", 0.0)
    return coding.encode(model, events, adapt=adapt, tell=tell)


def _require_back(
    model: AutoregressiveModel,
    events: Sequence[Tensor],
    data: bytes,
    adapt: float | None,
    chunk: int,
    tell: Callable[[], object],
) -> None:
    """Raise ValueError unless a copy of the model decodes what was encoded."""
    if not events[0].numel():
        return
    lengths = [one.numel() for one in events]
    try:
        back = coding.decode(copy.deepcopy(model), data, lengths, adapt=adapt, tell=tell)
        same = all(map(torch.equal, events, back))
    except coding.Undecodable:
        same = False
    if not same:
        raise ValueError(
            f"model {model.description} says other numbers when it is asked a second time, so "
            f"that what it codes cannot be decoded (chunk {chunk}); no file is written"
        )


def decompress(
    model: AutoregressiveModel,
    header: Header,
    chunks: Sequence[bytes],
    *,
    keep_going: bool = False,
    progress: bool = False,
) -> tuple[dict[int, Tensor], list[Lost]]:
    """The examples of a file.

    Args:
        model: The one that wrote it; see ``require_same``.
        header: Of the file.
        chunks: Of the file.
        keep_going: Pass over chunks that are damaged.
        progress: Show a bar with an ETA once a second has passed.

    Returns:
        Number of an example -> the example; and what is lost.

    Raises:
        Damaged: A chunk is damaged, or the file states what cannot be, and ``keep_going`` is not
            set.
    """
    _require_possible(model, header)
    damaged = [i for i, one in enumerate(chunks) if not archive.is_whole(header, i, one)]
    lost = [Lost(i, header.rows(i), "its bytes are not those that were written") for i in damaged]
    if lost and not keep_going:
        raise Damaged(described(lost, header))
    found: dict[int, Tensor] = {}
    with _bar(model, header, len(chunks), "decoding", progress, 1) as bar:
        for chunk in range(len(chunks)):
            if chunk in damaged:
                continue
            some = _decoded(model, header, chunk, chunks[chunk], bar.update)
            if some is None:
                why = "its bytes are whole, but this machine rounds otherwise than its writer"
                lost.append(Lost(chunk, header.rows(chunk), why))
                if not keep_going:
                    raise Damaged(described(lost, header))
            else:
                found |= dict(zip(header.rows(chunk), some, strict=True))
    return found, lost


def _decoded(
    model: AutoregressiveModel,
    header: Header,
    chunk: int,
    data: bytes,
    tell: Callable[[], object],
) -> list[Tensor] | None:
    """The examples of a chunk; None: they are not those that were written."""
    rows = header.rows(chunk)
    lengths = [header.sizes[i] for i in rows] if header.sizes else []
    lengths = lengths or [model.spec.num_dims] * len(rows)
    if not lengths[0]:
        return [model.empty(0).flatten() for _ in rows]
    try:
        found = coding.decode(model, data, lengths, adapt=header.adapt or None, tell=tell)
    except coding.Undecodable:
        return None
    return found if _value_sum(found) == header.value_sums[chunk] else None


def _require_possible(model: AutoregressiveModel, header: Header) -> None:
    """Raise Damaged where a file states more than its bits hold, or not what the model has."""
    width = model.net.order_table.shape[1]
    dims = model.spec.num_dims
    wrong = [size for size in header.sizes if size % width or not (reads(model) or size == dims)]
    if wrong:
        raise Damaged("its sizes are none that the model has")
    if header.adapt and header.batch > 1:
        raise Damaged("a model that learns codes one sequence after the other")
    # No level has more than 1 - (L - 1) / 2^24, so that a value takes so many bits at least.
    least = (model.spec.num_levels - 1) / 2**coding.PRECISION / math.log(2) / 2
    for chunk, length in enumerate(header.lengths):
        rows = header.rows(chunk)
        values = sum(header.sizes[i] for i in rows) if header.sizes else 0
        values = values or len(rows) * model.spec.num_dims * (not header.sizes)
        widest = len(rows) * header.sizes[rows[0]] if header.sizes else values
        if values * least > 8 * (length + 8) or widest > MOST_VALUES:
            raise Damaged("it states more values than so few bytes can hold")


def described(lost: Sequence[Lost], header: Header) -> str:
    """Which chunks and examples are lost, in one sentence.

    Args:
        lost: One or more.
        header: Of the file.
    """
    first = lost[0]
    names = header.names
    if header.kind == archive.FILES:
        what = ", ".join(names[i] for i in first.rows[:5]) + (", ..." if first.rows[5:] else "")
    else:
        what = f"examples {min(first.rows)} to {max(first.rows)} of {names[0]}"
    more = "" if len(lost) == 1 else f"; of {len(header.lengths)} chunks {len(lost)} are lost"
    return f"chunk {first.chunk} ({what}) is lost: {first.why}{more}"
