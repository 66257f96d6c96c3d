"""Handwritten 8 x 8 digits that ship with scikit-learn: real data without a download."""

from typing import Literal, final

import torch

from armodels.checks import Seed, checked
from armodels.data.base import Source, Splits, split_rows
from armodels.spec import ContextSpec, DataSpec

SIZES = (1297, 250, 250)


@final
class Digits(Source):
    """1,797 digits of 8 x 8 pixels in 17 grey levels, each a count of 0 to 16; with labels.

    Args:
        levels: 17 for the counts, or 2: 1 where the count is at least 8.
        split_seed: Draws which digits are train (1,297), valid (250) and test (250). Another
            seed is another test set, so it becomes part of the data's name.

    Raises:
        ValueError: ``levels`` is neither.

    References:
        Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, 1998)
        https://archive.ics.uci.edu/dataset/80

    Differs from the paper: scikit-learn holds its test set alone, which is split anew.
    """

    @checked
    def __init__(self, levels: Literal[17, 2] = 17, split_seed: Seed = 0):
        self.levels = levels
        self.split_seed = split_seed

    @property
    def spec(self) -> DataSpec:
        name = "digits" if self.levels == 17 else "digits-binary"
        if self.split_seed:
            name += f"-split{self.split_seed}"
        label = ContextSpec("label", (), 10)
        return DataSpec(name, "image", (1, 8, 8), self.levels, "probability", contexts=(label,))

    def load(self) -> Splits:
        from sklearn.datasets import load_digits  # slow to import

        digits = load_digits()
        images = torch.from_numpy(digits.images).to(torch.uint8)[:, None]  # (N, 1, 8, 8)
        labels = torch.from_numpy(digits.target).to(torch.uint8)
        if self.levels == 2:
            images = (images >= 8).to(torch.uint8)
        rows = split_rows(len(images), SIZES, self.split_seed)
        return Splits(
            self.spec,
            *(images[r] for r in rows),
            contexts={"label": lambda: [labels[r] for r in rows]},
        )
