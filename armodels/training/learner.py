"""One candidate in training: a model with all that moves its weights."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from armodels import draws, show
from armodels.density.base import DensityModel
from armodels.objectives import Objective
from armodels.schedules import Schedule
from armodels.training import sharded
from armodels.training.average import Average
from armodels.training.batches import Part
from armodels.training.settings import Settings


def default_objective(model: DensityModel) -> Objective:
    """What the model itself names."""
    return model.default_objective()


@final
@dataclass(frozen=True)
class Candidate:
    """One setting that is trained; of several, the best on valid is kept.

    Attributes:
        model: Makes the model, with the weights that training begins with.
        optimizer: Parameters -> what moves them.
        schedule: Factor on the learning rates, a function of the step.
        objective: Model -> what training maximizes.
        initialize: Whether the model is initialized from the training split before the steps.
        values: By which it differs from other candidates: dotted key -> value.
        config: What its checkpoints keep, so that the model can be built again.
    """

    model: Callable[[], DensityModel]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    schedule: Schedule
    objective: Callable[[DensityModel], Objective] = default_objective
    initialize: bool = True
    values: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def typed(self) -> str:
        """Its values as a user types them."""
        return " ".join(show.override(key, value) for key, value in self.values.items())


def placed(module: nn.Module, settings: Settings, device: torch.device) -> Any:
    """A module on its device, in the precision of its weights.

    Args:
        module: Changed in place.
        settings: Say the precision.
        device: Where it goes.
    """
    # Fabric converts to float64 too, but after a checkpoint was read into float32.
    module = module.double() if settings.precision == "64-true" else module
    return module.to(device)


def require_rates(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless an optimizer has the learning rates that a schedule scales."""
    if not all("lr" in group for group in optimizer.param_groups):
        raise ValueError(
            f"optimizer {type(optimizer).__name__} has no learning rate, which the schedule "
            f'scales at each step; its class must say one in its defaults, {{"lr": 0.001}}, and '
            f"use it in its steps"
        )


def _unfit(name: str, each: object, num_examples: int) -> Exception:
    """Why what an objective gave is not one number for each example, with a gradient."""
    wanted = "it must give one number for each, a tensor"
    if not isinstance(each, Tensor):
        kind = type(each).__name__
        return TypeError(f"objective {name} gives {kind} for {num_examples} examples; {wanted}")
    if each.shape != (num_examples,):
        return ValueError(
            f"objective {name} gives values of shape {tuple(each.shape)} for {num_examples} "
            f"examples; {wanted}"
        )
    return ValueError(_without_gradient(name))


def _without_gradient(name: str) -> str:
    return (
        f"objective {name} gives the model no gradient: compute it, and what forward of the model "
        f"or its network returns, by torch, from the weights, without detach or no_grad"
    )


@final
class Learner:
    """A model with all that moves its weights.

    Args:
        candidate: What is trained.
        settings: Of the training.
        fabric: Device, precision and processes.
        model: Its model, where it is built already; None: it is built now.
    """

    def __init__(
        self,
        candidate: Candidate,
        settings: Settings,
        fabric: Fabric,
        model: DensityModel | None = None,
    ):
        self.candidate = candidate
        self.schedule = candidate.schedule
        self.model: DensityModel = placed(model or candidate.model(), settings, fabric.device)
        objective = candidate.objective(self.model)
        self._objective = type(objective).__name__
        self.net: Any = placed(objective, settings, fabric.device)
        params = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = candidate.optimizer(params) if params else None
        self.optimizer: Any = optimizer  # Fabric wraps it before the first step.
        if optimizer is not None:
            require_rates(optimizer)
        self.rates: list[float] = [g["lr"] for g in optimizer.param_groups] if optimizer else []
        self.average = Average(self.model, settings.ema) if settings.ema and params else None
        self._empty: DensityModel | None = None
        self._has_moved = False  # Gradients are looked for once: each look takes time.
        self._settings = settings
        self._fabric = fabric

    def restart_average(self) -> None:
        """Let the average begin at the weights as they are now."""
        if self.average:
            self.average = Average(self.model, self.average.decay)

    def take_up(self, state: Mapping[str, Any] | None, path: Path) -> None:
        """Let the optimizer go on from a saved state, under the values that it has now.

        Args:
            state: Of the optimizer, as it was saved.
            path: Of the checkpoint, for sentences.

        Raises:
            ValueError: It is that of other parameters.
        """
        if not self.optimizer:
            return
        now = [{**group} for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"checkpoint {path} does not fit the optimizer: {error}; make it of the same "
                f"parameters, in the same groups, or train into another directory"
            ) from None
        # The saved state brings the values of the run so far; those of a changed config count.
        # Each step sets its own rate.
        for group, values in zip(self.optimizer.param_groups, now, strict=True):
            group.update({k: value for k, value in values.items() if k not in ("params", "lr")})

    def set_up(self) -> None:
        """Compile the objective and wrap it for devices, precision and processes."""
        net = self.net
        if self._settings.compile:
            # A graph is of one shape: the smaller batch that ends an epoch gets its own.
            graphs: dict[str, Any] = {"mode": "reduce-overhead", "dynamic": False}
            net = torch.compile(net, **graphs if self._settings.cuda_graphs else {})
        if self._settings.strategy == "ddp":
            self.net, self.optimizer = self._fabric.setup(net, self.optimizer)
            return
        self._empty = sharded.without_weights(self.model)
        before = dict(self.model.named_parameters())
        self.net = self._fabric.setup_module(net)
        sharded.repart(self.optimizer, before, self.model)
        self.optimizer = self._fabric.setup_optimizers(self.optimizer)
        self.average = self.average and self.average.moved(self.model)

    def step(
        self, parts: Sequence[Part], num_examples: int, factor: float, number: int
    ) -> tuple[Tensor, Tensor]:
        """Move the weights once.

        Args:
            parts: This process's shares of the batch, one after another.
            num_examples: Of the batches of all processes.
            factor: On the learning rates.
            number: Of the step, counted from 1.

        Returns:
            The sum of the objective over this process's examples, and the gradient's norm.

        Raises:
            TypeError: The objective is no tensor.
            ValueError: It is not one number for each example, or has no gradient.
        """
        fabric = self._fabric
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        log_prob = torch.zeros((), device=fabric.device)
        for i, part in enumerate(parts):
            held = fabric.no_backward_sync(self.net, enabled=i + 1 < len(parts))
            with held, draws.shared(part.rows, part.size):
                each = self.net(*part.batch)
                size = len(part.batch.x)
                if not isinstance(each, Tensor) or each.shape != (size,) or not each.requires_grad:
                    raise _unfit(self._objective, each, size)
                objective = each.sum() if part.counts else each.sum() * 0.0
                # Processes average their gradients: scaled so that each example counts once.
                fabric.backward(objective * (-fabric.world_size / num_examples))
            log_prob += objective.detach()
        if not self._has_moved:
            if all(p.grad is None for p in self.model.parameters()):
                raise ValueError(_without_gradient(self._objective))
            self._has_moved = True
        norm = sharded.whole(self._clip())
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(number)
        return log_prob, norm

    def _clip(self) -> Tensor:
        """The gradient's norm, before it is clipped where that is asked for."""
        limit = self._settings.max_grad_norm
        # fp16 gradients still carry the loss scale: Fabric unscales them, then clips.
        if limit is None and self._settings.precision != "16-mixed":
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            return torch.nn.utils.get_total_norm(grads)
        norm: Any = self._fabric.clip_gradients(
            self.net, self.optimizer, max_norm=limit or math.inf, error_if_nonfinite=False
        )
        return norm

    @contextlib.contextmanager
    def holding(self, weights: str) -> Iterator[DensityModel]:
        """Inside the block there is a model with these weights; all processes must ask together.

        Args:
            weights: ``"ema"``, the average, where there is one, or ``"raw"``.
        """
        average = self.average if weights == "ema" else None
        if self._empty is not None:  # the model's own weights are parted
            state = average.state_dict() if average else dict(self.model.named_parameters())
            yield sharded.filled(self._empty, sharded.whole(state), self._fabric.device)
            return
        with average.applied() if average else contextlib.nullcontext():
            yield self.model

    def state_dict(self) -> dict[str, Any]:
        """The weights and their average, for a checkpoint."""
        return {
            "model": sharded.whole_for_first(self.model.state_dict()),
            "ema": sharded.whole_for_first(self.average.state_dict()) if self.average else None,
        }
