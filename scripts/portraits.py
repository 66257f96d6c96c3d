"""A picture of every model for its page: which values each step hears, and what it draws.

    python scripts/portraits.py [NAME ...] [--minutes 0.6]

Trains each model of ``configs/model`` for at most so long on one thread, as it ships, on the 8x8
digits (the networks that read sequences take a digit as 64 values in a row, ``frames`` each row
of it, of bits, as a frame), and writes ``docs/models/NAME.png``:

- left, how far the parameters of each step (row) move where the value of one step (column) is
  replaced by another level, on the trained network: on and above the diagonal all must stay white;
- middle, the same for one pixel, as a picture; the pixel itself is marked;
- right, samples.

A model without steps has in their place the correlations of its values, and their means.
"""

import argparse
import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import armodels
from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks.blend import Blend
from armodels.notes import Notes
from armodels.spec import DataSpec

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs/models"
READS = ("rnn", "wavenet", "transformer", "frames", "ngram", "markov", "blend")
SIZE, PIXEL = 8, 36  # the pixel of row 4, column 4
SMALL = {
    "pixelcnn": {"first_kernel_size": 3},  # of 7, it would hide the blind spot on 8 x 8 pixels
    "pixelcnn_pp": {"num_channels": 16},
    "pixel_snail": {"num_channels": 16},
    "masked_transformer": {"num_layers": 2, "hidden_size": 64},
    "inverse_flow": {"num_layers": 2},  # without a teacher each step takes 64 steps of each layer
    "gmm": {"covariance_type": "diag"},
    "rnn": {"hidden_size": 128},
    "wavenet": {"num_layers": 6},
    "ngram": {"n": 4},
}
"""Keys of models that else would not be done within the time, or show too little."""


@functools.cache
def data(name: str) -> armodels.Splits:
    """The digits as pictures, or as sequences for whoever reads."""
    levels = 2 if name in ("mixture_of_categoricals", "frames") else 17
    splits = armodels.load_data("digits", levels=levels)
    if name == "inverse_flow":  # of real values: grey levels with noise of one level
        noise = torch.Generator().manual_seed(0)
        parts = [splits.split(part)[:] for part in ("train", "valid", "test")]
        parts = [part + torch.rand(part.shape, generator=noise) for part in parts]
        return armodels.Splits.of(*parts, name="digits-dequantized", kind="image")
    if name in ("conv_nade", "masked_transformer"):  # an evaluation takes 64 passes
        return armodels.Splits(splits.spec, splits.train, splits.valid[:40], splits.test)
    if name not in READS:
        return splits
    parts = [splits.split(part).flatten(1) for part in ("train", "valid", "test")]
    splits = armodels.Splits.of(*parts, name="digits-rows", kind="sequence", levels=levels)
    if name != "frames":
        return splits
    return armodels.Splits(replace(splits.spec, notes=Notes(size=SIZE)), *parts)


def built(name: str, spec: DataSpec, minutes: float) -> armodels.DensityModel:
    """The model as it ships; of a blend, half of it counts and half a network."""
    if name != "blend":
        return armodels.build(name, spec, **SMALL.get(name, {}))
    members = [trained(one, minutes) for one in ("ngram", "rnn")]
    return AutoregressiveModel.of(Blend, spec, runs=members, weights=[0.5, 0.5])


def trained(name: str, minutes: float) -> armodels.DensityModel:
    """A model after so many minutes; its numbers are printed."""
    splits = data(name)
    model = built(name, splits.spec, minutes)
    result = armodels.fit(
        model,
        splits,
        max_minutes=minutes,
        accelerator="cpu",
        test=False,
        threads=1,
        progress=False,
        quiet=True,
    )
    print(name, f"{result.metrics['valid']['bits_per_dim']:.4f} bits/dim on valid", flush=True)
    return model


@torch.no_grad()
def heard(model: AutoregressiveModel, x: Tensor) -> Tensor:
    """How far the parameters of each step move with each value, (S, D): in values' own places.

    Every value is replaced by the level half the range away, and the largest change over the
    parameters and the events x (B, *event) is kept.
    """
    levels, net = model.spec.num_levels, model.net
    found = []
    for event in x.flatten(1):
        changed = event.repeat(len(event) + 1, 1)
        places = torch.arange(len(event))
        changed[places, places] = (event + levels // 2) % levels
        params = net(changed.view(-1, *model.spec.shape))
        found.append((params[:-1] - params[-1]).abs().amax(-1).T)
    return torch.stack(found).amax(0)


def drawn(model: armodels.DensityModel, num: int = 24) -> np.ndarray:
    """Samples as pictures (N, 8, 8)."""
    x = model.sample(num, generator=torch.Generator().manual_seed(0))
    return x.reshape(num, SIZE, SIZE).numpy()


def portrait(name: str, minutes: float) -> None:
    """Train the model, and write its picture."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    model = trained(name, minutes)
    figure = Figure(figsize=(9.6, 3.3), dpi=72, layout="constrained")
    matrix, one, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    blues = colormaps["Blues"].with_extremes(bad="#d95f02")
    if isinstance(model, AutoregressiveModel):
        moved = heard(model, data(name).test[:4])
        share = (moved / moved.amax().clamp(min=1e-9)).clamp(min=1e-12).log10().numpy()
        share[moved.numpy() == 0] = -9
        order = model.net.order_table[:, 0]
        matrix.imshow(share[:, order], cmap=blues, vmin=-4, vmax=0, interpolation="nearest")
        matrix.set(xlabel="value of step", ylabel="step", title="who hears whom")
        step = int((order == PIXEL).nonzero())
        field = share[step].copy()
        field[PIXEL] = np.nan
        one.imshow(field.reshape(SIZE, SIZE), cmap=blues, vmin=-4, vmax=0)
        one.set(title="what one pixel hears", xticks=[], yticks=[])
    else:
        x = model.sample(3000, generator=torch.Generator().manual_seed(1)).flatten(1).double()
        spread = x.std(0, keepdim=True).clamp(min=1e-9)
        z = (x - x.mean(0)) / spread
        matrix.imshow(
            (z.T @ z / len(z)).abs(), cmap=blues, vmin=0, vmax=1, interpolation="nearest"
        )
        matrix.set(xlabel="value", ylabel="value", title="correlations of its values")
        top = (model.spec.levels or 17) - 1  # real digits have as many
        one.imshow(x.mean(0).view(SIZE, SIZE), cmap="gray_r", vmin=0, vmax=top)
        one.set(title="their means", xticks=[], yticks=[])
    matrix.set(xticks=[0, 63], yticks=[0, 63])
    rows = drawn(model).reshape(4, 6, SIZE, SIZE)
    grid = np.pad(rows, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0)
    grid = grid.transpose(0, 2, 1, 3).reshape(4 * (SIZE + 1), 6 * (SIZE + 1))
    right.imshow(grid, cmap="gray_r", interpolation="nearest")
    right.set(title="what it draws", xticks=[], yticks=[])
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", bbox_inches="tight", pad_inches=0.05)


def main() -> None:
    """Read the command line."""
    names = sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=names)
    parser.add_argument("--minutes", type=float, default=0.6)
    args = parser.parse_args()
    for name in args.names:
        portrait(name, args.minutes)


if __name__ == "__main__":
    main()
