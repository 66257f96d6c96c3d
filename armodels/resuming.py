"""How a run goes on: its own config, with what the command changes about it."""

from collections.abc import Mapping
from typing import Any

from armodels import checks, construct, run


def take_up(config: Mapping[str, Any]) -> tuple[dict, run.RunDirectory, list[str]]:
    """The config and directory of a run to continue, and the keys that change.

    Args:
        config: Of the command: names the run by ``resume``.

    Raises:
        FileNotFoundError: There is no such run.
        ValueError: Its config is damaged, or a key cannot change.
    """
    directory = run.RunDirectory.open(config["resume"])
    saved = directory.read_config()
    run.require_shape(saved, directory.path / "config.yaml")
    if not saved["data"]:
        raise ValueError(
            f"the run of {directory.path} was trained by armodels.fit, on data that its files do "
            f"not name; go on with armodels.fit(..., directory=..., resume=True)"
        )
    saved = {"logger": ["tensorboard"], **saved}  # older runs do not say it
    merged, names = construct.override(saved, config["overrides"])
    paths = {f"data.{key}" for key in checks.PATH_KEYS}
    for name in names:
        if name in paths or name == "model.allow_large":
            continue
        if name.split(".")[0] in ("data", "model", "head", "seed", "teacher"):
            raise ValueError(
                f"resume continues the same run, whose {name} cannot change; "
                f"start a new run instead"
            )
        if saved["trainer"].get("select") and not name.startswith(checks.HARMLESS):
            raise ValueError(
                f"the run chooses by trainer.select, and among candidates that were trained "
                f"alike: its {name} cannot change; start a new run instead"
            )
    # How many processes trained so far does not bind those that go on.
    merged["trainer"] = {**merged["trainer"], "devices": config["trainer"]["devices"]}
    if checks.num_processes() == 1 and "trainer.strategy" not in names:
        merged["trainer"]["strategy"] = "ddp"  # nothing to part the weights among
    merged["resume"], merged["trust"] = config["resume"], config["trust"]
    # The run may be a stranger's: what protects this machine is lifted by this command alone.
    free = config["model"].get("allow_large", False)
    merged["model"] = {**merged["model"], "allow_large": free}
    kept = [o for o in saved["overrides"] if o.partition("=")[0] not in names]
    typed = [o.lstrip("+") for o in config["overrides"]]
    changes = [o for o in typed if o.partition("=")[0] in names]
    merged["overrides"] = kept + changes
    if any(not name.startswith(checks.HARMLESS) for name in names):
        # Steps before and after differ, so that no command gives all of them.
        before = {"overrides": saved["overrides"], "changes": changes}
        merged["resumed"] = [*saved.get("resumed", []), before]
    return merged, directory, names
