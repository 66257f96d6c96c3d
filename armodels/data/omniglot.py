"""Omniglot: handwritten characters of fifty alphabets."""

from typing import final

from PIL import Image, ImageOps

from armodels.checks import checked
from armodels.data.base import PARTS, Source, Splits, data_root, read_files, split_rows
from armodels.data.cache import Cache, cached
from armodels.data.collections import Zip
from armodels.data.images import Format, Levels, Size, decode
from armodels.spec import DataSpec

CHECKSUMS = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
FOLDER = "omniglot-py"
NUM_VALID = 2_000
SPLIT_SEED = 0


def _bright_ink(image: Image.Image) -> Image.Image:
    """A drawing with bright strokes on a dark ground, as in MNIST."""
    return ImageOps.invert(image.convert("L"))


@final
class Omniglot(Source):
    """Handwritten characters: 19,280 of 30 alphabets (2,000 for valid) and 13,180 of 20 others.

    Args:
        size: (H, W) to which the drawings of 105 x 105 pixels are area-resized.
        levels: 2 to 256; with 2, a pixel is 1 where ink covers more than half of it.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels. The files are
            ``omniglot-py/images_background.zip`` and ``images_evaluation.zip``.
        download: Fetch missing files through torchvision. Files that are present never are.
        cache: Folder of decoded images; None: $ARMODELS_CACHE, else the user's cache.

    References:
        Human-level concept learning through probabilistic program induction (Lake et al., 2015)
        https://doi.org/10.1126/science.aab3050

    Differs from the paper: none in the split; the density literature often uses another one, of
    24,345 and 8,070 drawings (Burda et al., 2015), whose numbers are not comparable.
    """

    @checked
    def __init__(
        self,
        size: Size = (28, 28),
        levels: Levels = 2,
        root: str | None = None,
        download: bool = True,
        cache: str | None = None,
    ):
        self.format = Format(size, 1, levels)
        self.root, self.cache = data_root(root), cache
        self.download = download

    @property
    def spec(self) -> DataSpec:
        form = self.format
        name = f"omniglot-{form.name}"
        return DataSpec(name, "image", form.shape, form.levels, "probability")

    def load(self) -> Splits:
        folder = self.root / FOLDER
        read_files(
            folder,
            CHECKSUMS,
            self._fetch if self.download else None,
            "data.download=false forbids fetching",
        )
        background, evaluation = (Zip(folder / name) for name in CHECKSUMS)

        def make(cache: Cache) -> None:
            train, test = (
                decode(cache, one, self.format, near=False, skip_corrupt=False, change=_bright_ink)
                for one in (background, evaluation)
            )
            num = len(train.indices)
            parts = split_rows(num, (num - NUM_VALID, NUM_VALID), SPLIT_SEED)
            for part, rows in zip(PARTS, parts, strict=False):
                cache.write(part, train.values, rows)
            (rows,) = split_rows(len(test.indices), (len(test.indices),), SPLIT_SEED)
            cache.write("test", test.values, rows)

        spec = self.spec
        name = f"{spec.name}-{background.digest}-{evaluation.digest}"
        loaded = cached(self.root, self.cache, name, make)
        return Splits(spec, *(loaded.arrays[part] for part in PARTS))

    def _fetch(self) -> None:
        import torchvision  # slow to import

        for background in (True, False):
            torchvision.datasets.Omniglot(self.root, background, download=True)
