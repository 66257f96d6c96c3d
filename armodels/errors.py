"""Errors as one sentence: what, where, what to do."""

import difflib
import os
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from armodels import show


def explain(error: BaseException, name: str, args: list[str]) -> str:
    """One sentence for the user.

    Args:
        error: Whatever went wrong.
        name: The verb.
        args: What was typed after it.
    """
    from omegaconf.errors import OmegaConfBaseException

    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    kinds: dict[str, Any] = {type(link).__name__: link for link in reversed(chain)}
    if parsed := kinds.get("OverrideParseException"):
        return _bad_override(parsed.override, name)
    if "MissingConfigException" in kinds:
        return _bad_choice(str(kinds["MissingConfigException"]))
    # Of joblib, and of Ray.
    if {"BrokenProcessPool", "WorkerCrashedError"} & {k.__name__ for k in type(error).__mro__}:
        return (
            "a process of the sweep was killed, perhaps for its memory, and those beside it were "
            "stopped; what is done is kept, and the same command with skip_done=true goes on"
        )
    text = str(error)
    if key := re.search(r"Could not override '([^']+)'", text):
        return _bad_key(key.group(1), name, args)
    if several := re.search(r"Ambiguous value for argument '(.+)'", text):
        swept, _, values = several.group(1).partition("=")
        return f"{swept}={values} is a sweep, which needs -m; a list is written {swept}=[{values}]"
    taken = [arg for arg in args if arg.startswith("~")]
    if taken and isinstance(error, (OmegaConfBaseException, TypeError)):
        return f"{' and '.join(taken)} takes away what armodels {name} needs; leave it out"
    if missing := re.search(r"Interpolation key '([^']+)' not found", text):
        return (
            f"${{{missing.group(1)}}} stands for the value of a key, and there is no such key; "
            f"where the signs are meant, write a backslash before them: \\${{"
        )
    if "InterpolationResolutionError" in kinds and len(chain) > 1:
        if found := re.search(r"Environment variable '[^']+' not found", text):
            return found.group()
        # What a resolver raised itself, not what this came of.
        own = (link for link in chain if not isinstance(link, OmegaConfBaseException))
        return _sentence(next(own, chain[-1]))
    if "InstantiationException" in kinds and len(chain) > 1:
        target = re.search(r"target '([^']+)'", str(kinds["InstantiationException"]))
        return _sentence(chain[-1], f"{target.group(1)} refuses its config: " if target else "")
    of_hydra = any(kind.__name__ == "HydraException" for kind in type(error).__mro__)
    if of_hydra or isinstance(error, OmegaConfBaseException):
        return " ".join(text.split())
    return _sentence(error)


def _sentence(error: BaseException, where: str = "") -> str:
    """The message; of an error that nobody foresaw, also where, its type and how to see more."""
    text = re.sub(r"^\[Errno \d+\] ", "", " ".join(str(error).split()))
    if isinstance(error, (ValueError, OSError, FloatingPointError, RuntimeError)) and text:
        if "out of memory" in text.lower():
            text = f"out of memory; lower trainer.batch_size or raise trainer.accumulate ({text})"
        return text
    if isinstance(error, MemoryError):
        about = f" ({text})" if text else ""
        return f"there is not enough memory{about}; ask for less, or for less at a time"
    return f"{where}{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows where)"


def _bad_override(item: str, name: str) -> str:
    """What Hydra's grammar does not take, and how to quote it."""
    key, sign, value = item.partition("=")
    if not sign:
        return f"{item!r} is no key=value; {suggest('', item, name) or 'see armodels --help'}"
    if value[:1] in "[{" and value[-1:] in "]}":
        parts = [part.strip(" '\"") for part in value[1:-1].split(",")]
        example = show.override(key, [part for part in parts if part])
        return (
            f"{key}={value} cannot be read; a list is written {key}=[a,b], and names with other "
            f"signs than letters, digits, dots and hyphens are quoted, such as {example}"
        )
    return (
        f"{key}={value} cannot be read; text with such signs is quoted: "
        f"{show.override(key, value)}"
    )


_EXTRAS = {"joblib": "sweep", "ray": "ray"}
"""Launchers whose plugins come with an extra of this package."""


def _bad_choice(message: str) -> str:
    """Hydra's message names the group and lists the choices on lines of their own."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    wanted = re.search(r"Could not find '([^']+)'", lines[0])
    if not wanted or "/" not in wanted.group(1):
        return " ".join(lines)
    group, _, choice = wanted.group(1).rpartition("/")
    if group == "hydra/sweeper":
        return (
            f"{group}={choice} comes with a plugin that is not installed: "
            f"pip install hydra-{choice}-sweeper"
        )
    if group == "hydra/launcher" and choice in _EXTRAS:
        return (
            f"{group}={choice} comes with a plugin that is not installed: "
            f"pip install 'armodels[{_EXTRAS[choice]}]'"
        )
    after = [s.startswith("Available options") for s in lines].index(True) + 1
    stop = [s.startswith("Config search path") for s in lines].index(True)
    names = [item.removeprefix(f"{group}/") for item in lines[after:stop]]
    names = sorted({*names, *_EXTRAS}) if group == "hydra/launcher" else names
    close = difflib.get_close_matches(choice, names, 1)
    hint = f"did you mean {group}={close[0]}? " if close else ""
    return f"{group}={choice} is unknown; {hint}choose from {', '.join(sorted(names))}"


# Keys


def _names(node: dict, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a nested config."""
    for child, value in node.items():
        if not str(child).startswith("_"):
            yield f"{prefix}{child}"
            if isinstance(value, dict):
                yield from _names(value, f"{prefix}{child}.")


def _read(path: Any) -> dict:
    import yaml

    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _config_of(run: str) -> dict:
    """That of a run, which may be a stranger's; empty where it cannot be read."""
    from armodels.run import RunDirectory

    try:
        return RunDirectory(run).read_config()
    except (OSError, ValueError):
        return {}


def read_verb(name: str, args: list[str] | None = None) -> tuple[dict, dict[str, str]]:
    """The YAML of a verb, and its choices by group, those of the data's recipe among them."""
    configs = files("armodels.configs")
    verb = _read(configs / f"{name}.yaml")
    chosen = [item for item in verb.pop("defaults") if isinstance(item, dict)]
    verb.pop("hydra", None)
    choices = {group: choice for item in chosen for group, choice in item.items()}
    if "recipe" in choices:
        typed = _typed(args or [])
        own = typed.get("recipe") or typed.get("data", choices["data"])
        if not (configs / "recipe" / f"{own}.yaml").is_file() or "experiment" in typed:
            own = "default"
        choices["recipe"] = own
        recipe = _read(configs / "recipe" / f"{own}.yaml")["defaults"]
        choices |= {group.lstrip("/"): one for item in recipe for group, one in item.items()}
    return verb, {group: choice for group, choice in choices.items() if " " not in group}


def _typed(args: list[str]) -> dict[str, str]:
    """Values by key, as they stand on the command line."""
    return dict(arg.partition("=")[::2] for arg in args if "=" in arg)


def _known(name: str, args: list[str]) -> list[str]:
    """Every key of a verb, under what was chosen for its groups."""
    verb, choices = read_verb(name, args)
    known = [*_names(verb), *choices]
    choices |= {group: choice for group, choice in _typed(args).items() if group in choices}
    for group, choice in choices.items():
        folder = files("armodels.configs") / group
        known += [f"{group}.{one}" for one in _names(_read(folder / f"{choice}.yaml"))]
    return known


ORDER_KEYS = ("order", "order_seed", "num_orders", "resample_orders", "objective")
"""What only a network that follows other orders than the raster has in its YAML."""

_WORDS = {"epochs": "max_epochs", "steps": "max_steps", "iterations": "max_steps",
          "learning_rate": "lr", "gpus": "devices", "workers": "threads", "checkpoint": "resume",
          "dataset": "data", "network": "model", "output": "out", "output_dir": "out",
          "random_seed": "seed"}  # fmt: skip
"""Keys as other programs call them."""


def suggest(key: str, value: str, name: str, args: list[str] | None = None) -> str:
    """The ``key=value`` that was meant, as far as it can be told; else nothing.

    Args:
        key: As typed; empty where a value stands alone.
        value: As typed; empty where there is none.
        name: The verb.
        args: What else was typed.
    """
    known = _known(name, args or [])
    if not key:
        return _choice_of(value, name)
    last = key.rpartition(".")[2]
    last = last if any(one.rpartition(".")[2] == last for one in known) else _WORDS.get(last, last)
    same = [one for one in known if one == key] or [
        one for one in known if one.rpartition(".")[2] == last
    ]
    close = same or difflib.get_close_matches(key, [one for one in known if one != key], 1, 0.5)
    if not close:
        return ""
    best = min(close, key=lambda one: (not one.startswith(("trainer.", "optimizer.")), one))
    return f"{best}={value}" if value else best


def _choice_of(word: str, name: str) -> str:
    """``group=word`` where a group of the verb has such a choice, ``resume=word`` of a run."""
    verb, choices = read_verb(name)
    if "resume" in verb and (Path(word) / "config.yaml").is_file():
        return show.override("resume", word)
    folders = {group: files("armodels.configs") / group for group in choices}
    if name == "list" and (files("armodels.configs") / word).is_dir():
        return f"group={word}"
    return next((f"{g}={word}" for g, f in folders.items() if (f / f"{word}.yaml").is_file()), "")


def _bad_key(key: str, name: str, args: list[str]) -> str:
    """The key does not exist, at all or under what was chosen for its group."""
    typed = _typed(args)
    saved = typed.get("resume", "").strip("'\"")
    if saved and key in _names(_config_of(saved)):
        return f"{key} of a run that is resumed cannot change; start a new run instead"
    word = next((arg for arg in args if arg.startswith(f"{key}=")), "")
    if word and os.path.exists(word):
        return f"{key} is no key of armodels {name}; a path that holds = is written ./{word}"
    verb, choices = read_verb(name, args)
    value = typed.get(key, "")
    if "run" in verb and "run" not in typed and (value.endswith(".pt") or os.path.exists(value)):
        hint = show.override("run", value)
        return f"{key} is no key of armodels {name}; did you mean {hint}?"
    configs = files("armodels.configs")
    group, _, last = key.rpartition(".")
    if group in choices:
        options = {p.name.removesuffix(".yaml"): p for p in (configs / group).iterdir()}
        takes = {option: sorted(_names(_read(path))) for option, path in options.items()}
        for choice in typed.get(group, str(choices[group])).split(","):  # of a sweep, the one
            own = takes.get(choice, [])
            if last in own or not own:
                continue
            target = _read(options[choice]).get("_target_", "")
            raster = last in ORDER_KEYS and target.startswith("armodels.networks.")
            near = difflib.get_close_matches(last, own, 1)
            if near and not raster:
                return f"{key} is no key of armodels {name}; did you mean {group}.{near[0]}?"
            # What needs more than its name, such as the runs of a blend, is no way out.
            whole = {other for other in takes if "???" not in _read(options[other]).values()}
            others = [other for other in sorted(whole) if last in takes[other]]
            several = " or another" if len(others) > 3 else ""
            hint = f"; use {group}={', '.join(others[:3])}{several} for it" if others else ""
            if raster:
                return f"{group}={choice} follows one order only: it has no {key}{hint}"
            return f"{group}={choice} has no key {last}, only {', '.join(own)}{hint}"
    if group == "hydra.launcher":
        chosen = f"hydra/launcher={typed.get('hydra/launcher', 'basic')}"
        return (
            f"{key} is no key of {chosen}; see "
            f"armodels {name} {chosen} --cfg hydra -p hydra.launcher"
        )
    close = suggest(key, "", name, args)
    hint = f"did you mean {close}?" if close else f"see armodels {name} --cfg job"
    return f"{key} is no key of armodels {name}; {hint}"
