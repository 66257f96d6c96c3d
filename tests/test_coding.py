"""What is compressed comes back bit for bit, is as small as it says, and damage is named."""

import contextlib
import dataclasses
import math
import os
import random
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import CASES
from command import armodels, done
from PIL import Image
from test_export import DIGITS, train

from armodels import archive, coding, compression, originals
from armodels.checkpoints import restore
from armodels.data.images import quantize
from armodels.density.adaptive import Adaptive
from armodels.density.stream import reads, with_length
from armodels.examples import load_split
from armodels.spec import DataSpec

pytest.importorskip("constriction")

STEPPED = [
    name for name, case in CASES.items()
    if case.steps and case.spec.levels is not None and case.build(0).context is None
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """MADE's run over digits of two levels, and what it compressed in three chunks."""
    place = tmp_path_factory.mktemp("coding")
    done(place, "train", *DIGITS, "model.hidden_sizes=[4]", "out=made")
    done(place, "compress", "made", "num_examples=90", "batch_size=30", "out=digits.arm")
    return place


def header_of(model, events, batch):
    kind = archive.PIECES if reads(model) else archive.SPLIT
    sizes = tuple(map(len, events)) if kind == archive.PIECES else ()
    machine = compression.machine_of(model)
    return archive.Header(kind, bytes(8), machine, batch, len(events), ("test",), sizes)


@pytest.mark.parametrize("name", STEPPED)
def test_every_model_gives_back_what_it_coded(name):
    """In chunks, whatever the order, the head, and the number of values a step."""
    model = CASES[name].build(0)
    events = list(model.sample(7, generator=torch.Generator().manual_seed(0)))
    found = compression.compress(model, events, header_of(model, events, 3), check=False)
    header, chunks = archive.unpack(found.data)
    assert header == found.header
    back, lost = compression.decompress(model, header, chunks)
    assert not lost
    assert all(torch.equal(back[i], one) for i, one in enumerate(events))
    with torch.no_grad():
        exact = -float(model.log_prob(torch.stack(events)).double().sum())
    assert found.nats == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_the_size_is_that_of_the_likelihood():
    model = CASES["nade"].build(0)
    events = list(model.sample(20_000, generator=torch.Generator().manual_seed(0)))
    found = compression.compress(model, events, header_of(model, events, 20_000), check=False)
    with torch.no_grad():
        exact = -float(model.log_prob(torch.stack(events)).double().sum()) / math.log(2) / 8
    assert exact - 8 < len(found.data) <= 1.001 * exact + 64


def test_no_level_is_impossible():
    """A probability of zero becomes a frequency of one, so that any value can be coded."""
    sure = torch.tensor([[0.0, -math.inf, -200.0]])
    assert coding.frequencies(sure).tolist() == [[2**24 - 3 + 1, 1, 1]]


def test_what_sums_to_no_probability_is_refused():
    for wrong in ([[math.nan, 0.0]], [[0.0, 0.0]]):
        with pytest.raises(ValueError, match="no probabilities that sum to 1"):
            coding.frequencies(torch.tensor(wrong))


def test_a_text_of_several_lengths(tmp_path):
    model = CASES["rnn"].build(0)
    levels = model.spec.levels
    events = [torch.arange(size).remainder(levels).to(model.spec.dtype) for size in (3, 0, 9, 5)]
    header = header_of(model, events, 2)
    found = compression.compress(model, events, header)
    back, _ = compression.decompress(model, *archive.unpack(found.data))
    assert all(torch.equal(back[i], one) for i, one in enumerate(events))


@pytest.mark.parametrize("name", ["rnn", "ngram", "blend", "blend-constants"])
def test_a_model_that_learns_gives_back_what_it_coded(name):
    """By the numbers of the evaluation that learns: more than one step of the gradient."""
    model = CASES[name].build(0)
    text = torch.randint(model.spec.levels, (80,), generator=torch.Generator().manual_seed(1))
    events = [text.to(model.spec.dtype)]
    header = dataclasses.replace(header_of(model, events, 1), adapt=0.01)
    found = compression.compress(model, events, header)
    exact = -float(torch.cat(list(Adaptive(model, 0.01).log_probs(events[0]))).double().sum())
    assert found.nats == pytest.approx(exact, rel=1e-4)
    back, _ = compression.decompress(model, *archive.unpack(found.data))
    assert torch.equal(back[0], events[0])


def test_a_model_that_says_other_numbers_fails_when_it_encodes():
    model = CASES["made"].build(0)
    events = list(model.sample(50, generator=torch.Generator().manual_seed(0)))
    before, calls = model.head.level_log_probs, iter(range(10**6))

    def drifting(params, earlier):  # as of another device, or of sums in another order
        return before(params * (1 + 0.1 * next(calls)), earlier)

    model.head.level_log_probs = drifting
    with pytest.raises(ValueError, match="says other numbers when it is asked a second time"):
        compression.compress(model, events, header_of(model, events, 50))


def test_every_flipped_byte_is_seen():
    model = CASES["made"].build(0)
    events = list(model.sample(40, generator=torch.Generator().manual_seed(0)))
    data = compression.compress(model, events, header_of(model, events, 20), check=False).data
    for at in range(len(data)):
        wrong = bytearray(data)
        wrong[at] ^= 0x10
        with pytest.raises(archive.Damaged):
            compression.decompress(model, *archive.unpack(bytes(wrong)))
    for size in range(len(data)):
        with pytest.raises(archive.Damaged):
            compression.decompress(model, *archive.unpack(data[:size]))
    with pytest.raises(archive.Damaged):
        archive.unpack(data + b"\0")


def test_random_bytes_are_refused():
    """Also where a stranger has made the checksums right."""
    model, source = CASES["made"].build(0), random.Random(0)
    events = list(model.sample(4, generator=torch.Generator().manual_seed(0)))
    good = compression.compress(model, events, header_of(model, events, 4), check=False)
    start = archive.pack(good.header)[:-4]
    for _ in range(500):
        wrong = bytearray(start)
        for _ in range(source.randint(1, 4)):
            wrong[source.randrange(5, len(wrong))] = source.randrange(256)
        sealed = bytes(wrong) + archive.zlib.crc32(wrong).to_bytes(4, "little")
        try:
            header, chunks = archive.unpack(sealed + good.data[len(start) + 4 :])
            compression.decompress(model, header, chunks, keep_going=True)
        except archive.Damaged:
            continue


def test_a_file_cannot_state_more_than_it_holds():
    model = CASES["rnn"].build(0)
    header = dataclasses.replace(
        header_of(model, [torch.zeros(2)], 1),
        sizes=(2**39,), lengths=(4,), sums=(0,), value_sums=(0,),
    )  # fmt: skip
    with pytest.raises(archive.Damaged, match="more values than so few bytes can hold"):
        compression.decompress(model, header, [bytes(4)])


CHORALES = [
    84, 61, 57, 39, 32, 101, 57, 57, 48, 71, 33, 49, 69, 65, 101, 81, 53, 57, 61, 49, 41, 57, 37,
    33, 56, 112, 36, 64, 39, 65, 49, 49, 145, 48, 57, 49, 52, 49, 64, 68, 90, 49, 60, 68, 41, 41,
    33, 48, 49, 117, 49, 160, 57, 45, 41, 49, 32, 64, 65, 76, 49, 49, 45, 49, 93, 57, 87, 57, 80,
    56, 65, 109, 41, 69, 73, 44, 73,
]  # fmt: skip
"""Frames of the 77 pieces of the test split of data.corpus=jsb."""


def sizes_header(sizes, kind=archive.PIECES, names=("test",)) -> archive.Header:
    machine = archive.Machine((1,) * 9, b"here", "float32", "AVX2")
    rest = {"lengths": (9,), "sums": (1,), "value_sums": (2,)}
    number = len(sizes)
    return archive.Header(
        kind, b"modelled", machine, max(number, 1), number, names, tuple(sizes), **rest
    )


def test_sizes_come_back_and_take_little():
    source = random.Random(0)
    lists = [[5] * 1000, [0, 2**40], [2**40] * 2, [0, 0], [7], [255] * 200, [*range(300)]]
    lists += [[source.randrange(2 ** source.randrange(1, 40)) for _ in range(400)]]
    lists += [
        [source.choice([0, 1, 3, 70_000]) * 88 for _ in range(source.randrange(1, 200))]
        for _ in range(100)
    ]
    for sizes in lists:
        header, chunks = archive.unpack(archive.pack(sizes_header(sizes)) + b"012345678")
        assert header == sizes_header(sizes)
        assert chunks == [b"012345678"]
    whole = len(archive.pack(sizes_header([88 * one for one in CHORALES])))
    assert whole - len(archive.pack(sizes_header([88]))) < 66  # as varints they took 154
    many = len(archive.pack(sizes_header([88 * one for one in CHORALES] * 10)))
    assert many - whole < 9 * 55  # their entropy is 44 bytes: what repeats itself is learned


def test_counts_shrink_before_a_bit_has_no_room():
    """Of many equal bits; what then comes is still written, and comes back."""
    writer, bits = archive._Writer(), [0] * 200_000 + [1, 0, 1, 1]
    for bit in bits:
        writer.bit("a", bit)
    reader = archive._Bits(writer.end())
    assert [reader.bit("a", 0) for _ in bits] == bits
    assert sum(writer._counts._seen["a"]) <= archive._MOST_SEEN


def test_bytes_of_sizes_that_are_wrong_are_seen():
    """Each that is flipped; and where a stranger has made the checksum right, none hangs."""
    names = tuple(f"{i}.txt" for i in range(len(CHORALES)))
    data = archive.pack(sizes_header(CHORALES, archive.FILES, names))
    for at in range(len(data)):
        wrong = bytearray(data)
        wrong[at] ^= 0x10
        with pytest.raises(archive.Damaged):
            archive.unpack(bytes(wrong) + bytes(9))
    source, read = random.Random(0), 0
    for _ in range(500):
        wrong = bytearray(data[:-4])
        for _ in range(source.randint(1, 4)):
            wrong[source.randrange(5, len(wrong))] = source.randrange(256)
        sealed = bytes(wrong) + archive.zlib.crc32(wrong).to_bytes(4, "little")
        with contextlib.suppress(archive.Damaged):
            read += len(archive.unpack(sealed + bytes(9))[0].sizes) == len(CHORALES)
    assert read  # some came through


def test_a_short_file_cannot_state_many_sizes():
    data = archive.pack(sizes_header([3, 4] * 100))
    at = data.index(bytes([200, 1, 4]) + b"test")  # how many there are: 200
    more = bytearray(data[:-4])
    more[at : at + 2] = archive._varint(16_000)
    more[at - 2 : at] = archive._varint(16_000)  # in a chunk
    sealed = bytes(more) + archive.zlib.crc32(more).to_bytes(4, "little")
    with pytest.raises(archive.Damaged, match="states more examples than it has room for"):
        archive.unpack(sealed + bytes(9))
    with pytest.raises(archive.Damaged, match="states more examples than it has room for"):
        archive.unpack(sealed + bytes(9000))


def test_a_file_of_another_format_is_refused():
    data = bytearray(archive.pack(sizes_header([3, 4])))
    data[4] = 1
    sentence = "it is of format 1, and this armodels reads format 2; decompress it by the version "
    with pytest.raises(archive.Damaged, match=sentence):
        archive.unpack(bytes(data))


def test_whole_pieces_take_their_likelihood_and_their_sizes():
    model = CASES["rnn"].build(0)
    sizes = [one % 30 + 20 for one in CHORALES]
    longer = with_length(model, 60).sample(77, generator=torch.Generator().manual_seed(0))
    events = [row[:size] for row, size in zip(longer, sizes, strict=True)]
    header = dataclasses.replace(
        header_of(model, events, 77), kind=archive.PIECES, sizes=tuple(sizes)
    )
    found = compression.compress(model, events, header, check=True)
    bound = 1.001 * found.nats / math.log(2) / 8 + 64
    assert len(found.data) <= bound + sum(map(len, archive._packed_sizes(sizes)))


@pytest.mark.parametrize("name", ["../x", "/x", "a/../x", "a\\x", "", "a//x", "c:x", "a\x01"])
def test_no_file_is_written_outside_the_folder(name):
    with pytest.raises(archive.Damaged, match="outside the folder"):
        archive.require_names(["good", name])


def test_names_that_lie_on_each_other_are_refused():
    for names in (["a", "a"], ["a", "a/b"]):
        with pytest.raises(archive.Damaged):
            archive.require_names(names)


def test_a_picture_of_any_levels_comes_back():
    for levels in range(2, 257):
        spec = DataSpec("x", "image", (1, 1, levels), levels, "probability")
        x = torch.arange(levels).view(1, 1, -1).to(spec.dtype)
        picture = Image.open(originals.io.BytesIO(originals.contents(x, spec)))
        assert quantize(np.asarray(picture), levels).tolist() == x[0].tolist()


def test_a_split_comes_back(folder):
    out = done(folder, "decompress", "made", "path=digits.arm", "out=back")
    assert "90 examples, every checksum right" in out
    restored = restore(folder / "made")
    _, examples = load_split(restored, {}, "test")
    x = np.load(folder / "back" / "test.npz")["x"]
    assert x.dtype == np.uint8
    assert np.array_equal(x, examples.x[:90].numpy())


def test_one_bad_byte_loses_one_chunk(folder):
    data = bytearray((folder / "digits.arm").read_bytes())
    header, chunks = archive.unpack(bytes(data))
    data[len(data) - len(chunks[2]) - len(chunks[1]) // 2] ^= 1
    (folder / "bad.arm").write_bytes(data)
    error = armodels(folder, "decompress", "made", "path=bad.arm", "out=all").error
    assert "chunk 1 (examples 30 to 59 of test) is lost: its bytes are not those" in error
    assert "keep_going=true" in error
    assert not (folder / "all").exists()
    result = armodels(folder, "decompress", "made", "path=bad.arm", "out=some", "keep_going=true")
    assert "chunk 1 (examples 30 to 59 of test) is lost" in result.error
    assert "read   bad.arm: 60 of 90 examples, whose checksums are right" in result.out
    found = np.load(folder / "some" / "test.npz")
    assert found["rows"].tolist() == [*range(30), *range(60, 90)]
    done(folder, "decompress", "made", "path=digits.arm", "out=good")
    good = np.load(folder / "good" / "test.npz")["x"]
    assert np.array_equal(found["x"], good[found["rows"]])


def test_another_model_is_refused(folder):
    done(folder, "train", *DIGITS, "model.hidden_sizes=[4]", "seed=1", "out=other")
    error = armodels(folder, "decompress", "other", "path=digits.arm", "out=x").error
    assert "it was written by another model" in error


def test_another_machine_is_refused(folder):
    header, chunks = archive.unpack((folder / "digits.arm").read_bytes())
    versions = (1, 2, 3, *header.machine.versions[3:])
    machine = dataclasses.replace(header.machine, versions=versions, vectors="AVX2")
    other = dataclasses.replace(header, machine=machine)
    (folder / "there.arm").write_bytes(b"".join([archive.pack(other), *chunks]))
    error = armodels(folder, "decompress", "made", "path=there.arm", "out=x").error
    assert "torch 1.2.3 (here " in error
    done(folder, "decompress", "made", "path=there.arm", "out=anyway", "anyway=true")


def test_own_pictures_come_back(folder):
    (folder / "mine" / "deep").mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 2, (2, 8, 8), np.uint8) * 255
    Image.fromarray(rows[0]).save(folder / "mine" / "a.png")
    Image.fromarray(rows[1]).save(folder / "mine" / "deep" / "b.bmp")
    done(folder, "compress", "made", "path=mine", "out=mine.arm")
    done(folder, "decompress", "made", "path=mine.arm", "out=mine-back")
    back = folder / "mine-back"
    assert np.array_equal(np.asarray(Image.open(back / "a.png")), rows[0])
    assert np.array_equal(np.asarray(Image.open(back / "deep" / "b.png")), rows[1])
    Image.new("L", (9, 9)).save(folder / "large.png")
    error = armodels(folder, "compress", "made", "path=large.png", "out=no.arm").error
    assert "has 9x9 pixels, but the model is of 8x8; resize=true" in error
    assert not (folder / "no.arm").exists()


def test_what_is_there_is_not_replaced(folder):
    """Not by another run's file either: what was compressed may be gone."""
    before = (folder / "digits.arm").read_bytes()
    error = armodels(folder, "compress", "made", "num_examples=3", "out=digits.arm").error
    assert error == "out=digits.arm is there already; remove it, or choose another name"
    assert (folder / "digits.arm").read_bytes() == before


def test_a_picture_of_several_frames_is_refused(folder):
    frames = [Image.new("L", (8, 8), 255 * i) for i in range(2)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    error = armodels(folder, "compress", "made", "path=moving.gif", "out=no.arm").error
    assert error == "picture moving.gif has several frames; save the one that is meant"


def test_a_rate_without_learning_is_refused(folder):
    error = armodels(folder, "compress", "made", "eval.adapt_lr=0.1", "out=no.arm").error
    assert error == (
        "eval.adapt_lr=0.1 goes with adapt=true, not with a model as it is; leave it out"
    )


def test_one_order_of_several_is_coded(folder):
    words = ("model.hidden_sizes=[4]", "model.num_orders=3", "model.order=random")
    done(folder, "train", *DIGITS, *words, "out=orders")
    some = ("num_examples=5", "out=orders.arm")
    error = armodels(folder, "compress", "orders", *some).error
    assert error.endswith("compress by one of its orders, eval.num_orders=1")
    out = done(folder, "compress", "orders", *some, "eval.num_orders=1")
    (again,) = [line for line in out.splitlines() if "armodels decompress" in line]
    done(folder, *shlex.split(again)[1:])
    _, examples = load_split(restore(folder / "orders"), {}, "test")
    with np.load(folder / "orders-again/test.npz") as found:
        assert np.array_equal(found["x"], examples.x[:5].numpy())


def test_resized_pictures_come_back_as_the_model_knows_them(folder):
    left = np.zeros((16, 24), np.uint8)
    left[:, :12] = 255
    left[:, 1:12:3] = 0  # a pixel of 8x8 is the mean of 2 rows and 3 columns: two thirds of white
    Image.fromarray(left).save(folder / "wide.png")
    words = ("path=wide.png", "resize=true", "out=wide.arm")
    out = done(folder, "compress", "made", *words)
    assert "1 of 1 pictures were changed to what the model knows (size," in out
    done(folder, "decompress", "made", "path=wide.arm", "out=wide")
    expected = np.zeros((8, 8), np.uint8)
    expected[:, :4] = 255
    assert np.array_equal(np.asarray(Image.open(folder / "wide" / "wide.png")), expected)


@pytest.mark.slow
def test_own_texts_come_back(tmp_path):
    train(tmp_path, "rnn")
    text = tmp_path / "mine.txt"
    text.write_bytes(b"to be or not to be")
    done(tmp_path, "compress", "rnn", "path=mine.txt", "out=text.arm")
    done(tmp_path, "decompress", "rnn", "path=text.arm", "out=back")
    assert (tmp_path / "back" / "mine.txt").read_bytes() == text.read_bytes()
    text.write_bytes(b"\xef\xbb\xbfto be")
    error = armodels(tmp_path, "compress", "rnn", "path=mine.txt", "out=x.arm").error
    assert "would not come back byte for byte" in error
    text.write_bytes(b"to be\r\n")
    error = armodels(tmp_path, "compress", "rnn", "path=mine.txt", "out=x.arm").error
    assert error.endswith("compress by a model of bytes, which knows all (data.unit=byte)")
    text.write_bytes(b"")
    out = done(tmp_path, "compress", "rnn", "path=mine.txt", "out=empty.arm")
    assert "bits/dim" not in out
    assert "%" not in out
    text.write_bytes(b"to be or not to be" * 20)
    told = armodels(tmp_path, "compress", "rnn", "path=mine.txt", "out=fast.arm", "adapt=true",
                    "eval.adapt_lr=1e6")  # fmt: skip
    assert "it may have learned too fast: lower eval.adapt_lr" in told.err


def test_what_cannot_be_coded_is_refused(tmp_path):
    for name, why in (("independent", "not walked step by step"), ("gmm", "not walked")):
        model = CASES[name].build(0)
        with pytest.raises(ValueError, match=why):
            coding.require_codable(model)
    real = next(c for c in CASES.values() if c.steps and c.spec.levels is None).build(0)
    with pytest.raises(ValueError, match="real values|conditioned"):
        coding.require_codable(real)


@pytest.mark.slow
def test_processes_started_apart_on_one_and_two_threads_agree(folder):
    program = [sys.executable, "-m", "armodels"]
    files = []
    for threads in "12":
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        for words in (
            ["compress", "made", "num_examples=90", f"out=t{threads}.arm"],
            ["decompress", "made", "path=digits.arm", f"out=t{threads}"],
        ):
            subprocess.run([*program, *words], cwd=folder, env=environment, check=True)
        files.append((folder / f"t{threads}.arm").read_bytes())
    assert files[0] == files[1]
    one, two = (np.load(folder / f"t{t}" / "test.npz")["x"] for t in "12")
    assert np.array_equal(one, two)
