"""Pictures of every data set: what a model of minutes draws, with the command under each.

    python scripts/gallery.py [NAME ...] [--minutes 1] [--runs outputs/gallery]

Trains what has no finished run below ``--runs`` yet, draws samples of each run into
``docs/gallery/NAME.png`` and writes the page ``docs/gallery.md``. Data that is not here is not
fetched: the page says so. Of pictures that others drew, only generated ones are shown.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from armodels import show

ROOT = Path(__file__).resolve().parents[1]
PAGE, FOLDER = ROOT / "docs/gallery.md", ROOT / "docs/gallery"
LARGEST = 200_000
"""Bytes of a picture: it is kept in the repository."""

NOT_FETCHED = ("data.download=false",)


@dataclass(frozen=True)
class Entry:
    """One picture of the gallery.

    Attributes:
        name: Of its files.
        title: Above it.
        data: Overrides that name the data.
        more: Overrides for this script, which a user would leave out.
        num: Samples.
        limited: Is it trained for ``--minutes``, or as long as its recipe says?
    """

    name: str
    title: str
    data: tuple[str, ...]
    more: tuple[str, ...] = ()
    num: int = 48
    limited: bool = True

    def words(self, minutes: float) -> list[str]:
        """Overrides that a user would type."""
        return [*self.data, *([f"trainer.max_minutes={minutes:g}"] if self.limited else [])]


def _toy(name: str) -> Entry:
    title = f"Toy density: {name.replace('_', ' ')}"
    return Entry(f"toy_{name}", title, ("experiment=toy", f"data.name={name}"), (), 1000, False)


def entries(root: Path) -> list[Entry]:
    """All pictures, in the order of the page; ``root`` is where data lies."""
    return [
        Entry("digits", "Digits of 8 x 8 pixels", ("data=digits",), limited=False),
        Entry("mnist", "MNIST, binarized", ("data=mnist",), NOT_FETCHED),
        Entry("fashion_mnist", "Fashion-MNIST", ("data=fashion_mnist",), NOT_FETCHED),
        Entry("kmnist", "KMNIST", ("data=kmnist",), NOT_FETCHED),
        Entry("emnist", "EMNIST", ("data=emnist",), NOT_FETCHED),
        Entry("omniglot", "Omniglot", ("data=omniglot",), NOT_FETCHED),
        Entry("cifar10", "CIFAR-10", ("data=cifar10",), NOT_FETCHED),
        Entry("svhn", "SVHN", ("data=svhn",), NOT_FETCHED),
        Entry("anime", "Anime faces (generated)", ("data=anime",)),
        Entry("atari", "Atari frames: Breakout", ("data=atari",)),
        *map(_toy, ("two_moons", "pinwheel", "checkerboard", "rings")),
        Entry("red_wine", "Red wine", ("data=red_wine",), num=1000, limited=False),
        Entry(
            "binary_uci",
            "Binary tables: mushrooms, a sample a row",
            ("data=binary_uci",),
            limited=False,
        ),
        Entry(
            "table",
            "Your own table",
            ("data=table", f"data.path={root / 'tabular/winequality-red.csv'}"),
            num=1000,
            limited=False,
        ),
    ]


def armodels(*words: str) -> str | None:
    """Run the command line; the reason where it fails."""
    command = [sys.executable, "-m", "armodels", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1].removeprefix("armodels: error: ") if done.returncode else None


def draw(entry: Entry, runs: Path, minutes: float) -> str | None:
    """Train, where there is no finished run, and draw; the reason where that fails."""
    run = runs / entry.name
    if not (run / "metrics.json").is_file():
        shutil.rmtree(run, ignore_errors=True)
        words = [*entry.words(minutes), *entry.more]
        reason = armodels("train", *words, f"out={run}")
        if not (run / "checkpoints/best.pt").is_file():
            return reason
    with TemporaryDirectory() as folder:
        reason = armodels("sample", f"run={run}", f"num={entry.num}", f"out={folder}")
        if reason is not None:
            return reason
        picture = (Path(folder) / "sample-seed0-t1.png").read_bytes()
    if len(picture) > LARGEST:
        return f"its picture takes {len(picture):,} bytes"
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{entry.name}.png").write_bytes(picture)
    return None


def section(entry: Entry, run: Path) -> str:
    """A picture with its command, its numbers and its time."""
    typed = yaml.safe_load((run / "config.yaml").read_text())["overrides"]
    words = [word for word in typed if word not in entry.more and not word.startswith("out=")]
    # Where data lies here is of no interest.
    words = [re.sub(r"^data.path=.*/", "data.path=", word) for word in words]
    command = " ".join(["armodels train", *map(show.shell, words)])
    said = "Stopped by its time before its last evaluation."
    if (run / "metrics.json").is_file():
        metrics = json.loads((run / "metrics.json").read_text())
        bound = "≤ " if metrics["measure"] == "bound" else ""
        machine = metrics["environment"]
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
        said = (
            f"{metrics['model']}: {bound}{metrics['test']['nats']:,.2f} nats on test\n"
            f"after {metrics['seconds']:.0f} seconds on {threads} of {machine['processor']}."
        )
    return (
        f"## {entry.title}\n\n![{entry.title}](gallery/{entry.name}.png)\n\n"
        f"```\n{command}\narmodels sample run=RUN num={entry.num}\n```\n\n{said}\n"
    )


def main(argv: Sequence[str]) -> None:
    """Draw pictures and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of pictures; default: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each training (default 1)")
    parser.add_argument("--runs", type=Path, default=ROOT / "outputs/gallery")
    options = parser.parse_args(argv)
    runs = options.runs.resolve()
    all_entries = entries(Path(os.environ.get("ARMODELS_DATA", "data")))
    if unknown := set(options.names) - {entry.name for entry in all_entries}:
        known = ", ".join(entry.name for entry in all_entries)
        sys.exit(f"gallery: error: {', '.join(unknown)} is unknown; choose from {known}")
    sections, absent = [], []
    for entry in all_entries:
        run = runs / entry.name
        if not options.names or entry.name in options.names:
            reason = draw(entry, runs, options.minutes)
            print(f"{entry.name}: {reason or 'drawn'}", flush=True)
        if (run / "config.yaml").is_file() and (FOLDER / f"{entry.name}.png").is_file():
            sections.append(section(entry, run))
        else:
            absent.append(entry.name)
    text = (
        "# What minutes draw\n\n"
        "Samples of every data set with its default model, trained for minutes and no longer; "
        "made by\n`python scripts/gallery.py` on cores that others used, too. "
        "More time gives better ones:\n[results.md](results.md).\n\n"
    )
    if absent:
        text += f"Not drawn yet, or the data is not here: {', '.join(absent)}.\n\n"
    PAGE.write_text(text + "\n".join(sections))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
