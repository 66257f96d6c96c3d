"""What training a model takes, refused before any of it is taken.

A network over all values of a picture grows with their square: 32x32 pixels of 256 levels make a
MADE of 395 million parameters, hours of training and checkpoints of gigabytes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import psutil
import torch
from torch import Tensor, nn

from armodels import names
from armodels.density.base import DensityModel

Objective = Callable[[DensityModel], Callable[[Tensor, Tensor | None], object]]
"""Model -> what training maximizes, a function of events and their context."""

MOST = 100_000_000
"""Parameters at most, of a model that is trained on a CPU."""


def way_out(model: Mapping) -> str:
    """What to change about a ``model`` config that is too large, or about its data."""
    own = [f"model.{key}" for key in names.sizes(model)]
    own += ["model.encoding=scaled"] if model.get("encoding") == "auto" else []
    return (
        f"change {', '.join(own)}{' or ' if own else ''}the data (their size, levels or columns) "
        f"or trainer.batch_size, choose another model, or try it with model.allow_large=true"
    )


class TooLarge(ValueError):
    """A model above the budget of the machine."""


@contextlib.contextmanager
def at_most(limit: int | None, advice: str) -> Iterator[None]:
    """No model of more than ``limit`` parameters is built inside the block; None: no limit.

    Parameters are counted as they are registered, before they are filled: what is refused has
    taken neither time nor memory.

    Raises:
        TooLarge: One would be.
    """
    if limit is None:
        yield
        return
    counted: dict[int, Tensor] = {}  # holds them, so that no other gets the same id

    def count(module: nn.Module, name: str, param: Tensor) -> None:
        counted[id(param)] = param
        number = sum(one.numel() for one in counted.values())
        if number > limit:
            raise TooLarge(
                f"the model would have more than {limit:,} parameters (one of its weights alone "
                f"{param.numel():,}), too many to train on a CPU; {advice}"
            )

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def of_training(
    model: DensityModel,
    batch_size: int,
    *,
    averaged: bool,
    objective: Objective | None = None,
) -> int:
    """Bytes that training takes, roughly.

    Weights, their gradients, two moments of the optimizer, the best weights of the end and the
    moving average, buffers (such as masks), and what a batch keeps for its backward pass, measured
    on one and on two examples.

    Args:
        model: Built, on the CPU.
        batch_size: Examples at a time.
        averaged: Whether a moving average of the weights is kept.
        objective: Model -> what training maximizes; None: what the model names itself.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    copies = 5 + averaged
    if not any(p.requires_grad for p in model.parameters()):  # such as counts, or their blend
        return weights + buffers
    maximized = objective(model) if objective else model.default_objective()
    one, two = (_kept(model, maximized, number) for number in (1, 2))
    return copies * weights + 2 * buffers + one + max(two - one, 0) * (batch_size - 1)


def _kept(model: DensityModel, maximized: Callable, number: int) -> int:
    """Bytes that the objective of so many examples keeps for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.zeros(number, *model.spec.shape, dtype=model.spec.dtype)
    context = None
    if (wanted := model.context) is not None:
        dtype = torch.long if wanted.levels else torch.get_default_dtype()
        context = torch.zeros(number, *wanted.shape, dtype=dtype)
    training = model.training
    with torch.random.fork_rng(devices=[]):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.train()
            maximized(x, context)
    model.train(training)
    return sum(kept.values())


def require(needed: int, device: torch.device, advice: str) -> None:
    """Raise TooLarge unless so many bytes are free.

    Args:
        needed: Bytes.
        device: Where they are needed.
        advice: What to change, at the end of the sentence.
    """
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        free, where = psutil.virtual_memory().available, "this machine"
    else:
        return
    if needed > free:
        raise TooLarge(
            f"training this model takes about {needed / 1e9:.1f} GB, but {where} has "
            f"{free / 1e9:.1f} GB free; {advice}"
        )
