"""Weights, gradients, moments and averages that are parted among processes (FSDP).

Each process keeps a part of every weight and gathers the others' for as long as it computes with
them: a block that stands alone (``stands_alone``) for its own turn, all else for a step. An
evaluation gathers the weights, without what training keeps beside them.

Source: Zhao et al., 2023, https://arxiv.org/abs/2304.11277, in PyTorch's second version.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from armodels.density.base import DensityModel


def strategy(num_processes: int) -> ModelParallelStrategy:
    """How Fabric parts what it sets up."""
    return ModelParallelStrategy(_part, data_parallel_size=num_processes, tensor_parallel_size=1)


def _part(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Part the weights of a module, in place."""
    own = mesh["data_parallel"]
    for inner in module.modules():
        if getattr(inner, "stands_alone", False):
            fully_shard(inner, mesh=own)
    fully_shard(module, mesh=own)
    return module


def without_weights(model: DensityModel) -> DensityModel:
    """A copy without room for weights, to be filled by ``filled`` once they are parted."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def filled(
    empty: DensityModel, weights: Mapping[str, Tensor], device: torch.device
) -> DensityModel:
    """The copy with these weights.

    Args:
        empty: As ``without_weights`` made it; it stays so.
        weights: By name, whole.
        device: Where they go.
    """
    model = copy.deepcopy(empty)
    for name, _ in [*model.named_parameters()]:
        place, _, last = name.rpartition(".")
        param = nn.Parameter(weights[name].to(device), requires_grad=False)
        setattr(model.get_submodule(place), last, param)
    return model


def repart(
    optimizer: torch.optim.Optimizer, before: Mapping[str, nn.Parameter], now: nn.Module
) -> None:
    """Let an optimizer go on with parted weights and moments.

    Args:
        optimizer: Of the whole weights.
        before: These, by name.
        now: Holds the parted ones.
    """
    after = dict(now.named_parameters())
    place = {id(param): after[name] for name, param in before.items()}
    moments = {param: value for param, value in optimizer.state.items()}
    optimizer.state.clear()
    for group in optimizer.param_groups:
        group["params"] = [place[id(param)] for param in group["params"]]
    for param, values in moments.items():
        own = place[id(param)]
        optimizer.state[own] = {key: like(value, own) for key, value in values.items()}


def like(value: Any, param: Tensor) -> Any:
    """A tensor of a weight's shape, parted as the weight is; what is of another shape stays."""
    if isinstance(value, Tensor) and isinstance(param, DTensor) and value.shape == param.shape:
        return distribute_tensor(value, param.device_mesh, param.placements)
    return value


def whole(state: Any) -> Any:
    """Nested tensors as they are without processes; all of them must ask together."""
    return tree_map(lambda one: one.full_tensor() if isinstance(one, DTensor) else one, state)


def whole_for_first(state: Any) -> Any:
    """As ``whole``, for the first process alone, which saves them; others get nothing for a part.

    Tensors go to main memory one by one: a device that holds a part may not hold all of them.
    """

    def gathered(one: Any) -> Any:
        if not isinstance(one, DTensor):
            return one
        full = one.full_tensor()
        return full.cpu() if torch.distributed.get_rank() == 0 else None

    return tree_map(gathered, state)
