"""What data choose where nothing else is said."""

import pytest
from command import CONFIGS, done
from omegaconf import OmegaConf

from armodels import construct, memory

RECIPES = sorted(path.stem for path in CONFIGS.glob("recipe/*.yaml"))
CHOSEN = {
    "anime": ("pixelcnn_pp", 8),
    "folder": ("pixelcnn_pp", 8),
    "cifar10": ("pixelcnn_pp", 8),
    "svhn": ("pixelcnn_pp", 8),
    "atari": ("made", 8),
    "emnist": ("made", 8),
    "table": ("made", 8),
    "red_wine": ("made", 8),
    "music": ("frames", None),
    "text": ("ngram", None),
    "tinyshakespeare": ("ngram", None),
    "audio": ("wavenet", 8),
    "fsdd": ("wavenet", 8),
    "sine": ("wavenet", 8),
}


def config_of(*args: str) -> dict:
    """What ``armodels train`` would run with."""
    shown = done(CONFIGS.parent, "train", *args, "--cfg", "job", "--resolve")
    return OmegaConf.to_container(OmegaConf.create(shown))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "default"])
def test_data_come_with_a_model_that_suits_them(name):
    """Where nothing else is said; what is said wins, and takes nothing of the other model."""
    model, minutes = CHOSEN[name]
    path = ["data.path=x"] if name in ("table", "folder", "audio") else []
    config = config_of(f"data={name}", *path)
    assert config["choices"]["model"] == model
    assert config["trainer"]["max_minutes"] == minutes
    if not path:
        spec = construct.source(config["data"]).spec
        with memory.at_most(memory.MOST // 2, ""):
            construct.model(config["model"], config["head"], spec)
    other = config_of(f"data={name}", *path, "model=nade")
    plain = config_of("data=digits", "model=nade")
    for part in ("model", "optimizer", "schedule", "trainer"):
        assert other[part] == plain[part]


def test_an_experiment_takes_no_recipe():
    config = config_of("experiment=made_vs_gmm/anime")
    plain = config_of()
    assert config["model"] == plain["model"]
    assert config["head"] == plain["head"]
    assert config["trainer"] == {**plain["trainer"], "max_epochs": 20}
    assert config_of("data=anime", "recipe=default")["model"] == plain["model"]
    assert config_of("recipe=anime")["choices"]["model"] == "pixelcnn_pp"
