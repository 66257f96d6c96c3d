"""A network of your own: ``forward`` alone lets it train, sample and complete exactly."""

from torch import nn

import armodels


class Markov(armodels.Network):
    kinds = frozenset({"vector"})

    def __init__(self, spec, num_params, order):
        super().__init__(spec, num_params, order)
        self.mlp = nn.Sequential(nn.Linear(1, 999), nn.ReLU(), nn.Linear(999, num_params))

    def forward(self, x, context=None):  # each value given the one before: (B, D) -> (B, D, P)
        return self.mlp(nn.functional.pad(x[:, :-1, None].float(), (0, 0, 1, 0), value=-1.0))


splits = armodels.load_data("toy", name="copy_chain", num_train=1000, num_valid=500)
result = armodels.fit(armodels.AutoregressiveModel.of(Markov, splits.spec), splits)
