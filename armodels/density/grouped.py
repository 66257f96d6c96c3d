"""Drawing from a network whose steps come in groups: a pass for each group."""

import torch
from torch import Tensor
from tqdm import tqdm

from armodels.density.walk import score
from armodels.heads import Head, precise
from armodels.networks.grouped import GroupedNetwork


def draw_groups(
    net: GroupedNetwork,
    head: Head,
    noise: Tensor,
    temperature: float,
    context: Tensor | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """What a walk draws under the noise, all values of a group at once.

    Args:
        net: Says what the groups are.
        head: Turns noise into values.
        noise: (B, S, num_noise), uniform in (0, 1).
        temperature: Of the draws, 0 or more.
        context: (B, *context.shape) what the events are conditioned on, if anything.
        progress: Show a bar with an ETA once a second has passed.

    Returns:
        (B, S, K) values and their log-probabilities (B, S), nats, at temperature 1.
    """
    pack = net.pack()
    state = net.start(pack, len(noise), context)
    values, last, log_probs = [], None, []
    bar = tqdm(
        net.groups, desc="sampling", unit="group", delay=1, disable=None if progress else True
    )
    for g, steps in enumerate(bar):
        params, state = net.group_params(last, g, state, pack)
        params = precise(params)
        drawn = head.sample(params, noise[:, steps], temperature)
        net.write(drawn, steps, state)
        values.append(drawn)
        log_probs.append(score(head, params, drawn))
        last = drawn[:, -1]
    return torch.cat(values, 1), torch.cat(log_probs, 1)
