"""An exact evaluation that is stopped goes on, and processes share its examples and orders."""

import json
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import CASES
from command import TORCHRUN, done, process, start

from armodels import partial, scoring
from armodels.data.rows import Examples
from armodels.evaluation import evaluate
from armodels.partial import LogSums, Partial


class Stop(BaseException):
    """As a signal raises it, anywhere."""


class Processes:
    """Threads in the place of processes, which meet to add and compare their numbers."""

    def __init__(self, world: int):
        self.world_size, self.device = world, torch.device("cpu")
        self._own = threading.local()
        self.meeting = threading.Barrier(world, timeout=60)
        self._all: list = [None] * world

    @property
    def global_rank(self) -> int:
        return self._own.rank

    def barrier(self) -> None:
        self.meeting.wait()

    def all_reduce(self, value: torch.Tensor, reduce_op: str) -> torch.Tensor:
        self._all[self.global_rank] = value.clone()
        self.meeting.wait()
        every = torch.stack(self._all)
        self.meeting.wait()
        return every.sum(0) if reduce_op == "sum" else every.max(0).values

    def run(self, work) -> list:
        found: list = [None] * self.world_size

        def one(rank: int) -> None:
            self._own.rank = rank
            found[rank] = work(self)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(one is not None for one in found)
        return found


def counted(monkeypatch, most: int = 10**9) -> list[int]:
    """How many values were found by each batch; the next one but ``most`` stops the program."""
    found: list[int] = []
    add, read = LogSums.add, scoring.pieces_log_probs

    def count(values: torch.Tensor) -> None:
        if len(found) == most:
            raise Stop
        found.append(len(values))

    def pieces_log_probs(*args, **options):
        for number, values in read(*args, **options):
            count(values)
            yield number, values

    def counting(own, start, values):
        count(values)
        add(own, start, values)

    monkeypatch.setattr(LogSums, "add", counting)
    monkeypatch.setattr(scoring, "pieces_log_probs", pieces_log_probs)
    return found


def stopped(monkeypatch, world: int, most: int, work) -> int:
    """Values that were found until the program was stopped, in all processes."""

    def until_stopped(processes) -> bool:
        try:
            work(processes)
        except Stop:
            processes.meeting.abort()  # whoever waits for it waits in vain
        except threading.BrokenBarrierError:
            pass
        return True

    with monkeypatch.context() as patch:
        found = counted(patch, most)
        Processes(world).run(until_stopped)
    return sum(found)


@pytest.mark.parametrize("name", ["made", "orders-made", "orders-deep-nade", "gmm"])
@pytest.mark.parametrize(("first", "then"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_what_is_stopped_goes_on_by_any_number_of_processes(
    name, first, then, tmp_path, monkeypatch, capsys
):
    case = CASES[name]
    model, x = case.build(0), case.events(11)
    expected = model.log_prob(x)

    def work(processes) -> torch.Tensor:
        return scoring.log_probs(
            model, Examples(x), 2, fabric=processes, keep=tmp_path, name="test"
        )

    before = stopped(monkeypatch, first, 4, work)
    files = [np.load(path)["done"] for path in tmp_path.iterdir()]
    assert sum((done @ [-1, 1]).sum() for done in files) == before
    found = counted(monkeypatch)
    for each in Processes(then).run(work):
        torch.testing.assert_close(each, expected, rtol=1e-12, atol=1e-12)
    assert sum(found) + before == 11 * model.num_terms, "each once"
    share = f"{100 * before / 11 / model.num_terms:.0f} %"
    told = f"going on with an evaluation of test that was stopped, {share} of it done\n"
    assert capsys.readouterr().out == told * then  # a process that is not the first is muted
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("first", "then"), [(1, 1), (1, 2), (2, 1)])
def test_whole_pieces_are_kept_and_shared(first, then, tmp_path, monkeypatch):
    case = CASES["rnn"]
    model, pieces = case.build(0), [torch.arange(7 + i) % case.spec.levels for i in range(5)]
    examples = Examples(torch.zeros(0, case.spec.num_dims).long(), pieces=[*pieces, pieces[0][:0]])
    expected = evaluate(model, examples)

    def work(processes):
        return evaluate(model, examples, 1, fabric=processes, keep=tmp_path, name="test")

    monkeypatch.setattr(scoring, "CHUNK", 3)  # so that pieces are read in parts
    stopped(monkeypatch, first, 9, work)
    saved = [np.load(path) for path in tmp_path.iterdir()]
    there = sum(one["sums"][one["whole"], 0].sum() for one in saved)
    assert 0 < there < sum(map(len, pieces))
    found = counted(monkeypatch)
    for each in Processes(then).run(work):
        assert each.num_symbols == expected.num_symbols == sum(map(len, pieces))
        for key in ("log_prob", "standard_error", "by_piece"):
            assert getattr(each, key) == pytest.approx(getattr(expected, key), rel=1e-12), key
    assert sum(found) == sum(map(len, pieces)) - there
    assert not list(tmp_path.iterdir())


def test_what_belongs_to_others_or_is_damaged_is_not_taken(tmp_path, monkeypatch, capsys):
    case = CASES["orders-made"]
    model, x = case.build(0), case.events(11)

    def work(own=model, rows=x):
        return scoring.log_probs(own, Examples(rows), 2, keep=tmp_path, name="test")

    stopped(monkeypatch, 1, 4, lambda _: work())
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    found = counted(monkeypatch)
    whole = 11 * model.num_terms
    # Other weights, other data.
    other = case.build(0)
    next(other.parameters()).data[0] += 1e-6
    almost = x.clone()
    almost[7].flatten()[-1] ^= 1
    for changed in ({"own": other}, {"rows": case.events(11, seed=1)}, {"rows": almost}):
        work(**changed)
        assert sum(found) == whole
        assert file.read_bytes() == content
        found.clear()
    assert capsys.readouterr().out == ""
    # Damaged, or as numpy packs it, where a small file may have no end.
    packed = dict(np.load(file))
    damaged = {"cut off": content[:-30], "empty": b"", "other": b"hello"}
    for one in damaged.values():
        file.write_bytes(one)
        torch.testing.assert_close(work(), model.log_prob(x), rtol=1e-12, atol=1e-12)
        assert sum(found) == whole
        assert "is damaged, and what it held is evaluated again" in capsys.readouterr().err
        found.clear()
    for changed in (
        {},
        {"sums": packed["sums"][:5]},
        {"done": packed["done"] + 30},
        {"done": packed["done"][:, ::-1]},
        {"done": packed["done"].astype(float)},
        {"more": np.zeros(1)},
    ):
        save = np.savez if changed else np.savez_compressed
        save(file, **{**packed, **changed})
        work()
        assert sum(found) == whole, changed
        found.clear()


def test_two_files_of_the_same_values_count_once(tmp_path):
    """Where a process is killed, what the first one took over may still lie there."""
    sums, other = LogSums(5, 2), LogSums(5, 2)
    for one in (sums, other):
        one.add(0, torch.zeros(3))
    other.add(3, torch.zeros(2))
    sums.take_in(other.content)
    assert sums.num_found == 3
    assert sums.log_sums.tolist() == [0, 0, 0, -torch.inf, -torch.inf]
    rest = LogSums(5, 2)
    rest.add(3, torch.zeros(2))
    rest.add(5, torch.zeros(2))
    sums.take_in(rest.content)
    assert sums.num_found == 7
    assert sums.content["done"].tolist() == [[0, 7]]
    torch.testing.assert_close(sums.log_sums.exp(), torch.tensor([2, 2, 1, 1, 1.0]).double())
    shares = [sums.share(rank, 2) for rank in range(2)]
    assert shares == [[(7, 8)], [(8, 10)]]


def test_sums_are_saved_each_half_minute(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(partial.time, "monotonic", lambda: now[0])
    files = Partial(tmp_path, "test", lambda: "0")

    def evaluation() -> None:
        with partial.kept(files, lambda: {"sums": np.array(now)}) as found_some:
            for now[0], there in ((29.0, []), (31.0, [31.0]), (60.0, [31.0]), (62.0, [62.0])):
                found_some()
                assert [float(one["sums"][0]) for one in files.load()] == there
            now[0] = 63.0
            raise Stop

    with pytest.raises(Stop):
        evaluation()
    assert [float(one["sums"][0]) for one in files.load()] == [63.0]


# Real processes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done(folder, "train", "data=digits", "model=deep_nade", "model.order=random",
         "model.hidden_sizes=[300,300]", "trainer.max_steps=3", "trainer.eval_every=null",
         "trainer.test=false", "samples.num=0", "trainer.accelerator=cpu", "out=run",
         "trainer.progress=false")  # fmt: skip
    return folder


def saved(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("evaluating-test-*.0.npz"))


@pytest.mark.slow
def test_orders_are_evaluated_by_two_processes_and_a_stop_loses_nothing(run):
    args = ("eval", "run", "eval.num_orders=12", "device=cpu")
    assert done(run, *args, "out=one.json")
    result = process(run, *args, "out=two.json", launcher=(*TORCHRUN, "-m", "armodels"))
    assert result.code == 0, result.err
    one, two = (json.loads((run / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["environment"]["processes"] == 2
    assert result.out.count(" nats ") == 1
    checkpoints = run / "run/checkpoints"
    often = "from armodels import cli, partial; partial.EVERY = 0.1; cli.main()"
    for number in (signal.SIGKILL, signal.SIGINT):
        before = {path: path.stat().st_mtime_ns for path in saved(checkpoints)}
        with start(run, *args, launcher=("-c", often)) as child:
            while all(p.stat().st_mtime_ns == before.get(p) for p in saved(checkpoints)):
                assert child.poll() is None
                time.sleep(0.05)
            child.send_signal(number)
            _, err = child.communicate(timeout=60)
        assert saved(checkpoints)
    assert child.returncode == 130
    assert "run it again: armodels eval run" in err
    told = done(run, *args, "out=again.json")
    assert "going on with an evaluation of test that was stopped" in told
    again = json.loads((run / "again.json").read_text())
    for found in (two, again):
        for key in ("nats", "nats_ci95", "num_examples"):
            assert found[key] == pytest.approx(one[key], rel=1e-9), key
    assert not list(checkpoints.glob("evaluating-*"))
