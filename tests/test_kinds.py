"""Every model on every kind of data: it works, or it is refused in one sentence."""

import copy
import math

import numpy as np
import pytest
import torch
import yaml
from command import CONFIGS, QUICK, armodels, done

from armodels.checkpoints import load_model
from armodels.run import RunDirectory
from armodels.tasks import sample, train

MODELS = sorted({path.stem for path in (CONFIGS / "model").glob("*.yaml")} - {"blend"})
"""All but what is made of trained runs, and has tests of its own."""

KINDS = {
    "bits": ("vector", [3], 2),
    "levels": ("vector", [3], 3),
    "real values": ("vector", [2], None),
    "sequence": ("sequence", [3], 3),
    "binary image": ("image", [1, 2, 3], 2),
    "grey image": ("image", [1, 2, 3], 5),
    "RGB image": ("image", [3, 2, 1], 4),
    "real image": ("image", [1, 2, 2], None),
}
"""Kind, shape and levels; the last is what no source of the package gives, but a user's may."""

NO_IMAGES = ("bits", "levels", "real values", "sequence")

SMALL = {
    "conv_nade": {"num_channels": 4, "num_layers": 2, "kernel_size": 3},
    "deep_nade": {"hidden_sizes": [4, 4]},
    "diagonal_bilstm": {"num_layers": 1, "num_channels": 4, "num_output_channels": 4},
    "frames": {"hidden_size": 4, "context_size": 3, "inner_size": 4},
    "gated_pixelcnn": {"num_layers": 2, "num_channels": 4},
    "gmm": {"num_components": 2},
    "inverse_flow": {"num_layers": 2, "hidden_sizes": [4]},
    "lmconv": {"num_blocks": 1, "num_channels": 4},
    "made": {"hidden_sizes": [4]},
    "masked_transformer": {"num_layers": 1, "hidden_size": 4, "num_heads": 1},
    "mixture_of_categoricals": {"num_components": 2},
    "mog_ar": {"hidden_sizes": [4]},
    "multiscale": {"base_layers": 1, "base_channels": 4, "num_blocks": 1, "num_channels": 4},
    "nade": {"hidden_size": 4},
    "pixel_snail": {"num_channels": 4, "num_blocks": 1, "num_resnets": 1, "num_value_channels": 4},
    "pixelcnn": {"num_layers": 2, "num_channels": 4},
    "pixelcnn_pp": {"num_channels": 4, "num_resnets": 1},
    "ngram": {"n": 3},
    "rnn": {"hidden_size": 4},
    "row_lstm": {"num_layers": 1, "num_channels": 4, "num_output_channels": 4},
    "sigma_gpt": {"num_layers": 1, "hidden_size": 4, "num_heads": 1},
    "transformer": {"num_layers": 1, "hidden_size": 4, "num_heads": 1},
    "uniform": {"margin": 3.0},
    "wavenet": {"num_layers": 2, "num_channels": 4, "num_skip_channels": 4},
}
"""Sizes for tests; test_config.py trains every model as it ships."""

BASELINES = {
    "gmm", "histogram", "independent", "markov", "mixture_of_categoricals", "ngram", "uniform",
}  # fmt: skip
"""Fitted without a step of training."""

ONLY_IMAGES = {
    "conv_nade": "ConvNADE",
    "diagonal_bilstm": "DiagonalBiLSTM",
    "gated_pixelcnn": "GatedPixelCNN",
    "lmconv": "LMConv",
    "multiscale": "MultiScale",
    "pixel_snail": "PixelSNAIL",
    "pixelcnn": "PixelCNN",
    "pixelcnn_pp": "PixelCNNPP",
    "row_lstm": "RowLSTM",
}

ONLY_SEQUENCES = {
    "frames": "Frames",
    "markov": "NGram",
    "ngram": "NGram",
    "rnn": "Recurrent",
    "transformer": "Transformer",
    "wavenet": "WaveNet",
}

OTHERWISE = {"transformer": "sigma_gpt"}
"""What stands for a model on other kinds, where it is not MADE."""

REFUSED = {
    (model, kind): (
        f"model {name} takes image data, but tiny-{KINDS[kind][0]} is {KINDS[kind][0]} data; "
        f"use a model that takes it, such as model=made"
    )
    for model, name in ONLY_IMAGES.items()
    for kind in NO_IMAGES
}
REFUSED |= {
    (model, kind): (
        f"model {name} takes sequence data, but tiny-{KINDS[kind][0]} is {KINDS[kind][0]} data; "
        f"use a model that takes it, such as model={OTHERWISE.get(model, 'made')}"
    )
    for model, name in ONLY_SEQUENCES.items()
    for kind in KINDS
    if kind != "sequence"
}
for _kind, (_name, _, _levels) in KINDS.items():
    if _levels is None:
        REFUSED["mixture_of_categoricals", _kind] = (
            f"model MixtureOfCategoricals needs data with levels, but tiny-{_name} has real "
            f"values; use model=gmm"
        )

    else:
        REFUSED["inverse_flow", _kind] = (
            f"model InverseFlow needs real values, but tiny-{_name} has {_levels} levels; "
            f"use model=made"
        )

PAIRS = [(model, kind) for model in MODELS for kind in KINDS]


def each_pair(pairs):
    """Run a test on each pair; every time on the first of a model, on others in the slow suite."""
    first = {model: (model, kind) for model, kind in reversed(pairs)}
    return pytest.mark.parametrize(
        ("model", "kind"),
        [
            pytest.param(*pair, marks=[] if first[pair[0]] == pair else [pytest.mark.slow])
            for pair in pairs
        ],
    )


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """Resolved configs of train, by model, and of sample: composed once."""
    folder = tmp_path_factory.mktemp("composed")

    def compose(*args):
        return yaml.safe_load(done(folder, *args, "--cfg", "job", "--resolve"))

    args = ("train", *QUICK, "data=tiny", "trainer.max_steps=1", "trainer.batch_size=8")
    base = compose(*args)
    configs = {"sample": compose("sample", "run=x", "num=2", "device=cpu")}
    for model in MODELS:
        shipped = yaml.safe_load((CONFIGS / f"model/{model}.yaml").read_text())
        seed = {"seed": 0} if "seed" in shipped else {}
        sizes = SMALL.get(model, {})
        assert sizes.keys() <= shipped.keys(), model
        configs[model] = {**base, "model": {**shipped, **seed, **sizes}}
        configs[model]["choices"] = {**base["choices"], "model": model}
    return configs


@each_pair([pair for pair in PAIRS if pair not in REFUSED])
def test_a_model_does_everything(model, kind, composed, tmp_path, capfd):
    """A step of training, an evaluation, another step after a resume, and two samples."""
    name, shape, levels = KINDS[kind]
    config = copy.deepcopy(composed[model])
    config["data"] |= {"kind": name, "shape": shape, "levels": levels}
    path = tmp_path / "run"
    train.main({**config, "directory": str(path)})
    first = RunDirectory(path).read_metrics()
    train.main({**config, "resume": str(path), "overrides": ["trainer.max_steps=2"]})
    last = RunDirectory(path).read_metrics()
    for step, numbers in enumerate((first, last), 1):
        assert numbers["steps"] == (0 if model in BASELINES else step)
        assert numbers["data"] == f"tiny-{name}"
        assert numbers["test"]["num_examples"] == 23
        assert math.isfinite(numbers["test"]["nats"])
    bound = model == "gmm" and levels is not None
    wanted = "bound" if bound else "density" if levels is None else "probability"
    assert last["measure"] == wanted
    sample.main({**composed["sample"], "run": str(path)})
    with np.load(path / "samples/sample-seed0-t1.npz") as file:
        x, log_prob = torch.from_numpy(file["x"]), torch.from_numpy(file["log_prob"])
    assert x.shape == (2, *shape)
    restored = load_model(path)
    restored.spec.check(x)
    torch.testing.assert_close(restored.log_prob(x), log_prob, rtol=1e-4, atol=1e-4)


@each_pair(list(REFUSED))
def test_a_model_is_refused(model, kind, tmp_path):
    name, shape, levels = KINDS[kind]
    keys = (f"data.kind={name}", f"data.shape={shape}".replace(" ", ""),
            f"data.levels={'null' if levels is None else levels}")  # fmt: skip
    told = armodels(tmp_path, "train", *QUICK, f"model={model}", "data=tiny", *keys, "out=run")
    assert told.code == 1
    assert told.error == REFUSED[model, kind]
    assert not (tmp_path / "run").exists()


def test_a_box_that_holds_not_all_of_valid_says_what_to_do(tmp_path):
    keys = ("model=uniform", "data=tiny", "data.levels=null", "model.margin=0", "out=run")
    assert armodels(tmp_path, "train", *QUICK, *keys).error == (
        "row 3 of valid is impossible under the model (log p = -inf), as are 3 more; "
        "raise its margin or smoothing, or choose another"
    )


def test_no_pair_is_left_out():
    assert REFUSED.keys() <= set(PAIRS)
    assert set(MODELS) >= SMALL.keys() | ONLY_IMAGES.keys() | BASELINES


def test_what_a_refusal_names_takes_the_data():
    named = {(OTHERWISE.get(model, "made"), kind) for model, kind in REFUSED}
    assert not named & REFUSED.keys()
