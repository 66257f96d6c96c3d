"""armodels tune: trials are runs, test is read once, and a search outlives its processes."""

import csv
import json
import re
import shlex
import time

import pytest
import yaml
from command import CONFIGS, TINY, armodels, done, fork
from test_select import same

from armodels import search, study
from armodels.checkpoints import load_checkpoint
from armodels.tasks import compare, tune
from armodels.training.loop import Trainer

pytest.importorskip("optuna")

SHORT = (*TINY[:1], *TINY[2:], "trainer.max_steps=8", "trainer.eval_every=0.3")
LR = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
SIZES = "model.hidden_sizes=choice([3],[6],[4,4])"
SEARCH = ("tune", *SHORT, LR, SIZES, "pruner=none")


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def runs(folder):
    return sorted(folder.glob("trial-*"))


def values(folder):
    """What each trial was, and had on valid."""
    found = []
    for path in runs(folder):
        config = yaml.safe_load((path / "config.yaml").read_text())
        valid = metrics(path)["valid"]["nats"]
        found.append((config["optimizer"]["lr"], config["model"]["hidden_sizes"], valid))
    return found


def best_of(told):
    """Number, valid and test nats of the line about the best."""
    found = re.search(r"best   trial (\d+): valid ([-0-9.]+), test ([-0-9.]+) nats", told)
    return int(found[1]), float(found[2]), float(found[3])


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with a search of five trials, and what was said."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, done(folder, *SEARCH, "num_trials=5", "out=study")


def test_test_is_read_once_for_the_best(searched):
    folder, told = searched
    number, valid, test = best_of(told)
    assert len(runs(folder / "study")) == 5
    assert valid == pytest.approx(min(one[2] for one in values(folder / "study")), abs=1e-4)
    for i, path in enumerate(runs(folder / "study")):
        assert ("test" in metrics(path)) == (i == number)
    assert metrics(runs(folder / "study")[number])["test"]["nats"] == pytest.approx(test, abs=1e-4)


def test_the_command_of_the_best_trains_it_as_pasted(searched):
    folder, told = searched
    number, _, _ = best_of(told)
    line = next(line for line in told.splitlines() if line.startswith("  armodels train "))
    done(folder, *shlex.split(line)[1:], "out=again")
    best = runs(folder / "study")[number]
    for key in ("valid", "test", "best_step"):
        assert metrics(folder / "again")[key] == metrics(best)[key]
    paths = [path / "checkpoints/best.pt" for path in (best, folder / "again")]
    assert same(*(load_checkpoint(path)["model"] for path in paths))


def test_the_first_trial_has_the_defaults(searched, tmp_path):
    folder, _ = searched
    # The model's own size, 500, is none of the choices; the rate of the optimizer lies within.
    assert values(folder / "study")[0][0] == 1e-3
    done(tmp_path, *SEARCH[:-2], "model.hidden_sizes=choice([500],[3])", "num_trials=1", "out=a")
    assert values(tmp_path / "a")[0][:2] == (1e-3, [500])


def test_compare_knows_what_has_no_test(searched):
    folder, told = searched
    number, _, _ = best_of(told)
    table = done(folder, "compare", "study").splitlines()
    assert f"trial-{number:04d}" in table[1]
    assert "test not read" not in table[1]
    assert sum("done, test not read" in line for line in table) == 4
    lines = csv.DictReader(done(folder, "compare", "study", "--csv").splitlines())
    cells = [line["valid nats"] for line in lines]
    assert cells[0] == ""
    assert [float(cell) for cell in cells[1:]] == sorted(map(float, cells[1:]))


def test_a_run_without_test_has_all_but_its_number(tmp_path):
    for test in ("true", "false"):
        done(tmp_path, "train", *SHORT, f"trainer.test={test}", f"out=runs/{test}")
    read, left = metrics(tmp_path / "runs/true"), metrics(tmp_path / "runs/false")
    assert read.keys() - left.keys() == {"test"}
    assert read["valid"] == left["valid"]
    found = [compare.read(one) for one in compare.find_runs([str(tmp_path / "runs")])]
    counted = [compare._what_counts(one.config, "trainer") for one in found]
    assert counted[0] == counted[1]
    assert sorted(row.status for row in compare.rows(found)) == [
        "done, 95 % interval", "done, test not read, 95 % interval"
    ]  # fmt: skip
    done(tmp_path, "train", "resume=runs/false", "trainer.test=true")
    assert metrics(tmp_path / "runs/false")["test"] == read["test"]


@pytest.mark.slow
def test_the_same_command_trains_nothing_again_and_a_larger_one_goes_on(searched, tmp_path):
    folder, told = searched
    before = {p: (p / "status.json").stat().st_mtime_ns for p in runs(folder / "study")}
    again = done(folder, *SEARCH, "num_trials=5", "out=study")
    assert best_of(again) == best_of(told)
    assert {p: (p / "status.json").stat().st_mtime_ns for p in before} == before
    done(tmp_path, *SEARCH, "num_trials=2")
    (first,) = tmp_path.glob("outputs/tiny/made/tune-*")
    done(tmp_path, *SEARCH, "num_trials=5")
    assert [*tmp_path.glob("outputs/tiny/made/tune-*")] == [first]
    # What is proposed follows from the seed and the trials before.
    assert values(first) == values(folder / "study")


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 4, 8])
def test_a_stopped_search_goes_on_within_its_trial(at, searched, tmp_path, monkeypatch):
    folder, told = searched
    with monkeypatch.context() as patch:
        step, count = Trainer._step, 0

        def stop(trainer):
            nonlocal count
            step(trainer)
            count += 1
            if count == 2 * 8 + at:
                trainer.watch.asked = 15

        patch.setattr(Trainer, "_step", stop)
        cut = armodels(tmp_path, *SEARCH, "num_trials=5", "out=study")
        assert cut.code == 143
        assert "the search was stopped; the same command goes on with it" in cut.err
    assert len(runs(tmp_path / "study")) == 3
    again = done(tmp_path, *SEARCH, "num_trials=5", "out=study")
    assert values(tmp_path / "study") == values(folder / "study")
    assert best_of(again) == best_of(told)


@pytest.mark.slow
def test_a_failed_trial_is_recorded_and_the_search_goes_on(tmp_path):
    args = ("tune", *SHORT, "optimizer.lr=choice(1e-3,1e30)", "trainer.log_every=1", "pruner=none")
    told = done(tmp_path, *args, "num_trials=6", "out=s")
    failed = [path for path in runs(tmp_path / "s") if not (path / "metrics.json").exists()]
    assert 0 < len(failed) < 6
    for path in failed:
        status = json.loads((path / "status.json").read_text())
        assert status["status"] == "failed"
        assert "the loss became" in status["reason"]
        assert "Traceback" in (path / "train.log").read_text()
    assert told.count("failed: the loss became") == 2 * len(failed)  # its own line, and the table


@pytest.mark.slow
def test_a_trial_that_is_refused_is_a_run_that_failed(tmp_path):
    args = ("tune", *SHORT, "model.hidden_sizes=choice([6],[0])", "num_trials=5", "out=s")
    told = done(tmp_path, *args)
    refused = [path for path in runs(tmp_path / "s") if not (path / "metrics.json").exists()]
    assert refused
    assert all((path / "config.yaml").is_file() for path in refused)
    assert "failed: model.hidden_sizes" in told
    assert "failed" in done(tmp_path, "compare", "s")


@pytest.mark.slow
def test_where_all_fail_the_end_says_so(tmp_path):
    args = ("tune", *SHORT, "optimizer.lr=choice(1e29,1e30)", "trainer.log_every=1", "out=s")
    result = armodels(tmp_path, *args, "num_trials=2")
    assert result.code == 1
    assert "error: no trial was trained to its end; the reasons stand in s" in result.err


@pytest.mark.slow
def test_what_has_no_promise_is_pruned(tmp_path, monkeypatch):
    asked = []

    def hopeless(trial, step, nats):
        asked.append((trial.number, step))
        return (trial.number, step) == (1, 2)

    monkeypatch.setattr(study.Trial, "hopeless", hopeless)
    told = done(tmp_path, *SEARCH, "num_trials=3", "out=s")
    assert [one for one in asked if one[0] == 0] == [(0, i) for i in range(1, 4)]
    assert [one for one in asked if one[0] == 1] == [(1, 1), (1, 2)]
    status = json.loads((runs(tmp_path / "s")[1] / "status.json").read_text())
    assert status["status"] == "interrupted"
    reason = "stopped without promise at step 4; go on with: armodels train resume="
    assert status["reason"].startswith(reason)
    assert re.search(r"trial 1 .*: pruned", told)
    assert best_of(told)[0] in (0, 2)
    done(tmp_path, "train", f"resume={runs(tmp_path / 's')[1]}", "trainer.test=true")
    assert "test" in metrics(runs(tmp_path / "s")[1])


@pytest.mark.slow
@pytest.mark.parametrize("pruner", ["halving", "hyperband"])
def test_optunas_pruners_end_what_is_far_worse(pruner, tmp_path):
    args = ("tune", *SHORT[:-2], "trainer.max_epochs=9", "optimizer.lr=choice(0.003,1e-7)",
            f"pruner={pruner}", "num_trials=8", "out=s")  # fmt: skip
    told = done(tmp_path, *args)
    pruned = re.findall(r"trial \d+  optimizer.lr=(\S+): pruned", told)
    assert "1e-07" in pruned
    assert "optimizer.lr=0.003" in told.partition("Next:")[2]


def test_a_shipped_space_is_searched_where_nothing_is_typed(tmp_path):
    told = done(tmp_path, "tune", *SHORT, "model.dropout=0.1", "num_trials=1", "out=s")
    found = re.findall(r"^search (\S+?)=", told, re.MULTILINE)
    assert found == ["optimizer.lr", "model.hidden_sizes", "optimizer.weight_decay"]


@pytest.mark.parametrize("model", ["made", "nade", "pixelcnn", "transformer", "rnn"])
def test_shipped_spaces_name_keys_that_there_are(model):
    space = yaml.safe_load((CONFIGS / f"tune/{model}.yaml").read_text())
    for key in space:
        part, _, name = key.partition(".")
        file = f"model/{model}.yaml" if part == "model" else "optimizer/adamw.yaml"
        assert name in yaml.safe_load((CONFIGS / file).read_text())


@pytest.mark.slow
def test_a_database_keeps_a_study(tmp_path):
    url = f"storage=sqlite:///{tmp_path}/study.db"
    done(tmp_path, *SEARCH, url, "num_trials=1", "out=s")
    told = done(tmp_path, *SEARCH, url, "num_trials=2", "out=s")
    assert "2 trials, of which 1 have begun" in told
    assert (tmp_path / "study.db").is_file()
    assert not (tmp_path / "s/journal.log").exists()


@pytest.mark.slow
def test_the_journal_of_a_killed_process_is_mended(tmp_path):
    done(tmp_path, *SEARCH, "num_trials=1", "out=s")
    journal = tmp_path / "s/journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"work')
    told = done(tmp_path, *SEARCH, "num_trials=2", "out=s")
    assert journal.read_bytes().startswith(whole + b"{")
    assert "trial 1  " in told


@pytest.mark.slow
def test_a_trial_that_kills_its_processes_fails(tmp_path, monkeypatch):
    """A worker that is killed leaves a running trial, and a file that nobody holds."""

    def killed(*args):
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "_train", killed)
        for _ in range(study.DEATHS):
            assert armodels(tmp_path, *SEARCH, "num_trials=2", "out=s").code == 9
    told = done(tmp_path, *SEARCH, "num_trials=2", "out=s")
    assert re.search(r"^0 .*failed: 3 processes were killed while they trained it", told, re.M)
    assert best_of(told)[0] == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("model=uniform",), "nothing is searched, and model=uniform ships no space of its own; "
         "write a value as a search, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'"),
        ((LR, "num_trials=0"), "num_trials is 0; it must be at least 1"),
        ((LR, "pruner=asha"), "pruner is 'asha'; choose none, hyperband or halving"),
        ((LR, "data.num_train=choice(40,50)"), "data.num_train=choice(40,50) cannot be "
         "searched: a search varies model, head, optimizer, schedule, trainer, and what it "
         "compares are nats of the same data"),
        (("optimizer.lr=tag(log,interval(0,1))",), "optimizer.lr=tag(log,interval(0,1)) holds no "
         "number to try; low comes first, and of tag(log,...) it is above 0"),
        (("optimizer.lr=interval(1,0.5)",), "optimizer.lr=interval(1,0.5) holds no number to try; "
         "low comes first, and of tag(log,...) it is above 0"),
        (("optimizer.lr=tag(lgo,interval(1,2))",), "optimizer.lr=tag(lgo,interval(1,2)) has the "
         "tag lgo; the only tag is log"),
        (("model.order=glob(*)",), "model.order=glob(*) cannot be searched; write choice(a,b), "
         "range(start,stop,step), interval(low,high) or tag(log,interval(low,high))"),
        ((LR, "optimizer.lr=0.1"), "optimizer.lr is given twice; leave one of the two out"),
        (("optimizer.lrr=choice(1,2)",), "optimizer.lrr is no key of armodels train; did you mean "
         "optimizer.lr?"),
        ((LR, "model.hidden_sizs=[3]"), "model.hidden_sizs is no key of armodels train; did you "
         "mean model.hidden_sizes?"),
        ((LR, "optimizer.weight_decay=-1"), "optimizer.weight_decay is -1; it must be at least 0"),
        ((LR, "resume=run"), "resume is no key of armodels tune: a run that goes on has its "
         "values; leave it out"),
        ((LR, "storage=nosuch://x"), None),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_any_work(args, sentence, tmp_path):
    result = armodels(tmp_path, "tune", *SHORT, *args, "data.damage=loud", "out=s")
    if sentence:
        assert result.error == sentence
        assert not (tmp_path / "s").exists()
    else:
        assert result.error.startswith("storage=nosuch://... cannot be opened: ")


def test_no_sweep_no_optuna_and_no_other_folder(tmp_path, monkeypatch):
    refused = armodels(tmp_path, *SEARCH, "-m")
    assert refused.error == "armodels tune chooses its trials itself; leave -m away"
    done(tmp_path, *SEARCH, "num_trials=1", "out=s")
    other = armodels(tmp_path, *SEARCH, "seed=1", "out=s")
    assert other.error == (
        "s is the study of another command, which differs in seed=1; choose another with out="
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    full = armodels(tmp_path, *SEARCH, "out=full")
    assert full.error == "full exists and holds no study; choose another folder with out="
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert armodels(tmp_path, *SEARCH, "out=t").error == (
        "armodels tune searches by Optuna, which is not installed: pip install 'armodels[sweep]'"
    )


def test_knobs_read_hydras_words():
    from hydra import initialize_config_module

    words = ["a=1", "model.x=choice(True,[3],b)", "model.y=range(1,10,2)", "model.z=interval(0,1)",
             "optimizer.w=tag(log,int(interval(16,512)))", "trainer.v=a,b"]  # fmt: skip
    with initialize_config_module("armodels.configs", version_base="1.3"):
        fixed, knobs = search.read(words)
    assert fixed == ["a=1"]
    x, y, z, w, v = knobs
    assert x.values == ("true", "[3]", "b")
    assert (y.kind, y.low, y.high, y.step) == ("whole", 1, 9, 2)
    assert (z.kind, z.low, z.high, z.log) == ("real", 0, 1, False)
    assert (w.kind, w.low, w.high, w.log) == ("whole", 16, 512, True)
    assert v.values == ("a", "b")
    assert z.word(0.123456) == "model.z=0.1235"
    assert y.holds(4) is None
    assert y.holds(5) == 5
    assert x.holds([3]) == "[3]"


@pytest.mark.slow
def test_killed_workers_lose_nothing(tmp_path):
    """Two workers on one study; one is killed again and again, and the last command concludes."""
    args = (*SEARCH, "num_trials=8", "out=s", "trainer.max_steps=60")
    args = tuple(one for one in args if one != "trainer.max_steps=8")
    steady = None
    for wait in (1.5, 0.6, 0.9):
        hurt = fork(tmp_path, *args)
        steady = steady or fork(tmp_path, *args)
        hurt.join(wait + 2)
        hurt.kill()
        hurt.join()
        time.sleep(0.2)
    steady.join(120)
    assert steady.exitcode == 0
    told = done(tmp_path, *args)
    number, valid, _ = best_of(told)
    assert len(runs(tmp_path / "s")) == 8
    # Every trial is a whole run, as if nobody had been killed.
    assert min(one[2] for one in values(tmp_path / "s")) == pytest.approx(valid, abs=1e-4)
    tested = [path for path in runs(tmp_path / "s") if "test" in metrics(path)]
    assert tested == [runs(tmp_path / "s")[number]]
    again = done(tmp_path, *(one for one in args if one != "out=s"), "out=t")
    assert best_of(again)[1] == pytest.approx(valid, rel=0.2)
