"""Pictures of data: sample grids, heat maps and densities, as uint8 tensors (3, H, W)."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from armodels.spec import ContextSpec, DataSpec

# Anchors of a perceptually ordered map from dark to bright (inferno's, at equal steps).
_COLOURS = np.array(
    [[0, 0, 4], [51, 10, 95], [120, 28, 109], [186, 54, 85], [237, 105, 37], [252, 180, 24]]
    + [[252, 255, 164]]
)


def colour(values: Tensor, low: float, high: float) -> Tensor:
    """Map numbers between ``low`` and ``high`` to colours: (..., H, W) -> (..., 3, H, W)."""
    unit = ((values.double().cpu() - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    at = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(unit, at, _COLOURS[:, c]) for c in range(3)]
    return torch.from_numpy(np.stack(channels, -3).round().astype(np.uint8))


def grid(images: Tensor, *, columns: int = 8, least: int = 48) -> Tensor:
    """Images side by side: (N, 3, H, W) uint8 -> (3, H', W').

    Args:
        images: The images.
        columns: Images in a row.
        least: Small images are magnified to at least so many pixels.
    """
    from torchvision.utils import make_grid  # seconds to import: only where a picture is made

    factor = max(1, math.ceil(least / min(images.shape[-2:])))
    images = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    return make_grid(images, nrow=columns, padding=2, pad_value=64)


def _grey_or_rgb(x: Tensor, spec: DataSpec) -> Tensor:
    """Image events as colours: (N, C, H, W) -> (N, 3, H, W) uint8."""
    if spec.levels is None:
        low, high = x.amin(), x.amax()
        unit = (x - low) / (high - low).clamp_min(1e-12)
    else:
        unit = x.double() / (spec.levels - 1)
    image = (unit * 255).round().to(torch.uint8).cpu()
    return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image[:, :3]


def beside(
    truth: Tensor, context: Tensor, given: ContextSpec, spec: DataSpec, answers: Tensor
) -> Tensor:
    """What was given, several answers, and the truth, one row an input, for ``events``.

    Args:
        truth: (N, *event).
        context: (N, *context).
        given: What the context is; an image is brought to the events' size, anything else is
            left blank.
        spec: Of the events.
        answers: (N A, *event), those of one input side by side.

    Returns:
        (N (A + 2), *event).
    """
    shown = torch.zeros_like(truth)
    if len(given.shape) == 3 and spec.kind == "image":
        image = torch.nn.functional.interpolate(context.double(), spec.shape[1:], mode="nearest")
        shown = image.expand_as(truth).to(truth.dtype)
    answers = answers.unflatten(0, (len(truth), -1))
    return torch.cat([shown[:, None], answers, truth[:, None]], 1).flatten(0, 1)


def events(x: Tensor, spec: DataSpec, *, columns: int = 8) -> Tensor | None:
    """A picture of events (N, *event), or None where the kind of data has none.

    Images stand in a grid; pairs of real values become a histogram; other vectors and sequences
    with levels a bitmap, one row an example.
    """
    x = x.detach().cpu()
    if spec.kind == "image":
        return grid(_grey_or_rgb(x, spec), columns=columns)
    if spec.levels is not None:
        return grid(colour(x.double(), 0, spec.levels - 1)[None], columns=1, least=256)
    if spec.num_dims == 2:
        return histogram(x)
    return None


def histogram(x: Tensor, *, bins: int = 128) -> Tensor:
    """Points in the plane, (N, 2) -> (3, H, W); the vertical axis points up."""
    low, high = x.double().quantile(torch.tensor([0.002, 0.998], dtype=torch.double), dim=0)
    counts, _, _ = np.histogram2d(
        *x.double().numpy().T, bins=bins, range=torch.stack([low, high], 1).tolist()
    )
    counts = torch.from_numpy(counts).T.flip(0)
    return grid(colour(counts, 0, float(counts.max()))[None], columns=1, least=256)


def heat_maps(log_prob: Tensor, *, columns: int = 8) -> Tensor:
    """Log-probability of every pixel, nats: (N, C, H, W) -> (3, H', W'); bright = likely."""
    total = log_prob.detach().sum(1)  # a pixel's channels together
    low = float(torch.quantile(total.double().flatten()[:1_000_000], 0.01))
    return grid(colour(total, low, 0.0), columns=columns)


def lattice(
    box: tuple[tuple[float, float], tuple[float, float]], size: int = 160
) -> tuple[Tensor, tuple[int, int]]:
    """Points of the plane, (size^2, 2), row by row from the top, and the shape of the picture."""
    (left, right), (bottom, top) = box
    x = torch.linspace(left, right, size)
    y = torch.linspace(top, bottom, size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2), (size, size)


def density(log_probs: list[Tensor]) -> Tensor:
    """Densities over one box beside each other on one scale: each (H, W) nats, row 0 on top."""
    high = max(float(log_prob.exp().max()) for log_prob in log_probs)
    panels = torch.stack([colour(log_prob.exp(), 0.0, high) for log_prob in log_probs])
    return grid(panels, columns=len(log_probs), least=256)


def save(picture: Tensor, path: Path) -> None:
    """Write (3, H, W) uint8 as PNG."""
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
