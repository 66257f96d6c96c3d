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
# # Why likelihoods go wrong
#
# A likelihood is a number that a program prints, and a wrong one looks like a right one. Most of
# the bugs below stood, or stand, in public code. Here each is planted into a small model of
# pictures with **nine binary pixels**: there are only 2^9 = 512 such pictures, so we add up the
# probabilities of all of them and *see* whether they are a distribution.

# %%
import itertools
import math

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

import armodels

digits = armodels.load_data("digits")


def patches(x):
    """How dark each of 3 x 3 patches of the digits is."""
    return F.adaptive_avg_pool2d(x[..., 1:-1].float(), 3).flatten(1)


cut = patches(digits.train).median(0).values  # half of the digits are darker there
parts = (getattr(digits, part) for part in ("train", "valid", "test"))
splits = armodels.Splits.of(*((patches(x) > cut).long() for x in parts))
everything = torch.tensor(list(itertools.product([0, 1], repeat=9)))  # all 512 pictures
test = splits.test
print(splits.spec.kind, splits.spec.shape, "levels", splits.spec.levels)

# %% [markdown]
# ## The right one
#
# Trained by maximum likelihood; its probabilities sum to one, before and after training.

# %%
quick = {"max_epochs": 15, "eval_every": 5, "accelerator": "cpu", "threads": 1, "quiet": True}


def adam(params):
    return torch.optim.Adam(params, lr=0.02)


model = armodels.build("made", splits.spec, hidden_sizes=[64])
armodels.fit(model, splits, optimizer=adam, **quick)
table = []


def note(bug, reported, mass):
    """One line of the table: nats as the bug reports them, and what all probabilities sum to."""
    table.append({"bug": bug, "reported nats": reported, "sum of 512 probabilities": mass})
    print(f"{bug}: {reported:.3f} nats, sum {mass:.4f}")


@torch.no_grad()
def look(bug, log_prob):
    note(bug, -log_prob(test).mean().item(), log_prob(everything).exp().sum().item())


look("none", model.log_prob)

# %% [markdown]
# Nine fair coins have 9 log 2 = 6.238 nats; what lies between is what the model knows.
#
# ## 1. A pixel that sees itself
#
# A mask of the first layer that includes the pixel's own place (mask B where mask A belongs), a
# transformer that is not shifted, colours in the wrong channels: the network reads the answer.
# The training loss falls to nearly nothing, and the "likelihood" is superb. The probabilities of
# all pictures sum to far more than one: no distribution has that number.


# %%
class Leaky(nn.Module):
    """A masked perceptron; ``diagonal=0`` lets each output see its own pixel."""

    def __init__(self, diagonal):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(9, 9 * 16), nn.Linear(9 * 16, 9)
        see = torch.ones(9, 9).tril(diagonal)  # (output, input)
        self.register_buffer("first_mask", see.repeat_interleave(16, 0))
        self.register_buffer("last_mask", torch.eye(9).repeat_interleave(16, 1))

    def logits(self, x):
        hidden = F.linear(x.float(), self.first.weight * self.first_mask, self.first.bias).relu()
        return F.linear(hidden, self.last.weight * self.last_mask, self.last.bias)

    def log_prob(self, x):
        return -F.binary_cross_entropy_with_logits(
            self.logits(x), x.float(), reduction="none"
        ).sum(1)


def trained(net, log_prob=None, steps=300):
    log_prob = log_prob or net.log_prob
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x = splits.train[torch.randint(len(splits.train), (100,), generator=draws)]
        loss = -log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


look("nothing planted, by hand", trained(Leaky(-1)).log_prob)
leaky = trained(Leaky(0))
look("a pixel sees itself", leaky.log_prob)

# %% [markdown]
# The sampler tells, too, if you look: it writes a pixel before it is known, so what it draws has
# nothing of the number that was printed.
#
# ## 2. A sigmoid where logits belong
#
# `forward` ends in a sigmoid, and the loss is the one *with logits*, which takes another. Still a
# distribution, but no probability of a one can leave [σ(0), σ(1)] = [0.5, 0.731]: the network
# cannot say "surely black". On binarized MNIST nothing below some 504 nats can be reached that
# way, where NADE has 88.


# %%
class Twice(Leaky):
    def logits(self, x):
        return super().logits(x).sigmoid()


look("two sigmoids", trained(Twice(-1)).log_prob)
floor = -(test * math.log(0.7311) + (1 - test) * math.log(0.5)).sum(1).mean().item()
print(f"no such network is better than {floor:.3f} nats here")

# %% [markdown]
# ## 3. Logits averaged over orders
#
# A model trained for many orders may be averaged over them. What is averaged must be
# probabilities of whole pictures, `logsumexp(log p(x | order)) - log N`. Averaging the *logits*
# of each pixel under different orders mixes conditionals that condition on different pixels:
# their product is no distribution.

# %%
mixture = armodels.build("made", splits.spec, hidden_sizes=[64], order="random", num_orders=8)
armodels.fit(mixture, splits, optimizer=adam, **quick)
look("orders averaged rightly", mixture.log_prob)


def averaged_logits(x):
    logits = []
    for order in mixture.orders:
        one = mixture.model.with_order(order)
        back = torch.empty(len(x), 9)
        back[:, one.net.order_table[:, 0]] = one.net(x)[..., 0]  # to the pixels' own places
        logits.append(back)
    mean = torch.stack(logits).mean(0)
    return -F.binary_cross_entropy_with_logits(mean, x.float(), reduction="none").sum(1)


look("orders averaged as logits", averaged_logits)

# %% [markdown]
# ## 4. A density called a probability
#
# Bits become real numbers by noise, y = x + u with u uniform, and a density of y is fitted. Its
# log-density is a *lower bound* on log P(x) on average, if nothing is rescaled. Rescale to [0, 1]
# or [-1, 1] and forget the Jacobian, and each of D values shifts the number by log 2 or log 256
# or whatever the scale was. And without noise the density of a few points has no upper limit: the
# narrower the Gaussians, the better the "likelihood".

# %%
noise = torch.rand(len(splits.train), 9, generator=torch.Generator().manual_seed(1))


def mixture_density(x, scale):
    """Nats of a mixture of Gaussians on (x + u) / scale, without the Jacobian."""
    rows = (x + noise[: len(x)]) / scale
    data = armodels.Splits.of(rows.float(), name=f"noisy-{scale}")
    density = armodels.build("gmm", data.spec, num_components=20, covariance_type="diag")
    density.initialize([data.train])
    return -density.log_prob(data.test).mean().item()


exact = armodels.build("gmm", splits.spec, num_components=20, covariance_type="diag")
exact.initialize([splits.train])
look("Gaussians, probabilities of cells", exact.log_prob)
for scale in (1, 2, 256):
    note(
        f"Gaussians, density of (x + u) / {scale}", mixture_density(splits.train, scale), math.nan
    )
narrow = torch.distributions.Normal(0.0, 1e-3)
spikes = narrow.log_prob(torch.zeros(9)).sum() - math.log(512)
note("512 narrow Gaussians, no noise", -spikes.item(), math.nan)

# %% [markdown]
# The same model in four units, and none of the last three is a number to set beside a
# probability.
#
# ## 5. Statistics of the batch
#
# Batch normalization in training mode, or any statistic of the other rows, makes p(x) a function
# of the company that x keeps. A picture has no probability then, and leaks through the others'
# mean.


# %%
class Company(Leaky):
    def __init__(self):
        super().__init__(-1)
        self.norm = nn.BatchNorm1d(9 * 16)

    def logits(self, x):
        hidden = F.linear(x.float(), self.first.weight * self.first_mask, self.first.bias)
        return F.linear(
            self.norm(hidden).relu(), self.last.weight * self.last_mask, self.last.bias
        )


company = trained(Company())
with torch.no_grad():
    places = [slice(i, i + 7) for i in range(0, 240, 7)]
    each = [
        company.log_prob(torch.cat([everything[i : i + 1], test[places[i % len(places)]]]))[0]
        for i in range(512)
    ]
    mass = torch.stack(each).exp().sum().item()
    nats = -company.log_prob(test).mean().item()
    companies = [company.log_prob(torch.cat([test[:1], test[i : i + 7]]))[0] for i in (1, 9, 17)]
note("batch statistics, each picture among seven others", nats, mass)
print("log p of one picture in three companies:", [round(one.item(), 3) for one in companies])

# %% [markdown]
# ## 6. Masks, or a binarization, drawn at every call
#
# A network whose masks are drawn anew in `forward`, dropout that is left on, or a test set that
# is binarized anew at each evaluation: `log_prob` is no function any more. The best of many looks
# is what gets written down.

# %%
dropped = armodels.build("made", splits.spec, hidden_sizes=[64], dropout=0.5)
armodels.fit(dropped, splits, optimizer=adam, **quick)
look("dropout, off", dropped.log_prob)
dropped.train()
with torch.no_grad():
    looks = [-dropped.log_prob(test).mean().item() for _ in range(200)]
note("dropout left on, the mean look", sum(looks) / 200, math.nan)
note("dropout left on, the best of 200 looks", min(looks), math.nan)
dropped = dropped.eval()

# %% [markdown]
# ## 7. log(p + 0.01)
#
# A small number keeps the logarithm finite. It also gives probability to both sides of every
# pixel: (1 + 2 · 0.01) a pixel, and 1.02^9 in all.


# %%
@torch.no_grad()
def padded(x, eps=0.01):
    p = trained_net.logits(x).sigmoid()
    return torch.where(x == 1, p + eps, 1 - p + eps).log().sum(1)


trained_net = trained(Leaky(-1))
look("log(p + 0.01)", padded)

# %% [markdown]
# ## 8. The mean of the means of batches
#
# 250 test pictures in batches of 240 make one whole batch and one of ten, and a mean of batch
# means counts the last ten as much as all the others. (A sampler for several processes pads with
# copies, so that some pictures count twice.) Where the files are sorted, as many data sets are,
# it shows:

# %%
with torch.no_grad():
    values = -model.log_prob(test).sort(descending=True).values
means = torch.stack([batch.mean() for batch in values.split(240)])
print(f"mean {values.mean():.3f} nats, mean of means {means.mean():.3f} nats")
note("mean of the means of batches", means.mean().item(), 1.0)

# %% [markdown]
# ## 9. A sampler that follows another order
#
# The likelihood is right, the sampler writes pixels in another order than the network was trained
# for. No sum shows it: what shows it is to count draws, or to ask the sampler for the
# log-probability of what it drew.

# %%
twisted = armodels.build("made", splits.spec, hidden_sizes=[64], order="random", order_seed=3)
armodels.fit(twisted, splits, optimizer=adam, **quick)
x, told = twisted.sample_with_log_prob(4000, generator=torch.Generator().manual_seed(0))
wrong = x[:, twisted.net.order_table[:, 0]]  # written in the order, taken for the raster
place = 2 ** torch.arange(8, -1, -1)


@torch.no_grad()
def misfit(draws):
    """Mean over outcomes of (drawn - expected)^2 / expected: about 1 if the sampler is right."""
    expected = 4000 * twisted.log_prob(everything).exp()
    drawn = torch.bincount((draws * place).sum(1), minlength=512)
    often = expected > 5
    return ((drawn - expected) ** 2 / expected)[often].mean().item()


print(f"chi^2 an outcome: {misfit(x):.2f} of the sampler, {misfit(wrong):.2f} of the twisted one")
print("its own log p, in nats:", -told.mean().item())
with torch.no_grad():
    print("log p of what was drawn:", -twisted.log_prob(x).mean().item())
    print("log p of the twisted draws:", -twisted.log_prob(wrong).mean().item())

# %% [markdown]
# ## All of them

# %%
pd.DataFrame(table).style.format(precision=3, na_rep="").hide()

# %% [markdown]
# ## What `armodels` does about it
#
# Every model of this package is enumerated like this by its tests, in many small forms; its steps
# must not move with later values, its sampler must draw what its score says, and hundreds of
# planted bugs show that these tests catch what they are there for: [how the proofs
# work](../proofs.md). Your own network is looked at wherever a likelihood is evaluated:


# %%
class Mine(armodels.Network):
    kinds = frozenset({"vector"})

    def __init__(self, spec, num_params, order):
        super().__init__(spec, num_params, order)
        self.net = leaky

    def forward(self, x, context=None):
        return self.net.logits(x)[..., None]


class Sociable(Mine):
    def forward(self, x, context=None):
        return trained_net.logits(x)[..., None] + x.float().mean()


for kind in (Mine, Sociable):
    try:
        armodels.evaluate(armodels.AutoregressiveModel.of(kind, splits.spec), test)
    except ValueError as error:
        print(error)
