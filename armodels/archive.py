"""Files of coded events (.arm): a short header, then chunks that each have their own checksums.

A file is a stranger's: sizes and counts are bounded before anything is made of them.

All numbers are little-endian; a *varint* has seven bits a byte, the lowest first.

    magic  4   89 41 52 4D
    format 1   which of these layouts
    kind   1   0 examples of a split, 1 whole sequences of one, 2 files
    dtype  1   of the weights: 0 float32, 1 float64
    threads 1  in which the parameters were computed
    vectors 1  the processor's vector units that torch uses, by place in ``VECTORS``
    adapt  4   learning rate as float32, 0: the model learned nothing
    model  8   beginning of the SHA-256 of the model
    versions 9 of torch, armodels and constriction, three numbers each
    place  4   beginning of the SHA-256 of all else that rounding follows from
    batch  v   examples of a chunk
    count  v   examples
    names  v   length of what follows, then the name of the split, or names of files (raw deflate)
    sizes  v   for whole sequences and files: the fewest values of an example; of two examples and
               more also the unit of what the others have more, and the length of what follows, how
               many units that is of each, as ``_number`` has them
    chunks v   for each: its bytes (v), their CRC-32 (4), and that of its values (4)
    crc    4   CRC-32 of all above
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

MAGIC = b"\x89ARM"
FORMAT = 2
SPLIT, PIECES, FILES = range(3)
DTYPES = ("float32", "float64")
VECTORS = ("other", "DEFAULT", "AVX2", "AVX512", "NEON", "SVE", "SVE256", "ZVECTOR", "VSX")

LARGEST_BATCH = 2**14
"""Examples of a chunk at most: all of them are walked side by side."""

LARGEST_NAMES = 2**24
"""Bytes of all names at most."""

PER_BYTE = 8
"""Sizes that a byte holds at most, zeros added: a short file cannot state many."""

_LONGEST = 41
"""Bits of a number of units at most."""

_OWN_COUNTS = 2**12
"""Numbers whose bits have contexts of their own."""

_FIXED = struct.Struct("<4sBBBBBf8s9s4s")


@dataclass(frozen=True)
class Machine:
    """What numbers depend on beside the model: versions, threads, and where it is computed.

    Attributes:
        versions: Of torch, armodels and constriction, three numbers each.
        place: Beginning of a hash of all else.
        dtype: Of the weights.
        vectors: The processor's vector units that torch uses, of ``VECTORS``.
        threads: In which parameters are computed.
    """

    versions: tuple[int, ...]
    place: bytes
    dtype: str
    vectors: str
    threads: int = 1


@final
@dataclass(frozen=True)
class Header:
    """What a file says before its chunks.

    Attributes:
        kind: ``SPLIT``, ``PIECES`` or ``FILES``.
        model: Fingerprint of the model, 8 bytes.
        machine: Where it was computed.
        batch: Examples of a chunk.
        count: Examples.
        names: Name of the split, or of each file.
        sizes: Values of each example; none of ``SPLIT``, where all have the model's.
        adapt: Learning rate of a model that learned from what it coded; 0: it learned nothing.
        lengths: Bytes of each chunk.
        sums: CRC-32 of each chunk's bytes.
        value_sums: CRC-32 of each chunk's values.
    """

    kind: int
    model: bytes
    machine: Machine
    batch: int
    count: int
    names: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    adapt: float = 0.0
    lengths: tuple[int, ...] = field(default=())
    sums: tuple[int, ...] = field(default=())
    value_sums: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        # The encoder learns by the very rate that the decoder reads.
        object.__setattr__(self, "adapt", struct.unpack("<f", struct.pack("<f", self.adapt))[0])

    def rows(self, chunk: int) -> list[int]:
        """Which examples a chunk holds: those of similar length together, the longest first."""
        order: Sequence[int] = range(self.count)
        if self.sizes:
            order = sorted(order, key=lambda i: -self.sizes[i])
        return list(order[chunk * self.batch : (chunk + 1) * self.batch])


class Damaged(ValueError):
    """A file that is not as it was written."""


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 128:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def coder():  # type: ignore[no-untyped-def]  # noqa: ANN201
    """The entropy coder.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    try:
        import constriction
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "coding needs the package constriction: pip install 'armodels[compress]'"
        ) from error
    return constriction.stream


def pack(header: Header) -> bytes:
    """The bytes of a header.

    Args:
        header: Whose lengths and sums are known.
    """
    machine = header.machine
    fixed = _FIXED.pack(
        MAGIC,
        FORMAT,
        header.kind,
        DTYPES.index(machine.dtype),
        machine.threads,
        VECTORS.index(machine.vectors),
        header.adapt,
        header.model,
        bytes(min(one, 255) for one in machine.versions),
        machine.place,
    )
    joined = "\0".join(header.names).encode("utf-8", "surrogateescape")
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    names = packer.compress(joined) + packer.flush() if header.kind == FILES else joined
    parts = [fixed, _varint(header.batch), _varint(header.count), _varint(len(names)), names]
    parts += _packed_sizes(header.sizes)
    for length, crc, value_crc in zip(header.lengths, header.sums, header.value_sums, strict=True):
        parts.append(_varint(length) + struct.pack("<II", crc, value_crc))
    found = b"".join(parts)
    return found + struct.pack("<I", zlib.crc32(found))


# Sizes


def _packed_sizes(sizes: Sequence[int]) -> list[bytes]:
    """The sizes of examples, in few bytes."""
    if not sizes:
        return []
    least = min(sizes)
    if len(sizes) == 1:
        return [_varint(least)]
    unit = math.gcd(*(size - least for size in sizes)) or 1
    bits = _Bits()
    for size in sizes:
        _number(bits, (size - least) // unit)
    coded = bits.data().ljust(math.ceil(len(sizes) / PER_BYTE), b"\0")
    return [_varint(least), _varint(unit), _varint(len(coded)), coded]


@final
class _Bits:
    """Bits through a range coder, each by how often it was 0 and 1 in the same context.

    The estimate is that of Krichevsky & Trofimov, 1981, https://doi.org/10.1109/TIT.1981.1056331.

    Args:
        data: What is read; None: bits are written.
    """

    def __init__(self, data: bytes | None = None):
        stream = coder()
        self._bernoulli = stream.model.Bernoulli
        self._seen: dict[object, list[int]] = {}
        self._writer, self._reader = stream.queue.RangeEncoder(), None
        if data is not None:
            words = np.frombuffer(data.ljust(-(-len(data) // 4) * 4, b"\0"), "<u4")
            self._reader = stream.queue.RangeDecoder(words.astype(np.uint32))

    def bit(self, context: object, bit: int) -> int:
        """Write a bit; or read one, whatever it is.

        Raises:
            Damaged: None was written there.
        """
        seen = self._seen.setdefault(context, [1, 1])
        model = self._bernoulli(seen[1] / sum(seen), perfect=False)
        if self._reader is None:
            self._writer.encode(bit, model)
        else:
            try:
                bit = self._reader.decode(model)
            except AssertionError as error:  # as the coder has it
                raise Damaged("it states sizes that it cannot have") from error
        seen[bit] += 2
        return bit

    def data(self) -> bytes:
        """All that was written, without zeros at its end, which a reader takes for granted."""
        return self._writer.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


def _number(bits: _Bits, number: int = 0) -> int:
    """Write a number by how many bits it has and then these, from the highest; or read one.

    Raises:
        Damaged: It has more bits than any.
    """
    length = 0
    while bits.bit(("length", length), int(length < number.bit_length())):
        length += 1
        if length > _LONGEST:
            raise Damaged("it states sizes that it cannot have")
    found = min(length, 1)
    for place in reversed(range(length - 1)):
        context = (length, found) if found < _OWN_COUNTS else (length, -place)
        found = 2 * found + bits.bit(context, number >> place & 1)
    return found


@final
class _Reader:
    """Takes bytes one part after another, and never more than there are."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes.

        Raises:
            Damaged: There are fewer.
        """
        if size > len(self.data) - self.at:
            raise Damaged("it ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def varint(self, most: int) -> int:
        """The next number.

        Raises:
            Damaged: It is larger than ``most``.
        """
        number = 0
        for place in range(0, 63, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << place
            if byte < 128:
                if number > most:
                    break
                return number
        raise Damaged("it states sizes that it cannot have")


def unpack(data: bytes) -> tuple[Header, list[bytes]]:
    """A header, and the chunks after it; of a chunk that is cut off, what is there.

    Args:
        data: All of the file.

    Raises:
        Damaged: It is no such file, or its header is damaged.
    """
    reader = _Reader(data)
    if data[:4] != MAGIC:
        raise Damaged("it is no file that armodels compress wrote")
    if len(data) > 4 and data[4] != FORMAT:
        raise Damaged(
            f"it is of format {data[4]}, and this armodels reads format {FORMAT}; decompress it "
            f"by the version that wrote it"
        )
    header = _unpacked(reader)
    start = reader.at
    if reader.take(4) != struct.pack("<I", zlib.crc32(data[:start])):
        raise Damaged("its header is damaged (its checksum is another), so that nothing is read")
    chunks = []
    for length in header.lengths:
        chunks.append(data[reader.at : reader.at + length])
        reader.at += length
    if reader.at < len(data):
        raise Damaged("more follows than it states")
    return header, chunks


def _unpacked(reader: _Reader) -> Header:
    _, _, kind, dtype, threads, vectors, adapt, model, versions, place = _FIXED.unpack(
        reader.take(_FIXED.size)
    )
    known = kind <= FILES and dtype < len(DTYPES) and vectors < len(VECTORS)
    if not (known and 0 <= adapt < 1):
        raise Damaged("its header is damaged")
    size = len(reader.data)
    batch = reader.varint(LARGEST_BATCH)
    count = reader.varint(2**40)
    chunks = math.ceil(count / batch) if batch else -1
    # A chunk takes nine bytes of the header at least.
    if chunks < 0 or 9 * chunks > size or (kind != SPLIT and count > PER_BYTE * size):
        raise Damaged("it states more examples than it has room for")
    names = _names(reader.take(reader.varint(size)), kind)
    if len(names) != (count if kind == FILES else 1):
        raise Damaged("its names are not those of its files")
    sizes = () if kind == SPLIT else _sizes(reader, count)
    table = [(reader.varint(2**40), *struct.unpack("<II", reader.take(8))) for _ in range(chunks)]
    lengths, sums, value_sums = zip(*table, strict=True) if table else ((), (), ())
    machine = Machine(tuple(versions), place, DTYPES[dtype], VECTORS[vectors], threads)
    return Header(
        kind, model, machine, batch, count, names, sizes, adapt, lengths, sums, value_sums
    )


def _sizes(reader: _Reader, count: int) -> tuple[int, ...]:
    """Sizes of so many examples.

    Raises:
        Damaged: There are none such.
    """
    if count < 2:
        return tuple(reader.varint(2**40) for _ in range(count))
    least, unit = reader.varint(2**40), reader.varint(2**40)
    coded = reader.take(reader.varint(len(reader.data)))
    if count > PER_BYTE * len(coded):
        raise Damaged("it states more examples than it has room for")
    bits = _Bits(coded)
    found = tuple(least + unit * _number(bits) for _ in range(count))
    if max(found) > 2**40:
        raise Damaged("it states sizes that it cannot have")
    return found


def _names(packed: bytes, kind: int) -> tuple[str, ...]:
    if kind == FILES:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            packed = unpacker.decompress(packed, LARGEST_NAMES)
        except zlib.error as error:
            raise Damaged("its names cannot be unpacked") from error
        if not unpacker.eof or unpacker.unused_data:
            raise Damaged("its names cannot be unpacked, or are too long")
    return tuple(packed.decode("utf-8", "surrogateescape").split("\0"))


def is_whole(header: Header, chunk: int, data: bytes) -> bool:
    """Whether a chunk's bytes are those that were written.

    Args:
        header: Of the file.
        chunk: Number of the chunk.
        data: Its bytes.
    """
    return len(data) == header.lengths[chunk] and zlib.crc32(data) == header.sums[chunk]


def safe_name(name: str) -> bool:
    """Whether a name is that of a file below the folder that it is written to."""
    parts = name.split("/")
    bad = {"", ".", ".."}
    windows = any(sign in name for sign in '\\:*?"<>|') or any(ord(sign) < 32 for sign in name)
    return not windows and not bad & {*parts} and len(name) < 4000


def require_names(names: Sequence[str]) -> None:
    """Raise Damaged unless files of these names can lie in one folder, and nowhere else."""
    folders = {name[:i] for name in names for i, sign in enumerate(name) if sign == "/"}
    wrong = [name for name in names if not safe_name(name) or name in folders]
    if wrong or len({*names}) < len(names):
        which = ascii(wrong[0])[:80] if wrong else "two of one name"
        raise Damaged(f"it names files that would lie outside the folder, or on others: {which}")
