"""What is exported comes back bit for bit, says what it is, and is data, never code."""

import hashlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from cases import BITS, CASES
from command import CONFIGS, QUICK, armodels, done, snapshot
from hydra.errors import InstantiationException
from safetensors.torch import load_file, save_file

import armodels as package
from armodels import card, disk, exported, licences
from armodels.checkpoints import load_checkpoint, load_model, orders_of
from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks.nade import NADE
from armodels.run import RunDirectory

DIGITS = (*QUICK, "data=digits", "data.levels=2", "trainer.max_steps=2", "trainer.batch_size=8")
TEXT = (*QUICK, "data=text", "data.path=book.txt", "data.length=8", "trainer.max_steps=2")
RUNS = {
    "ema": (*DIGITS, "model.hidden_sizes=[4]", "trainer.ema=0.5"),
    "double": (*DIGITS, "model=nade", "model.hidden_size=4", "trainer.precision=64-true",
               "trainer.ema=0.9"),
    "context": (*DIGITS, "model=nade", "model.hidden_size=4", "model.context=label"),
    "orders": (*DIGITS, "model.hidden_sizes=[4]", "model.order=random", "model.num_orders=3"),
    "gmm": (*QUICK, "data=toy", "data.name=rings", "data.num_train=90", "data.num_valid=20",
            "data.num_test=20", "model=gmm", "model.num_components=3"),
    "table": (*QUICK, "data=table", "data.path=mine.csv", "model.hidden_sizes=[4]",
              "trainer.max_steps=2"),
    "pixelcnn": (*DIGITS, "model=pixelcnn", "model.num_channels=2", "model.num_layers=2"),
    "pixelcnn_pp": (*DIGITS, "model=pixelcnn_pp", "model.num_channels=2", "model.num_resnets=1",
                    "model.num_stages=1"),
    "deep_nade": (*DIGITS, "model=deep_nade", "model.hidden_sizes=[4,4]"),
    "select": (*DIGITS, "model.hidden_sizes=[4]", "trainer.select={model.hidden_sizes:[[3],[5]]}"),
    "ngram": (*TEXT, "model=ngram", "model.n=3"),
    "rnn": (*TEXT, "model=rnn", "model.hidden_size=4"),
    "blend": (*TEXT, "model=blend", "model.runs=[ngram,rnn]", "model.weights=gate"),
}  # fmt: skip


def train(folder: Path, name: str) -> Path:
    """A run, with those that it is made of."""
    if not (folder / "book.txt").exists():
        words = "to be or not to be that is the question whether it is nobler in the mind "
        (folder / "book.txt").write_text(20 * words)
        rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) * 7 + 3
        lines = [",".join(f"{value:.4f}" for value in row) for row in rows.tolist()]
        (folder / "mine.csv").write_text("\n".join(["a,b,c", *lines]))
    for one in ("ngram", "rnn") if name == "blend" else ():
        train(folder, one)
    if not (folder / name).exists():
        done(folder, "train", *RUNS[name], f"out={name}")
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the run ``ema`` and, exported, the folder ``out``."""
    folder = tmp_path_factory.mktemp("export")
    train(folder, "ema")
    done(folder, "export", "ema", "out=out")
    return folder


def events(model, n=9):
    """Samples of a model, and what it was given for them."""
    wanted, context = model.context, None
    if wanted is not None:
        context = torch.arange(n) % wanted.num_features
    generator = torch.Generator().manual_seed(1)
    return model.sample(n, context=context, generator=generator), context


def require_the_same(model, other):
    """Bit for bit: weights, their types, and what they say of events."""
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, one in ours.items():
        assert one.dtype == theirs[name].dtype, name
        assert one.shape == theirs[name].shape, name
        assert torch.equal(one, theirs[name]), name
    x, context = events(model)
    args = (x,) if context is None else (x, context)
    assert torch.equal(model.log_prob(*args), other.log_prob(*args))


# Bit for bit


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_model_comes_back_from_its_tensors(case, tmp_path):
    """As a run of ``fit``: the weights are put into a model that is made."""
    # Gradients take another way through an LSTM.
    model, other = (case.build(0).requires_grad_(False) for _ in range(2))
    with torch.no_grad():
        for one in other.state_dict().values():
            one.zero_()
    config = {"seed": 0, "data": {}, "model": {}, "orders": orders_of(model)}
    about = {"weights": "raw", "checkpoint": "best", "step": 3, "config": config}
    about["spec"] = case.spec.to_dict()
    exported.write(tmp_path / "out", model.state_dict(), about, "card")
    loaded = load_model(tmp_path / "out", model=other)
    assert loaded is other
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, one in model.state_dict().items():
        assert torch.equal(one, other.state_dict()[name]), name
    x = case.events(7)
    assert torch.equal(model.log_prob(x), other.log_prob(x))
    if floats := {t.dtype for t in model.state_dict().values() if t.is_floating_point()}:
        assert floats == {t.dtype for t in load_file(tmp_path / "out/model.safetensors").values()
                          if t.is_floating_point()}  # fmt: skip


def test_an_exported_model_has_no_curves_to_compare(folder, tmp_path):
    told = "is an exported model, without a run's curves; name the run, or see the numbers in "
    assert armodels(folder, "compare", "out").error == f"out {told}out/README.md"
    beside = armodels(folder, "compare", "ema", "out", str(tmp_path), "--csv")
    assert beside.code == 0
    assert beside.out == done(folder, "compare", "ema", "--csv")
    assert f"warning: out {told}out/README.md\n" in beside.err
    assert f"warning: no run in {tmp_path}; train something first\n" in beside.err


def test_a_folder_is_the_run(folder):
    require_the_same(load_model(folder / "ema"), load_model(folder / "out"))
    for one in ("ema", "out"):
        done(folder, "eval", one, "device=cpu", f"out={one}.json")
    ours, theirs = (json.loads((folder / f"{one}.json").read_text()) for one in ("ema", "out"))
    assert ours["nats"] == theirs["nats"]
    assert ours["weights"] == theirs["weights"] == "ema"


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_back_from_what_was_exported(name, tmp_path):
    run = train(tmp_path, name)
    done(tmp_path, "export", name, "out=out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    shutil.move(run, tmp_path / "elsewhere")  # nothing of the run is read again
    model, other = load_model(tmp_path / "elsewhere"), load_model(tmp_path / "out")
    require_the_same(model, other)
    # The commands say the same of it.
    for verb in ("eval", "score"):
        ends = {"eval": ("json", '"nats"'), "score": ("csv", "nats")}[verb]
        for one in ("elsewhere", "out"):
            done(tmp_path, verb, one, "device=cpu", f"out={one}-{verb}.{ends[0]}")
    numbers = [
        json.loads((tmp_path / f"{one}-eval.json").read_text()) for one in ("elsewhere", "out")
    ]
    assert numbers[0]["nats"] == numbers[1]["nats"]
    assert numbers[0]["weights"] == numbers[1]["weights"]
    tables = [(tmp_path / f"{one}-score.csv").read_text() for one in ("elsewhere", "out")]
    assert tables[0] == tables[1]
    metrics = RunDirectory(tmp_path / "elsewhere").read_metrics()
    assert numbers[1]["nats"] == metrics["test"]["nats"]
    reads = name in ("ngram", "rnn", "blend")
    known = ("prompt=to be", "length=9") if reads else ("keep=0.5", "num=2")
    for verb, more in (("sample", ("num=2",)), ("complete", known)):
        for one in ("elsewhere", "out"):
            done(tmp_path, verb, one, *more, "device=cpu", f"out={one}-{verb}")
        assert snapshot(tmp_path / f"elsewhere-{verb}") == snapshot(tmp_path / f"out-{verb}")


def test_shared_memory_views_and_types_come_back(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "a": base, "tied": base, "row": base[1], "columns": base.t(), "every_other": base[:, ::2],
        "wide": torch.tensor([7.0]).expand(3), "empty": torch.empty(0, 2),
        "scalar": torch.tensor(3.5, dtype=torch.double), "flag": torch.tensor([True, False]),
        "count": torch.tensor([2**40]), "level": torch.tensor([255], dtype=torch.uint8),
    }  # fmt: skip
    about = {"weights": "raw", "checkpoint": "best", "step": 0, "config": {}, "spec": {}}
    exported.write(tmp_path / "out", tensors, about, "card")
    found = exported.read(tmp_path / "out/model.safetensors")["model"]
    assert found.keys() == tensors.keys()
    for name, one in tensors.items():
        assert one.dtype == found[name].dtype
        assert torch.equal(one, found[name]), name


def test_raw_and_last_weights_are_exported_where_asked_for(folder, tmp_path):
    out = tmp_path / "out"
    done(folder, "export", "ema", f"out={out}", "eval.weights=raw", "checkpoint=last")
    require_the_same(load_model(folder / "ema", weights="raw", checkpoint="last"), load_model(out))
    assert "None: the run has no numbers of these very weights" in (out / "README.md").read_text()
    load_model(out, checkpoint="last", weights="raw")
    done(folder, "export", "ema", f"out={tmp_path}/raw", "eval.weights=raw")
    require_the_same(load_model(folder / "ema", weights="raw"), load_model(tmp_path / "raw"))
    assert "These are its raw weights" in (tmp_path / "raw/README.md").read_text()
    assert "None: the run has no numbers" in (tmp_path / "raw/README.md").read_text()
    # Those of the fixture are averages alone.
    error = armodels(folder, "eval", "out", "eval.weights=raw").error
    assert (
        error == "out/model.safetensors holds averaged weights alone; leave eval.weights=raw away"
    )
    error = armodels(folder, "eval", "out", "checkpoint=last").error
    assert "holds the best weights alone; leave checkpoint=last away" in error


def test_a_run_of_fit_is_exported_for_a_model_that_is_made(tmp_path):
    model = AutoregressiveModel.of(NADE, BITS, hidden_size=2)
    splits = package.Splits(BITS, *(torch.randint(2, (9, 6)).to(BITS.dtype) for _ in range(3)))
    settings = package.Settings(max_steps=2, log_every=1, progress=False, ema=0.5)
    package.fit(model, splits, settings, directory=tmp_path / "run", quiet=True)
    done(tmp_path, "export", "run", "out=out")
    other = AutoregressiveModel.of(NADE, BITS, hidden_size=2)
    require_the_same(model, load_model(tmp_path / "out", model=other))
    with pytest.raises(ValueError, match="does not say how its model is built"):
        load_model(tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "Trained in Python, by `armodels.fit`." in text
    assert "model = armodels.load_model('out', model=model)" in text
    assert "Licence of the data: the user's own." in text


# The card


def blocks(text: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)\n```$", text, re.M | re.S)
    return [block for kind, block in found if kind == language]


def test_the_card_says_what_the_run_says(folder):
    text = (folder / "out/README.md").read_text()
    _, front, rest = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "armodels",
        "license": "unknown",
        "tags": ["autoregressive", "density-estimation", "image"],
    }
    metrics = RunDirectory(folder / "ema").read_metrics()
    for split, size in (("valid", "250"), ("test", "250")):
        one = metrics[split]
        nats = f"{one['nats']:.4f} ± {one['nats_ci95']:.4f}"
        bits = f"{one['bits_per_dim']:.4f} ± {one['bits_per_dim_ci95']:.4f}"
        assert f"| {split} | {size} | {nats} | {bits} |" in rest
    assert "| train | 1,297 |  |  |" in rest
    assert metrics["splits"] == {"train": 1297, "valid": 250, "test": 250}
    assert (
        "# made on digits-binary\n\nMADE with bernoulli head, of images 1x8x8 of 2 levels." in rest
    )
    assert "These are its averaged weights after 2 steps." in rest
    assert "Measure: probability, exact probabilities of whole events." in rest
    assert "- seed: 0\n" in rest
    assert f"- torch: {torch.__version__}\n" in rest
    assert "Licence of the data: CC BY 4.0." in rest


@pytest.mark.slow
def test_what_the_card_says_runs_as_pasted(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    command, *verbs = (line for block in blocks(text) for line in block.splitlines())
    words = shlex.split(command)
    assert words[:2] == ["armodels", "train"]
    assert not [one for one in words if one.startswith(("out=", "resume="))]
    done(tmp_path, *words[1:])
    (again,) = (tmp_path / "outputs").rglob("metrics.json")
    metrics = RunDirectory(folder / "ema").read_metrics()
    assert json.loads(again.read_text())["test"] == metrics["test"]
    assert [shlex.split(one)[1] for one in verbs] == ["sample", "eval"]
    for one in verbs:
        done(tmp_path, *shlex.split(one)[1:])
    (code,) = blocks(text, "python")
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        exec(code, {})
    finally:
        os.chdir(here)


@pytest.mark.slow
def test_the_card_of_a_run_that_went_on_under_other_values_has_each_command(tmp_path):
    done(tmp_path, "train", *QUICK, "data=digits", "model.hidden_sizes=[9]",
         "trainer.max_epochs=1", "out=run")  # fmt: skip
    done(tmp_path, "train", "resume=run", "trainer.max_epochs=2", "trainer.log_every=5")
    done(tmp_path, "export", "run", "out=out")
    text = (tmp_path / "out/README.md").read_text()
    assert "no single command gives its numbers" in text
    commands = [line for block in blocks(text) for line in block.splitlines()][:2]
    for one in commands:
        done(tmp_path, *shlex.split(one)[1:])
    runs = (RunDirectory(tmp_path / name).read_metrics() for name in ("run", "again"))
    first, second = (one["test"]["nats"] for one in runs)
    assert first == second
    # Who may read the card may read the weights, and what lacks is named.
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1
    (tmp_path / "out/model.safetensors").unlink()
    told = armodels(tmp_path, "eval", "out").error
    assert (
        told == "out/model.safetensors is missing; export the run again, or fetch the folder anew"
    )


def about(**changes) -> card.About:
    facts = {
        "name": "made", "description": "MADE", "config": {}, "spec": BITS, "weights": "raw",
        "step": 1, "metrics": None, "commands": ["armodels train"], "folder": "out",
        "context": None, "trust": {},
    }  # fmt: skip
    return card.About(**facts | changes)


def test_a_strangers_words_mark_nothing_up():
    evil = "x\n# Title\n<script>|`[a](b)`\x1b[2J"
    metrics = {"warning": evil, "measure": evil, "environment": {evil: evil}, "seconds": evil,
               "test": {"nats": evil, "nats_ci95": True}, "splits": {"train": evil}}  # fmt: skip
    text = card.card(about(name=evil, description=evil, metrics=metrics, context=evil))
    assert "\n# Title" not in text
    assert "\x1b" not in text
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "| test | not known | not known ± not known |" in text
    assert len(re.findall("^# ", text, re.M)) == 1


def test_all_shipped_data_have_a_licence():
    for path in (CONFIGS / "data").glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        name = config["_target_"].rpartition(".")[2]
        assert name in licences.SOURCES, path
        own = path.stem in ("audio", "folder", "table")
        assert (licences.licence_of(config) == licences.OWN) == own, path
    for data in (
        {},
        {"_target_": "mine.MNIST"},
        {"_target_": "armodels.data.text.Text", "path": "book.txt"},
        {"_target_": "armodels.data.music.Music", "path": "tunes"},
        {"_target_": "armodels.data.tables.BinaryUCI", "name": "mine"},
    ):
        assert licences.licence_of(data) == licences.OWN


# Whole, or not at all


def test_places_that_cannot_be_are_refused_before_any_work(folder, monkeypatch):
    monkeypatch.setattr("armodels.checkpoints.load_checkpoint", None)
    before = snapshot(folder)
    for words, message in {
        ("out=ema",): "out is ema, which exists and is not empty; name another folder",
        ("out=ema/config.yaml",): "out is ema/config.yaml, which is no folder",
        (): "out=... is missing",
        ("out=new", "eval.weights=best"): "eval.weights is 'best'; choose ema or raw",
    }.items():
        assert message in armodels(folder, "export", "ema", *words).error
    for run, message in {"no": "run no does not exist", "out": "out is exported already"}.items():
        assert message in armodels(folder, "export", run, "out=new").error
    assert snapshot(folder) == before


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"x" * 1000)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exported, "save_file", full)
    error = armodels(tmp_path, "export", f"{folder}/ema", "out=a/b/out").error
    assert "a/b/out could not be written: the disk is full or limited" in error
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_leftovers_go(folder, tmp_path):
    (tmp_path / "out").mkdir()
    dead = 2**31 - 2
    left = tmp_path / f".out.{dead}.part"
    left.mkdir()
    (left / "model.safetensors").write_text("half")
    done(tmp_path, "export", f"{folder}/ema", "out=out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    require_the_same(load_model(folder / "ema"), load_model(tmp_path / "out"))


@pytest.mark.slow
def test_places_of_this_machine_are_said_and_others_not_kept(tmp_path):
    train(tmp_path, "table")
    told = done(tmp_path, "export", "table", "out=out")
    assert f"config.json names {tmp_path}/mine.csv; so will who publishes it" in told
    config = json.loads((tmp_path / "out/config.json").read_text())["config"]
    assert not {"directory", "out", "resume", "trust", "logger"} & config.keys()


# A stranger's folder is data


@pytest.fixture
def strange(folder, tmp_path):
    """A copy of what was exported."""
    shutil.copytree(folder / "out", tmp_path / "out")
    return tmp_path / "out"


def reseal(folder: Path, change) -> None:
    """Change what config.json says, and make its checksums good again."""
    content = json.loads((folder / "config.json").read_text())
    del content["sha256"]
    change(content)
    text = json.dumps(content, sort_keys=True)
    weights = (folder / "model.safetensors").read_bytes()
    content["sha256"] = {
        "model.safetensors": hashlib.sha256(weights).hexdigest(),
        "config.json": hashlib.sha256(text.encode()).hexdigest(),
    }
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_damage_is_one_sentence_or_harmless(name, strange):
    model = load_model(strange)
    x, _ = events(model)
    expected = model.log_prob(x)
    good = (strange / name).read_bytes()
    places = range(0, len(good), max(1, len(good) // 40))
    for at in places:
        flipped = bytearray(good)
        flipped[at] ^= 4
        for content in (bytes(flipped), good[:at]):
            (strange / name).write_bytes(content)
            told = None
            try:
                found = load_model(strange).log_prob(x)
            except (ValueError, FileNotFoundError) as error:
                told = str(error)
            if told is None:  # a blank of the JSON
                assert name == "config.json"
                assert torch.equal(found, expected)
            else:
                assert str(strange) in told
                assert "\n" not in told
    (strange / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError)):
        load_model(strange)


@pytest.mark.parametrize("part", ["model", pytest.param("head", marks=pytest.mark.slow)])
def test_code_that_a_folder_names_does_not_run(part, strange):
    (strange.parent / "evilmod.py").write_text(f"open({str(strange.parent / 'trace')!r}, 'w')\n")
    for target in ("evilmod.X", "os.system", "torch.load"):
        trap = {"_target_": target}
        reseal(strange, lambda content, trap=trap: content["config"].update({part: trap}))
        error = armodels(strange.parent, "eval", "out", "trust=null").error
        assert error.startswith("out/model.safetensors is refused: it names the class") or (
            "whose code would run" in error
        )
    assert not (strange.parent / "trace").exists()


def test_what_a_folder_states_is_not_believed(strange):
    def change(**values):
        return lambda content: content.update(values)

    good = snapshot(strange)
    lies = {
        "format": (change(format=2), "has format 2"),
        "config": (change(config=[]), "is not a checkpoint of armodels"),
        "spec": (change(spec={"shape": [1]}), "its spec is wrong"),
        "step": (change(step="x"), "is not a checkpoint of armodels"),
        "weights": (change(weights=["x"]), "its weights are"),
        "size": (
            lambda content: content["config"]["model"].update(hidden_sizes=[100_000, 100_000]),
            "is refused",
        ),
        "reference": (
            lambda content: content["config"].update(name="${oc.env:HOME}"),
            "is to be replaced",
        ),
    }
    for lie, message in lies.values():
        reseal(strange, lie)
        with pytest.raises((ValueError, InstantiationException)) as error:
            load_model(strange)
        assert re.search(message, f"{error.value} {error.value.__cause__}")
        for name, content in good.items():
            (strange / name).write_bytes(content)
    # What a config says of an average is none.
    name = next(iter(load_file(strange / "model.safetensors")))
    reseal(strange, change(ema={name: 1}, model={name: 1}))
    load_model(strange)


def test_tensors_that_no_model_has_are_refused(strange):
    tensors = load_file(strange / "model.safetensors")
    name = next(iter(tensors))
    for wrong, message in (
        ({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, "has tensors of"),
        ({**tensors, "more": tensors[name].clone()}, "does not fit the model"),
        ({one: t for one, t in tensors.items() if one != name}, "does not fit the model"),
        ({**tensors, name: torch.zeros(1)}, "does not fit the model"),
    ):
        save_file(wrong, strange / "model.safetensors")
        reseal(strange, lambda content: None)
        with pytest.raises(ValueError, match=message):
            load_model(strange)


def test_config_json_is_plain(strange):
    content = json.loads((strange / "config.json").read_text())
    assert content["format"] == exported.FORMAT
    assert content["weights"] == "ema"
    state = load_checkpoint(strange / "model.safetensors")
    assert state["spec"]["name"] == "digits-binary"
    for value in (float("nan"), {1, 2}, object()):
        with pytest.raises(ValueError, match="none that JSON can hold"):
            exported.write(strange.parent / "new", {}, {"config": {"x": value}}, "")
    with pytest.raises(ValueError, match="its keys are no text"):
        exported.write(strange.parent / "new", {}, {"config": {1: 2}}, "")
    assert not (strange.parent / "new").exists()
    assert disk.read_json(strange / "config.json") == content
