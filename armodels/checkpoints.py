"""Checkpoints: how a model is saved, and how it comes back. A stranger's is data, never code."""

import contextlib
import copy
import os
import pickletools
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armodels import __version__, construct, earlier, exported, machine, show
from armodels.checks import require_class
from armodels.density.base import DensityModel
from armodels.density.mixture import OrderMixture
from armodels.disk import LARGEST, as_path, atomic, no_room, size_of
from armodels.frugal import Frugal
from armodels.networks.base import Network
from armodels.run import MAX_DEPTH, MAX_SIZE, RunDirectory, refuse_links, require_plain
from armodels.spec import DataSpec
from armodels.trust import Trust, foreign

FORMAT = 2
"""Version of the checkpoint format; another one is refused."""

_BUILDERS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
_BUILDERS |= {"torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter"}
_STORAGE = re.compile(
    r"torch(\.cuda|\.storage)? \w+Storage|torch u?(int|float|bfloat)\d+|torch bool"
)


def save(directory: RunDirectory, name: str, state: Mapping) -> None:
    """Save the checkpoint ``name`` atomically: where the disk is full, the one before survives.

    Args:
        directory: The run.
        name: ``last`` or ``best``.
        state: Tensors and plain values, nested in mappings.

    Raises:
        OSError: It could not be written.
    """
    content = {"format": FORMAT, "version": __version__, **state}
    path = directory.checkpoint(name)
    try:
        with atomic(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into the latter
        kept = "the one before is untouched" if path.exists() else "there is none before it"
        why = str(error).strip().splitlines()[0]
        if shutil.disk_usage(path.parent).free < (needed := _size(content)):
            why = no_room(path, needed)
        raise OSError(f"checkpoint {path} could not be written ({why}); {kept}") from error


def _size(content: object) -> int:
    """Bytes that the tensors of a checkpoint take."""
    return sum(t.numel() * t.element_size() for t in _tensors(content))


def _require_honest(path: Path) -> None:
    """Raise ValueError where an archive would unpack to more than it is, or make no tensors.

    Torch stores entries as they are. Flipped bytes are found, too: torch takes them for numbers.

    Raises:
        BadZipFile: It is none, or damaged.
    """
    foreign = (
        f"checkpoint {path} is refused: it holds more than tensors and plain values "
        f"(it may run code), so it was not saved by armodels"
    )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        stated = sum(entry.file_size for entry in entries)
        if stated > path.stat().st_size or any(e.compress_type for e in entries):
            raise ValueError(
                f"checkpoint {path} is refused: it would unpack to {size_of(stated)}, and "
                f"armodels does not pack its checkpoints"
            )
        if archive.testzip() is not None:
            raise zipfile.BadZipFile
        names = [entry.filename for entry in entries]
        structures = [entry for entry in entries if entry.filename.endswith("data.pkl")]
        if len(structures) != 1 or len(names) != len(set(names)):
            raise zipfile.BadZipFile
        if structures[0].file_size > LARGEST:
            raise ValueError(f"checkpoint {path} is refused: it is not one of armodels")
        for code, operand, _ in pickletools.genops(archive.read(structures[0])):
            if code.name == "GLOBAL":
                if operand not in _BUILDERS and not _STORAGE.fullmatch(str(operand)):
                    raise ValueError(foreign)
            elif code.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"):
                raise ValueError(foreign)


def _tensors(state: object, depth: int = 0) -> Iterator[Tensor]:
    """Every tensor in a checkpoint."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping) and depth < MAX_DEPTH:
        for child in state.values():
            yield from _tensors(child, depth + 1)


def load_checkpoint(path: str | Path) -> dict:
    """A checkpoint as plain tensors and builtins, on the CPU; code in it is never executed.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is truncated, holds code, states sizes that it does not have, or is of
            another version.
    """
    path = Path(path)
    if path.name == exported.WEIGHTS:
        return _checked({**exported.read(path), "ema": None}, path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    with open(path, "rb") as file:
        start = file.read(4)
    strange = f"checkpoint {path} is not a checkpoint of armodels"
    if start and not b"PK\x03\x04".startswith(start):  # no archive: torch never sees it
        raise ValueError(strange)
    damaged = (
        f"checkpoint {path} is truncated or corrupted; use another, such as last.pt beside it"
    )
    try:
        _require_honest(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(damaged) from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that torch itself cannot take
        raise ValueError(damaged) from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(strange)
    if state["format"] != FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {state['format']} (armodels {state.get('version')}), "
            f"but this armodels {__version__} reads format {FORMAT}"
        )
    return _checked(state, path)


def _checked(state: dict, path: Path) -> dict:
    """A checkpoint as it is now, whose parts are what they must be.

    Raises:
        ValueError: They are not.
    """
    kinds: dict[str, type | tuple[type, ...]] = {"config": dict, "spec": dict, "model": Mapping}
    kinds |= {"step": int, "ema": (Mapping, type(None))}
    if not all(isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"checkpoint {path} is not a checkpoint of armodels")
    require_plain(state["config"], path)
    network = str((state["config"].get("model") or {}).get("_target_"))
    for part in ("model", "ema"):
        if state[part] and all(isinstance(name, str) for name in state[part]):
            state[part] = earlier.weights_now(network, state[part])
    if any(t.numel() * t.element_size() > t.untyped_storage().nbytes() for t in _tensors(state)):
        raise ValueError(f"checkpoint {path} is refused: its tensors state more than it holds")
    return state


def spec_of(state: Mapping, path: Path) -> DataSpec:
    """What a datum is, as a checkpoint says.

    Raises:
        ValueError: It says none, or one that cannot be.
    """
    try:
        spec = DataSpec(**state["spec"])
        if not 0 < spec.num_dims <= MAX_SIZE:
            raise ValueError(f"examples of {spec.num_dims} values")
        return spec
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"checkpoint {path} is refused: its spec is wrong ({error})") from error


def guard(config: Mapping, state: Mapping, path: Path) -> contextlib.AbstractContextManager:
    """Inside which a model of the config is built: no larger than a checkpoint's weights need.

    Args:
        config: The config of a run.
        state: The checkpoint.
        path: The file of the checkpoint, for sentences.

    Raises:
        ValueError: The weights are no tensors.
    """
    if not all(isinstance(t, Tensor) for t in state["model"].values()):
        raise ValueError(f"checkpoint {path} is refused: its weights are no tensors")
    if foreign({key: config.get(key) for key in ("model", "head")}):
        return contextlib.nullcontext()  # of the user's own class, which they vouch for
    return Frugal(state["model"], path)


def rebuild(state: Mapping, path: Path, trust: Trust) -> tuple[DataSpec, DensityModel]:
    """The model that a checkpoint describes, with the weights that it was trained to.

    Args:
        state: The checkpoint.
        path: Its file, for sentences.
        trust: Which of the user's own classes may be built.

    Raises:
        ValueError: It names a class that is not trusted, or its parts do not fit each other.
    """
    spec, config = spec_of(state, path), state["config"]
    if not config.get("model"):
        raise ValueError(
            f"checkpoint {path} does not say how its model is built: armodels.fit got it ready "
            f"made; make it as then, and call armodels.load_model(path, model=...)"
        )
    with guard(config, state, path):
        model = construct.model(config.get("model"), config.get("head"), spec, trust)
    return spec, model


def find_checkpoint(path: str | Path, name: str = "best") -> Path:
    """The checkpoint of a run directory or an exported folder, or ``path`` if it is a file.

    Raises:
        FileNotFoundError: There is no such run, or it has no such checkpoint yet.
        ValueError: No file can be called so.
    """
    path = as_path(path, "run")
    if path.is_file():
        return path
    if not path.exists():
        raise FileNotFoundError(f"run {path} does not exist; name a run directory or checkpoint")
    if exported.is_exported(path):
        return path / exported.WEIGHTS
    file = RunDirectory.open(path).checkpoint(name)
    if not file.is_file():
        raise FileNotFoundError(f"run {path} has no checkpoint {name}.pt yet")
    return file


@dataclass(frozen=True)
class Restored:
    """A model that came back from a checkpoint.

    Attributes:
        model: In evaluation mode, on the device asked for.
        config: The resolved config of its run.
        spec: What a datum of its training data is.
        weights: ``"ema"`` or ``"raw"``: the weights that it holds.
        step: Training steps behind it.
        path: The checkpoint file.
        trust: Which of the user's own classes its config may have built.
    """

    model: DensityModel
    config: dict
    spec: DataSpec
    weights: str
    step: int
    path: Path
    trust: Trust

    @property
    def origin(self) -> str:
        """Which weights these are, for people."""
        return f"{self.path} ({self.weights} weights, step {self.step})"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((t.device for t in self.model.state_dict().values()), torch.device("cpu"))

    def folder_for(self, out: str | None) -> Path:
        """Folder for files about this model: ``out``, samples/ of its run, else the shell's."""
        if out:
            folder = Path(out)
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        samples = self.path.parent.parent / "samples"
        if self.path.parent.name == "checkpoints":
            refuse_links(self.path.parent.parent)
        return samples if self.path.parent.name == "checkpoints" and samples.is_dir() else Path()

    @property
    def partial(self) -> Path | None:
        """Folder of its run for what an evaluation has found so far; None: there is none."""
        folder = self.path.parent
        if folder.name != "checkpoints" or not os.access(folder, os.W_OK):
            return None
        refuse_links(folder.parent)
        return folder


def check_weights(name: str) -> None:
    """Raise ValueError unless ``name`` says which weights are evaluated."""
    if name not in ("ema", "raw"):
        raise ValueError(f"eval.weights is {name!r}; choose ema or raw")


def restore(
    path: str | Path,
    *,
    checkpoint: str = "best",
    weights: str = "ema",
    device: str = "cpu",
    num_orders: int | None = None,
    trust: str | Iterable[str] | None = None,
    model: DensityModel | None = None,
) -> Restored:
    """Rebuild the model of a run from its checkpoint alone.

    Args:
        path: A run directory, a checkpoint file, or a folder of ``armodels export``.
        checkpoint: ``best`` or ``last``, where ``path`` is a directory.
        weights: ``ema`` (raw where the run kept no average) or ``raw``.
        device: Where the model goes: auto, cpu, cuda, cuda:1 or mps.
        num_orders: Orders of the mixture that it becomes; None: as it was trained.
        trust: Dotted names of your own classes that the run may name; code of others never runs.
        model: Gets the weights, in place, of a run whose orders are its own; None: it is built as
            the run's config says. A run of ``armodels.fit`` does not say it.

    Raises:
        FileNotFoundError: There is no such run or checkpoint.
        ValueError: It is damaged, does not say how its model is built, or names a class that is
            neither this package's nor trusted; or there is no such device.
        TypeError: The model is none.
    """
    check_weights(weights)
    device = machine.pick_device(str(device))
    if model is not None:
        require_class("model", model, DensityModel, "made as it was for its training")
    file = find_checkpoint(path, checkpoint)
    state = load_checkpoint(file)
    require_held(state, file, checkpoint, weights)
    allowed = Trust.of(trust, file)
    spec = spec_of(state, file)
    if model is None:
        spec, model = rebuild(state, file, allowed)
    else:
        require_fit(model, state, file)
    floats = {t.dtype for t in state["model"].values() if t.is_floating_point()}
    if len(floats) == 1:
        model.to(floats.pop())  # a run in float64 is evaluated in float64
    load_weights(model, state["model"], file)
    average = state["ema"] if weights == "ema" else None
    if average:
        model.load_state_dict(average, strict=False)
    if num_orders is not None:
        model = construct.over_orders(model, state["config"]["model"], num_orders)
    model.eval().requires_grad_(False).to(device)
    used = state.get("weights", "ema" if average else "raw")
    return Restored(model, state["config"], spec, used, state["step"], file, allowed)


def require_held(state: Mapping, path: Path, checkpoint: str, weights: str) -> None:
    """Raise ValueError where an exported folder holds other weights than those asked for.

    Args:
        state: The checkpoint.
        path: Its file, for sentences.
        checkpoint: ``best`` or ``last``: which is asked for.
        weights: ``ema`` (or raw, where there is no average) or ``raw``.
    """
    if "weights" not in state:  # of a run, which holds both
        return
    if state["weights"] not in ("ema", "raw"):
        raise ValueError(f"{path} is refused: its weights are {str(state['weights'])[:50]!r}")
    if weights == "raw" and state["weights"] == "ema":
        raise ValueError(f"{path} holds averaged weights alone; leave eval.weights=raw away")
    if checkpoint == "last" and state.get("checkpoint") != "last":
        raise ValueError(f"{path} holds the best weights alone; leave checkpoint=last away")


def orders_of(model: DensityModel) -> list[str]:
    """What tells the orders of a model from others; weights do not hold them."""
    found = [one.order for one in model.modules() if isinstance(one, Network)]
    for one in model.modules():
        if isinstance(one, OrderMixture):
            found += one.orders
    return [order.fingerprint for order in found]


def require_fit(model: DensityModel, state: Mapping, path: Path) -> None:
    """Raise ValueError unless a model made in Python is the one of a checkpoint.

    Its weights stay as they are, also those that would fit.

    Args:
        model: Made as the one that was saved, or not.
        state: The checkpoint.
        path: Its file, for sentences.
    """
    # A copy is filled: torch copies what fits before it says that something does not.
    load_weights(copy.deepcopy(model), state["model"], path)
    begun = state["config"].get("orders")  # older runs do not say it
    if begun is not None and begun != (now := orders_of(model)):
        raise ValueError(
            f"checkpoint {path} does not fit the model: its order is {begun}, the model's {now}"
        )


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put the weights of a checkpoint into the model that was built from its config.

    Args:
        model: Built from the config of the checkpoint.
        weights: Tensors by name.
        path: The file of the checkpoint, for sentences.

    Raises:
        ValueError: They are those of another model.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"checkpoint {path} does not fit the model: {first}") from error


def from_config(config: Mapping) -> Restored:
    """The model that a verb's config asks for, by run, checkpoint, eval, device and data.

    Its data lies where the config says, if it says it.
    """
    restored = restore(
        config["run"],
        checkpoint=config["checkpoint"],
        weights=config["eval"]["weights"],
        num_orders=config["eval"].get("num_orders"),  # features alone has none
        trust=config["trust"],
        device=machine.pick_device(config["device"]),
    )
    if "_target_" in config["data"]:  # other data
        return restored
    data = construct.moved(restored.config["data"], config["data"])
    return replace(restored, config={**restored.config, "data": data})


def load_model(path: str | Path, **options: Any) -> DensityModel:
    """The model of a run directory, a checkpoint or an exported folder, ready to use.

    Args:
        path: A run directory or a checkpoint file, of ``armodels train`` or ``armodels.fit``, or
            a folder that ``armodels export`` wrote.
        options: As in ``restore``: checkpoint, weights, device, num_orders, trust, model.

    Raises:
        FileNotFoundError: There is no such run, checkpoint or folder.
        ValueError: It is damaged, does not say how its model is built, or names a class that is
            neither this package's nor trusted; or there is no such device.

    Examples:
        >>> import armodels
        >>> import torch
        >>> splits = armodels.Splits.of(torch.tensor([[0, 1], [1, 0]] * 5))
        >>> model = armodels.build("made", splits.spec, hidden_sizes=[5])
        >>> run = armodels.fit(model, splits, max_steps=2, directory="run", quiet=True).directory
        >>> again = armodels.load_model(run)
        >>> bool((again.log_prob(splits.test) == model.log_prob(splits.test)).all())
        True
    """
    with show.in_python(["eval.weights", "eval.num_orders"]):
        return restore(path, **options).model
