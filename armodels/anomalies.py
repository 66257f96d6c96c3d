"""Anomaly detection: how well log-probabilities, raw and corrected, tell other data apart.

Every score is higher where an example is less like the data; the other data are the positive
class. What a score compares with comes from valid, or from another model, never from test.
"""

import io
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from armodels.data.rows import Examples
from armodels.spec import DataSpec

DERIVED = ("constant", "blurred", "inverted")
"""Sets that are made of the model's own data, see ``derive``."""

BLUR = 2.0
"""Standard deviation of the blur, in pixels."""

LARGEST = 1e300
"""Nats of what is impossible: it is the least likely, and no arithmetic breaks on it."""

PAPERS = {
    "likelihood": "none: -log p(x)",
    "ratio": "Ren et al., 2019, https://arxiv.org/abs/1906.02845",
    "complexity": "Serrà et al., 2020, https://arxiv.org/abs/1909.11480",
    "typicality": "Nalisnick et al., 2019, https://arxiv.org/abs/1906.02994",
}
"""The scores, and where they come from."""

INTERVALS = {
    "auroc": "95 %, DeLong et al., 1988, https://doi.org/10.2307/2531595",
    "auprc": "95 %, logit interval, Boyd et al., 2013, "
    "https://doi.org/10.1007/978-3-642-40994-3_29",
}


class Area(NamedTuple):
    """An area under a curve and its 95 % interval."""

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True)
class Detection:
    """How well one score tells one set of other data from the model's.

    Attributes:
        against: Name of the other data.
        score: One of ``PAPERS``.
        own: (N,) the score of each example of the model's data.
        other: (M,) that of each example of the other data.
    """

    against: str
    score: str
    own: np.ndarray
    other: np.ndarray

    @property
    def auroc(self) -> Area:
        """Probability that an other example has the higher score; half of a tie."""
        return auroc(self.own, self.other)

    @property
    def auprc(self) -> Area:
        """Mean precision over the recall of the other data; by chance M / (N + M)."""
        return auprc(self.own, self.other)


# Data


def derive(name: str, x: Tensor, spec: DataSpec) -> Tensor:
    """Other data, made of a model's own.

    Args:
        name: ``constant``: each channel of a picture is its median everywhere. ``blurred``: a
            Gaussian blur of ``BLUR`` pixels, rounded to levels. ``inverted``: level l becomes
            L - 1 - l.
        x: (N, *event).
        spec: What a datum is.

    Raises:
        ValueError: It cannot be made of such data.
    """
    if name not in DERIVED:
        raise ValueError(f"against is {name!r}; choose from {', '.join((*DERIVED, 'data'))}")
    if spec.levels is None or (name != "inverted" and spec.kind != "image"):
        what = "data with levels" if name == "inverted" else "pictures with levels"
        raise ValueError(f"against={name} is for {what}, but the model is of {spec.name}")
    if name == "inverted":
        return (spec.levels - 1 - x.long()).to(x.dtype)
    if name == "constant":
        return x.flatten(2).median(2).values[..., None, None].expand_as(x).contiguous()
    from torchvision.transforms.functional import gaussian_blur

    size = 2 * math.ceil(3 * BLUR) + 1
    smallest = min(spec.shape[1:])
    size = min(size, 2 * smallest - 1)  # the edge is mirrored, which takes pixels
    blurred = [gaussian_blur(part.double(), [size, size], [BLUR, BLUR]) for part in x.split(500)]
    return torch.cat(blurred).round().clamp(0, spec.levels - 1).to(x.dtype)


def derived(name: str, examples: Examples, spec: DataSpec) -> Examples:
    """Examples whose values are other data, made of theirs; contexts stay.

    Args:
        name: One of ``DERIVED``.
        examples: Of the model's data.
        spec: What a datum is.

    Raises:
        ValueError: It cannot be made of such data.
    """
    return replace(examples, x=derive(name, examples.x[:], spec), pieces=(), piece_context=None)


# Scores


def compressed_nats(x: Tensor, spec: DataSpec, *, progress: bool = False) -> np.ndarray:
    """The least size to which PNG, WebP or zlib compresses each example, nats: (N,).

    Source: Serrà et al., 2020, https://arxiv.org/abs/1909.11480. Differs from the paper: WebP and
    zlib stand for FLIF and JPEG 2000. Values of 2 levels are packed, eight to a byte, for zlib
    and PNG; pictures of neither one nor three channels go through zlib alone.

    Args:
        x: (N, *event), of 2 to 256 levels.
        spec: What a datum is.
        progress: Show a bar.

    Raises:
        ValueError: The values have no levels, or too many.
    """
    if spec.levels is None or spec.levels > 256:
        raise ValueError(
            f"the values of {spec.name} are no bytes, so that no size of them is known"
        )
    values = x.cpu().numpy().astype(np.uint8)
    hidden = None if progress else True  # None: where there is no terminal
    bar = tqdm(values, desc="compressing", unit="ex", delay=1, leave=False, disable=hidden)
    return np.array([8 * math.log(2) * _size(one, spec) for one in bar])


def _size(one: np.ndarray, spec: DataSpec) -> int:
    """Bytes of an example at least."""
    binary = spec.levels == 2
    sizes = [len(zlib.compress((np.packbits(one) if binary else one).tobytes(), 9))]
    if spec.kind == "image" and len(one) in (1, 3):
        assert spec.levels is not None
        picture = Image.fromarray(one[0] if len(one) == 1 else np.moveaxis(one, 0, -1).copy())
        if binary and len(one) == 1:
            picture = Image.fromarray(one[0].astype(bool))
        for kind, options in (("PNG", {"optimize": True}), ("WEBP", {"lossless": True})):
            file = io.BytesIO()
            (picture.convert("RGB") if kind == "WEBP" else picture).save(file, kind, **options)
            sizes.append(len(file.getvalue()))
    return min(sizes)


def scores(
    nats: np.ndarray,
    *,
    entropy: float,
    background: np.ndarray | None = None,
    compressed: np.ndarray | None = None,
) -> Mapping[str, np.ndarray]:
    """Every score of examples that there is something to make of, by name.

    Args:
        nats: (N,) -log p(x) of each example.
        entropy: Mean of valid, nats: what is typical of the model's data.
        background: (N,) nats under a model of what the data share with others; None: there is
            none.
        compressed: (N,) sizes, nats; None: unknown.

    Raises:
        ValueError: An example is impossible under both models, so that their ratio is no number.
    """
    nats = np.nan_to_num(nats, posinf=LARGEST)
    found = {"likelihood": nats}
    if background is not None:
        if ((nats >= LARGEST) & ~np.isfinite(background)).any():
            raise ValueError(
                "an example is impossible under the model and under the background model, so "
                "that their ratio is no number; choose a background that allows it"
            )
        found["ratio"] = nats - np.nan_to_num(background, posinf=LARGEST)
    if compressed is not None:
        found["complexity"] = nats - compressed
    return found | {"typicality": np.abs(nats - entropy)}


# Areas


def auroc(own: np.ndarray, other: np.ndarray) -> Area:
    """Area under the receiver's curve, with DeLong's interval.

    Sources: DeLong et al., 1988, https://doi.org/10.2307/2531595; by ranks, Sun & Xu, 2014,
    https://doi.org/10.1109/LSP.2014.2337313. Of an area of exactly 0 or 1 the interval has no
    width: examples of one set lie wholly on one side of the other's.

    Args:
        own: (N,) scores of the negative class, N > 1.
        other: (M,) scores of the positive class, M > 1.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import roc_auc_score

    value = float(roc_auc_score(_labels(own, other), np.concatenate([own, other])))
    ranks = rankdata(np.concatenate([own, other]))
    # Share of the other class that lies on the right side of each example.
    above = (ranks[len(own) :] - rankdata(other)) / len(own)
    below = 1 - (ranks[: len(own)] - rankdata(own)) / len(other)
    error = math.sqrt(above.var(ddof=1) / len(other) + below.var(ddof=1) / len(own))
    return Area(value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error))


def auprc(own: np.ndarray, other: np.ndarray) -> Area:
    """Average precision, with the logit interval.

    The logit of the area has the standard error (M area (1 - area)) ** -0.5. Source: Boyd, Eng &
    Page, 2013, https://doi.org/10.1007/978-3-642-40994-3_29. Of an area of exactly 1 the interval
    has no width.

    Args:
        own: (N,) scores of the negative class.
        other: (M,) scores of the positive class.
    """
    from scipy.special import expit
    from sklearn.metrics import average_precision_score

    labels = _labels(own, other)
    # Its sum may miss 1 by a last digit.
    value = round(float(average_precision_score(labels, np.concatenate([own, other]))), 12)
    if not 0 < value < 1:
        return Area(value, value, value)
    logit = math.log(value / (1 - value))
    wide = 1.96 / math.sqrt(len(other) * value * (1 - value))
    return Area(value, float(expit(logit - wide)), float(expit(logit + wide)))


def _labels(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.repeat([0, 1], [len(own), len(other)])


def rows(detections: Sequence[Detection]) -> list[dict]:
    """A row a detection: what is compared, both areas with their intervals, and the paper."""
    found = []
    for one in detections:
        row: dict = {"against": one.against, "score": one.score}
        for name in ("auroc", "auprc"):
            area: Area = getattr(one, name)
            row |= {name: area.value, f"{name}_low": area.low, f"{name}_high": area.high}
        row |= {"num_own": len(one.own), "num_other": len(one.other)}
        found.append(row | {"source": PAPERS[one.score]})
    return found
