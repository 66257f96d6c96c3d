# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own table: density, imputation, anomalies
#
# A table of numbers is all that is needed. Here it is one with a known law, so that every answer
# can be checked; put your own `pandas.DataFrame` in its place. From a shell the same is `armodels
# train data=table data.path=mine.csv`, which reads the file, asks about what is ambiguous and
# standardizes by itself.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import armodels

draw = np.random.default_rng(0)
num = 4000
hours = draw.gamma(4, 1.5, num)  # of sunshine
degrees = 12 + 1.5 * hours + draw.normal(0, 2, num)
weekend = draw.random(num) < 2 / 7
visitors = np.where(weekend, 3, 1) * np.exp(3 + 0.08 * degrees + draw.normal(0, 0.25, num))
ices = visitors * (0.1 + 0.02 * np.maximum(degrees - 15, 0)) + draw.normal(0, 5, num)
table = pd.DataFrame({"hours": hours, "degrees": degrees, "visitors": visitors, "ices": ices})
table.describe().round(1)

# %% [markdown]
# ## Data
#
# `Splits.of` takes the table, cuts off a tenth each for validation and test, and says what it is.
# We take logarithms of what spreads over decades and standardize; both change the density by a
# constant, which `shift` keeps, so that nats stay those of the table's own units.

# %%
raw = table.assign(visitors=np.log(table.visitors))
centre, spread = raw.mean(), raw.std()
splits = armodels.Splits.of(((raw - centre) / spread).astype("float32"), name="beach")
print(splits.spec.kind, splits.spec.shape, splits.spec.measure)
print("rows:", {part: len(splits.split(part)) for part in ("train", "valid", "test")})

# %% [markdown]
# ## Density
#
# A MADE whose conditionals are mixtures of ten Gaussians, against one Gaussian of the whole
# table. The number is exact: nats of the test rows, lower is better.

# %%
quick = {"accelerator": "cpu", "threads": 1, "quiet": True}
gauss = armodels.build("gmm", splits.spec, num_components=1)
gauss_nats = armodels.fit(gauss, splits, **quick).metrics["test"]["nats"]
model = armodels.build("made", splits.spec, hidden_sizes=[64, 64])
result = armodels.fit(
    model,
    splits,
    max_epochs=25,
    batch_size=100,
    eval_every=2,
    optimizer=lambda params: torch.optim.AdamW(params, lr=4e-3, weight_decay=0.01),
    **quick,
)
test = result.metrics["test"]
print(f"one Gaussian: {gauss_nats:.3f} nats")
print(f"MADE: {test['nats']:.3f} ± {test['nats_ci95']:.3f} nats")
shift = float(np.log(spread).sum())  # from standardized units to those of raw
print(f"in the units of the table (visitors as logarithms): {test['nats'] + shift:.3f} nats")

# %% [markdown]
# Do its draws look like the data? Weekends are no column of the table, and yet the model has
# found that there are two kinds of days.

# %%
drawn = model.sample(1000, generator=torch.Generator().manual_seed(0)).numpy()
drawn = pd.DataFrame(drawn * spread.to_numpy() + centre.to_numpy(), columns=table.columns)
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained")
for ax, (x, y) in zip(
    axes, [("hours", "degrees"), ("degrees", "visitors"), ("visitors", "ices")], strict=True
):
    ax.scatter(raw[x][:1000], raw[y][:1000], s=2, label="table")
    ax.scatter(drawn[x], drawn[y], s=2, label="model")
    ax.set(
        xlabel=x.replace("visitors", "log visitors"), ylabel=y.replace("visitors", "log visitors")
    )
axes[0].legend()
plt.show()

# %% [markdown]
# ## Imputation
#
# Some cells are missing. `complete` keeps what is known, bit for bit, and draws the rest given
# it: exactly where what is missing comes last in the order, else by weighted particles. Many
# draws a row give an interval and not only a guess. Here the visitors are missing, and known all
# the same.

# %%
rows = splits.test[:150]
known = torch.tensor([True, True, False, True])
completion = model.complete(
    rows.repeat_interleave(30, 0),
    known,
    num_particles=50,
    generator=torch.Generator().manual_seed(0),
)
print(completion.method, "with", completion.num_particles, "particles")
guesses = completion.values[:, 2].view(150, 30)
truth = rows[:, 2]
low, middle, high = guesses.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=1)
inside = ((truth >= low) & (truth <= high)).float().mean()
error = (middle - truth).abs().mean()
print(f"the 90 % interval holds {inside:.0%} of the true values")
print(f"mean error {error:.3f}, of the column's mean {truth.abs().mean():.3f} standard deviations")
assert inside > 0.75
assert error < truth.abs().mean() / 2

# %% [markdown]
# Of a row of which only the weather is known, the visitors are drawn exactly, as `hours` and
# `degrees` come first in the order: both kinds of days appear.

# %%
day = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).repeat(2000, 1)
exact = model.complete(day, torch.tensor([True, True, False, False]))
print(exact.method)
plt.figure(figsize=(5, 2.4))
plt.hist(np.exp(exact.values[:, 2].numpy() * spread["visitors"] + centre["visitors"]), 60)
plt.xlabel("visitors on a day of that weather")
plt.show()

# %% [markdown]
# ## Anomalies
#
# A row is strange if the density says so. We plant 20 rows into the test split whose columns are
# each quite usual, and whose combination is not: they are other rows, shuffled column by column.

# %%
draws = torch.Generator().manual_seed(1)
strange = torch.stack([column[torch.randperm(20, generator=draws)] for column in rows[:20].T], 1)
mixed = torch.cat([splits.test[20:], strange])
with torch.no_grad():
    scores = -model.log_prob(mixed)
    by_gauss = -gauss.log_prob(mixed)
planted = torch.arange(len(mixed)) >= len(mixed) - 20


def auc(score):
    """The probability that a planted row has a higher score than another one."""
    return (score[planted][:, None] > score[~planted]).float().mean().item()


print(f"AUC {auc(scores):.3f}, by one Gaussian {auc(by_gauss):.3f}")
assert auc(scores) > 0.8
top = scores.topk(20).indices
print("planted among the 20 strangest rows:", int(planted[top].sum()))

# %% [markdown]
# Which cell is to blame? The log-density of a row is a sum over its columns, each given those
# before.

# %%
with torch.no_grad():
    blame = -model.conditional_log_prob(mixed[top[:8]])
strangest = pd.DataFrame(blame.numpy(), columns=[f"nats of {name}" for name in table])
strangest.insert(0, "planted", planted[top[:8]].numpy())
strangest.style.format(precision=1).hide().background_gradient(axis=None, cmap="Reds")
