"""Pictures of data: grids of images, bitmaps of vectors and heat maps, uint8 tensors (3, H, W)."""

import math
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from armodels.spec import ContextSpec, DataSpec

# Anchors of a perceptually ordered map from dark to bright (inferno's, at equal steps).
_COLOURS = np.array(
    [[0, 0, 4], [51, 10, 95], [120, 28, 109], [186, 54, 85], [237, 105, 37], [252, 180, 24]]
    + [[252, 255, 164]]
)

_HATCH = ((64, 158, 163), (172, 216, 219))
"""Colours of unknown values: neither greys nor colours of the map."""

_GIVEN = (20, 20, 20)
_VOICES = ((31, 90, 166), (217, 95, 2), (27, 138, 90), (150, 60, 150))
"""Colours of the parts of a piece, from the first one on."""

_MIDDLE, _ROLL = 60, 120
"""The key that is drawn where none sounds, and the least height of a roll."""

_LEAST, _PADDING, _LINE, _FONT = 48, 2, 18, 13


def colour(values: Tensor, low: float, high: float) -> Tensor:
    """Map numbers between ``low`` and ``high`` to colours: (..., H, W) -> (..., 3, H, W).

    Args:
        values: Numbers (..., H, W).
        low: Number of the darkest colour.
        high: Number of the brightest.
    """
    unit = ((values.double().cpu() - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    at = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(unit, at, _COLOURS[:, c]) for c in range(3)]
    return torch.from_numpy(np.stack(channels, -3).round().astype(np.uint8))


def _magnified(images: Tensor, least: int) -> Tensor:
    """Images (..., H, W) with whole pixels repeated, to a shorter side of at least ``least``."""
    factor = max(1, math.ceil(least / min(images.shape[-2:])))
    return images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def grid(images: Tensor, *, columns: int = 8, least: int = _LEAST) -> Tensor:
    """Images side by side: (N, 3, H, W) uint8 -> (3, H', W').

    Args:
        images: The images.
        columns: Images in a row.
        least: Small images are magnified to at least so many pixels.
    """
    from torchvision.utils import make_grid  # seconds to import: only where a picture is made

    return make_grid(_magnified(images, least), nrow=columns, padding=_PADDING, pad_value=64)


def _hatched(images: Tensor, known: Tensor, least: int) -> Tensor:
    """Magnified images whose unknown pixels are hatched in a colour that no grey picture has.

    Args:
        images: (N, 3, H, W) uint8.
        known: (N, C, H, W) bool; a pixel that is known in part keeps every other stripe.
        least: As for ``grid``.
    """
    images, known = _magnified(images, least), _magnified(known, least)
    height, width = images.shape[-2:]
    stripe = (torch.arange(height)[:, None] + torch.arange(width)) // 3 % 2 == 0
    stripes, gaps = (torch.tensor(one).view(3, 1, 1) for one in _HATCH)
    hatch = torch.where(stripe, stripes, gaps)
    hidden = torch.where(known.any(1), ~known.all(1) & stripe, True)
    return torch.where(hidden[:, None], hatch.to(torch.uint8), images)


def _titled(picture: Tensor, titles: Sequence[tuple[str, int, int]]) -> Tensor:
    """Words above a picture, each centred over its (left, right)."""
    line = Image.new("RGB", (picture.shape[-1], _LINE), "white")
    draw, font = ImageDraw.Draw(line), ImageFont.load_default(_FONT)
    for text, left, right in titles:
        free = right - left - font.getlength(text)
        draw.text((max(left, left + free / 2), 1), text, "black", font)
    return torch.cat([torch.from_numpy(np.array(line)).permute(2, 0, 1), picture], 1)


def _grey_or_rgb(x: Tensor, spec: DataSpec) -> Tensor:
    """Image events as colours: (N, C, H, W) -> (N, 3, H, W) uint8."""
    if spec.levels is None:
        low, high = x.amin(), x.amax()
        unit = (x - low) / (high - low).clamp_min(1e-12)
    else:
        unit = x.double() / (spec.levels - 1)
    image = (unit * 255).round().to(torch.uint8).cpu()
    return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image[:, :3]


def events(
    x: Tensor,
    spec: DataSpec,
    *,
    columns: int = 8,
    titles: Sequence[tuple[str, int]] = (),
    known: Tensor | None = None,
) -> Tensor | None:
    """A picture of events (N, *event), or None where the kind of data has none.

    Images stand in a grid; vectors and sequences with levels are a bitmap, one row an example.

    Args:
        x: The events, row by row of the grid.
        spec: What they are.
        columns: Events in a row.
        titles: Words over the columns, each with the number of columns that it names. Of vectors
            and sequences, those columns of all rows stand below it.
        known: (N, *event) bool; other values are hatched.
    """
    x = x.detach().cpu()
    if spec.kind == "image":
        images = _grey_or_rgb(x, spec)
        picture = grid(
            images if known is None else _hatched(images, known, _LEAST), columns=columns
        )
        if not titles:
            return picture
        pitch, spans, at = (picture.shape[-1] - _PADDING) // columns, [], 0
        for text, span in titles:
            spans.append((text, at * pitch + _PADDING, (at + span) * pitch))
            at += span
        return _titled(picture, spans)
    if spec.levels is None:
        return None
    known = torch.ones_like(x, dtype=torch.bool) if known is None else known
    panels, at = [], 0
    for text, span in titles or [("", columns)]:
        i = torch.arange(len(x))
        chosen = i[(i % columns >= at) & (i % columns < at + span)] if titles else i
        bitmap = colour(x[chosen].double(), 0, spec.levels - 1)[None]
        side = max(1, min(16, 1000 // spec.num_dims))  # of a value, in our pixels
        least = side * min(bitmap.shape[-2:])
        panel = grid(_hatched(bitmap, known[chosen][None, None], least), columns=1, least=1)
        panels.append(_titled(panel, [(text, _PADDING, 0)]) if text else panel)
        at += span
    width = max(panel.shape[-1] for panel in panels)
    panels = [functional.pad(one, (0, width - one.shape[-1]), value=255) for one in panels]
    return torch.cat(panels, 1)


def rolls(
    x: Tensor, spec: DataSpec, *, known: Tensor | None = None, columns: int | None = None
) -> Tensor:
    """Piano rolls of music (N, *event): time to the right, keys upwards, a colour for each voice.

    Args:
        x: The events.
        spec: What they are; it has notes.
        known: Bool (*event) or (N, *event), notes that are drawn black; None: none.
        columns: Events in a row; None: as many as are seen well.
    """
    assert spec.notes is not None
    parts = np.stack([spec.notes.parts(one) for one in x.detach().cpu().numpy()])  # (N, V, T, 128)
    sounding = np.flatnonzero(parts.any((0, 1, 2)))
    low, high = (sounding[0], sounding[-1]) if len(sounding) else (_MIDDLE, _MIDDLE)
    low, high = max(low - 1, 0), min(high + 2, parts.shape[-1])
    image = np.full((len(parts), parts.shape[2], high - low, 3), 255, np.uint8)
    image[:, :: 4 * spec.notes.per_beat] = 244  # each fourth beat
    image[:, :, np.arange(low, high) % 12 == 0] = 222  # C of each octave
    for part, voice in zip(parts.swapaxes(0, 1), _VOICES * parts.shape[1], strict=False):
        image[part[:, :, low:high]] = voice
    if known is not None:
        there = torch.where(known, x, 0).cpu().numpy()
        black = np.stack([np.any(spec.notes.parts(one), 0) for one in there])
        image[black[:, :, low:high]] = _GIVEN
    upwards = torch.from_numpy(image).permute(0, 3, 2, 1).flip(2)
    columns = columns or max(1, min(4, 256 // image.shape[1]))
    return grid(upwards, columns=columns, least=_ROLL)


def as_event(context: Tensor, context_spec: ContextSpec, spec: DataSpec) -> Tensor | None:
    """An image that a model is conditioned on (N, *context), brought to the events' size.

    Args:
        context: The images.
        context_spec: What they are.
        spec: What an event is.

    Returns:
        (N, *event), or None where contexts or events are no images.
    """
    if len(context_spec.shape) != 3 or spec.kind != "image":
        return None
    image = functional.interpolate(context.double(), spec.shape[1:], mode="nearest")
    return image.expand(-1, *spec.shape).to(spec.dtype)


def film(x: Tensor, steps: Tensor, spec: DataSpec, moments: int = 10) -> Tensor | None:
    """Each event as it is drawn: after 0, 10, ... 100 % of the steps, a row each.

    Args:
        x: (N, *event), drawn whole.
        steps: (*event), the step at which each value is written.
        spec: What they are; of real values, and of texts, sounds and music, there is no such
            picture.
        moments: Parts of the draw that are shown, after the empty event.
    """
    if spec.levels is None or spec.alphabet or spec.waveform or spec.notes:
        return None
    shares = torch.arange(moments + 1, device=steps.device) / moments
    written = steps < (shares * (steps.max() + 1)).round().view(-1, *[1] * steps.ndim)
    known = written.repeat(len(x), *[1] * steps.ndim).cpu()
    titles = [(f"{share:.0%}", 1) for share in shares.tolist()]
    every = x.repeat_interleave(moments + 1, 0)
    return events(every, spec, columns=moments + 1, titles=titles, known=known)


def entropies(entropy: Tensor, num_levels: int, *, columns: int = 8) -> Tensor:
    """Entropy of every pixel given those before it: (N, C, H, W) -> (3, H', W'); bright = open.

    Args:
        entropy: Nats of every value.
        num_levels: L; the brightest colour is log L nats for each channel.
        columns: Images in a row.
    """
    most = entropy.shape[1] * math.log(num_levels)
    picture = grid(colour(entropy.detach().sum(1), 0.0, most), columns=columns)
    return _titled(picture, [(f"0 (dark) to {most:.2f} nats", _PADDING, picture.shape[-1])])


def heat_maps(log_prob: Tensor, *, columns: int = 8) -> Tensor:
    """Log-probability of every pixel, nats: (N, C, H, W) -> (3, H', W'); bright = likely."""
    total = log_prob.detach().sum(1)  # a pixel's channels together
    low = float(torch.quantile(total.double().flatten()[:1_000_000], 0.01))
    return grid(colour(total, low, 0.0), columns=columns)


def save(picture: Tensor, file: BinaryIO) -> None:
    """Write (3, H, W) uint8 as PNG."""
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "png", optimize=True)
