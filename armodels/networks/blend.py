"""Blends: what several trained networks that read say of each value, mixed as probabilities.

Shapes: B batch, t values read at once, L levels, M members, F features of the gate.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, final

import torch
from torch import Tensor, nn

from armodels import show
from armodels.checks import Between, Count, Positive, checked
from armodels.networks.base import Network, State
from armodels.networks.layers import ModuleListOf
from armodels.networks.stream import CHUNK, StreamNetwork, require_levels
from armodels.orders import Order
from armodels.spec import DataSpec

ROUNDS = 200
"""Rounds of EM, and at most as many steps of L-BFGS: both end long before."""


class Says(Protocol):
    """A head of levels, see ``armodels.heads.Head``."""

    def level_log_probs(self, params: Tensor, earlier: Tensor) -> Tensor:
        """Nats of every level: (..., P), (..., 0) -> (..., L)."""


class Member(Protocol):
    """A trained model: its network and its head."""

    @property
    def net(self) -> Network:
        """Reads."""

    @property
    def head(self) -> Says:
        """Says what the network's parameters mean."""


def reader(member: object, spec: DataSpec, name: str) -> StreamNetwork:
    """The network of a model that can be mixed with others on some data.

    Args:
        member: A model.
        spec: What a datum is.
        name: Of the model, for sentences.

    Raises:
        ValueError: It does not read, has a context, or gives probabilities to other levels.
    """
    net = getattr(member, "net", None)
    if not isinstance(net, StreamNetwork):
        raise ValueError(
            f"{name} takes events of one length alone, so that it cannot be blended; name runs of "
            f"models that read, such as model=rnn and model=ngram"
        )
    if net.context is not None:
        raise ValueError(
            f"{name} is conditioned on {net.context.name}, but a blend has no context; train it "
            f"with model.context=null"
        )
    own = net.spec
    if own.levels is None or (own.levels, own.alphabet) != (spec.levels, spec.alphabet):
        raise ValueError(
            f"{name} was trained on {own.name}, whose {_levels(own)} are not the {_levels(spec)} "
            f"of {spec.name}, so that their probabilities cannot be mixed; train it on the same "
            f"symbols"
        )
    return net


def _levels(spec: DataSpec) -> str:
    if spec.levels is None:
        return "real values"
    return f"{spec.levels} levels" if spec.alphabet is None else f"{spec.levels} symbols"


@final
class Gate(nn.Module):
    """Log-weights (..., M) from what the members say of the next value: (..., M, L).

    A member's features are its entropy and the log-probability of its likeliest level, nats. So
    weights depend on the past alone, and what is mixed by them sums to one.

    Args:
        num_members: M.
        hidden_size: Units between the features and the weights.
    """

    def __init__(self, num_members: int, hidden_size: int):
        super().__init__()
        self.hidden = nn.Linear(2 * num_members, hidden_size)
        self.out = nn.Linear(hidden_size, num_members)
        nn.init.zeros_(self.out.weight)  # weights are even at first
        nn.init.zeros_(self.out.bias)

    def features(self, levels: Tensor) -> Tensor:
        """(..., M, L) -> (..., F)."""
        entropy = -(levels.exp() * levels.clamp_min(-1e9)).sum(-1)
        return torch.cat([entropy, levels.amax(-1)], -1).to(self.hidden.weight)

    def of_features(self, features: Tensor) -> Tensor:
        """(..., F) -> (..., M)."""
        return self.out(self.hidden(features).tanh()).log_softmax(-1)

    def forward(self, levels: Tensor) -> Tensor:
        """(..., M, L) -> (..., M)."""
        return self.of_features(self.features(levels))


@final
class Blend(StreamNetwork):
    """p(x | past) = sum over m of w_m p_m(x | past): probabilities are mixed, never logits.

    A mixture of normalized conditionals is normalized, so the product over a text is an exact
    likelihood, and the one walk samples it. Weights are constants, or come from a gate that reads
    what the members say of the next value.

    Accepts: sequence with levels. Order: raster only. Sampling: each member takes its own step.
    Members stay as they were trained. Weights are fitted on the end of train, which networks among
    the members must not have seen: train those on less of the text. Members that count are counted
    anew, on what lies before that end for the fit, and on all of train after it.
    Sources: Jelinek and Mercer, 1980, Interpolated estimation of Markov source parameters from
    sparse data (weights fitted on held-out text by EM); Jacobs et al., 1991,
    https://doi.org/10.1162/neco.1991.3.1.79 (the gate).
    Differs from the papers: members are trained before, and the gate reads their entropies and
    highest log-probabilities, not their input.

    Args:
        spec: What a datum is.
        num_params: Parameters per step, P: the number of levels.
        order: From the first value to the last.
        runs: The members: trained models that read, each of the same levels.
        weights: ``"fit"``: constants that are fitted; ``"gate"``: a gate that is; or the constants
            themselves, which sum to one.
        held_out: Share of train, at its end, that weights are fitted on.
        gate_size: Hidden units of the gate.

    Raises:
        ValueError: A member does not suit the data, there are fewer than two, or the weights are
            none.
    """

    takes_context = False

    @checked
    def __init__(
        self,
        spec: DataSpec,
        num_params: int,
        order: Order,
        *,
        runs: Sequence[Member],
        weights: Literal["fit", "gate"] | list[Positive] = "fit",
        held_out: Between = 0.1,
        gate_size: Count = 16,
    ):
        super().__init__(spec, num_params, order)
        require_levels("Blend", spec, num_params)
        if len(runs) < 2:
            raise ValueError(f"model.runs names {len(runs)} runs; a blend needs two or more")
        nets = [reader(one, spec, f"member {i} of the blend") for i, one in enumerate(runs, 1)]
        self.members: ModuleListOf[StreamNetwork] = ModuleListOf(nets)
        self.heads = [one.head for one in runs]
        self.held_out = held_out
        self.fits = isinstance(weights, str)
        self.gate = Gate(len(runs), gate_size) if weights == "gate" else None
        even = torch.full((len(runs),), 1 / len(runs))
        start = even if isinstance(weights, str) else _given(weights, len(runs))
        self.log_weights = nn.Parameter(start.log())
        self.requires_grad_(False)  # nothing of it is moved by an optimizer

    def _split(self, state: State) -> list[State]:
        """The state of each member."""
        parts = [State({}) for _ in self.members]
        for name, tensor in state.items():
            member, _, own = name.partition(".")
            parts[int(member)][own] = tensor
        return parts

    def _said(self, params: Sequence[Tensor]) -> Tensor:
        """What the members' parameters (..., P) say of each level: (..., M, L), nats, float64."""
        found = [
            head.level_log_probs(one, one.new_empty(*one.shape[:-1], 0)).double()
            for head, one in zip(self.heads, params, strict=True)
        ]
        return torch.stack(found, -2)

    def _joined(self, each: Iterable[tuple[Tensor, State]]) -> tuple[Tensor, State]:
        """Parameters of the blend, and its state, from those of its members."""
        params, states = zip(*each, strict=True)
        levels = self._said(params)
        weights = self.log_weights if self.gate is None else self.gate(levels)
        mixed = torch.logsumexp(levels + weights.double()[..., None], -2)
        # Digits beyond those of the members would be noise, which moves with the batch.
        kinds = [*params, weights] if self.gate else params
        mixed = mixed if all(one.dtype == torch.double for one in kinds) else mixed.float()
        if self.num_params == 1:
            mixed = mixed[..., 1:] - mixed[..., :1]
        names = ((f"{i}.{name}", one[name]) for i, one in enumerate(states) for name in one)
        return mixed, State(dict(names))

    @property
    def receptive_field(self) -> int | None:
        """That of the member that looks back the farthest."""
        fields = [member.receptive_field for member in self.members]
        return None if None in fields else max(field for field in fields if field is not None)

    def begin(self, n: int, context: Tensor | None = None) -> tuple[Tensor, State]:
        """What the members say before anything is read."""
        return self._joined(member.begin(n) for member in self.members)

    def read(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, t, 1) -> (B, t, P)."""
        parts = zip(self.members, self._split(state), strict=True)
        return self._joined(member.read(values, own) for member, own in parts)

    def absorb(self, values: Tensor, state: State) -> tuple[Tensor, State]:
        """(1, t, 1) -> (1, t, P), members that count having counted."""
        parts = zip(self.members, self._split(state), strict=True)
        return self._joined(member.absorb(values, own) for member, own in parts)

    @property
    def bytes_to_learn(self) -> int:
        """Of all members that count."""
        return sum(member.bytes_to_learn for member in self.members) if self.fits else 0

    def learn(self, pieces: Iterable[Tensor]) -> bool:
        """Fit the weights on the end of train, with members that have not counted it."""
        if not self.fits:
            return True
        whole = list(pieces)
        before, end = _cut(whole, self.held_out)
        for member in self.members:
            member.learn(before)
        training = self.training
        self.eval()
        found = [part for piece in end for part in self._heard(piece)]
        self.train(training)
        log_probs, features = map(torch.cat, zip(*found, strict=True))
        if self.gate is None:
            weights = constants(log_probs)
            self.log_weights.copy_(weights.log())
            shares = weights.log().expand_as(log_probs)
            what = ", ".join(f"{weight:.3f}" for weight in weights.tolist())
        else:
            fit_gate(self.gate, features, log_probs)
            shares = self.gate.of_features(features).double()
            means = shares.exp().mean(0).tolist()
            what = f"from a gate, on average {', '.join(f'{weight:.3f}' for weight in means)}"
        nats = -torch.logsumexp(shares + log_probs, -1).mean()
        alone = ", ".join(f"{one:.4f}" for one in (-log_probs.mean(0)).tolist())
        show.say(
            f"weights {what}: {nats:.4f} nats a symbol on the last {len(log_probs):,} symbols of "
            f"train, where the members have {alone}"
        )
        for member in self.members:
            member.learn(whole)
        return True

    def _heard(self, piece: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What members say of the values (T,) of a piece, chunk after chunk.

        Yields:
            (t, M) log-probabilities of the values, nats, and (t, F) features of the gate.
        """
        before, states = map(list, zip(*(one.begin(1) for one in self.members), strict=True))
        for values in piece.split(CHUNK):
            read = [
                member.read(values[None, :, None], state)
                for member, state in zip(self.members, states, strict=True)
            ]
            params = [
                torch.cat([first[:, None], after[:, :-1]], 1)[0]
                for first, (after, _) in zip(before, read, strict=True)
            ]
            before, states = [after[:, -1] for after, _ in read], [state for _, state in read]
            levels = self._said(params)  # (t, M, L)
            index = values.long()[:, None, None].expand(-1, levels.shape[1], 1)
            chosen = levels.gather(-1, index)[..., 0]
            yield chosen, self.gate.features(levels) if self.gate else chosen[:, :0]


def _given(weights: Sequence[float], num_members: int) -> Tensor:
    """Weights that were typed.

    Raises:
        ValueError: They are not one for each member, or do not sum to one.
    """
    if len(weights) != num_members:
        raise ValueError(
            f"model.weights has {len(weights)} weights for {num_members} runs; give one for each"
        )
    if abs(math.fsum(weights) - 1) > 1e-6:
        raise ValueError(f"model.weights is {list(weights)}; they must sum to 1")
    exact = torch.tensor(weights, dtype=torch.double)
    return (exact / exact.sum()).to(torch.get_default_dtype())


def _cut(pieces: Sequence[Tensor], share: float) -> tuple[list[Tensor], list[Tensor]]:
    """Sequences without the end of them, and that end.

    Args:
        pieces: (T,) each.
        share: Of their values that are in the end, of which it has one at least.
    """
    left = max(1, round(share * sum(map(len, pieces))))
    before, end = [], []
    for piece in reversed(pieces):
        size = min(left, len(piece))
        left -= size
        before += [piece[: len(piece) - size]] if size < len(piece) else []
        end += [piece[len(piece) - size :]] if size else []
    return before[::-1], end[::-1]


def constants(log_probs: Tensor) -> Tensor:
    """Weights (M,) under which values are likeliest, by EM from even ones.

    The log-likelihood is concave in the weights, so that there is one best.

    Args:
        log_probs: (T, M) of the values under each member, nats.
    """
    weights = log_probs.new_full(log_probs.shape[1:], 1 / log_probs.shape[1])
    for _ in range(ROUNDS):
        weights = (log_probs + weights.log()).softmax(-1).mean(0)
    return weights


def fit_gate(gate: Gate, features: Tensor, log_probs: Tensor) -> None:
    """Set a gate's weights so that values are likeliest, by L-BFGS on all of them at once.

    Args:
        gate: Changed in place.
        features: (T, F) of the gate.
        log_probs: (T, M) of the values under each member, nats.
    """
    with torch.enable_grad():
        gate.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            gate.parameters(), max_iter=ROUNDS, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            found = -torch.logsumexp(gate.of_features(features).double() + log_probs, -1).mean()
            found.backward()
            return found

        optimizer.step(loss)
    gate.zero_grad()
    gate.requires_grad_(False)
