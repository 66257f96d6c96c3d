"""armodels.fit: the loop of ``armodels train``, for models and data made in Python."""

import json
import logging
import os

import pytest
import torch
import yaml
from cases import CASES
from command import CONFIGS, QUICK, armodels, done, snapshot
from tiny import Tiny
from torch import nn

import armodels as api
from armodels import heads, orders
from armodels.checkpoints import load_checkpoint
from armodels.disk import require_place
from armodels.networks.base import Network
from armodels.networks.made import MADE
from armodels.networks.ngram import NGram
from armodels.objectives import AllOrders, Likelihood, MixtureOrder, Objective
from armodels.run import RunDirectory
from armodels.schedules import Cosine, Schedule
from armodels.spec import ContextSpec
from armodels.training.learner import Candidate, Learner
from armodels.training.processes import make_fabric
from armodels.training.streams import WEIGHTS, stream

SETTINGS = api.Settings(max_steps=12, batch_size=8, accelerator="cpu", progress=False)


def splits(**keys) -> api.Splits:
    shape = {"kind": "image", "shape": [1, 3, 4], "levels": 3, "dynamic": False}
    return Tiny(**shape | {"num_train": 50, "damage": None, "seed": 0} | keys).load()


def made(data: api.Splits) -> api.AutoregressiveModel:
    """The model that ``model=made model.hidden_sizes=[6]`` names."""
    torch.manual_seed(stream(WEIGHTS, 0))
    return api.AutoregressiveModel.of(MADE, data.spec, hidden_sizes=[6])


def fused(params):
    return torch.optim.AdamW(params, lr=1e-3, weight_decay=0.01, fused=True)


class Unigram(Network):
    """Every value by itself: a network of a user's own."""

    kinds = frozenset({"image"})

    def __init__(self, spec, num_params, order):
        super().__init__(spec, num_params, order)
        self.bias = nn.Parameter(torch.zeros(self.num_steps, num_params))

    def forward(self, x, context=None):
        return self.bias.expand(len(x), -1, -1)


class Late(Schedule):
    """A rate that spoils the weights in the third epoch."""

    def _decay(self, step, total, share):
        return 1.0 if step < 14 else 1e3


def test_it_is_the_loop_of_train(tmp_path, capsys):
    keys = ("data=tiny", "model.hidden_sizes=[6]", "trainer.batch_size=8", *QUICK[::2])
    done(tmp_path, "train", *keys, "samples.num=0", "trainer.max_steps=12", "out=run")
    result = api.fit(made(splits()), splits(), SETTINGS, optimizer=fused)
    best = load_checkpoint(tmp_path / "run/checkpoints/best.pt")["model"]
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, best[name])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    for key in ("valid", "test", "parameters", "best_step", "steps", "measure"):
        assert result.metrics[key] == metrics[key]
    assert [row["valid/nats"] for row in result.history if "valid/nats" in row]
    printed = capsys.readouterr().out
    assert "valid nats" in printed
    assert not result.model.training


def test_nothing_is_written_and_a_network_of_ones_own_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = splits()
    head = heads.auto(data.spec)
    net = Unigram(data.spec, head.num_params, orders.make("raster", data.spec.shape))
    model = api.AutoregressiveModel(net, head)
    result = api.fit(model, data, SETTINGS, quiet=True)
    assert result.model is model
    assert result.directory is None
    assert not list(tmp_path.iterdir())
    found = api.evaluate(model, data.test)
    assert found.report(data.spec) == result.metrics["test"]
    assert found == api.evaluate(model, data.examples("test"), 7)


def test_the_best_weights_are_kept_in_memory():
    data = splits()
    settings = api.Settings(max_steps=21, batch_size=8, accelerator="cpu", ema=0.5)
    result = api.fit(made(data), data, settings, schedule=Late(), quiet=True)
    rows = [row for row in result.history if "valid/nats" in row]
    best = min(rows, key=lambda row: row["valid/nats"])
    assert best is not rows[-1]
    assert result.metrics["best_step"] == best["step"]
    assert result.metrics["valid"]["nats"] == best["valid/nats"]
    again = api.evaluate(result.model, data.valid).report(data.spec)
    assert again["nats"] == pytest.approx(best["valid/nats"], rel=1e-6)


def test_a_directory_is_a_run(tmp_path):
    data = splits()
    result = api.fit(made(data), data, SETTINGS, directory=tmp_path / "run", quiet=True)
    assert (
        api.load_model(tmp_path / "run", model=made(data))
        .log_prob(data.test)
        .equal(result.model.log_prob(data.test))
    )
    assert "MADE with categorical head" in done(tmp_path, "compare", "run")
    for verb in ("eval", "sample", "complete", "score"):
        told = armodels(tmp_path, verb, "run", "device=cpu").error
        assert "does not say how its model is built" in told
        assert told.endswith("armodels.load_model(path, model=...)")
    assert "resume=True" in armodels(tmp_path, "train", "resume=run").error
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        api.fit(made(data), data, SETTINGS, directory=tmp_path / "run", quiet=True)
    assert snapshot(tmp_path) == before
    assert len([row for row in result.history if "valid/nats" in row]) == 2


def test_a_directory_goes_on_bit_for_bit(tmp_path, capsys):
    data, short = splits(), api.Settings(max_steps=5, batch_size=8, accelerator="cpu")
    options = {"schedule": Cosine(final=1.0), "quiet": True}
    whole = api.fit(made(data), data, SETTINGS, directory=tmp_path / "whole", **options)
    api.fit(made(data), data, short, directory=tmp_path / "parts", **options)
    options["quiet"] = False
    parts = api.fit(
        made(data), data, SETTINGS, directory=tmp_path / "parts", resume=True, **options
    )
    assert "going on from step 5" in capsys.readouterr().out
    states = [load_checkpoint(tmp_path / f"{n}/checkpoints/last.pt") for n in ("whole", "parts")]
    for name, value in states[0]["model"].items():
        assert torch.equal(states[1]["model"][name], value)
    assert parts.metrics["test"] == whole.metrics["test"]


def test_a_failure_is_in_the_directory(tmp_path):
    data = splits(levels=None)
    wild = lambda params: torch.optim.SGD(params, lr=1e30)  # noqa: E731
    with pytest.raises(FloatingPointError, match="the loss became"):
        api.fit(made(data), data, SETTINGS, optimizer=wild, directory=tmp_path / "run", quiet=True)
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["status"] == "failed"
    assert status["reason"].startswith("the loss became")


def test_models_and_data_that_do_not_go_together_are_refused():
    data = splits()
    with pytest.raises(ValueError, match=r"the model is one of .*levels 3, but data .*levels 4"):
        api.fit(made(data), splits(levels=4), SETTINGS)
    with pytest.raises(ValueError, match="fit trains one model"):
        api.fit(made(data), data, api.Settings(select={"optimizer.lr": [1.0]}))
    with pytest.raises(ValueError, match="name it"):
        api.fit(made(data), data, SETTINGS, resume=True)


@pytest.mark.parametrize("name", ["orders-made", "made"])
def test_what_is_trained_is_the_objective_that_the_model_names(name):
    model = CASES[name].build(0)
    candidate = Candidate(model=lambda: model, optimizer=torch.optim.Adam, schedule=Cosine())
    learner = Learner(candidate, SETTINGS, make_fabric(SETTINGS))
    assert type(learner.net) is (MixtureOrder if name == "orders-made" else Likelihood)


def test_default_settings_are_those_of_the_configs():
    shipped = yaml.safe_load((CONFIGS / "trainer/default.yaml").read_text())
    assert vars(api.Settings()) == shipped


def test_a_trained_model_goes_on_from_its_weights():
    data, none = splits(), api.Settings(max_steps=0, accelerator="cpu", progress=False)
    first = api.fit(made(data), data, SETTINGS, quiet=True)
    weights = {name: value.clone() for name, value in first.model.state_dict().items()}
    again = api.fit(first.model, data, none, initialize=False, quiet=True)
    assert again.metrics["valid"] == first.metrics["valid"]
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, weights[name])
    anew = api.fit(first.model, data, none, quiet=True)
    assert anew.metrics["valid"] != first.metrics["valid"]


class Total(Objective):
    """The sum over the batch, where each example has its own."""

    def _estimate(self, x, context):
        return self.model._log_prob(x, context).sum()


GIVEN = {
    "sum": (
        lambda one: one.sum(),
        r"gives values of shape \(\) for 8 examples; it must give one number",
    ),
    "number": (lambda one: 1.0, "gives float for 8 examples; it must give one number for each"),
    "nothing": (lambda one: None, "gives NoneType for 8 examples"),
    "array": (lambda one: one.detach().numpy(), "gives ndarray for 8 examples"),
    "constant": (lambda one: one.detach(), "gives the model no gradient"),
    "leaf": (lambda one: one.detach().requires_grad_(), "gives the model no gradient"),
}


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_an_objective_gives_one_number_for_each_example(given, clipped):
    class Own(Objective):
        def _estimate(self, x, context):
            return given[0](self.model._log_prob(x, context))

    data = splits()
    settings = api.Settings(**vars(SETTINGS) | {"max_grad_norm": 1.0 if clipped else None})
    with pytest.raises((TypeError, ValueError), match=f"objective Own {given[1]}"):
        api.fit(made(data), data, settings, objective=Own, quiet=True)


CHOOSING = {
    "matrices": lambda params: torch.optim.Adam([p for p in params if p.ndim == 2]),
    "by place": lambda params: torch.optim.Adam([{"params": [params[0]]}, {"params": params[1:]}]),
    "by name": lambda params: torch.optim.SGD([(str(len(p)), p) for p in params[:1]], lr=0.1),
}


@pytest.mark.parametrize("choose", CHOOSING.values(), ids=CHOOSING)
def test_an_optimizer_chooses_among_the_weights_of_the_model(choose, tmp_path):
    data = splits()
    model = made(data)
    before = [p.clone() for p in model.parameters()]
    api.fit(model, data, SETTINGS, optimizer=choose, directory=tmp_path / "run", quiet=True)
    assert any(not p.equal(was) for p, was in zip(model.parameters(), before, strict=True))
    named = RunDirectory.open(tmp_path / "run").read_config()["optimizer"]["_target_"]
    assert named.rpartition(".")[2] in ("Adam", "SGD")


def test_a_model_without_weights_that_move_needs_no_optimizer():
    data = splits()
    model = made(data).requires_grad_(False)
    settings = api.Settings(**vars(SETTINGS) | {"max_epochs": 0, "max_steps": None})
    api.fit(model, data, settings, optimizer=CHOOSING["matrices"], quiet=True)


class Rateless(torch.optim.Optimizer):
    """Moves weights by a rate that no group states."""

    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data -= 0.01 * p.grad


class Bare(Objective):
    """An objective that leaves out what makes it one."""

    def __init__(self, model):
        pass

    def _estimate(self, x, context):
        return self.model._log_prob(x, context)


class Owning(Objective):
    """An objective with a weight, and with a state, of its own."""

    def __init__(self, model, persistent=True, weight=True):
        super().__init__(model)
        if weight:
            self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("count", torch.ones(()), persistent=persistent)

    def _estimate(self, x, context):
        return self.model._log_prob(x, context) * self.count


def test_an_objective_may_hold_constants_and_a_view_of_the_model():
    data = splits()
    reverse = orders.make("reverse", data.spec.shape)
    for objective in (
        lambda model: Owning(model, persistent=False, weight=False),
        lambda model: Likelihood(model.with_order(reverse)),
    ):
        model = made(data)
        before = model.net.bias.clone()
        api.fit(model, data, SETTINGS, objective=objective, quiet=True)
        assert not model.net.bias.equal(before)


def test_threads_are_as_before():
    before = torch.get_num_threads()
    data, settings = splits(), api.Settings(**vars(SETTINGS) | {"threads": before + 1})
    api.fit(made(data), data, settings, quiet=True)
    assert torch.get_num_threads() == before


def test_what_is_quiet_prints_nothing(caplog, capfd):
    data, settings = splits(), api.Settings(**vars(SETTINGS) | {"precision": "bf16-mixed"})
    log = logging.getLogger("lightning_fabric")
    before, told = log.propagate, log.level
    log.propagate = True
    try:
        api.fit(made(data), data, settings, quiet=True)
    finally:
        log.propagate = before
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    assert log.level == told


def test_evaluate_takes_what_splits_takes():
    import pandas as pd

    data = api.Splits.of(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)))
    model = api.fit(made(data), data, SETTINGS, quiet=True).model
    own = api.evaluate(model, data.test)
    assert api.evaluate(model, pd.DataFrame(data.test.numpy(), columns=["a", "b"])) == own
    with pytest.raises(ValueError, match="the data has no examples, and so no mean"):
        api.evaluate(model, data.test[:0])
    with pytest.raises(TypeError, match="rows of data are"):
        api.evaluate(model, [[0.0, 1.0]])
    with pytest.raises(TypeError, match="no numbers"):
        api.evaluate(model, pd.DataFrame({"a": ["x"], "b": ["y"]}))


WRONG = {
    "net": (lambda: {"model": made(splits()).net}, "model is of type MADE; .* DensityModel"),
    "array": (lambda: {"splits": torch.zeros(9, 2)}, "splits is of type Tensor; .* Splits"),
    "settings": (lambda: {"settings": {"max_steps": 1}}, "settings is of type dict; .* Settings"),
    "schedule": (lambda: {"schedule": 0.1}, "schedule is of type float"),
    "watching": (lambda: {"watching": {}}, "watching is of type dict"),
    "adam": (
        lambda: {"optimizer": torch.optim.Adam(made(splits()).parameters())},
        "optimizer is of type Adam; it must be a function",
    ),
    "name": (lambda: {"optimizer": "adam"}, "optimizer is of type str; it must be a function"),
    "no optimizer": (lambda: {"optimizer": len}, "optimizer makes int of the parameters"),
    "lbfgs": (lambda: {"optimizer": torch.optim.LBFGS}, "LBFGS evaluates the loss anew"),
    "rate": (lambda: {"optimizer": Rateless}, "optimizer Rateless has no learning rate"),
    "foreign weights": (
        lambda: {"optimizer": lambda _: torch.optim.Adam(made(splits()).parameters())},
        "optimizer Adam moves weights that are not the model's",
    ),
    "bare": (lambda: {"objective": Bare}, "objective Bare holds no model; its __init__ must"),
    "weight": (lambda: {"objective": Owning}, "Owning has weights of its own, weight, count, wh"),
    "state": (
        lambda: {"objective": lambda model: Owning(model, weight=False)},
        "Owning has weights of its own, count, which fit neither trains nor saves",
    ),
    "other model": (
        lambda: {"objective": lambda _: Likelihood(made(splits()))},
        "Likelihood holds another model than the one that is trained",
    ),
    "objective": (
        lambda: {"objective": Likelihood(made(splits()))},
        "objective is of type Likelihood; it must be a function",
    ),
    "no objective": (lambda: {"objective": lambda model: model}, "makes AutoregressiveModel"),
    "all orders": (lambda: {"objective": AllOrders}, "AllOrders does not suit the model, MADE"),
    "mixture": (lambda: {"objective": MixtureOrder}, "MixtureOrder does not suit the model"),
    "negative": (lambda: {"seed": -1}, "seed is -1; it must be from 0"),
    "letter": (lambda: {"seed": "a"}, "seed is 'a'; it must be a whole number"),
    "half": (lambda: {"seed": 1.5}, "seed is 1.5; it must be a whole number"),
    "directory": (lambda: {"directory": 3}, "directory is 3; it must be text"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_refused_in_a_sentence(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, sentence = wrong
    arguments = {"model": made(splits()), "splits": splits(), "settings": SETTINGS}
    with pytest.raises((TypeError, ValueError), match=sentence):
        api.fit(**arguments | {"directory": "run", "quiet": True} | change())
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_and_a_home_are_taken(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.setenv("HOME", str(tmp_path))
    settings = api.Settings(**vars(SETTINGS) | {"batch_size": np.int64(8), "ema": np.float64(0.5)})
    api.fit(made(splits()), splits(), settings, directory="~/x", seed=np.int64(3), quiet=True)
    assert "seed: 3" in (tmp_path / "x/config.yaml").read_text()


OTHERS = {
    "seed": ({"seed": 1}, "seed=0, and cannot go on with 1"),
    "batch": ({"settings": {"batch_size": 9}}, "batch_size=8, and cannot go on with 9"),
    "ema": ({"settings": {"ema": 0.5}}, "ema=None"),
    "accumulate": ({"settings": {"accumulate": 2}}, "accumulate=1"),
    "norm": ({"settings": {"max_grad_norm": 1.0}}, "max_grad_norm=None"),
    "optimizer": ({"optimizer": torch.optim.SGD}, r"optimizer=torch.*AdamW, .* go on with .*SGD"),
    "objective": ({"objective": Total}, r"objective=armodels.*Likelihood, .* go on with .*Total"),
    "data": ({"splits": {"name": "other"}}, "was trained on tiny-image, not on other"),
}


def test_only_the_same_run_goes_on(tmp_path):
    from dataclasses import replace

    data = splits()
    keys = {"model": made(data), "directory": tmp_path / "run", "quiet": True}
    api.fit(splits=data, settings=SETTINGS, **keys)
    before = snapshot(tmp_path)
    for change, sentence in OTHERS.values():
        own = dict(change)
        settings = api.Settings(**vars(SETTINGS) | own.pop("settings", {}))
        other = replace(data, spec=replace(data.spec, **own.pop("splits", {})))
        with pytest.raises(ValueError, match=sentence):
            api.fit(splits=other, settings=settings, resume=True, **keys, **own)
        assert snapshot(tmp_path) == before
    ends = api.Settings(**vars(SETTINGS) | {"max_steps": 13, "log_every": 3, "patience": 9})
    assert api.fit(splits=data, settings=ends, resume=True, **keys).metrics["steps"] == 13


@pytest.mark.parametrize("part", ["optimizer", "objective"])
def test_a_damaged_config_is_one_sentence(part, tmp_path):
    data = splits()
    keys = {"settings": SETTINGS, "directory": tmp_path / "run", "quiet": True}
    api.fit(made(data), data, **keys)
    file = tmp_path / "run/config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {part: "x"}))
    with pytest.raises(ValueError, match=f"config.yaml is damaged: {part} is not as armodels"):
        api.fit(made(data), data, resume=True, **keys)


def others(data):
    """Models that are not the one of ``made``: in size, in a layer's name, in order."""
    yield api.AutoregressiveModel.of(MADE, data.spec, hidden_sizes=[7]), "size mismatch for net"
    yield (
        api.AutoregressiveModel.of(MADE, data.spec, hidden_sizes=[6, 6]),
        "mismatch for net|key",
    )
    head = heads.auto(data.spec)
    for name, seed in (("reverse", 0), ("random", 1)):
        order = orders.make(name, data.spec.shape, seed=seed)
        net = MADE(data.spec, head.num_params, order, hidden_sizes=[6])
        sentence = rf"its order is \['raster.*the model's \['{name}, seed {seed}"
        yield api.AutoregressiveModel(net, head), sentence


def mixture(data, *seeds: int) -> api.OrderMixture:
    several = [orders.make("random", data.spec.shape, seed=seed) for seed in seeds]
    return api.OrderMixture(made(data), several)


def test_counts_of_any_size_come_back(tmp_path):
    data, path = splits(kind="sequence", shape=[12]), tmp_path / "run"
    result = api.fit(api.AutoregressiveModel.of(NGram, data.spec, n=3), data, SETTINGS,
                     directory=path, quiet=True)  # fmt: skip
    again = api.load_model(path, model=api.AutoregressiveModel.of(NGram, data.spec, n=3))
    assert again.log_prob(data.test).equal(result.model.log_prob(data.test))
    with pytest.raises(ValueError, match="does not fit the model"):
        api.load_model(path, model=api.AutoregressiveModel.of(NGram, data.spec, n=4))


def test_a_mixture_of_other_orders_gets_no_weights_of_a_run(tmp_path):
    data, path = splits(), tmp_path / "run"
    result = api.fit(mixture(data, 1, 2), data, SETTINGS, directory=path, quiet=True)
    with pytest.raises(ValueError, match="its order is .*seed 2,.*, the model's .*seed 3,"):
        api.load_model(path, model=mixture(data, 1, 3))
    again = api.load_model(path, model=mixture(data, 1, 2))
    assert again.log_prob(data.test).equal(result.model.log_prob(data.test))


def test_a_run_goes_on_under_the_values_that_its_optimizer_has_now(tmp_path):
    data, path = splits(), tmp_path / "run"
    for decay, steps in ((0.01, 5), (0.5, 6)):
        optimizer = lambda p, decay=decay: torch.optim.AdamW(p, lr=0.1, weight_decay=decay)  # noqa: E731
        settings = api.Settings(**vars(SETTINGS) | {"max_steps": steps})
        keys = {"directory": path, "resume": steps > 5, "quiet": True}
        api.fit(made(data), data, settings, optimizer=optimizer, **keys)
        (group,) = load_checkpoint(path / "checkpoints/last.pt")["optimizer"]["param_groups"]
        assert group["weight_decay"] == decay
    before = snapshot(tmp_path)
    parts = lambda p: torch.optim.AdamW([{"params": p[:1]}, {"params": p[1:]}])  # noqa: E731
    with pytest.raises(ValueError, match="does not fit the optimizer: .*in the same groups, or"):
        api.fit(made(data), data, SETTINGS, optimizer=parts, **keys)
    lost = {name for name, content in before.items() if snapshot(tmp_path).get(name) != content}
    assert not any("checkpoints" in str(name) for name in lost)


def test_another_model_gets_no_weights_of_a_run(tmp_path):
    data = splits()
    keys = {"directory": tmp_path / "run", "quiet": True}
    api.fit(made(data), data, SETTINGS, **keys)
    before = snapshot(tmp_path)
    for model, sentence in others(data):
        weights = {name: w.clone() for name, w in model.state_dict().items()}
        for gets in (
            lambda m: api.fit(m, data, SETTINGS, resume=True, **keys),
            lambda m: api.load_model(tmp_path / "run", model=m),
        ):
            with pytest.raises(ValueError, match=f"does not fit the model: .*({sentence})"):
                gets(model)
            assert all(w.equal(weights[name]) for name, w in model.state_dict().items())
            assert snapshot(tmp_path) == before


def test_a_directory_that_cannot_be_is_one_sentence(tmp_path):
    data = splits()
    (tmp_path / "file").write_text("mine")
    before = snapshot(tmp_path)
    for name in ("file", "file/below/it"):
        with pytest.raises(ValueError, match="directory is .*file,? .*is no folder; name one"):
            api.fit(made(data), data, SETTINGS, directory=tmp_path / name)
        told = armodels(tmp_path, "train", *QUICK, f"out={name}")
        assert f"out is {name}, {'which' if name == 'file' else 'but file'} is no" in told.error
    assert snapshot(tmp_path) == before
    api.fit(made(data), data, SETTINGS, directory=tmp_path / "run", quiet=True)
    with (
        RunDirectory.open(tmp_path / "run").claimed(new=False),
        pytest.raises(BlockingIOError, match="or choose another directory with directory="),
    ):
        api.fit(made(data), data, SETTINGS, directory=tmp_path / "run", resume=True)


NO_PATHS = {
    "null byte": ("a\0b", r"'a\\x00b', which holds a character that no path can"),
    "surrogate": ("a\ud800/b", "which holds a character that no path can"),
    "long name": ("new/" + "é" * 150, "a name of 300 bytes; none may have more than 255"),
    "no home": ("~nobodyx/y", "no home directory is known of ~nobodyx; write the folder in full"),
}


@pytest.mark.parametrize(("path", "sentence"), NO_PATHS.values(), ids=NO_PATHS)
def test_what_is_no_path_is_one_sentence(path, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = splits()
    with pytest.raises(ValueError, match=f"^directory is .*{sentence}"):
        api.fit(made(data), data, SETTINGS, directory=path)
    with pytest.raises(ValueError, match=f"^run is .*{sentence}"):
        api.load_model(path)
    with pytest.raises(ValueError, match=f"^out is .*{sentence}"):
        require_place(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody writes to")
def test_a_folder_that_takes_no_file_is_one_sentence():
    data = splits()
    with pytest.raises(
        ValueError, match="^directory is /proc/x/y, but no file can be made in /pr"
    ):
        api.fit(made(data), data, SETTINGS, directory="/proc/x/y")
    with pytest.raises(ValueError, match="^out is /proc/x, but no file can be made in /proc "):
        require_place("/proc/x", mark="mine")
    require_place("/dev/null", mark="mine")


def test_a_model_is_loaded_onto_a_device_that_is_there(tmp_path):
    data = splits()
    for wrong, sentence in (
        ({"device": "nonsense"}, "^device is 'nonsense'; choose auto, cpu, cuda or mps"),
        ({"device": 3}, "^device is '3'; choose auto"),
        ({"model": "made"}, "^model is of type str; it must be of type DensityModel, made as it"),
        ({"model": made(data).net}, "^model is of type MADE; it must be of type DensityModel"),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            api.load_model(tmp_path / "run", **wrong)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="^device=cuda: torch finds no such device here"):
            api.load_model(tmp_path / "run", device="cuda")
    api.fit(made(data), data, SETTINGS, directory=tmp_path / "run", quiet=True)
    api.load_model(tmp_path / "run", model=made(data), device=torch.device("cpu"))


def test_no_sentence_speaks_of_a_command_line(tmp_path, capfd):
    data, settings = splits(), api.Settings(**vars(SETTINGS) | {"max_minutes": 1e-7})
    with pytest.raises(RuntimeError, match="give it more time"):
        api.fit(made(data), data, settings)
    assert "saves" not in capfd.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"with directory=, or continue it with resume=True"):
        api.fit(made(data), data, SETTINGS, directory=tmp_path)


def test_a_context_that_is_promised_alone_is_refused():
    from dataclasses import replace

    data, label = splits(), ContextSpec("label", (), 3)
    data = replace(data, spec=replace(data.spec, contexts=(label,)), contexts={})
    head = heads.auto(data.spec)
    order = orders.make("raster", data.spec.shape, joint=head.joint)
    net = MADE(data.spec, head.num_params, order, hidden_sizes=[6], context=label)
    with pytest.raises(ValueError, match=r"promises, but Splits\(contexts=...\) does not hold"):
        api.fit(api.AutoregressiveModel(net, head), data, SETTINGS, quiet=True)
