"""Every source: true to its spec, split once and for all, offline, clear about bad files."""

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import itertools
import math
import os
import pickle
import re
import socket
import time
import typing
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from command import CONFIGS
from PIL import Image

from armodels import contexts
from armodels.data import base, mnist, natural, omniglot, tables
from armodels.data.anime import Anime
from armodels.data.atari import Atari
from armodels.data.audio import FSDD, SPEAKERS, Audio
from armodels.data.base import Splits, binarize, binarize_frozen, split_rows
from armodels.data.digits import Digits
from armodels.data.folder import Folder
from armodels.data.midi import write_midi
from armodels.data.mnist import EMNIST, EMNIST_SIZES, KMNIST, MNIST, FashionMNIST
from armodels.data.music import Music
from armodels.data.natural import CIFAR10, SVHN
from armodels.data.omniglot import Omniglot
from armodels.data.sine import Sine
from armodels.data.tables import UCI_SIZES, BinaryUCI, RedWine
from armodels.data.text import Text, TinyShakespeare
from armodels.data.toy import CODES, DENSITIES, Toy
from armodels.notes import Notes
from armodels.spec import DataSpec
from armodels.waveform import ENCODINGS, write_wav

NUM_TRAIN, NUM_TEST = 50, 10  # of the small files that stand in for MNIST
REAL = Path(os.environ.get("ARMODELS_DATA", ""))
needs_real = pytest.mark.skipif(
    not (REAL / "MNIST/raw/t10k-images-idx3-ubyte").exists()
    or not (REAL / "binarized_mnist").exists(),
    reason="needs MNIST and binarized_mnist in $ARMODELS_DATA",
)

needs_tables = pytest.mark.skipif(
    not (REAL / "binary_uci/nips.npz").exists() or not (REAL / "tabular/red_wine.hdf5").exists(),
    reason="needs binary_uci and tabular in $ARMODELS_DATA",
)


def binarizations(source: type) -> tuple[str, ...]:
    """The choices that a constructor's signature states."""
    return typing.get_args(typing.get_type_hints(source.__init__)["binarization"])


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """No test may open a connection."""

    def refuse(*args, **kwargs):
        raise OSError("network is blocked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Small files in the real formats, with the checksums to match; returns the data root."""
    rng = np.random.RandomState(0)

    def write(path: Path, contents: bytes) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents)
        return hashlib.md5(contents).hexdigest()

    def idx(num: int) -> bytes:
        header = np.array([0x803, num, 28, 28], ">i4").tobytes()
        return header + rng.randint(256, size=(num, 28, 28), dtype=np.uint8).tobytes()

    def idx_labels(num: int) -> bytes:
        header = np.array([0x801, num], ">i4").tobytes()
        return header + (np.arange(num) % 10).astype(np.uint8).tobytes()

    def amat(num: int) -> bytes:
        rows = rng.randint(2, size=(num, 784))
        return "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()

    for cls in (MNIST, FashionMNIST):
        raw = tmp_path / cls.dataset / "raw"
        sizes = zip(cls.checksums, (NUM_TRAIN, NUM_TEST), strict=True)
        monkeypatch.setattr(cls, "checksums", {n: write(raw / n, idx(num)) for n, num in sizes})
        sizes = zip(cls.label_checksums, (NUM_TRAIN, NUM_TEST), strict=True)
        checksums = {n: write(raw / n, idx_labels(num)) for n, num in sizes}
        monkeypatch.setattr(cls, "label_checksums", checksums)
    sizes = zip(mnist.FIXED_CHECKSUMS, (20, 5, 6), strict=True)
    folder = tmp_path / "binarized_mnist"
    checksums = {n: write(folder / n, amat(num)) for n, num in sizes}
    monkeypatch.setattr(mnist, "FIXED_CHECKSUMS", checksums)
    monkeypatch.setattr(mnist, "NUM_VALID", 10)

    def npz(num_dims: int) -> bytes:
        buffer = io.BytesIO()
        sizes = {"train": 9, "valid": 4, "test": 7}
        np.savez(
            buffer,
            **{p: rng.randint(2, size=(n, num_dims), dtype=np.uint8) for p, n in sizes.items()},
        )
        return buffer.getvalue()

    folder = tmp_path / "binary_uci"
    checksums = {f"{n}.npz": write(folder / f"{n}.npz", npz(d)) for n, d in UCI_SIZES.items()}
    monkeypatch.setattr(tables, "UCI_CHECKSUMS", checksums)
    rows = rng.rand(1599, 11).astype("<f4")
    contents = bytes(2144) + rows.tobytes() + bytes(999)  # the array where the real file has it
    path = tmp_path / "tabular/red_wine.hdf5"
    monkeypatch.setattr(tables, "WINE_CHECKSUMS", {path.name: write(path, contents)})
    _write_images(tmp_path, write, rng, monkeypatch, idx, idx_labels)
    np.savetxt(tmp_path / "table.csv", rng.randn(60, 3), delimiter=",")
    return tmp_path


def _write_images(root: Path, write, rng, monkeypatch, idx, idx_labels) -> None:
    """The files of the other sets of images, 5 of each class in training or so."""
    sizes = (NUM_TRAIN, NUM_TEST)
    for cls in (KMNIST, EMNIST):
        monkeypatch.setattr(cls, "sizes", sizes, raising=False)
    monkeypatch.setitem(EMNIST_SIZES, "letters", (*sizes, 26))
    for kind, make in (("images-idx3", idx), ("labels-idx1", idx_labels)):
        checksums = {}
        for part, num in zip(("train", "t10k"), sizes, strict=True):
            name = f"{part}-{kind}-ubyte"
            packed = gzip.compress(make(num))
            checksums[name] = write(root / f"KMNIST/raw/{name}.gz", packed)
        which = "checksums" if kind.startswith("images") else "label_checksums"
        monkeypatch.setattr(KMNIST, which, checksums)
    for part, num in zip(("train", "test"), sizes, strict=True):
        start = root / f"EMNIST/raw/emnist-letters-{part}"
        write(Path(f"{start}-images-idx3-ubyte"), idx(num))
        labels = np.arange(num) % 26 + 1
        header = np.array([0x801, num], ">i4").tobytes()
        write(Path(f"{start}-labels-idx1-ubyte"), header + labels.astype(np.uint8).tobytes())

    def batch(num: int) -> bytes:
        data = rng.randint(256, size=(num, 3072), dtype=np.uint8)
        return pickle.dumps({"data": data, "labels": list(range(num)), "batch_label": "x"}, 2)

    folder = root / "cifar-10-batches-py"
    checksums = {name: write(folder / name, batch(7)) for name in CIFAR10.checksums}
    monkeypatch.setattr(CIFAR10, "checksums", checksums)
    monkeypatch.setattr(natural, "NUM_VALID", 6)
    checksums = {}
    for name, num in zip(SVHN.checksums, (40, 12), strict=True):
        buffer = io.BytesIO()
        x = rng.randint(256, size=(32, 32, 3, num), dtype=np.uint8)
        scipy.io.savemat(buffer, {"X": x, "y": (np.arange(num) % 10 + 1)[:, None]})
        checksums[name] = write(root / "SVHN" / name, buffer.getvalue())
    monkeypatch.setattr(SVHN, "checksums", checksums)

    def packed(folder: str, num: int, size: int, mode: str, suffix: str) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            for i in range(num):
                shape = (size, size, 3) if mode == "RGB" else (size, size)
                image = Image.fromarray(rng.randint(256, size=shape, dtype=np.uint8))
                contents = io.BytesIO()
                image.convert(mode).save(contents, suffix)
                file.writestr(f"{folder}{i:03}.{suffix}", contents.getvalue())
        return buffer.getvalue()

    folder = root / omniglot.FOLDER
    sizes = zip(omniglot.CHECKSUMS, (20, 9), strict=True)
    checksums = {
        name: write(folder / name, packed(f"{name[:-4]}/Greek/character01/", num, 105, "1", "png"))
        for name, num in sizes
    }
    monkeypatch.setattr(omniglot, "CHECKSUMS", checksums)
    write(root / "verse.txt", b"The quick brown fox jumps over the lazy dog.\n" * 60)
    monkeypatch.setattr(omniglot, "NUM_VALID", 5)
    monkeypatch.setattr("armodels.data.audio.TAKES", (0, 5, 8))
    write(root / "anime/anime_faces.zip", packed("", 60, 16, "RGB", "jpeg"))
    write(root / "pets.zip", packed("a/", 60, 9, "RGB", "png"))
    _write_sound(root, write, rng)


def _write_sound(root: Path, write, rng) -> None:
    """Own sounds, and three takes of each spoken digit (take 8 is train)."""

    def wav() -> bytes:
        buffer = io.BytesIO()
        write_wav(buffer, rng.uniform(-1, 1, 40), 8000)
        return buffer.getvalue()

    for i in range(10):
        write(root / f"sounds/{i}.wav", wav())
        buffer = io.BytesIO()
        write_midi(rng.randint(0, 2, (1, 20 * 88)), Notes(), buffer)
        write(root / f"tunes/{i}.mid", buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for digit, speaker, take in itertools.product(range(10), SPEAKERS, (0, 5, 8)):
            file.writestr(f"recordings/{digit}_{speaker}_{take}.wav", wav())
    write(root / "audio/fsdd.zip", buffer.getvalue())


SOURCES = {
    "digits": lambda root: Digits(),
    "digits-binary": lambda root: Digits(levels=2),
    **{
        f"{cls.__name__}-{b}": lambda root, cls=cls, b=b: cls(b, root=str(root))
        for cls in (MNIST, FashionMNIST)
        for b in binarizations(cls)
    },
    **{
        f"binary_uci-{name}": lambda root, name=name: BinaryUCI(name, root=str(root))
        for name in UCI_SIZES
    },
    **{
        f"red_wine-{fold}": lambda root, fold=fold: RedWine(fold, root=str(root))
        for fold in (0, 4, 9)
    },
    **{f"kmnist-{b}": lambda root, b=b: KMNIST(b, root=str(root)) for b in binarizations(KMNIST)},
    "emnist": lambda root: EMNIST("letters", root=str(root)),
    "omniglot": lambda root: Omniglot(root=str(root)),
    "cifar10": lambda root: CIFAR10(root=str(root)),
    "cifar10-L8": lambda root: CIFAR10(8, root=str(root)),
    "svhn": lambda root: SVHN(root=str(root)),
    "text": lambda root: Text(str(root / "verse.txt"), length=9),
    "text-bytes": lambda root: Text(str(root / "verse.txt"), unit="byte", length=9),
    "tinyshakespeare": lambda root: TinyShakespeare(root=str(REAL)),
    "table": lambda root: tables.Table(str(root / "table.csv")),
    "anime": lambda root: Anime(size=(16, 16), root=str(root)),
    "folder": lambda root: Folder(
        str(root / "pets.zip"), size=(9, 9), channels=1, levels=5, root=str(root)
    ),
    "atari": lambda root: Atari(
        "pong",
        size=(84, 84),
        levels=256,
        num_train=9,
        num_valid=5,
        num_test=5,
        episode_frames=5,
        root=str(root),
    ),
    "audio": lambda root: Audio(str(root / "sounds"), rate=6000, length=10),
    "fsdd": lambda root: FSDD("linear16", length=16, root=str(root)),
    "music": lambda root: Music(path=root / "tunes", length=9, transpose=True),
    "jsb": lambda root: Music("jsb", root=str(REAL)),
    "voices": lambda root: Music("jsb_16th", voices=True, transpose=True, root=str(REAL)),
    "sine": lambda root: Sine(64, num_train=300, num_valid=100, num_test=200),
    **{
        name: lambda root, name=name: Toy(name, num_train=300, num_valid=100, num_test=200)
        for name in [*DENSITIES, *CODES]
    },
}


no_ale = pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None, reason="needs ale-py: pip install '.[atari]'"
)
no_soundfile = pytest.mark.skipif(
    importlib.util.find_spec("soundfile") is None,
    reason="needs soundfile: pip install '.[audio]'",
)
no_text = pytest.mark.skipif(
    not (REAL / "text/tinyshakespeare.txt").exists(), reason="needs text in $ARMODELS_DATA"
)
no_music = pytest.mark.skipif(
    not (REAL / "music/JSB_Chorales.mat").exists(), reason="needs music in $ARMODELS_DATA"
)
WANTED = {"jsb": no_music, "voices": no_music}
WANTED |= {
    "atari": no_ale,
    "tinyshakespeare": no_text,
    "audio": no_soundfile,
    "fsdd": no_soundfile,
}
NAMES = [pytest.param(name, marks=WANTED.get(name, ())) for name in SOURCES]


@pytest.mark.parametrize("name", NAMES)
def test_source_keeps_its_word(name, files):
    source = SOURCES[name](files)
    splits, again = source.load(), SOURCES[name](files).load()
    # Own pictures have a checksum once they are read.
    assert dataclasses.replace(splits.spec, checksum=source.spec.checksum) == source.spec
    for part in ("train", "valid", "test"):
        values = splits.split(part)[:]
        splits.spec.check(values)
        assert values.dtype == splits.spec.dtype
        assert torch.equal(values, again.split(part)[:])
    parts = (splits.train[:], splits.valid[:], splits.test[:])
    assert not torch.equal(parts[0][: len(parts[1])], parts[1][: len(parts[0])])
    if splits.spec.levels is not None and splits.spec.levels < 256:
        assert int(splits.split("train")[:].max()) == splits.spec.levels - 1
    with pytest.raises(ValueError, match="'val' is unknown; choose from train, valid, test"):
        splits.split("val")
    for wanted in contexts.available(splits.spec).values():
        for part in ("train", "valid", "test"):
            examples = splits.examples(part, wanted)
            wanted.check(examples[:].context, len(examples))


def test_every_data_config_is_tried():
    targets = {
        re.search(r"^_target_: .*\.(\w+)$", path.read_text(), re.M).group(1)
        for path in (CONFIGS / "data").glob("*.yaml")
    }
    assert targets == {type(make(Path("x"))).__name__ for make in SOURCES.values()}


@pytest.mark.parametrize("name", ["kmnist-none", "omniglot", "cifar10", "svhn", "anime", "folder"])
def test_splits_of_images_are_disjoint(name, files):
    splits = SOURCES[name](files).load()
    train, valid, test = (
        {x.numpy().tobytes() for x in splits.split(part)[:]} for part in ("train", "valid", "test")
    )
    assert len(train | valid | test) == len(train) + len(valid) + len(test)


def test_spec_needs_no_files(tmp_path):
    specs = [
        *(KMNIST(b, root=str(tmp_path)).spec for b in binarizations(KMNIST)),
        *(EMNIST(split, root=str(tmp_path)).spec for split in EMNIST_SIZES),
        *(cls(levels, root=str(tmp_path)).spec for cls in (CIFAR10, SVHN) for levels in (8, 256)),
        *(Omniglot(levels=levels, root=str(tmp_path)).spec for levels in (2, 16)),
        *(Anime(size=size, root=str(tmp_path)).spec for size in ((8, 8), (8, 9))),
        Folder("x", root=str(tmp_path)).spec,
        Atari(root=str(tmp_path)).spec,
        *(MNIST(b, root=str(tmp_path)).spec for b in binarizations(MNIST)),
        *(FashionMNIST(b, root=str(tmp_path)).spec for b in binarizations(FashionMNIST)),
        *(BinaryUCI(name, root=str(tmp_path)).spec for name in UCI_SIZES),
        *(RedWine(fold, root=str(tmp_path)).spec for fold in range(10)),
        *(Toy(name).spec for name in [*DENSITIES, *CODES]),
        Toy("parity", num_dims=3).spec,
        *(Audio("x", encoding=one).spec for one in ENCODINGS),
        *(FSDD(one, root=str(tmp_path)).spec for one in ENCODINGS),
        Sine().spec,
        Digits().spec,
        Digits(2).spec,
        Digits(split_seed=1).spec,
    ]
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names)
    names = names[names.index("mnist-dynamic") :]
    assert names[:4] == ["mnist-dynamic", "mnist-fixed", "mnist-threshold", "mnist"]
    assert {"toy-rings", "toy-copy_chain-8", "toy-parity-3", "digits-binary"} <= set(names)
    assert {"binary_uci-dna", "red_wine-fold0", "red_wine-fold9"} <= set(names)
    assert not list(tmp_path.iterdir())


def test_split_rows():
    a, b = split_rows(10, (6, 3), seed=0)
    assert (len(a), len(b)) == (6, 3)
    assert len({*a, *b}) == 9
    assert not np.array_equal(a, split_rows(10, (6, 3), seed=1)[0])
    # For ever: these numbers are the split of everyone's results.
    assert split_rows(8, (5, 3), seed=0)[1].tolist() == [0, 5, 4]


def test_digits():
    splits = Digits().load()
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (1297, 250, 250)
    grey = torch.cat([splits.train, splits.valid, splits.test])
    assert int(grey.long().sum()) == 561718  # of all 1,797 digits: none is lost or doubled
    binary = Digits(levels=2).load()
    assert torch.equal(binary.test, (splits.test > 7).to(torch.uint8))
    assert not torch.equal(Digits(split_seed=1).load().test, splits.test)
    with pytest.raises(ValueError, match="^levels is 16; choose 17 or 2"):
        Digits(levels=16)


def test_splits_check_their_values():
    spec = DataSpec("bits", "vector", (3,), 2, "probability")
    good, bad = torch.zeros(2, 3, dtype=torch.uint8), torch.full((2, 3), 2, dtype=torch.uint8)
    for rows in ((bad, good, good), (good, bad, good), (good, good, bad)):
        with pytest.raises(ValueError, match=r"has levels 0\.\.1"):
            Splits(spec, *rows)
    # Bad values behind a thousand good ones.
    with pytest.raises(ValueError, match=r"has levels 0\.\.1"):
        Splits(spec, torch.cat([good.repeat(1000, 1), bad]), good, good)
    with pytest.raises(ValueError, match=r"has levels 0\.\.1"):
        Splits(spec, good, good, good, transform=lambda x, generator: x + 2)
    with pytest.raises(ValueError, match="split valid of data 'bits' is empty"):
        Splits(spec, good, good[:0], good)


def test_binarize():
    grey = torch.arange(256, dtype=torch.uint8).repeat(20_000, 1)
    draws = {
        "fresh": binarize(grey, torch.Generator().manual_seed(0)),
        "frozen": binarize_frozen(grey, 0),
    }
    for bits in draws.values():
        assert int(bits.max()) == 1
        assert not bits[:, 0].any()
        assert bits[:, 255].all()
        p = torch.arange(1, 255, dtype=torch.double) / 255
        z = (bits[:, 1:255].double().mean(0) - p) / (p * (1 - p) / len(grey)).sqrt()
        assert float(z.abs().max()) < 4.5
        assert abs(float(z.mean())) < 4 / math.sqrt(254)


def test_dynamic_binarization_is_fresh_in_train_alone(files):
    splits = MNIST("dynamic", root=str(files)).load()
    generator = torch.Generator().manual_seed(0)
    first, second = (splits.transform(splits.train, generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert int(splits.train.max()) > 1  # raw grey
    assert not torch.equal(splits.valid, splits.test)


def test_mnist_files_are_read_as_they_are(files):
    raw = (files / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    grey = MNIST("none", root=str(files)).load()
    assert bytes(grey.test.numpy().tobytes()) == raw[16:]
    # Every training image stands in train or valid, once.
    kept = sorted(x.numpy().tobytes() for x in torch.cat([grey.train, grey.valid]))
    raw = (files / "MNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]
    assert kept == sorted(raw[i : i + 784] for i in range(0, len(raw), 784))
    assert (len(grey.train), len(grey.valid)) == (40, 10)
    threshold = MNIST("threshold", root=str(files)).load()
    assert torch.equal(threshold.valid, (grey.valid > 127).to(torch.uint8))
    fixed = MNIST("fixed", root=str(files)).load()
    lines = (files / "binarized_mnist/binarized_mnist_valid.amat").read_text().split()
    assert fixed.valid.flatten().tolist() == list(map(int, lines))


def test_kin_of_mnist_are_read_as_they_are(files):
    raw = gzip.decompress((files / "KMNIST/raw/t10k-images-idx3-ubyte.gz").read_bytes())
    assert KMNIST("none", root=str(files)).load().test.numpy().tobytes() == raw[16:]
    raw = (files / "EMNIST/raw/emnist-letters-test-images-idx3-ubyte").read_bytes()
    splits = EMNIST("letters", "none", root=str(files)).load()
    columns = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)
    assert np.array_equal(splits.test[:, 0].numpy(), columns.transpose(0, 2, 1))
    (label,) = splits.spec.contexts
    assert label.levels == 26
    read = splits.examples("test", label)[:].context
    assert read.tolist() == list(range(10))  # a is 0
    path = files / "KMNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(b"unpacked beside it, and never looked at")
    KMNIST("none", root=str(files)).load()


def test_natural_images_are_read_as_they_are(files):
    cifar = CIFAR10(root=str(files)).load()
    folder = files / "cifar-10-batches-py"
    batch = pickle.loads((folder / "test_batch").read_bytes())
    assert np.array_equal(cifar.test.flatten(1).numpy(), batch["data"])
    assert cifar.test[0, 1, 0, 2] == batch["data"][0, 1024 + 2]  # green, third of the top row
    svhn = SVHN(root=str(files)).load()
    arrays = scipy.io.loadmat(files / "SVHN/test_32x32.mat")
    assert np.array_equal(svhn.test.numpy()[3, 1], arrays["X"][:, :, 1, 3])
    (label,) = svhn.spec.contexts
    read = svhn.examples("test", label)[:].context
    assert read.tolist() == [*range(1, 10), 0, 1, 2]
    assert (len(cifar.train), len(cifar.valid), len(svhn.train)) == (29, 6, 34)
    # A label stands beside its own image, also in the parts of the training split.
    known = {}
    for i in range(1, 6):
        batch = pickle.loads((folder / f"data_batch_{i}").read_bytes())
        known |= dict(zip((x.tobytes() for x in batch["data"]), batch["labels"], strict=True))
    (label,) = cifar.spec.contexts
    for part in ("train", "valid"):
        x, read = cifar.examples(part, label)[:]
        assert read.tolist() == [known[one.numpy().tobytes()] for one in x]
    for path in (files / "SVHN").iterdir():
        path.rename(files / path.name)  # where torchvision's own examples put them
    assert torch.equal(SVHN(root=str(files)).load().test, svhn.test)


def test_ink_is_bright(files):
    with zipfile.ZipFile(files / omniglot.FOLDER / "images_evaluation.zip") as file:
        drawings = [np.asarray(Image.open(io.BytesIO(file.read(n)))) for n in file.namelist()]
    splits = Omniglot((105, 105), root=str(files)).load()
    found = sorted(x.numpy().tobytes() for x in splits.test[:][:, 0])
    assert found == sorted((~one).astype(np.uint8).tobytes() for one in drawings)
    assert (len(splits.train), len(splits.valid)) == (15, 5)
    means = Omniglot((21, 21), 256, root=str(files)).load().test[:][:, 0]
    ink = np.stack([~one for one in drawings]).reshape(-1, 21, 5, 21, 5).mean((2, 4)) * 255
    order = np.argsort(ink[:, 0, 0])
    found = means[means[:, 0, 0].argsort()].double().numpy()
    assert np.abs(np.sort(found[:, 3, 4]) - np.sort(ink[order][:, 3, 4])).max() <= 1


def test_packed_files(files):
    plain = MNIST("fixed", root=str(files)).load(), MNIST("none", root=str(files)).load()
    for path in [*(files / "binarized_mnist").iterdir(), *(files / "MNIST/raw").iterdir()]:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    packed = MNIST("fixed", root=str(files)).load(), MNIST("none", root=str(files)).load()
    for a, b in zip(plain, packed, strict=True):
        assert torch.equal(a.train, b.train)
        assert torch.equal(a.test, b.test)


def test_where_data_is_found(files, monkeypatch):
    monkeypatch.setenv("ARMODELS_DATA", str(files))
    assert len(MNIST("none").load().test) == NUM_TEST
    monkeypatch.delenv("ARMODELS_DATA")
    monkeypatch.setenv("HOME", str(files))
    assert base.data_root(None) == files / ".cache/armodels"
    assert base.data_root("~/x") == files / "x"


def _message(error) -> str:
    """The error's text, after checking that it is one line."""
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_files_without_download(files):
    (files / "MNIST/raw/t10k-images-idx3-ubyte").unlink()
    with pytest.raises(FileNotFoundError) as error:
        MNIST("none", root=str(files), download=False).load()
    md5 = MNIST.checksums["t10k-images-idx3-ubyte"]
    text = _message(error)
    assert f"t10k-images-idx3-ubyte (md5 {md5})" in text
    assert "train-images" not in text  # it is there
    assert str(files / "MNIST/raw") in text
    assert "download=false" in text


@pytest.mark.parametrize("cls", [KMNIST, EMNIST, Omniglot, CIFAR10, SVHN])
def test_other_images_that_are_missing(cls, tmp_path):
    for download, why in ((False, "download=false"), (True, "download failed")):
        source = cls(root=str(tmp_path), download=download)
        with pytest.raises(FileNotFoundError) as error:
            source.load()
        text = _message(error)
        assert why in text
        assert str(tmp_path) in text
        files = omniglot.CHECKSUMS if cls is Omniglot else source.checksums
        assert all(name in text and (md5 is None or md5 in text) for name, md5 in files.items())


@pytest.mark.parametrize("cls", [MNIST, FashionMNIST])
def test_failed_download(cls, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        cls(root=str(tmp_path)).load()
    text = _message(error)
    assert all(f"{name} (md5 {md5})" in text for name, md5 in cls.checksums.items())
    assert str(tmp_path / cls.dataset / "raw") in text
    assert "download failed" in text


def test_download_fetches_missing_files_only(files, monkeypatch):
    calls = []
    monkeypatch.setattr(MNIST, "fetch", lambda self: calls.append(self.root))
    MNIST(root=str(files)).load()
    assert not calls
    contents = (files / "MNIST/raw/t10k-images-idx3-ubyte").read_bytes()
    (files / "MNIST/raw/t10k-images-idx3-ubyte").unlink()

    def fetch(self):
        (self.root / "MNIST/raw/t10k-images-idx3-ubyte").write_bytes(contents)

    monkeypatch.setattr(MNIST, "fetch", fetch)
    assert len(MNIST(root=str(files)).load().test) == NUM_TEST


def test_fixed_binarization_is_not_for_download(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        MNIST("fixed", root=str(tmp_path)).load()
    text = _message(error)
    assert all(f"{n} (md5 {m})" in text for n, m in mnist.FIXED_CHECKSUMS.items())
    assert str(tmp_path / "binarized_mnist") in text
    assert not list(tmp_path.iterdir())


def test_tables_are_not_for_download(tmp_path):
    for source, folder, (file, md5) in (
        (BinaryUCI("dna", root=str(tmp_path)), "binary_uci",
         ("dna.npz", tables.UCI_CHECKSUMS["dna.npz"])),
        (RedWine(root=str(tmp_path)), "tabular", *tables.WINE_CHECKSUMS.items()),
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError) as error:
            source.load()
        text = _message(error)
        assert text.startswith(f"{file} (md5 {md5}) not found")
        assert str(tmp_path / folder) in text
    assert not list(tmp_path.iterdir())


def test_binary_uci_files_are_read_as_they_are(files):
    splits = BinaryUCI("nips", root=str(files)).load()
    with np.load(files / "binary_uci/nips.npz") as arrays:
        for part in ("train", "valid", "test"):
            assert np.array_equal(getattr(splits, part).numpy(), arrays[part])


def test_the_folds_of_red_wine_cover_every_row_once(files):
    contents = (files / "tabular/red_wine.hdf5").read_bytes()
    rows = np.frombuffer(contents, "<f4", 1599 * 11, 2144).reshape(-1, 11).astype(np.float64)
    first = 0
    for fold in range(10):
        splits = RedWine(fold, root=str(files)).load()
        size = 159 if fold < 9 else 168
        num_valid = (1599 - size) // 10
        assert [len(splits.test), len(splits.valid)] == [size, num_valid]
        assert len(splits.train) == 1599 - size - num_valid
        # The test rows play no part in the scale; train and valid together have none left.
        both = torch.cat([splits.train, splits.valid]).double()
        assert float(both.mean(0).abs().max()) < 1e-6
        torch.testing.assert_close(both.std(0, correction=0), torch.ones(11).double())
        rest = np.delete(rows, np.arange(first, first + size), 0)
        expected = (rows[first : first + size] - rest.mean(0)) / rest.std(0)
        np.testing.assert_allclose(splits.test.numpy(), expected, rtol=1e-4, atol=1e-5)
        # Every other row is in train or valid, once.
        back = both.numpy() * rest.std(0) + rest.mean(0)
        order = np.argsort(back[:, 0]), np.argsort(rest[:, 0])
        np.testing.assert_allclose(back[order[0]], rest[order[1]], atol=1e-5)
        first += size
    assert first == len(rows)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "corrupted"])
@pytest.mark.parametrize(
    "name",
    [
        "MNIST/raw/train-images-idx3-ubyte",
        "binarized_mnist/binarized_mnist_valid.amat",
        "binary_uci/mushrooms.npz",
        "tabular/red_wine.hdf5",
        "SVHN/train_32x32.mat",
        "cifar-10-batches-py/data_batch_3",
        "omniglot-py/images_evaluation.zip",
    ],
)
def test_damaged_file(files, name, damage, packed):
    path = files / name
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    if packed:
        contents, path = gzip.compress(path.read_bytes()), files / f"{name}.gz"
        (files / name).unlink()
    else:
        contents = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(contents[:-100])
    else:
        middle = len(contents) // 2
        path.write_bytes(contents[:middle] + b"\x31\x32" + contents[middle + 2 :])
    source = {
        "ubyte": lambda root: MNIST("dynamic", root=root),
        "amat": lambda root: MNIST("fixed", root=root),
        "npz": lambda root: BinaryUCI("mushrooms", root=root),
        "hdf5": lambda root: RedWine(root=root),
        "mat": lambda root: SVHN(root=root),
        "py/data_batch_3": lambda root: CIFAR10(root=root),
        "zip": lambda root: Omniglot(root=root),
    }[re.split("[.-]", name)[-1]](str(files))
    with pytest.raises(ValueError, match="truncated or corrupted") as error:
        source.load()
    text = _message(error)
    assert str(path) in text
    assert md5 in text
    assert "delete it" in text


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("KMNIST/raw/train-images-idx3-ubyte.gz", lambda root: KMNIST(root=root)),
        (
            "EMNIST/raw/emnist-letters-train-images-idx3-ubyte",
            lambda root: EMNIST("letters", root=root),
        ),
    ],
)
def test_damaged_kin_of_mnist(files, name, make):
    path = files / name
    contents = path.read_bytes()
    for damaged in (contents[:-100], contents[:5] + b"\x31\x32" + contents[7:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="truncated or corrupted") as error:
            make(str(files)).load()
        text = _message(error)
        assert str(path) in text
        assert "delete it" in text
    if path.suffix:  # unpacked, an md5 is not known: header and length must do
        path.unlink()
        path.with_suffix("").write_bytes(gzip.decompress(contents)[:-1])
        with pytest.raises(ValueError, match=r"should hold 50 x 28 x 28 bytes"):
            make(str(files)).load()
        path.with_suffix("").write_bytes(gzip.decompress(contents))
        make(str(files)).load()
    else:
        path.unlink()
        Path(f"{path}.gz").write_bytes(gzip.compress(contents))
        make(str(files)).load()
        Path(f"{path}.gz").write_bytes(gzip.compress(contents)[:-100])
        with pytest.raises(ValueError, match="truncated or corrupted"):
            make(str(files)).load()


def test_unknown_binarization():
    with pytest.raises(ValueError, match="^split is 'x'; choose balanced, byclass, bymerge, dig"):
        EMNIST("x")
    with pytest.raises(ValueError, match="^binarization is 'fixd'; choose dynamic, fixed, thresh"):
        MNIST("fixd")
    with pytest.raises(ValueError, match="^binarization is 'fixed'; choose dynamic, threshold or"):
        FashionMNIST("fixed")


def test_binary_tables_of_ones_own(tmp_path):
    """Any file of the layout is read for its width, and named by its contents."""

    def save(path, parts):
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **parts)

    path = tmp_path / "binary_uci/adult.npz"
    source = BinaryUCI("adult", root=str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"^adult.npz not found, .* \(known are connect4, "
    ):
        source.load()
    names = set()
    for bits in (np.eye(7), np.eye(7, dtype=bool), np.ones((7, 7), np.int64)):
        parts = {"train": bits[:5], "valid": bits[5:6], "test": bits}
        save(path, parts)
        splits = BinaryUCI("adult", root=str(tmp_path)).load()
        assert (splits.spec.shape, splits.spec.levels) == ((7,), 2)
        for part, rows in parts.items():
            assert (getattr(splits, part).numpy() == rows).all()
            assert getattr(splits, part).dtype == torch.uint8
        names.add(splits.spec.name)
    assert len(names) == 3
    assert all(re.fullmatch("binary_uci-adult-[0-9a-f]{8}", name) for name in names)
    for change, sentence in (
        ({"test": bits * 2.0}, "test of .*adult.npz must be 0 and 1, but holds 2.0 in row 1, col"),
        ({"test": bits[:, 1:]}, "the arrays of .*adult.npz have different numbers of columns"),
        ({"test": bits[0]}, r"adult.npz must hold train, valid and test, each \(N, D\)"),
    ):
        save(path, parts | change)
        with pytest.raises(ValueError, match=sentence):
            BinaryUCI("adult", root=str(tmp_path)).load()
    path.write_bytes(b"PK no archive")
    with pytest.raises(
        ValueError, match="table .*adult.npz cannot be read as arrays: File is not"
    ):
        BinaryUCI("adult", root=str(tmp_path)).load()
    with pytest.raises(ValueError, match=r"data.name is '../adult'; it names a file binary_uci/N"):
        BinaryUCI("../adult")


def test_unknown_tables():
    with pytest.raises(ValueError, match="^fold is 10; it must be from 0 to 9"):
        RedWine(10)


@needs_tables
@pytest.mark.parametrize(
    ("name", "sizes", "nll"),
    [
        ("connect4", [16_000, 4_000, 47_557], 35.338),
        ("dna", [1_400, 600, 1_186], None),
        ("mushrooms", [2_000, 500, 5_624], 34.232),
        ("nips", [400, 100, 1_240], 294.802),
    ],
)
def test_real_binary_uci(name, sizes, nll):
    splits = BinaryUCI(name, root=str(REAL)).load()
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == sizes
    # Laplace-smoothed independent Bernoulli: the number that everyone gets on these files.
    p = (splits.train.double().sum(0) + 1) / (len(splits.train) + 2)
    bits = splits.test.double()
    found = float(-(bits @ p.log() + (1 - bits) @ (1 - p).log()).mean())
    assert nll is None or found == pytest.approx(nll, abs=1e-3)


@needs_tables
def test_real_red_wine():
    """The same rows as in the raw table, and a Gaussian's published likelihood."""
    table = np.loadtxt(REAL / "tabular/winequality-red.csv", delimiter=",", dtype="<f4")
    contents = (REAL / "tabular/red_wine.hdf5").read_bytes()
    rows = tables._wine_rows(contents)
    assert sorted(map(tuple, table[:, :11].tolist())) == sorted(map(tuple, rows.tolist()))
    nll = []
    for fold in range(10):
        splits = RedWine(fold, root=str(REAL)).load()
        x = torch.cat([splits.train, splits.valid]).double()
        normal = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov())
        nll.append(float(-normal.log_prob(splits.test.double()).mean()))
    assert np.mean(nll) == pytest.approx(13.18, abs=0.01)


@pytest.mark.slow
@needs_real
def test_real_mnist():
    start = time.process_time()
    fixed = MNIST("fixed", root=str(REAL), download=False).load()
    assert time.process_time() - start < 3
    parts = (fixed.train, fixed.valid, fixed.test)
    assert [len(part) for part in parts] == [50_000, 10_000, 10_000]
    means = [round(float(part.double().mean()), 4) for part in parts]
    assert means == [0.1306, 0.1311, 0.1325]
    # Laplace-smoothed independent Bernoulli: the number that everyone gets on these files.
    p = (fixed.train.flatten(1).double().sum(0) + 1) / (len(fixed.train) + 2)
    bits = fixed.test.flatten(1).double()
    nll = -(bits @ p.log() + (1 - bits) @ (1 - p).log()).mean()
    assert float(nll) == pytest.approx(205.79, abs=0.01)
    dynamic = MNIST("dynamic", root=str(REAL), download=False).load()
    parts = (dynamic.train, dynamic.valid, dynamic.test)
    assert [len(part) for part in parts] == [50_000, 10_000, 10_000]
    assert float(dynamic.split("train").double().mean()) == pytest.approx(0.1307, abs=2e-3)
    assert float(dynamic.test.double().mean()) == pytest.approx(0.1325, abs=1e-3)
