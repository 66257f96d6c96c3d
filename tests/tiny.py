"""Tiny data and a model for tests of the command line, as a user's own: by ``_target_``."""

import logging
import os
import signal
import tempfile

import numpy as np
import torch
from cases import random_events

from armodels.data.base import TRAIN_SEED, Source, Splits
from armodels.networks.made import MADE
from armodels.spec import ContextSpec, DataSpec


class Tiny(Source):
    """Random events with dependent values; levels=null: real ones.

    The label of an event with levels is its first value, its features are the first two.
    """

    blocks = 0

    def __init__(self, kind, shape, levels, dynamic, num_train, damage, seed):
        self.kind, self.shape, self.levels = kind, shape, levels
        self.dynamic, self.num_train, self.damage, self.seed = dynamic, num_train, damage, seed
        if damage == "noise":
            logging.getLogger("elsewhere").warning("a package has something to say")

    @property
    def spec(self):
        measure = "density" if self.levels is None else "probability"
        features = ContextSpec("features", (2,), None)
        label = () if self.levels is None else (ContextSpec("label", (), self.levels),)
        return DataSpec(
            f"tiny-{self.kind}",
            self.kind,
            self.shape,
            self.levels,
            measure,
            contexts=(*label, features),
        )

    def load(self):
        assert self.damage != "loud", "the data are read"
        spec = self.spec
        parts = [
            random_events(spec, n, 10 * self.seed + i).to(spec.dtype)
            for i, n in enumerate((self.num_train, 21, 23))
        ]
        if self.damage in ("missing", "range", "disk"):
            bad = {"missing": float("nan"), "range": 200, "disk": 200}[self.damage]
            parts[0][-1].view(-1)[-1] = bad
        train = parts[0]
        if self.damage == "disk":
            with tempfile.TemporaryFile() as file:
                train = np.memmap(file, train.numpy().dtype, "w+", shape=tuple(train.shape))
            train[:] = parts[0].numpy()
        return Splits(
            spec,
            train,
            *parts[1:],
            transform=self._draw if self.dynamic else None,
            contexts={
                "label": lambda: [part.flatten(1)[:, 0] for part in parts],
                "features": lambda: [part.flatten(1)[:, :2].float() for part in parts],
            },
        )

    def _draw(self, rows, generator):
        """Move each row by one level or none, at random.

        TINY_SIGNAL="SIGTERM 3" in the environment sends that signal to this very process while
        it draws for the third block of training steps; "SIGTERM 3 all" counts those of all runs.
        """
        name, _, at = os.environ.get("TINY_SIGNAL", "").partition(" ")
        if name and generator.initial_seed() != TRAIN_SEED:
            counted = Tiny if at.endswith(" all") else self
            counted.blocks += 1
            if counted.blocks == int(at.partition(" ")[0]):
                os.kill(os.getpid(), signal.Signals[name])
        noise = torch.randint(2, (len(rows), 1), generator=generator).view(-1, 1, 1, 1)
        return ((rows + noise) % self.levels).to(self.spec.dtype)


class OnlyImages(MADE):
    """A network that takes images alone."""

    kinds = frozenset({"image"})
