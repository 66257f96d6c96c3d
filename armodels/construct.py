"""From configs to objects: no config passes beyond this file and the tasks."""

import contextlib
import difflib
import functools
import inspect
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import hydra.utils
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from omegaconf import OmegaConf

from armodels import checks, contexts, orders
from armodels.data.base import Source
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.mixture import OrderMixture
from armodels.density.mixture import over_orders as mixture_over_orders
from armodels.heads import Head
from armodels.networks.base import Network
from armodels.networks.blend import Blend
from armodels.objectives import ObjectiveName
from armodels.schedules import Schedule
from armodels.spec import DataSpec
from armodels.trust import PACKAGE, Trust, locate, ours

ORDER_KEYS = {
    "order": orders.OrderName,
    "order_seed": checks.Seed,
    "num_orders": checks.Count,
    "resample_orders": bool,
    "objective": ObjectiveName,
}
"""Keys of a network's YAML that say in which order it is used; the others are its arguments."""

LATER = {"resample_orders": False, "objective": "all_orders"}
"""Those that runs may be older than."""

RASTER = {"order": "raster", "order_seed": 0, "num_orders": 1, **LATER}
"""What they are for a network that follows the raster order only, whose YAML lacks them."""

BLEND = f"{Blend.__module__}.{Blend.__name__}"
"""The network whose config holds those of its members, in ``runs``."""


def instantiate(
    node: Mapping, *args: Any, part: str, trust: Trust, kind: type, **objects: Any
) -> Any:
    """The object that ``node._target_`` names, of its other keys, ``args`` and ``objects``.

    Args:
        node: A part of a config.
        args: What the class takes first.
        part: Its key, which sentences about it name.
        trust: Which of the user's own classes may be built.
        kind: What it must be.
        objects: What else the class takes.

    Raises:
        ValueError: The class is not allowed, or a key is none of its arguments or of another kind.
        InstantiationException: The class itself raised an error, which is the cause.
    """
    target, name = locate(node, trust, kind), node["_target_"]
    keys = {key: value for key, value in node.items() if key != "_target_"}
    if ours(name, (kind,)) is None:
        _require_types(target, keys, f"{part}.")
        make = _own_maker(node, args, trust)
    else:
        _require_keys(target, keys, [*args], objects, part)
        _require_types(target, keys, f"{part}.")
        make = functools.partial(target, *args, **keys)
    try:
        return make(**objects)  # which Hydra would turn into configs
    except Exception as error:
        raise InstantiationException(f"Error in call to target '{name}'") from error


def _own_maker(node: Mapping, args: tuple, trust: Trust) -> Any:
    """A user's own class with its keys; Hydra builds what is nested in them.

    Hydra 1.4 takes only targets that are listed.
    """
    allow = getattr(hydra.utils, "execution_whitelist", None)
    with allow("armodels.*", "torch.*", *trust.names) if allow else contextlib.nullcontext():
        return hydra.utils.instantiate(
            OmegaConf.create({**node, "_partial_": True}), *args, _convert_="all"
        )


def _require_keys(target: Any, keys: Mapping, args: list, objects: Mapping, part: str) -> None:
    """Raise ValueError unless the keys are arguments that a config may give, and all it must."""
    known = dict([*inspect.signature(target).parameters.items()][len(args) :])
    for name, argument in known.items():
        needed = argument.default is argument.empty and argument.kind not in _SEVERAL
        if needed and name not in keys and name not in objects:
            raise ValueError(f"{part}.{name} is missing; give {part}.{name}=VALUE")
    for key in keys:
        if key not in known or key in objects:
            free = [one for one in known if one not in objects]
            near = difflib.get_close_matches(key, free, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"{target.__name__} has no argument {key}; {hint}its arguments are "
                f"{', '.join(free) or 'none'}"
            )


_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _require_types(target: Any, keys: Mapping, prefix: str) -> None:
    """Raise ValueError unless the arguments are of the kinds that the target's signature names."""
    made = typing.cast(Any, target).__init__ if isinstance(target, type) else target
    try:
        hints = typing.get_type_hints(made, include_extras=True)
    except (NameError, TypeError):  # of the user's own, which names what is not there to look at
        return
    checks.require_types(keys, hints, prefix)


def source(config: Mapping, trust: Trust = PACKAGE) -> Source:
    """The data source of a ``data`` config; nothing is read yet.

    Raises:
        ValueError: It names none, or its keys are wrong.
    """
    if not config:
        raise ValueError(
            "the run was trained by armodels.fit, on data that its files do not name: name them "
            "with data=..., or call armodels.evaluate in Python"
        )
    return instantiate(config, part="data", trust=trust, kind=Source)


def head(config: Mapping, spec: DataSpec, net: type[Network], trust: Trust = PACKAGE) -> Head:
    """The head of a ``head`` config; how many components, if it does not say, the network does.

    Args:
        config: Names a Head by ``_target_``, and its arguments.
        spec: What a datum is.
        net: The network's class, which knows how many components suit it.
        trust: Which of the user's own classes may be built.
    """
    unsaid = "num_components" in config and config["num_components"] is None
    if unsaid and spec.levels is None:
        config = {**config, "num_components": net.num_components}
    return instantiate(config, spec, part="head", trust=trust, kind=Head)


def model(
    config: Mapping, head_config: Mapping, spec: DataSpec, trust: Trust = PACKAGE
) -> DensityModel:
    """The model of a ``model`` config: a network with its order and head, or a baseline.

    Args:
        config: Names a Network or a DensityModel by ``_target_``, and its arguments.
        head_config: Names the head; a baseline has none.
        spec: What a datum is.
        trust: Which of the user's own classes may be built.

    Raises:
        ValueError: The model, the head and the data do not go together, or a class is refused.
    """
    members = {}
    if isinstance(config, Mapping) and config.get("_target_") == BLEND:
        runs = config.get("runs")
        config = {key: value for key, value in config.items() if key != "runs"}
        _require_types(Blend, config, "model.")  # before what may take long
        several = runs if isinstance(runs, (list, tuple)) else [runs]
        members["runs"] = [member(one, spec, trust) for one in several]
    target = locate(config, trust, Network, DensityModel)
    config = {key: value for key, value in config.items() if key != "allow_large"}
    if isinstance(target, type) and issubclass(target, DensityModel):
        return instantiate(config, spec, part="model", trust=trust, kind=DensityModel)
    if not (isinstance(target, type) and issubclass(target, Network)):
        raise ValueError(f"model {config['_target_']} is neither a Network nor a DensityModel")
    config = (RASTER if target.raster_only else LATER) | config
    if not target.takes_context:  # runs from before its key went have it
        config = {"context": None, **config}
    checks.require_types(config, ORDER_KEYS | {"context": str | None}, "model.")
    for key in (*ORDER_KEYS, "context"):
        if key not in config:
            raise ValueError(f"model {target.__name__} needs the key {key}")
    name, order_seed, num_orders, resample_orders, objective = (
        config.pop(key) for key in ORDER_KEYS
    )
    named = config.pop("context")
    if named is not None and not target.takes_context:
        raise ValueError(
            f"model {target.__name__} is not conditioned on anything; leave out model.context"
        )
    context = {"context": contexts.find(spec, named)} if target.takes_context else {}
    made_head = head(head_config, spec, target, trust)
    order = orders.make(name, spec.shape, joint=made_head.joint, seed=order_seed)
    net = instantiate(
        config,
        spec,
        made_head.num_params,
        order,
        part="model",
        trust=trust,
        kind=Network,
        **context,
        **members,
    )
    if resample_orders and net.any_order:
        raise ValueError(
            f"model {target.__name__} is trained on all orders as it is; use resample_orders=false"
        )
    if resample_orders and name != "random" and objective == "all_orders":
        raise ValueError(
            f"model.resample_orders=true trains on random orders, but model.order is {name}; "
            f"use model.order=random, or model.objective=canonical"
        )
    one = AutoregressiveModel(net, made_head, resample_orders=resample_orders, objective=objective)
    if num_orders > 1 or resample_orders:
        one.with_order(order)  # refuses at once a network that follows one order only
    if num_orders == 1:
        return one
    return mixture_over_orders(one, name, range(order_seed, order_seed + num_orders))


def member(config: Any, spec: DataSpec, trust: Trust) -> DensityModel:
    """One of the models that a blend mixes, of the configs that its own config holds.

    Args:
        config: Its ``model`` and its ``head``, as ``blending.take_up`` copied them.
        spec: What a datum of the blend is.
        trust: Which of the user's own classes may be built.

    Raises:
        ValueError: It holds none, or they do not go together.
    """
    parts = config if isinstance(config, Mapping) else {}
    if not all(isinstance(parts.get(part), Mapping) for part in ("model", "head")):
        raise ValueError(f"model.runs holds {str(config)[:50]!r}, which is no member of a blend")
    return model(config["model"], config["head"], spec, trust)


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
    if not isinstance(model, AutoregressiveModel | OrderMixture):
        name = type(model).__name__
        raise ValueError(f"model {name} follows no order; leave eval.num_orders at null")
    config = {**RASTER, **config}
    trained = config["num_orders"]
    if num_orders == trained:
        return model
    if num_orders > trained and not model.any_order:
        raise ValueError(
            f"eval.num_orders is {num_orders}, but the model was trained on {trained} "
            f"{'order' if trained == 1 else 'orders'} alone; ask for no more, or train it for all "
            f"orders (model=deep_nade, or model.resample_orders=true)"
        )
    one = model.model if isinstance(model, OrderMixture) else model
    if num_orders > trained and one.canonical:
        raise ValueError(
            f"eval.num_orders is {num_orders}, but the model was trained for {trained} canonical "
            f"{'order' if trained == 1 else 'orders'}; ask for no more, or train it with "
            f"model.num_orders={num_orders} or model.objective=all_orders"
        )
    first = config["order_seed"]
    return mixture_over_orders(model, config["order"], range(first, first + num_orders))


def moved(data: Mapping, places: Mapping | None) -> dict:
    """The ``data`` config of a run, where a command says that it lies elsewhere now.

    Args:
        data: Of the run.
        places: Path keys as the command has them; null: as the run has it.

    Raises:
        ValueError: The data has no such key.
    """
    elsewhere = {key: (places or {}).get(key) for key in checks.PATH_KEYS}
    elsewhere = {key: place for key, place in elsewhere.items() if place is not None}
    for key in elsewhere:
        if key not in data:
            name = str(data.get("_target_")).rpartition(".")[2]
            raise ValueError(
                f"data.{key} says where the data of the run lies, but {name} lies nowhere: "
                f"leave it out"
            )
    return {**data, **elsewhere}


def same_data(own: DataSpec, found: DataSpec) -> DataSpec:
    """The data that a run was trained on, under the run's own name, wherever it lies now.

    Its checksum says whether it is the same, or its name where it has none. That of pictures is
    known when they are loaded, and until then nothing is refused.

    Args:
        own: What the checkpoint says of it.
        found: What there is now.

    Raises:
        ValueError: It is other data.
    """
    if own.checksum and not found.checksum:
        return replace(found, name=own.name)
    by_sum = bool(own.checksum and found.checksum)
    if found.checksum != own.checksum if by_sum else found.name != own.name:
        now = found.name if found.name != own.name else f"another {found.name}"
        raise ValueError(
            f"the run was trained on {own.name}, but its data has changed and is now {now}, with "
            f"other rows in its splits; restore it, or say with data.path or data.root where it "
            f"lies unchanged"
        )
    return replace(found, name=own.name)


def located(config: Mapping) -> dict:
    """The config of a run with the files of its data named absolutely, where they are here.

    What is saved with a run is so found again from any other directory. A folder for caches need
    not exist yet.
    """
    data = dict(config["data"])
    for key in checks.PATH_KEYS:
        if isinstance(path := data.get(key), str):
            path = os.path.abspath(os.path.expanduser(path))
            if key == "cache" or os.path.exists(path):
                data[key] = path
    return {**config, "data": data}


def optimizer(
    config: Mapping, params: Iterable[torch.nn.Parameter], trust: Trust = PACKAGE
) -> torch.optim.Optimizer:
    """The optimizer of an ``optimizer`` config.

    Args:
        config: Names an optimizer by ``_target_``, and its arguments.
        params: What it changes.
        trust: Which of the user's own classes may be built.
    """
    locate(config, trust, torch.optim.Optimizer)
    checks.require_types(config, checks.OPTIMIZER, "optimizer.")
    return instantiate(config, params, part="optimizer", trust=trust, kind=torch.optim.Optimizer)


def schedule(config: Mapping, trust: Trust = PACKAGE) -> Schedule:
    """The learning-rate schedule of a ``schedule`` config."""
    return instantiate(config, part="schedule", trust=trust, kind=Schedule)


def plain(config: Any) -> Any:
    """A config as resolved builtins, fit for a checkpoint."""
    return OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config


def typed_values(overrides: Iterable[str]) -> dict[str, Any]:
    """What overrides say, however they are written: 1e-3 as 0.001, and 'a' as a.

    Args:
        overrides: As typed; of one key the last one counts.

    Returns:
        Value by key; a key that is taken away stands after ``~``.

    Raises:
        ValueError: One is none.
    """
    return {key.lstrip("+"): value for key, value in map(_typed_value, overrides)}


@functools.cache
def _typed_value(override: str) -> tuple[str, Any]:
    try:
        item = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ValueError(f"{override!r} is no override") from error
    return item.get_key_element(), item.value()


def override(saved: Mapping, overrides: Iterable[str]) -> tuple[dict, list[str]]:
    """Apply overrides of the command line to a saved config.

    Args:
        saved: A resolved config.
        overrides: Such as ``trainer.max_epochs=20``; those of ``resume``, ``out``,
            ``trust`` and ``hydra`` do not say what is trained, and are passed over.

    Returns:
        The config, and the dotted names of the keys whose values differ from the saved ones.

    Raises:
        ValueError: An override names a group or a key that the saved config does not have.
    """
    config = OmegaConf.create(dict(saved))
    for item in OverridesParser.create().parse_overrides(list(overrides)):
        key = item.key_or_group
        if key in ("resume", "out", "trust") or key.split(".")[0] == "hydra":
            continue
        missing = object()
        old = OmegaConf.select(config, key, default=missing)
        if old is missing or OmegaConf.is_dict(old):
            typed = item.input_line.lstrip("+")
            raise ValueError(
                f"resume continues the same run, to which {typed!r} cannot be applied; name "
                f"single keys, such as trainer.max_epochs=20"
            )
        OmegaConf.update(config, key, item.value())
    merged = plain(config)
    return merged, changed(saved, merged)


def changed(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Dotted names of the keys whose values differ between two nested configs.

    Args:
        old: One config.
        new: The other.
        prefix: What stands before each name, such as ``"model."``.
    """
    names: list[str] = []
    for key in sorted({*old, *new}, key=str):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += changed(a, b, f"{prefix}{key}.")
        elif a != b:
            names.append(f"{prefix}{key}")
    return names
