"""Data and models by the names of their configs, for those who call from Python."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import yaml
from hydra.errors import InstantiationException

from armodels import construct, show
from armodels.checks import Seed, checked, require_class
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.spec import DataSpec
from armodels.training.streams import WEIGHTS, stream


def load_data(name: str, /, **keys: Any) -> Splits:
    """A data set by the name of its config, as ``data=name`` has it.

    Args:
        name: Such as ``"digits"``; ``armodels list group=data`` shows all.
        keys: Its keys, such as ``levels=2``.

    Raises:
        ValueError: There is no such data set, or a key is wrong.
        FileNotFoundError: Files are missing.

    Examples:
        >>> import armodels
        >>> splits = armodels.load_data("digits", levels=2)
        >>> splits.spec.shape, splits.spec.levels, len(splits.train)
        ((1, 8, 8), 2, 1297)
    """
    config = _config("data", name, keys)
    with _in_python("data", config):
        return construct.source(config).load()


@checked
def build(
    name: str,
    spec: DataSpec,
    /,
    *,
    head: str | Mapping[str, Any] = "auto",
    seed: Seed = 0,
    **keys: Any,
) -> DensityModel:
    """A model by the name of its config, as ``model=name`` has it.

    Args:
        name: Such as ``"made"``; ``armodels list group=model`` shows all.
        spec: What a datum is, such as ``splits.spec``.
        head: Such as ``"gaussian_mixture"``; with keys of its own
            ``{"name": "gaussian_mixture", "num_components": 20}``.
        seed: Of its weights, which are those of ``armodels train seed=...``.
        keys: Its keys, such as ``hidden_sizes=[500]``.

    Returns:
        With weights that are not trained; a run of ``armodels.fit`` says how it is built.

    Raises:
        ValueError: There is no such model, a key is wrong, or it does not suit the data.
        TypeError: The spec is none.

    Examples:
        >>> import armodels
        >>> splits = armodels.load_data("digits", levels=2)
        >>> model = armodels.build("made", splits.spec, hidden_sizes=[20], order="random")
        >>> model.description, model.num_parameters
        ('MADE with bernoulli head', 2644)
        >>> armodels.build("made", splits.spec, hiden_sizes=[20])
        Traceback (most recent call last):
        ValueError: MADE has no argument hiden_sizes; did you mean hidden_sizes? ...
    """
    require_class("spec", spec, DataSpec, "such as splits.spec")
    if name == "blend":
        raise ValueError(
            "a blend is made of models that are there: armodels.AutoregressiveModel.of("
            "armodels.networks.blend.Blend, spec, runs=[model, other])"
        )
    config = _config("model", name, keys, seed)
    options = {"name": head} if isinstance(head, str) else dict(head)
    head_config = _config("head", options.pop("name", "auto"), options, seed)
    with _in_python("model", config), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream(WEIGHTS, int(seed)))
        model = construct.model(config, head_config, spec)
    model.built_from = {"model": config, "head": head_config}
    return model


def _config(group: str, name: str, keys: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """The config that a group has under a name, with keys of the caller's.

    Raises:
        ValueError: There is none, or it needs a key that nobody gave.
    """
    folder = files("armodels.configs") / group
    names = sorted(path.name.removesuffix(".yaml") for path in folder.iterdir())
    if name not in names:
        near = difflib.get_close_matches(str(name), names, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"there is no {group} called {name!r}; {hint}choose from {', '.join(names)}"
        )
    config = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    config |= {key: _plain(value) for key, value in keys.items()}
    if missing := sorted(key for key, value in config.items() if value == "???"):
        raise ValueError(f"{group} {name} needs {' and '.join(f'{key}=...' for key in missing)}")
    return {key: int(seed) if value == "${seed}" else value for key, value in config.items()}


def _plain(value: Any) -> Any:
    """A value as YAML would have it: NumPy's numbers as Python's, tuples as lists."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


@contextlib.contextmanager
def _in_python(group: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, errors are those of the class that is built, in Python's words."""
    with show.in_python(f"{group}.{key}" for key in config):
        try:
            yield
        except InstantiationException as error:
            raise (error.__cause__ or error) from None
