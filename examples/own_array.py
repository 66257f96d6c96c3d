"""An array of your own: train on it, score, sample and complete it."""

import numpy as np
import torch

import armodels

rows = np.random.default_rng(0).integers(0, 2, (1000, 8))
rows[:, 4:] = rows[:, :4]  # the second half repeats the first
splits = armodels.Splits.of(rows)
model = armodels.build("made", splits.spec, hidden_sizes=[100])
result = armodels.fit(model, splits, optimizer=lambda params: torch.optim.Adam(params, lr=0.02))
print(f"{result.metrics['test']['nats']:.3f} nats; the truth is {4 * np.log(2):.3f}")
x = splits.test[:4]
print("log p", result.model.log_prob(x), "samples", result.model.sample(4))
print("completed", result.model.complete(x, torch.arange(8) < 4).values)
