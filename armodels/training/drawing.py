"""Pictures of a model in training: samples, and what it makes of data it was not trained on."""

from typing import Any, final

import torch
from lightning_fabric import Fabric
from torch import Tensor

from armodels import charts, limits, pictures
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.notes import RATE, played
from armodels.training.record import Record
from armodels.training.settings import Watching
from armodels.training.streams import SAMPLES, stream

NUM_SURPRISES = 16
"""Images of valid of which each value's log-probability is drawn."""

NUM_PLAYED = 4
"""Samples of music that are played, one after another."""


@final
class Drawing:
    """Pictures at evaluations.

    Args:
        splits: The data.
        watching: How many samples, at which temperature.
        record: Gets the pictures.
        fabric: The device.
        seed: Of the samples.
        progress: Whether long draws show a bar.
    """

    def __init__(
        self,
        splits: Splits,
        watching: Watching,
        record: Record,
        fabric: Fabric,
        seed: int,
        progress: bool,
    ):
        self._splits = splits
        self._watching = watching
        self._record = record
        self._device = fabric.device
        self._seed = seed
        self._progress = progress
        self._next_chart = 0.0

    def draw(self, model: DensityModel, step: int, *, last: bool) -> None:
        """Draw samples and surprises of the model.

        Args:
            model: With the weights that are evaluated.
            step: At which it stands.
            last: Whether training ends with it.
        """
        spec, splits = self._splits.spec, self._splits
        number = self._watching.num_samples
        beside: dict[str, Any] = {}
        if charts.is_table(spec):
            # A chart may take longer than an epoch of a small model: a twentieth of the time.
            if limits.now() < self._next_chart and not last:
                return
            number = number and max(number, charts.MAX_POINTS)
            beside = {"data": splits.split("train")[:]}
        started = limits.now()
        if number:
            # The same noise each time: what changes from picture to picture is the model.
            generator = torch.Generator().manual_seed(stream(SAMPLES, self._seed))
            samples = model.sample(
                number,
                context=self._contexts(model, number),
                temperature=self._watching.temperature,
                generator=generator,
                progress=self._progress,
            )
            if spec.alphabet is not None:
                self._record.text(spec.alphabet.joined(samples.cpu().numpy()), step)
                return
            if splits.box is not None and model.context is None:
                beside |= {"box": splits.box, "true_log_prob": splits.true_log_prob}
                beside["log_prob"] = lambda x: model.log_prob(x.to(self._device))
            picture = charts.samples(samples, spec, **beside)
            if picture is not None:
                self._record.picture("view/samples", picture, step)
                self._record.samples(picture, step)
            if spec.notes is not None:
                sound = played(samples[:NUM_PLAYED].cpu().numpy(), spec.notes)
                self._record.sound(torch.from_numpy(sound), RATE, step)
        if spec.kind == "image":
            shown = splits.examples("valid", model.context)[:NUM_SURPRISES].to(self._device)
            with torch.no_grad():
                log_prob = model.log_prob_map(*shown)
            if log_prob is not None:
                self._record.picture("view/surprise", pictures.heat_maps(log_prob), step)
        self._next_chart = limits.now() + 20 * (limits.now() - started)

    def _contexts(self, model: DensityModel, number: int) -> Tensor | None:
        """Every label in turn; other contexts as they come in valid."""
        wanted = model.context
        if wanted is None:
            return None
        if not wanted.shape:
            return torch.arange(number, device=self._device) % wanted.num_features
        valid = self._splits.examples("valid", wanted)
        return valid[torch.arange(number) % len(valid)].to(self._device).context
