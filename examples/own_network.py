"""A network of your own: ``forward`` alone lets it train, sample and complete exactly."""

import torch

import armodels
from armodels import heads, orders
from armodels.networks.base import Network


class Markov(Network):
    kinds = frozenset({"vector"})

    def __init__(self, spec, num_params, order):
        super().__init__(spec, num_params, order)
        self.logits = torch.nn.Parameter(torch.zeros(spec.num_dims, spec.levels, num_params))

    def forward(self, x, context=None):  # each value given the one before: (B, D) -> (B, D, P)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        return self.logits[torch.arange(x.shape[1]), before.long()]


splits = armodels.load_data("toy", name="copy_chain", num_train=1000)
spec, head = splits.spec, heads.auto(splits.spec)
net = Markov(spec, head.num_params, orders.make("raster", spec.shape))
model = armodels.AutoregressiveModel(net, head)
fast = lambda params: torch.optim.Adam(params, lr=0.05)  # noqa: E731
result = armodels.fit(model, splits, optimizer=fast, name="markov")
print("nats above the entropy:", result.metrics["gap_to_truth"], model.sample(4))
