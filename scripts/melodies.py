"""Count the test pieces whose melody stands in a training piece, too.

    python scripts/melodies.py [--corpus jsb] [--moves 12]

A melody is the highest key of each frame, without frames of silence and with what is held or
repeated once; what counts are its moves from one key to the next, in half-tones, so that a tune in
another key is the same tune. A test piece recurs where so many of its moves, one after another and
from its first on, stand anywhere in the melody of one training piece.
"""

import argparse

import numpy as np

from armodels.data.music import Music


def moves(frames: np.ndarray) -> tuple[int, ...]:
    """Of the melody of frames (T, 88), in half-tones."""
    sounding = frames[frames.any(1)]
    top = frames.shape[1] - 1 - sounding[:, ::-1].argmax(1)
    steps = np.diff(top)
    return tuple(steps[steps != 0].tolist())


def recurring(test: list[tuple[int, ...]], train: list[tuple[int, ...]], num: int) -> int:
    """Test melodies whose first ``num`` moves stand in one of train.

    Args:
        test: Melodies of the test split.
        train: Melodies of the training split.
        num: Moves.
    """
    known = {one[i : i + num] for one in train for i in range(len(one) - num + 1)}
    return sum(one[:num] in known for one in test)


def main() -> None:
    """Print the counts of valid and test."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", default="jsb")
    parser.add_argument("--moves", type=int, default=12)
    asked = parser.parse_args()
    pieces = Music(asked.corpus).pieces
    melodies = {
        part: [moves(one.frames.numpy()) for one in of_part] for part, of_part in pieces.items()
    }
    for part in ("valid", "test"):
        found = recurring(melodies[part], melodies["train"], asked.moves)
        print(
            f"{found} of {len(melodies[part])} pieces of {part} begin with {asked.moves} moves "
            f"that stand in a piece of train"
        )


if __name__ == "__main__":
    main()
