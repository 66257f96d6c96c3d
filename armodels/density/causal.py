"""Whether a network hears a value before its step: what it would say were no likelihood.

Shapes: B batch, S steps, K values per step, P parameters per step.
"""

import torch
from torch import Tensor

from armodels.density.autoregressive import AutoregressiveModel
from armodels.networks.base import check_params

MAX_LOOKED_AT = 16
"""Steps at which it is looked whether a network hears a value too early."""


def require_causal(model: AutoregressiveModel, x: Tensor, context: Tensor | None = None) -> None:
    """Look whether the network hears a value before its step, as far as some steps tell.

    Two events, the given one and its opposite, take each other's values from a step on: the
    parameters up to that step must stay. Neither may the company of other events move them,
    nor what the network does to its input.

    Args:
        model: Of the network.
        x: (1, *event).
        context: (1, *context.shape), where the model has one.

    Raises:
        ValueError: What is called a likelihood would be none.
    """
    net = model.net
    one, last = model._to_steps(x), net.num_steps - 1
    levels = model.spec.levels
    other = one + 1 if levels is None else ((one.long() + 1) % levels).to(one.dtype)
    num = min(last + 1, MAX_LOOKED_AT)
    steps = sorted({round(i * last / max(num - 1, 1)) for i in range(num)})
    several = torch.cat([one.repeat(len(steps), 1, 1), other.repeat(len(steps), 1, 1)])
    changed = several.clone()
    for row, s in enumerate(steps):
        changed[row, s:] = other[0, s:]
        changed[len(steps) + row, s:] = one[0, s:]
    events = model._to_event(torch.cat([one, other, changed]))
    contexts = None if context is None else context.expand(len(events), *context.shape[1:])
    before = events.clone()
    params = check_params(net, net(events, contexts), len(events))
    if not events.equal(before):
        raise ValueError(
            f"model {type(net).__name__} writes to the events that it is given; let its "
            f"forward copy them first, x = x.clone()"
        )
    alone = check_params(net, net(x, context), 1)[0]
    bound = torch.finfo(params.dtype).eps ** 0.5 * (1 + params[:2].abs().amax())
    if bool(((params[0] - alone).abs() > bound).any()):
        raise ValueError(
            f"model {type(net).__name__} has no likelihood: its parameters of an event "
            f"change with the other events of the batch, or from call to call"
        )
    for row, s in enumerate(steps):
        for half in (0, 1):
            found = params[2 + half * len(steps) + row, : s + 1]
            moved = (found - params[half, : s + 1]).abs().flatten(1).amax(1) > bound
            if moved.any():
                raise ValueError(
                    f"model {type(net).__name__} has no likelihood: its parameters of "
                    f"step {int(moved.nonzero()[0])} change with values that are written at "
                    f"step {s} or later; row s of what forward returns may depend only on "
                    f"values written before step s"
                )
