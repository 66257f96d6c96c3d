"""The command line: a verb, then Hydra overrides. Nothing here imports torch until a task runs."""

import difflib
import functools
import importlib
import json
import os
import re
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

from armodels import __version__, checks, names


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
    "eval": Verb("evaluate", "exact likelihood of a split under a trained model", "run"),
    "sample": Verb("sample", "draw samples from a trained model", "run"),
    "complete": Verb("complete", "fill in the unknown part of given examples", "run"),
    "score": Verb("score", "nats and bits/dim of every example, as CSV", "run"),
    "compare": Verb("compare", "table over run directories", "runs", many=True),
    "list": Verb("list", "models, data, heads and experiments"),
    "tensorboard": Verb("tensorboard", "open TensorBoard on run directories", "logdir"),
}
_HYDRA_FLAGS_WITH_VALUE = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"}
_HYDRA_FLAGS_WITH_VALUE |= {"--cfg", "-c", "--package", "-p", "--info", "-i"}
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
  armodels compare outputs                         # table of all runs
  armodels list                                    # what there is to choose from
  armodels train --cfg job                         # every knob, with its value
  eval "$(armodels -sc install=bash)"              # tab completion

HYDRA_FULL_ERROR=1 shows tracebacks; see README.md and docs/ for more.
"""


def fail(message: str, code: int = 1) -> NoReturn:
    """One sentence on standard error, then exit."""
    print(f"armodels: error: {message}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Entry point of the console script."""
    program, *args = sys.argv
    if args[:1] and args[0] in ("-sc", "--shell-completion"):
        return complete_words(program, args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return None
    if args[0] in ("--version", "-V"):
        print(f"armodels {__version__}")
        return None
    name = args[0]
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, 1)
        hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(VERBS)}"
        fail(f"{name!r} is no verb of armodels; {hint}", 2)
    return run_verb(program, name, args[1:])


def run_verb(program: str, name: str, args: list[str]) -> None:
    """Hand one verb to Hydra and turn what goes wrong into one sentence and an exit code."""
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach us rather than Hydra's printer
    if sys.path[0] != os.getcwd():
        sys.path.insert(0, os.getcwd())  # users' own classes, named by _target_
    with tempfile.TemporaryDirectory(prefix="armodels-") as scratch:
        # Jobs of a sweep may run in other processes: they report their failures in this file.
        os.environ["ARMODELS_FAILURES"] = failures = str(Path(scratch) / "failures")
        sys.argv = [program, *_translate(name, args)]
        if checks.started_by_torchrun() and os.environ["RANK"] != "0":
            # Rank 0 owns the directory and the log.
            folders = [f"hydra.run.dir={scratch}", f"hydra.sweep.dir={scratch}"]
            sys.argv += [*folders, "hydra.job_logging.root.handlers=[]"]
        try:
            _hydra_main(name)
        except KeyboardInterrupt as stop:
            print(f"armodels: {str(stop) or 'interrupted'}", file=sys.stderr)
            sys.exit(getattr(stop, "exit_code", 130))
        except Exception as error:
            if full_error:
                raise
            fail(explain(error, name, sys.argv[1:]))
        if Path(failures).is_file():
            lines = Path(failures).read_text().splitlines()
            _report_failures([json.loads(line) for line in lines], full_error)


def _hydra_main(name: str) -> None:
    import hydra
    from hydra.core.plugins import Plugins
    from omegaconf import OmegaConf

    Plugins.instance().register(_search_path_plugin())
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("clock", time.strftime, replace=True)

    def job(config):
        return _job(name, config)

    options = _hydra_compatibility()
    hydra.main(config_path="pkg://armodels.configs", config_name=name, **options)(job)()


def _hydra_compatibility() -> dict[str, str]:
    """Hydra 1.4 warns about the argument that 1.3 wants."""
    import hydra

    version = tuple(int(part) for part in re.findall(r"\d+", hydra.__version__)[:2])
    return {"version_base": "1.3"} if version < (1, 4) else {}


def _job(name: str, config) -> float | None:
    """Run a verb's task. A failure is recorded, not raised, so that a sweep goes on."""
    from omegaconf import OmegaConf

    plain = {}
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ValueError(f"{missing[0]}=... is missing; see armodels {name} --help")
        plain = OmegaConf.to_container(config, resolve=True)
        _require_numbers(name, plain)
        return importlib.import_module(f"armodels.tasks.{VERBS[name].module}").main(plain)
    except Exception as error:
        record = {
            "overrides": OmegaConf.to_container(config.overrides) if "overrides" in config else [],
            "error": explain(error, name, sys.argv[1:]),
            "traceback": traceback.format_exc(),
        }
        if "directory" in plain:
            _note_failure(plain, record)
        with open(os.environ["ARMODELS_FAILURES"], "a") as file:
            file.write(json.dumps(record) + "\n")
        return float("nan")


def _require_numbers(name: str, config: dict) -> None:
    """Raise ValueError where the verb's own YAML has a number or a switch, and the config not."""
    from importlib.resources import files

    import yaml

    shipped = yaml.safe_load(files("armodels.configs").joinpath(f"{name}.yaml").read_text())
    sections = {key: value for key, value in shipped.items() if isinstance(value, dict)}
    for section, said in {"": shipped, **sections}.items():
        hints = {k: type(v) for k, v in said.items() if type(v) in (int, float, bool)}
        values = config.get(section, {}) if section else config
        checks.require_types(values, hints, f"{section}." if section else "")
    checks.require_keys(config)


def _note_failure(config: dict, record: dict) -> None:
    """Leave status and traceback with the run that broke.

    A run that never began touches nothing: an earlier run may own the directory, and the next
    attempt wants the same ``out``. Within a sweep it counts as one of the runs, and is begun
    here, so that neither ``compare`` nor TensorBoard misses it.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from armodels.run import RunDirectory
    from armodels.tracking import Tracker

    run = RunDirectory(config["resume"] or config["directory"])
    if not run.path.is_dir():
        return
    if not any(run.path.iterdir()):
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            run.path.rmdir()
            return
        run.begin(config)
        tracker = Tracker(run.path)
        tracker.start(config)
        tracker.close(success=False)
    status = run.read_status()
    if status["status"] == "running" and status["pid"] == os.getpid():
        run.write_status("failed", record["error"])
        with open(run.path / "train.log", "a") as file:
            file.write(record["traceback"])


def _report_failures(records: list[dict], full_error: bool) -> NoReturn:
    """One sentence a failed job; the exit code says that there were some."""
    for record in records:
        if full_error:
            print(record["traceback"], file=sys.stderr)
        if len(records) > 1 and record["overrides"]:
            print(f"armodels: failed: {' '.join(record['overrides'])}", file=sys.stderr)
        print(f"armodels: error: {record['error']}", file=sys.stderr)
    sys.exit(1)


def _translate(name: str, args: list[str]) -> list[str]:
    """Bare paths and the verb's flags, as Hydra overrides."""
    verb, flags = VERBS[name], _FLAGS.get(name, {})
    paths, rest = [], []
    takes_value = False  # after a Hydra flag such as --config-dir
    for arg in args:
        if arg in flags:
            rest.append(flags[arg])
        elif takes_value or arg.startswith("-") or "=" in arg.split("/")[0] or not verb.path_key:
            takes_value = arg in _HYDRA_FLAGS_WITH_VALUE
            rest.append(arg)
        else:
            paths.append(arg)
    if not paths:
        return rest
    if len(paths) > 1 and not verb.many:
        fail(f"armodels {name} takes one path, got {' '.join(paths)}", 2)
    quoted = ["'" + path.replace("'", "\\'") + "'" for path in paths]
    value = f"[{','.join(quoted)}]" if verb.many else quoted[0]
    return [f"{verb.path_key}={value}", *rest]


def _run_dir(resume: str | None, out: str | None, default: str) -> str:
    """Where a run writes; a run to resume is looked up before anything is created."""
    if resume:
        if not (Path(resume) / "config.yaml").is_file():
            raise FileNotFoundError(
                f"{resume} is not a run directory: it has no config.yaml to resume from"
            )
        return resume
    return out or default


def _run_name(seed, name: str | None, tags) -> str:
    """<data>/<model>/<what differs>-seed<k>-<suffix>, below the folder of outputs."""
    from hydra.core.hydra_config import HydraConfig

    settings = HydraConfig.get()
    choices = settings.runtime.choices
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", str(choices[key])) for key in ("data", "model")]
    swept = {*(settings.sweeper.get("params") or {}), *_swept(sys.argv[1:])}
    names.read_tags(tags)  # refuses them before anything is made
    last = names.run_name(settings.overrides.task, seed, name=name, swept=swept)
    return "/".join([*parts, last])


def _swept(args: list[str]) -> set[str]:
    """Keys of the command line that a sweep varies."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [arg for arg in args if "=" in arg and not arg.startswith("-")]
    overrides = OverridesParser.create().parse_overrides(given)
    return {item.key_or_group for item in overrides if item.is_sweep_override()}


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
        return _hydra_main("train")
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        print(" ".join(VERBS))
        return None
    if words[1] in VERBS:  # hide the verb and let Hydra complete the rest
        rest = line.split(None, 2)
        os.environ["COMP_LINE"] = f"{words[0]} {rest[2] if len(rest) > 2 else ''}"
        sys.argv = [program, *args]
        return _hydra_main(words[1])
    return None


# Errors


def explain(error: BaseException, name: str, args: list[str]) -> str:
    """One sentence for the user: what, where, what to do."""
    from omegaconf.errors import OmegaConfBaseException

    chain = [error]
    while chain[-1].__cause__ or chain[-1].__context__:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    kinds = {type(link).__name__: link for link in reversed(chain)}
    if "OverrideParseException" in kinds:
        return _bad_override(str(kinds["OverrideParseException"]))
    if "MissingConfigException" in kinds:
        return _bad_choice(str(kinds["MissingConfigException"]))
    text = str(error)
    if key := re.search(r"Could not override '([^']+)'", text):
        return _bad_key(key.group(1), name, args)
    if value := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, values = value.group(1).partition("=")
        return f"{key}={values} is a sweep, which needs -m; a list is written {key}=[{values}]"
    if "InterpolationResolutionError" in kinds and len(chain) > 1:
        return _sentence(chain[-1])
    if "InstantiationException" in kinds and len(chain) > 1:
        target = re.search(r"target '([^']+)'", str(kinds["InstantiationException"]))
        return _sentence(chain[-1], f"{target.group(1)} refuses its config: " if target else "")
    if isinstance(error, OmegaConfBaseException):
        return " ".join(str(error).split())
    if "ConfigCompositionException" in kinds or "HydraException" in kinds:
        return " ".join(text.split())
    return _sentence(error)


def _sentence(error: BaseException, where: str = "") -> str:
    """The message; of an error that nobody foresaw, also where, its type and how to see more."""
    text = " ".join(str(error).split())
    if isinstance(error, (ValueError, OSError, FloatingPointError, RuntimeError)) and text:
        if "out of memory" in text.lower():
            text = f"out of memory; lower trainer.batch_size or raise trainer.accumulate ({text})"
        return text
    return f"{where}{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows where)"


def _bad_override(message: str) -> str:
    first = message.splitlines()[0]
    if "mismatched input '='" in message:
        return f"{first}; a value that holds = must be quoted: \"key='a=b'\""
    return first


def _bad_choice(message: str) -> str:
    """Hydra's message names the group and lists the choices on lines of their own."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    wanted = re.search(r"Could not find '([^']+)'", lines[0])
    if not wanted or "/" not in wanted.group(1):
        return " ".join(lines)
    group, _, choice = wanted.group(1).rpartition("/")
    after = [s.startswith("Available options") for s in lines].index(True) + 1
    stop = [s.startswith("Config search path") for s in lines].index(True)
    names = [item.removeprefix(f"{group}/") for item in lines[after:stop]]
    close = difflib.get_close_matches(choice, names, 1)
    hint = f"did you mean {group}={close[0]}? " if close else ""
    return f"{group}={choice} is unknown; {hint}choose from {', '.join(sorted(names))}"


def _bad_key(key: str, name: str, args: list[str]) -> str:
    """The key does not exist, at all or under what was chosen for its group."""
    from importlib.resources import files

    import yaml

    def names(node, prefix=""):
        for child, value in node.items():
            if not child.startswith("_"):
                yield f"{prefix}{child}"
                if isinstance(value, dict):
                    yield from names(value, f"{prefix}{child}.")

    def read(path) -> dict:
        return (yaml.safe_load(path.read_text()) or {}) if path.is_file() else {}

    given = dict(arg.partition("=")[::2] for arg in args if "=" in arg)
    if (saved := given.get("resume")) and key in names(read(Path(saved) / "config.yaml")):
        return f"{key} of a run that is resumed cannot change; start a new run instead"
    configs = files("armodels.configs")
    verb = read(configs / f"{name}.yaml")
    chosen = [item for item in verb.pop("defaults") if isinstance(item, dict)]
    choices = {group: choice for item in chosen for group, choice in item.items()}
    verb.pop("hydra", None)
    group, _, last = key.rpartition(".")
    if group in choices:
        options = {p.name.removesuffix(".yaml"): p for p in (configs / group).iterdir()}
        takes = {option: sorted(names(read(path))) for option, path in options.items()}
        for choice in given.get(group, str(choices[group])).split(","):  # of a sweep, the one
            own = takes.get(choice, [])
            if last in own or not own:
                continue
            if close := difflib.get_close_matches(last, own, 1):
                return f"{key} is no key of armodels {name}; did you mean {group}.{close[0]}?"
            others = [other for other in sorted(takes) if last in takes[other]]
            several = " or another" if len(others) > 3 else ""
            hint = f"; use {group}={', '.join(others[:3])}{several} for it" if others else ""
            return f"{group}={choice} has no key {last}, only {', '.join(own)}{hint}"
    known = [*names(verb), *choices]
    for group, choice in choices.items():
        known += [f"{group}.{one}" for one in names(read(configs / group / f"{choice}.yaml"))]
    close = difflib.get_close_matches(key, [k for k in known if k != key], 1, 0.5)
    hint = f"did you mean {close[0]}?" if close else f"see armodels {name} --cfg job"
    return f"{key} is no key of armodels {name}; {hint}"
