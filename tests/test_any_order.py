"""DeepNADE and ConvNADE against loops written by hand, and what construct.py makes of orders."""

import csv
import json
import statistics

import pytest
import torch
from cases import BITS, CASES, CATEGORICAL, LABEL, RGB, RGB_BITS, Case, conv_nade, logistics
from command import QUICK, done
from test_invariants import refuses

from armodels import construct
from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks import deep_nade

NO_HEAD = {"_target_": "armodels.heads.auto"}


def deep_nade_by_hand(net, x, known) -> torch.Tensor:
    """Parameters of one event of bits, unit by unit: (D,), set of known indices -> (D,)."""
    units = []
    for j in range(net.weight.shape[2]):
        total = float(net.hidden_bias[j])
        for i in known:
            total += float(net.weight[i, 0, j]) * int(x[i]) + float(net.mask_weight[i, j])
        units.append(torch.tensor(total, dtype=torch.double).tanh())
    for layer in net.hidden:
        units = [
            (layer.bias[j] + sum(layer.weight[j, i] * u for i, u in enumerate(units))).tanh()
            for j in range(layer.out_features)
        ]
    rows = range(len(x))
    return torch.stack(
        [net.bias[i, 0] + sum(net.output[i, 0, j] * u for j, u in enumerate(units)) for i in rows]
    )


def conv_nade_by_hand(net, x, known) -> torch.Tensor:
    """The same of a 2 x 3 image, by sums over each pixel's neighbours."""
    height, width = 2, 3
    value = [[int(x[3 * r + c]) * (3 * r + c in known) for c in range(width)] for r in range(2)]
    mask = [[int(3 * r + c in known) for c in range(width)] for r in range(height)]
    maps = torch.tensor([value, mask]).double()
    for n, layer in enumerate(net.hidden):
        new = torch.zeros(layer.out_channels, height, width).double()
        for r in range(height):
            for c in range(width):
                total = layer.bias.clone()
                for i in range(3):
                    for j in range(3):
                        y, z = r + i - 1, c + j - 1
                        if 0 <= y < height and 0 <= z < width:
                            total = total + layer.weight[:, :, i, j] @ maps[:, y, z]
                new[:, r, c] = torch.nn.functional.elu(total)
        maps = new if n == 0 else maps + new
    return (net.output.weight[0, :, 0, 0] @ maps.flatten(1)) + net.bias[:, 0]


def masked_transformer_by_hand(net, x, known) -> torch.Tensor:
    """The same, token by token."""

    def unit(one):
        return one / (one.square().mean() + 1e-6).sqrt()

    tokens = []
    for i in range(len(x)):
        there = float(i in known)
        pair = torch.tensor([there * int(x[i]), there], dtype=torch.double)
        place = net.places(torch.tensor([i]))[0]
        tokens.append(net.read.weight @ pair + net.read.bias + place)
    for block in net.blocks:
        parts = [(block.heads.weight @ unit(one)).view(3, net.num_heads, -1) for one in tokens]
        new = []
        for one, part in zip(tokens, parts, strict=True):
            read = []
            for head in range(net.num_heads):
                asked = unit(part[0][head]) / part.shape[-1] ** 0.5
                scores = torch.stack([asked @ unit(other[1][head]) for other in parts])
                answers = torch.stack([other[2][head] for other in parts])
                read.append(scores.softmax(0) @ answers)
            one = one + block.mixed.weight @ torch.cat(read)
            wide = torch.nn.functional.gelu(block.wide.weight @ unit(one))
            new.append(one + block.narrow.weight @ wide)
        tokens = new
    return torch.stack([net.output.weight[0] @ unit(one) for one in tokens]) + net.bias[:, 0]


HANDS = {
    "deep-nade": deep_nade_by_hand,
    "conv-nade": conv_nade_by_hand,
    "masked-transformer": masked_transformer_by_hand,
}


@pytest.mark.parametrize("name", HANDS)
def test_any_order_networks_equal_a_loop(name):
    case = CASES[name]
    net, x = case.build(0).net.requires_grad_(False), case.events(1)
    order = net.order_table[:, 0].tolist()
    for s in range(net.num_steps):
        by_hand = HANDS[name](net, x.flatten(), set(order[:s]))
        torch.testing.assert_close(net(x)[0, s, 0], by_hand[order[s]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("name", ["deep-nade-levels", "deep-nade-rgb-joint", "deep-nade-given"])
def test_chunks_of_any_size_say_the_same(name, size, monkeypatch):
    case = CASES[name]
    net, x = case.build(0).net.requires_grad_(False), case.events(3)
    whole = net(x)
    widest = 9  # no layer of these cases is wider
    monkeypatch.setattr(deep_nade, "CHUNK", size * widest * len(x))
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-12)


@pytest.fixture
def _no_grad():
    with torch.no_grad():
        yield


def made(**keys) -> dict:
    orders = {"order": "random", "order_seed": 0, "num_orders": 1, "resample_orders": False}
    more = {"hidden_sizes": [5], "context": None}
    return {"_target_": "armodels.networks.made.MADE"} | orders | more | keys


@pytest.mark.usefixtures("_no_grad")
def test_orders_that_are_resampled_are_new_for_each_batch():
    torch.manual_seed(1)  # with some weights, orders of so few units give equal numbers
    model = construct.model(made(resample_orders=True), NO_HEAD, BITS)
    assert isinstance(model, AutoregressiveModel)
    fixed = model.net.order_table.clone()
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    x = CASES["made"].events(1)
    torch.manual_seed(0)
    objective = model.default_objective()
    drawn = {objective(x).item() for _ in range(20)}
    assert len(drawn) > 15
    assert torch.equal(model.net.order_table, fixed)
    assert len({model.eval()(x).item() for _ in range(5)}) == 1
    # Training repeats itself from the global stream alone.
    torch.manual_seed(0)
    assert objective(x).item() in drawn


@pytest.mark.usefixtures("_no_grad")
def test_random_connectivity_of_many_layers_has_seeds_enough():
    config = made(resample_orders=True, connectivity="random", hidden_sizes=[5] * 4)
    model, x = construct.model(config, NO_HEAD, BITS), CASES["made"].events(1)
    torch.manual_seed(0)
    objective = model.default_objective()
    assert all(objective(x).isfinite().all() for _ in range(20))
    masks = [model.net.with_order(model.net.order, seed=2**31 - i).mask_1 for i in (1, 2)]
    assert not torch.equal(*masks)


def test_one_order_with_several_connectivities_is_a_mixture():
    config = made(order="raster", connectivity="random", num_orders=4)
    mixture = construct.model(config, NO_HEAD, BITS).double()
    for weight in mixture.parameters():
        torch.nn.init.normal_(weight)
    nets = [mixture.component(i).net for i in range(4)]
    assert all(torch.equal(net.order_table, nets[0].order_table) for net in nets)
    assert len({tuple(net.mask_output.flatten().tolist()) for net in nets}) == 4
    x = CASES["made"].events(3)
    assert (torch.stack([mixture.component(i).log_prob(x) for i in range(4)]).std(0) > 0).all()


def test_the_chosen_order_keeps_the_connectivity():
    config = made(connectivity="random", connectivity_seed=3, hidden_sizes=[40])
    net = construct.model(config, NO_HEAD, BITS).net
    assert torch.equal(net.with_order(net.order).mask_0, net.mask_0)
    assert not torch.equal(net.with_order(net.order, seed=4).mask_0, net.mask_0)


DEEP = made(_target_="armodels.networks.deep_nade.DeepNADE")


@pytest.mark.parametrize("built", [1, 2])
@pytest.mark.parametrize("config", [DEEP, made(resample_orders=True, connectivity="random")])
@pytest.mark.usefixtures("_no_grad")
def test_a_model_for_all_orders_is_a_mixture_of_as_many_as_asked_for(config, built):
    config = config | {"num_orders": built, "order_seed": 3}
    model = construct.model(config, NO_HEAD, BITS).double()
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    x = CASES["made"].events(4)
    whole = construct.model(config | {"num_orders": 5}, NO_HEAD, BITS).double()
    for weight, value in zip(whole.parameters(), model.parameters(), strict=True):
        weight.copy_(value)
    joint = torch.stack([whole.component(i).log_prob(x) for i in range(5)])
    assert joint.std(0).min() > 0
    assert construct.over_orders(model, config, built) is model
    for n in {1, 2, 5} - {built}:
        found = construct.over_orders(model, config, n).log_prob(x)
        expected = joint[:n].exp().mean(0).log()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_model_of_some_orders_is_no_mixture_of_others():
    config = made(num_orders=2)
    model = construct.model(config, NO_HEAD, BITS)
    assert len(construct.over_orders(model, config, 1).orders) == 1
    assert construct.over_orders(model, config, 2) is model
    with refuses(
        "eval.num_orders is 3, but the model was trained on 2 orders alone; ask for no more, or "
        "train it for all orders (model=deep_nade, or model.resample_orders=true)"
    ):
        construct.over_orders(model, config, 3)
    with refuses("eval.num_orders is 0; it must be at least 1"):
        construct.over_orders(model, config, 0)
    uniform = {"_target_": "armodels.baselines.Uniform"}
    with refuses("model Uniform follows no order; leave eval.num_orders at null"):
        construct.over_orders(construct.model(uniform, NO_HEAD, BITS), uniform, 2)


def test_runs_saved_before_the_key_was_there_still_load():
    config = made()
    del config["resample_orders"]
    assert not construct.model(config, NO_HEAD, BITS).resample_orders


def test_what_cannot_be_resampled_is_refused():
    with refuses(
        "model.resample_orders=true trains on random orders, but model.order is raster; "
        "use model.order=random, or model.objective=canonical"
    ):
        construct.model(made(order="raster", resample_orders=True), NO_HEAD, BITS)
    deep = made(_target_="armodels.networks.deep_nade.DeepNADE", resample_orders=True)
    with refuses("model DeepNADE is trained on all orders as it is; use resample_orders=false"):
        construct.model(deep, NO_HEAD, BITS)


@pytest.mark.parametrize("name", HANDS)
def test_training_hears_the_context(name):
    """What the estimate of a batch says depends on what the model is conditioned on."""
    case: Case = CASES[name]
    objective = case.build(0, LABEL).train().default_objective()
    x = case.events(1).expand(3, *case.spec.shape)
    found = []
    for labels in ([0, 1, 2], [0, 2, 1]):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(objective(x, torch.tensor(labels)))
    assert found[0][0] == found[1][0]
    assert (found[0][1:] != found[1][1:]).all()


@pytest.mark.parametrize(("spec", "head"), [(RGB, CATEGORICAL), (RGB_BITS, logistics)])
def test_kernels_of_one_pixel_keep_each_pixel_to_itself(spec, head):
    case = conv_nade(spec, head, 4, 2, kernel_size=1, order="random")
    net, x = case.build(0).net.requires_grad_(False), case.events(1)
    known = torch.ones(1, net.num_steps, dtype=torch.bool)
    changed = x.clone()
    changed[..., 1] = (changed[..., 1] + 1) % spec.levels
    moved = (net.params_given(changed, known) != net.params_given(x, known)).any(-1)[0]
    assert torch.equal(moved, net.order_table[:, 0] % spec.shape[2] == 1)


def test_complete_says_that_the_order_was_chosen(tmp_path):
    done(tmp_path, "train", *QUICK, "model=made", "data=tiny", "data.num_train=100", "out=run",
         "model.order=random", "model.resample_orders=true", "model.num_orders=2",
         "trainer.max_steps=2", "samples.num=0")  # fmt: skip
    told = done(tmp_path, "complete", "run", "known=bottom", "num=2", "device=cpu")
    assert "method exact: every answer is a draw from p(unknown | known), under the order" in told
    assert "(the known part first)" in told


def test_eval_over_more_orders_than_were_trained(tmp_path):
    done(tmp_path, "train", *QUICK, "model=deep_nade", "data=tiny", "data.num_train=100",
         "out=run", "model.num_orders=2", "trainer.max_steps=2", "samples.num=0")  # fmt: skip
    trained = json.loads((tmp_path / "run/metrics.json").read_text())["test"]["nats"]
    found = {}
    for n in ("null", 2, 9):
        done(tmp_path, "eval", "run", f"eval.num_orders={n}", "device=cpu", f"out={n}.json")
        report = json.loads((tmp_path / f"{n}.json").read_text())
        orders = 2 if n == "null" else n
        assert report["model"].startswith(f"mixture of {orders} orders of DeepNADE")
        found[n] = report["nats"]
    assert found["null"] == found[2] == pytest.approx(trained, rel=1e-6)
    assert abs(found[9] - trained) > 1e-4
    done(tmp_path, "score", "run", "eval.num_orders=9", "device=cpu", "out=scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        scores = [float(row["nats"]) for row in csv.DictReader(file)]
    assert statistics.fmean(scores) == pytest.approx(found[9], rel=1e-6)
