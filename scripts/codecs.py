"""A file of armodels compress beside other encoders, on the same examples: a table in Markdown.

    armodels compress RUN out=FILE.arm
    python scripts/codecs.py RUN FILE.arm

The file says which examples of the run's split it holds: pictures, or whole texts. The others
code what ``decompress`` would write of them; what each wrote is decoded again and compared.
Encoders come by ``pip install 'armodels[codecs]'``; one whose package is missing is left out.

General encoders get all examples as one stream: texts one after another; of pictures the pixels,
one a byte, or eight a byte where there are two levels and that is smaller. "Primed" is what a
text takes after train, which the model has read, too: the bytes of both less those of train.
A model's weights are in no file.
"""

import argparse
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from armodels import archive, compression, originals
from armodels.checkpoints import Restored, restore
from armodels.examples import load_splits
from armodels.machine import processor


@dataclass(frozen=True)
class General:
    """An encoder of any bytes.

    Attributes:
        module: Python's name of its package.
        pack: The module and bytes as fewer bytes.
        unpack: The module, those, and how many bytes they were, as the bytes.
    """

    module: str
    pack: Callable[[Any, bytes], bytes]
    unpack: Callable[[Any, bytes, int], bytes]


GENERAL = {
    "gzip -9": General("gzip", lambda m, x: m.compress(x, 9), lambda m, x, _: m.decompress(x)),
    "xz -9e": General(
        "lzma",
        lambda m, x: m.compress(x, preset=9 | m.PRESET_EXTREME),
        lambda m, x, _: m.decompress(x),
    ),
    "zstd -22": General(
        "zstandard",
        lambda m, x: m.ZstdCompressor(level=22).compress(x),
        lambda m, x, _: m.ZstdDecompressor().decompress(x),
    ),
    "brotli -q 11": General(
        "brotli",
        lambda m, x: m.compress(x, quality=11, lgwin=24),
        lambda m, x, _: m.decompress(x),
    ),
    "PPMd, order 6": General("pyppmd", lambda m, x: _ppmd(m, x), lambda m, x, size:
                             m.Ppmd7Decoder(6, PPMD_MEMORY).decode(x, size)),
}  # fmt: skip
PPMD_MEMORY = 2**28


def _ppmd(module: Any, data: bytes) -> bytes:
    """By variant H, as 7-Zip has it: the decoder of variant I failed on 2.4 MB of pixels."""
    encoder = module.Ppmd7Encoder(6, PPMD_MEMORY)
    return encoder.encode(data) + encoder.flush()


@dataclass(frozen=True)
class Picture:
    """An encoder of pictures, by Pillow.

    Attributes:
        kind: As Pillow names it.
        options: Of ``save``.
        module: Python's name of the package that teaches Pillow this kind.
        modes: Pillow's modes that it has, in the place of the picture's own.
    """

    kind: str
    options: dict[str, object]
    module: str = "PIL"
    modes: tuple[str, ...] = ("1", "L", "RGB")


PICTURES = {
    "PNG": Picture("PNG", {"optimize": True}),
    "WebP": Picture("WEBP", {"lossless": True, "quality": 100, "method": 6, "exact": True},
                    modes=("RGB",)),
    **{f"JPEG XL -e {effort}": Picture(
        "JXL", {"lossless": True, "effort": effort, "num_threads": 0}, "pillow_jxl", ("L", "RGB")
    ) for effort in (7, 9)},
}  # fmt: skip
"""Of JPEG XL the smaller effort is the better one on small pictures."""

ORDER = ("1", "L", "RGB")
"""Pillow's modes, each of which has the colours of those before it."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: Of the encoder.
        size: Bytes of all examples.
        primed: Bytes of a text after train; None: of pictures, or not measured.
        seconds: Processor time of coding, of pictures with decoding; None: not measured.
    """

    name: str
    size: int
    primed: int | None = None
    seconds: float | None = None


def held(restored: Restored, data: bytes) -> tuple[archive.Header, list[torch.Tensor], bytes]:
    """What a file holds: its header, the examples, and of texts all of train.

    Args:
        restored: The model that wrote it.
        data: All of the file.

    Raises:
        ValueError: It is of another model, or holds files of the user's.
    """
    header, _ = archive.unpack(data)
    compression.require_same(header, restored, anyway=True)
    if header.kind == archive.FILES:
        raise ValueError("it holds files of your own; compress a split of the run's data")
    if originals.ending(restored.spec) not in (".png", ".txt"):
        raise ValueError(f"it is of {restored.spec.name}, which is neither pictures nor texts")
    (split,) = header.names
    _, found = load_splits(restored, {}, ("train", split))
    if header.kind == archive.SPLIT:
        return header, list(found[split].x[: header.count]), b""
    texts = (originals.contents(piece[:], restored.spec) for piece in found["train"].pieces)
    return header, [one[:] for one in found[split].pieces[: header.count]], b"".join(texts)


def _module(name: str) -> Any:
    """A package; None, with a line that says so: it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        print(f"left out, for it is not installed: {name} (armodels[codecs])", file=sys.stderr)
        return None


def general(streams: Sequence[bytes], before: bytes) -> Iterator[Row]:
    """Rows of the general encoders.

    Args:
        streams: The same examples in one way or another, of which each takes the smaller one.
        before: What is read before them, where something is.

    Raises:
        AssertionError: An encoder lost something.
    """
    for name, codec in tqdm(GENERAL.items(), "streams", delay=1, disable=None):
        if (module := _module(codec.module)) is None:
            continue
        found = []
        for one in streams:
            began = time.process_time()
            packed = codec.pack(module, one)
            found.append((len(packed), time.process_time() - began))
            assert codec.unpack(module, packed, len(one)) == one
        size, seconds = min(found)
        primed = None
        if before:
            primed = len(codec.pack(module, before + streams[0]))
            primed -= len(codec.pack(module, before))
        yield Row(name, size, primed, seconds)


def as_written(image: Image.Image, codec: Picture) -> bytes:
    """A picture as an encoder writes it.

    Raises:
        AssertionError: The encoder lost something.
    """
    mode = next(one for one in codec.modes if ORDER.index(one) >= ORDER.index(image.mode))
    file = io.BytesIO()
    image.convert(mode).save(file, codec.kind, **codec.options)
    assert Image.open(file).convert("RGB").tobytes() == image.convert("RGB").tobytes()
    return file.getvalue()


def pictures(images: Sequence[Image.Image]) -> Iterator[Row]:
    """Rows of the encoders of pictures: one by one, and by some all as tiles of one.

    Args:
        images: Of one size and mode.
    """
    for name, codec in PICTURES.items():
        if _module(codec.module) is None:
            continue
        ways = {name: images}
        if codec.kind == "JXL":
            ways[f"{name}, all in one picture"] = [tiled(images)]
        for what, some in ways.items():
            began = time.process_time()
            size = sum(len(as_written(one, codec)) for one in tqdm(some, delay=1, disable=None))
            yield Row(what, size, None, time.process_time() - began)


def tiled(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side, about as many in a row as there are rows."""
    width, height = images[0].size
    columns = math.ceil(math.sqrt(len(images)))
    whole = Image.new(images[0].mode, (columns * width, -(-len(images) // columns) * height))
    for i, one in enumerate(images):
        whole.paste(one, (i % columns * width, i // columns * height))
    return whole


def rows(header: archive.Header, events: list[torch.Tensor], before: bytes, restored: Restored):
    """Rows of all other encoders."""
    spec = restored.spec
    contents = [originals.contents(one, spec) for one in events]
    if spec.alphabet is not None:
        yield from general([b"".join(contents)], before)
        return
    images = [Image.open(io.BytesIO(one)) for one in contents]
    streams = [b"".join(one.tobytes() for one in images)]
    if spec.levels == 2:
        bits = torch.stack(events).numpy().astype(np.uint8)
        streams.append(np.packbits(bits).tobytes())
        images = [one.convert("1") for one in images]
    yield from general(streams, b"")
    yield from pictures(images)


def line(row: Row, num_values: int, num_images: int | None) -> str:
    """A row in Markdown."""
    cells = [row.name, f"{row.size:,}"]
    if num_images is None:
        primed = "" if row.primed is None else f"{8 * row.primed / num_values:.3f}"
        cells += [f"{8 * row.size / num_values:.3f}", primed]
    else:
        each = 8 * row.size / num_images
        cells += [f"{each:,.2f}" if each < 1000 else f"{each:,.0f}"]
        cells += [f"{8 * row.size / num_values:.4f}"]
    cells += ["" if row.seconds is None else f"{row.seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str]) -> None:
    """Print the table, each row as soon as it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("file", metavar="FILE", type=Path, help="that armodels compress wrote")
    options = parser.parse_args(argv)
    try:
        data = options.file.read_bytes()
        restored = restore(options.run)
        header, events, before = held(restored, data)
    except (OSError, ValueError) as error:
        sys.exit(f"codecs: error: {options.file}: {error}")
    torch.set_num_threads(1)
    of_text = header.kind == archive.PIECES
    num_values = sum(one.numel() for one in events)
    size = f"{num_values:,} characters" if of_text else f"{len(events):,} pictures"
    print(f"\n{restored.spec.name}, {header.names[0]}, {size}; {processor()}, one thread\n")
    units = "bits/char | primed" if of_text else "bits a picture | bits/dim"
    print(f"| encoder | bytes | {units} | seconds |\n|---|---|---|---|---|")
    learned = ", adapt=true" if header.adapt else ""
    name = f"armodels, {restored.config['choices']['model']}{learned}"
    own = Row(name, len(data), len(data) if of_text else None)
    print(line(own, num_values, None if of_text else len(events)))
    for row in rows(header, events, before, restored):
        print(line(row, num_values, None if of_text else len(events)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
