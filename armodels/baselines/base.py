"""What baselines share: density models without a network, fitted to the training data in one go.

``initialize`` fits them, in closed form or by EM; they take no training steps. All that is fitted
stands in buffers whose shapes follow from the spec and the arguments, so a plain state_dict
restores a model exactly.

Shapes: B batch, D values per example, M mixture components, N particles.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from armodels.checks import Count, require_types
from armodels.density import query
from armodels.density.base import DensityModel
from armodels.density.completion import IMPOSSIBLE, Completion, as_mask, disagreement
from armodels.density.walk import check_draw
from armodels.spec import DataSpec


class Baseline(DensityModel):
    """A density model that can fill in any unknown values; sampling fills in all of them.

    Args:
        spec: What a datum is.
    """

    fitted: Tensor
    """False until ``initialize`` or ``load_state_dict``."""

    def __init__(self, spec: DataSpec):
        super().__init__()
        self.spec = spec
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def num_parameters(self) -> int:
        """What is fitted stands in buffers; a baseline has no weights."""
        return sum(b.numel() for name, b in self.named_buffers() if name != "fitted")

    @abstractmethod
    def _fit(self, x: Tensor, progress: bool) -> None:
        """Set the buffers from all training examples, (B, D)."""

    @abstractmethod
    def _flat_log_prob(self, x: Tensor) -> Tensor:
        """log p(x), nats: (B, D) -> (B,)."""

    @abstractmethod
    def _fill(
        self,
        x: Tensor,
        known: Tensor,
        num_particles: int,
        temperature: float,
        generator: torch.Generator | None,
        progress: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Draw every value from p(. | known values).

        Args:
            x: (B, D), zero where not known.
            known: (B, D).
            num_particles: For models whose conditionals have no closed form.
            temperature: As in ``sample_with_log_prob``.
            generator: Seeds the draw.
            progress: Show a bar where this takes long.

        Returns:
            (B, D) values, of any kind where known, and the log-weights (B, M, N) of the
            particles, not normalized, or None where the draw is exact.
        """

    @abstractmethod
    def _part_log_prob(self, x: Tensor, part: Tensor) -> Tensor | None:
        """log p of some values, nats, the others summed out; None: there is no closed form.

        Args:
            x: (B, D), zero outside of the part.
            part: Boolean (B, D).

        Returns:
            (B,).
        """

    def _estimate(self, one: query.Query) -> query.Weights:
        """What the parts of a query weigh where they have no closed form."""
        raise NotImplementedError

    @final
    def _weights_of(self, one: query.Query) -> query.Weights:
        self._require_ready()
        found = []
        for part in (one.both, one.known):
            each = self._part_log_prob(one.x.masked_fill(~part, 0).flatten(1), part.flatten(1))
            if each is None:
                return self._estimate(one)
            found.append(each)
        return query.exactly(*found)

    def _value_log_prob(self, x: Tensor) -> Tensor | None:
        """log p of each value, nats, (B, D) -> (B, D); None where values depend on each other."""
        return None

    @final
    def _require_possible(self, x: Tensor, known: Tensor) -> None:
        """Raise ValueError where known values have probability 0, as far as each value tells."""
        each = self._value_log_prob(x)
        if each is not None and (each.isneginf() & known).any():
            raise ValueError(IMPOSSIBLE)

    def _register(self, name: str, *shape: int) -> None:
        # A fit is solved once, in double: it must not lose digits to the dtype of training.
        self.register_buffer(name, torch.zeros(shape, dtype=torch.double))

    def _require_ready(self) -> None:
        name = type(self).__name__
        if not self.fitted:
            raise RuntimeError(
                f"model {name} is not fitted; call initialize(batches) or load a checkpoint first"
            )

    def _require_examples(self, num_examples: int, num_components: int) -> None:
        if num_examples < num_components:
            raise ValueError(
                f"data {self.spec.name!r} has {num_examples} training examples for the "
                f"{num_components} components of model {type(self).__name__}; "
                f"use a smaller num_components"
            )

    @final
    @torch.no_grad()
    def initialize(self, batches: Iterable[Tensor], *, progress: bool = False) -> None:
        """Fit to the training examples; the only training there is.

        Raises:
            ValueError: There are no examples, or they lie outside the support.
        """
        chunks = []
        for x in batches:
            self.spec.check(x)
            chunks.append(x.flatten(1))
        if sum(map(len, chunks)) == 0:
            raise ValueError(f"data {self.spec.name!r} has no training examples to fit")
        self._fit(torch.cat(chunks), progress)
        self.fitted.fill_(True)

    @final
    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        self._require_ready()
        with torch.autocast(x.device.type, enabled=False):
            return self._flat_log_prob(x.flatten(1))

    @final
    def log_prob_map(self, x: Tensor, context: Tensor | None = None) -> Tensor | None:
        """Log-probability of each value, where the others say nothing about it."""
        self.check_context(context, len(x))
        self._require_ready()
        each = self._value_log_prob(x.flatten(1))
        return None if each is None else each.view(x.shape)

    @final
    @torch.no_grad()
    def sample_with_log_prob(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        progress: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Fill in everything."""
        check_draw(temperature, n)
        self.check_context(context, n)
        self._require_ready()
        device = self.fitted.device
        x = torch.zeros(n, self.spec.num_dims, dtype=self.spec.dtype, device=device)
        known = torch.zeros_like(x, dtype=torch.bool)
        values, _ = self._fill(x, known, 1, temperature, generator, progress)
        values = values.to(self.spec.dtype).view(n, *self.spec.shape)
        return values, self._log_prob(values, None)

    @final
    @torch.no_grad()
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
        """Any part given any other.

        Raises:
            ValueError: The temperature, the context or ``num_particles`` cannot be, or what is
                known has probability 0.
        """
        check_draw(temperature)
        mask = as_mask(known, x)
        self.check_context(context, len(x))
        self._require_ready()
        require_types({"num_particles": num_particles}, {"num_particles": Count})
        kept = x.masked_fill(~mask, 0)
        self.spec.check(kept)
        flat, flat_mask = kept.flatten(1), mask.flatten(1)
        self._require_possible(flat, flat_mask)
        values, log_weights = self._fill(
            flat, flat_mask, num_particles, temperature, generator, progress
        )
        values = torch.where(mask, x, values.view_as(x).to(x.dtype))
        if log_weights is None:
            return Completion(values, "exact", torch.ones(len(x), device=x.device), 1)
        weights = log_weights.flatten(1).softmax(1)
        return Completion(
            values,
            "likelihood weighting",
            1 / weights.square().sum(1),
            weights.shape[1],
            # A component's only particle cannot show how far others would lie from it.
            disagreement(log_weights) if num_particles > 1 else None,
        )


class SeparateValues(Baseline):
    """A baseline under which every value has a probability of its own."""

    @abstractmethod
    def _value_log_prob(self, x: Tensor) -> Tensor:
        """log p of each value, nats: (B, D) -> (B, D)."""

    @final
    def _flat_log_prob(self, x: Tensor) -> Tensor:
        return self._value_log_prob(x).sum(1)

    @final
    def _part_log_prob(self, x: Tensor, part: Tensor) -> Tensor:
        return torch.where(part, self._value_log_prob(x), 0).sum(1)


def require_spread(x: Tensor, spec: DataSpec) -> None:
    """Refuse real values (B, D) on which a Gaussian's density has no bound.

    Raises:
        ValueError: A dimension is constant.
    """
    constant = (x == x[0]).all(0).nonzero()
    if len(constant):
        raise ValueError(
            f"dimension {int(constant[0])} of data {spec.name!r} is constant in the training "
            f"examples, so its density is unbounded; drop it or dequantize the data"
        )
