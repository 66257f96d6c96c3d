"""Features: activations by hand, whatever the batch; probes that choose on valid alone."""

import csv

import numpy as np
import pytest
import torch
from cases import CASES
from command import TINY, armodels, done

from armodels import features

HAVE = ("made-deep", "pixelcnn-rgb", "transformer", "wavenet", "rnn", "deep-nade", "row-lstm")


@pytest.mark.parametrize("name", HAVE)
def test_features_of_an_event_are_its_own(name):
    """Whatever the batch; two events that differ have different features."""
    case = CASES[name]
    net = case.build(0).net
    x = case.events(7, seed=2)
    found = features.layers(net, x)
    assert found
    whole = features.extract(net, x, found, batch_size=7)
    single = features.extract(net, x, found, batch_size=1)
    for layer in found:
        assert len(whole[layer]) == 7
        assert torch.allclose(whole[layer], single[layer], atol=1e-6), layer
    last = whole[[*found][-1]]
    assert not torch.allclose(last[0], last[1:].mean(0))


def test_events_are_found_wherever_they_are_counted():
    """WaveNet has time first, then events; the mean is over time."""
    case = CASES["wavenet"]
    net, x = case.build(0).net, case.events(5, seed=2)
    found = features.layers(net, x)
    assert found["layers.0.now"] == 1
    outputs = []
    handle = net.get_submodule("layers.0.now").register_forward_hook(
        lambda m, i, o: outputs.append(o)
    )
    net(x)
    handle.remove()
    value = features.extract(net, x, found, batch_size=5)["layers.0.now"]
    assert torch.allclose(value, outputs[0].detach().float().mean(0))


def test_hidden_units_of_made_by_hand():
    case = CASES["made-deep"]
    net, x = case.build(0).net, case.events(4, seed=2)
    outputs = []
    handle = net.activation.register_forward_hook(lambda m, i, o: outputs.append(o.detach()))
    net(x)
    handle.remove()
    found = features.extract(net, x, {"activation:2": 0, "activation:1": 0}, batch_size=3)
    assert torch.allclose(found["activation:1"], outputs[0].float())
    assert torch.allclose(found["activation:2"], outputs[1].float())


def test_hidden_units_of_nade_are_those_that_its_outputs_read():
    """After the last value; where that one has no weight, the last step reads the same units."""
    case = CASES["nade"]
    net, x = case.build(0).net, case.events(5, seed=2)
    last = int(net.order_table[-1, 0])
    with torch.no_grad():
        before = features.extract(net, x, {"hidden": 0}, batch_size=2)["hidden"].double()
        net.weight[last] = 0
        found = features.extract(net, x, {"hidden": 0}, batch_size=2)["hidden"].double()
        params = found @ net.output[net.slots[-1]].T + net.bias[net.slots[-1]]
        assert torch.allclose(params, net(x)[:, -1], atol=1e-5)
    changed = (before - found).abs().amax(1) > 1e-3
    assert changed.any()


def test_maps_keep_their_channels():
    case = CASES["pixelcnn-rgb"]
    net, x = case.build(0).net, case.events(4, seed=2)
    outputs = []
    handle = net.first.register_forward_hook(lambda m, i, o: outputs.append(o.detach()))
    net(x)
    handle.remove()
    found = features.extract(net, x, {"first": 0}, batch_size=4)["first"]
    assert torch.allclose(found, outputs[0].float().mean((2, 3)))


def test_windows_of_a_sequence_are_averaged():
    """What is left at an end is in none; a sequence shorter than a window has zeros."""
    case = CASES["transformer"]
    net = case.build(0).net
    x = case.events(3, seed=2)
    pieces = [torch.cat([x[0], x[1], x[2][:2]]), x[2], x[1][:3]]
    chosen = {"embed": 0}
    whole = features.extract(net, pieces, chosen, batch_size=2)["embed"]
    each = features.extract(net, x, chosen, batch_size=3)["embed"]
    assert torch.allclose(whole[0], each[:2].mean(0))
    assert torch.allclose(whole[1], each[2])
    assert (whole[2] == 0).all()


def blobs(n: int, spread: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    places = torch.eye(3)[labels] * 4
    return places + spread * torch.randn(n, 3, generator=generator), labels


def test_a_probe_finds_what_is_linear_and_nothing_else():
    parts = [blobs(n, 0.5, i) for i, n in enumerate((90, 60, 60))]
    found = features.probe("blobs", [x for x, _ in parts], [label for _, label in parts])
    assert found.test == 1.0
    assert found.interval == 0.0
    assert found.width == 3
    noise = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) for n in (90, 60, 61)]
    labels = [torch.arange(len(one)) % 3 for one in noise]
    assert features.probe("noise", noise, labels).test < 0.6


def test_a_probe_chooses_on_valid():
    """Test labels that are all wrong change its accuracy there, but not what is chosen."""
    parts = [blobs(n, 3.0, i) for i, n in enumerate((40, 300, 300))]
    x, labels = [x for x, _ in parts], [label for _, label in parts]
    right = features.probe("blobs", x, labels)
    wrong = features.probe("blobs", x, [*labels[:2], (labels[2] + 1) % 3])
    assert (right.strength, right.valid) == (wrong.strength, wrong.valid)
    assert right.test > 0.5 > wrong.test
    again = features.probe("blobs", [x[0], x[2], x[1]], [labels[0], labels[2], labels[1]])
    assert again.test != right.test


def test_components_are_those_of_train():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([5, 1, 1, 1])
    train, other = features.pca([x, 2 * x[:5]], 2)
    assert train.shape == (50, 2)
    centred = x - x.mean(0)
    axis = torch.linalg.svd(centred)[2][0]
    assert torch.allclose(train[:, 0].abs(), (centred @ axis).abs(), atol=1e-4)
    assert torch.allclose(other[:, 0].abs(), ((2 * x[:5] - x.mean(0)) @ axis).abs(), atol=1e-4)


# The verb


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    done(folder, "train", *TINY, "data.kind=image", "data.shape=[1,4,3]", "data.levels=3",
         "trainer.max_steps=3", "out=run")  # fmt: skip
    words = [word for word in TINY if "hidden" not in word]
    done(folder, "train", *words, "model=independent", "out=counts")
    return folder


def test_features_and_probes_are_written(folder):
    shown = done(folder, "features", "run", "layers=[activation]", "device=cpu", "out=found")
    with np.load(folder / "found/tiny-image-activation.npz") as file:
        assert file["train_features"].shape == (50, 6)
        assert file["test_labels"].shape == file["test_indices"].shape == (23,)
        assert file["valid_indices"].tolist() == list(range(21))
    with open(folder / "found/probes-tiny-image-label.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["activation", "values", "values, 6 principal components"]
    assert [row["features"] for row in rows] == names
    assert [row["width"] for row in rows] == ["6", "12", "6"]
    assert float(rows[1]["test_accuracy"]) > 0.6  # the label is the first value
    assert f"{float(rows[0]['test_accuracy']):.4f} ± " in shown


def test_layers_are_listed(folder):
    shown = done(folder, "features", "run", "device=cpu")
    assert shown == "layers of MADE, of which layers=[...] names some:\n  " + "\n  ".join(
        ["encode", "activation", "dropout\n"]
    )
    assert not (folder / "run/features").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "layers=[activaton]"), "layers names 'activaton'; did you mean activation? "
         "choose from encode, activation, dropout"),
        (("run", "layers=[activation]", "target=digit"),
         "target is 'digit', but tiny-image has the labels label"),
        (("counts", "layers=[activation]"),
         "model Independent is not one network with steps, whose layers are listened to; choose a "
         "run of one, such as model=made or model=pixelcnn"),
        (("run", "layers=[encode,encode]"),
         "layers is ['encode', 'encode']; name each layer once"),
        (("run", "probe=false", "target=label"), "target=label is what probes predict, and "
         "probe=false makes none; leave one of them out"),
    ],
)  # fmt: skip
def test_what_has_no_features_is_refused(folder, words, message):
    assert armodels(folder, "features", *words, "device=cpu", "out=no").error == message
    assert not (folder / "no").exists()
