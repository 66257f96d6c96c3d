"""What a search varies: knobs, as the command line or a shipped space says them in Hydra's words.

``choice(a,b)`` (or ``a,b``), ``range(start,stop,step)``, ``interval(low,high)``, and
``tag(log,...)`` around the last two: the syntax of a sweep.
"""

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from armodels import show, typed

if TYPE_CHECKING:
    from omegaconf import DictConfig

PARTS = ("model", "head", "optimizer", "schedule", "trainer")
"""What a search may vary; nats of different data, or of different examples, cannot be ranked."""


@dataclass(frozen=True)
class Knob:
    """A key whose value is searched.

    Attributes:
        key: As typed, such as ``optimizer.lr``.
        typed: The search as typed.
        kind: ``choice`` of values, or numbers: ``whole`` or ``real``.
        values: Of a choice, as Hydra's words.
        low: Of numbers, the smallest.
        high: Of numbers, the largest.
        step: Of numbers, the distance of two; None: whatever lies between.
        log: Whether numbers are drawn by their logarithm.
    """

    key: str
    typed: str
    kind: Literal["choice", "whole", "real"]
    values: tuple[str, ...] = ()
    low: float = math.nan
    high: float = math.nan
    step: float | None = None
    log: bool = False

    def word(self, value: object) -> str:
        """``key=value`` for the command line; of a real number four digits."""
        if self.kind == "real":
            value = float(f"{value:.4g}")
        return f"{self.key}={value}"

    @property
    def first(self) -> object:
        """A value that it has."""
        return self.values[0] if self.kind == "choice" else self.low

    def holds(self, value: object) -> object:
        """The value of a config as one of the knob's own; None: it has none like it."""
        if self.kind == "choice":
            same = [one for one in self.values if one == show.hydra(value)]
            return same[0] if same else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        steps = (value - self.low) / (self.step or 1)
        apart = self.step is not None and not math.isclose(steps, round(steps), abs_tol=1e-9)
        return value if self.low <= value <= self.high and not apart else None


def packed(words: Sequence[str], own: Collection[str], verb: str) -> list[str]:
    """Hydra's words with those of a training in one list, ``words=[...]``.

    Args:
        words: Of the command line, after ``typed.translate``.
        own: Keys of the verb itself, which stay; flags and Hydra's own keys stay, too.
        verb: The verb, for the sentence.

    Raises:
        ValueError: A sweep is asked for.
    """
    if typed.is_sweep(words):
        what = "chooses its trials itself" if verb == "tune" else "trains one student"
        raise ValueError(f"armodels {verb} {what}; leave -m away")
    stay: list[str] = []
    train: list[str] = []
    after_flag = False
    for word in words:
        key = word.partition("=")[0].lstrip("+~")
        setting = word[:1] != "-" and not after_flag
        mine = setting and key not in own and not key.startswith("hydra")
        (train if mine else stay).append(word)
        after_flag = word in typed.VALUE_FLAGS
    # It stands first: argparse takes no words on both sides of a flag.
    return [f"words={show.hydra(train)}", *stay] if train else stay


def read(words: Sequence[str]) -> tuple[list[str], list[Knob]]:
    """The words of a training that are fixed, and the knobs of the others.

    Args:
        words: As Hydra reads them.

    Raises:
        ValueError: A search cannot be, or stands beside another value of its key.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    fixed, knobs = [], []
    seen: set[str] = set()
    for item in parser.parse_overrides([*words]):
        if item.key_or_group in seen:
            raise ValueError(f"{item.key_or_group} is given twice; leave one of the two out")
        seen.add(item.key_or_group)
        if item.is_sweep_override():
            knobs.append(_knob(item))
        else:
            fixed.append(item.input_line)
    return fixed, knobs


def _knob(item: Any) -> Knob:
    """What an override of Hydra's searches."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

    key, value, text = item.get_key_element(), item.value(), item.input_line.partition("=")[2]
    if item.key_or_group.split(".")[0] not in PARTS:
        raise ValueError(
            f"{item.input_line} cannot be searched: a search varies {', '.join(PARTS)}, and what "
            f"it compares are nats of the same data"
        )
    unknown = sorted(set(getattr(value, "tags", ())) - {"log"})
    log = "log" in getattr(value, "tags", ())
    if unknown:
        raise ValueError(f"{item.input_line} has the tag {unknown[0]}; the only tag is log")
    if isinstance(value, ChoiceSweep) and not log:
        return Knob(key, text, "choice", tuple(map(_plain, item.sweep_string_iterator())))
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        whole = isinstance(low, int) and isinstance(high, int)
        step = None
    elif isinstance(value, RangeSweep):
        number = math.ceil((value.stop - value.start) / value.step)
        low, high = sorted((value.start, value.start + (number - 1) * value.step))
        whole = isinstance(low, int) and isinstance(high, int)
        step = abs(value.step)
        if number < 1 or (log and step != 1):
            why = "holds no number" if number < 1 else "is by the logarithm, and so has step 1"
            raise ValueError(f"{item.input_line} {why}; write interval(low,high)")
    else:
        raise ValueError(
            f"{item.input_line} cannot be searched; write choice(a,b), range(start,stop,step), "
            f"interval(low,high) or tag(log,interval(low,high))"
        )
    if not math.isfinite(low) or not math.isfinite(high) or low > high or (log and low <= 0):
        raise ValueError(
            f"{item.input_line} holds no number to try; low comes first, and of tag(log,...) it "
            f"is above 0"
        )
    step = None if whole and step == 1 else step
    return Knob(key, text, "whole" if whole else "real", low=low, high=high, step=step, log=log)


def _plain(text: str) -> str:
    """A switch as it is typed; all else as Hydra has it."""
    return text.lower() if text in ("True", "False") else text


def shipped(model: str) -> list[str]:
    """The search space that ships with a model, as words; empty: there is none.

    Args:
        model: The choice of the config group.
    """
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    loader: Any = GlobalHydra.instance().config_loader()
    if model not in loader.get_group_options("tune"):
        return []
    space: Any = OmegaConf.to_container(loader.repository.load_config(f"tune/{model}").config)
    return [f"{key}={value}" for key, value in space.items()]


@contextlib.contextmanager
def composed(words: Sequence[str], directory: str) -> Iterator["DictConfig"]:
    """Inside the block, the config of ``armodels train WORDS`` can be resolved.

    Args:
        words: As Hydra reads them.
        directory: Of the run.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import open_dict, read_write

    holder: Any = HydraConfig.instance()
    before = holder.cfg
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("train", [*words], RunMode.RUN)
    try:
        with read_write(config), open_dict(config):
            config.hydra.runtime.output_dir = directory
            holder.set_config(config)
            del config["hydra"]
        yield config
    finally:
        holder.cfg = before


def command(words: Sequence[str]) -> str:
    """``armodels train WORDS``, as a shell must be given it."""
    return " ".join(["armodels", "train", *map(show.shell, words)])


def lookup(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, or of a group the choice; None where a config has none."""
    if "." not in key:
        return config["choices"].get(key)
    node: Any = config
    for part in key.lstrip("+").split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
