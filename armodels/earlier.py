"""What runs saved before call by another name, and what it is called now."""

from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")

CLASSES = {
    "armodels.networks.pixelcnn.GatedPixelCNN": "armodels.networks.gated_pixelcnn.GatedPixelCNN",
}
"""Classes of this package, as configs name them."""

WEIGHTS = {
    "armodels.networks.pixelcnn_pp.PixelCNNPP": {"told": "conditioning", "gift": "shared"},
    "armodels.networks.pixel_snail.PixelSNAIL": {"told": "conditioning"},
}
"""Layers by the class of their network, as the names of weights in a checkpoint have them."""


def class_now(name: str) -> str:
    """The name of a class, which a config names."""
    return CLASSES.get(name, name)


def weights_now(network: str, weights: Mapping[str, T]) -> dict[str, T]:
    """Weights by their names, of a checkpoint whose config names this network."""
    layers = WEIGHTS.get(network, {})

    def now(name: str) -> str:
        return ".".join(layers.get(part, part) for part in name.split("."))

    return {now(name): weight for name, weight in weights.items()}
