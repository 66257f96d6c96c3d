"""The table of encoders: sizes are those of what each writes, on what the file holds."""

import gzip
import io

import numpy as np
import pytest
import torch
from command import done
from PIL import Image
from test_export import DIGITS, train
from test_reproduce import load

from armodels.checkpoints import restore
from armodels.examples import load_split

pytest.importorskip("constriction")


@pytest.fixture(scope="module")
def codecs():
    return load("codecs")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run over digits of two levels, and 30 of them as a file."""
    folder = tmp_path_factory.mktemp("codecs")
    done(folder, "train", *DIGITS, "model.hidden_sizes=[4]", "out=made")
    done(folder, "compress", "made", "num_examples=30", "out=digits.arm")
    return folder


def cells(text: str) -> dict[str, list[str]]:
    """Rows of the table, by their names."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {name: [cell.replace(",", "") for cell in rest] for name, *rest in lines}


def test_pictures(codecs, digits, capsys, monkeypatch):
    """Of the first so many of the split; an encoder that is not there is left out by name."""
    monkeypatch.setitem(codecs.GENERAL, "absent", codecs.General("no_such_module", None, None))
    for name in [*codecs.PICTURES]:
        if codecs.PICTURES[name].kind == "JXL":  # Pillow would have it in all other tests
            monkeypatch.delitem(codecs.PICTURES, name)
    codecs.main([str(digits / "made"), str(digits / "digits.arm")])
    told = capsys.readouterr()
    found = cells(told.out)
    assert "digits" in told.out
    assert "left out, for it is not installed: no_such_module" in told.err
    assert "absent" not in found
    size = (digits / "digits.arm").stat().st_size
    assert found["armodels, made"][:2] == [str(size), f"{8 * size / 30:.2f}"]
    _, examples = load_split(restore(digits / "made"), {}, "test")
    rows = examples.x[:30].numpy()
    pixels = np.packbits(rows).tobytes()
    assert int(found["gzip -9"][0]) == len(gzip.compress(pixels, 9))
    assert found["gzip -9"][2] == f"{8 * len(gzip.compress(pixels, 9)) / rows.size:.4f}"
    size = 0
    for one in rows:
        file = io.BytesIO()
        Image.fromarray(one[0] * 255).convert("1").save(file, "PNG", optimize=True)
        size += len(file.getvalue())
    assert int(found["PNG"][0]) == size


@pytest.mark.slow
def test_texts_beside_encoders_that_have_read_train(codecs, tmp_path, capsys):
    train(tmp_path, "ngram")
    done(tmp_path, "compress", "ngram", "adapt=true", "out=text.arm")
    codecs.main([str(tmp_path / "ngram"), str(tmp_path / "text.arm")])
    found = cells(capsys.readouterr().out)
    before, text = (
        b"".join(bytes("".join(map(chr, one[:].tolist())), "latin-1") for one in pieces)
        for pieces in _symbols(tmp_path / "ngram")
    )
    alone = len(gzip.compress(text, 9))
    primed = len(gzip.compress(before + text, 9)) - len(gzip.compress(before, 9))
    assert found["gzip -9"][1:3] == [f"{8 * one / len(text):.3f}" for one in (alone, primed)]
    assert "armodels, ngram, adapt=true" in found


def _symbols(run):
    """Code points of train, and of test."""
    restored = restore(run)
    known = torch.tensor(restored.spec.alphabet.symbols)
    for split in ("train", "test"):
        _, examples = load_split(restored, {}, split)
        yield [known[one[:].long()] for one in examples.pieces]


def test_pictures_are_tiled_once_each(codecs):
    images = [Image.new("L", (3, 2), value) for value in range(1, 6)]
    whole = np.asarray(codecs.tiled(images))
    assert whole.shape == (4, 9)
    assert [int((whole == value).sum()) for value in range(6)] == [6, 6, 6, 6, 6, 6]


def test_an_encoder_that_loses_something_is_no_encoder(codecs, monkeypatch):
    wrong = codecs.General("gzip", lambda m, x: m.compress(x[1:]), lambda m, x, _: m.decompress(x))
    monkeypatch.setattr(codecs, "GENERAL", {"wrong": wrong})
    with pytest.raises(AssertionError):
        list(codecs.general([b"text"], b""))
    lossy = codecs.Picture("JPEG", {}, modes=("L", "RGB"))
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    with pytest.raises(AssertionError):
        codecs.as_written(Image.fromarray(noise), lossy)


def test_other_files_are_refused(codecs, digits):
    (digits / "no.arm").write_bytes(b"no such file")
    with pytest.raises(SystemExit, match="no.arm: it is no file that armodels compress wrote"):
        codecs.main([str(digits / "made"), str(digits / "no.arm")])
