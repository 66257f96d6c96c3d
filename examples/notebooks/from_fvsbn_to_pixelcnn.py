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
# # From FVSBN to PixelCNN on one data set
#
# Thirty years of autoregressive models on the same 1,797 digits of 8 x 8 pixels and 17 levels,
# each trained for seconds, all scored exactly on the same test split. Each step of the way adds
# one idea to p(x) = p(x₁) p(x₂ | x₁) p(x₃ | x₁, x₂) …

# %%
import matplotlib.pyplot as plt
import pandas as pd
import torch

import armodels

splits = armodels.load_data("digits")
rows = []
models = {}


def train(title, name, max_epochs=12, lr=2e-3, **keys):
    """Train a model by name for seconds; its number on test is a line of the table."""
    model = armodels.build(name, splits.spec, **keys)
    result = armodels.fit(
        model,
        splits,
        max_epochs=max_epochs,
        batch_size=50,
        eval_every=3,
        optimizer=lambda params: torch.optim.AdamW(params, lr=lr),
        accelerator="cpu",
        threads=1,
        quiet=True,
    )
    test = result.metrics["test"]
    rows.append(
        {
            "model": title,
            "parameters": result.metrics["parameters"],
            "nats": test["nats"],
            "±": test["nats_ci95"],
            "bits/dim": test["bits_per_dim"],
            "seconds": result.metrics["seconds"],
        }
    )
    models[title] = model
    print(f"{title}: {test['nats']:.2f} ± {test['nats_ci95']:.2f} nats")


def show(x, title, columns=16):
    """Pictures in rows."""
    x = x.reshape(-1, columns, 8, 8).transpose(1, 2).reshape(-1, columns * 8)
    plt.figure(figsize=(8, len(x) / 16))
    plt.imshow(x, cmap="gray_r", vmin=0, vmax=16)
    plt.title(title)
    plt.axis("off")
    plt.show()


show(splits.test[:32], "test digits")

# %% [markdown]
# ## Nothing, and no dependence
#
# Knowing nothing costs log₂ 17 = 4.09 bits a pixel. Counting how dark each pixel is, by itself,
# is most of the way: what is left to gain is what pixels say about each other.

# %%
train("uniform", "uniform")
train("independent pixels", "independent")
show(models["independent pixels"].sample(32), "independent pixels")

# %% [markdown]
# ## 1996: the fully visible sigmoid belief network
#
# Every conditional is a logistic regression on the pixels before: no hidden units at all.

# %%
train("FVSBN", "fvsbn")
show(models["FVSBN"].sample(32), "FVSBN")

# %% [markdown]
# ## 2011: NADE
#
# A hidden layer that is shared: it reads one pixel after another, and all conditionals together
# cost as much as one autoencoder.

# %%
train("NADE", "nade", lr=1e-3)
show(models["NADE"].sample(32), "NADE")

# %% [markdown]
# ## 2015: MADE
#
# The same in one pass of masked matrices: fast to train, deep if you like. What each output may
# hear can be seen from outside: we change one pixel, and look which parameters move.

# %%
train("MADE", "made", hidden_sizes=[500])


@torch.no_grad()
def heard(model, x):
    """(step, pixel): how far the parameters of each step move with each pixel of one digit."""
    changed = x.flatten().repeat(65, 1)
    places = torch.arange(64)
    changed[places, places] = (changed[places, places] + 8) % 17
    params = model.net(changed.view(65, 1, 8, 8))
    return (params[:64] - params[64]).abs().amax(-1).T


show(models["MADE"].sample(32), "MADE")

# %% [markdown]
# ## 2016: PixelCNN, and its gated form
#
# A pixel is like its neighbours, wherever it is: masked convolutions share their weights over all
# places. PixelCNN has a blind spot above to the right, and two stacks of convolutions mend it.

# %%
train("PixelCNN", "pixelcnn", num_layers=5, first_kernel_size=3, max_epochs=12)
train("Gated PixelCNN", "gated_pixelcnn", num_layers=4, max_epochs=12, lr=3e-3)
show(models["Gated PixelCNN"].sample(32), "Gated PixelCNN")

# %% [markdown]
# What one pixel (marked) hears, in each of them. Nothing below, nothing to the right in its own
# row: that is all that makes these numbers likelihoods.

# %%
figure, axes = plt.subplots(1, 4, figsize=(8, 2.3))
for ax, title in zip(axes, ["FVSBN", "MADE", "PixelCNN", "Gated PixelCNN"], strict=True):
    field = heard(models[title], splits.test[0])[36]
    assert field[36:].abs().max() == 0
    field = (field / field.max()).clamp(min=1e-4).log10()
    field[36] = torch.nan
    cmap = plt.get_cmap("Blues").with_extremes(bad="tab:orange")
    ax.imshow(field.view(8, 8), cmap=cmap, vmin=-4, vmax=0)
    ax.set(title=title, xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## The lower half of a digit
#
# The raster order puts the upper rows first, so the lower half given the upper one is drawn
# exactly.

# %%
known = torch.zeros(1, 8, 8, dtype=torch.bool)
known[:, :4] = True
half = splits.test[:16]
completed = models["Gated PixelCNN"].complete(half, known)
print(completed.method)
lines = [half, torch.where(known, half, 0), completed.values]
show(torch.cat(lines), "digits, their upper halves, and what Gated PixelCNN makes of them")

# %% [markdown]
# ## All of them
#
# After seconds; [results](../results.md) has what each reaches when it is trained to the end, in
# the same order but for smaller steps.

# %%
pd.DataFrame(rows).style.format(precision=2, thousands=",").hide()
