"""A text that goes on: what a model that reads writes after a prompt."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from armodels import disk, show
from armodels.alphabet import UNKNOWN, Alphabet, code_points
from armodels.checkpoints import Restored
from armodels.density.stream import reads, with_length
from armodels.density.walk import Choose, check_draw, draw_among, draw_noise, keep, walk
from armodels.spec import DataSpec


def read_prompt(config: Mapping[str, Any]) -> str | None:
    """The prompt that a verb's config names; None: it names none.

    Raises:
        ValueError: It names two, or a file that is not UTF-8.
        FileNotFoundError: There is no such file.
    """
    prompt, file = config["prompt"], config["prompt_file"]
    if prompt is not None and file is not None:
        raise ValueError("prompt and prompt_file both say how the text begins; leave one out")
    if file is None:
        return None if prompt is None else str(prompt)
    path = Path(str(file)).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"prompt_file {path} does not exist")
    contents = path.read_bytes()
    try:
        return contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"prompt_file {path} is not UTF-8: byte {error.start} is "
            f"0x{contents[error.start]:02x} ({error.reason})"
        ) from None


def num_values(length: int | str, spec: DataSpec) -> int:
    """Values of a ``length`` as it was typed: a number of them, or seconds of a sound (``2.5s``).

    Raises:
        ValueError: The model is of no sound, or the time is less than a sample.
    """
    if isinstance(length, int):
        return length
    if spec.waveform is None:
        raise ValueError(
            f"length={length} is of a sound, but the model is of {spec.name}; give a number of "
            f"its {spec.unit}s"
        )
    found = round(float(length[:-1]) * spec.waveform.rate)
    if found < 1:
        raise ValueError(f"length={length} is less than a sample; give more of a second")
    return found


def encoded(prompt: str, alphabet: Alphabet) -> np.ndarray:
    """Levels (t,) of a prompt.

    Raises:
        ValueError: It holds a symbol that the model does not know.
    """
    if alphabet.unit == "byte":
        return alphabet.encoded(np.frombuffer(prompt.encode(), np.uint8), "the prompt")
    return alphabet.encoded(code_points(prompt), "the prompt")


def shown(choose: Choose, known: int, alphabet: Alphabet) -> Choose:
    """A chooser that prints the first event's symbols as they are chosen.

    Args:
        choose: Chooses.
        known: Symbols of the prompt, which stand there already.
        alphabet: What the levels stand for.
    """
    pending: list[int] = []

    def choosing(s: int, params: Tensor) -> Tensor:
        values = choose(s, params)
        if s >= known:
            pending.append(int(values[0, 0]))
            text = alphabet.decoded(pending)
            # A character of several bytes is printed when its last one is there.
            if alphabet.unit == "char" or not text.endswith(UNKNOWN):
                show.write(text)
                pending.clear()
        return values

    return choosing


def continue_text(restored: Restored, prompt: str, config: Mapping[str, Any]) -> None:
    """Write what follows a prompt, as it is drawn, and a file of all answers.

    Args:
        restored: A model of text that reads.
        prompt: How the text begins.
        config: Of the verb.

    Raises:
        ValueError: The model is no such model, or does not know a symbol of the prompt.
    """
    alphabet, length = restored.spec.alphabet, config["length"]
    if alphabet is None:
        raise ValueError(f"a prompt begins a text, but the model is of {restored.spec.name}")
    if not reads(restored.model):
        raise ValueError(
            f"model {restored.model.description} takes events of one length alone, so that no "
            f"text goes on; train one that reads, such as model=rnn"
        )
    if restored.model.context is not None:
        raise ValueError(
            f"a prompt goes with a model without a context, but this one is conditioned on "
            f"{restored.model.context.name}"
        )
    check_draw(config["temperature"])
    answers = config["num_completions"] or 1
    levels = torch.from_numpy(encoded(prompt, alphabet)).to(restored.spec.dtype)
    total = len(levels) + length
    model = with_length(restored.model, total)
    values = torch.zeros(answers, total, 1, dtype=levels.dtype)
    values[:, : len(levels), 0] = levels
    known = (torch.arange(total) < len(levels)).expand(answers, -1)
    generator = torch.Generator().manual_seed(config["seed"])
    shape = (answers, total, model.head.num_noise)
    noise = draw_noise(shape, generator, restored.device)
    drawn = draw_among(
        model.head, noise, config["temperature"], top_k=config["top_k"], top_p=config["top_p"]
    )
    chooser = keep(values.to(restored.device), known.to(restored.device), drawn)
    show.say(f"from   {restored.origin}")
    show.say()
    show.write(prompt)
    with torch.no_grad():
        written = walk(model.net, answers, shown(chooser, len(levels), alphabet))
    show.write("\n")
    show.say()
    path = restored.folder_for(config["out"]) / f"prompt-seed{config['seed']}.txt"
    with disk.atomic(path) as file:
        file.write(alphabet.joined(written[..., 0].cpu().numpy()).encode())
    show.say(f"wrote  {path}")
