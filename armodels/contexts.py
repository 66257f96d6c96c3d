"""What a model may be conditioned on: stored with the data, or derived from its values."""

import torch
import torch.nn.functional as F
from torch import Tensor

from armodels.spec import ContextSpec, DataSpec

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of R, G and B (ITU-R BT.601)."""


def _grey(x: Tensor, spec: DataSpec) -> Tensor:
    weights = torch.tensor(LUMINANCE, dtype=torch.double, device=x.device).view(3, 1, 1)
    return (x.double() * weights).sum(1, keepdim=True).round().to(spec.dtype)


def _lowres(x: Tensor, spec: DataSpec, factor: int) -> Tensor:
    # A square that lies half outside has the mean of the pixels that are there.
    means = F.avg_pool2d(x.double(), factor, ceil_mode=True, count_include_pad=False)
    return means.round().to(spec.dtype)


def available(spec: DataSpec) -> dict[str, ContextSpec]:
    """Everything that data of ``spec`` offers, by name.

    Images with levels offer ``grey`` (RGB only: the luminance), ``lowres_2`` and ``lowres_4``
    (means over squares of 2 x 2 and 4 x 4 pixels, rounded to a level), beside what is stored.
    """
    offers = {one.name: one for one in spec.contexts}
    if spec.kind == "image" and spec.levels is not None:
        channels, height, width = spec.shape
        if channels == 3:
            offers["grey"] = ContextSpec("grey", (1, height, width), spec.levels)
        for factor in (2, 4):
            shape = (channels, -(-height // factor), -(-width // factor))
            name = f"lowres_{factor}"
            offers[name] = ContextSpec(name, shape, spec.levels)
    return offers


def find(spec: DataSpec, name: str | None) -> ContextSpec | None:
    """The context called ``name``; None for None.

    Raises:
        ValueError: The data does not offer it.
    """
    if name is None:
        return None
    offers = available(spec)
    if name not in offers:
        raise ValueError(
            f"model.context is {name!r}, but data {spec.name} offers "
            f"{', '.join(offers) or 'no context'}; use model.context=null"
        )
    return offers[name]


def label(wanted: ContextSpec | None, named: object) -> int:
    """The class that a user names, checked against what a model is conditioned on.

    Raises:
        ValueError: The model is not conditioned on a label, or there is no such class.
    """
    if wanted is None or wanted.shape:
        context = "no context" if wanted is None else f"model.context={wanted.name}"
        raise ValueError(
            f"label is {named}, but the model was trained with {context}; "
            f"leave label out, or train with model.context=label"
        )
    if type(named) is not int or not 0 <= named < wanted.num_classes:
        raise ValueError(f"label is {named}; the model knows 0 to {wanted.num_classes - 1}")
    return named


def derive(name: str, x: Tensor, spec: DataSpec) -> Tensor:
    """A context that follows from the values: (B, C, H, W) -> (B, *context).

    Args:
        name: Of the context.
        x: Images (B, C, H, W).
        spec: What a datum is.

    Raises:
        ValueError: It does not: it stands beside them.
    """
    if name == "grey":
        return _grey(x, spec)
    if not name.startswith("lowres_"):
        raise ValueError(
            f"the model is conditioned on {name}, which no image file says; complete examples of "
            f"the test split instead, without image=..."
        )
    return _lowres(x, spec, int(name.removeprefix("lowres_")))
