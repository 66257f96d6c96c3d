"""Anyone's own images: a folder, a zip or an npz."""

import os
import re
from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import final

from armodels import disk, show
from armodels.checks import checked
from armodels.data.base import PARTS, Source, Splits, data_root
from armodels.data.cache import Cache, cached
from armodels.data.collections import MAX_SHOWN, Collection, collect
from armodels.data.images import (
    Channels,
    Format,
    Levels,
    Shares,
    Size,
    decode,
    write_splits,
)
from armodels.spec import ContextSpec, DataSpec

VALID, TEST = 0.1, 0.1


class OwnPictures(Source):
    """Pictures in files of the user's own; a subclass says where they lie, and their name.

    Args:
        path: A folder with any sub-folders, a zip or an npz.
        name: Of the data in tables.
        form: What the pictures become.
        shares: Expected shares of valid and test.
        near: Keep near-duplicates in one split, which lets an added picture move others.
        labels: Offer the context ``label``.
        skip_corrupt: Leave out pictures that cannot be decoded, and report them.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        cache: Folder of decoded pictures; None: $ARMODELS_CACHE, else the user's cache.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        form: Format,
        shares: Shares,
        *,
        near: bool,
        labels: bool,
        skip_corrupt: bool,
        root: str | None,
        cache: str | None,
    ):
        self.path, self.name, self.format, self.shares = path, name, form, shares
        self.near, self.labels, self.skip_corrupt = near, labels, skip_corrupt
        self.root, self.cache = data_root(root), cache

    @cached_property
    def _collection(self) -> Collection:
        if not self.path.exists():
            raise FileNotFoundError(self.missing())
        return collect(self.path)

    @abstractmethod
    def missing(self) -> str:
        """What to do where nothing lies at ``path``."""

    @cached_property
    def _classes(self) -> list[str]:
        """Names of the classes, in the order of their labels."""
        names = self._collection.class_names
        if "" in names or len(names) < 2:
            bare = "an image lies in none" if "" in names else f"there is {', '.join(names)} alone"
            raise ValueError(
                f"data.labels=true takes the sub-folders of {self.path} for classes, but {bare}; "
                f"use data.labels=false"
            )
        return names

    @property
    def spec(self) -> DataSpec:
        name = f"{self.name}-{self.format.name}"
        if (self.shares.valid, self.shares.test) != (VALID, TEST):
            name += f"-split{self.shares.valid:g}-{self.shares.test:g}"
        contexts = (ContextSpec("label", (), len(self._classes)),) if self.labels else ()
        form = self.format
        return DataSpec(name, "image", form.shape, form.levels, "probability", contexts=contexts)

    def load(self) -> Splits:
        spec, collection = self.spec, self._collection
        labels = self._classes if self.labels else None
        settings = [spec.name, *(["labels"] if labels else []), *(["near"] if self.near else [])]
        settings += ["skip"] if self.skip_corrupt else []

        def make(cache: Cache) -> None:
            done = decode(
                cache, collection, self.format, near=self.near, skip_corrupt=self.skip_corrupt
            )
            write_splits(cache, collection, done, self.shares, near=self.near, labels=labels)

        loaded = cached(self.root, self.cache, "-".join([*settings, collection.digest]), make)
        for sentence in loaded.meta.get("left_out", []):
            show.say(f"in {self.path}, left out are {sentence}")
        if skipped := loaded.meta["skipped"]:
            shown = "; ".join(skipped[:MAX_SHOWN]) + (" ..." if len(skipped) > MAX_SHOWN else "")
            show.warn(f"{len(skipped)} corrupt images of {self.path} left out: {shown}")
        if animated := loaded.meta.get("animated"):
            shown = ", ".join(animated[:MAX_SHOWN]) + (" ..." if len(animated) > MAX_SHOWN else "")
            show.say(f"{len(animated)} images have several frames, the first is read: {shown}")
        if self.near:
            show.say(f"{loaded.meta['num_near']} near-duplicates share a split")
        if labels:
            show.say(f"labels: {', '.join(f'{i} {name}' for i, name in enumerate(labels))}")
        spec, stored = replace(spec, checksum=loaded.checksum), {}
        if labels:
            stored["label"] = lambda: [loaded.arrays[f"labels-{part}"] for part in PARTS]
        return Splits(spec, *(loaded.arrays[part] for part in PARTS), contexts=stored)


@final
class Folder(OwnPictures):
    """Own images, decoded once: the centre cropped, area-resized and quantized.

    Which split an image is in follows from the SHA-256 of its file (of an npz: its values), so
    images that are added later move no other.

    Args:
        path: A folder with any sub-folders, a ``.zip``, or an ``.npz`` with an array ``images``.
        name: Of the data in tables; None: the last part of ``path``. Whoever changes the images
            should change the name.
        size: (H, W) that images are brought to.
        channels: 3 (RGB) or 1 (grey).
        levels: 2 to 256.
        labels: Offer the context ``label``: the first folder of an image below ``path`` (of an
            npz: its array ``labels``), numbered in alphabetical order.
        valid: Expected share of images to select by.
        test: Expected share of images to test on.
        skip_corrupt: Leave out images that cannot be decoded, and report them.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        cache: Folder of decoded images; None: $ARMODELS_CACHE, else the user's cache.

    Raises:
        ValueError: The name is a path, or the format or the shares of the splits cannot be.
    """

    @checked
    def __init__(
        self,
        path: str | os.PathLike,
        name: str | None = None,
        size: Size = (16, 16),
        channels: Channels = 3,
        levels: Levels = 256,
        labels: bool = False,
        valid: float = VALID,
        test: float = TEST,
        skip_corrupt: bool = False,
        root: str | None = None,
        cache: str | None = None,
    ):
        if name and "/" in name.replace(os.sep, "/"):
            raise ValueError(f"data.name is {name!r}; it is no path, so use no {os.sep} in it")
        place = Path(path).expanduser()
        super().__init__(
            place,
            name or f"folder-{stem_of(place)}",
            Format(size, channels, levels),
            Shares(valid, test),
            near=False,
            labels=labels,
            skip_corrupt=skip_corrupt,
            root=root,
            cache=cache,
        )

    def missing(self) -> str:
        return (
            f"data.path is {self.path}, which {disk.trouble(self.path)}; name a folder, zip or npz"
        )


def stem_of(path: Path) -> str:
    """The last part of where a path leads, without its ending, for a name.

    ``Path.resolve`` would raise an error for a link that leads back to itself.
    """
    return clean(Path(os.path.realpath(path)).stem)


def clean(name: str) -> str:
    """A name of letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", name) or "images"
