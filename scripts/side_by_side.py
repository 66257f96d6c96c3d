"""Real images and samples of several runs, side by side in one picture with titles.

    python scripts/side_by_side.py RUN RUN ... --out PICTURE.png

The runs share their data, whose test images stand first (unless ``--samples-only``). Titles are
models and their exact test nats (or a bound on them); ``--titles`` names them otherwise.
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from armodels import pictures
from armodels.checkpoints import Restored, restore
from armodels.examples import draw_examples
from armodels.run import RunDirectory

LARGEST = 150_000
"""Bytes of a picture: it is kept in the repository."""

GAP, LINE, FONT = 8, 20, 15


def title(run: Restored, folder: str) -> str:
    """The model and its test result."""
    metrics = RunDirectory.open(folder).read_metrics()
    name = run.config["choices"]["model"]
    if metrics is None:
        return f"{name}, step {run.step}"
    bound = "at most " if metrics["measure"] == "bound" else ""
    return f"{name}, {bound}{metrics['test']['nats']:.1f} nats"


def panels(
    folders: Sequence[str], num: int, seed: int, trust: Sequence[str] | None = None
) -> tuple[list[str], list[Tensor]]:
    """Titles and grids (3, H, W), the real images first.

    Raises:
        ValueError: The runs were trained on different data, or on what has no picture.
    """
    runs = [restore(folder, trust=trust) for folder in folders]
    spec = runs[0].spec
    for run in runs[1:]:
        if run.spec.name != spec.name:
            raise ValueError(
                f"{runs[0].path} was trained on {spec.name}, but {run.path} on {run.spec.name}; "
                f"choose runs of the same data"
            )
    if spec.kind != "image":
        raise ValueError(f"{spec.name} holds no images but a {spec.kind} each")
    shown = [draw_examples(runs[0], num, seed)[0]]
    for run in runs:
        context = run.model.context
        if context is not None:
            raise ValueError(f"{run.path} is conditioned on {context.name}; choose runs without")
        generator = torch.Generator().manual_seed(seed)
        shown.append(run.model.sample(num, generator=generator, progress=True))
    columns = max(1, round(num**0.5))
    titles = ["test images", *(title(*pair) for pair in zip(runs, folders, strict=True))]
    return titles, [pictures.events(x, spec, columns=columns) for x in shown]


def compose(titles: Sequence[str], grids: Sequence[Tensor]) -> Image.Image:
    """Equal grids (3, H, W) in a row, each below its title."""
    font = ImageFont.load_default(FONT)
    width = max(grids[0].shape[-1], *(int(font.getlength(text)) + 1 for text in titles)) + GAP
    height = grids[0].shape[-2] + LINE + GAP
    picture = Image.new("RGB", (width * len(grids) + GAP, height), "white")
    for i, (text, grid) in enumerate(zip(titles, grids, strict=True)):
        left = GAP + i * width
        ImageDraw.Draw(picture).text((left, 1), text, "black", font)
        picture.paste(Image.fromarray(grid.permute(1, 2, 0).numpy()), (left, LINE))
    return picture


def main(argv: Sequence[str]) -> None:
    """Draw one picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run directory")
    parser.add_argument("--out", required=True, type=Path, help="PNG file")
    parser.add_argument("--titles", nargs="+", help="one for each run")
    parser.add_argument("--trust", nargs="+", help="classes of your own that runs may name")
    parser.add_argument("--samples-only", action="store_true", help="show no test images")
    parser.add_argument("--num", type=int, default=16, help="images of each (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        titles, grids = panels(options.runs, options.num, options.seed, options.trust)
        if options.titles and len(options.titles) != len(options.runs):
            raise ValueError(f"{len(options.titles)} titles name {len(options.runs)} runs")
        titles = titles[:1] + options.titles if options.titles else titles
        first = 1 if options.samples_only else 0
        picture = compose(titles[first:], grids[first:])
        file = io.BytesIO()
        picture.save(file, "png", optimize=True)
        if (size := len(file.getvalue())) > LARGEST:  # known before an older picture is replaced
            raise ValueError(f"{options.out} would take {size:,} bytes; draw fewer with --num")
        options.out.write_bytes(file.getvalue())
    except (OSError, ValueError) as error:
        sys.exit(f"side_by_side: error: {error}")
    print(f"wrote {options.out} ({size:,} bytes)")


if __name__ == "__main__":
    main(sys.argv[1:])
