"""What failed in the hands of users, each as small as it can be."""

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from command import QUICK, Result, armodels, done, process
from PIL import Image

TRAIN = ("train", "model=independent", "trainer.max_steps=1", *QUICK)
TINY = (*TRAIN, "data=tiny")


def table(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def columns(folder: Path, path: str, *args: str) -> int:
    """How many columns a training reads."""
    shutil.rmtree(folder / "read", ignore_errors=True)
    done(folder, *TRAIN, "data=table", f"data.path={path}", "out=read", *args)
    return json.loads((folder / "read/metrics.json").read_text())["num_dims"]


@pytest.fixture
def draws():
    return np.random.RandomState(0)


# Tables


@pytest.mark.parametrize("form", ["{:.2f}", "{:,.0f}"])
def test_a_column_of_decimal_or_thousands_commas_is_not_two_columns(form, draws, tmp_path):
    cells = [form.format(value) for value in draws.uniform(1000, 9000, 60)]
    if form == "{:.2f}":
        cells = [cell.replace(".", ",") for cell in cells]
    table(tmp_path / "v.csv", cells)
    told = armodels(tmp_path, *TRAIN, "data=table", "data.path=v.csv", "out=new")
    assert "v.csv" in told.error
    assert "comma" in told.error
    assert not (tmp_path / "new").exists()


def test_decimal_commas_between_semicolons(draws, tmp_path):
    rows = [";".join(f"{v:.2f}".replace(".", ",") for v in row) for row in draws.rand(60, 2)]
    table(tmp_path / "v.csv", rows)
    told = armodels(tmp_path, *TRAIN, "data=table", "data.path=v.csv", "out=new")
    if told.code:
        assert "decimal" in told.error
        assert ";" in told.error
    else:  # read as what they are
        assert json.loads((tmp_path / "new/metrics.json").read_text())["num_dims"] == 2


@pytest.mark.parametrize("exponent", [200, -200])
def test_huge_and_tiny_columns_are_standardized_or_named(exponent, tmp_path):
    table(tmp_path / "h.csv", ["a,b", *(f"{i}.5e{exponent},{i * 7 % 11}" for i in range(1, 41))])
    told = armodels(tmp_path, *TRAIN, "data=table", "data.path=h.csv", "out=new")
    if told.code:
        assert "a" in told.error.replace(",", " ").replace("'", " ").split()
        assert "std" not in told.error
    else:
        assert np.isfinite(json.loads((tmp_path / "new/metrics.json").read_text())["test"]["nats"])


def test_a_delimiter_whatever_quoted_lists_hold(tmp_path):
    tags = [f"['{i}', '{i + 1}']" if i % 3 == 0 else f"['{i}']" for i in range(60)]
    rows = [f"{i};{i * 7 % 11}.5;{i * 5 % 13}.25;{tag}" for i, tag in enumerate(tags)]
    table(tmp_path / "s.csv", ["id;x;y;tags", *rows])
    assert columns(tmp_path, "s.csv", "data.drop=[tags]") == 3


def test_arrays_under_another_name_or_of_another_kind(draws, tmp_path):
    rows = draws.randn(60, 2)
    np.savez(tmp_path / "x.npz", X=rows, y=rows[:, 0])
    shutil.copy(tmp_path / "x.npz", tmp_path / "x.npy")
    np.save(tmp_path / "b.npy", rows)
    shutil.copy(tmp_path / "b.npy", tmp_path / "b.npz")
    fields = np.array(
        [(1.5 * i, [i, -i]) for i in range(60)], dtype=[("a", "f8"), ("v", "f8", (2,))]
    )
    np.save(tmp_path / "sub.npy", fields)
    for name in ("x.npy", "b.npz", "sub.npy"):
        told = armodels(tmp_path, *TRAIN, "data=table", f"data.path={name}", f"out=out-{name}")
        assert name in told.error
        assert "Error" not in told.error, told.error
    labels = np.array(["a", "b"] * 30)
    images = draws.randint(0, 256, (60, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "words.npz", images=images, labels=labels)
    told = armodels(tmp_path, *TRAIN, "data=folder", "data.path=words.npz", "data.labels=true",
                    "data.size=[8,8]", "data.root=root", "out=classes")  # fmt: skip
    if told.code:
        assert "words.npz" in told.error
        assert "labels" in told.error
    else:
        assert "0 a, 1 b" in told.out


# Pictures


def test_folders_of_a_zip_of_windows_are_classes(draws, tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for i in range(80):
            packed = io.BytesIO()
            Image.fromarray(draws.randint(0, 256, (8, 8, 3)).astype(np.uint8)).save(packed, "PNG")
            archive.writestr(f"{('cat', 'dog')[i % 2]}\\{i}.png", packed.getvalue())
    told = done(tmp_path, *TRAIN, "data=folder", "data.path=w.zip", "data.labels=true",
                "data.size=[8,8]", "data.root=root")  # fmt: skip
    assert "cat" in told
    assert "dog" in told


def pictures(folder: Path, draws) -> None:
    folder.mkdir()
    for i in range(60):
        pixels = draws.randint(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_corrupt_picture_of_a_name_that_is_no_text(draws, tmp_path):
    pictures(tmp_path / "pictures", draws)
    Path(os.fsdecode(bytes(tmp_path / "pictures") + b"/b\xffd.jpg")).write_bytes(b"no")
    result = armodels(tmp_path, *TRAIN, "data=folder", "data.path=pictures", "data.size=[8,8]",
                      "data.skip_corrupt=true", "data.root=root")  # fmt: skip
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert "\\xffd.jpg" in result.err or "\\udcffd.jpg" in result.err


@pytest.mark.slow
def test_without_a_home(draws, tmp_path):
    """A process of its own, as a user whom nobody knows."""
    pictures(tmp_path / "pictures", draws)
    program = (
        "import os, pwd\n"
        "def nobody(*args): raise KeyError('uid not found')\n"
        "pwd.getpwuid = pwd.getpwnam = nobody\n"
        "os.environ.pop('HOME', None)\n"
        "from armodels.cli import main; main()\n"
    )
    result = process(
        tmp_path, *TRAIN, "data=folder", "data.path=pictures", "data.size=[8,8]",
        launcher=("-c", program), ARMODELS_DATA=str(tmp_path / "root"),
    )  # fmt: skip
    assert result.code == 0, result.err
    assert not (tmp_path / "~").exists()


# Words that are typed


@pytest.mark.parametrize("name", ["2024_11_26", "1e5", "true", "007"])
def test_a_run_lies_where_it_was_told_to(name, tmp_path):
    done(tmp_path, *TINY, f"out={name}")
    assert os.listdir(tmp_path) == [name]


def pasted(folder: Path, told: str, marker: str = "armodels ") -> list[Result]:
    """What the commands that were printed do, split as a shell does."""
    lines = [line.strip() for line in told.splitlines() if line.startswith(f"  {marker}")]
    assert lines, told
    words = [shlex.split(line)[1:] for line in lines]
    return [armodels(folder, *args) for args in words if args[0] != "tensorboard"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1", "my run (2)", "größe, $HOME #[1] it's"])
def test_every_next_command_runs_as_it_stands(name, tmp_path):
    path = name.replace("\\", "\\\\").replace("'", "\\'")
    told = done(tmp_path, *TINY, f"out='{path}'")
    assert (tmp_path / name / "metrics.json").is_file()
    for result in pasted(tmp_path, told):
        assert result.code == 0, result.err


def test_a_run_called_by_a_number(tmp_path):
    done(tmp_path, *TINY, "out=1")
    done(tmp_path, "train", "resume=1", "trainer.max_steps=2")
    done(tmp_path, "compare", "runs=[1]")
    done(tmp_path, "score", "1", "out=5")
    assert (tmp_path / "5").is_file()
    told = armodels(tmp_path, "tensorboard", "logdir=5")
    assert "TypeError" not in told.error


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["wine (1).csv", "wine's.csv", "wine,v2.csv", "wine#1.csv", "wine[1].csv", "größe.csv"]
)
def test_characters_of_paths_are_read_or_quoting_is_told(name, tmp_path):
    table(tmp_path / name, ["a,b", *(f"{i}.5,{i * 7 % 11}" for i in range(40))])
    result = armodels(tmp_path, *TRAIN, "data=table", f"data.path={name}", "out=one")
    quoted = name.replace("'", "\\'")
    if result.code:
        assert "'data.path='" in result.error or "quote" in result.error
    done(tmp_path, *TRAIN, "data=table", f"data.path='{quoted}'", "out=two")


def test_out_of_a_sweep_is_used_or_refused(tmp_path):
    result = armodels(tmp_path, "train", "-m", "seed=1,2", "out=same", *TINY[1:])
    if result.code:
        assert "out" in result.error
        assert os.listdir(tmp_path) == []
    else:
        assert len(list((tmp_path / "same").rglob("metrics.json"))) == 2
        assert os.listdir(tmp_path) == ["same"]


# What is written and printed


def test_json_is_json(tmp_path):
    table(tmp_path / "ten.csv", ["a,b", *(f"{i}.5,{i * 7 % 11}" for i in range(10))])
    told = done(tmp_path, *TRAIN, "data=table", "data.path=ten.csv", "out=ten")
    assert "nan" not in told

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    for path in (tmp_path / "ten").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of one finished run called ``run``."""
    folder = tmp_path_factory.mktemp("run")
    done(folder, *TINY, "out=run")
    return folder


def shell(folder: Path, words: str, **env: str) -> subprocess.CompletedProcess:
    """A line of bash in which ``armodels`` is this program."""
    source = f'armodels() {{ {shlex.quote(sys.executable)} -m armodels "$@"; }}\n{words}'
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **env}
    return subprocess.run(
        ["bash", "-c", source], cwd=folder, env=env, capture_output=True, timeout=100, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "env",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_terminal_that_cannot_say_plus_minus(env, run):
    result = shell(run, "armodels compare run && armodels compare run --markdown out=c.md", **env)
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr
    assert b"independent" in result.stdout
    assert "±" in (run / "c.md").read_text(encoding="utf-8")


def test_output_that_cannot_be_written_is_told(run):
    result = shell(run, "armodels compare run > /dev/full")
    assert result.returncode != 0
    assert result.stderr.startswith(b"armodels: error: ")
    assert result.stderr.count(b"\n") == 1


def test_a_reader_that_leaves_is_no_matter(tmp_path):
    for words in ("list", "--help"):
        result = shell(tmp_path, f"armodels {words} | true", PYTHONUNBUFFERED="1")
        assert result.stderr == b"", words


def test_a_folder_that_is_gone(tmp_path):
    result = shell(tmp_path, "mkdir gone; cd gone; rmdir ../gone; armodels list")
    if result.returncode:
        assert result.stderr.startswith(b"armodels: error: ")
    assert b"Traceback" not in result.stderr


def test_a_rank_left_in_the_environment(tmp_path):
    assert "made" in done(tmp_path, "list", RANK="1")


def test_one_process_within_an_allocation_of_several_tasks(tmp_path):
    slurm = {"NTASKS": "4", "JOB_NAME": "job", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0",
             "NODEID": "0", "NODELIST": "localhost"}  # fmt: skip
    result = armodels(tmp_path, *TINY, "out=new", **{f"SLURM_{k}": v for k, v in slurm.items()})
    if result.code:
        assert "one process" in result.error
    else:
        assert (tmp_path / "new/metrics.json").is_file()
