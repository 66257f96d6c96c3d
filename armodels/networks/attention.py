"""Attention of a stream's values to those before them: which are asked, and how places count.

Places count from the oldest key at hand, so that only distances matter and small numbers are
exact; a value's place in its stream counts where features are ``turned`` by it, once for all that
ask later, in float64, and for ``fixed_mask``.
Shapes: B batch, t queries, m keys, H heads, D features of a head; the last query stands at the
last key.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, final

import torch
from torch import Tensor, nn

Attention = Literal["full", "window", "strided", "fixed"]
PlaceKind = Literal["rotary", "learned", "sinusoidal"]


def full_mask(queries: Tensor, keys: Tensor) -> Tensor:
    """All values up to its own: places (t,) and (m,) -> (t, m) bool."""
    return keys <= queries[:, None]


def window_mask(queries: Tensor, keys: Tensor, past: int) -> Tensor:
    """The last values, its own among them.

    Args:
        queries: (t,) places.
        keys: (m,) places.
        past: So many.

    Returns:
        (t, m) bool.
    """
    return full_mask(queries, keys) & (keys > queries[:, None] - past)


def strided_mask(queries: Tensor, keys: Tensor, past: int, stride: int) -> Tensor:
    """Of the last values, the nearest ones and each so many steps away.

    Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, both patterns of its strided
    attention in one head (its section 4.3, merged heads).

    Args:
        queries: (t,) places.
        keys: (m,) places.
        past: The farthest are so many away, less one.
        stride: So many are near, and so many lie from one of the others to the next.

    Returns:
        (t, m) bool.
    """
    distance = queries[:, None] - keys
    return window_mask(queries, keys, past) & ((distance < stride) | (distance % stride == 0))


def fixed_mask(queries: Tensor, keys: Tensor, past: int, stride: int, summary: int) -> Tensor:
    """Of the last values, those of its own block and the last ones of each earlier block.

    Source: Child et al., 2019, https://arxiv.org/abs/1904.10509, its fixed attention, merged.

    Args:
        queries: (t,) places in the stream.
        keys: (m,) places in the stream.
        past: The farthest are so many away, less one.
        stride: Values of a block.
        summary: Values at the end of a block that are asked from later ones.

    Returns:
        (t, m) bool.
    """
    own = keys // stride == queries[:, None] // stride
    return window_mask(queries, keys, past) & (own | (keys % stride >= stride - summary))


@final
class Pattern:
    """Which values are asked, of a stream that is read in pieces.

    Args:
        attention: The kind.
        past: Values that are in reach, its own among them; None: all.
        stride: Of ``"strided"`` and ``"fixed"``.
        summary: Of ``"fixed"``.

    Raises:
        ValueError: The kind lacks one of these, or has one too many.
    """

    def __init__(
        self, attention: Attention, past: int | None, stride: int | None, summary: int | None
    ):
        needs = {
            "past": (past, attention != "full"),
            "stride": (stride, attention in ("strided", "fixed")),
            "summary": (summary, attention == "fixed"),
        }
        for name, (value, needed) in needs.items():
            if needed and value is None:
                raise ValueError(
                    f"attention {attention} needs {name}, a number of values: set model.{name}"
                )
            if value is not None and not needed:
                raise ValueError(
                    f"attention {attention} has no {name}, but {name} is {value}; set "
                    f"model.{name}=null"
                )
        if stride is not None and summary is not None and summary > stride:
            raise ValueError(f"summary is {summary}; a block has {stride} values, its stride")
        self.attention, self.past, self.stride, self.summary = attention, past, stride, summary

    def first_kept(self, num: int) -> int:
        """The first of ``num`` keys that a later value may ask."""
        return 0 if self.past is None else max(num - self.past + 1, 0)

    def mask(self, num: int, kept: int, read: Tensor) -> Tensor | None:
        """Which keys each value asks.

        Args:
            num: Values, t.
            kept: Keys of values before them, m.
            read: () int64, values that the stream had before them.

        Returns:
            (t, m + t) bool; None: all up to its own, where m is 0 or t is 1.
        """
        near = self.past is None or kept + num <= self.past
        if near and self.stride is None and (not kept or num == 1):
            return None  # The fast kernels of PyTorch know this one.
        keys = read - kept + torch.arange(kept + num, device=read.device)
        queries = keys[kept:]
        if self.past is None:
            return full_mask(queries, keys)
        if self.stride is None:
            return window_mask(queries, keys, self.past)
        if self.summary is None:
            return strided_mask(queries, keys, self.past, self.stride)
        return fixed_mask(queries, keys, self.past, self.stride, self.summary)


def _angles(places: Tensor, num: int) -> Tensor:
    """Of places (t,), at rates from 1 downwards by Vaswani et al., 2017: (t, num), float64."""
    rates = 10_000.0 ** (-torch.arange(num, device=places.device, dtype=torch.double) / num)
    return places[:, None] * rates


def turns(places: Tensor, size: int) -> Tensor:
    """Cosines and sines of the angles by which features of places (t,) are turned.

    Args:
        places: (t,).
        size: D, even.

    Returns:
        (2, t, D / 2), float64.
    """
    angles = _angles(places.double(), size // 2)
    return torch.stack([angles.cos(), angles.sin()])


def turned(x: Tensor, by: Tensor) -> Tensor:
    """Features (..., t, D) turned by angles that grow with their places.

    The product of two depends on the distance of their places alone.
    Source: Su et al., 2021, https://arxiv.org/abs/2104.09864.

    Args:
        x: (..., t, D).
        by: (2, t, D / 2), of ``turns``.
    """
    cos, sin = by.unbind()
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def appended(kept: Tensor, new: Tensor) -> Tensor:
    """What is kept of earlier values and, behind it, what is new.

    Step after step without gradient, the new is written into room behind the kept, which is made
    for as many again where there is none: so S steps copy O(S), not O(S^2). The room is what the
    storage has behind a view; a fork copies views alone, and so gets none.

    Args:
        kept: (B, H, m, D); it is used up.
        new: (B, H, t, D).

    Returns:
        (B, H, m + t, D).
    """
    n, heads, num, size = kept.shape
    kept = kept.to(new)
    if num == 0 or new.shape[2] > 1 or torch.is_grad_enabled():
        return torch.cat([kept, new], 2)
    length = kept.stride(1) // size
    whole = kept.stride() == (heads * length * size, length * size, size, 1)
    # A copy of one stream and one head has the strides of a room, and none of the room.
    held = kept.untyped_storage().nbytes() == n * heads * length * size * kept.element_size()
    if not (whole and held) or kept.storage_offset() // size % length + num == length:
        room = kept.new_empty(n, heads, 2 * num + 1, size)
        room[:, :, :num] = kept
        kept = room[:, :, :num]
    stride, start = kept.stride(), kept.storage_offset()
    kept.as_strided(new.shape, stride, start + num * size).copy_(new)
    return kept.as_strided((n, heads, num + 1, size), stride, start)


def waves(places: Tensor, size: int) -> Tensor:
    """Sines and cosines of places (t,), by Vaswani et al., 2017: (t, size), size even."""
    angles = _angles(places, size // 2)
    return torch.cat([angles.sin(), angles.cos()], -1)


class Distances(nn.Module, ABC):
    """How the distance of a key enters what a query asks of it."""

    @abstractmethod
    def forward(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the keys are multiplied by, and what is added to the product over the root of D.

        Args:
            query: (B, H, t, D); the last one stands at the last key.
            keys: (B, H, m, D).

        Returns:
            A query of the same shape, and (..., t, m) or None.
        """


def places_of(query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Places (t,) and (m,), counted from the oldest key."""
    places = torch.arange(keys.shape[2], device=keys.device)
    return places[keys.shape[2] - query.shape[2] :], places


def _distances(query: Tensor, keys: Tensor, past: int) -> Tensor:
    """(t, m) from 0 to one less than ``past``; what lies outside is asked by nobody."""
    queries, places = places_of(query, keys)
    return (queries[:, None] - places).clamp(0, past - 1)


@final
class Unplaced(Distances):
    """Nothing is added: features say where they are, by what they were made of or ``turned``."""

    def forward(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """As they are."""
        return query, None


@final
class Learned(Distances):
    """A number for each head and distance.

    Source: Raffel et al., 2020, https://arxiv.org/abs/1910.10683 (its relative position bias).
    Differs from the paper: each distance has a number of its own, and each layer.

    Args:
        num_heads: H.
        past: Distances from 0 to one less.
    """

    def __init__(self, num_heads: int, past: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_heads, past))

    def forward(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """The numbers (H, t, m) are added."""
        bias = self.table[:, _distances(query, keys, self.table.shape[1])]
        return query, bias.to(query)


@final
class Sinusoidal(Distances):
    """What a query asks of a distance, and what each head asks of any key and of any distance.

    Source: Dai et al., 2019, https://arxiv.org/abs/1901.02860, section 3.3.

    Args:
        num_heads: H.
        size: Features of all heads, H * D.
    """

    def __init__(self, num_heads: int, size: int):
        super().__init__()
        self.heads = nn.Linear(size, size, bias=False)
        self.of_keys = nn.Parameter(torch.zeros(num_heads, 1, size // num_heads))
        self.of_distances = nn.Parameter(torch.zeros(num_heads, 1, size // num_heads))

    def forward(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """The products with the distances' own keys (B, H, t, m) are added."""
        num, size = keys.shape[2], self.heads.in_features
        distances = _distances(query, keys, num)
        places = torch.arange(num, device=keys.device, dtype=torch.double)
        own = self.heads(waves(places, size).to(query)).unflatten(-1, (keys.shape[1], -1))
        asked = (query + self.of_distances) @ own.permute(1, 2, 0)  # (B, H, t, distances)
        index = distances.expand(*asked.shape[:2], *distances.shape)
        bias = asked.gather(-1, index) / math.sqrt(query.shape[-1])
        return query + self.of_keys, bias


def make_distances(places: PlaceKind, num_heads: int, size: int, past: int | None) -> Distances:
    """How distances enter one attention.

    Args:
        places: The kind.
        num_heads: H.
        size: Features of all heads.
        past: Values in reach; None: all.

    Raises:
        ValueError: Learned distances have no end.
    """
    if places == "rotary":
        return Unplaced()
    if places == "sinusoidal":
        return Sinusoidal(num_heads, size)
    if past is None:
        raise ValueError(
            "places learned are as many as past, but all is in reach; set model.past, and another "
            "attention than full"
        )
    return Learned(num_heads, past)
