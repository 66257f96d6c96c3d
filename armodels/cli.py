"""The command line: a verb, then Hydra overrides. Nothing here imports torch until a task runs."""

import contextlib
import difflib
import functools
import importlib
import io
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from armodels import __version__, checks, disk, errors, limits, names, search, show, typed

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Verb(NamedTuple):
    """One word of the command line."""

    module: str
    """Module of armodels.tasks whose ``main(config)`` does it."""
    help: str
    path_key: str | None = None
    """Key that a bare path on the command line stands for."""
    many: bool = False
    """Whether several bare paths may stand there."""


VERBS = {
    "train": Verb("train", "train a model, evaluate it exactly, draw samples"),
    "tune": Verb("tune", "search the values of a training by which valid nats are least"),
    "distill": Verb("distill", "train a student that draws as a run does, in one pass", "teacher"),
    "eval": Verb("evaluate", "exact likelihood of a split under a trained model", "run"),
    "sample": Verb("sample", "draw samples from a trained model", "run"),
    "complete": Verb("complete", "fill in the unknown part of given examples", "run"),
    "score": Verb("score", "nats and bits/dim of every example, as CSV", "run"),
    "query": Verb("query", "exact log-probability of part of every example, as CSV", "run"),
    "features": Verb("features", "hidden activations of a network, and linear probes", "run"),
    "compress": Verb("compress", "examples, or files of your own, as a small file", "run"),
    "decompress": Verb("decompress", "what compress wrote, as it was, bit for bit", "run"),
    "export": Verb("export", "write a trained model as safetensors, JSON and a card", "run"),
    "compare": Verb("compare", "table over run directories", "runs", many=True),
    "list": Verb("list", "models, data, heads and experiments"),
    "tensorboard": Verb("tensorboard", "open TensorBoard on run directories", "logdir"),
}
COMPOSING = ("tune", "distill")
"""Verbs that train: what is not their own key is one of ``train``."""

_FLAGS = {"compare": {"--csv": "format=csv", "--markdown": "format=markdown"}}

USAGE = f"""armodels {__version__}: autoregressive density models with exact likelihoods

usage: armodels VERB [key=value ...] [Hydra flags]

verbs:
{chr(10).join(f"  {name:<12} {verb.help}" for name, verb in VERBS.items())}

examples:
  armodels train                                   # MADE on handwritten digits, no download
  armodels train model=nade data=mnist seed=1      # choose model and data
  armodels train data=toy data.name=rings          # a density whose true entropy is known
  armodels train -m model=made,nade,gmm seed=1,2   # sweep: every combination
  armodels train resume=outputs/digits/made/...    # go on, bit for bit
  armodels tune model=nade num_trials=30           # search rate, width and weight decay
  armodels distill outputs/toy/made/...            # a student that draws in one pass
  armodels compare outputs                         # table of all runs
  armodels export outputs/digits/made/... out=made # safetensors, JSON and a card, for others
  armodels list                                    # what there is to choose from
  armodels train --cfg job                         # every knob, with its value
  eval "$(armodels -sc install=bash)"              # tab completion

HYDRA_FULL_ERROR=1 shows tracebacks; see README.md and docs/ for more.
"""


PATIENCE = 15.0
"""Seconds after which one of several processes that has failed speaks for itself."""


def fail(message: str, code: int = 1) -> NoReturn:
    """One sentence on standard error, then exit."""
    show.conclude(f"error: {message}")
    sys.exit(code)


def main() -> None:
    """Entry point of the console script."""
    logging.raiseExceptions = False  # of other packages, whose lines may go where nobody reads
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # of a stream that somebody replaced
                stream.reconfigure(errors="backslashreplace")
    show.lost, show.muted, show.concluded = None, False, ""
    code: Any = 0
    try:
        _answer(*sys.argv)
    except SystemExit as stop:
        code = stop.code
    except BrokenPipeError as error:  # of what Hydra prints
        show.lost = error
    except KeyboardInterrupt as stop:  # before a verb listens, or after
        if not show.concluded:  # torchrun's signal may come while the program ends by itself
            show.tell("interrupted")
        code = getattr(stop, "exit_code", 130)
    lost = show.flushed()
    if isinstance(lost, BrokenPipeError):
        code = code or 141  # as of a program that SIGPIPE ended: its reader wants no more
    elif lost is not None and not code:
        show.tell(f"error: not everything could be printed: {lost.strerror}")
        code = 1
    if code in (1, 2) and show.muted and show.concluded:
        # torchrun ends all processes as soon as one has failed: the first one, which speaks for
        # all, may be slower, and would say no more than that it was stopped.
        time.sleep(PATIENCE)
        show.muted = False  # it is well, and does not know
        show.tell(f"process {os.environ['RANK']}: {show.concluded}")
    sys.exit(code)


def _answer(program: str, *args: str) -> None:
    if args[:1] and args[0] in ("-sc", "--shell-completion"):
        return complete_words(program, [*args])
    if not args or args[0] in ("-h", "--help", "help"):
        return show.say(USAGE.rstrip())
    name = args[0]
    if name in ("--version", "-V") or (name in VERBS and "--version" in args):
        return show.say(f"armodels {__version__}")
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, 1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(VERBS)}"
        fail(f"{name!r} is no verb of armodels; {hint}", 2)
    return run_verb(program, name, [*args[1:]])


def run_verb(program: str, name: str, args: list[str]) -> None:
    """Hand one verb to Hydra and turn what goes wrong into one sentence and an exit code.

    Args:
        program: The first word of the command line.
        name: The verb.
        args: The words after it.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        fail("the shell's directory is gone; change to one that exists")
    follows = checks.started_by_torchrun() and os.environ["RANK"] != "0"
    show.muted = follows  # rank 0 owns the directory and the log, and speaks for all
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us rather than Hydra's printer
    try:
        translated = _translate(name, args)
        checks.require_alone(name, sweep=typed.is_sweep(translated))
    except ValueError as error:
        fail(str(error), 2)
    records: list[dict] = []
    broken = ""
    with contextlib.ExitStack() as stack:
        stack.enter_context(limits.raising())
        sys.argv = [program, *translated]
        os.environ["ARMODELS_JOBS"] = os.environ["ARMODELS_SWEEP"] = ""
        try:
            if follows or typed.is_sweep(translated):  # nothing else needs a disk with space
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="armodels-"))
                # Jobs of a sweep may run in other processes: they report in this file.
                os.environ["ARMODELS_JOBS"] = str(Path(scratch) / "jobs")
                os.environ["ARMODELS_SWEEP"] = os.environ["ARMODELS_JOBS"]
            if follows:
                folders = [f"hydra.run.dir={scratch}/run", f"hydra.sweep.dir={scratch}/run"]
                sys.argv += [*folders, "hydra.job_logging.root.handlers=[]"]
            os.environ["ARMODELS_SWEPT"] = " ".join(_swept(translated))
            with limits.unhidden():
                _hydra_main(name, records)
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", signal.SIGINT)
            show.conclude(str(stop) or _stopped(name, args, signal.Signals(number).name))
            if name == "train" and typed.is_sweep(translated) and str(stop):
                show.tell(f"the sweep goes on by {typed.again(name, args)}")
            sys.exit(128 + number)
        except BrokenPipeError:
            raise
        except Exception as error:
            if full_error:
                raise
            broken = errors.explain(error, name, translated)
        if (jobs := Path(os.environ["ARMODELS_JOBS"])).is_file():
            records += map(json.loads, jobs.read_text(encoding="utf-8").splitlines())
        if records or broken:
            _report(records, name, translated, full_error, broken)


def _stopped(name: str, args: list[str], by: str) -> str:
    """What is said where a verb was stopped that has nothing of its own to say."""
    if checks.num_processes() > 1 and by == "SIGTERM":
        by += " (which torchrun sends to all where one of its processes has ended)"
    again = show.in_processes(typed.again(name, args), checks.num_processes())
    return f"{name} was stopped by {by}; no file is left half-written; run it again: {again}"


def _hydra_main(name: str, records: list[dict]) -> None:
    import hydra
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    from armodels import launchers

    Plugins.instance().register(_search_path_plugin())
    launchers.register()
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("clock", time.strftime, replace=True)
    OmegaConf.register_new_resolver("recipe", _recipe, replace=True)

    def job(config: "DictConfig") -> float | None:
        value, record = _job(name, config)
        if record and (file := os.environ["ARMODELS_JOBS"]):
            with open(file, "a", encoding="utf-8") as jobs:
                jobs.write(json.dumps(record) + "\n")
        elif record:
            records.append(record)
        return value

    options = {"config_path": "pkg://armodels.configs", "version_base": "1.3"}
    hydra.main(config_name=name, **options)(job)()


def _job(name: str, config: "DictConfig") -> tuple[float | None, dict]:
    """Run a verb's task. A failure is recorded, not raised, so that a sweep goes on.

    Returns:
        What the task returns, and what there is to report of it at the end.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    swept = name == "train" and HydraConfig.get().mode == RunMode.MULTIRUN
    plain: dict = {}
    record: dict[str, Any] = {}
    value: float | None = float("nan")
    how = "done"
    try:
        plain = _plain(name, config)
        goes_on = plain.pop("skip_done", False)  # of the command: no run is told
        on_error = plain.pop("on_error", "continue")
        _require_types(name, plain)
        task = importlib.import_module(f"armodels.tasks.{VERBS[name].module}")
        others = {}
        if name in COMPOSING:
            train = importlib.import_module("armodels.tasks.train")
            others = {"compose": _composed, "train": train.main}
        with limits.unhidden(), show.quiet() if swept else contextlib.nullcontext():
            if swept or goes_on:
                from armodels import sweeps
            if swept and sweeps.is_over(on_error):
                how = sweeps.leave_out(plain)
            elif goes_on:
                folder = HydraConfig.get().sweep.dir if swept else None
                keys = os.environ["ARMODELS_SWEPT"].split()
                value, how = sweeps.go_on(task.main, plain, folder, keys)
            elif swept and os.environ.get("ARMODELS_COMES_BACK"):
                value, how = sweeps.come_back(task.main, plain)
            else:
                value = task.main(plain, **others)
    except Exception as error:
        record = {
            "error": errors.explain(error, name, sys.argv[1:]),
            "traceback": traceback.format_exc(),
        }
        if "directory" in plain:
            from armodels import failing

            with contextlib.suppress(OSError):  # of a full disk, perhaps, as the sentence says
                failing.note(plain, record["error"], record["traceback"], of_several=swept)
    if swept or record:
        record["how"] = how
        record["overrides"] = OmegaConf.to_container(config.get("overrides", OmegaConf.create([])))
        record["directory"] = plain.get("resume") or plain.get("directory")
    if swept:
        from armodels import sweeps

        show.say(sweeps.line(HydraConfig.get().job.num, record))
    return value, record


def _plain(name: str, config: "DictConfig") -> dict:
    """The config of a verb as plain values."""
    from omegaconf import OmegaConf

    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ValueError(f"{missing[0]}=... is missing; see armodels {name} --help")
    return cast(dict, OmegaConf.to_container(config, resolve=True))


def _composed(words: Sequence[str], directory: str) -> dict:
    """The config of ``armodels train WORDS`` in a directory."""
    with search.composed(words, directory) as config:
        plain = _plain("train", config)
    _require_types("train", plain)
    return plain


def _require_types(name: str, config: dict) -> None:
    """Raise ValueError where the verb's YAML has a number, a switch or a name, and config not."""
    shipped = errors.read_verb(name)[0]
    sections = {key: value for key, value in shipped.items() if isinstance(value, dict)}
    for section, defaults in {"": shipped, **sections}.items():
        hints = {k: type(v) for k, v in defaults.items() if type(v) in (int, float, bool)}
        words = {k: v for k, v in defaults.items() if isinstance(v, str) and k not in typed.LISTS}
        hints |= {k: str for k, v in words.items() if not v.startswith("${")}
        hints |= {k: str | None for k in defaults if k in typed.TEXT}
        values = config.get(section, {}) if section else config
        checks.require_types(values, hints, f"{section}." if section else "")
    checks.require_keys(config)


def _report(records: list[dict], name: str, args: list[str], full: bool, broken: str) -> None:
    """The table of a sweep, a sentence a failed job, what ``broken`` says, and an exit code."""
    if records and typed.is_sweep(args) and name == "train":
        from armodels import sweeps

        sweeps.report(records, errors.read_verb("compare")[0])
    failed = [record for record in records if "error" in record]
    for record in failed:
        if full:
            print(record["traceback"], file=sys.stderr)
        if len(records) > 1 and record["overrides"]:
            show.tell(f"failed: {' '.join(record['overrides'])}")
        show.conclude(f"error: {record['error']}")
    if broken:
        fail(broken)
    if failed:
        sys.exit(1)


def _translate(name: str, args: list[str]) -> list[str]:
    """What was typed after a verb, as Hydra's words."""
    verb, flags = VERBS[name], _FLAGS.get(name, {})
    words = typed.translate(
        args,
        verb=name,
        path_key=verb.path_key,
        many=verb.many,
        flags=flags,
        suggest=lambda key, value: errors.suggest(
            key, value, "train" if name in COMPOSING else name, args
        ),
    )
    if name in COMPOSING:
        return search.packed(words, errors.read_verb(name)[0], name)
    values = dict(word.partition("=")[::2] for word in words)
    if all(values.get(key, "null") != "null" for key in ("resume", "out")):
        raise ValueError(
            f"resume={values['resume']} goes on in its own directory; "
            f"leave out={values['out']} away"
        )
    if values.get("resume", "null") != "null":  # where its data lies, of whatever kind it is
        places = {f"data.{key}" for key in checks.PATH_KEYS}
        words = [f"++{word}" if word.partition("=")[0] in places else word for word in words]
    return [flags.get(word, word) for word in words]


def _run_dir(
    resume: str | None,
    out: str | None,
    default: str,
    skip_done: object = False,
    on_error: object = "continue",
) -> str:
    """Where a run writes; that, or a run to resume, is looked at before anything is made."""
    checks.require_types({"skip_done": skip_done}, {"skip_done": bool}, "")
    if on_error not in ("continue", "stop"):
        raise ValueError(f"on_error is {on_error!r}; choose continue or stop")
    if not resume:
        disk.require_place(out)
        if skip_done and not os.path.isdir(out or default):
            raise FileNotFoundError(
                f"there is no sweep to go on with: the folder {out or default} does not exist; "
                f"begin one without skip_done=true"
            )
        return out or default
    disk.as_path(resume, "resume")
    if not (Path(resume) / "config.yaml").is_file():
        raise FileNotFoundError(
            f"{resume} is not a run directory: it has no config.yaml to resume from"
        )
    return os.path.abspath(resume)


def _run_name(seed: object, name: str | None, tags: object) -> str:
    """<data>/<model>/<what differs>-seed<k>-<suffix>, below the folder of outputs."""
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    choices = settings.runtime.choices
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", str(choices[key])) for key in ("data", "model")]
    swept = {*(settings.sweeper.get("params") or {}), *os.environ["ARMODELS_SWEPT"].split()}
    names.read_tags(tags)  # refuses them before anything is made
    last = names.run_name(settings.overrides.task, seed, name=name, swept=swept)
    return "/".join([*parts, last])


def _recipe(data: str | None, *, _root_: "DictConfig") -> str:
    """The recipe that a data set ships with; ``default`` where there is none.

    An experiment says all that it needs, so that its numbers stay what they are.
    """
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    listed = cast(dict, OmegaConf.to_container(_root_, resolve=False))["defaults"]
    if any(isinstance(item, dict) and item.get("experiment") for item in listed):
        return "default"
    options = GlobalHydra.instance().config_loader().get_group_options("recipe")
    return data if data is not None and data in options else "default"


def _swept(args: list[str]) -> list[str]:
    """Keys of the command line that a sweep varies."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not typed.is_sweep(args):
        return []
    words = [arg for arg in args if "=" in arg and not arg.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(words)
    return sorted({item.key_or_group for item in overrides if item.is_sweep_override()})


@functools.cache
def _search_path_plugin() -> type:
    """One class a process: Hydra keeps every plugin, and each lengthens its search path."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class UserConfigs(SearchPathPlugin):
        """Configs of $ARMODELS_CONFIG_PATH come before the shipped ones."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in filter(None, os.environ.get("ARMODELS_CONFIG_PATH", "").split(":")):
                search_path.prepend("armodels", f"file://{os.path.abspath(folder)}")

    return UserConfigs


def complete_words(program: str, args: list[str]) -> None:
    """Tab completion: verbs first, then Hydra's own for the verb."""
    if len(args) < 2 or not args[1].startswith("query="):
        sys.argv = [program, *args]  # install or uninstall
        return _hydra_main("train", [])
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        print(" ".join(VERBS))
        return None
    if words[1] in VERBS:  # hide the verb and let Hydra complete the rest
        rest = line.split(None, 2)
        os.environ["COMP_LINE"] = f"{words[0]} {rest[2] if len(rest) > 2 else ''}"
        sys.argv = [program, *args]
        return _hydra_main(words[1], [])
    return None
