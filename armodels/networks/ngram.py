"""n-grams: each value given the few before it, by counts."""

from collections.abc import Iterable
from typing import final

import torch
from torch import Tensor

from armodels.checks import Count, checked
from armodels.kernels.counting import GrowingCounts
from armodels.networks.base import State
from armodels.networks.kneser_ney import KneserNey
from armodels.networks.stream import StreamNetwork, require_levels
from armodels.orders import Order
from armodels.spec import DataSpec


@final
class NGram(StreamNetwork):
    """Counts of what follows the last n - 1 values, smoothed by interpolated modified Kneser-Ney.

    Accepts: sequence with levels. Order: raster only. Fitted in seconds, without an
    optimizer; n = 2 is the Markov chain of first order.
    Source: Chen and Goodman, 1999, https://doi.org/10.1006/csla.1999.0128.
    Differs from the paper: see ``KneserNey``.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P: the number of levels.
        order: From the first value to the last.
        n: Values of an n-gram, the last of which is the one that is predicted.

    Raises:
        ValueError: The values have no levels, or the head reads no probability for each.
    """

    takes_context = False

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        n: Count = 7,
    ):
        super().__init__(spec, num_params, order)
        require_levels("NGram", spec, num_params)
        self.n = n
        self.counts = KneserNey(spec.num_levels, n)
        self.growing: GrowingCounts | None = None

    @property
    def receptive_field(self) -> int:
        """n - 1."""
        return self.n - 1

    @property
    def bytes_to_learn(self) -> int:
        """Of a text in which all n-grams recur; of one at random up to 90 bytes times n."""
        return 100

    def learn(self, pieces: Iterable[Tensor]) -> bool:
        """Count the n-grams of whole sequences."""
        self.counts.fit(pieces)
        self.growing = None
        return True

    def absorb(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """(1, t, 1) -> (1, t, P), each value counted before it is said what follows."""
        if self.growing is None:
            self.growing = self.counts.growing()
        past = state["past"][0].cpu().numpy().copy()
        symbols = values[0, :, 0].cpu().numpy().astype("int64")
        found, known = self.growing.read(symbols, past, int(state["known"]))
        log_probs = torch.from_numpy(found)[None].to(values.device)
        params = log_probs if self.num_params > 1 else log_probs[..., 1:] - log_probs[..., :1]
        last = {"past": torch.from_numpy(past)[None], "known": torch.tensor([known])}
        return params, State({name: one.to(values.device) for name, one in last.items()})

    def begin(self, n: int, context: Tensor | None = None) -> tuple[Tensor, State]:
        """Nothing is known."""
        device = self.order_table.device
        past = torch.zeros(n, self.n - 1, dtype=torch.int64, device=device)
        known = torch.zeros(n, dtype=torch.int64, device=device)
        return self._params(past, known), State({"past": past, "known": known})

    def _params(self, past: Tensor, known: Tensor) -> Tensor:
        log_probs = self.counts.log_probs(past, known)
        return log_probs if self.num_params > 1 else log_probs[:, 1:] - log_probs[:, :1]

    def read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, t, 1) -> (B, t, P)."""
        size = self.n - 1
        both = torch.cat([state["past"], values[..., 0].long()], 1)
        after = torch.arange(1, values.shape[1] + 1, device=both.device)
        known = (state["known"][:, None] + after).clamp(max=size)
        windows = both[:, 1:].unfold(1, size, 1) if size else both[..., None][:, :, :0]
        params = self._params(windows.flatten(0, 1), known.flatten())
        last = State({"past": both[:, both.shape[1] - size :], "known": known[:, -1]})
        return params.unflatten(0, known.shape), last
