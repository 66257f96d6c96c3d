"""What every class of networks must have, looked at before anything of it is used."""

import inspect
from collections.abc import Collection
from typing import Any

from armodels.spec import KINDS

OWN_NAMES = frozenset({"spec", "num_params", "order", "order_table", "context"})
"""What ``Network`` keeps for all subclasses, none of which is a weight or a layer."""


def require_interface(kind: Any) -> None:
    """Raise ValueError unless a class of networks says what it takes, and hears a context."""
    kinds = getattr(kind, "kinds", None)
    if isinstance(kinds, str) or not isinstance(kinds, Collection) or not {*kinds} <= {*KINDS}:
        raise ValueError(
            f"model {kind.__name__} does not say which data it takes (kinds is {kinds!r}); "
            f'set kinds = frozenset({{"vector"}}) in its class, or the like'
        )
    try:
        inspect.signature(kind.forward).bind(None, None, None)
    except TypeError:
        raise ValueError(
            f"model {kind.__name__} must have forward(self, x, context=None), "
            f"not forward{inspect.signature(kind.forward)}"
        ) from None
