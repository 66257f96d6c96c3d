"""Hidden activations of a trained network as features of examples, and linear probes of them."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from armodels.data.rows import Rows
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.base import DensityModel
from armodels.density.mixture import OrderMixture
from armodels.networks.base import Network
from armodels.spec import DataSpec

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Values of C of the logistic regression, the best of which on valid is taken."""

MAX_ITER = 300
"""Iterations of the logistic regression at most."""


class Probe(NamedTuple):
    """A linear probe of some features.

    Attributes:
        features: What they are.
        width: Numbers of an example.
        strength: C of the logistic regression, chosen on valid.
        valid: Accuracy on valid.
        test: Accuracy on test.
        interval: Half the width of its 95 % interval, by the normal approximation.
    """

    features: str
    width: int
    strength: float
    valid: float
    test: float
    interval: float


@runtime_checkable
class HasHidden(Protocol):
    """A network with hidden units that no module puts out, such as those of compiled code."""

    def hidden_units(self, x: Tensor) -> dict[str, Tensor]:
        """They, by name: (B, *event) -> (B, F)."""


def network_of(model: DensityModel) -> Network:
    """The network of a model.

    Raises:
        ValueError: It has none.
    """
    one = model.model if isinstance(model, OrderMixture) else model
    if not isinstance(one, AutoregressiveModel):
        raise ValueError(
            f"model {model.description} is not one network with steps, whose layers are listened "
            f"to; choose a run of one, such as model=made or model=pixelcnn"
        )
    return one.net


@contextmanager
def _listening(net: Network) -> Iterator[dict[str, list[Tensor]]]:
    """Inside the block, what each module of a network puts out is collected, by its name."""
    heard: dict[str, list[Tensor]] = {}

    def listen(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor) and first.is_floating_point():
                heard.setdefault(name, []).append(first.detach())

        return module.register_forward_hook(hook)

    handles = [listen(name, module) for name, module in net.named_modules() if name]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def _activations(net: Network, x: Tensor) -> dict[str, Tensor]:
    """Outputs of the layers for some events, by name; of the k-th call of a module ``name:k``."""
    with _listening(net) as heard, torch.no_grad():
        net(x)
    found = {}
    for name, outputs in heard.items():
        for k, output in enumerate(outputs):
            found[name if len(outputs) == 1 else f"{name}:{k + 1}"] = output
    if isinstance(net, HasHidden):
        with torch.no_grad():
            found |= net.hidden_units(x)
    return found


def layers(net: Network, x: Tensor) -> dict[str, int]:
    """Layers that have activations for each event: name -> which dimension counts events.

    Args:
        net: In evaluation mode.
        x: (3, *event) or more events, of which two and three are tried.
    """
    two, three = (_activations(net, x[:n]) for n in (2, 3))
    found = {}
    for name, output in two.items():
        other = three.get(name)
        if other is None or other.ndim != output.ndim or output.ndim < 2:
            continue
        sizes = zip(output.shape, other.shape, strict=True)
        moved = [d for d, pair in enumerate(sizes) if pair[0] != pair[1]]
        if len(moved) == 1 and (output.shape[moved[0]], other.shape[moved[0]]) == (2, 3):
            found[name] = moved[0]
    return found


def _pooled(output: Tensor, events: int) -> Tensor:
    """The mean over places, (B, F): of maps (B, C, H, W) the channels stay, else the last ones."""
    output = output.movedim(events, 0).float()
    if output.ndim == 4:
        return output.flatten(2).mean(2)
    return output if output.ndim == 2 else output.flatten(1, -2).mean(1)


def extract(
    net: Network,
    examples: Rows | Sequence[Rows],
    chosen: Mapping[str, int],
    *,
    batch_size: int,
    name: str = "",
) -> dict[str, Tensor]:
    """Features of examples, by layer: means over the places of a layer, (N, F).

    Args:
        net: In evaluation mode.
        examples: (N, *event); or sequences, each cut into windows whose features are averaged.
        chosen: Layers, as ``layers`` has them.
        batch_size: Events at a time.
        name: Of the examples, for the bar.
    """
    if not isinstance(examples, Sequence):
        rows, owners, num = examples, None, len(examples)
    else:
        rows, owners, num = *windows(examples, net.spec.num_dims), len(examples)
    sums: dict[str, Tensor] = {}
    bar = tqdm(total=len(rows), desc=f"reading {name}", unit="ex", delay=1, disable=None)
    with bar:
        for start in range(0, len(rows), batch_size):
            x = rows[start : start + batch_size].to(net.order_table.device)
            found = _activations(net, x)
            place = torch.arange(start, start + len(x))
            place = place if owners is None else owners[place]
            for layer, events in chosen.items():
                each = _pooled(found[layer], events).cpu()
                if layer not in sums:
                    sums[layer] = torch.zeros(num, each.shape[1])
                sums[layer].index_add_(0, place, each)
            bar.update(len(x))
    if owners is not None:
        counts = owners.bincount(minlength=num).clamp_min(1)[:, None]
        sums = {layer: total / counts for layer, total in sums.items()}
    return sums


def windows(pieces: Sequence[Rows], length: int) -> tuple[Tensor, Tensor]:
    """Windows (W, length) of sequences, and the number of the sequence that each is of: (W,).

    Args:
        pieces: (T,) each; what is left at the end of one, and one that is shorter, has no window.
        length: Of a window.
    """
    cut, owners = [], []
    for i, piece in enumerate(pieces):
        number = len(piece) // length
        cut.append(piece[: number * length].view(number, length))
        owners.append(torch.full((number,), i))
    return torch.cat(cut), torch.cat(owners)


def raw(examples: Rows | Sequence[Rows], spec: DataSpec) -> dict[str, Tensor]:
    """What needs no network: values as they are; of sounds the spectra of their windows.

    Args:
        examples: (N, *event); or sequences, of whose windows the mean log-spectrum is taken.
        spec: What a datum is.
    """
    if not isinstance(examples, Sequence):
        return {"values": examples[:].flatten(1).float()}
    rows, owners = windows(examples, spec.num_dims)
    centred = rows.float() - rows.float().mean(1, keepdim=True)
    spectra = torch.fft.rfft(centred).abs().add(1e-3).log()
    counts = owners.bincount(minlength=len(examples)).clamp_min(1)[:, None]
    total = torch.zeros(len(examples), spectra.shape[1]).index_add_(0, owners, spectra)
    return {"spectrum": total / counts}


def pca(parts: Sequence[Tensor], width: int) -> list[Tensor]:
    """Principal components of features, fitted on the first part.

    Args:
        parts: (N, F) each: train and others.
        width: Components; no more than there are features or rows.
    """
    from sklearn.decomposition import PCA

    model = PCA(min(width, *parts[0].shape), random_state=0).fit(parts[0].numpy())
    return [torch.from_numpy(model.transform(part.numpy())).float() for part in parts]


def probe(name: str, features: Sequence[Tensor], labels: Sequence[Tensor]) -> Probe:
    """A logistic regression on features: fitted on train, C chosen on valid, tested once.

    Features are standardized by train. Source: Chen et al., 2020 (iGPT),
    https://proceedings.mlr.press/v119/chen20s.html. Differs from the paper: C is chosen on valid
    from ``STRENGTHS``, and the mean over places is taken of activations as they are.

    Args:
        name: Of the features.
        features: (N, F) of train, valid and test.
        labels: (N,) of each.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features[0].numpy())
    train, valid, test = (scaler.transform(part.numpy()) for part in features)
    classes = [part.numpy() for part in labels]
    best: tuple[float, float, LogisticRegression] | None = None
    for strength in tqdm(STRENGTHS, desc=f"probing {name}", delay=1, disable=None, leave=False):
        model = LogisticRegression(C=strength, max_iter=MAX_ITER)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # valid decides what is good enough
            model.fit(train, classes[0])
        accuracy = float(model.score(valid, classes[1]))
        if best is None or accuracy > best[0]:
            best = accuracy, strength, model
    assert best is not None
    accuracy = float(best[2].score(test, classes[2]))
    interval = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(test))
    return Probe(name, train.shape[1], best[1], best[0], accuracy, interval)


def as_arrays(
    features: Mapping[str, Tensor], labels: Mapping[str, Tensor]
) -> dict[str, np.ndarray]:
    """What a file of features holds: ``<split>_features``, ``_labels`` and ``_indices``.

    Args:
        features: Split -> (N, F).
        labels: Split -> (N,); empty where there are none.
    """
    found = {}
    for split, each in features.items():
        found[f"{split}_features"] = each.numpy()
        found[f"{split}_indices"] = np.arange(len(each))
        if split in labels:
            found[f"{split}_labels"] = labels[split].numpy()
    return found
