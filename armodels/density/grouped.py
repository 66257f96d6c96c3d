"""Walking a network whose steps come in groups: a pass for each group."""

import torch
from torch import Tensor
from tqdm import tqdm

from armodels.density.walk import Choose, score
from armodels.heads import Head, precise
from armodels.networks.grouped import GroupedNetwork


def walk_groups(
    net: GroupedNetwork,
    head: Head,
    n: int,
    choose: Choose,
    context: Tensor | None = None,
    *,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """What a walk writes, all values of a group at once.

    Args:
        net: Says what the groups are.
        head: Scores what is chosen.
        n: Events, B.
        choose: Is asked once for each group, in turn, by a slice of steps.
        context: (B, *context.shape) what the events are conditioned on, if anything.
        progress: Show a bar with an ETA once a second has passed.

    Returns:
        (B, S, K) values and their log-probabilities (B, S), nats, at temperature 1.
    """
    pack = net.pack()
    state = net.start(pack, n, context)
    values, last, log_probs = [], None, []
    bar = tqdm(
        net.groups, desc="sampling", unit="group", delay=1, disable=None if progress else True
    )
    for g, steps in enumerate(bar):
        params, state = net.group_params(last, g, state, pack)
        params = precise(params)
        chosen = choose(steps, params)
        net.write(chosen, steps, state)
        values.append(chosen)
        log_probs.append(score(head, params, chosen))
        last = chosen[:, -1]
    return torch.cat(values, 1), torch.cat(log_probs, 1)
