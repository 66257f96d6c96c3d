"""A text that goes on: what a model that reads writes after a prompt."""

import codecs
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from armodels import disk, show
from armodels.alphabet import Alphabet, code_points
from armodels.checkpoints import Restored
from armodels.density.stream import reader, reads, with_length
from armodels.density.walk import Choose, check_draw, draw_among, draw_noise, sampling, walk
from armodels.networks.stream import After


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


def encoded(prompt: str, alphabet: Alphabet) -> np.ndarray:
    """Levels (t,) of a prompt.

    Raises:
        ValueError: It holds a symbol that the model does not know.
    """
    if alphabet.unit == "byte":
        return alphabet.encoded(np.frombuffer(prompt.encode(), np.uint8), "the prompt")
    return alphabet.encoded(code_points(prompt), "the prompt")


@final
class Shown:
    """A chooser that prints the first event's symbols as they are chosen.

    A character of several bytes is printed when its last one is there.

    Args:
        choose: Chooses.
        alphabet: What the levels stand for.
    """

    def __init__(self, choose: Choose, alphabet: Alphabet):
        self._choose, self._alphabet = choose, alphabet
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, s: int, params: Tensor) -> Tensor:
        """The other's choice."""
        values = self._choose(s, params)
        level = [int(values[0, 0])]
        if self._alphabet.unit == "byte":
            show.write(self._decoder.decode(self._alphabet.as_bytes(level)))
        else:
            show.write(self._alphabet.decoded(level))
        return values

    def end(self) -> None:
        """Print what is left of a character that the end has cut off."""
        show.write(self._decoder.decode(b"", final=True))


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
    model = with_length(restored.model, length)
    generator = torch.Generator().manual_seed(config["seed"])
    shape = (answers, len(levels) + length, model.head.num_noise)
    noise = draw_noise(shape, generator, restored.device)[:, len(levels) :]
    drawn = draw_among(
        model.head, noise, config["temperature"], top_k=config["top_k"], top_p=config["top_p"]
    )
    chooser = Shown(drawn, alphabet)
    after = After(reader(model), levels[:, None].to(restored.device))
    show.say(f"from   {restored.origin}")
    show.say()
    show.write(prompt)
    with sampling(model):
        written = walk(model.net, answers, chooser, after=after)[..., 0].cpu()
    chooser.end()
    show.write("\n")
    show.say()
    path = restored.folder_for(config["out"]) / f"prompt-seed{config['seed']}.txt"
    with disk.atomic(path) as file:
        texts = torch.cat([levels.expand(answers, -1), written.to(levels)], 1)
        file.write(alphabet.joined(texts.numpy()).encode())
    show.say(f"wrote  {path}")
