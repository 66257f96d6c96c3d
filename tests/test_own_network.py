"""A network of one's own: what it cannot do is one sentence, not a failure deep in torch."""

import re

import pytest
import torch
from cases import BITS
from torch import Tensor, nn

from armodels import orders
from armodels.networks.base import Network


class Own(Network):
    """A logit for each step, which hears nothing."""

    kinds = frozenset({"vector"})

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return x.new_zeros(len(x), self.num_steps, self.num_params, dtype=torch.float)


def refuses(sentence: str):
    """The block must raise this very ValueError."""
    return pytest.raises(ValueError, match=f"^{re.escape(sentence)}$")


def own(kind: type[Network] = Own, spec=BITS) -> Network:
    return kind(spec, 1, orders.make("raster", spec.shape))


@pytest.mark.parametrize("name", ["spec", "num_params", "order", "order_table", "context"])
def test_what_a_network_keeps_is_no_name_for_weights(name):
    net = own()
    for weights in (nn.Parameter(torch.zeros(3)), nn.Linear(2, 2)):
        with refuses(
            f"model Own sets self.{name}, which every network has for what it is about; "
            f"call the weights by another name"
        ):
            setattr(net, name, weights)
    net.table = nn.Parameter(torch.zeros(3))
    assert net.order_table.flatten().tolist() == list(range(net.num_steps))
