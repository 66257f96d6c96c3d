"""What a stranger's config describes is tried without memory before it is built."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only


@final
class Frugal(TorchDispatchMode):
    """Refuses what a model of these weights does not need, before it is allocated.

    Each operation is first tried without memory, on torch's meta device.

    Args:
        weights: Of the checkpoint.
        path: Of the checkpoint.
    """

    def __init__(self, weights: Mapping[str, Tensor], path: Path):
        super().__init__()
        stored = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in weights.values()}
        # Models make up to 2.4 times their weights: masks, and weights that are drawn anew.
        self.bytes = 2**26 + 10 * sum(storage.nbytes() for storage in stored.values())
        self.operations = 10_000 + 50 * len(weights)
        self.path = path

    def __torch_dispatch__(
        self, function: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if not any(one.alias_info for one in function._schema.returns):
            where = {"device": "meta"} if "device" in kwargs or not args else {}
            small, named = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
            try:
                made = function(*small, **{**named, **where})
            except Exception:  # its size follows from values; it is no larger than what is there
                made = None
            for one in tree_iter(made):
                if isinstance(one, Tensor):
                    self.bytes -= one.numel() * one.element_size()
        self.operations -= 1
        if self.bytes < 0 or self.operations < 0:
            raise ValueError(
                f"checkpoint {self.path} is refused: its config describes a far larger model than "
                f"the weights that it holds"
            )
        return function(*args, **kwargs)
