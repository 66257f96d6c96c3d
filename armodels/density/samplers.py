"""Ways to draw the same samples: which walk is taken, and what it took.

``auto`` takes compiled code where the network offers it, a pass for each group of steps where it
has groups, else the network's own steps; a network that has none but whole forward passes is drawn
by its fixed point, which takes as many passes as it has steps at most. Shapes: B batch, S steps,
K values per step.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast, final, get_args

import torch
from torch import Tensor

from armodels.checks import Count, require_types
from armodels.density import speculative
from armodels.density.fixed_point import BLOCK, Passes, ReadPasses, Tally, WholePasses, settle
from armodels.density.grouped import walk_groups
from armodels.density.speculative import (
    EVENT_STEPS,
    READ_STEPS,
    Draft,
    Drafting,
    Levels,
    require_draft,
)
from armodels.density.walk import (
    Choose,
    Countable,
    Scored,
    draw_among,
    keep,
    score,
    walk,
)
from armodels.heads import Head
from armodels.networks.base import AnyOrderNetwork, NaiveSteps, Network
from armodels.networks.grouped import GroupedNetwork
from armodels.networks.stream import AfterPrompt, StreamNetwork

SamplerName = Literal["auto", "cached", "naive", "fixed_point", "speculative"]


@final
@dataclass(frozen=True)
class Sampler:
    """How samples are drawn; all but ``speculative`` draw the same ones from the same noise.

    Attributes:
        name: ``cached``: step after step, each by what the ones before left. ``naive``: step after
            step, each a whole forward pass. ``fixed_point``: many steps at once, until nothing
            changes. ``speculative``: the steps of a draft, verified. ``auto``: compiled code
            where the network has some, else ``cached``; ``fixed_point`` for a network that has
            no steps of its own.
        block: Steps that ``fixed_point`` guesses at once; None: all, and 16 of what reads.
        draft: The model that drafts for ``speculative``.
        draft_steps: Steps that it drafts at once; None: 64, and 6 of what reads.
        tally: What the walks by this sampler took is added to it.

    Raises:
        ValueError: There is no such sampler, or what is said of one is not asked of it.
        TypeError: A number is none.
    """

    name: SamplerName = "auto"
    block: int | None = None
    draft: object = None
    draft_steps: int | None = None
    tally: Tally = field(default_factory=Tally, compare=False)

    def __post_init__(self) -> None:
        names = get_args(SamplerName)
        if self.name not in names:
            raise ValueError(f"sampler is {self.name!r}; choose from {', '.join(names)}")
        numbers = {"block": self.block, "draft_steps": self.draft_steps}
        require_types(numbers, dict.fromkeys(numbers, Count | None))
        if self.block is not None and self.name != "fixed_point":
            raise ValueError("block goes with sampler=fixed_point; leave it out")
        for key in ("draft", "draft_steps"):
            if getattr(self, key) is not None and self.name != "speculative":
                raise ValueError(f"{key} goes with sampler=speculative; leave it out")
        if self.name == "speculative" and self.draft is None:
            raise ValueError(
                "sampler=speculative verifies what a draft proposes; name its run: draft=RUN"
            )

    @classmethod
    def of(cls, sampler: "str | Sampler") -> "Sampler":
        """A sampler, or one of that name.

        Raises:
            ValueError: There is none of that name.
        """
        return sampler if isinstance(sampler, Sampler) else cls(cast(SamplerName, sampler))

    def noise_per_step(self, head: Head, width: int) -> int:
        """Uniforms that a step of ``width`` values takes."""
        speculates = self.name == "speculative"
        return speculative.noise_per_step(width) if speculates else head.num_noise


@final
@dataclass(frozen=True)
class Draws:
    """What is drawn in a walk, whichever way it is taken.

    Attributes:
        head: Of the model.
        noise: (B, S, ...) uniforms in (0, 1), as many a step as ``Sampler.noise_per_step``.
        temperature: Of the draws.
        top_k: See ``walk.draw_among``.
        top_p: See ``walk.draw_among``.
        values: (B, S, K) of which some are known; None: none is.
        known: (B, S) bool, those of the steps.
    """

    head: Head
    noise: Tensor
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    values: Tensor | None = None
    known: Tensor | None = None

    @property
    def fusible(self) -> bool:
        """Whether compiled code draws the like: no value is known, and all levels may be drawn."""
        return self.known is None and self.top_k is None and self.top_p is None

    def chooser(self, dtype: torch.dtype) -> Choose:
        """That draws by the noise of the head; levels have the type of the event."""
        choose = draw_among(
            self.head,
            self.noise,
            self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            dtype=dtype,
        )
        return self.kept(choose)

    def kept(self, choose: Choose) -> Choose:
        """Known values as they are, others by a chooser."""
        if self.values is None or self.known is None:
            return choose
        return keep(self.values, self.known, choose)

    def first_guess(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros (B, S, K), and what is known."""
        guess = torch.zeros(shape, dtype=dtype, device=self.noise.device)
        if self.values is None or self.known is None:
            return guess
        return torch.where(self.known[..., None], self.values.to(dtype), guess)


def has_steps(net: Network) -> bool:
    """Whether a network has steps of its own, faster than a forward pass for each."""
    return type(net).step is not Network.step


def road(net: Countable, name: SamplerName) -> SamplerName:
    """The sampler that ``auto`` stands for, compiled code aside; any other stands for itself."""
    if name != "auto":
        return name
    return "cached" if not isinstance(net, Network) or has_steps(net) else "fixed_point"


def takes_threads(net: Countable, name: SamplerName) -> bool:
    """Whether the walk is of whole forward passes, which several threads make faster."""
    name = road(net, name)
    return name == "naive" or (name in ("fixed_point", "speculative") and not _by_steps(net))


def _by_steps(net: Countable) -> bool:
    """Whether a pass over a few steps costs less than one over all."""
    return isinstance(net, (StreamNetwork, AfterPrompt, AnyOrderNetwork))


def take(
    net: Countable,
    model: Drafting,
    draws: Draws,
    sampler: Sampler,
    *,
    context: Tensor | None = None,
    progress: bool = False,
    watch: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Write events by the walk that a sampler asks for.

    Args:
        net: The network of the model, or its steps after a prompt.
        model: It is drawn from.
        draws: What is drawn.
        sampler: How; what the walk took is added to its tally.
        context: (B, *context.shape) what the events are conditioned on, if anything.
        progress: Show a bar with an ETA once a second has passed.
        watch: Gets the values (t, K) of the first event as they are written, in turn.

    Returns:
        (B, S, K) values and their log-probabilities (B, S), nats, at temperature 1.

    Raises:
        ValueError: The draft does not suit the model.
    """
    n = len(draws.noise)
    if sampler.name == "auto" and watch is None and draws.fusible and isinstance(net, Network):
        fused = net.fused_walk(draws.head.family, draws.noise, draws.temperature, context)
        if fused is not None:
            values, params = fused
            return values, score(draws.head, params, values)
    if sampler.name == "auto" and watch is None and isinstance(net, GroupedNetwork):
        return walk_groups(
            net, draws.head, n, draws.chooser(model.net.values_dtype), context, progress=progress
        )
    name = road(net, sampler.name)
    if name in ("naive", "cached"):
        scored = Scored(draws.head, draws.chooser(model.net.values_dtype))
        steps = net if name == "cached" else _naive(net)
        chooser: Choose = scored if watch is None else _watched(scored, watch)
        return walk(steps, n, chooser, context, progress=progress), scored.log_probs()
    passes: Passes
    if isinstance(net, (StreamNetwork, AfterPrompt)):
        passes = ReadPasses(net, n, context)
    else:
        passes = WholePasses(cast(Network, net), context)
    num_steps, width = net.num_steps, model.net.order.width
    values = draws.first_guess((n, num_steps, width), model.net.values_dtype)
    few = _by_steps(net)
    if name == "fixed_point":
        block = sampler.block or (min(BLOCK, num_steps) if few else num_steps)
        chooser, guess = draws.chooser(model.net.values_dtype), None
    else:
        block = sampler.draft_steps or (READ_STEPS if few else EVENT_STEPS)
        draft = _draft(net, model, draws, sampler, context)
        chooser, guess = draws.kept(draft.choose), draft.guess
    return settle(
        passes,
        draws.head,
        chooser,
        values,
        block=block,
        tally=sampler.tally,
        guess=guess,
        watch=watch,
        progress=progress,
    )


def _watched(choose: Choose, watch: Callable[[Tensor], None]) -> Choose:
    """A chooser of single steps that shows what is chosen for the first event."""

    def choosing(s: int, params: Tensor) -> Tensor:
        values = choose(s, params)
        watch(values[:1])
        return values

    return choosing


def _naive(net: Countable) -> Countable:
    """The steps that define those of a network, or of one after a prompt."""
    return net.naive() if isinstance(net, AfterPrompt) else NaiveSteps(cast(Network, net))


def _draft(
    net: Countable, model: Drafting, draws: Draws, sampler: Sampler, context: Tensor | None
) -> Draft:
    """The draft of a sampler, over the same events; arguments as of ``take``."""
    draft = require_draft(sampler.draft, model, draws.temperature)
    steps: Countable = draft.net
    if isinstance(draft.net, StreamNetwork):
        steps = draft.net.with_length(net.num_steps)
        if isinstance(net, AfterPrompt):
            steps = net.by(draft.net)
    likely = (draws.temperature, draws.top_k, draws.top_p)
    return Draft(
        steps,
        Levels(draft.head, *likely),
        Levels(draws.head, *likely),
        draws.noise,
        draws.known,
        None if draft.context is None else context,
    )
