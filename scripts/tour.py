"""The outputs and pictures of docs/tour.md: what its commands print and draw.

    python scripts/tour.py

Runs the commands of each ``console`` block (lines that begin with ``$ ``) one after another in a
fresh folder, with a table ice.csv and a text book.txt in it, and writes under each what it said;
after a ``python`` block stands what it printed. A picture under ``<!-- from FILE -->`` is that
file of the folder. Takes some minutes on one core.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/tour.md"
BLOCK = re.compile(r"```(console|python)\n(.+?)```(?:\n\n```text\n.*?```)?", re.S)
PICTURE = re.compile(r"<!-- from (\S+) -->\n!\[.+?\]\((\S+)\)")


def commands(page: str) -> list[str]:
    """What the page has its readers type."""
    blocks = [text for kind, text in BLOCK.findall(page) if kind == "console"]
    return [line[2:] for text in blocks for line in text.splitlines() if line.startswith("$ ")]


def ran(command: list[str] | str, folder: Path) -> str:
    """What a command printed, without bars.

    Raises:
        RuntimeError: It failed.
    """
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "99",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed: {done.stderr}")
    return done.stdout.replace(f"{folder}/", "").rstrip()


def prepare(folder: Path) -> None:
    """Put the table and the text into the folder."""
    draw = np.random.default_rng(0)
    hours = draw.gamma(4, 1.5, 1200).round(1)
    degrees = (12 + 1.5 * hours + draw.normal(0, 2, 1200)).round(1)
    ices = np.maximum(0, 4 * degrees - 50 + draw.normal(0, 8, 1200)).round(2)
    table = pd.DataFrame({"hours": hours, "degrees": degrees, "ices": ices})
    table.to_csv(folder / "ice.csv", index=False)
    pages = sorted((ROOT / "docs").glob("*.md"))
    text = "\n".join(page.read_text() for page in pages if page != PAGE)
    (folder / "book.txt").write_text(text.encode("ascii", "ignore").decode())


def written(page: str, folder: Path) -> str:
    """The page with what its blocks print now."""

    def block(found: re.Match) -> str:
        kind, text = found.groups()
        if kind == "python":
            told = ran([sys.executable, "-c", text], folder)
            return f"```python\n{text}```\n\n```text\n{told}\n```"
        lines = []
        for command in (line for line in text.splitlines() if line.startswith("$ ")):
            print(command, flush=True)
            lines += [command, ran(command[2:], folder), ""]
        return "```console\n" + "\n".join(lines).rstrip() + "\n```"

    page = BLOCK.sub(block, page)
    for source, target in PICTURE.findall(page):
        (PAGE.parent / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / source, PAGE.parent / target)
    return page


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        PAGE.write_text(written(PAGE.read_text(), Path(folder)))


if __name__ == "__main__":
    main()
