"""Rows in memory and on disk: read in parts, checked, split, with their contexts."""

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command import TINY, armodels

from armodels import heads
from armodels.data import mapped as maps
from armodels.data.base import PARTS, Splits
from armodels.data.mapped import MappedRows
from armodels.data.rows import (
    Batch,
    Examples,
    FrozenRows,
    Rows,
    Windows,
    as_rows,
    on_device,
    take,
)
from armodels.density import autoregressive
from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks.recurrent import Recurrent
from armodels.spec import ContextSpec, DataSpec

SPEC = DataSpec("bits", "vector", (3,), 4, "probability")
SIDES = ContextSpec("sides", (2,), None)


@pytest.fixture
def stored(tmp_path):
    """A function that writes an array and gives it back as a memory map."""

    def store(array, mode="r"):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.npy"
        np.save(path, array)
        return np.load(path, mmap_mode=mode)

    return store


def numbers(num, seed=0):
    return np.random.RandomState(seed).randint(4, size=(num, 3)).astype(np.uint8)


INDICES = [slice(None), slice(2, 9), slice(3, None, 4), slice(50, 60), torch.tensor([7, 0, 7, 39])]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("dtype", ["u1", "<f4", ">f4", "<u2", "<i8", "?"])
def test_a_memory_map_gives_the_rows_of_its_array(index, dtype, stored):
    array = numbers(40).astype(dtype)
    for rows in (as_rows(stored(array)), as_rows(stored(array)[::-1][::-1]), as_rows(array)):
        assert isinstance(rows, Rows)
        assert (len(rows), tuple(rows.shape)) == (40, (40, 3))
        found = take(rows, index)
        picked = index.numpy() if isinstance(index, torch.Tensor) else index
        assert found.tolist() == array[picked].tolist()
        assert found.dtype == rows.dtype
    mapped = stored(array, "r+")
    as_rows(mapped)[:][:] = 0
    assert mapped.tolist() == array.tolist()  # what is read is a copy


def test_what_has_no_rows_is_refused():
    for values in ([[1, 2]], {"x": 1}, "words", 3):
        with pytest.raises(TypeError, match="rows of data are a tensor, an array, or an object"):
            as_rows(values)


def test_a_map_is_checked_at_its_start_and_then_where_it_is_read(stored):
    good, bad = numbers(3000), numbers(3000)
    bad[2500, 1] = 9
    rest = (good[:9], good[:9])
    with pytest.raises(
        ValueError, match=r"^row 2500 of train: data 'bits' has levels 0\.\.3, got"
    ):
        Splits(SPEC, bad, *rest)  # in memory: all of it
    with pytest.raises(ValueError, match=r"^data 'bits' has levels 0\.\.3"):
        Splits(SPEC, stored(bad[::-1][400:]), *rest)  # among the first
    with pytest.raises(ValueError, match=r"examples of shape \(3,\), got \(2,\)"):
        Splits(SPEC, stored(good[:, :2]), *rest)
    with pytest.raises(ValueError, match="split test of data 'bits' is empty"):
        Splits(SPEC, good, good, good[:0])
    splits = Splits(SPEC, stored(bad), stored(good), good)
    assert torch.equal(splits.valid[:], torch.from_numpy(good))
    train = splits.to_train(None, torch.device("cpu"))
    assert torch.equal(
        train[torch.tensor([2499, 0, 2501])].x, torch.from_numpy(bad[[2499, 0, 2501]])
    )
    for index in (torch.tensor([3, 2500, 1]), slice(2400, 2600), slice(None)):
        with pytest.raises(ValueError, match=r"^row 2500 of train: data 'bits' has levels 0\.\.3"):
            train[index]


def test_frozen_values_of_a_map_are_the_same_however_they_are_read(stored):
    rows = numbers(2500).clip(max=2)

    def draw(raw, generator):
        return (raw + torch.randint(2, raw.shape, generator=generator)).byte()

    splits = Splits(SPEC, stored(rows), rows[:9], rows[:9], transform=draw)
    train = splits.split("train")
    assert not isinstance(train, torch.Tensor)
    whole = train[:]
    assert (tuple(train.shape), train.dtype) == ((2500, 3), torch.uint8)
    some = torch.tensor([2400, 17, 1000, 999, 17])
    assert torch.equal(train[some], whole[some])
    assert torch.equal(train[990:1010], whole[990:1010])
    added = whole - torch.from_numpy(rows)
    assert set(added.unique().tolist()) == {0, 1}
    blocks = added[:1000], added[1000:2000], added[2000:]
    for one, other in itertools.combinations(blocks, 2):
        assert not torch.equal(one[:500], other[:500])  # each block has noise of its own
    in_memory = Splits(SPEC, rows, rows[:9], rows[:9], transform=draw).split("train")
    assert isinstance(in_memory, torch.Tensor)


@pytest.mark.parametrize("on_disk", [False, True])
def test_contexts_stand_beside_their_rows(on_disk, stored):
    rows = [numbers(num, seed) for num, seed in ((50, 0), (20, 1), (21, 2))]
    sides = [part[:, :2].astype(np.float32) for part in rows]
    store = stored if on_disk else np.array
    reads = []

    def read():
        reads.append(1)
        return [store(part) for part in sides]

    splits = Splits(SPEC, *map(store, rows), contexts={"sides": read})
    for name in ("train", "valid", "test"):
        examples = splits.examples(name, SIDES)
        for index in (slice(3, 9), torch.tensor([8, 0, 8])):
            x, context = examples[index]
            assert torch.equal(x[:, :2].float(), context)
        assert splits.examples(name)[:4].context is None
    assert reads == [1]
    train = splits.to_train(SIDES, torch.device("cpu"))
    index = torch.tensor([4, 11])
    fresh = train.beside(torch.zeros(2, 3), index)
    assert fresh.x.sum() == 0
    assert torch.equal(fresh.context, torch.from_numpy(sides[0][[4, 11]]))
    short = Splits(SPEC, *rows, contexts={"sides": lambda: [part[:-1] for part in sides]})
    with pytest.raises(ValueError, match="^context 'sides' of 50 events must have shape"):
        short.examples("train", SIDES)
    sides[1][13, 0] = np.nan
    if on_disk:
        broken = Splits(SPEC, *rows, contexts={"sides": read}).examples("valid", SIDES)
        with pytest.raises(ValueError, match="^row 13 of valid: context 'sides' holds NaN"):
            list(broken.batches(5))


@pytest.mark.parametrize("stored_as", [lambda: [numbers(9)] * 2, lambda: None, lambda: 3])
def test_contexts_are_of_three_splits(stored_as):
    splits = Splits(SPEC, *[numbers(9)] * 3, contexts={"sides": stored_as})
    with pytest.raises(
        ValueError, match=r"^contexts\['sides'\] of data 'bits' gives .* give three"
    ):
        splits.examples("test", SIDES)
    with pytest.raises(TypeError, match="^context is of type str; it must be of type ContextSpec"):
        splits.examples("test", "sides")


class Own:
    """Rows of a user's own, as good as ``read`` and ``dtype`` are."""

    shape = (30, 3)

    def __init__(self, read, dtype=torch.uint8):
        self.values, self.read, self.dtype = torch.from_numpy(numbers(30)), read, dtype

    def __len__(self):
        return 30

    def __getitem__(self, rows):
        return self.read(self.values[rows])


OWN = {
    "array": (Own(lambda x: x.numpy()), r"^rows of train \(Own\) are read as ndarray; they must"),
    "short": (
        Own(lambda x: x[1:]),
        r"^30 rows of train \(Own\) are read as .* \(29, 3\); .* be 30",
    ),
    "one": (Own(lambda x: x.sum()), r"^30 rows of train \(Own\) are read as values of shape \(\)"),
    "dtype": (
        Own(lambda x: x, np.dtype("u1")),
        "^rows of type Own have the dtype dtype.'uint8'.; ",
    ),
}


@pytest.mark.parametrize(("rows", "sentence"), OWN.values(), ids=OWN)
def test_rows_of_ones_own_are_tensors_of_as_many(rows, sentence):
    right = Own(lambda x: x)
    assert len(Splits.of(right, right, right, levels=4, name="mine").train[3:5]) == 2
    with pytest.raises((TypeError, ValueError), match=sentence):
        Splits.of(rows, right, right, levels=4, name="mine")


def test_rows_that_end_early_are_found_where_they_are_read():
    later = Own(lambda x: x if len(x) > 20 else x[1:])
    splits = Splits.of(later, later, later, levels=4, name="mine")
    with pytest.raises(ValueError, match=r"^7 rows of test \(Own\) are read as .*; .* must be 7$"):
        list(splits.examples("test").batches(7))


def test_a_context_that_follows_from_the_values_follows_from_the_fresh_ones():
    spec = DataSpec("grey", "image", (1, 2, 2), 256, "probability")
    images = torch.full((5, 1, 2, 2), 100, dtype=torch.uint8)
    small = ContextSpec("lowres_2", (1, 1, 1), 256)
    train = Splits(spec, images, images, images).to_train(small, torch.device("cpu"))
    assert train[:2].context.unique().tolist() == [100]
    assert train.beside(images[:2] + 7, slice(2)).context.unique().tolist() == [107]


def test_events_without_a_context_each_are_refused():
    with pytest.raises(ValueError, match="^3 events have 2 contexts"):
        Examples(torch.zeros(3, 2), torch.zeros(2))


def test_a_batch_changes_as_one():
    both = Batch(torch.arange(7), torch.arange(7) + 10)
    assert both.repeat_interleave(2).x[:4].tolist() == [0, 0, 1, 1]
    assert both.repeat_interleave(2).context[:4].tolist() == [10, 10, 11, 11]
    alone = Batch(torch.arange(4))
    for changed in (alone.repeat_interleave(2), alone.to("cpu")):
        assert changed.context is None
    assert both.to("meta").context.device.type == both.to("meta").x.device.type == "meta"


def test_a_large_map_is_not_copied_to_the_device(monkeypatch, stored):
    rows, meta = as_rows(stored(numbers(10))), torch.device("meta")
    assert on_device(rows, torch.device("cpu")) is rows
    assert on_device(rows, meta).device == meta
    monkeypatch.setattr("armodels.data.rows.MAX_COPIED", 29)
    assert on_device(rows, meta) is rows
    assert on_device(rows[:], meta).device == meta


def test_an_illegal_row_on_disk_ends_a_run_in_one_sentence(tmp_path):
    keys = ("data.num_train=1100", "data.damage=disk", "out=run")
    error = armodels(tmp_path, "train", *TINY, *keys).error
    assert error.startswith("row 1099 of train: data 'tiny-image' has levels 0..2, got values in")
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["status"], status["reason"]) == ("failed", error)


# Values of a user's own


def test_splits_of_one_array_are_drawn_once_by_a_seed(stored):
    rows = numbers(200)
    splits = Splits.of(rows)
    spec = splits.spec
    assert (spec.kind, spec.shape, spec.levels, spec.measure) == ("vector", (3,), 4, "probability")
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [160, 20, 20]
    together = torch.cat([splits.train, splits.valid, splits.test])
    assert sorted(together.tolist()) == sorted(rows.tolist())
    assert together.tolist() != rows.tolist()
    assert torch.equal(Splits.of(torch.from_numpy(rows)).test, splits.test)
    assert Splits.of(rows).spec == spec
    other = Splits.of(rows, seed=1)
    assert not torch.equal(other.test, splits.test)
    assert other.spec.name != spec.name
    assert other.spec.checksum != spec.checksum
    mapped = Splits.of(stored(rows), levels=4, name="mine")
    assert mapped.spec == DataSpec("mine", "vector", (3,), 4, "probability")
    for part in ("train", "valid", "test"):
        assert torch.equal(mapped.split(part)[:], splits.split(part))
    with_test = Splits.of(rows, test=rows[:7], shares=(0.25, 0.9))
    assert [len(p) for p in (with_test.train, with_test.valid, with_test.test)] == [150, 50, 7]
    all_three = Splits.of(rows[:100], rows[100:150], rows[150:], name="three")
    assert torch.equal(all_three.train, torch.from_numpy(rows[:100]))
    assert all_three.spec.name == "three"
    with pytest.raises(ValueError, match="^2 rows are too few to cut valid and test off them"):
        Splits.of(rows[:2])


def test_an_illegal_row_of_an_array_to_be_split_is_named_by_its_own_number(stored):
    rows = numbers(5000)
    rows[4321, 2] = 77
    splits = Splits.of(stored(rows), levels=4, name="mine")
    batches = (batch for part in PARTS for batch in splits.examples(part).batches(100))
    with pytest.raises(ValueError, match=r"^row 4321 of the rows to be split: data 'mine' has"):
        list(batches)


@pytest.mark.parametrize(
    ("values", "options", "kind", "levels", "dtype"),
    [
        (numbers(40), {}, "vector", 4, torch.uint8),
        (numbers(40).astype(np.int64), {}, "vector", 4, torch.uint8),
        (numbers(40).astype(np.uint16), {"levels": 300}, "vector", 300, torch.int32),
        (numbers(40) > 1, {}, "vector", 2, torch.uint8),
        (np.zeros((40, 3), int), {}, "vector", 2, torch.uint8),
        (numbers(40).astype(float), {"levels": 4}, "vector", 4, torch.uint8),
        (numbers(40).astype(float), {"levels": None}, "vector", None, torch.float32),
        (numbers(40) / 3, {}, "vector", None, torch.float32),
        (torch.rand(40, 3, requires_grad=True), {"kind": "sequence"}, "sequence", None,
         torch.float32),
        (numbers(40), {"kind": "sequence", "levels": 7}, "sequence", 7, torch.uint8),
        (np.full((40, 3, 8, 8), 255, np.uint8), {}, "image", 256, torch.uint8),
        (np.full((40, 1, 8, 8), 16), {}, "image", 17, torch.uint8),
        (np.full((40, 4, 4, 3), 1), {"kind": "image"}, "image", 2, torch.uint8),
    ],
)  # fmt: skip
def test_what_values_are_is_inferred_or_stated(values, options, kind, levels, dtype):
    splits = Splits.of(values, **options)
    assert (splits.spec.kind, splits.spec.levels) == (kind, levels)
    for part in (splits.train, splits.valid, splits.test):
        assert part.dtype == splits.spec.dtype == dtype
        assert not part.requires_grad
    assert splits.spec.name == f"own-{splits.spec.checksum[:8]}"


def test_a_table_of_pandas_is_a_table_of_numbers():
    import pandas

    frame = pandas.DataFrame({"a": [0, 1] * 10, "b": [1, 0] * 10})
    splits = Splits.of(frame)
    assert (splits.spec.shape, splits.spec.levels) == ((2,), 2)
    assert bool((splits.train.sum(1) == 1).all())
    for wrong in ("word", 1j, pandas.Timestamp(2020, 1, 1), pandas.Categorical([0, 1] * 10)):
        with pytest.raises(TypeError, match="columns of the table are no numbers: c; leave them"):
            Splits.of(frame.assign(c=wrong))


TYPES = ["Int64", "UInt8", "boolean", "bool", "int64[pyarrow]", "bool[pyarrow]", "Sparse[int64]"]


@pytest.mark.parametrize("of", TYPES)
def test_a_table_may_hold_numbers_in_the_types_of_pandas(of):
    pandas = pytest.importorskip("pandas")
    if "pyarrow" in of:
        pytest.importorskip("pyarrow")
    bits = pandas.DataFrame(numbers(40) % 2, columns=list("aab"))  # two of one name
    spec = Splits.of(bits).spec
    assert Splits.of(bits.astype(of)).spec == spec
    mixed = pandas.concat([bits.iloc[:, :2], bits.iloc[:, 2:].astype(of)], axis=1)
    assert Splits.of(mixed).spec == spec


@pytest.mark.parametrize(
    ("of", "real"), [("Int64", "Float64"), ("int64[pyarrow]", "double[pyarrow]")]
)
def test_a_table_says_what_it_lacks(of, real):
    pandas = pytest.importorskip("pandas")
    if "pyarrow" in of:
        pytest.importorskip("pyarrow")
    halves = pandas.DataFrame(numbers(40) / 2, columns=list("abc"))
    assert Splits.of(halves.astype(real)).spec == Splits.of(halves).spec
    for table in (halves.astype(real), (2 * halves).astype(of)):
        table.iloc[[3, 5], 1] = None
        with pytest.raises(ValueError, match="^column b of the table lacks 2 values: leave their"):
            Splits.of(table)


def test_an_empty_table_is_called_so():
    import pandas

    for empty, what in ((pandas.DataFrame(), "columns"), (pandas.DataFrame({"a": []}), "rows")):
        with pytest.raises(ValueError, match=f"^the table has no {what}, and so no values$"):
            Splits.of(empty)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((9, 8, 8)), {}, r"shape \(8, 8\) are neither .* get an axis by x\[:, None\]"),
        (np.zeros(9), {}, r"^events of shape \(\) are neither vectors \(D,\) nor images"),
        (np.zeros((9, 8, 8, 3)), {}, r"\(8, 8, 3\) look like images \(H, W, C\)"),
        (np.ones((9, 2)), {}, "^all values are whole numbers, but of a floating-point type: say"),
        (np.full((9, 2), -3), {}, "but the least is -3: add 3 to all of them"),
        (np.full((9, 2), 1999), {}, "largest integer is 1999: say levels=2000 if they are"),
        (np.full((9, 2), 254), {}, "largest integer is 254: say levels=256 if 255 is possible"),
        (np.array([[0.0], [1], [0.5]]), {"levels": 2}, "takes whole numbers; row 2 has others"),
        (np.array([[0.0], [1], [2]]), {"levels": 2}, r"has levels 0\.\.1, got values in \d\.\.2"),
        (np.full((9, 2), 256 + 1), {"levels": 2}, r"has levels 0\.\.1, got values in 257\.\.257"),
        (np.full((9, 2), np.nan), {}, "holds NaN or infinite values"),
        (np.zeros((9, 2), complex), {}, "complex128 are no numbers of a data set"),
        (np.full((9, 2), "a"), {}, "are no numbers of a data set"),
        (torch.zeros(9, 2, dtype=torch.cfloat), {}, "complex64 are no numbers of a data set"),
    ],
)  # fmt: skip
def test_what_is_ambiguous_is_asked_in_one_sentence(values, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Splits.of(values, **options)


def masked(*rows):
    return np.ma.masked_array(numbers(40), np.isin(np.arange(40), rows)[:, None].repeat(3, 1))


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (masked(3, 7), {}, "^6 values of the array are masked, so it is not known what they are"),
        (None, {}, "^rows of data are a tensor, an array, .* not NoneType$"),
        (torch.rand(0, 4), {}, "^there are no rows$"),
        (pd.Series([1.5, 2.5]), {}, "^values are a Series, one column, .* give values.to_frame()"),
        (torch.eye(9).to_sparse(), {}, "^a tensor that is sparse, nested or without storage"),
        (torch.eye(9, device="meta"), {}, "^a tensor that is sparse, nested or without storage"),
        (torch.eye(9).to(torch.float8_e5m2), {}, "^values of torch.float8_e5m2 are no numbers"),
        (np.eye(9, dtype=np.longdouble), {}, "^values of float128 are no numbers of a data set$"),
        (numbers(9), {"levels": "2"}, "^levels is '2'; it must be a whole number, None for real"),
        (numbers(9), {"levels": 4.0}, "^levels is 4.0; it must be a whole number, None for real"),
        (numbers(9), {"levels": True}, "^levels is True; it must be a whole number, None for r"),
        (numbers(9), {"shares": 0.1}, "^shares is 0.1; it must be a list of 2 numbers"),
        (numbers(9), {"shares": (0.1,)}, r"^shares is \(0.1,\); it must be a list of 2 numbers"),
        (numbers(9), {"shares": (0.1, 0.1, 0.1)}, "^shares is .* it must be a list of 2 numbers"),
        (numbers(9), {"shares": "ab"}, "^shares is 'ab'; it must be a list of 2 numbers"),
        (numbers(9), {"shares": (-1, 0.1)}, "^shares is .* each must be at least 0 and below 1"),
        (numbers(9), {"shares": (0.1, np.nan)}, "^shares is .*; it must be a list of 2 finite nu"),
        (numbers(9), {"seed": 1.5}, "^seed is 1.5; it must be a whole number$"),
        (numbers(9), {"seed": "a"}, "^seed is 'a'; it must be a whole number$"),
        (numbers(9), {"seed": -1}, "^seed is -1; it must be from 0 to 4294967295$"),
        (numbers(9), {"kind": "tree"}, "^kind is 'tree'; it must be"),
        (numbers(9), {"name": 5}, "^name is 5; it must be text"),
        (np.full((9, 2), 2**63, np.uint64), {}, "^the largest integer is 92233720368547758"),
        (torch.full((9, 2), 2**63, dtype=torch.uint64), {}, "^the largest integer is 9223372"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_refused_in_one_sentence(values, options, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        Splits.of(values, **options)
    assert "\n" not in str(caught.value)


def test_an_array_without_masked_values_is_its_data():
    assert Splits.of(masked()).spec == Splits.of(numbers(40)).spec


def test_the_first_wrong_row_in_memory_is_named():
    rows = numbers(40) / 3
    rows[[17, 30], 1] = np.nan
    with pytest.raises(
        ValueError, match="^row 17 of the rows to be split: data 'own-.* holds NaN"
    ):
        Splits.of(rows)
    with pytest.raises(ValueError, match="^row 2 of valid: data 'own-.* holds NaN"):
        Splits.of(numbers(40) / 3, rows[15:], rows[:9])


def test_equal_values_have_one_name_whatever_their_type():
    whole = numbers(40)
    types = (np.uint8, np.int8, ">i2", np.uint16, np.int32, np.int64, np.uint64)
    arrays = [whole.astype(dtype) for dtype in types]
    tensors = [torch.from_numpy(whole).to(dtype) for dtype in (torch.int16, torch.uint16)]
    assert len({Splits.of(values).spec for values in (*arrays, *tensors)}) == 1
    as_floats = [whole.astype(dtype) for dtype in (np.float16, np.float64)]
    stated = [Splits.of(values, levels=np.int64(4)).spec for values in (whole, *as_floats)]
    assert set(stated) == {Splits.of(whole).spec}
    assert len({Splits.of(values).spec for values in (whole > 1, (whole > 1).astype(int))}) == 1
    halves = torch.from_numpy(whole / 2)
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    assert len({Splits.of(halves.to(dtype)).spec for dtype in types}) == 1


def test_tables_of_other_columns_are_refused():
    import pandas

    train = pandas.DataFrame({"a": [0, 1] * 10, "b": [1, 0] * 10})
    assert Splits.of(train, train, train).spec.shape == (2,)
    with pytest.raises(
        ValueError, match="^the columns of valid are not .* train: b, a instead of a, b$"
    ):
        Splits.of(train, train[["b", "a"]], train)
    with pytest.raises(
        ValueError, match="^the columns of test are not .* train: a, c instead of a, b$"
    ):
        Splits.of(train, train, train.rename(columns={"b": "c"}))


def test_splits_of_different_events_are_refused():
    with pytest.raises(ValueError, match=r"^splits hold events of shapes \(3,\) and \(2,\)"):
        Splits.of(numbers(9), numbers(9)[:, :2])


def test_what_a_map_does_not_say_is_asked(stored):
    mapped = stored(numbers(40))
    with pytest.raises(ValueError, match="^data on disk is not read .* so its levels are not fo"):
        Splits.of(mapped, name="mine")
    with pytest.raises(ValueError, match="^data on disk is not read .* give it a name"):
        Splits.of(mapped, levels=4)
    real = Splits.of(stored(numbers(40) / 3), name="mine")
    assert real.spec.levels is None
    assert real.train[:2].dtype == torch.float32
    assert isinstance(as_rows(mapped), MappedRows)


# What is larger than memory

HUGE = """
import json, os, resource, sys
import numpy as np, torch
from armodels.data.base import Splits
from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks.made import MADE  # imported before memory is measured
from armodels.spec import DataSpec

def resident(key="VmHWM"):
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(key)]
    return int(line.split()[1]) * 1024

# All of it in memory would end in a MemoryError, not in the end of the machine.
resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32))
path = sys.argv[1]
num = 20_000_000_000 // 3072
with open(path, "wb") as file:
    file.truncate(num * 3072)
array = np.memmap(path, np.uint8, "r", shape=(num, 3, 32, 32))
about = os.stat(path)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before = resident("VmRSS")
splits = Splits.of(array, levels=256, name="huge", seed=3)
train = splits.to_train(None, torch.device("cpu"))
order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
batch = train[order[:100]]
found = {
    "size": about.st_size, "on_disk": about.st_blocks * 512, "rows": len(batch.x),
    "sum": int(batch.x.sum()), "growth": resident() - before,
}
if sys.argv[2:]:
    model = AutoregressiveModel.of(MADE, splits.spec, hidden_sizes=[8])
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = resident("VmRSS")
    model.initialize(batch.x for batch in splits.examples("train").batches(1000))
    found["start"] = resident() - before
print(json.dumps(found))
"""


def on_holes(tmp_path, *args: str) -> dict:
    """What ``HUGE`` finds of a file of holes, which takes no room on the disk."""
    path = tmp_path / "huge.bin"
    try:
        command = [sys.executable, "-c", HUGE, str(path), *args]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_20_gb_reach_their_first_batch_in_little_memory(tmp_path):
    """None of it is read before it is needed."""
    found = on_holes(tmp_path)
    assert found["size"] > 19_999_990_000
    assert found["on_disk"] < 10_000_000
    assert (found["rows"], found["sum"]) == (100, 0)
    assert found["growth"] < 300_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_model_starts_on_20_gb_in_little_memory(tmp_path):
    """For its marginals it reads 100 million values."""
    start = on_holes(tmp_path, "start")["start"]
    print(f"the start of a model takes {start / 1e6:.0f} MB at its peak")
    assert start < 900_000_000


def resident(name: str = "RssFile") -> int:
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith(name)]
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("scattered", [False, True])
def test_what_was_read_of_a_map_is_given_back(scattered, tmp_path, monkeypatch):
    path, num = tmp_path / "many.bin", 64 * 2**20
    path.write_bytes(bytes(range(256)) * (num // 256))
    monkeypatch.setattr(maps, "MAX_MAPPED", 2**23)
    rows = as_rows(np.memmap(path, np.uint8, "r"))
    before, most = resident(), 0
    generator = torch.Generator().manual_seed(0)
    for i in range(0, num, 2**16):
        index = slice(i, i + 2**16)
        if scattered:
            index = torch.randint(num, (50,), generator=generator)
        expected = (index if scattered else torch.arange(2**16)) % 256
        assert rows[index].equal(expected.to(torch.uint8))
        most = max(most, resident() - before)
    assert most < 2**24


def test_rows_of_a_file_are_those_of_its_map(tmp_path):
    whole = np.arange(240, dtype=np.int32).reshape(20, 4, 3)
    np.save(tmp_path / "x.npy", whole)
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    index = torch.tensor([3, -1, 0, 3])
    for part in (array, array[2:], array[2:17], array[:, :2], array[::2]):
        rows = as_rows(part)
        assert rows[index].equal(torch.from_numpy(np.array(part[index.numpy()])))
        with pytest.raises(IndexError):
            rows[torch.tensor([len(part)])]
    rows = as_rows(array)
    os.rename(tmp_path / "x.npy", tmp_path / "y.npy")
    assert rows[index].equal(torch.from_numpy(whole[index]))
    assert as_rows(array)[index].equal(torch.from_numpy(whole[index])), "by the map"
    os.truncate(tmp_path / "y.npy", 600)  # which the map itself would answer by SIGBUS
    with pytest.raises(OSError, match="row 19 of a memory map is gone: its file has become sh"):
        rows[torch.tensor([0, 19])]


def test_what_was_written_to_a_map_is_never_given_back(stored, monkeypatch):
    monkeypatch.setattr(maps, "MAX_MAPPED", 0)
    array = stored(numbers(40), "c")
    array[7] = 3
    rows = as_rows(array)
    for index in (slice(0, 40), torch.tensor([1, 30])):
        rows[index]
    assert rows[7:8].tolist() == [[3, 3, 3]]


def test_a_slice_lists_its_own_rows_and_no_other():
    windows = Windows(Long(), 3)
    assert len(windows) > 10**14
    assert windows[5:7].tolist() == [[1, 2, 3], [4, 5, 6]]
    frozen = FrozenRows(windows, lambda raw, generator: raw + 1, seed=0)
    assert frozen[5:7].tolist() == [[2, 3, 4], [5, 6, 7]]


class Long:
    """A sequence of 10^15 values, too many to list."""

    shape, dtype = (10**15,), torch.int64

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        return rows % 14


def test_a_text_is_read_as_far_as_its_one_marginal_needs():
    """Ten million values, of which no network asks where they stood."""
    spec = DataSpec("text", "sequence", (1024,), 4, "probability")
    model = AutoregressiveModel.of(Recurrent, spec, hidden_size=2)
    seen = []

    def batches():
        for _ in range(30):
            seen.append(torch.ones(1000, 1024, dtype=torch.uint8))
            yield seen[-1]

    model.initialize(batches())
    assert len(seen) == 10


TRAIN_ON_5_GB = ("train", "data=text", "data.unit=byte", "data.valid=1e-5", "data.test=1e-5",
                 "model=rnn", "model.hidden_size=32", "trainer.max_steps=50", "samples.num=0",
                 "trainer.eval_every=null", "trainer.progress=false", "out=run")  # fmt: skip

PEAK = """
import sys
from armodels.cli import main
sys.argv = ["armodels", *sys.argv[1:]]
try:
    main()
finally:
    with open("/proc/self/status") as file:
        print([line.split()[1] for line in file if line.startswith("VmHWM")][0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("length", [128, 1024])
def test_a_file_of_5_gb_trains_in_less_than_a_gb(length, tmp_path):
    """Random bytes here and there in a file of holes; the peak of the whole command."""
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(5 * 10**9)
        for i in range(0, 5 * 10**9, 10**8):
            file.seek(i)
            file.write(np.random.RandomState(i % 2**32).bytes(2**20))
    try:
        command = [sys.executable, "-c", PEAK, *TRAIN_ON_5_GB, f"data.path={path}"]
        command += [f"data.length={length}", "trainer.batch_size=32"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=tmp_path)
    finally:
        path.unlink()
    peak = int(done.stdout.split()[-1]) * 1024
    print(f"training on 5 GB takes {peak / 1e6:.0f} MB at its peak")
    assert peak < 10**9


@pytest.mark.parametrize(("levels", "most"), [(2, 700), (17, 700), (None, 23 * 61)])
def test_a_start_widens_few_values_at_once(levels, most, monkeypatch):
    """Levels are counted a few steps at a time, to the same bits; real values all at once."""
    measure = "density" if levels is None else "probability"
    head = heads.auto(DataSpec("some", "vector", (61,), levels, measure))
    values = torch.rand(23, 61, 1) if levels is None else torch.randint(levels, (23, 61, 1))
    expected, sizes = head.marginal_params(values), []

    count = type(head).marginal_params

    def counted(self, values):
        sizes.append(values.numel())
        return count(self, values)

    monkeypatch.setattr(type(head), "marginal_params", counted)
    monkeypatch.setattr(autoregressive, "MAX_WIDENED", 700)
    model = SimpleNamespace(head=head)
    found = autoregressive.AutoregressiveModel._marginal_params(model, values.split(10))
    assert torch.equal(found, expected)
    assert max(sizes) <= most
    assert sum(sizes) == 23 * 61
