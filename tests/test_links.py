"""Folders of a user's own that hold what is no file: links that lead nowhere, pipes, closed doors.

Each is named with what it is, and nothing waits for a pipe.
"""

import os
import re
import signal
import socket

import numpy as np
import pytest
from command import QUICK, TINY, armodels, done
from PIL import Image
from test_music import save, tune

from armodels import disk
from armodels.data.audio import Audio
from armodels.data.folder import Folder
from armodels.data.music import Music
from armodels.data.text import Text, files_of
from armodels.originals import read
from armodels.spec import DataSpec
from armodels.waveform import write_wav


@pytest.fixture(autouse=True)
def nothing_waits():
    """A pipe without a writer would be waited for for ever."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def pictures(folder):
    for i in range(40):
        values = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    return Folder(str(folder), size=[8, 8], channels=1)


def sounds(folder):
    pytest.importorskip("soundfile")
    for i in range(12):
        write_wav(folder / f"{i}.wav", np.random.default_rng(i).uniform(-1, 1, 90), 8000)
    return Audio(str(folder), rate=8000, length=16)


def music(folder):
    for i in range(12):
        save(folder / f"{i}.mid", tune(i))
    return Music(path=str(folder), length=8)


def texts(folder):
    for i in range(3):
        (folder / f"{i}.txt").write_text("to be or not to be " * 20)
    return Text(path=str(folder), length=8)


KINDS = {"png": pictures, "wav": sounds, "mid": music, "txt": texts}


def broken(path):
    path.symlink_to("/nowhere/at all")
    return "is a broken link: it leads to /nowhere/at all, which does not exist"


def loop(path):
    path.symlink_to(path.name)
    return "is a link that leads back to itself"


def pipe(path):
    os.mkfifo(path)
    return "is a pipe, no file"


def link_to_a_pipe(path):
    os.mkfifo(path.parents[1] / "pipe")
    path.symlink_to(path.parents[1] / "pipe")
    return "is a pipe, no file"


def listens(path):
    with socket.socket(socket.AF_UNIX) as one:
        before = os.getcwd()
        os.chdir(path.parent)  # the names of sockets are short
        one.bind(path.name)
        os.chdir(before)
    return "is a socket, no file"


TROUBLES = [broken, loop, pipe, link_to_a_pipe, listens]


@pytest.fixture
def closed(monkeypatch):
    """Takes the right to read a file away, also from those who may read any."""
    shut, may = set(), os.access

    def access(path, mode, **options):
        return str(path) not in shut and may(path, mode, **options)

    monkeypatch.setattr(os, "access", access)
    return shut


def bad(ending: str, trouble, closed, folder):
    """A folder of files, and one that is none: its path and what is wrong with it."""
    folder.mkdir()
    source = KINDS[ending](folder)
    path = folder / f"bad.{ending}"
    return source, path, shut(path, trouble, closed)


def shut(path, trouble, closed) -> str:
    """Make ``path`` what cannot be read, and say what it is."""
    if trouble != "closed":
        return trouble(path)
    path.write_bytes(path.with_stem("0").read_bytes())
    closed.add(str(path))
    return "cannot be read (Permission denied)"


@pytest.mark.parametrize("trouble", [*TROUBLES, "closed"])
@pytest.mark.parametrize("ending", KINDS)
def test_what_is_no_file_in_a_folder_of_data_is_named(ending, trouble, closed, tmp_path):
    source, path, why = bad(ending, trouble, closed, tmp_path / "mine")
    with pytest.raises(ValueError, match="bad") as error:
        source.load()
    told = str(error.value)
    assert f"bad.{ending}{':' * (ending in ('png', 'wav'))} " in told
    assert why in told
    assert "mend or remove it" in told


@pytest.mark.parametrize("trouble", [*TROUBLES, "closed"])
@pytest.mark.parametrize("ending", KINDS)
def test_what_is_no_file_is_named_where_own_files_are_read(ending, trouble, closed, tmp_path):
    """As ``compress path=`` reads them, in a folder and by its own name."""
    folder = tmp_path / "mine"
    folder.mkdir()
    spec, path = KINDS[ending](folder).spec, folder / f"bad.{ending}"
    assert len(read(folder, spec).names) == len([*folder.iterdir()])
    why = shut(path, trouble, closed)
    with pytest.raises(
        ValueError, match=f"^file {re.escape(f'{path} {why}')}; mend or remove it$"
    ):
        read(folder, spec)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        read(path, spec)
    assert f"{path} {why}" in str(error.value)


@pytest.mark.parametrize("trouble", [broken, loop, pipe])
def test_what_is_no_file_is_named_where_it_is_data_path(trouble, tmp_path):
    (tmp_path / "x").mkdir()
    for ending, make in {
        "png": Folder, "zip": Folder, "npz": Folder, "wav": Audio, "mid": Music, "mat": Music,
        "txt": Text, "gz": Text,
    }.items():  # fmt: skip
        path = tmp_path / "x" / f"one.{ending}"
        why = trouble(path)
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            make(path=str(path)).load()
        assert why in str(error.value)


def test_skip_corrupt_leaves_out_what_is_no_file(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    music(folder)
    pipe(folder / "pipe.mid")
    broken(folder / "gone.mid")
    Music(path=str(folder), length=8, skip_corrupt=True).load()
    told = capsys.readouterr().err
    assert "2 files of" in told
    assert "gone.mid: it is a broken link: it leads to /nowhere/at all, which does not" in told
    assert "pipe.mid: it is a pipe, no file" in told


def test_what_is_hidden_or_of_another_kind_is_not_looked_at(tmp_path):
    for ending, make in KINDS.items():
        folder = tmp_path / ending
        folder.mkdir()
        source = make(folder)
        broken(folder / f".hidden.{ending}")
        if ending != "txt":
            pipe(folder / "pipe")
            broken(folder / "gone.else")
        source.load()


def test_texts_of_linked_folders_are_read_and_loops_are_not_followed(tmp_path):
    (tmp_path / "far/deep").mkdir(parents=True)
    (tmp_path / "far/deep/b.txt").write_text("b")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("a")
    (tmp_path / "mine/link").symlink_to(tmp_path / "far")
    (tmp_path / "far/back").symlink_to(tmp_path / "mine")
    found = [one.relative_to(tmp_path).as_posix() for one in files_of(tmp_path / "mine")]
    assert found == ["mine/a.txt", "mine/link/deep/b.txt"]


def test_a_name_is_that_of_where_a_link_leads(tmp_path, monkeypatch):
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to("far")
    monkeypatch.chdir(tmp_path / "far")
    for path in (".", tmp_path / "near"):
        assert Folder(path).name == "folder-far"
        assert Audio(path).name == "audio-far"


@pytest.mark.parametrize("ending", ["png", "txt"])
def test_a_folder_that_cannot_be_read_is_named(ending, tmp_path, monkeypatch):
    source = KINDS[ending](tmp_path)
    (tmp_path / "shut").mkdir()
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"shut cannot be read \(Permission denied\); change its"):
        source.load()


def test_compress_and_score_name_a_broken_link_before_any_work(tmp_path):
    (tmp_path / "mine").mkdir()
    texts(tmp_path / "mine")
    data = ("data=text", "data.path=mine", "data.length=8", "model=ngram", *QUICK)
    done(tmp_path, "train", *data, "out=run")
    why = broken(tmp_path / "mine/gone.txt")
    sentence = f"file mine/gone.txt {why}; mend or remove it"
    assert armodels(tmp_path, "compress", "run", "path=mine").error == sentence
    assert armodels(tmp_path, "score", "run", "file=mine", "device=cpu").error == sentence
    assert not (tmp_path / "mine.arm").exists()
    os.mkfifo(tmp_path / "pipe")
    for words in (
        ("compress", "path=pipe"),
        ("score", "file=pipe"),
        ("complete", "prompt_file=pipe"),
    ):
        assert "pipe is a pipe, no file" in armodels(tmp_path, words[0], "run", words[1]).error


def test_pictures_and_masks_that_are_none_are_named(tmp_path):
    words = ("data.kind=image", "data.shape=[1,4,3]", "data.levels=3", "trainer.max_steps=1")
    done(tmp_path, "train", *TINY, *words, "out=run")
    why = broken(tmp_path / "gone.png")
    for key in ("image", "mask"):
        told = armodels(tmp_path, "complete", "run", f"{key}=gone.png", "device=cpu").error
        assert told == f"{key} gone.png {why}"


def test_a_file_has_no_trouble(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").symlink_to("a")
    assert disk.trouble(tmp_path / "a") is disk.trouble(tmp_path / "b") is None
    assert disk.trouble(tmp_path) == "is a folder, no file"
    assert disk.trouble(tmp_path / "c") == disk.trouble(tmp_path / "a/c") == "does not exist"


def test_a_folder_that_another_program_made_meanwhile_is_named(tmp_path):
    place, told = tmp_path / "new", "new has been made by another program meanwhile; name another"
    writing = disk.atomic_folder(place)
    (writing.__enter__() / "mine").write_text("1")
    place.mkdir()
    (place / "theirs").write_text("2")
    with pytest.raises(FileExistsError, match=told):
        writing.__exit__(None, None, None)
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "theirs"]


def test_hidden_files_of_pictures_and_texts_are_named(tmp_path):
    (tmp_path / "a/.b").mkdir(parents=True)
    for name in ("a/one.png", "a/.two.png", "a/.b/three.png"):
        Image.new("L", (4, 3)).save(tmp_path / name)
    spec = DataSpec("grey", "image", (1, 3, 4), 256, "probability")
    found = read(tmp_path / "a", spec)
    assert found.names == ("one.png",)
    assert f"in {tmp_path / 'a'}, left out are hidden files: .b/three.png, .two.png" in found.notes
