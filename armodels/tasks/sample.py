"""armodels sample: a grid and the values of samples from a trained model."""

from collections.abc import Mapping
from logging import getLogger

import numpy as np
import torch

from armodels import pictures, run
from armodels.spec import bits_per_dim, nats

log = getLogger(__name__)


def main(config: Mapping) -> None:
    """Draw samples; write PNG and NPZ."""
    if config["num"] < 1:
        raise ValueError(f"num is {config['num']}; it must be at least 1")
    restored = run.from_config(config)
    if config["temperature"] == 0:
        log.warning("temperature 0 follows the mode: expect (nearly) equal samples")
    x, log_prob = restored.model.sample_with_log_prob(
        config["num"],
        temperature=config["temperature"],
        generator=torch.Generator().manual_seed(config["seed"]),
        progress=True,
    )
    spec, folder = restored.spec, restored.folder_for(config["out"])
    name = f"sample-seed{config['seed']}-t{config['temperature']:g}"
    np.savez_compressed(folder / f"{name}.npz", x=x.cpu().numpy(), log_prob=log_prob.cpu().numpy())
    log.info("from   %s (%s weights, step %d)", restored.path, restored.weights, restored.step)
    mean = float(log_prob.double().mean())
    log.info("mean   %.4f nats, %.4f bits/dim", nats(mean, spec), bits_per_dim(mean, spec))
    log.info("wrote  %s", folder / f"{name}.npz")
    picture = pictures.events(x, spec)
    if picture is not None:
        pictures.save(picture, folder / f"{name}.png")
        log.info("wrote  %s", folder / f"{name}.png")
