"""Speed side by side: sampling by steps, cached steps and fused walks; training steps.

Each comparison alternates its contestants in one process and takes medians, because absolute
figures drift: only the ratios of one run mean something. ``make bench`` takes under two minutes.
"""

import statistics
import time
from collections.abc import Callable

import armodels  # noqa: F401  (first: it sets how long OpenMP's threads spin)

# isort: split
import torch
from torch import Tensor, nn

from armodels import heads, orders
from armodels.density import AutoregressiveModel, draw_noise
from armodels.kernels import nade as kernels
from armodels.networks.base import Network
from armodels.networks.made import MADE
from armodels.networks.nade import NADE
from armodels.run import processor
from armodels.spec import DataSpec

SPEC = DataSpec("random binary images", "image", (1, 28, 28), 2, "probability")
ONES = 0.13
"""Share of pixels that are 1, as in MNIST: the fused kernels skip what zeros leave as it was."""


def alternate(contestants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, called in turn ``repeats`` times after one warm-up."""
    for contestant in contestants.values():
        contestant()
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            start = time.perf_counter()
            contestant()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def table(title: str, seconds: dict[str, float], batch_size: int) -> None:
    """Print one comparison; ratios are to its first line."""
    print(f"\n{title}")
    slowest = next(iter(seconds.values()))
    for name, s in seconds.items():
        print(f"  {name:<44}{1e3 * s:>10.2f} ms{batch_size / s:>12,.0f} /s{slowest / s:>9.1f}x")


def build(network: type[Network], **options) -> AutoregressiveModel:
    """A model of binary images with weights that make its pixels depend on one another."""
    torch.manual_seed(0)
    head = heads.auto(SPEC)
    net = network(SPEC, head.num_params, orders.make("raster", SPEC.shape), **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    net.set_marginals(torch.full((SPEC.num_dims, 1), -1.9))  # 13 % ones, as in MNIST
    return AutoregressiveModel(net, head)


def without_fused_walk(model: AutoregressiveModel) -> AutoregressiveModel:
    """The same weights, sampled by the cached PyTorch step."""
    kind = type(model.net)
    stepwise = type(kind.__name__, (kind,), {"fused_walk": Network.fused_walk})
    net = stepwise.__new__(stepwise)
    net.__dict__ = model.net.__dict__
    return AutoregressiveModel(net, model.head)


def sampling(name: str, model: AutoregressiveModel, n: int = 64) -> None:
    """Naive step, cached step and fused walk: same noise, same samples."""
    noise = draw_noise((n, SPEC.num_dims, 1), torch.Generator().manual_seed(1), "cpu")
    cached = without_fused_walk(model)
    samples = []
    seconds = alternate(
        {
            "naive step (a forward pass for each pixel)": lambda: samples.append(
                model.sample(n, noise=noise, naive=True)
            ),
            "cached PyTorch step": lambda: samples.append(cached.sample(n, noise=noise)),
            "fused walk (the default)": lambda: samples.append(model.sample(n, noise=noise)),
        },
        repeats=3,
    )
    assert all(torch.equal(samples[0], other) for other in samples), "samples differ"
    table(f"Sampling {n} binary 28x28 images with {name}, bit-equal samples", seconds, n)


def plain_loop(weight: Tensor, hidden_bias: Tensor, output: Tensor, x: Tensor) -> Tensor:
    """NADE's conditionals as a loop over dimensions is commonly written: (B, D) -> (B, D)."""
    total = hidden_bias.expand(len(x), -1)
    logits = []
    for d in range(x.shape[1]):
        logits.append(torch.relu(total) @ output[d, 0])
        total = total + x[:, d : d + 1] * weight[d]
    return torch.stack(logits, 1)


def nade_training(model: AutoregressiveModel, batch_size: int = 256) -> None:
    """Forward and backward pass by loops over the dimensions, and fused."""
    net = model.net
    x = (torch.rand(batch_size, *SPEC.shape) < ONES).to(torch.uint8)
    values = x.flatten(1).float()
    weights = (net.weight, net.hidden_bias, net.output)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)

    def by_loop():
        net.zero_grad()
        logits = plain_loop(*weights, values) + net.bias[:, 0]
        (-model.head.log_prob(logits[..., None], values[..., None]).sum() / batch_size).backward()

    def by_reference():
        net.zero_grad()
        params = kernels.reference(*weights, net.order, values[..., None], "relu") + net.bias
        (-model.head.log_prob(params, values[..., None]).sum() / batch_size).backward()

    def fused():
        net.zero_grad()
        (-model(x).sum() / batch_size).backward()

    def with_optimizer():
        fused()
        optimizer.step()

    def log_prob():
        with torch.no_grad():
            model(x)

    model.train()
    gradients = []
    for contestant in (by_loop, by_reference, fused):
        contestant()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, rtol=1e-3, atol=1e-4)
    seconds = alternate(
        {
            "PyTorch loop, weight[d] in each step": by_loop,
            "PyTorch loop, weights unbound once": by_reference,
            "fused kernel (the default)": fused,
            "fused kernel and fused AdamW": with_optimizer,
            "log_prob alone, fused kernel": log_prob,
        },
        repeats=7,
    )
    title = f"Training NADE (500), forward + backward, batch {batch_size}, {ONES:.0%} ones for all"
    table(title, seconds, batch_size)


def made_training(model: AutoregressiveModel, batch_size: int = 256) -> None:
    """A whole training step with the default and with the fused optimizer."""
    x = (torch.rand(batch_size, *SPEC.shape) < ONES).to(torch.uint8)
    model.train()

    def step(optimizer: torch.optim.Optimizer) -> None:
        model.zero_grad()
        (-model(x).sum() / batch_size).backward()
        optimizer.step()

    default = torch.optim.Adam(model.parameters(), lr=1e-6)
    fused = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    seconds = alternate(
        {"Adam": lambda: step(default), "Adam, fused (the default)": lambda: step(fused)},
        repeats=30,
    )
    table(f"Training MADE ([500]), whole step, batch {batch_size}", seconds, batch_size)


def main() -> None:
    """Run every comparison."""
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    sampling("NADE (500)", build(NADE, hidden_size=500))
    sampling("MADE ([500])", build(MADE, hidden_sizes=[500]))
    nade_training(build(NADE, hidden_size=500))
    made_training(build(MADE, hidden_sizes=[500]))


if __name__ == "__main__":
    main()
