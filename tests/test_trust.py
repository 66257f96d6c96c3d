"""A stranger's run is data: nothing that it names runs, nothing that it states is believed."""

import copy
import importlib
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
import yaml
from command import QUICK, armodels, done, process

from armodels import checks, construct, earlier
from armodels.checkpoints import load_checkpoint, load_model, save
from armodels.data.toy import Toy
from armodels.networks import made
from armodels.networks.base import FreeOrderNetwork
from armodels.run import RunDirectory
from armodels.spec import ContextSpec, DataSpec
from armodels.trust import KINDS, Trust, foreign, ours

TOY = (*QUICK, "data=toy", "data.name=uniform", "data.num_train=40", "data.num_valid=20",
       "data.num_test=20")  # fmt: skip
NOBODY = "trust=null"
"""In the place of what the tests trust by default."""


class Trap:
    """Makes the file ``trace`` where it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of this package's own classes, called ``run``."""
    folder = tmp_path_factory.mktemp("finished")
    done(folder, "train", *TOY, "model.hidden_sizes=[4]", "trainer.max_steps=2", "out=run")
    return folder


@pytest.fixture
def strange(finished, tmp_path):
    """A shell's folder with a copy of the run and all that a stranger may have put beside it."""
    shutil.copytree(finished / "run", tmp_path / "run")
    trace = tmp_path / "trace"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Trap(trace)))
    torch.save(Trap(trace), tmp_path / "evil.pt")
    joblib.dump(Trap(trace), tmp_path / "evil.joblib")
    np.save(tmp_path / "evil.npy", np.array([Trap(trace)], dtype=object), allow_pickle=True)
    code = f"open({str(trace)!r}, 'w').close()\nclass X:\n    def __init__(self, **keys): pass\n"
    (tmp_path / "evilmod.py").write_text(code)
    (tmp_path / "hubconf.py").write_text(f"def x():\n    open({str(trace)!r}, 'w').close()\n")
    return tmp_path


def traps(folder: Path) -> dict[str, dict]:
    """Configs that run code where they are instantiated."""
    return {
        "torch": {"_target_": "torch.load", "f": f"{folder}/evil.pt", "weights_only": False},
        "joblib": {"_target_": "joblib.load", "filename": f"{folder}/evil.joblib"},
        "numpy": {"_target_": "numpy.load", "file": f"{folder}/evil.npy", "allow_pickle": True},
        "hub": {"_target_": "torch.hub.load", "repo_or_dir": str(folder), "model": "x",
                "source": "local", "trust_repo": True},
        "module": {"_target_": "evilmod.X"},
        "system": {"_target_": "os.system", "_args_": [f"touch {folder}/trace"]},
        "by a detour": {"_target_": "armodels.data.natural.pickle.os.system",
                        "_args_": [f"touch {folder}/trace"]},
        "by torch": {"_target_": "torch.optim.adam.torch.load", "f": f"{folder}/evil.pt",
                     "weights_only": False},
        "of another kind": {"_target_": "armodels.checkpoints.load_checkpoint", "path": "x"},
    }  # fmt: skip


def planted(part: dict, trap: dict, place: str) -> dict:
    """A part of a config with a trap in it."""
    part = copy.deepcopy(part)
    if place == "itself":
        return trap
    if place == "key":
        return part | {"extra": trap}
    name = next((key for key, value in part.items() if key != "_target_"), "extra")
    return part | {name: [trap] if place == "list" else {"deep": [{"er": trap}]}}


PLACES = ("itself", "key", "list", "deep")


def test_the_traps_work(strange):
    """Or the tests below would show nothing."""
    found = traps(strange)
    for name, call in {
        "torch": lambda: torch.load(strange / "evil.pt", weights_only=False),
        "joblib": lambda: joblib.load(strange / "evil.joblib"),
        "numpy": lambda: np.load(strange / "evil.npy", allow_pickle=True),
        "module": lambda: subprocess.run([sys.executable, "-m", "evilmod"], cwd=strange),
        "system": lambda: os.system(*found["system"]["_args_"]),
    }.items():
        call()
        assert (strange / "trace").exists(), name
        (strange / "trace").unlink()


def test_what_a_module_has_imported_is_not_its_own():
    assert vars(made)["FreeOrderNetwork"] is FreeOrderNetwork
    assert ours("armodels.networks.made.FreeOrderNetwork", KINDS) is None
    assert ours("armodels.networks.base.FreeOrderNetwork", KINDS) is FreeOrderNetwork


@pytest.mark.parametrize("part", checks.PARTS)
def test_no_part_runs_what_it_names(part, strange, monkeypatch):
    monkeypatch.chdir(strange)
    state = load_checkpoint(strange / "run/checkpoints/best.pt")
    config, spec, file = state["config"], Toy(**_keys(state["config"]["data"])).spec, Path("a.pt")
    trust = Trust(file=file)
    params = [torch.nn.Parameter(torch.zeros(2))]
    for (name, trap), place in itertools.product(traps(strange).items(), PLACES):
        bad = planted(config[part], trap, place)
        make = {
            "data": lambda bad: construct.source(bad, trust),
            "model": lambda bad: construct.model(bad, config["head"], spec, trust),
            "head": lambda bad: construct.model(config["model"], bad, spec, trust),
            "optimizer": lambda bad: construct.optimizer(bad, params, trust),
            "schedule": lambda bad: construct.schedule(bad, trust),
        }[part]
        with pytest.raises(ValueError, match="is refused: it names the class ") as refusal:
            make(bad)
        told = str(refusal.value)
        assert trap["_target_"] in told, (name, place)
        assert "a.pt is refused" in told
        assert ("add trust=" in told) == (trap["_target_"] == "evilmod.X")
        assert not (strange / "trace").exists(), (name, place)


@pytest.mark.parametrize(("old", "new"), earlier.CLASSES.items())
def test_a_class_that_moved_is_this_packages_own_by_its_earlier_name(old, new):
    module, _, name = new.rpartition(".")
    found = ours(old, KINDS)
    assert found is getattr(importlib.import_module(module), name)
    assert foreign({"model": {"_target_": old}}) == []


NETWORK = {"num_channels": 3, "order": "raster", "order_seed": 0, "num_orders": 1}
EARLIER = {
    "armodels.networks.pixelcnn.GatedPixelCNN": (),
    "armodels.networks.pixelcnn_pp.PixelCNNPP": ("net.told.", ".gift."),
    "armodels.networks.pixel_snail.PixelSNAIL": ("net.told.",),
}
"""Networks by the names that earlier runs have for them, and for parts of their weights' names."""
NOW = {"net.told.": "net.conditioning.", ".gift.": ".shared."}


@pytest.mark.parametrize("target", EARLIER)
def test_a_run_saved_under_earlier_names_is_restored(target, tmp_path):
    """Also where its average is evaluated, or trained on."""
    head = {"_target_": "armodels.heads.Bernoulli"}
    config = {"_target_": target, "context": "label", **NETWORK}
    labels = (ContextSpec("label", (), 3),)
    spec = DataSpec("tiny-image", "image", (1, 2, 2), 2, "probability", contexts=labels)
    model = construct.model(config, head, spec).eval()
    weights = {}
    for name, weight in model.state_dict().items():
        weight.copy_(torch.randn(weight.shape))
        for part in EARLIER[target]:
            name = name.replace(NOW[part], part)
        weights[name] = weight
    for part in EARLIER[target]:
        assert any(part in name for name in weights)
    file = RunDirectory(tmp_path).checkpoint("best")
    file.parent.mkdir(parents=True)
    content = {"config": {"model": config, "head": head, "data": {}}, "spec": asdict(spec)}
    zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    x, context = torch.tensor([[[[0, 1], [1, 1]]]], dtype=torch.uint8), torch.tensor([1])
    for raw, average in ((weights, None), (zeros, weights)):
        save(RunDirectory(tmp_path), "best", {**content, "step": 1, "model": raw, "ema": average})
        found = load_model(file).log_prob(x, context)
        assert torch.equal(found, model.log_prob(x, context))


def test_what_is_no_model_is_not_run_where_it_is_trusted(strange):
    for file in (strange / f"run/checkpoints/{name}.pt" for name in ("best", "last")):
        state = load_checkpoint(file)
        config = {**state["config"], "model": traps(strange)["system"]}
        torch.save({**state, "config": config}, file)
    told = armodels(strange, "eval", "run", "trust=os.system").error
    assert told == "os.system is no Network or DensityModel"
    assert not (strange / "trace").exists()


@pytest.mark.parametrize(
    ("section", "key"), [("eval", "batch_size"), ("samples", "num"), ("choices", "model")]
)
def test_a_run_that_lacks_or_adds_a_key_is_refused_before_its_first_step(section, key, strange):
    file = strange / "run/config.yaml"
    whole = yaml.safe_load(file.read_text())
    for change, told in (
        ({key: None}, f"lacks the key {section}.{key}"),
        ({"extra": 1}, f"has the key {section}.extra, which no run has"),
    ):
        bad = {k: v for k, v in {**whole[section], **change}.items() if change.get(k, k)}
        file.write_text(yaml.safe_dump({**whole, section: bad}))
        result = armodels(strange, "train", "resume=run", "trainer.max_steps=3")
        assert result.error == f"run/config.yaml is damaged: it {told}"
        assert result.out == ""


def _keys(node: dict) -> dict:
    return {key: value for key, value in node.items() if key != "_target_"}


VERBS = {
    "eval": (("eval", "run"), ("data", "model", "head")),
    "score": (("score", "run"), ("data", "model", "head")),
    "sample": (("sample", "run", "num=2", "num_neighbours=1"), ("data", "model", "head")),
    "complete": (("complete", "run", "num=2"), ("data", "model", "head")),
    "export": (("export", "run", "out=exported"), ("model", "head")),
    "resume": (("train", "resume=run", "trainer.max_steps=3"), checks.PARTS),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_runs_what_a_run_names(verb, strange):
    args, parts = VERBS[verb]
    files = [strange / f"run/checkpoints/{name}.pt" for name in ("best", "last")]
    whole = [load_checkpoint(file) for file in files]
    cases = itertools.cycle(itertools.product(traps(strange).values(), PLACES))
    for part in parts:
        for trap, place in itertools.islice(cases, 3):
            for file, state in zip(files, whole, strict=True):
                config = {**state["config"], part: planted(state["config"][part], trap, place)}
                torch.save({**state, "config": config}, file)
            (strange / "run/config.yaml").write_text(yaml.safe_dump(config))
            told = armodels(strange, *args, NOBODY).error
            assert f"names the class {trap['_target_']}" in told
            assert ("add trust=" in told) == (trap["_target_"] == "evilmod.X")
            assert not (strange / "trace").exists(), (part, trap, place)
            next(cases)
    assert not list(Path(strange).glob("run/**/complete*"))


@pytest.mark.parametrize("keys", [{"_partial_": True}, {"_args_": [1]}, {"surprise": 1}])
def test_keys_that_the_class_does_not_have(keys, strange):
    file = strange / "run/checkpoints/best.pt"
    state = load_checkpoint(file)
    for part in ("model", "head"):
        torch.save(
            {**state, "config": state["config"] | {part: state["config"][part] | keys}}, file
        )
        told = armodels(strange, "sample", "run", NOBODY).error
        assert next(iter(keys)) in told
    state["config"]["model"]["activation"] = "${oc.env:HOME}"
    torch.save(state, file)
    assert "model.activation is to be replaced" in armodels(strange, "sample", "run").error


# The user's own


NET = """
from armodels.networks.made import MADE
class Net(MADE):
    pass
"""


@pytest.mark.slow
def test_own_classes_run_where_this_command_trusts_them(tmp_path):
    late = "tabnanny"  # nothing has imported it before
    (tmp_path / "mynet.py").write_text(f"import {late}\n{NET}")
    for name in ("numpy", "json", "hydra_plugins", late):  # none of these may be found instead
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    args = ("train", *TOY, "model.hidden_sizes=[4]", "trainer.max_steps=2", "out=run")
    result = process(tmp_path, *args, "model._target_=mynet.Net", NOBODY)
    assert result.code == 0, result.err
    for verb in ("sample", "complete", "eval"):
        line = next(s for s in result.out.splitlines() if f"armodels {verb} " in s)
        assert line.endswith(" trust=mynet.Net"), line
    try:
        told = armodels(tmp_path, "eval", "run", NOBODY).error
        assert told == (
            "run/checkpoints/best.pt is refused: it names the class mynet.Net, which is none of "
            "armodels, whose code would run; if you know that code and trust it, add "
            "trust=mynet.Net"
        )
        for trust in ("trust=mynet.Net", "trust=[a.B,mynet.Net]"):
            done(tmp_path, "eval", "run", trust)
        done(tmp_path, "train", "resume=run", "trainer.max_steps=4", "trust=mynet.Net")
        assert RunDirectory(tmp_path / "run").read_config()["trust"] is None
        with pytest.raises(ValueError, match=r"add trust=mynet\.Net$"):
            load_model(tmp_path / "run")
        with pytest.raises(ValueError, match=r"^trust is 'Net'; it must be the dotted name"):
            load_model(tmp_path / "run", trust="Net")
        assert "mynet" in sys.modules
    finally:
        sys.modules.pop("mynet", None)


# Bombs


def _bomb(path: Path, kind: str, state: dict) -> None:
    """A checkpoint that is small on the disk and huge where it is believed."""
    if kind == "packed":
        torch.save({**state, "model": {"w": torch.zeros(10_000_000)}}, path)
        with zipfile.ZipFile(path) as old:
            contents = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name, content in contents.items():
                new.writestr(name, content)
        return
    config = copy.deepcopy(state["config"])
    if kind == "width":
        config["model"]["hidden_sizes"] = [2**22, 2**22]
    elif kind == "masks":
        config["model"]["hidden_sizes"] = [100_000, 100_000]
    elif kind == "layers":
        config["model"]["hidden_sizes"] = [1] * 15_000
    elif kind == "number":
        config["model"]["hidden_sizes"] = [10**12]
    elif kind == "orders":
        config["model"] |= {"order": "random", "num_orders": 10**7}
    elif kind == "shape":
        state = {**state, "spec": state["spec"] | {"shape": (2**40,)}}
    elif kind == "laughs":
        laugh = ["ha"]
        for _ in range(15):
            laugh = [laugh] * 9
        config["choices"] = laugh
    elif kind == "itself":
        config["choices"] = config
    elif kind == "rows":
        config["data"]["num_test"] = 10**13
    elif kind == "expanded":
        state = {**state, "ema": {"w": torch.zeros(1).expand(2**40)}}
    torch.save({**state, "config": config}, path)


BOMBS = ("packed", "width", "masks", "layers", "number", "orders", "shape", "laughs", "itself",
         "rows", "expanded")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_by_what_they_state(kind, strange):
    """Within a tenth of the memory that believing them takes."""
    import resource

    _bomb(
        strange / "run/checkpoints/best.pt",
        kind,
        load_checkpoint(strange / "run/checkpoints/best.pt"),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = armodels(strange, "eval", "run", NOBODY).error
    assert told.startswith("checkpoint run/checkpoints/best.pt is") or "best.pt is refused" in told
    assert len(told) < 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KB


def test_a_run_does_not_lift_what_protects_this_machine(strange):
    """Neither its own allow_large nor, against its weights, that of the command."""
    import resource

    path = strange / "run/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"] |= {"hidden_sizes": [20_000, 20_000], "allow_large": True}
    path.write_text(yaml.safe_dump(config))
    resume = ("train", "resume=run", "trainer.max_steps=3", NOBODY)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for lifted in ((), ("model.allow_large=true",)):
        told = armodels(strange, *resume, *lifted).error
        assert told.startswith("checkpoint run/checkpoints/last.pt is refused: its config descr")
    (strange / "run/checkpoints/last.pt").unlink()
    told = armodels(strange, *resume).error  # without weights, the budget holds
    assert "more than 100,000,000 parameters" in told
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_whatever_torch_would_call_is_refused(strange):
    """A list of what torch itself allows is longer than that of what a checkpoint needs."""
    path = strange / "run/checkpoints/best.pt"
    state = load_checkpoint(path)
    for value in (bytearray(5), {1}, torch.zeros(2).to_sparse(), complex(1, 2)):
        torch.save({**state, "state": value}, path)
        with pytest.raises(ValueError, match="it holds more than tensors and plain values"):
            load_checkpoint(path)


def test_a_config_of_many_names_for_one_part(strange):
    text = "a: &a [1]\n" + "\n".join(
        f"{chr(97 + i)}: &{chr(97 + i)} [*{chr(96 + i)}, *{chr(96 + i)}]" for i in range(1, 26)
    )
    (strange / "run/config.yaml").write_text(text)
    told = armodels(strange, "train", "resume=run", NOBODY).error
    assert told == "run/config.yaml is refused: it has aliases, which armodels never writes"
    told = armodels(strange, "train", "resume=run", "nothing=1").error  # which looks it up there
    assert told.startswith("nothing is no key of armodels train")
    (strange / "run/config.yaml").write_bytes(b"a: 1\n" * 5_000_000)
    told = armodels(strange, "train", "resume=run", NOBODY).error
    assert "larger than any that armodels writes" in told
