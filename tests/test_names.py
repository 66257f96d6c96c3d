"""Names and tags of runs."""

import csv
import io
import re
import time

import pytest
from command import TINY, armodels, done, fork

from armodels.names import LONGEST, run_name
from armodels.run import RunDirectory

OLD = "outputs/20241126-101112-abcdef"

SAID = {
    (): "",
    ("data=mnist", "model=nade", "seed=3", "out=x", "samples.num=0", "tags=[a]"): "",
    ("optimizer.lr=0.01", "model.hidden_sizes=[500,500]"): "lr0.01-hidden_sizes500x500-",
    ("model.order=random", "model.num_orders=16"): "random-num_orders16-",
    ("model.direct_connections=true", "trainer.compile=false"): "direct_connections-no_compile-",
    ("trainer.patience=null", "+data.x=1e-3", "~schedule"): "no_patience-x1e-3-no_schedule-",
    ("experiment=made_vs_gmm/anime", "head=categorical"): "made_vs_gmm-anime-categorical-",
    ("data.path=/home/me/my pictures/",): "my-pictures-",
    ("data.path='größe, 1.csv'", 'data.drop=[a b,"c\'"]'): "gr-e-1.csv-a-b-c-",
    ("data.name=..", "model.context=\x1b[2J"): "2J-",
}


@pytest.mark.parametrize("overrides", SAID, ids=map(str, range(len(SAID))))
def test_a_name_says_what_was_typed(overrides):
    name = run_name(overrides, 7)
    assert re.fullmatch(re.escape(SAID[overrides]) + "seed7-[a-z2-7]{8}", name)


def test_names_are_short_and_never_the_same():
    long = [f"model.number_{i}={i}" for i in range(30)]
    made = {run_name(long, 123456) for _ in range(100)}
    assert len(made) == 100
    assert {len(name) for name in made} <= {LONGEST - 1, LONGEST}  # a hyphen may be cut off
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in made)
    # What a sweep varies is never cut away, nor what the user says.
    assert run_name([*long, "optimizer.lr=1"], 0, swept={"optimizer.lr"}).startswith(
        "lr1-number_0"
    )
    assert run_name([*long, "optimizer.lr=1"], 0, name="mine").startswith("mine-seed0-")
    both = run_name([*long, "optimizer.lr=1"], 0, name="mine", swept={"optimizer.lr", "seed"})
    assert both.startswith("mine-lr1-seed0-")


@pytest.mark.slow
def test_eight_starts_at_once_are_eight_runs(tmp_path):
    """And each path can be typed as it stands."""
    args = ("train", *TINY, "trainer.max_steps=1", "optimizer.betas=[0.8,0.9]")
    children = [fork(tmp_path, *args) for _ in range(8)]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 8, (tmp_path / "told").read_text()
    runs = [path.parent for path in tmp_path.rglob("status.json")]
    assert len(runs) == 8
    paths = [run.relative_to(tmp_path).as_posix() for run in runs]
    assert all(re.fullmatch(r"outputs/[A-Za-z0-9._-]+/[A-Za-z0-9._-]+/[A-Za-z0-9._-]{1,60}", path)
               for path in paths)  # fmt: skip
    for run in runs:
        assert RunDirectory(run).read_metrics()["steps"] == 1
    assert "(23 examples)" in done(tmp_path, "eval", f"run={paths[0]}", "device=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep and a run with a name, and an older run without one."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "begun").touch()
    args = (*TINY, "trainer.max_steps=1", "trainer.log_every=1")
    done(folder, "train", "-m", *args, "seed=1,2", "model.order=raster,reverse", "tags=[sweep]")
    done(folder, "train", *args, "seed=1", "name=mine", "model.order=columns",
         "tags=[first, 'my words']")  # fmt: skip
    done(
        folder,
        "train",
        *args,
        "seed=1",
        "model.order=random",
        "out=outputs/20241126-101112-abcdef",
    )
    old = RunDirectory(folder / OLD)
    config = old.read_config()
    for key in ("name", "tags", "started"):
        del config[key]
    old.begin(config)
    old.write_status("done")
    return folder


@pytest.mark.slow
def test_directories_are_named(folder):
    runs = sorted(path.name for path in (folder / "outputs/tiny/made").iterdir())
    typed = "hidden_sizes6-batch_size8-max_steps1"
    starts = [f"{order}-{typed}" for order in ("raster", "reverse") for _ in range(2)]
    assert [name[: name.index("-seed")] for name in runs] == ["mine", *starts]
    assert [re.search("seed(.)", name).group(1) for name in runs] == list("11212")


def test_the_date_is_kept_with_the_run(folder):
    begun = (folder / "begun").stat().st_mtime
    for path in (folder / "outputs/tiny/made").iterdir():
        run = RunDirectory(path)
        started = run.read_config()["started"]
        assert run.read_metrics()["started"] == started
        told = time.mktime(time.strptime(started[:19], "%Y-%m-%dT%H:%M:%S"))
        assert begun - 1 < told <= run.path.stat().st_mtime


def table(folder, *args: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(done(folder, "compare", "outputs", "--csv", *args))))


def test_compare_shows_tags_and_selects_by_them(folder):
    assert {row["tags"] for row in table(folder)} == {"", "first,my words", "sweep"}
    (row,) = table(folder, "tags=[my words]")
    assert "/mine-seed1-" in row["run"]
    assert len(table(folder, "tags=[sweep]")) == 2  # of two seeds each
    error = armodels(folder, "compare", "outputs", "tags=[sweep,first]").error
    assert error == "no run has the tags first, sweep; there are first, my words, sweep"
    # Neither a name nor a tag is what was trained: seeds are grouped across them.
    done(folder, "train", *TINY, "trainer.max_steps=1", "trainer.log_every=1", "seed=5",
         "name=other", "out=more/run")  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(done(folder, "compare", "outputs", "more", "--csv"))))
    (seeds,) = (row["seeds"] for row in rows if "5" in row["seeds"])
    assert sorted(seeds.split(",")) == ["1", "2", "5"]


def test_an_older_run_goes_on(folder):
    done(folder, "train", f"resume={OLD}", "trainer.max_steps=2")
    run = RunDirectory(folder / OLD)
    assert run.read_metrics()["steps"] == 2
    assert run.read_metrics()["started"] is None


@pytest.mark.parametrize(
    ("arg", "told"),
    [
        ("name=my run", "name is 'my run'; it becomes a part of the directory's name"),
        ("name=../x", "name is '../x'"),
        (f"name={'x' * 31}", "up to 30 letters"),
        ("tags=first", "tags is 'first'; it must be a list, such as tags=[first]"),
        ("tags=['a,b']", "tags has 'a,b'; a tag is up to 40 printable characters"),
    ],
)
def test_a_bad_name_is_refused(arg, told, tmp_path):
    for out in ((), ("out=run",)):
        assert told in armodels(tmp_path, "train", *TINY, *out, arg).error
        assert not list(tmp_path.iterdir())
