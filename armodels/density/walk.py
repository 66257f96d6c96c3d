"""The walk: the only loop over the steps of a network, and the choosers that write values in it.

Shapes: B batch, S steps, K values per step, P parameters per step.
"""

import contextlib
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from tqdm import tqdm

from armodels.checks import require_class, require_types
from armodels.heads import Head, pick, precise
from armodels.networks.base import Network, Steps

Choose = Callable[[Any, Tensor], Tensor]
"""A chooser: (step s, its parameters (B, P)) -> the values (B, K) that are written there.

Those that draw, keep or follow take several steps at once, too: (a slice of t steps, their
parameters (B, t, P)) -> (B, t, K), which is what ``fixed_point`` asks them for.
"""

BULK = 64
"""Steps that are scored in one call of the head; a call for each would take as long as a step."""


class Countable(Steps, Protocol):
    """Steps that know their number, such as those of a network."""

    @property
    def num_steps(self) -> int:
        """S."""


def walk(
    net: Countable,
    n: int,
    choose: Choose,
    context: Tensor | None = None,
    *,
    progress: bool = False,
) -> Tensor:
    """Write n events step after step, every value by the chooser.

    Args:
        net: Says what the values so far mean for the next step: a network, its steps after a
            prompt, or ``NaiveSteps``.
        n: Events, B.
        choose: Is asked once for each step, in turn.
        context: (B, *context.shape) what the events are conditioned on, if anything.
        progress: Show a bar with an ETA once a second has passed.

    Returns:
        (B, S, K) values, in generation order.

    Examples:
        A network asks a head, here for the likelier value of each step:

        >>> import torch
        >>> from armodels import DataSpec, heads, orders
        >>> from armodels.density.walk import walk
        >>> from armodels.networks.made import MADE
        >>> spec = DataSpec("bits", "vector", (3,), 2, "probability")
        >>> head, order = heads.auto(spec), orders.make("reverse", spec.shape)
        >>> net = MADE(spec, head.num_params, order, hidden_sizes=[4])
        >>> likeliest = lambda s, params: head.level_log_probs(params, params[..., :0]).argmax(-1)
        >>> walk(net, 2, lambda s, params: likeliest(s, params)[..., None]).shape
        torch.Size([2, 3, 1])
    """
    pack = net.pack()
    state = net.start(pack, n, context)
    written: list[Tensor] = []
    values = None
    for s in tqdm(
        range(net.num_steps),
        desc="sampling",
        unit="step",
        delay=1,
        disable=None if progress else True,
    ):
        params, state = net.step(values, s, state, pack)
        values = choose(s, precise(params))
        written.append(values)
    return torch.stack(written, 1)


def draw(head: Head, noise: Tensor, temperature: float = 1.0) -> Choose:
    """Values that noise (B, S, num_noise) draws from the head's distribution.

    Args:
        head: Turns noise into values.
        noise: (B, S, num_noise), uniform in (0, 1).
        temperature: Of the draws, 0 or more.
    """
    return lambda s, params: head.sample(params, noise[:, s], temperature)


def draw_among(
    head: Head,
    noise: Tensor,
    temperature: float = 1.0,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    dtype: torch.dtype | None = None,
) -> Choose:
    """Draws from the likeliest levels alone, those of one value a step.

    Sources: Fan et al., 2018, https://arxiv.org/abs/1805.04833 (top-k); Holtzman et al., 2020,
    https://arxiv.org/abs/1904.09751 (top-p, or nucleus).

    Args:
        head: Of values with levels.
        noise: (B, S, num_noise), uniform in (0, 1).
        temperature: Of the draws, 0 or more; levels are left out before it is applied.
        top_k: So many of the likeliest levels stay; None: all.
        top_p: As few of the likeliest levels stay as have at least this probability together;
            None: all.
        dtype: Of the levels that are drawn among some; None: int64.

    Raises:
        ValueError: No level would stay.
    """
    if top_k is None and top_p is None:
        return draw(head, noise, temperature)
    require_some(top_k, top_p)

    def choose(s: Any, params: Tensor) -> Tensor:
        log_probs = likeliest(head.level_log_probs(params, params[..., :0]), top_k, top_p)
        values = pick(log_probs, noise[:, s][..., 0], temperature)[..., None]
        return values if dtype is None else values.to(dtype)

    return choose


def require_some(top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError where no level would stay."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1")


def likeliest(log_probs: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Log-probabilities of levels, minus infinity where a level is not among the likeliest.

    Args:
        log_probs: (..., L).
        top_k: So many stay; None: all.
        top_p: As few stay as have at least this probability together; None: all.

    Returns:
        (..., L), not normalized.
    """
    if top_k is None and top_p is None:
        return log_probs
    ordered, levels = log_probs.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()  # of the levels that are likelier
    out = before >= (1.0 if top_p is None else top_p)
    out[..., :1] = False
    if top_k is not None:
        out[..., top_k:] = True
    left_out = torch.zeros_like(out).scatter(-1, levels, out)
    return log_probs.masked_fill(left_out, -math.inf)


def keep(values: Tensor, known: Tensor, otherwise: Choose) -> Choose:
    """The values (B, S, K) of the steps that are known, (B, S) bool; others by another chooser.

    Args:
        values: (B, S, K).
        known: Bool (B, S).
        otherwise: Chooses the others.
    """
    return lambda s, params: torch.where(known[:, s, None], values[:, s], otherwise(s, params))


def follow(values: Tensor) -> Choose:
    """The values (B, S, K) of events that are there already."""
    return lambda s, params: values[:, s]


@final
class Scored:
    """A chooser that leaves the choice to another, and scores what that one chooses.

    Args:
        head: Says what the parameters mean.
        choose: Chooses.
    """

    def __init__(self, head: Head, choose: Choose):
        self._head = head
        self._choose = choose
        self._params: list[Tensor] = []
        self._values: list[Tensor] = []
        self._log_probs: list[Tensor] = []

    def __call__(self, s: int, params: Tensor) -> Tensor:
        """The other's choice."""
        values = self._choose(s, params)
        self._params.append(params)
        self._values.append(values)
        if len(self._params) == BULK:
            self._score()
        return values

    def _score(self) -> None:
        params, values = torch.stack(self._params, 1), torch.stack(self._values, 1)
        self._log_probs.append(score(self._head, params, values))
        self._params, self._values = [], []

    def log_probs(self) -> Tensor:
        """Of the steps so far, under the model itself at temperature 1: (B, s), nats."""
        if self._params:
            self._score()
        return torch.cat(self._log_probs, 1)


def score(head: Head, params: Tensor, values: Tensor) -> Tensor:
    """Log-probabilities of values under a head, nats: (..., P), (..., K) -> (...).

    Args:
        head: Of the model.
        params: (..., P).
        values: (..., K).
    """
    with torch.autocast(params.device.type, enabled=False):
        return head.log_prob(precise(params), values)


def as_event(values: Tensor, net: Network) -> Tensor:
    """Values in generation order as events: (B, S, K) -> (B, *event)."""
    x = torch.empty_like(values).flatten(1)
    x[:, net.order_table.flatten()] = values.flatten(1)
    return x.view(-1, *net.spec.shape)


def check_draw(temperature: float, n: int = 0) -> None:
    """Raise ValueError unless ``n`` events can be drawn at this temperature."""
    require_types({"n": n}, {"n": int})
    if not isinstance(temperature, numbers.Real):
        raise ValueError(f"temperature is {temperature!r}; it must be a number")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be finite and 0 or more")
    if n < 0:
        raise ValueError(f"{n} samples cannot be drawn; ask for 0 or more")


def draw_noise(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> Tensor:
    """Uniforms in the open interval (0, 1), float64, drawn where the generator lives.

    Args:
        shape: Of the noise.
        generator: Where it comes from; None: the global one of torch, on ``device``.
        device: Where it is needed.
    """
    if generator is not None:
        require_class("generator", generator, torch.Generator, "seeded by its manual_seed(0)")
    source = device if generator is None else generator.device
    noise = torch.rand(shape, dtype=torch.double, generator=generator, device=source)
    return noise.clamp_min_(2.0**-54).to(device)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One intra-op thread, for loops of small operations: a second slows them several times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def sampling(model: nn.Module, *, naive: bool = False) -> Iterator[None]:
    """Evaluation mode, no gradients, and one thread unless steps are forward passes."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), contextlib.nullcontext() if naive else one_thread():
            yield
    finally:
        model.train(training)
