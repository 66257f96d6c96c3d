"""By which sampler a verb draws, and what its walks took, in words and numbers."""

from collections.abc import Mapping
from typing import Any

from armodels import checkpoints, show
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.mixture import OrderMixture
from armodels.density.samplers import Sampler

KEYS = ("sampler", "block", "draft", "draft_steps")
"""Of a verb's config."""


def sampler_of(config: Mapping[str, Any], restored: checkpoints.Restored) -> Sampler:
    """The sampler that a verb's config asks for.

    Args:
        config: Of the verb.
        restored: The model that is drawn from; its draft is brought to the same device.

    Raises:
        FileNotFoundError: There is no such run to draft by.
        ValueError: What is asked for does not go together, or with the model.
    """
    named = {"name": config["sampler"], "block": config["block"]}
    draft, drafted = config["draft"], {"draft_steps": config["draft_steps"]}
    if draft is None:
        found = Sampler(**named, **drafted)
    else:
        Sampler(**named, draft=draft, **drafted)  # refuses what does not go together
        one = checkpoints.restore(str(draft), trust=config["trust"], device=str(restored.device))
        found = Sampler(**named, draft=one.model, **drafted)
    if found.name != "auto" and not isinstance(
        restored.model, (AutoregressiveModel, OrderMixture)
    ):
        raise ValueError(
            f"sampler is {found.name}, but {restored.model.description} draws all values at once "
            f"and walks no steps; leave sampler at auto"
        )
    return found


def options(sampler: Sampler) -> dict[str, Any]:
    """What a model's draws and completions are called with: nothing where all is left to it."""
    return {} if sampler.name == "auto" else {"sampler": sampler}


def numbers(sampler: Sampler) -> dict[str, float]:
    """What the walks took, by the names of an NPZ; empty of walks step by step."""
    tally = sampler.tally
    if not tally.passes:
        return {}
    found: dict[str, float] = {"passes": tally.passes, "whole_passes": tally.work}
    found["steps"] = tally.num_steps
    if sampler.name == "speculative":
        found["acceptance"] = tally.acceptance
    return found


def tell(sampler: Sampler) -> None:
    """Say what the walks took, where they were not taken step by step."""
    tally = sampler.tally
    if not tally.passes:
        return
    steps = tally.num_steps
    show.say(
        f"passes {tally.passes:,} for {steps:,} steps ({tally.passes / steps:.1%}), in whole "
        f"passes {tally.work:,.1f} ({tally.work / steps:.1%})"
    )
    if sampler.name == "speculative":
        show.say(f"draft  {tally.acceptance:.1%} of {tally.judged:,} drafted steps were accepted")
