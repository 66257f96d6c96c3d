"""Sources of images: decoding, splits by content, caches, the emulator."""

import hashlib
import importlib.util
import io
import os
import resource
import shutil
import struct
import subprocess
import sys
import threading
import unittest.mock
import warnings
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from command import QUICK, armodels, done
from PIL import Image

from armodels import show
from armodels.data import collections
from armodels.data.anime import Anime
from armodels.data.atari import Atari
from armodels.data.base import data_root
from armodels.data.cache import cached
from armodels.data.folder import Folder
from armodels.data.images import Format, Shares, near_groups, perceptual_hash, quantize
from armodels.data.rows import on_device

PARTS = ("train", "valid", "test")
needs_ale = pytest.mark.skipif(
    importlib.util.find_spec("ale_py") is None, reason="needs ale-py: pip install '.[atari]'"
)
REAL = Path(os.environ.get("ARMODELS_DATA", "")) / "anime/anime_faces.zip"


def noise(seed: int, size=(6, 7), channels=3) -> Image.Image:
    shape = (*size, 3) if channels == 3 else size
    return Image.fromarray(np.random.RandomState(seed).randint(256, size=shape, dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path):
    """40 pictures in two folders, and what is no picture."""
    for i in range(40):
        path = tmp_path / f"pets/{'cat' if i % 4 else 'ant'}/deep/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(path)
    (tmp_path / "pets/README.txt").write_text("not a picture")
    (tmp_path / "pets/.hidden.png").write_text("not a picture")
    return tmp_path / "pets"


def load(path, **keys):
    return Folder(str(path), size=(6, 7), root=str(Path(path).parent / "root"), **keys).load()


def rows(splits) -> list[set[bytes]]:
    return [{x.numpy().tobytes() for x in getattr(splits, part)[:]} for part in PARTS]


# Values


def test_quantize_makes_equal_bins():
    values = np.arange(256, dtype=np.uint8)
    for levels in (2, 3, 8, 255, 256):
        assert quantize(values, levels).tolist() == [v * levels // 256 for v in range(256)]


def test_the_centre_is_cropped_and_its_areas_are_averaged():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:4] = [200, 100, 50]
    wide[:, :2] = 255  # cut off
    form = Format((2, 2), 3, 256)
    found = form.values(Image.fromarray(wide))
    assert found[:, :, 0].tolist() == [[200, 200], [100, 100], [50, 50]]
    assert not found[:, :, 1].any()
    whole = form.values(Image.fromarray(wide), crop=False)
    assert whole[0].tolist() == [[228, 0], [228, 0]]  # of 255 and 200, a half each
    tall = Image.fromarray(wide.transpose(1, 0, 2))
    assert np.array_equal(form.values(tall), found.transpose(0, 2, 1))
    grey = Format((2, 2), 1, 256).values(Image.fromarray(wide))
    assert grey.tolist() == [[[124, 0], [124, 0]]]  # 0.299 R + 0.587 G + 0.114 B


def test_every_usual_mode_is_understood(tmp_path):
    rgb = noise(0)
    grey = rgb.convert("L")
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x112] = 6  # to be shown turned to the right
    saved = {
        "rgb.png": (rgb, {}, rgb),
        "grey.png": (grey, {}, grey.convert("RGB")),
        "bit.png": (grey.convert("1"), {}, grey.convert("1").convert("RGB")),
        "palette.png": (rgb.quantize(256), {}, rgb.quantize(256).convert("RGB")),
        "clear.png": (clear, {}, Image.new("RGB", rgb.size, "white")),
        "opaque.png": (rgb.convert("RGBA"), {}, rgb),
        "deep.png": (deep, {}, grey.convert("RGB")),
        "deep.tiff": (deep, {}, grey.convert("RGB")),
        "turned.png": (rgb, {"exif": turned}, rgb.transpose(Image.Transpose.ROTATE_270)),
    }
    for name, (image, options, expected) in saved.items():
        image.save(tmp_path / name, **options)
        collection = collections.Tree(tmp_path)
        with collection.open((tmp_path / name).read_bytes()) as opened:
            found = collection.picture(opened)
        assert np.array_equal(np.asarray(found.convert("RGB")), np.asarray(expected)), name


def test_modes_without_a_range_are_refused(tree):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tree / "float.tiff")
    with pytest.raises(ValueError, match=r"float.tiff: its mode is F, which has no agreed range"):
        load(tree)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"size": (0, 3)}, r"size is \(0, 3\); each must be at least 1"),
        ({"channels": 2}, "channels is 2; choose 1 or 3"),
        ({"levels": 257}, "levels is 257; it must be from 2 to 256"),
        ({"valid": 0.5, "test": 0.5}, "data.valid is 0.5 and data.test is 0.5; both must"),
    ],
)
def test_wrong_settings(keys, told):
    with pytest.raises(ValueError, match=told):
        Folder("x", **keys)


# Splits


def test_a_split_is_by_content_so_another_image_moves_none(tree):
    before = rows(load(tree, valid=0.25, test=0.25))
    assert sum(map(len, before)) == 40
    assert min(map(len, before)) > 3
    for i in range(100, 110):
        noise(i).save(tree / f"{i}.png")
    shutil.copy(tree / "101.png", tree / "copy.png")  # where the original is
    (tree / "cat/deep/1.png").rename(tree / "renamed.png")
    splits = load(tree, valid=0.25, test=0.25)
    after = rows(splits)
    assert all(old <= new for old, new in zip(before, after, strict=True))
    assert sum(map(len, after)) == 50
    assert sum(len(getattr(splits, part)) for part in PARTS) == 51


def test_shares_are_what_was_asked_for():
    shares = Shares(0.2, 0.1)
    digests = [hashlib.sha256(bytes([i, j])).digest() for i in range(100) for j in range(100)]
    counts = np.bincount([shares.part(one) for one in digests]) / len(digests)
    assert np.abs(counts - [0.7, 0.2, 0.1]).max() < 0.015


def test_near_groups_are_all_pairs_within_the_distance():
    rng = np.random.RandomState(0)
    hashes = rng.randint(2**62, size=60).astype(np.uint64)
    for i in range(0, 60, 3):  # two each that are a few bits away
        for j in (1, 2):
            for bit in rng.permutation(64)[: rng.randint(9)]:
                hashes[i + j] = hashes[i] ^ np.uint64(1 << int(bit))
                hashes[i] = hashes[i + j] if j == 2 else hashes[i]
    hashes = np.concatenate([hashes, hashes[:5]])
    for distance in (0, 3, 5):
        bits = (hashes[:, None] ^ hashes).view(np.uint8).reshape(65, 65, 8)
        near = np.unpackbits(bits, axis=2).sum(2) <= distance
        for _ in range(7):  # friends of friends
            near = near.astype(int) @ near > 0
        groups = near_groups(hashes, distance)
        assert np.array_equal(groups[:, None] == groups, near)


def test_near_duplicates_share_a_split(tmp_path):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as file:
        for i in range(60):
            face = noise(i).resize((48, 48), Image.Resampling.BICUBIC)
            again = io.BytesIO()
            face.point(lambda v: v * 0.9).save(again, "jpeg", quality=60)
            file.writestr(f"{i}.png", png(face))
            file.writestr(f"again/{i}.jpg", again.getvalue())
    source = Anime(str(tmp_path / "faces.zip"), (24, 24), valid=0.2, test=0.3, root=str(tmp_path))
    splits = source.load()
    sizes = [len(getattr(splits, part)) for part in PARTS]
    assert sum(sizes) == 120
    assert all(size % 2 == 0 for size in sizes)
    for part in PARTS:
        hashes = [
            perceptual_hash(Image.fromarray(x.permute(1, 2, 0).numpy()))
            for x in getattr(splits, part)[:]
        ]
        groups = near_groups(np.array(hashes, np.uint64), 12)
        assert np.bincount(groups).max() == 2


# Files


def test_folder_zip_and_npz_hold_the_same_pictures(tree, tmp_path):
    names = sorted(path for path in tree.rglob("*.png") if path.stem.isdigit())
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as file:
        file.writestr("__MACOSX/pets/._1.png", b"resource fork")
        for path in names:
            file.write(path, f"pets/{path.relative_to(tree)}")
    labels = [int("cat" in path.parts) for path in names]
    arrays = np.stack([np.asarray(Image.open(path)) for path in names])
    np.savez(tmp_path / "last.npz", images=arrays, labels=labels)
    np.savez(tmp_path / "first.npz", x=arrays.transpose(0, 3, 1, 2))
    found = {}
    for path in (tree, tmp_path / "packed.zip", tmp_path / "last.npz"):
        splits = load(path, labels=True, valid=0.3, test=0.3)
        (label,) = splits.spec.contexts
        assert (label.name, label.levels) == ("label", 2)
        found[path.name] = pairs = set()
        for part in PARTS:
            x, read = splits.examples(part, label)[:]
            pairs |= {(one.numpy().tobytes(), y) for one, y in zip(x, read.tolist(), strict=True)}
    expected = {(a.transpose(2, 0, 1).tobytes(), y) for a, y in zip(arrays, labels, strict=True)}
    assert all(pairs == expected for pairs in found.values())
    assert rows(load(tree)) == rows(load(tmp_path / "packed.zip"))  # the same files
    assert set().union(*rows(load(tmp_path / "first.npz"))) == {x for x, _ in expected}


def test_spec_needs_no_files_unless_they_name_the_labels(tree, tmp_path):
    spec = Folder("nowhere/My pictures!", size=(3, 5), channels=1, levels=8, valid=0.2).spec
    assert spec.name == "folder-My_pictures_-3x5-grey-L8-split0.2-0.1"
    assert (spec.shape, spec.levels, spec.contexts) == ((1, 3, 5), 8, ())
    assert Anime(root=str(tmp_path)).spec.name == "anime-16x16-rgb-L256"
    assert Folder("x", name="mine").spec.name == "mine-16x16-rgb-L256"
    for path in tree.rglob("*.png"):
        path.write_bytes(b"")  # their names are enough
    assert Folder(str(tree), labels=True).spec.contexts[0].levels == 2
    for path in (tree / "ant").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="sub-folders of .* for classes, but there is deep alone"):
        _ = Folder(str(tree), labels=True).spec
    assert not (tmp_path / "root").exists()


def test_corrupt_images_are_named_and_skipped_only_when_asked(tree, capsys):
    whole = (tree / "cat/deep/1.png").read_bytes()
    (tree / "cat/deep/1.png").write_bytes(whole[:60])
    (tree / "cat/deep/2.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^an image of .*pets cannot be used \(cat/deep/1.png: "):
        load(tree)
    for _ in range(2):  # decoded, and from the cache
        splits = load(tree, skip_corrupt=True)
        assert sum(len(getattr(splits, part)) for part in PARTS) == 38
        told = capsys.readouterr().err
        assert "2 corrupt images" in told
        assert "cat/deep/2.png: it is no image of a known kind" in told
    with pytest.raises(ValueError, match="data.skip_corrupt=true"):
        load(tree)  # a cache made with skip_corrupt does not hide them


def test_linked_folders_are_read_and_loops_are_told(tree, tmp_path, capsys):
    expected = rows(load(tree))
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("ant", "cat"):
        (linked / name).symlink_to(tree / name)
    (linked / "cat/deep/more").symlink_to(linked)
    assert Folder(str(linked), labels=True).spec.contexts[0].levels == 2
    capsys.readouterr()
    assert rows(load(linked)) == expected
    told = "left out are links to a folder that they lie in, not followed: cat/deep/more\n"
    assert f"in {linked}, {told}" in capsys.readouterr().out
    (linked / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(
        ValueError, match=r"\(gone.png: it is a broken link: it leads to .*nowhere.png, which"
    ):
        load(linked)


def test_twins_in_a_zip_are_two_pictures(tmp_path):
    with zipfile.ZipFile(tmp_path / "twins.zip", "w") as file:
        for i in range(40):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                file.writestr(f"{i // 2}.png", png(noise(i)))
    assert len(set().union(*rows(load(tmp_path / "twins.zip")))) == 40


def test_a_zip_of_windows_has_folders(tree, tmp_path):
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ant\\", b"")
        for one in sorted(tree.rglob("[0-9]*.png")):
            file.write(one, str(one.relative_to(tree)).replace("/", "\\"))
    assert rows(load(path, labels=True)) == rows(load(tree, labels=True))
    assert Folder(str(path), labels=True)._classes == ["ant", "cat"]


def test_every_ending_that_pillow_reads_is_a_picture(tmp_path, capsys):
    names = ["a.jfif", "a.avif", "a.jp2", "a.JPE", "a.tga", "a.qoi", "a.ico", "a.dds", "a.pcx"]
    for name in names:
        noise(0, (16, 16)).save(tmp_path / name)
    collection = collections.Tree(tmp_path)
    assert collection.names == sorted(names)
    for i in range(len(names)):
        with collection.open(collection.contents(i)) as opened:
            assert collection.picture(opened).size == (16, 16), names[i]
    # What another program would draw is none, by its ending or by its contents.
    for name in ("page.eps", "page.pdf", "phone.heic", "notes"):
        (tmp_path / name).write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (told,) = collections.Tree(tmp_path).left_out
    assert told == (
        "files that are no pictures of a known kind: 1 (no ending), 1 .eps, 1 .heic, 1 .pdf"
    )
    with pytest.raises(Image.UnidentifiedImageError):
        collection.open((tmp_path / "page.eps").read_bytes())


def test_of_moving_pictures_the_first_frame_is_read(tree, capsys):
    frames = [noise(100 + i) for i in range(3)]
    for name in ("a.gif", "b.webp", "c.png", "d.tiff"):
        options = {"lossless": True} if "webp" in name else {}
        frames[0].save(tree / name, save_all=True, append_images=frames[1:], **options)
    noise(7, (32, 32)).save(tree / "e.mpo", save_all=True, append_images=[noise(8, (4, 4))])
    for _ in range(2):
        first = set().union(*rows(load(tree)))
        told = capsys.readouterr().out
        assert "4 images have several frames, the first is read: a.gif, b.webp, c.png, d" in told
    assert np.asarray(frames[0]).transpose(2, 0, 1).tobytes() in first
    assert np.asarray(frames[1]).transpose(2, 0, 1).tobytes() not in first


def test_names_of_odd_bytes_are_printed_escaped(tree, capsys):
    Path(os.fsdecode(os.fsencode(tree) + b"/b\xff\x1b[31m.jpg")).write_bytes(b"no")
    load(tree, skip_corrupt=True)
    told = capsys.readouterr().err
    assert r"1 corrupt images of" in told
    assert r"b\xff\x1b[31m.jpg: it is no image of a known kind" in told


def test_labels_of_an_npz_are_integers_or_words(tmp_path):
    x = np.stack([np.asarray(noise(i)) for i in range(40)])
    path = tmp_path / "x.npz"
    for labels, names in (
        (np.array(["dog", "cat"] * 20), ["cat", "dog"]),
        (np.array([b"dog", b"cat"] * 20), ["cat", "dog"]),
        (np.array([10, -9] * 20), ["-9", "10"]),
        (np.arange(40), [str(i) for i in range(40)]),
    ):
        np.savez(path, images=x, labels=labels)
        source = Folder(str(path), size=(6, 7), labels=True)
        assert source._classes == names
        splits = source.load()
        for part in PARTS:
            values, read = splits.examples(part, splits.spec.contexts[0])[:]
            words = {one.transpose(2, 0, 1).tobytes(): y for one, y in zip(x, labels, strict=True)}
            for one, number in zip(values, read.tolist(), strict=True):
                word = words[one.numpy().tobytes()]
                assert names[number] == (word.decode() if labels.dtype.kind == "S" else str(word))
    np.savez(path, images=x, labels=np.arange(40) / 2)
    with pytest.raises(ValueError, match="x.npz holds labels of float64; give integers or words"):
        load(path)
    np.savez(path, images=x, labels=np.array(["a", 1] * 20, object))
    with pytest.raises(ValueError, match="x.npz cannot be read: Object arrays cannot be loaded"):
        load(path)


def stated(path: Path, name: str, header: bytes, num_bytes: int) -> Path:
    """A zip of one small member that states so many bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, header + bytes(64))
    contents = path.read_bytes()
    true = struct.pack("<L", len(header) + 64)
    path.write_bytes(contents.replace(true, struct.pack("<L", num_bytes)))
    return path


def test_bombs_are_refused_by_what_they_state(tree, tmp_path):
    """A few bytes that say they are gigabytes are not unpacked to find out."""
    chunks = [(b"IHDR", struct.pack(">LLBBBBB", 30000, 30000, 8, 2, 0, 0, 0)), (b"IDAT", bytes(9))]
    for kind, body in chunks:
        body = kind + body
        chunk = struct.pack(">L", len(body) - 4) + body + struct.pack(">L", zlib.crc32(body))
        with open(tree / "large.png", "ab") as file:
            file.write((b"" if kind == b"IDAT" else b"\x89PNG\r\n\x1a\n") + chunk)
    with pytest.raises(ValueError, match=r"\(large.png: Image size \(900000000 pixels\) exceeds"):
        load(tree)
    assert sum(map(len, rows(load(tree, skip_corrupt=True)))) == 40
    path = stated(tmp_path / "bomb.zip", "x.png", b"", 2**31)
    with pytest.raises(ValueError, match=r"\(x.png: it states 2,147,483,648 bytes, more than"):
        load(path)
    file = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 100, 100)}
    np.lib.format.write_array_header_2_0(file, shape)
    path = stated(tmp_path / "bomb.npz", "images.npy", file.getvalue(), len(file.getvalue()) + 64)
    with pytest.raises(ValueError, match=r"bomb.npz cannot be read: its array images states 10,0"):
        load(path)


def test_a_damaged_zip_is_named(tree, tmp_path):
    path = tmp_path / "packed.zip"
    with zipfile.ZipFile(path, "w") as file:
        for one in sorted(tree.rglob("[0-9]*.png")):
            file.write(one, one.name)
    contents = path.read_bytes()
    path.write_bytes(contents[:50] + bytes(20) + contents[70:])
    with pytest.raises(ValueError, match=r"packed.zip cannot be used \(.*[0-9].png: "):
        load(path)
    path.write_bytes(contents[:-30])
    with pytest.raises(ValueError, match="packed.zip is truncated or corrupted"):
        load(path)
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4)))
    with pytest.raises(ValueError, match=r"x.npz holds float64 of shape \(3, 4, 4\); pictures"):
        load(tmp_path / "x.npz")


def test_what_holds_no_images_is_refused(tmp_path, tree):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="empty holds no image; looked for files of .apng .avif .avifs .blp .bmp"
    ):
        load(tmp_path / "empty")
    with pytest.raises(ValueError, match="README.txt is no folder, zip or npz of images"):
        load(tree / "README.txt")
    with pytest.raises(FileNotFoundError, match="data.path is .*nowhere, which does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"the 40 images of .*pets \(40 of them different\) leave none for valid"
    ):
        load(tree, valid=1e-9)
    with pytest.raises(FileNotFoundError) as error:
        Anime(root=str(tmp_path)).load()
    text = str(error.value)
    assert "\n" not in text
    assert "kaggle.com/datasets/" in text
    assert str(tmp_path / "anime/anime_faces.zip") in text


# Caches


def one_row(cache):
    cache.write("x", np.arange(6, dtype=np.uint8).reshape(3, 2), np.array([2, 0]))
    cache.meta = {"y": 1}


def keep(folder: Path, make=one_row):
    return cached(folder / "root", str(folder), "name", make)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_cache_is_made_once_and_mapped(tmp_path):
    made = []

    def make(cache):
        made.append(1)
        one_row(cache)

    for _ in range(2):
        loaded = keep(tmp_path, make)
        assert loaded.arrays["x"][:].tolist() == [[4, 5], [0, 1]]
        assert loaded.meta == {"y": 1}
    assert made == [1]
    loaded.arrays["x"][:].zero_()  # a copy: the file stays
    assert keep(tmp_path, make).arrays["x"][:].sum() == 10
    (name,) = visible(tmp_path)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or name in maps.read_text()


def test_a_damaged_cache_is_named(tmp_path):
    keep(tmp_path)
    path = tmp_path / "name-v1.zip"
    contents = path.read_bytes()
    for damaged in (contents.replace(bytes([4, 5, 0, 1]), bytes([4, 5, 0, 0])), contents[:-9]):
        assert damaged != contents
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^cache .*name-v1.zip is corrupted \(.*delete it"):
            keep(tmp_path)


def test_a_large_cache_is_not_read_whole_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("armodels.data.cache.MAX_VERIFIED", 1)
    keep(tmp_path)
    path = tmp_path / "name-v1.zip"
    contents = path.read_bytes()
    path.write_bytes(contents.replace(bytes([4, 5, 0, 1]), bytes([4, 5, 0, 0])))
    assert keep(tmp_path).arrays["x"][:].tolist() == [[4, 5], [0, 0]]
    path.write_bytes(contents[:-9])
    with pytest.raises(ValueError, match=r"^cache .*name-v1.zip is corrupted \(.*delete it"):
        keep(tmp_path)


def test_a_cache_that_fails_leaves_nothing(tmp_path):
    def fail(cache):
        one_row(cache)
        raise OSError("the emulator is gone")

    with pytest.raises(OSError, match="^the emulator is gone$"):
        keep(tmp_path, fail)
    assert not list(tmp_path.glob("*.zip")) + list(tmp_path.glob(".*.part"))
    for name in ("name", "other"):  # of a process that was killed
        (tmp_path / f".{name}-v1.zip.part").write_bytes(b"half")
    assert keep(tmp_path).meta == {"y": 1}
    assert not list(tmp_path.glob(".*.part"))


def test_of_several_who_need_the_same_cache_one_makes_it(tmp_path, monkeypatch):
    """Threads here: the lock is the file's, so it parts them as it parts processes."""
    made, lines, two = [], [], threading.Barrier(2)

    def say(line):
        lines.append(line)
        if len(lines) == 1:
            two.wait(60)

    def make(cache):
        made.append(1)
        two.wait(60)  # until another thread says that it waits for this one
        one_row(cache)

    monkeypatch.setattr(show, "say", say)

    with ThreadPoolExecutor(3) as pool:
        for loaded in pool.map(lambda _: keep(tmp_path, make), range(3)):
            assert loaded.arrays["x"][:].tolist() == [[4, 5], [0, 1]]
    assert made == [1]
    assert visible(tmp_path) == ["name-v1.zip"]
    assert lines[0].startswith("waiting for another process, which makes ")


def test_where_caches_are_kept(tmp_path, monkeypatch, capsys):
    """Below the user's cache, unless a folder is given; one that lies below the root is found."""
    root, home = tmp_path / "data", tmp_path / "home"
    root.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("ARMODELS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def found(name: str, given=None, root=root):
        cached(root, given, name, one_row)
        (path,) = tmp_path.rglob(f"{name}-v1.zip")
        return path.parent

    assert found("a") == home / ".cache/armodels/cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert found("b") == tmp_path / "xdg/armodels/cache"
    monkeypatch.setenv("ARMODELS_CACHE", str(tmp_path / "own"))
    assert found("c") == tmp_path / "own"
    assert found("c", str(tmp_path / "given")) == tmp_path / "own"  # there already
    assert found("d", str(tmp_path / "given")) == tmp_path / "given"
    assert not list(root.iterdir())
    (root / "cache").mkdir()
    (tmp_path / "own/c-v1.zip").rename(root / "cache/c-v1.zip")
    assert found("c") == root / "cache"
    (tmp_path / "own").chmod(0o555)  # which does not hinder root, but says what is meant
    assert capsys.readouterr().out == ""
    assert found("e") == root / "cache"
    told = capsys.readouterr().out
    assert told == f"{tmp_path / 'own'} cannot be written; what is decoded goes to {root}/cache\n"
    (tmp_path / "given").chmod(0o555)
    with pytest.raises(OSError, match="kept in .*given, which cannot be written; name another"):
        found("f", str(tmp_path / "given"))
    (root / "cache").chmod(0o555)
    with pytest.raises(OSError, match="kept in .*own or .*data/cache, which cannot be written"):
        found("f")
    (root / "cache").chmod(0o755)
    monkeypatch.delenv("ARMODELS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    nobody = unittest.mock.Mock(side_effect=KeyError)  # a user whom no one knows
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert found("g") == root / "cache"
    assert capsys.readouterr().out == ""
    monkeypatch.delenv("ARMODELS_DATA", raising=False)
    with pytest.raises(ValueError, match="there is no home directory; say where"):
        data_root(None)


NOBODY = ("unshare", "--user", "--map-user=12345", "--map-group=12345", "env", "-u", "HOME")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*NOBODY, "true"], capture_output=True, check=False).returncode,
    reason="needs the right to be a user whom the system does not know",
)
@pytest.mark.parametrize("named", [True, False], ids=["writable", "read-only"])
def test_compiled_code_needs_no_home(tmp_path, named):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/kernel.py").write_text("def add(x):\n    return x + 1\n")
    (tmp_path / "package").chmod(0o555)
    tmp_path.chmod(0o777)
    code = (
        "from armodels.kernels import compiled\n"
        "import kernel\n"
        "print(compiled._compile(kernel.add)(1))"
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("ARMODELS_")}
    package = [str(tmp_path / "package"), str(Path(collections.__file__).parents[2])]
    env |= {"PYTHONPATH": os.pathsep.join(package), "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"ARMODELS_DATA": str(tmp_path / ("data" if named else "package"))}
    child = [*NOBODY, sys.executable, "-c", code]
    told = subprocess.run(child, cwd=tmp_path, env=env, capture_output=True, check=True).stdout
    assert told == b"2\n"
    (tmp_path / "package").chmod(0o755)
    assert sorted(os.listdir(tmp_path)) == ["data", "package"][not named :]
    assert not named or list((tmp_path / "data/cache/numba").rglob("kernel.add*"))


def test_a_full_disk_is_told_before_it_is_full(tmp_path):
    told = (
        r"^cache .*name-v1.zip cannot be written \({}\): [0-9,.]+ [GM]B more are needed, "
        r"[0-9,.]+ GB are free there; make room, or name a folder elsewhere with data.cache$"
    )
    with pytest.raises(OSError, match=told.format("no space left")):
        keep(tmp_path, lambda cache: cache.scratch((2**50, 8)))
    # A limit on files stands for a disk that fills up meanwhile: the same kind of error.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))
    try:
        with pytest.raises(OSError, match=told.format("File too large")):
            keep(tmp_path, lambda cache: cache.scratch((3_000_000,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not visible(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="files without names: Linux")
def test_a_scratch_array_has_its_place_on_the_disk(tmp_path):
    """A memory map of a file with holes would kill the process where the disk is full."""

    def make(cache):
        array = cache.scratch((4, 2**20))
        opened = [fd.stat() for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
        (blocks,) = {one.st_blocks for one in opened if one.st_size == array.nbytes}
        assert blocks * 512 >= array.nbytes
        one_row(cache)

    keep(tmp_path, make)


def test_rows_that_do_not_fit_stay_where_they_are(monkeypatch):
    x = torch.zeros(100, dtype=torch.uint8)
    assert on_device(x, torch.device("cpu")) is x
    for free, stays in ((199, True), (200, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        monkeypatch.setattr(torch.Tensor, "to", lambda x, device: device)
        assert (on_device(x, torch.device("cuda")) is x) == stays


def test_a_model_trains_on_own_images(tree):
    keys = ("data=folder", "recipe=default", f"data.path={tree.name}", "data.size=[3,2]",
            "data.labels=true", "data.levels=4", "data.valid=0.3", "data.test=0.3",
            "data.root=root", "model.context=label", "model.hidden_sizes=[6]")  # fmt: skip
    done(tree.parent, "train", *QUICK, *keys, "trainer.max_steps=2", "out=run")
    # From another directory: the run knows where its images and their cache are.
    assert "folder-pets-3x2-rgb-L4" in done(tree, "eval", "run=../run", "device=cpu")
    assert not (tree / "root").exists()
    missing = armodels(tree.parent, "train", *QUICK, "data=folder")
    assert missing.error.startswith("data.path=... is missing")


def test_paths_are_those_of_the_shell_and_data_are_decoded_once(tree, tmp_path, monkeypatch):
    """From two directories, alone and in a sweep."""
    monkeypatch.setenv("ARMODELS_CACHE", str(tmp_path / "cached"))
    here, other = tree.parent, tmp_path / "other"
    other.mkdir()
    before = set(os.listdir(here))
    path = os.path.relpath(tree, other)
    keys = ("data=folder", "recipe=default", "model=independent", "data.size=[3,2]",
            "data.valid=0.3", "data.test=0.3", "trainer.max_steps=1")  # fmt: skip
    done(here, "train", *QUICK, *keys, f"data.path={tree.name}")
    (packed,) = (tmp_path / "cached").rglob("*.zip")
    made = packed.stat().st_mtime_ns
    done(other, "train", "-m", *QUICK, *keys, f"data.path={path}", "seed=1,2")
    assert [*(tmp_path / "cached").rglob("*.zip")] == [packed]
    assert packed.stat().st_mtime_ns == made
    assert set(os.listdir(here)) - before == {"outputs", "cached"}
    assert os.listdir(other) == ["outputs"]
    assert len([*(other / "outputs").rglob("metrics.json")]) == 2


# The emulator

SMALL = {"num_train": 12, "num_valid": 6, "num_test": 6, "episode_frames": 6, "size": (105, 80)}


def atari(folder, **keys):
    return Atari(
        **{"game": "pong", "levels": 256, "cache": str(folder), "num_noops": 30, **SMALL, **keys}
    )


@pytest.mark.slow
@needs_ale
def test_the_same_settings_give_the_same_bytes_on_any_number_of_processes(tmp_path):
    for name, keys in (("one", {}), ("two", {"num_processes": 2}), ("other", {"seed": 1})):
        atari(tmp_path / name, policy="sticky", **keys).load()
    one, two, other = (next((tmp_path / name).glob("*.zip")) for name in ("one", "two", "other"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    assert other.name != one.name
    assert other.read_bytes() != one.read_bytes()


@pytest.mark.slow
@needs_ale
def test_what_changes_the_frames_changes_the_file(tmp_path):
    changes = [{}, {"policy": "sticky"}, {"policy": "sticky", "repeat": 0.9}, {"num_noops": 0},
               {"frame_skip": 3}, {"episode_frames": 3}, {"size": (16, 21)}, {"channels": 3},
               {"levels": 8}, {"quantization": "palette", "levels": 128}, {"game": "breakout"},
               {"num_train": 13}, {"seed": 1}]  # fmt: skip
    for keys in changes:
        atari(tmp_path, **keys).load()
    files = list(tmp_path.glob("*.zip"))
    assert len({path.read_bytes() for path in files}) == len(files) == len(changes)
    assert len({atari(tmp_path, **keys).spec.name for keys in changes}) == len(changes)


@pytest.mark.slow
@needs_ale
def test_no_frame_stands_in_two_splits(tmp_path, capsys):
    splits = atari(tmp_path, num_train=60, num_valid=24, num_test=24).load()
    train, valid, test = rows(splits)
    assert not train & valid
    assert not (train | valid) & test
    assert len(splits.train) == 60
    num = 24 - len(splits.test)
    assert 0 < num < 24
    assert (
        f"{num} of 24 test frames of pong also stand in an earlier split"
        in capsys.readouterr().out
    )
    # A screen of 2 levels on which nothing ever happens.
    with pytest.raises(ValueError, match="each valid frame of atari-pong-1x1-grey-L2-random-"):
        atari(tmp_path, size=(1, 1), levels=2).load()


@pytest.mark.slow
@needs_ale
def test_frames_are_those_of_the_emulator(tmp_path):
    """Native, in colour: only colours of the console; by palette: exactly the same partition."""
    native = {"size": (210, 160), "episode_frames": 12}
    x = atari(tmp_path, channels=3, **native).load().train[:]
    assert x.shape == (12, 3, 210, 160)
    top = x[:, :, 30, 40]  # the bright line above the court
    assert (top == torch.tensor([236, 236, 236])).all()
    y = atari(tmp_path, quantization="palette", levels=16, **native).load().train[:]
    packed = (x.long() * torch.tensor([65536, 256, 1]).view(3, 1, 1)).sum(1)
    pairs = torch.stack([packed.flatten(), y[:, 0].long().flatten()]).unique(dim=1)
    assert pairs.shape[1] == len(pairs[0].unique()) == len(pairs[1].unique()) > 3
    rgb = torch.stack([pairs[0] >> 16, pairs[0] >> 8 & 255, pairs[0] & 255])
    light = (rgb * torch.tensor([[0.299], [0.587], [0.114]])).sum(0)[pairs[1].argsort()]
    assert (light.diff() > -1).all()  # from dark to bright
    small = atari(tmp_path, quantization="palette", levels=16).load().train[:]
    assert set(small.unique().tolist()) <= set(range(len(pairs[1])))
    with pytest.raises(ValueError, match="pong show [0-9]+ colours, more than data.levels=2; use"):
        atari(tmp_path, quantization="palette", levels=2).load()


@needs_ale
def test_unknown_games(tmp_path):
    with pytest.raises(ValueError, match="data.game 'breakuot' is unknown; did you mean breakout"):
        atari(tmp_path, game="breakuot").load()
    with pytest.raises(ValueError, match="data.game 'joust' wants two players"):
        atari(tmp_path, game="joust").load()
    assert not list(tmp_path.iterdir())


def test_atari_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'armodels\[atari\]'"):
        atari(tmp_path).load()


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"policy": "best"}, "^policy is 'best'; choose random or sticky"),
        ({"quantization": "x"}, "^quantization is 'x'; choose uniform or palette"),
        ({"repeat": 1.0}, "^repeat is 1.0; it must be at least 0 and below 1"),
        ({"frame_skip": 0}, "^frame_skip is 0; it must be at least 1"),
        (
            {"quantization": "palette", "levels": 129},
            "use data.channels=1 and data.levels=128 or less",
        ),
    ],
)
def test_wrong_settings_of_atari(keys, told):
    with pytest.raises(ValueError, match=told):
        Atari(**keys)


def test_names_of_atari():
    assert Atari().spec.name == "atari-breakout-42x32-grey-L16-random"
    keys = {
        "quantization": "palette",
        "size": (84, 84),
        "policy": "sticky",
        "repeat": 0.5,
        "seed": 2,
    }
    assert Atari("pong", **keys).spec.name == "atari-pong-84x84-palette-L16-sticky-repeat0.5-seed2"
    assert Atari(num_noops=0, num_train=9).spec.name.endswith("random-noops0-train9")


@pytest.mark.skipif(not REAL.exists(), reason="needs anime_faces.zip in $ARMODELS_DATA")
def test_real_faces(tmp_path):
    collection = collections.collect(REAL)
    assert len(collection.names) == 8560
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as file:
        for i in range(500):
            file.writestr(collection.names[i], collection.contents(i))
    splits = Anime(str(tmp_path / "some.zip"), (8, 8), root=str(tmp_path)).load()
    assert sum(len(getattr(splits, part)) for part in PARTS) == 500
    assert 100 < float(splits.train[:].double().mean()) < 200
