"""Names and words typed are taken as typed, or refused in the sentence that a beginner needs."""

import inspect
import itertools
import os
import random
import re
import shlex
import subprocess
import types
import typing
from pathlib import Path

import hydra.utils
import pytest
import yaml
from command import CONFIGS, QUICK, TINY, armodels, done, snapshot
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from armodels import cli, show, typed

NAMES = ["2024_11_26", "1e5", "true", "1", "wine's.csv", "wine,v2.csv", "wine[1].csv", "w#1.csv",
         "größe.csv", "a=b.csv", "my run (2)", "a'b\"c", "x{1}", "C:\\x\\y", "[1]", "a\\",
         "~x", "null.csv", "None", "$x", "a;b", "'q", "+1", "a: b", "a\tb", "{a}",
         "!x"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds one finished run called ``run``, and an empty folder."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "empty").mkdir()
    done(folder, "train", *TINY, "trainer.max_steps=1", "out=run")
    return folder


def value(word: str) -> object:
    """What Hydra and OmegaConf make of an override."""
    parsed = OverridesParser.create().parse_override(word).value()
    return OmegaConf.to_container(OmegaConf.create({"x": parsed}), resolve=True)["x"]


def translate(*args: str, verb: str = "train", **options) -> list[str]:
    return typed.translate(args, verb=verb, **options)


# As typed


def test_a_name_is_the_text_that_was_typed():
    draw = random.Random(0)
    signs = "ab1 '\"[](),:#é~!?|*&;<>-_.%@+/=\\"
    drawn = ["".join(draw.choices(signs, k=draw.randint(1, 8))).strip() for _ in range(500)]
    for name in NAMES + [name for name in drawn if name]:
        if typed._QUOTED.fullmatch(name) or all(map(typed._QUOTED.fullmatch, typed._split(name))):
            continue  # already quoted
        (word,) = translate(f"out={name}")
        assert value(word) == name
        bare = f"./{name}" if name[0] in "-~" or "=" in name.split("/")[0] else name
        assert value(translate(bare, verb="eval", path_key="run")[0]) == bare


def test_what_is_quoted_null_or_a_reference_stays():
    for word in ("out='a b'", 'out="a b"', "out=null", "out='1'"):
        assert translate(word) == [word]
        assert translate("-m", word) == ["-m", word]
    (word,) = translate("data.path=${oc.env:HOME}/my data")
    parsed = OverridesParser.create().parse_override(word).value()
    config = OmegaConf.create({"x": parsed})
    assert config.x == f"{os.environ['HOME']}/my data"
    assert value(translate("trainer.max_steps=3")[0]) == 3
    assert value(translate("model.hidden_sizes=[3,4]")[0]) == [3, 4]


def test_lists_of_names_are_names_and_places_of_columns_numbers():
    assert value(translate("runs=[1,1e5, a b,größe]")[0]) == ["1", "1e5", "a b", "größe"]
    assert value(translate("runs=1")[0]) == "1"
    assert value(translate("data.drop=[1,1e5,'x,y',residual sugar,true]")[0]) == [
        1, "1e5", "x,y", "residual sugar", "true"
    ]  # fmt: skip
    assert value(translate("known=0")[0]) == 0
    assert value(translate("data.columns=[]")[0]) == []
    runs = translate("1", "a b", verb="compare", path_key="runs", many=True)
    assert value(runs[0]) == ["1", "a b"]


def swept(word: str) -> list[object]:
    parsed = OverridesParser.create().parse_override(word)
    assert parsed.is_sweep_override()
    return [value(f"x={one}") for one in parsed.sweep_string_iterator()]


def test_commas_separate_the_choices_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert swept(translate("-m", "out=1,2024_11_26,größe")[1]) == ["1", "2024_11_26", "größe"]
    assert swept(translate("-m", "data.path='a,b',c(1).csv")[1]) == ["a,b", "c(1).csv"]
    assert value(translate("-m", "out=wine's.csv")[1]) == "wine's.csv"
    assert translate("-m", "data.name=choice(a,b)")[1] == "data.name=choice(a,b)"
    (tmp_path / "wine,v2.csv").touch()
    for name in ("wine,v2.csv", "wine[1,2].csv", "a'b,c", "a,,b"):
        with pytest.raises(ValueError, match="may be one name, or several to sweep over") as error:
            translate("-m", f"data.path={name}")
        one, several = re.findall(r" as (.*?)(?:, or each|$)", str(error.value))
        assert value(*shlex.split(one)) == name
        if "'" not in name:
            assert len(swept(*shlex.split(several))) > 1


def is_text(hint: object) -> bool:
    """Whether a value of this annotation can be nothing but one text."""
    # Python 3.10 makes typing.Optional of an argument that is None by default.
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    inner = typing.get_args(hint) if union else (hint,)
    return {*inner} - {types.NoneType} <= {str, Path, os.PathLike}


def is_choice(hint: object) -> bool:
    """Whether a value of this annotation is one of some texts."""
    return all(isinstance(one, str) for one in typing.get_args(hint) or (None,))


CHOICES = {"model": {"order", "activation", "connectivity", "encoding", "covariance_type"}}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/*.yaml")), ids=lambda path: path.stem)
def test_every_key_of_a_config_that_takes_any_text_is_known_as_text(path):
    """Its constructor's annotation says so, and its comment names no choices."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "_target_" not in config:
        return
    target = hydra.utils.get_object(config.pop("_target_"))
    if not target.__module__.startswith("armodels."):
        return
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for key in config:
        if key in typed.TEXT:
            assert is_text(hints[key]) or is_choice(hints[key]), f"{key} is not text alone"
        elif key in hints and is_text(hints[key]):
            comment = re.search(rf"^{key}:[^#]*#(.*)$", path.read_text(encoding="utf-8"), re.M)
            assert config[key] is not None, key
            assert " | " in comment.group(1) or " (" in comment.group(1), key


NUMBERS = {"label", "num_orders", "num_particles", "batch_size", "impute", "num_examples"}
NUMBERS |= {"block", "draft_steps", "temperatures", "film", "coverage"}
NUMBERS |= {"num_completions", "top_k", "top_p", "length"}  # or seconds, such as 2s


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_key_of_a_verb_without_a_value_is_known_as_text_or_as_a_number(verb):
    config = yaml.safe_load((CONFIGS / f"{verb}.yaml").read_text(encoding="utf-8"))
    sections = [config, *(v for k, v in config.items() if isinstance(v, dict) and k != "hydra")]
    for key, given in itertools.chain.from_iterable(map(dict.items, sections)):
        if given is None or given == "???":
            assert key in typed.TEXT | typed.LISTS | NUMBERS, key
        if isinstance(given, list) and key != "defaults":
            assert key in typed.LISTS, key


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["2024_11_26", "1e5", "true", "1", "my run (2)", "x[1],y", "größe's"]
)
def test_what_train_prints_runs_as_pasted(name, tmp_path):
    """By bash, in a process; ``train`` and every verb that it names."""
    told = done(tmp_path, "train", *TINY, "trainer.max_steps=1", f"out={name}")
    assert (tmp_path / name / "metrics.json").is_file()
    lines = [line.strip() for line in told.partition("Next:\n")[2].splitlines()]
    assert len(lines) >= 4
    for line in lines:
        script = f"armodels() {{ printf '%s\\0' \"$@\"; }}; {line}"
        typed_words = subprocess.run(
            ["bash", "-c", script], capture_output=True, check=True
        ).stdout.decode()
        verb, *args = typed_words.split("\0")[:-1]
        if verb != "tensorboard":
            result = armodels(tmp_path, verb, *args)
            assert result.code == 0 or "no image" in result.err, result.err
        else:
            (logdir,) = translate(*args, verb=verb, path_key="logdir")
            assert value(logdir) == name


COLUMNS = ["a b", "größe", "1e5", "1", "true", "null", "x,y", "it's", 'a"b', "[a]", "{b}", "a=b",
           "a:b", "$x", "a\\", "${x}", "-1", "(x)", "2024_11_26", "a;b", "a`b", "x#y"]  # fmt: skip


def test_advice_about_columns_runs_as_pasted():
    for names in [[name] for name in COLUMNS] + [COLUMNS]:
        script = f"printf '%s\\0' {show.override('data.drop', names)}"
        words = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
        (word,) = words.decode().split("\0")[:-1]
        assert value(*translate(word)) == names


@pytest.mark.slow
def test_a_file_of_any_name_is_read(tmp_path):
    rows = "a,b\n" + "".join(f"{i}.5,{i * 7 % 11}\n" for i in range(40))
    for name in ("größe.csv", "wine's.csv", "wine,v2.csv", "w#1.csv", "wine[1].csv", "w (1).csv",
                 "a=b.csv"):  # fmt: skip
        (tmp_path / name).write_text(rows)
        told = done(tmp_path, "train", "data=table", f"data.path={name}", "model=independent",
                    *QUICK)  # fmt: skip
        assert "Next:" in told
    told = done(tmp_path, "eval", *sorted(map(str, (tmp_path / "outputs/table").glob("*/*")))[:1])
    assert "nats" in told


# Sentences

SENTENCES = {
    "blanks around =": (["train", "trainer.max_epochs", "=", "3"], "write trainer.max_epochs=3"),
    "blanks in one word": (
        ["train", "trainer.max_epochs = 3"],
        "write trainer.max_epochs=3 without",
    ),
    "blank before =": (
        ["train", "trainer.max_epochs", "=3"],
        "write trainer.max_epochs=3 without",
    ),
    "blank after =": (["train", "trainer.max_epochs=", "3"], "write trainer.max_epochs=3 without"),
    "= alone": (["train", "="], "'' is no key"),
    "list cut at a blank": (
        ["train", "model.hidden_sizes=[500,", "500]"],
        "write model.hidden_sizes=[500,500] without blanks, or quote it for the shell: "
        "'model.hidden_sizes=[500, 500]'",
    ),
    "list never closed": (
        ["train", "model.hidden_sizes=[500"],
        "such as model.hidden_sizes=[500]",
    ),
    "list never opened": (
        ["train", "model.hidden_sizes=500]"],
        "model.hidden_sizes=500] cannot be",
    ),
    "list with holes": (["train", "model.hidden_sizes=[5,,5]"], "a list is written"),
    "no value": (["train", "trainer.max_steps="], "trainer.max_steps= has no value"),
    "no value of a path": (["eval", "run="], "run= has no value; write run=VALUE"),
    "last part of a key": (["train", "lr=0.1"], "did you mean optimizer.lr?"),
    "top level accelerator": (["train", "accelerator=gpu"], "did you mean trainer.accelerator?"),
    "top level epochs": (["train", "epochs=3"], "did you mean trainer.max_epochs?"),
    "learning_rate": (["train", "learning_rate=3"], "did you mean optimizer.lr?"),
    "batch size": (["train", "batch_size=3"], "did you mean trainer.batch_size?"),
    "flag for a key": (["train", "--epochs", "10"], "such as trainer.max_epochs=10"),
    "flag with =": (["train", "--lr=0.1"], "such as optimizer.lr=0.1"),
    "flag of a group": (["train", "--model", "nade"], "such as model=nade"),
    "flag with a hyphen": (["train", "--batch-size", "5"], "such as trainer.batch_size=5"),
    "dotted flag": (["train", "--data.path=x.csv"], "such as data.path=x.csv"),
    "flag of nothing": (["train", "--xyzzy"], "--xyzzy is no flag of armodels"),
    "misspelt flag": (["train", "--multi-run"], "did you mean --multirun?"),
    "short flag": (["eval", "run", "-x"], "-x is no flag of armodels"),
    "flag without its value": (["train", "--cfg"], "--cfg needs a value, such as --cfg job"),
    "bad value of a flag": (["train", "--cfg", "xyz"], "--cfg is 'xyz'; choose job, hydra or all"),
    "sweeper": (
        ["train", "-m", "hydra/sweeper=optuna", "seed=1,2"],
        "pip install hydra-optuna-sweeper",
    ),
    "launcher": (["train", "-m", "hydra/launcher=slurmm"], "slurmm is unknown; choose from basic"),
    "no GPU": (["train", *TINY[:3], "trainer.accelerator=gpu"], "trainer.accelerator is 'gpu'"),
    "no CUDA": (["train", *TINY[:3], "trainer.accelerator=mps"], "use trainer.accelerator=cpu"),
    "device": (
        ["eval", "run", "device=mps"],
        "device=mps: torch finds no such device here; use device=cpu",
    ),
    "no device": (["eval", "run", "device=gpu"], "device is 'gpu'; choose auto, cpu, cuda or mps"),
    "checkpoint by another key": (["sample", "m=x.pt"], "did you mean run=x.pt?"),
    "port": (["tensorboard", "run", "port=-1"], "port is -1; it must be from 0 to 65535"),
    "port as text": (
        ["tensorboard", "run", "port=http"],
        "port is 'http'; it must be a whole number",
    ),
    "no logdir": (["tensorboard", "nothing"], "logdir nothing does not exist"),
    "a choice without its group": (["train", "nade"], "did you mean model=nade?"),
    "data without its group": (["train", "mnist"], "did you mean data=mnist?"),
    "a run without its key": (["train", "run"], "did you mean resume=run?"),
    "a group to list": (["list", "model"], "did you mean group=model?"),
    "a stray word": (["train", "xyzzy"], "'xyzzy' is no key=value; see armodels train --help"),
    "a path cut at a blank": (
        ["train", "data=table", "data.path=my", "file.csv"],
        "quoted for the shell: data.path=\"'my file.csv'\"",
    ),
    "two paths": (["eval", "my", "run"], "armodels eval takes one path, got my run"),
    "a bare path and a key": (["eval", "run=my", "run"], "a path with blanks is quoted: 'my run'"),
    "umlaut in a key": (["train", "größe=3"], "'größe' is no key"),
    "blank in a key": (["train", "max epochs=3"], "did you mean trainer.max_epochs=3?"),
    "signs in a number": (
        ["train", "seed=(1)"],
        "seed=(1) cannot be read; text with such signs is",
    ),
    "quote not closed": (["train", "model.order='raster"], "cannot be read; text with such signs"),
    "resume and out": (["train", "resume=run", "out=x"], "leave out=x away"),
    "sweep without -m": (["train", "out='a','b'"], "is a sweep, which needs -m"),
    "one or several": (["train", "-m", "data.path=a[1,2].csv"], "may be one name, or several"),
    "interpolation of nothing": (["train", "out=${xyzzy}"], "xyzzy"),
    "percent": (["train", "trainer.max_steps=50%"], "trainer.max_steps is '50%'"),
    "comma for a point": (["train", "optimizer.lr=0,1"], "is a sweep, which needs -m"),
    "a delimiter of keys": (["train", "model.hidden_sizes:[5]"], "is no key=value"),
    "a verb after the verb": (["train", "eval"], "'eval' is no key=value"),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_a_beginner_gets_one_sentence(name, folder):
    args, told = SENTENCES[name]
    before = snapshot(folder)
    result = armodels(folder, *args)
    assert result.code in (1, 2)
    assert told in result.error
    for word in ("Lexer", "mismatched", "extraneous", "no viable", "hydra.cc", "hydra._"):
        assert word not in result.err
    assert snapshot(folder) == before
