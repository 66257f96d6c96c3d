"""Lossless coding: choosers that write and read events as bits, on the one walk.

Shapes: B events side by side, S steps, K values per step, P parameters per step, L levels.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from armodels.archive import coder
from armodels.density.adaptive import Learning
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.mixture import OrderMixture
from armodels.density.stream import with_length
from armodels.density.walk import Choose, Countable, sampling, walk
from armodels.heads import Head
from armodels.networks.stream import StreamNetwork

PRECISION = 24
"""Bits of a frequency: those of a level's row sum to about 2^24, as the range coder has them."""

Tell = Callable[[], object]
"""Is called after each step."""


@final
class Coded(NamedTuple):
    """What some events became.

    Attributes:
        data: The bits.
        nats: -log p of the events by the very parameters that coded them.
    """

    data: bytes
    nats: float


@final
class Undecodable(ValueError):
    """Bits that are no events under the model."""


def require_codable(model: DensityModel) -> AutoregressiveModel:
    """The same model, if what it says can be coded.

    Raises:
        ValueError: It has no steps of its own, is conditioned on something, or is of real values.
        ModuleNotFoundError: The entropy coder is not installed.
    """
    if isinstance(model, OrderMixture) and model.num_terms == 1:
        model = model.component(0)
    if not isinstance(model, AutoregressiveModel):
        one = "one of its orders, eval.num_orders=1"
        way = one if isinstance(model, OrderMixture) else "a model that is, such as model=nade"
        raise ValueError(
            f"model {model.description} is not walked step by step, as coding does; compress by "
            f"{way}"
        )
    if model.context is not None:
        raise ValueError(
            f"model {model.description} is conditioned on {model.context.name}, which a decoder "
            f"does not have; train one with model.context=null"
        )
    if model.spec.levels is None:
        raise ValueError(
            f"{model.spec.name} has real values, which have infinitely many bits; compress by a "
            f"model that was trained on data with levels"
        )
    coder()
    return model


def frequencies(log_probs: Tensor) -> np.ndarray:
    """Whole numbers in place of probabilities: floor(p (2^24 - L)) + 1, never zero.

    They are kept as float64, in which such numbers are exact, since the coder reads floats.

    Args:
        log_probs: (..., L), nats.

    Raises:
        ValueError: The model says no number, or gives all levels together another probability
            than 1.
    """
    levels = log_probs.shape[-1]
    probs = log_probs.double().exp()
    off = (probs.sum(-1) - 1).abs()
    if not bool((off < 1e-3).all()):
        raise ValueError(
            "the model gives the levels of a value no probabilities that sum to 1, so that it "
            "codes nothing; evaluate it first: armodels eval"
        )
    return (probs * (2**PRECISION - levels)).floor_().add_(1).cpu().numpy()


@final
class Encoding:
    """A chooser that follows events and writes each of their values to a range coder.

    Args:
        head: Of the model.
        values: (B, S, K) of the events, those with more steps first.
        steps: Of each event, (B,); later ones are not written.
    """

    def __init__(self, head: Head, values: Tensor, steps: Sequence[int]):
        stream = coder()
        self._head, self._values, self._steps = head, values, np.asarray(steps)
        self._coder = stream.queue.RangeEncoder()
        self._family = stream.model.Categorical(perfect=False)
        self.nats = 0.0

    def __call__(self, s: int, params: Tensor) -> Tensor:
        """The events' own values."""
        values = self._values[:, s]
        rows = int((self._steps > s).sum())
        for k in range(values.shape[1]):
            log_probs = self._head.level_log_probs(params[:rows], values[:rows, :k])
            symbols = values[:rows, k].long()
            self.nats -= float(log_probs.double().gather(-1, symbols[:, None]).sum())
            self._coder.encode(
                symbols.to(torch.int32).numpy(), self._family, frequencies(log_probs)
            )
        return values

    def data(self) -> bytes:
        """All that was written."""
        return self._coder.get_compressed().astype("<u4").tobytes()


@final
class Decoding:
    """A chooser that reads each value from what ``Encoding`` wrote.

    Args:
        head: Of the model.
        data: What was written.
        steps: Of each event, (B,), the most first.
        like: A tensor of the type of the events' values.
        num_values: K.
    """

    def __init__(
        self, head: Head, data: bytes, steps: Sequence[int], like: Tensor, num_values: int
    ):
        stream = coder()
        self._head, self._steps, self._like, self._k = head, np.asarray(steps), like, num_values
        self._coder = stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._family = stream.model.Categorical(perfect=False)

    def __call__(self, s: int, params: Tensor) -> Tensor:
        """What was written there; 0 in events that are over."""
        values = self._like.new_zeros(len(params), self._k)
        rows = int((self._steps > s).sum())
        for k in range(self._k):
            log_probs = self._head.level_log_probs(params[:rows], values[:rows, :k])
            try:
                symbols = self._coder.decode(self._family, frequencies(log_probs))
            except AssertionError as error:  # as the coder has it
                raise Undecodable("the bits are none that the model could have written") from error
            values[:rows, k] = torch.from_numpy(symbols).to(values.dtype)
        return values


def _steps_of(
    model: AutoregressiveModel, lengths: Sequence[int], adapt: float | None
) -> Countable:
    """What is walked: the network, over the longest event; or a copy of it that learns."""
    net = model.net
    if isinstance(net, StreamNetwork) and lengths[0] != model.spec.num_dims:
        net = with_length(model, lengths[0]).net
    return net if adapt is None else Learning(model, adapt, lengths[0])


def _walk(
    model: AutoregressiveModel,
    lengths: Sequence[int],
    adapt: float | None,
    choose: Choose,
    tell: Tell | None,
) -> Tensor:
    """Values (B, S, K) that a chooser writes under a model, in one thread.

    Args:
        model: Is walked.
        lengths: Values of each event, (B,), the most first.
        adapt: Learning rate of a model that learns from what it codes; None: it learns nothing.
        choose: Writes or reads.
        tell: Is called after each step.
    """

    def choose_and_tell(s: int, params: Tensor) -> Tensor:
        values = choose(s, params)
        if tell is not None:
            tell()
        return values

    with sampling(model), torch.autocast("cpu", enabled=False):
        return walk(_steps_of(model, lengths, adapt), len(lengths), choose_and_tell)


def encode(
    model: AutoregressiveModel,
    events: Sequence[Tensor],
    *,
    adapt: float | None = None,
    tell: Tell | None = None,
) -> Coded:
    """Events as bits, about -log2 p(event) of them each.

    Args:
        model: See ``require_codable``; on the CPU.
        events: Each of the model's shape, or (T,) of a model that reads, the longest first.
        adapt: Learning rate of a model that learns from what it codes; None: it learns nothing.
        tell: Is called after each step.

    Raises:
        ValueError: What the model says is no distribution.

    References:
        Range encoding: an algorithm for removing redundancy from a digitised message (Martin,
        1979); constriction (Bamler, 2022) https://arxiv.org/abs/2201.01741
    """
    table = model.net.order_table
    width, lengths = table.shape[1], [one.numel() for one in events]
    values = torch.nn.utils.rnn.pad_sequence([one.flatten() for one in events], batch_first=True)
    if isinstance(model.net, StreamNetwork):  # from the first value to the last, at any length
        values = values.unflatten(1, (-1, width))
    else:
        values = values[:, table]
    chooser = Encoding(model.head, values, [length // width for length in lengths])
    _walk(model, lengths, adapt, chooser, tell)
    return Coded(chooser.data(), chooser.nats)


def decode(
    model: AutoregressiveModel,
    data: bytes,
    lengths: Sequence[int],
    *,
    adapt: float | None = None,
    tell: Tell | None = None,
) -> list[Tensor]:
    """The events that ``encode`` was given.

    Args:
        model: The same.
        data: What ``encode`` returned.
        lengths: Values of each event, the most first.
        adapt: The same.
        tell: Is called after each step.

    Returns:
        Events, each of the model's shape, or (T,) of a model that reads.

    Raises:
        Undecodable: The bits are none that the model could have written.
        ValueError: What the model says is no distribution.
    """
    table = model.net.order_table
    width, steps = table.shape[1], [length // table.shape[1] for length in lengths]
    chooser = Decoding(model.head, data, steps, model.empty(0), width)
    written = _walk(model, lengths, adapt, chooser, tell).flatten(1)
    if isinstance(model.net, StreamNetwork):
        return [row[:length] for row, length in zip(written, lengths, strict=True)]
    events = torch.empty_like(written)
    events[:, table.flatten()] = written
    return list(events.view(-1, *model.spec.shape))
