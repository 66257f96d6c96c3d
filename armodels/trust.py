"""Which classes a config may name: this package's own, and those that a user vouches for."""

import functools
import importlib
import os
import pkgutil
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from armodels import checks, data, earlier, heads, networks
from armodels.data.base import Source
from armodels.density.base import DensityModel
from armodels.heads import Head
from armodels.networks.base import Network
from armodels.schedules import Schedule


@dataclass(frozen=True)
class Trust:
    """What may be built beside this package's own classes, which are always allowed.

    A config may come with a stranger's run, and a class that it names is code that runs.

    Attributes:
        names: Dotted names of the user's own classes, as this very command gives them.
        file: Where the config was read, for the sentence that refuses it; None: typed by hand.
    """

    names: frozenset[str] = frozenset()
    file: Path | None = None

    @classmethod
    def of(cls, trusted: str | Iterable[str] | None, file: Path | None = None) -> "Trust":
        """By what ``trust=`` says: null, a name, or a list of them.

        Raises:
            ValueError: It is none of these.
        """
        names = [] if trusted is None else [trusted] if isinstance(trusted, str) else trusted
        dotted = r"[^\W\d]\w*(\.[^\W\d]\w*)+"
        if not isinstance(names, (list, tuple, set, frozenset)) or not all(
            isinstance(name, str) and re.fullmatch(dotted, name) for name in names
        ):
            raise ValueError(
                f"trust is {trusted!r}; it must be the dotted name of a class, such as "
                f"trust=mynet.Net, or a list of them: trust=[mynet.Net,mynet.Data]"
            )
        return cls(frozenset(names), file)

    @classmethod
    def in_own(cls, config: Mapping) -> "Trust":
        """For a config that this command made: all that it names was named by the user."""
        return cls(frozenset(foreign(config)))

    def refuse(self, why: str, name: object) -> typing.NoReturn:
        """Raise ValueError, with the way to allow it where it may be a user's own class."""
        where = f"{self.file} is refused: it" if self.file else "the config"
        text = f"{where} {why}, whose code would run"
        if _may_be_own(name):
            text += f"; if you know that code and trust it, add trust={name}"
        raise ValueError(text)


_LIBRARIES = frozenset(
    "armodels torchvision numpy scipy sklearn joblib numba pandas PIL matplotlib tensorboard "
    "hydra omegaconf yaml".split()
)


def _may_be_own(name: object) -> bool:
    """Whether a target may be a model, head or data of the user's: no function of a library is.

    Advice to trust os.system would be the attack itself. Layers of torch may stand within a model.
    """
    top, *rest = str(name).split(".")
    if top != "torch":
        return top not in _LIBRARIES and top not in sys.stdlib_module_names
    found: Any = torch
    for part in rest:
        found = vars(found).get(part) if hasattr(found, "__dict__") else None
    return isinstance(found, type) and issubclass(found, torch.nn.Module)


PACKAGE = Trust()
"""Nothing but this package's own classes."""


@functools.cache
def _modules() -> frozenset[str]:
    """Names of the modules that hold what a config may name."""
    found = {
        f"armodels.{one}" for one in ("baselines", "flows", "heads", "optimizers", "schedules")
    }
    for package in (data, networks):
        found |= {
            f"{package.__name__}.{one.name}" for one in pkgutil.iter_modules(package.__path__)
        }
    return frozenset(found)


def ours(name: object, kinds: tuple[type, ...]) -> Any | None:
    """The class of this package, or the optimizer of torch, that is called ``name``, or None.

    Nothing else is imported to find out, and what a module itself has imported is not its own,
    save what a package has from its own modules (armodels.baselines.GMM).
    """
    current = earlier.class_now(name) if isinstance(name, str) else ""
    module, _, attribute = current.rpartition(".")
    if module == "torch.optim":
        found, kinds = (
            vars(torch.optim).get(attribute),
            (torch.optim.Optimizer,) * (torch.optim.Optimizer in kinds),
        )
    elif module in _modules():
        found = vars(importlib.import_module(module)).get(attribute)
        if not f"{getattr(found, '__module__', None)}.".startswith(f"{module}."):
            return None
    else:
        return None
    if found is heads.auto and Head in kinds:
        return found
    return found if isinstance(found, type) and issubclass(found, kinds) else None


KINDS = (Source, Network, DensityModel, Head, Schedule, torch.optim.Optimizer)
"""What a config may name."""


def foreign(config: Mapping) -> list[str]:
    """Targets named in the parts of a config, also deep inside, that are not the package's."""
    found = {str(name) for part in checks.PARTS for name in _targets(config.get(part))}
    return sorted(name for name in found if ours(name, KINDS) is None)


def trusting(config: Mapping) -> dict[str, str | list[str]]:
    """What a command about a run of this config must say besides: its trust=..., if anything."""
    names = foreign(config)
    return {"trust": names[0] if len(names) == 1 else names} if names else {}


def _targets(node: object) -> Iterator[object]:
    children: Iterable[object] = ()
    if isinstance(node, Mapping):
        children = node.values()
        if "_target_" in node:
            yield node["_target_"]
    elif isinstance(node, (list, tuple)):
        children = node
    for child in children:
        yield from _targets(child)


def locate(node: Mapping, trust: Trust, *kinds: type) -> Any:
    """The class that a part of a config names.

    Args:
        node: The part.
        trust: Which of the user's own classes may be built.
        kinds: What it may be.

    Raises:
        ValueError: The package has none of that name and kind, and the user does not vouch for it.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ValueError(f"{trust.file or 'the config'} names no class: it has no _target_ there")
    name = node["_target_"]
    found = ours(name, kinds)
    if found is not None:
        _require_plain({key: node[key] for key in node if key != "_target_"}, name, trust)
        return found
    for target in _targets(node):
        if target not in trust.names and ours(target, KINDS) is None:
            trust.refuse(f"names the class {target}, which is none of armodels", target)
    if name not in trust.names:  # of this package, but of another kind
        raise ValueError(f"{name} is no {' or '.join(kind.__name__ for kind in kinds)}")
    here = os.getcwd()
    if here not in sys.path:  # last, so that no file in the shell's folder shadows a package
        sys.path.append(here)
    module, _, attribute = str(name).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"_target_ is {name!r}, which cannot be imported ({error}); write it as module.Class"
        ) from error
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise ValueError(f"{name} is no {' or '.join(kind.__name__ for kind in kinds)}")
    return found


def _require_plain(value: object, name: str, trust: Trust) -> None:
    """Raise ValueError where the keys of a class of this package hold more than plain values."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            inner = value["_target_"]
            trust.refuse(f"names the class {inner} within {name}", inner)
        for key, child in value.items():
            if str(key).startswith("_"):
                raise ValueError(
                    f"{trust.file or 'the config'} has the key {key} in {name}, which is refused"
                )
            _require_plain(child, name, trust)
    elif isinstance(value, (list, tuple)):
        for child in value:
            _require_plain(child, name, trust)
