"""Charts with axes, titles and units: uint8 tensors (3, H, W), drawn by matplotlib."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from armodels import pictures
from armodels.spec import DataSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Box = tuple[tuple[float, float], tuple[float, float]]
Density = Callable[[Tensor], Tensor]

MAX_COLUMNS, MAX_PAIRED, MAX_POINTS, ACROSS = 12, 4, 1000, 6
"""Columns of a table that are drawn, columns that are drawn in pairs, points of each panel, and
panels side by side."""

LATTICE = 160
"""Points a side at which a density on the plane is drawn."""

_DATA, _DRAWN, _TRUE = "#6f9bc8", "#d95f02", "#1b1b1b"


def samples(
    x: Tensor,
    spec: DataSpec,
    *,
    classes: int = 0,
    data: Tensor | None = None,
    box: Box | None = None,
    true_log_prob: Density | None = None,
    log_prob: Density | None = None,
) -> Tensor | None:
    """A picture of samples (N, *event), or None for a kind of data that has none.

    Densities on the plane are drawn with their samples over them, tables column by column beside
    the data, everything else by ``pictures.events``.

    Args:
        x: The samples.
        spec: What they are.
        classes: Labels that they were drawn of in turn, of pictures a column each; 0: of none.
        data: (M, *event) of the data, to compare them with.
        box: ((x0, x1), (y0, y1)) of a density on the plane.
        true_log_prob: (B, 2) -> (B,), nats, of a density on the plane.
        log_prob: The same of the model.
    """
    if box is not None and true_log_prob is not None and log_prob is not None:
        return plane(x, spec, box, true_log_prob, log_prob)
    if is_table(spec):
        return table(x, spec, data)
    if classes:
        titles = [(str(label), 1) for label in range(classes)]
        return pictures.events(x, spec, columns=classes, titles=titles)
    return pictures.events(x, spec)


def is_table(spec: DataSpec) -> bool:
    """Whether its values are drawn column by column."""
    return spec.kind == "vector" and (spec.levels is None or spec.columns is not None)


def _names(spec: DataSpec) -> Sequence[str]:
    return spec.columns or [f"x{i}" for i in range(spec.num_dims)]


# Drawing


def _figure(width: float, height: float, rows: int, columns: int) -> "tuple[Figure, np.ndarray]":
    """A figure of so many inches, and its axes (rows, columns)."""
    from matplotlib.figure import Figure  # a second to import: only where a chart is drawn

    figure = Figure(figsize=(width, height), dpi=80, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _drawn(figure: "Figure") -> Tensor:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return torch.from_numpy(np.array(canvas.buffer_rgba())[..., :3]).permute(2, 0, 1)


def _ticks(axes: "Axes") -> None:
    """Few and small ticks, for panels are narrow."""
    axes.tick_params(labelsize=7, length=2)
    axes.locator_params(nbins=4)


def _short(name: str, length: int = 22) -> str:
    # A dollar sign begins a formula in matplotlib.
    name = name if len(name) <= length else f"{name[: length - 1]}…"
    return name.replace("$", r"\$")


def plane(
    x: Tensor, spec: DataSpec, box: Box, true_log_prob: Density, log_prob: Density
) -> Tensor:
    """The true density, the learned one on the same scale, samples (N, 2) over the true one.

    Args:
        x: Samples (N, 2).
        spec: What a datum is.
        box: (left, right) and (bottom, top) of the picture.
        true_log_prob: Log-density of points (M, 2), nats: (M,).
        log_prob: The same of the model.
    """
    (left, right), (bottom, top) = box
    across = torch.linspace(left, right, LATTICE)
    up = torch.linspace(bottom, top, LATTICE)
    points = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        true, learned = (
            density(points).double().cpu().exp().view(LATTICE, LATTICE).numpy()
            for density in (true_log_prob, log_prob)
        )
    figure, ((first, second, third),) = _figure(12, 4.2, 1, 3)
    extent = (left, right, bottom, top)
    options = {"origin": "lower", "extent": extent, "vmin": 0.0, "vmax": true.max()}
    first.imshow(true, cmap="inferno", **options)
    shown = second.imshow(learned, cmap="inferno", **options)
    third.imshow(true, cmap="Greys", alpha=0.6, **options)
    drawn = x.detach().double().cpu().numpy()[:MAX_POINTS]
    third.plot(*drawn.T, ".", color=_DRAWN, markersize=3 if len(drawn) > 200 else 5, alpha=0.7)
    titles = ("true density", "learned density", f"{len(drawn):,} samples over the true density")
    names = [_short(name) for name in _names(spec)]
    for axes, title in zip((first, second, third), titles, strict=True):
        axes.set(title=title, xlabel=names[0], xlim=box[0], ylim=box[1], aspect="auto")
    first.set_ylabel(names[1])
    figure.colorbar(shown, ax=second, label="density", extend="max")
    figure.suptitle(spec.name)
    return _drawn(figure)


def table(x: Tensor, spec: DataSpec, data: Tensor | None = None) -> Tensor:
    """Marginals of samples (N, D) beside the data (M, D), then pairs of the first columns.

    Values are in their original units.

    Args:
        x: Samples (N, D).
        spec: What a datum is.
        data: Rows of the data (M, D); None: samples alone are drawn.
    """
    names = _names(spec)
    shown = min(len(names), MAX_COLUMNS)
    drawn = _values(x, spec)
    truth = None if data is None else _values(data, spec)
    pairs = list(combinations(range(min(len(names), MAX_PAIRED)), 2))[:ACROSS]
    across = min(ACROSS, max(shown, len(pairs)))
    rows = math.ceil(shown / across)
    total = rows + (len(pairs) > 0) * math.ceil(len(pairs) / across)
    figure, panels = _figure(2.2 * max(across, 2), 1.9 * total + 0.5, total, across)
    free = iter(panels.flat)
    for i in range(rows * across):
        axes = next(free)
        if i >= shown:
            axes.set_axis_off()
            continue
        edges = _edges(drawn[:, i] if truth is None else truth[:, i])
        for values, style in ((truth, {"fill": True, "color": _DATA}), (drawn, {"color": _DRAWN})):
            if values is not None:
                clipped = np.clip(values[:, i], edges[0], edges[-1])
                counts, _ = np.histogram(clipped, edges, density=True)
                axes.stairs(counts, edges, **style)
        axes.set_title(_short(names[i]), fontsize=8)
        axes.set_yticks([])
        _ticks(axes)
    for i, axes in enumerate(free):
        if i >= len(pairs):
            axes.set_axis_off()
            continue
        a, b = pairs[i]
        for values, colour in ((truth, _DATA), (drawn, _DRAWN)):
            if values is not None:
                points = values[:MAX_POINTS]
                axes.plot(points[:, a], points[:, b], ".", color=colour, markersize=2, alpha=0.5)
        for limits, j in ((axes.set_xlim, a), (axes.set_ylim, b)):
            edges = _edges(drawn[:, j] if truth is None else truth[:, j])
            limits(edges[0], edges[-1])
        axes.set_xlabel(_short(names[a]), fontsize=8)
        axes.set_ylabel(_short(names[b]), fontsize=8)
        _ticks(axes)
    title = f"{spec.name}: {len(x):,} samples" + (
        "" if truth is None else " (orange) beside the data (blue)"
    )
    left_out = f", the first {shown} of {len(names)} columns" if shown < len(names) else ""
    figure.suptitle(title.replace("$", r"\$") + left_out, fontsize=10)
    return _drawn(figure)


def sounds(
    x: np.ndarray, rate: int, name: str, titles: Sequence[str] = (), known: int = 0
) -> Tensor:
    """Waveforms and spectrograms of sounds (N, T), one above the other.

    A spectrogram shows the power of frames of 16 to 512 samples by frequency, in decibels below
    the loudest, 80 at most.

    Args:
        x: Samples (N, T) in [-1, 1].
        rate: Samples a second.
        name: Of the data.
        titles: Of each sound; none: its number.
        known: Samples at the beginning of each that were there, in the colour of data.
    """
    number, length = x.shape
    across = min(ACROSS - 1, number)
    rows = math.ceil(number / across)
    figure, panels = _figure(2.4 * max(across, 2), 2.8 * rows + 0.5, 2 * rows, across)
    seconds = length / rate
    for i in range(rows * across):
        row, column = divmod(i, across)
        wave, spectrum = panels[2 * row, column], panels[2 * row + 1, column]
        if i >= number:
            wave.set_axis_off()
            spectrum.set_axis_off()
            continue
        time = (np.arange(length) + 0.5) / rate
        wave.plot(time[:known], x[i, :known], color=_DATA, linewidth=0.5)
        wave.plot(time[known:], x[i, known:], color=_DRAWN, linewidth=0.5)
        wave.set(xlim=(0, seconds), ylim=(-1, 1))
        wave.set_title(_short(titles[i] if titles else str(i)), fontsize=8)
        spectrum.imshow(
            _decibels(torch.from_numpy(x[i])),
            cmap="inferno",
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, rate / 2000),
            vmin=-80,
            vmax=0,
        )
        if row == rows - 1:
            spectrum.set_xlabel("seconds", fontsize=8)
        if column == 0:
            spectrum.set_ylabel("kHz", fontsize=8)
        _ticks(wave)
        _ticks(spectrum)
    figure.suptitle(f"{_short(name, 80)}: {number} sounds and their spectrograms", fontsize=10)
    return _drawn(figure)


def _decibels(samples: Tensor) -> np.ndarray:
    """Power of each frequency and frame (F, frames), in decibels below the loudest."""
    size = min(512, max(16, 2 ** round(math.log2(max(1, len(samples) / 16)))))
    window = torch.hann_window(size)
    padded = torch.nn.functional.pad(samples, (size // 2, size - size // 2))
    frames = padded.unfold(0, size, max(1, size // 4)) * window
    power = torch.fft.rfft(frames).abs().square().T
    return (10 * (power / power.max().clamp_min(1e-12)).clamp_min(1e-8).log10()).numpy()


def completions(truth: Tensor, known: Tensor, values: Tensor, spec: DataSpec) -> Tensor:
    """Known, drawn and true values of a table's rows, column by column.

    Args:
        truth: (N, D).
        known: (D,) bool.
        values: (N, A, D): A completions of each row.
        spec: Of the rows.
    """
    names, is_known = _names(spec), known.tolist()
    order = sorted(range(len(names)), key=lambda i: is_known[i])[:MAX_COLUMNS]
    true = _values(truth, spec)
    drawn = _values(values.flatten(0, 1), spec).reshape(*values.shape)
    across = min(ACROSS, max(2, len(order)))
    rows = math.ceil(len(order) / across)
    height = min(0.18 * len(true) + 1.2, 4.0)
    figure, panels = _figure(2.2 * across, height * rows + 0.5, rows, across)
    at = np.arange(1, len(true) + 1)
    for panel, axes in enumerate(panels.flat):
        if panel >= len(order):
            axes.set_axis_off()
            continue
        i = order[panel]
        if not is_known[i]:
            y = np.repeat(at, values.shape[1])
            axes.plot(drawn[..., i].ravel(), y, "o", color=_DRAWN, markersize=4, alpha=0.5)
        axes.plot(
            true[:, i],
            at,
            "s" if is_known[i] else "|",
            color=_TRUE,
            markersize=4 if is_known[i] else 9,
        )
        axes.set_title(f"{_short(names[i])}, {'known' if is_known[i] else 'unknown'}", fontsize=8)
        axes.set_ylim(len(true) + 0.5, 0.5)
        _ticks(axes)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("example" if panel % across == 0 else "", fontsize=8)
    title = "drawn (dots) and true (bars) values, known ones (squares)"
    left_out = f", {len(order)} of {len(names)} columns" if len(order) < len(names) else ""
    figure.suptitle(f"{title}{left_out}", fontsize=10)
    return _drawn(figure)


def histograms(
    panels: Sequence[Sequence[tuple[str, np.ndarray, np.ndarray]]], title: str
) -> Tensor:
    """Pairs of histograms, one panel each: of two sets on the same axis.

    Args:
        panels: By row: the title of each panel, and its two sets of values.
        title: Above all.
    """
    across = max(map(len, panels))
    figure, axes = _figure(2.9 * across, 2.1 * len(panels) + 0.5, len(panels), across)
    for row, line in zip(axes, panels, strict=True):
        for one in row[len(line) :]:
            one.set_axis_off()
        for one, (name, first, second) in zip(row, line, strict=False):
            # What lies far out is drawn at the edge: the bulk would vanish beside it.
            low, high = np.quantile(np.concatenate([first, second]), [0.005, 0.995])
            edges = np.linspace(low, high, 41) if high > low else np.array([low - 0.5, low + 0.5])
            for values, colour in ((first, _DATA), (second, _DRAWN)):
                counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
                share = counts / len(values)
                one.stairs(share, edges, fill=True, color=colour, alpha=0.6)
            one.set_title(_short(name, 40), fontsize=8)
            one.set_yticks([])
            _ticks(one)
    figure.suptitle(title, fontsize=9)
    return _drawn(figure)


def _values(x: Tensor, spec: DataSpec) -> np.ndarray:
    return spec.original(x.detach().cpu()).double().numpy()


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of bins: around each value where they are few, else of equal width."""
    distinct = np.unique(values)
    if 1 < len(distinct) <= 20:
        middle = (distinct[1:] + distinct[:-1]) / 2
        first, last = distinct[0] - middle[0], distinct[-1] - middle[-1]
        return np.array([distinct[0] + first, *middle, distinct[-1] + last])
    low, high = np.quantile(values, [0.002, 0.998])
    if not high > low:
        low, high = float(low) - 0.5, float(high) + 0.5
    return np.linspace(low, high, 31)
