"""What arguments must be: one sentence where one of them is something else.

A signature (or a table such as ``KEYS``) says the kind of each argument as a type, its range where
it has one and its choices where they are few: ``num_layers: Count``, ``dropout: Share``,
``accelerator: Literal["auto", "cpu"]``. A config's values are checked before any data are read;
``checked`` has a constructor that is called from Python refuse the same in the same words.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, ParamSpec, TypeVar

PARTS = ("data", "model", "head", "optimizer", "schedule")
"""Keys of a run's config that say what is built."""

PATH_KEYS = ("path", "root", "cache")
"""Keys of a data config that say where the data lies, but not what it is."""

HARMLESS = ("eval.", "samples.", "logger", *(f"trainer.{key}" for key in (
    "max_minutes", "test", "log_every", "checkpoint_every", "threads", "progress", "accelerator",
    "devices", "strategy",
)))  # fmt: skip
"""Keys that change what is shown or where a step is computed, but not what the step is."""

LARGEST = 2**31 - 1
"""No size, count or number of steps is larger; PyTorch's own sizes end near it."""

DEEPEST = 1000
"""No more layers follow one another: they would be built for hours, and never train."""

LARGEST_FLOAT = 1e300
"""What is larger, infinity and NaN are no numbers to compute with."""

NUM_SEEDS = 2**32
"""Of NumPy's frozen random streams, 0 .. NUM_SEEDS - 1."""

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    os.PathLike: "a path",
}


_UNIONS = (typing.Union, types.UnionType)


@dataclass(frozen=True)
class Range:
    """Numbers that a key may hold, as ``Annotated[int, Range(1, 9)]``.

    Attributes:
        least: The smallest.
        most: The largest.
        low_open: Whether ``least`` itself is outside.
        high_open: Whether ``most`` itself is outside.
    """

    least: float
    most: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        low = value > self.least if self.low_open else value >= self.least
        return low and (value < self.most if self.high_open else value <= self.most)

    def __str__(self) -> str:
        low = f"above {self.least:g}" if self.low_open else f"at least {self.least:g}"
        if self.most in (math.inf, LARGEST, DEEPEST):
            return low
        if self.low_open or self.high_open:
            return f"{low} and {'below' if self.high_open else 'at most'} {self.most}"
        return f"from {self.least} to {self.most}"

    def broken_by(self, value: float) -> str:
        """What the value, which is outside, must be."""
        return f"at most {self.most}" if value > self.most in (LARGEST, DEEPEST) else str(self)


@dataclass(frozen=True)
class Odd:
    """Odd numbers that a key may hold, as ``Annotated[int, Odd(3)]``.

    Attributes:
        least: The smallest.
    """

    least: int

    def __contains__(self, value: int) -> bool:
        return value >= self.least and value % 2 == 1

    def broken_by(self, value: int) -> str:
        """What the value, which is even or too small, must be."""
        return f"odd and at least {self.least}"


@dataclass(frozen=True)
class Seconds:
    """A time such as ``2.5s``, as ``Annotated[str, Seconds()]``."""

    def __contains__(self, value: str) -> bool:
        return re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?s", value) is not None

    def broken_by(self, value: str) -> str:
        """What the value must be."""
        return "a number of values, or the seconds of a sound, such as 2.5s"


Count = Annotated[int, Range(1, LARGEST)]
"""How many there are of what there must be."""
Number = Annotated[int, Range(0, LARGEST)]
"""How many there are of what there may be none of."""
Depth = Annotated[int, Range(1, DEEPEST)]
"""How many layers follow one another."""
DepthOrNone = Annotated[int, Range(0, DEEPEST)]
KernelSize = Annotated[int, Odd(3), Range(1, LARGEST)]
"""The side of a kernel with a middle and two sides."""
Seed = Annotated[int, Range(0, NUM_SEEDS - 1)]
Positive = Annotated[float, Range(0, low_open=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1, high_open=True)]
"""A part of a whole that is not all of it, such as what dropout drops."""
Factor = Annotated[float, Range(0, 1, low_open=True)]
"""What something shrinks by at each step, or not at all."""
Between = Annotated[float, Range(0, 1, low_open=True, high_open=True)]
Part = Annotated[float, Range(0, 1)]
"""A part of a whole, none and all of it included."""

KEYS: dict[str, Any] = {
    "seed": Seed,
    "eval.weights": Literal["ema", "raw"],
    "eval.batch_size": Count,
    "eval.num_orders": Count | None,
    "eval.adapt_lr": Positive,
    "adapt": bool,
    "by": Literal["auto", "window", "line", "piece"],
    "samples.num": Number,
    "samples.temperature": NotNegative,
    "checkpoint": Literal["best", "last"],
    "num": Count,
    "num_examples": Count | None,
    "batch_size": Count | None,
    "num_inputs": Count,
    "num_neighbours": Number,
    "num_completions": Count | None,
    "length": Count | Annotated[str, Seconds()] | None,
    "top_k": Count | None,
    "top_p": Factor | None,
    "num_particles": Count | None,
    "temperature": NotNegative,
    "temperatures": list[NotNegative] | None,
    "film": Annotated[int, Range(1, 100)] | None,
    "entropy": bool,
    "sampler": Literal["auto", "cached", "naive", "fixed_point", "speculative"],
    "block": Count | None,
    "draft_steps": Count | None,
    "label": Number | None,
    "keep": Part,
    "impute": Between | None,
    "num_trials": Count,
    "pruner": Literal["none", "hyperband", "halving"],
    "port": Annotated[int, Range(0, 65535)],
}
"""Keys of the verbs' own configs, which no signature describes; one name means one thing."""

OPTIMIZER: dict[str, Any] = {
    "lr": Positive,
    "betas": tuple[Share, Share],
    "rho": Share,
    "momentum": Share,
    "eps": Positive,
    "weight_decay": NotNegative,
}
"""Keys of PyTorch's optimizers, whose signatures know no ranges."""


def require_types(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ValueError unless each value is of the kind, and in the range, that is hinted at.

    Args:
        values: By key: numbers, text, null (None), lists and dicts of them.
        hints: Kinds by key, as a signature has them. A kind that no config can hold (a tensor, a
            class) is passed over, and so are keys that either of the two lacks.
        prefix: Of the key, in the sentence.
    """
    for name, value in values.items():
        if name in hints and (wanted := _wanted(value, hints[name])):
            raise ValueError(f"{prefix}{name} is {value!r}; {wanted}")


_P = ParamSpec("_P")
_R = TypeVar("_R")


def checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function, or a constructor, that refuses arguments which its signature does not allow.

    Raises:
        ValueError: By what is returned, where an argument is of another kind than its type says,
            or outside its range or choices.
    """
    signature = inspect.signature(function)
    hints = functools.cache(lambda: typing.get_type_hints(function, include_extras=True))

    @functools.wraps(function)
    def checking(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:  # too many arguments, or too few: the call itself says so
            arguments = {}
        require_types(arguments, hints())
        return function(*args, **kwargs)

    return checking


def require_keys(config: Mapping[str, Any]) -> None:
    """Raise ValueError unless the keys of a verb's own config are as ``KEYS`` says."""
    require_types(config, KEYS)
    for section in ("eval", "samples"):
        names = {name: hint for name, hint in KEYS.items() if name.startswith(f"{section}.")}
        hints = {name.partition(".")[2]: hint for name, hint in names.items()}
        require_types(config.get(section) or {}, hints, f"{section}.")


def require_together(
    overrides: Iterable[str], way: str, ways: Mapping[str, Sequence[str]]
) -> None:
    """Raise ValueError where a key was typed that nothing of what is done reads.

    Args:
        overrides: What was typed.
        way: What is done, one of ``ways``.
        ways: The keys that each of them reads; a key of none of them is passed over.
    """
    for typed in overrides:
        key = typed.partition("=")[0].lstrip("+")
        others = [other for other, keys in ways.items() if key in keys]
        if others and way not in others:
            raise ValueError(f"{typed} goes with {_listed(others)}, not with {way}; leave it out")


def require_fields(made: type, values: Any, prefix: str, *, optional: Sequence[str] = ()) -> None:
    """Raise ValueError unless the keys are those that a dataclass is made of.

    Args:
        made: The dataclass.
        values: What a config has in its place.
        prefix: Of its keys, for sentences, such as ``"trainer."``.
        optional: Keys that may be missing; all others must be there, whatever their defaults.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.')} is {values!r}; it must be keys with values")
    known = [field.name for field in dataclasses.fields(made)]
    for key in values:
        if key not in known:
            raise ValueError(f"{prefix}{key} is no key; choose from {', '.join(known)}")
    for name in known:
        if name not in values and name not in optional:
            raise ValueError(f"{prefix}{name} is missing")


def require_class(name: str, value: object, kind: type, example: str) -> None:
    """Raise TypeError unless an argument that no config can hold is an object of its class.

    Args:
        name: Of the argument.
        value: What was given.
        kind: The class.
        example: What is one, for the sentence: ``"such as splits.spec"``.
    """
    if not isinstance(value, kind):
        raise TypeError(
            f"{name} is of type {type(value).__name__}; it must be of type {kind.__name__}, "
            f"{example}"
        )


def started_by_torchrun() -> bool:
    """Whether this process is one of torchrun's: a variable or two left behind do not say so."""
    variables = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
                 "MASTER_PORT")  # fmt: skip
    return all(name in os.environ for name in variables)


def num_processes() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1


def require_alone(verb: str, *, sweep: bool) -> None:
    """Raise ValueError where several processes would each do what one has to.

    Args:
        verb: What they were started for.
        sweep: Whether it is a sweep.
    """
    if num_processes() > 1 and (sweep or verb not in ("train", "eval")):
        what = f"a sweep of {verb}" if sweep else verb
        raise ValueError(
            f"torchrun started {num_processes()} processes, which share the work of a training or "
            f"of an evaluation (train, eval), but not that of {what}; start it without torchrun"
        )


def _wanted(value: Any, hint: Any) -> str | None:
    """What the value must be instead; None where it is as hinted."""
    if _fits(value, hint):
        return None
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"choose {_listed(inner)}"
    if origin is Annotated and _fits(value, inner[0]):
        return f"it must be {next(one for one in inner[1:] if value not in one).broken_by(value)}"
    if origin in _UNIONS:
        for one in inner:  # a number out of its range, where a number or null is allowed
            if typing.get_origin(one) is Annotated and _fits(value, typing.get_args(one)[0]):
                return _wanted(value, one)
        of_lists = [one for one in inner if typing.get_origin(one) in (list, Sequence, tuple)]
        if len(of_lists) == 1 and isinstance(value, (list, tuple)):
            return _wanted(value, of_lists[0])
    if origin in (list, Sequence, tuple) and isinstance(value, (list, tuple)):
        right_length = origin is not tuple or Ellipsis in inner or len(value) == len(inner)
        kind = inner[0]
        if right_length and all(_fits(one, _kind(kind)) for one in value):
            wrong = next(one for one in value if not _fits(one, kind))
            return (_wanted(wrong, kind) or "").replace("it", "each", 1)
    words = _description(hint)
    if _huge(value):
        words = words.replace("a number", "a finite number")
    elif isinstance(value, (list, tuple)) and any(map(_huge, value)):
        words = words.replace("numbers", "finite numbers")
    return f"it must be {words}"


def _huge(value: Any) -> bool:
    return isinstance(value, float) and not abs(value) <= LARGEST_FLOAT


def _size(number: Any) -> Any:
    """Its absolute value. The type of ``numbers.Integral`` declares no order."""
    return abs(number)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and hint in (int, float):
        return False
    if hint is int:
        return isinstance(value, numbers.Integral) and _size(value) < 2**63
    if hint is float:
        return isinstance(value, (float, numbers.Integral)) and _size(value) <= LARGEST_FLOAT
    if hint in _WORDS:
        return isinstance(value, hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(value, inner[0]) and all(value in one for one in inner[1:])
    if origin is Literal:
        return value in inner and type(value) in map(type, inner)
    if origin in _UNIONS:
        if any(_kind(one) in (int, float) for one in inner):
            # A learning rate may also be a tensor, which no config can hold.
            inner = tuple(one for one in inner if _description(one))
        return any(_fits(value, one) for one in inner)
    if origin in (list, Sequence) or (origin is tuple and Ellipsis in inner):
        return isinstance(value, (list, tuple)) and all(_fits(one, inner[0]) for one in value)
    if origin is tuple:
        fits = isinstance(value, (list, tuple)) and len(value) == len(inner)
        return fits and all(map(_fits, value, inner))
    return True


def _kind(hint: Any) -> Any:
    """The type without its range."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _description(hint: Any) -> str:
    """The kind in words; empty for one that no config can hold."""
    if hint in _WORDS:
        return _WORDS[hint]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return "seconds such as 2.5s" if Seconds() in inner else _description(inner[0])
    if origin is Literal:
        return _listed(inner)
    kinds = [_description(one) for one in inner if one is not Ellipsis]
    if origin in (list, Sequence, tuple) and kinds and kinds[0]:
        example = ", such as [100]" if origin is list and _kind(inner[0]) is int else ""
        many = f"{len(kinds)} " if origin is tuple and Ellipsis not in inner else ""
        return f"a list of {many}{kinds[0].removeprefix('a ')}s{example}"
    return " or ".join(filter(None, kinds))


def _listed(choices: Sequence) -> str:
    """``a, b or c``."""
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}" if most else last
