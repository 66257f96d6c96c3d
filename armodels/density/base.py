"""The contract of every density model: exact log-probabilities, samples and completion."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from armodels.checks import require_class
from armodels.density import query
from armodels.density.completion import Completion
from armodels.objectives import Likelihood, Objective
from armodels.spec import ContextSpec, DataSpec


class DensityModel(nn.Module, ABC):
    """All that the tasks know about a model."""

    spec: DataSpec
    context: ContextSpec | None = None
    """What the model is conditioned on; None: nothing."""
    built_from: Mapping[str, Any] | None = None
    """The configs of model and head that it was built from in Python; None: none that is known."""

    @property
    def any_order(self) -> bool:
        """Trained for all orders, so that it may be used under whichever serves best."""
        return False

    @property
    def description(self) -> str:
        """A few words for the log: which distribution this is."""
        return type(self).__name__

    @property
    def num_parameters(self) -> int:
        """How many numbers were fitted to the data."""
        return sum(p.numel() for p in self.parameters())

    @final
    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Exact log p(x), nats: (B, *event) -> (B,).

        Raises:
            ValueError: A value lies outside the support.
            TypeError: The events, or what they are conditioned on, are no tensor.

        Examples:
            Probabilities of all outcomes sum to one, whatever the weights:

            >>> import armodels
            >>> import itertools, torch
            >>> spec = armodels.DataSpec("bits", "vector", (6,), 2, "probability")
            >>> model = armodels.build("nade", spec, hidden_size=8)
            >>> outcomes = torch.tensor(list(itertools.product([0, 1], repeat=6)))
            >>> round(model.log_prob(outcomes).exp().sum().item(), 5)
            1.0
        """
        require_class("x", x, Tensor, "such as torch.from_numpy(array) makes")
        self.spec.check(x)
        self.check_context(context, len(x))
        return self._log_prob(x, context)

    @final
    def check_context(self, context: Tensor | None, batch_size: int) -> None:
        """Raise ValueError or TypeError unless ``context`` is what the model is conditioned on."""
        self.require_context(context)
        if self.context is not None and context is not None:
            require_class("context", context, Tensor, "such as torch.tensor([0, 1])")
            self.context.check(context, batch_size)

    @final
    def require_context(self, context: Tensor | None) -> None:
        """Raise ValueError where a context lacks or is one too many; its values are not read."""
        if self.context is None:
            if context is not None:
                raise ValueError(
                    f"{self.description} takes no context: it is conditioned on nothing"
                )
        elif context is None:
            raise ValueError(
                f"{self.description} is conditioned on {self.context.name}: "
                f"give one for each event"
            )

    @property
    def num_terms(self) -> int:
        """How many terms of equal weight p(x) is the mean of: the orders of a mixture; else 1."""
        return 1

    def term(self, i: int) -> "DensityModel":
        """The model by which term ``i`` of p(x) is found."""
        return self

    @abstractmethod
    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``log_prob`` of values known to be in the support."""

    @abstractmethod
    def sample_with_log_prob(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draw ``n`` events: (n, *event), and the model's log p of each (at temperature 1): (n,).

        Args:
            n: Number of events.
            context: What they are conditioned on, (n, *context); None: nothing.
            temperature: 1 draws from the model; below 1 nearer to its modes, 0 at them.
            generator: Of the noise; None: the global one of torch.
            progress: Whether a bar is shown once a second has passed.
        """

    @final
    def sample(self, n: int, **options: Any) -> Tensor:
        """Draw ``n`` events: (n, *event); options as in ``sample_with_log_prob``.

        Examples:
            >>> import armodels
            >>> import torch
            >>> spec = armodels.DataSpec("pictures", "image", (1, 4, 4), 2, "probability")
            >>> model = armodels.build("pixelcnn", spec, num_layers=1, num_channels=4)
            >>> model.sample(64, generator=torch.Generator().manual_seed(0)).shape
            torch.Size([64, 1, 4, 4])
        """
        return self.sample_with_log_prob(n, **options)[0]

    @abstractmethod
    def complete(
        self,
        x: Tensor,
        known: Tensor,
        *,
        num_particles: int = 1,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> Completion:
        """Fill in what is not known.

        Args:
            x: (B, *event); values where ``known`` is False are ignored.
            known: Boolean, (*event) or (B, *event).
            num_particles: Particles per event where the order does not put known values first.
            context: What the model is conditioned on.
            temperature: As in ``sample_with_log_prob``.
            generator: Seeds the draw.
            progress: Show a bar with an ETA once a second has passed.

        Examples:
            >>> import armodels
            >>> import torch
            >>> spec = armodels.DataSpec("bits", "vector", (4,), 2, "probability")
            >>> model = armodels.build("made", spec, hidden_sizes=[8])
            >>> x = torch.tensor([[1, 0, 1, 1]])
            >>> known = torch.tensor([True, True, False, False])
            >>> completion = model.complete(x, known)
            >>> completion.values[:, :2]
            tensor([[1, 0]])
            >>> completion.method  # known values come first in the order
            'exact'
        """

    @final
    def log_prob_of(
        self,
        x: Tensor,
        asked: Tensor,
        known: Tensor | None = None,
        *,
        context: Tensor | None = None,
        num_particles: int = query.PARTICLES,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> query.LogProbOf:
        """log p(part of x | another part), nats, what is in neither summed out; no gradient.

        Of a model with steps it is exact where the order writes what is known, then what is asked,
        then the rest; a model for all orders takes such an order, and the baselines have closed
        forms. Elsewhere particles estimate it, with a standard error.

        Args:
            x: (B, *event); values that are neither asked nor known are ignored.
            asked: Boolean, (*event) or (B, *event).
            known: The same; None: nothing, so that the answer is a marginal.
            context: What the model is conditioned on.
            num_particles: Particles per event where there is no closed form, 2 or more.
            generator: Seeds them.
            progress: Show a bar with an ETA once a second has passed.

        Raises:
            ValueError: A value is both asked and known, nothing is asked, what is known is
                impossible, or the model cannot tell of such a part.

        Examples:
            >>> import armodels
            >>> import torch
            >>> spec = armodels.DataSpec("bits", "vector", (4,), 2, "probability")
            >>> model = armodels.build("made", spec, hidden_sizes=[8])
            >>> x, first = torch.tensor([[1, 0, 1, 1]]), torch.tensor([True, True, False, False])
            >>> rest = model.log_prob_of(x, ~first, first)
            >>> rest.method, rest.standard_error.item()
            ('exact', 0.0)
            >>> both = rest.log_prob + model.log_prob_of(x, first).log_prob
            >>> torch.allclose(both.float(), model.log_prob(x))
            True
        """
        self.check_context(context, len(x))
        one = query.make(
            self.spec,
            x,
            asked,
            known,
            context=context,
            num_particles=num_particles,
            generator=generator,
            progress=progress,
        )
        with torch.no_grad():
            return query.answer(self._weights_of(one))

    def _weights_of(self, one: query.Query) -> query.Weights:
        """What the parts of a query weigh; of a model that knows no better, of whole events."""
        if not one.asked.all():
            raise ValueError(f"{self.description} tells nothing of a part of an event")
        whole = self._log_prob(one.x, one.context)
        return query.exactly(whole, torch.zeros_like(whole))

    @final  # type: ignore[misc]  # PyTorch declares forward as an attribute.
    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """``log_prob``, in training and evaluation alike."""
        return self.log_prob(x, context)

    def default_objective(self) -> Objective:
        """What training maximizes where nothing else is asked for: the log-probability."""
        return Likelihood(self)

    def initialize(self, batches: Iterable[Tensor], *, progress: bool = False) -> None:
        """Hook before training: closed-form fits, EM, output biases from the data.

        ``progress`` shows a bar where this takes long.
        """
        return

    def log_prob_map(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        """Log-probability of each value given those before it, (B, *event), where defined."""
        return None

    def entropy_map(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        """Entropy of each value's conditional given those before it, (B, *event), nats.

        None where the values have no levels, or no order.

        Args:
            x: (B, *event).
            context: What the model is conditioned on.
        """
        return None

    @property
    def steps_of_values(self) -> Tensor | None:
        """Step at which each value is written, (*event); None where there is no one order."""
        return None
