"""Where data come from, and what is known of their licence, for the card of a model.

What the owners' own pages or files do not say is "not stated": nothing here is a guess.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Licence(NamedTuple):
    """What a card says of data."""

    source: str
    """Where they are from."""
    terms: str
    """Under which licence they are."""


OWN = Licence("the user's own data", "the user's own")
DRAWN = Licence("drawn by armodels from a density that is known", "none needed: nothing was taken")
NOT_STATED = "not stated"

_UCI = "https://archive.ics.uci.edu/dataset"

SOURCES: dict[str, Licence] = {
    "Anime": Licence(
        "faces drawn by many artists, collected from the web",
        "not stated; the pictures remain their artists', and are for research and teaching alone",
    ),
    "Atari": Licence(
        "frames of a game, recorded from the emulator of ale-py",
        "not stated; the game remains its owner's (ale-py itself is under the GPL, version 2)",
    ),
    "Audio": OWN,
    "BinaryUCI": Licence(
        "binary data with the splits of the NADE and MADE papers, by UCI and LIBSVM",
        "not stated by the files; UCI gives connect4, dna and mushrooms under CC BY 4.0",
    ),
    "CIFAR10": Licence("https://www.cs.toronto.edu/~kriz/cifar.html", NOT_STATED),
    "Digits": Licence(
        f"Optical Recognition of Handwritten Digits ({_UCI}/80), by scikit-learn", "CC BY 4.0"
    ),
    "EMNIST": Licence("https://www.nist.gov/itl/products-and-services/emnist-dataset", NOT_STATED),
    "FSDD": Licence(
        "Free Spoken Digit Dataset, https://github.com/Jakobovski/free-spoken-digit-dataset",
        "CC BY-SA 4.0",
    ),
    "FashionMNIST": Licence("https://github.com/zalandoresearch/fashion-mnist", "MIT"),
    "Folder": OWN,
    "KMNIST": Licence("http://codh.rois.ac.jp/kmnist", "CC BY-SA 4.0"),
    "MNIST": Licence("http://yann.lecun.com/exdb/mnist", NOT_STATED),
    "Music": Licence(
        "chorales and folk tunes as Boulanger-Lewandowski et al. (2012) split them", NOT_STATED
    ),
    "Omniglot": Licence("https://github.com/brendenlake/omniglot", "MIT"),
    "RedWine": Licence(f"Wine Quality ({_UCI}/186)", "CC BY 4.0"),
    "SVHN": Licence(
        "http://ufldl.stanford.edu/housenumbers", "not stated; for non-commercial use only"
    ),
    "Sine": DRAWN,
    "Table": OWN,
    "Text": Licence("the source of Python's standard library", "PSF License Version 2"),
    "TinyShakespeare": Licence(
        "plays by William Shakespeare, https://github.com/karpathy/char-rnn",
        "not stated; the plays themselves are in the public domain",
    ),
    "Toy": DRAWN,
}
"""By the name of the class of this package that reads them."""


def licence_of(data: Mapping[str, Any]) -> Licence:
    """What is known of data.

    Args:
        data: The ``data`` of a run's config; without a class, as of ``armodels.fit``, or with one
            of the user's, or with files of the user's, they are the user's own.
    """
    module, _, name = str(data.get("_target_")).rpartition(".")
    shipped = module.startswith("armodels.data.") and name in SOURCES
    # An anime set is fetched by the user, and named by its path.
    own = data.get("path") is not None and name in ("Music", "Text")
    own |= name == "BinaryUCI" and data.get("name") not in ("connect4", "dna", "mushrooms", "nips")
    return SOURCES[name] if shipped and not own else OWN
