"""Pictures of a model in training: samples, and what it makes of data it was not trained on."""

from typing import Any, final

import torch
from lightning_fabric import Fabric
from torch import Tensor

from armodels import charts, limits, pictures, views
from armodels.data.base import Splits
from armodels.density.base import DensityModel
from armodels.training.record import Record
from armodels.training.settings import Watching
from armodels.training.streams import SAMPLES, stream

NUM_SURPRISES = 16
"""Images of valid of which each value's log-probability is drawn."""
NUM_FILMS = 4
"""Samples that are shown as they are drawn, at the end of a training."""


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
        # A chart may take longer than an epoch of a small model: a twentieth of the time.
        if views.takes_time(spec) and limits.now() < self._next_chart and not last:
            return
        if charts.is_table(spec):
            number = number and max(number, charts.MAX_POINTS)
            beside = {"data": splits.split("train")[:]}
        started = limits.now()
        if number:
            # The same noise each time: what changes from picture to picture is the model.
            generator = torch.Generator().manual_seed(stream(SAMPLES, self._seed))
            context = self._contexts(model, number)
            samples = model.sample(
                number,
                context=context,
                temperature=self._watching.temperature,
                generator=generator,
                progress=self._progress,
            )
            if splits.box is not None and model.context is None:
                beside |= {"box": splits.box, "true_log_prob": splits.true_log_prob}
                beside["log_prob"] = lambda x: model.log_prob(x.to(self._device))
            titles = views.titles(model.context, context)
            self._record.view(views.view(samples, spec, titles=titles, **beside), step)
            if last and (steps := model.steps_of_values) is not None:
                self._picture(
                    "samples_in_steps", pictures.film(samples[:NUM_FILMS], steps, spec), step
                )
        if spec.kind == "image":
            shown = splits.examples("valid", model.context)[:NUM_SURPRISES].to(self._device)
            with torch.no_grad():
                log_prob = model.log_prob_map(*shown)
                # Of a network for all orders another pass takes as long as the evaluation did.
                entropy = model.entropy_map(*shown) if last else None
            if log_prob is not None:
                self._picture("surprise", pictures.heat_maps(log_prob), step)
            if entropy is not None:
                maps = pictures.entropies(entropy, spec.num_levels)
                self._picture("surprise_expected", maps, step)
        self._next_chart = limits.now() + 20 * (limits.now() - started)

    def _picture(self, name: str, picture: Tensor | None, step: int) -> None:
        """Show a picture, where there is one."""
        if picture is not None:
            self._record.picture(f"view/{name}", picture, step)

    def _contexts(self, model: DensityModel, number: int) -> Tensor | None:
        """Every label in turn; other contexts as they come in valid."""
        wanted = model.context
        if wanted is None:
            return None
        if not wanted.shape:
            return torch.arange(number, device=self._device) % wanted.num_features
        valid = self._splits.examples("valid", wanted)
        return valid[torch.arange(number) % len(valid)].to(self._device).context
