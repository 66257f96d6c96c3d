"""Faces of anime characters: a public data set that each user fetches for themselves."""

import os
from pathlib import Path
from typing import final

from armodels.checks import checked
from armodels.data.base import data_root
from armodels.data.folder import TEST, VALID, OwnPictures, stem_of
from armodels.data.images import Channels, Format, Levels, Shares, Size

FILE = "anime_faces.zip"
PUBLIC = (
    "Anime Face Dataset (kaggle.com/datasets/splcher/animefacedataset), "
    "Anime Faces (kaggle.com/datasets/soumikrakshit/anime-faces) or "
    "DAF:re's and Danbooru's faces (github.com/arkel23/animesion, gwern.net/crop)"
)


@final
class Anime(OwnPictures):
    """Anime faces: any folder or zip of them, decoded once.

    Near-duplicates (a perceptual hash that differs in at most 5 of 64 bits: recompressed, mirrored
    colours, small retouches) are kept in one split.

    Args:
        path: A folder or a zip; None: ``anime/anime_faces.zip`` below the root, else the folder
            ``anime`` there. Another one makes for another name of the data.
        size: (H, W) that images are brought to: the centre is cropped and area-resized.
        channels: 3 (RGB) or 1 (grey).
        levels: 2 to 256.
        valid: Expected share of images to select by.
        test: Expected share of images to test on.
        skip_corrupt: Leave out images that cannot be decoded, and report them.
        root: Folder of the data; None: $ARMODELS_DATA, else ~/.cache/armodels.
        cache: Folder of decoded images; None: $ARMODELS_CACHE, else the user's cache.
    """

    @checked
    def __init__(
        self,
        path: str | os.PathLike | None = None,
        size: Size = (16, 16),
        channels: Channels = 3,
        levels: Levels = 256,
        valid: float = VALID,
        test: float = TEST,
        skip_corrupt: bool = False,
        root: str | None = None,
        cache: str | None = None,
    ):
        folder = data_root(root) / "anime"
        packed = folder / FILE
        usual = packed if packed.exists() or not folder.is_dir() else folder
        super().__init__(
            Path(path).expanduser() if path else usual,
            f"anime-{stem_of(Path(path))}" if path else "anime",
            Format(size, channels, levels),
            Shares(valid, test),
            near=True,
            labels=False,
            skip_corrupt=skip_corrupt,
            root=root,
            cache=cache,
        )

    def missing(self) -> str:
        return (
            f"no faces at {self.path}: armodels has no place to download them from; fetch a "
            f"public set such as {PUBLIC} and put its images there as a zip, into a folder "
            f"{self.path.parent}, or name them with data.path"
        )
