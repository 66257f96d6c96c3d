"""armodels complete: draw the unknown part of examples given the known part."""

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from armodels import contexts, pictures, run
from armodels.spec import ContextSpec, DataSpec
from armodels.tasks.evaluate import draw_examples

log = getLogger(__name__)

KNOWN = ("top", "bottom", "left", "right", "border", "random")


def known_part(known: str, keep: float, spec: DataSpec, seed: int) -> Tensor:
    """Boolean mask (*event), True = known, over about ``keep`` of an example.

    Vectors and sequences count as one column for top and bottom (the first or last values), and
    as one row for the others.
    """
    if known not in KNOWN:
        raise ValueError(f"known is {known!r}; choose from {', '.join(KNOWN)}")
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is {keep}; it must lie between 0 and 1")
    if spec.kind == "image":
        _, height, width = spec.shape
    else:
        tall = known in ("top", "bottom")
        height, width = (spec.num_dims, 1) if tall else (1, spec.num_dims)
    row, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    if known == "top":
        mask = (row < round(keep * height)).expand(height, width)
    elif known == "bottom":
        mask = (row >= height - round(keep * height)).expand(height, width)
    elif known == "left":
        mask = (column < round(keep * width)).expand(height, width)
    elif known == "right":
        mask = (column >= width - round(keep * width)).expand(height, width)
    elif known == "border":
        side = (1 - keep) ** 0.5 / 2  # of the unknown rectangle in the middle
        inside_rows = (row + 0.5 - height / 2).abs() <= side * height
        inside_columns = (column + 0.5 - width / 2).abs() <= side * width
        mask = ~(inside_rows & inside_columns)
    else:
        draws = torch.rand(height, width, generator=torch.Generator().manual_seed(seed))
        mask = draws < keep
    return mask.expand(spec.shape[0], -1, -1) if spec.kind == "image" else mask.reshape(spec.shape)


def read_image(path: Path, spec: DataSpec) -> Tensor:
    """An image file as one event: (1, C, H, W), resized and quantized to what the model knows."""
    if spec.kind != "image" or spec.levels is None:
        raise ValueError(f"the model was trained on {spec.name}, which is no image with levels")
    if not path.is_file():
        raise FileNotFoundError(f"image {path} does not exist")
    channels, height, width = spec.shape
    try:
        with Image.open(path) as image:
            image = image.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"image {path} cannot be read: {error}") from error
    if image.size != (width, height):
        log.info("image %s is resized from %dx%d to %dx%d", path, *image.size, width, height)
        image = image.resize((width, height), Image.Resampling.BOX)
    values = torch.from_numpy(np.array(image)).view(height, width, -1).permute(2, 0, 1)
    levels = (values.double() * (spec.levels / 256)).floor().to(spec.dtype)
    return levels[None].contiguous()


def _context_of(
    x: Tensor, label: int | None, wanted: ContextSpec | None, spec: DataSpec
) -> Tensor | None:
    """What the model is conditioned on where it completes the image ``x`` (1, *event)."""
    if wanted is not None and not wanted.shape:
        if label is None:
            raise ValueError(
                f"the model is conditioned on a label; give the image's: label=0 to "
                f"label={wanted.levels - 1}"
            )
        return torch.full((1,), label)
    if label is not None:
        raise ValueError(
            f"label is {label}, but the model was trained without model.context=label"
        )
    return None if wanted is None else contexts.derive(wanted.name, x, spec)


def main(config: Mapping) -> None:
    """Complete examples; write a picture (truth, known part, answers) and NPZ."""
    restored = run.from_config(config)
    spec, seed, answers = restored.spec, config["seed"], config["num_completions"]
    if answers < 1:
        raise ValueError(f"num_completions is {answers}; it must be at least 1")
    if config["image"]:
        truth = read_image(Path(config["image"]), spec)
        context = _context_of(truth, config["label"], restored.model.context, spec)
    else:
        truth, context = draw_examples(restored, config["num"], seed)
    observed = known_part(config["known"], config["keep"], spec, seed)
    device = restored.device
    result = restored.model.complete(
        truth.repeat_interleave(answers, 0).to(device),
        observed.to(device),
        num_particles=config["num_particles"],
        context=None if context is None else context.repeat_interleave(answers, 0).to(device),
        temperature=config["temperature"],
        generator=torch.Generator().manual_seed(seed),
        progress=True,
    )
    values = result.values.cpu().unflatten(0, (-1, answers))  # (B, answers, *event)
    log.info("from   %s (%s weights, step %d)", restored.path, restored.weights, restored.step)
    log.info(
        "known  %s, %.0f %% of %s", config["known"], 100 * observed.double().mean(), spec.name
    )
    log.info("method %s%s", result.method, _meaning(result))
    folder = restored.folder_for(config["out"])
    name = f"complete-{config['known']}-{config['keep']:g}-seed{seed}"
    np.savez_compressed(
        folder / f"{name}.npz",
        truth=spec.original(truth).numpy(),
        observed=observed.numpy(),
        completions=spec.original(values).numpy(),
    )
    log.info("wrote  %s", folder / f"{name}.npz")
    blanked = torch.where(observed, truth, torch.zeros_like(truth))
    rows = torch.cat([truth[:, None], blanked[:, None], values], 1).flatten(0, 1)
    picture = pictures.events(rows, spec, columns=answers + 2)
    if picture is not None:
        pictures.save(picture, folder / f"{name}.png")
        log.info("wrote  %s (truth, known part, answers)", folder / f"{name}.png")


def _meaning(result) -> str:
    if result.order_chosen:
        return (
            ": every answer is a draw from p(unknown | known), under the order that was chosen "
            "for it (the known part first)"
        )
    if result.method == "exact":
        return ": every answer is a draw from p(unknown | known)"
    if result.method == "clamped":
        return (
            ": known values that come late in the order did not inform the earlier ones; "
            "raise num_particles"
        )
    effective = result.effective_sample_size
    return (
        f": effective sample size {effective.mean():.1f} (least {effective.min():.1f}) "
        f"of {result.num_particles} particles"
    )
