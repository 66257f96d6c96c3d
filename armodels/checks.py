"""What a config's values must be: one sentence where one of them is something else."""

import os
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
}


def require_types(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ValueError unless each value is of the kind that is hinted at.

    Args:
        values: Of a config: numbers, text, null, lists and dicts of them.
        hints: Kinds by key, as a signature has them. Whatever a config cannot say (a tensor, a
            class) is passed over, and so are keys that either of the two lacks.
        prefix: Of the key, in the sentence.
    """
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{prefix}{name} is {value!r}; it must be {_said(hints[name])}")


def require_at_least(values: Mapping[str, Any], **least: int) -> None:
    """Raise ValueError unless each of the named values is so large; names are the user's."""
    for name, bound in least.items():
        if values[name] < bound:
            raise ValueError(f"{name} is {values[name]}; it must be at least {bound}")


def started_by_torchrun() -> bool:
    """Whether this process is one of torchrun's: a variable or two left behind do not say so."""
    variables = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
                 "MASTER_PORT")  # fmt: skip
    return all(name in os.environ for name in variables)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and hint in (int, float):
        return False
    if hint is float:
        return isinstance(value, (int, float))
    if hint in _WORDS:
        return isinstance(value, hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if isinstance(value, str) and {int, float} & {*inner} and str not in inner:
            return False  # such as a learning rate, which may also be a tensor
        return any(_fits(value, one) for one in inner)
    if origin in (list, Sequence):
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    return True


def _said(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    inner = [_said(one) for one in typing.get_args(hint)]
    if typing.get_origin(hint) in (list, Sequence):
        example = ", such as [100]" if typing.get_args(hint) == (int,) else ""
        return f"a list of {inner[0].removeprefix('a ')}s{example}"
    return " or ".join(filter(None, inner))
