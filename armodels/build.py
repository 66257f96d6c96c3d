"""From configs to objects: no config passes beyond this file and the tasks."""

import contextlib
import os
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import hydra.utils
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from armodels import checks, contexts, orders
from armodels.data.base import Source
from armodels.density import AutoregressiveModel, DensityModel
from armodels.heads import Head
from armodels.networks.base import Network
from armodels.schedules import Schedule
from armodels.spec import DataSpec

ORDER_KEYS = {
    "order": str,
    "order_seed": checks.Seed,
    "num_orders": checks.Count,
    "resample_orders": bool,
}
"""Keys of a network's YAML that say in which order it is used; the others are its arguments."""

PATH_KEYS = ("path", "root", "cache")
"""Keys of a data YAML that name a file or folder."""


def instantiate(node: Mapping, *args, prefix: str = "", **objects) -> Any:
    """The object that ``node._target_`` names, of its other keys, ``args`` and ``objects``.

    ``prefix`` is that of its keys in a sentence about them, such as ``"model."``.

    The one call of Hydra's ``instantiate``. Its newer versions want to be told which targets may
    run: those are this package's, torch's and, as the user's own configs say, the user's own.
    """
    _require_types(node, prefix)
    allow = getattr(hydra.utils, "execution_whitelist", None)
    target = node["_target_"]
    with allow("armodels.*", "torch.*", target) if allow else contextlib.nullcontext():
        make = hydra.utils.instantiate(
            OmegaConf.create({**node, "_partial_": True}), *args, _convert_="all"
        )
    try:
        return make(**objects)  # which Hydra would turn into configs
    except Exception as error:
        raise InstantiationException(f"Error in call to target '{target}'") from error


def _require_types(node: Mapping, prefix: str) -> None:
    """Raise ValueError unless the arguments are of the kinds that the target's signature names."""
    target = hydra.utils.get_object(node["_target_"])
    made = target.__init__ if isinstance(target, type) else target
    try:
        hints = typing.get_type_hints(made, include_extras=True)
    except (NameError, TypeError):  # of the user's own, which names what is not there to look at
        return
    checks.require_types(node, hints, prefix)


def source(config: Mapping) -> Source:
    """The data source of a ``data`` config; nothing is read yet."""
    return instantiate(config, prefix="data.")


def head(config: Mapping, spec: DataSpec, net: type[Network]) -> Head:
    """The head of a ``head`` config; how many components, if it does not say, the network does."""
    unsaid = "num_components" in config and config["num_components"] is None
    if unsaid and spec.levels is None:
        config = {**config, "num_components": net.num_components}
    return instantiate(config, spec, prefix="head.")


def model(config: Mapping, head_config: Mapping, spec: DataSpec) -> DensityModel:
    """The model of a ``model`` config: a network with its order and head, or a baseline.

    Args:
        config: Names a Network or a DensityModel by ``_target_``, and its arguments.
        head_config: Names the head; a baseline has none.
        spec: What a datum is.

    Raises:
        ValueError: The model, the head and the data do not go together.
    """
    config = {key: value for key, value in config.items() if key != "allow_large"}
    target = hydra.utils.get_class(config["_target_"])
    if issubclass(target, DensityModel):
        return instantiate(config, spec, prefix="model.")
    if not issubclass(target, Network):
        raise ValueError(f"model {config['_target_']} is neither a Network nor a DensityModel")
    config = {"resample_orders": False} | config  # runs of before it was a key lack it
    checks.require_types(config, ORDER_KEYS, "model.")
    name, order_seed, num_orders, resample_orders = (config.pop(key) for key in ORDER_KEYS)
    context = contexts.find(spec, config.pop("context"))
    made_head = head(head_config, spec, target)
    order = orders.make(name, spec.shape, joint=made_head.joint, seed=order_seed)
    net = instantiate(config, spec, made_head.num_params, order, prefix="model.", context=context)
    if resample_orders and net.any_order:
        raise ValueError(
            f"model {target.__name__} is trained on all orders as it is; use resample_orders=false"
        )
    if resample_orders and name != "random":
        raise ValueError(
            f"model.resample_orders=true trains on random orders, but model.order is {name}; "
            f"use model.order=random"
        )
    one = AutoregressiveModel(net, made_head, resample_orders=resample_orders)
    if num_orders > 1 or resample_orders:
        one.with_order(order)  # refuses at once a network that follows one order only
    if num_orders == 1:
        return one
    return one.mixture(name, range(order_seed, order_seed + num_orders))


def over_orders(model: DensityModel, config: Mapping, num_orders: int) -> DensityModel:
    """A trained model as a mixture over more or fewer orders than it was built with.

    Args:
        model: Built from ``config``, with its weights.
        config: A ``model`` config.
        num_orders: Orders of the mixture; the first of them are those of the config.

    Raises:
        ValueError: It follows no order, or it was not trained for so many.
    """
    checks.require_keys({"eval": {"num_orders": num_orders}})
    if "order" not in config:
        name = type(model).__name__
        raise ValueError(f"model {name} follows no order; leave eval.num_orders at null")
    trained = config["num_orders"]
    if num_orders == trained:
        return model
    if num_orders > trained and not model.any_order:
        raise ValueError(
            f"eval.num_orders is {num_orders}, but the model was trained on {trained} "
            f"{'order' if trained == 1 else 'orders'} alone; ask for no more, or train it for all "
            f"orders (model=deep_nade, or model.resample_orders=true)"
        )
    first = config["order_seed"]
    return model.mixture(config["order"], range(first, first + num_orders))


def located(config: Mapping) -> dict:
    """The config of a run with the files of its data named absolutely, where they are here.

    What is saved with a run is so found again from any other directory. A folder for caches need
    not exist yet.
    """
    data = dict(config["data"])
    for key in PATH_KEYS:
        if isinstance(path := data.get(key), str):
            path = os.path.abspath(os.path.expanduser(path))
            if key == "cache" or os.path.exists(path):
                data[key] = path
    return {**config, "data": data}


def optimizer(config: Mapping, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of an ``optimizer`` config."""
    checks.require_types(config, checks.OPTIMIZER, "optimizer.")
    return instantiate(config, params, prefix="optimizer.")


def schedule(config: Mapping) -> Schedule:
    """The learning-rate schedule of a ``schedule`` config."""
    return instantiate(config, prefix="schedule.")


def plain(config: Any) -> Any:
    """A config as resolved builtins, fit for a checkpoint."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def override(saved: Mapping, overrides: Iterable[str]) -> tuple[dict, list[str]]:
    """Apply overrides of the command line to a saved config.

    Args:
        saved: A resolved config.
        overrides: Such as ``trainer.max_epochs=20``; those of ``resume``, ``out`` and ``hydra``
            say where, not what, and are passed over.

    Returns:
        The config, and the dotted names of the keys whose values differ from the saved ones.

    Raises:
        ValueError: An override names a group or a key that the saved config does not have.
    """
    config = OmegaConf.create(dict(saved))
    for item in OverridesParser.create().parse_overrides(list(overrides)):
        key = item.key_or_group
        if key in ("resume", "out") or key.split(".")[0] == "hydra":
            continue
        missing = object()
        old = OmegaConf.select(config, key, default=missing)
        if old is missing or OmegaConf.is_dict(old):
            raise ValueError(
                f"resume continues the same run, to which {item.input_line!r} cannot be applied; "
                f"name single keys, such as trainer.max_epochs=20"
            )
        OmegaConf.update(config, key, item.value())
    merged = plain(config)
    return merged, changed(saved, merged)


def changed(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ between two nested configs."""
    names: list[str] = []
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += changed(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names
