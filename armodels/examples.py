"""Examples of a run's own data, or of other data that suit its model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from armodels import checkpoints, checks, construct, contexts, disk, show
from armodels.data.rows import Batch, Examples
from armodels.spec import ContextSpec, DataSpec
from armodels.trust import Trust


def load_split(
    restored: checkpoints.Restored, data: Mapping, split: str
) -> tuple[DataSpec, Examples]:
    """A split of the run's own data, or of other data of the same shape and levels.

    Args:
        restored: The model.
        data: As in ``load_splits``.
        split: As in ``load_splits``.

    Returns:
        What a datum is, and the values with what the model is conditioned on, if anything.

    Raises:
        ValueError: The model cannot score such data.
    """
    spec, found = load_splits(restored, data, (split,))
    return spec, found[split]


def load_splits(
    restored: checkpoints.Restored,
    data: Mapping,
    splits: Sequence[str],
    beside: Callable[[DataSpec], ContextSpec | None] = lambda spec: None,
) -> tuple[DataSpec, dict[str, Examples]]:
    """Splits of the run's own data, or of other data of the same shape and levels; loaded once.

    Values are as the model knows them: a table is standardized by the run's own mean and standard
    deviation, which are in its checkpoint, whatever those of the table are.

    Args:
        restored: The model.
        data: The ``data`` of a verb's config: other data, or none, which is the run's own.
        splits: ``"train"``, ``"valid"`` or ``"test"``; of a table also ``"all"`` alone: every
            row, in the order of the file.
        beside: What stands beside the values of data, such as a label, where the model itself is
            conditioned on nothing.

    Returns:
        What a datum is, and the values of each split with what the model is conditioned on, if
        anything, or with what is ``beside``.

    Raises:
        ValueError: The model cannot score such data.
    """
    own, other = restored.spec, "_target_" in data
    if other:
        absent = {key for key in checks.PATH_KEYS if data.get(key) is None}  # as the verb has them
        data = {key: value for key, value in data.items() if key not in absent}
        source = construct.source(data, Trust.in_own({"data": data}))
    else:
        source = construct.source(restored.config["data"], restored.trust)
        found = construct.same_data(own, source.spec)
    if "all" in splits:  # which may be too few rows to be split
        spec, rows = source.whole()
    else:
        spec, rows = source.spec if other else found, None
    asked = spec
    if spec.columns is not None and own.columns is not None:
        if spec.columns != own.columns:
            raise ValueError(
                f"the model was trained on the columns {', '.join(own.columns)} and cannot "
                f"score {', '.join(spec.columns)}; choose them with "
                f"{show.override('data.columns', own.columns)}"
            )
        spec = spec.coded_like(own)
    if (spec.kind, spec.shape, spec.levels) != (own.kind, own.shape, own.levels):
        raise ValueError(
            f"the model was trained on {own.name} ({own.kind} {own.shape}, levels {own.levels}) "
            f"and cannot score {spec.name} ({spec.kind} {spec.shape}, levels {spec.levels})"
        )
    if other and (spec.alphabet, spec.waveform) != (own.alphabet, own.waveform):
        raise ValueError(
            f"the levels of {spec.name} stand for other {spec.unit}s than those of {own.name}, on "
            f"which the model was trained, so it cannot score them"
        )
    wanted = restored.model.context or beside(spec)
    if wanted is not None and contexts.available(spec).get(wanted.name) != wanted:
        raise ValueError(f"the model is conditioned on {wanted.name}, which {spec.name} lacks")
    if rows is None:
        loaded = source.load()
        if not other:
            construct.same_data(own, loaded.spec)
        examples_of = {split: loaded.examples(split, wanted) for split in splits}
    else:
        examples_of = {"all": Examples(rows)}
    if (asked.standardization, asked.coding) != (own.standardization, own.coding):
        for split, examples in examples_of.items():
            x = own.encoded(asked.original(examples.x[:])).to(own.dtype)
            examples_of[split] = replace(examples, x=x)
    return spec, examples_of


def draw_examples(restored: checkpoints.Restored, num: int, seed: int) -> Batch:
    """``num`` examples of the run's own test split, and what the model is conditioned on there.

    Args:
        restored: The model.
        num: How many; all of the split where it holds fewer.
        seed: Of the choice.
    """
    _, examples = load_split(restored, {}, "test")
    rows = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:num]
    return examples[rows]


def asked_for(config: Mapping, mark: str) -> tuple[checkpoints.Restored, DataSpec, Examples]:
    """The model and the examples that the config of ``eval`` or ``score`` names.

    Args:
        config: Of the verb.
        mark: As in ``disk.require_place``: of the file that the verb is about to write.

    Returns:
        The model, and the rest as ``load_split`` has it.

    Raises:
        ValueError: The file cannot be written, or the model cannot score the data.
    """
    disk.require_place(config["out"], mark=mark)
    restored = checkpoints.from_config(config)
    return restored, *load_split(restored, config["data"], config["split"])
