"""Autoregressive density models with exact likelihoods. Importing this costs nothing."""

import contextlib
import importlib
import os
from typing import TYPE_CHECKING

# OpenMP's idle threads spin for milliseconds by default. That starves whoever else could use the
# core: the fused kernels, which then run no faster on two threads than on one, and other
# processes. Some 50 microseconds are enough to keep small operations fast. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _give_home() -> None:
    """Numba and matplotlib keep files below the home. Where there is none, as of a container's
    user whom the system does not know, Numba would make a folder called ~ for them.
    """
    place = os.environ.get("ARMODELS_CACHE") or os.environ.get("ARMODELS_DATA")
    if place and os.path.expanduser("~") == "~":
        for name, folder in (("NUMBA_CACHE_DIR", "numba"), ("MPLCONFIGDIR", "matplotlib")):
            path = os.path.join(os.path.abspath(place), "cache", folder)
            with contextlib.suppress(OSError):  # a place that cannot be written is none
                os.makedirs(path, exist_ok=True)
                if os.access(path, os.W_OK):
                    os.environ.setdefault(name, path)


_give_home()

__version__ = "0.1.0"

_PUBLIC = {
    "fit": "armodels.training.fit",
    "evaluate": "armodels.evaluation",
    "load_data": "armodels.named",
    "build": "armodels.named",
    "load_model": "armodels.checkpoints",
    "DataSpec": "armodels.spec",
    "Splits": "armodels.data.base",
    "Settings": "armodels.training.settings",
    "Watching": "armodels.training.settings",
    "Result": "armodels.training.result",
    "bits_per_dim": "armodels.spec",
    "AutoregressiveModel": "armodels.density.autoregressive",
    "DensityModel": "armodels.density.base",
    "Network": "armodels.networks.base",
    "OrderMixture": "armodels.density.mixture",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:  # what __getattr__ gives, by its type
    from armodels.checkpoints import load_model as load_model
    from armodels.data.base import Splits as Splits
    from armodels.density.autoregressive import AutoregressiveModel as AutoregressiveModel
    from armodels.density.base import DensityModel as DensityModel
    from armodels.density.mixture import OrderMixture as OrderMixture
    from armodels.evaluation import evaluate as evaluate
    from armodels.named import build as build
    from armodels.named import load_data as load_data
    from armodels.networks.base import Network as Network
    from armodels.spec import DataSpec as DataSpec
    from armodels.spec import bits_per_dim as bits_per_dim
    from armodels.training.fit import fit as fit
    from armodels.training.result import Result as Result
    from armodels.training.settings import Settings as Settings
    from armodels.training.settings import Watching as Watching

else:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> object:
        if name in _PUBLIC:
            return getattr(importlib.import_module(_PUBLIC[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
