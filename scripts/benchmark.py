"""Speed side by side: sampling by steps, cached steps and fused walks; training steps.

    python scripts/benchmark.py [WORD ...]    (only comparisons whose name holds one of the words)

Each comparison alternates its contestants in one process and takes medians, because absolute
figures drift: only the ratios of one run mean something. ``make bench`` takes some minutes,
most of them the PixelCNNs' naive steps.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable

import armodels  # noqa: F401  (first: it sets how long OpenMP's threads spin)

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import heads, orders
from armodels.data.base import Splits, binarize
from armodels.data.rows import Windows
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.walk import draw_noise, one_thread
from armodels.flows import InverseFlow
from armodels.kernels import nade as kernels
from armodels.machine import processor
from armodels.networks.base import Network
from armodels.networks.gated_pixelcnn import GatedPixelCNN
from armodels.networks.lmconv import LMConv
from armodels.networks.made import MADE
from armodels.networks.multiscale import MultiScale
from armodels.networks.nade import NADE
from armodels.networks.pixel_rnn import DiagonalBiLSTM, RowLSTM
from armodels.networks.pixel_snail import PixelSNAIL
from armodels.networks.pixelcnn import PixelCNN
from armodels.networks.pixelcnn_pp import PixelCNNPP
from armodels.networks.transformer import Transformer
from armodels.networks.wavenet import WaveNet
from armodels.schedules import Cosine
from armodels.spec import DataSpec
from armodels.training.learner import Candidate
from armodels.training.loop import Trainer
from armodels.training.processes import make_fabric
from armodels.training.record import InMemory
from armodels.training.result import Origin
from armodels.training.settings import Settings, Watching

SPEC = DataSpec("random binary images", "image", (1, 28, 28), 2, "probability")
BITS = DataSpec("random bits", "sequence", (784,), 2, "probability")
WARM_UP = 40
"""Steps before those that are timed: the first ones touch memory for the first time."""
ONES = 0.13
"""Share of pixels that are 1, as in MNIST: the fused kernels skip what zeros leave as it was."""


def alternate(
    contestants: dict[str, Callable[[], object]],
    repeats: int,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each, called in turn ``repeats`` times, by default after one warm-up."""
    for contestant in contestants.values() if warm_up else ():
        contestant()
    seconds = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, contestant in contestants.items():
            start = clock()
            contestant()
            seconds[name].append(clock() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def table(title: str, seconds: dict[str, float], batch_size: int) -> None:
    """Print one comparison; ratios are to its first line."""
    print(f"\n{title}")
    slowest = next(iter(seconds.values()))
    for name, s in seconds.items():
        print(f"  {name:<44}{1e3 * s:>10.2f} ms{batch_size / s:>12,.0f} /s{slowest / s:>9.1f}x")


def build(network: type[Network], spec: DataSpec = SPEC, **options) -> AutoregressiveModel:
    """A model of binary values with weights that make them depend on one another."""
    torch.manual_seed(0)
    head = heads.auto(spec)
    net = network(spec, head.num_params, orders.make("raster", spec.shape), **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    net.set_marginals(torch.full((spec.num_dims, 1), -1.9))  # 13 % ones, as in MNIST
    return AutoregressiveModel(net, head)


def without_fused_walk(model: AutoregressiveModel) -> AutoregressiveModel:
    """The same weights, sampled by the cached PyTorch step."""
    kind = type(model.net)
    stepwise = type(kind.__name__, (kind,), {"fused_walk": Network.fused_walk})
    net = stepwise.__new__(stepwise)
    net.__dict__ = model.net.__dict__
    return AutoregressiveModel(net, model.head)


def sampling(name: str, model: AutoregressiveModel, n: int = 64, repeats: int = 3) -> None:
    """Naive step, cached step and, where offered, fused walk: same noise, same samples."""
    noise = draw_noise((n, SPEC.num_dims, 1), torch.Generator().manual_seed(1), "cpu")
    cached = without_fused_walk(model)
    samples = []
    contestants = {
        "naive step (a forward pass for each pixel)": lambda: samples.append(
            model.sample(n, noise=noise, naive=True)
        ),
        "cached PyTorch step": lambda: samples.append(cached.sample(n, noise=noise)),
        "fused walk (the default)": lambda: samples.append(model.sample(n, noise=noise)),
    }
    if type(model.net).fused_walk is Network.fused_walk:
        model.sample(1)  # the warm-up where the walks themselves are too long for one
        del contestants["fused walk (the default)"]
    seconds = alternate(contestants, repeats, warm_up=repeats > 1)
    assert all(torch.equal(samples[0], other) for other in samples), "samples differ"
    table(f"Sampling {n} binary 28x28 images with {name}, bit-equal samples", seconds, n)


def cached_sampling(name: str, model: AutoregressiveModel, n: int = 16) -> None:
    """Cached step, and the naive one by a few of its steps: all take as long, a forward pass.

    One thread does it all by the processor's clock: programs beside it do not count.
    """
    net, num_steps = model.net, model.net.num_steps
    chosen = range(0, num_steps, num_steps // 4)
    noise = draw_noise((n, num_steps, 1), torch.Generator().manual_seed(1), "cpu")
    samples, naive_params = [], []

    def some_naive_steps():
        x = samples[-1]
        with torch.no_grad():
            naive_params[:] = [net(x)[:, s] for s in chosen]

    with one_thread():
        seconds = alternate(
            {
                "cached": lambda: samples.append(model.sample(n, noise=noise)),
                "naive": some_naive_steps,
            },
            repeats=1,
            clock=time.process_time,
        )
    # The samples' own parameters, step by step, are those of the forward pass.
    values = model._to_steps(samples[-1])
    with torch.no_grad():
        pack = net.pack()
        state = net.start(pack, n)
        for s in range(num_steps):
            params, state = net.step(values[:, s - 1] if s else None, s, state, pack)
            if s in chosen:
                torch.testing.assert_close(params, naive_params[chosen.index(s)])
    naive = seconds["naive"] * num_steps / len(chosen)
    rows = {f"naive step ({len(chosen)} of {num_steps} timed)": naive}
    rows["cached step (the default)"] = seconds["cached"]
    if model.spec.kind == "image":
        table(f"Sampling {n} binary 28x28 images with {name}, parameters equal", rows, n)
    else:
        title = f"Sampling the bits of {n} streams of {num_steps} with {name}, parameters equal"
        table(title, rows, n * num_steps)


def streaming(num_layers: int, num_stacks: int, length: int, repeats: int = 3) -> None:
    """WaveNet of 256 levels, one stream: naive step, cached step and fused walk, same samples.

    Each naive step is a forward pass over ``length`` values, so that four of them are timed. One
    thread does it all, and the clock is that of the processor: programs beside it do not count.
    """
    torch.manual_seed(0)
    spec = DataSpec("random levels", "sequence", (length,), 256, "probability")
    model = AutoregressiveModel.of(WaveNet, spec, num_layers=num_layers, num_stacks=num_stacks)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    noise = draw_noise((1, length, 1), torch.Generator().manual_seed(1), "cpu")
    cached, samples = without_fused_walk(model), {}

    def fused():
        samples["fused"] = model.sample(1, noise=noise)

    def cached_step():
        samples["cached"] = cached.sample(1, noise=noise)

    def naive_steps():
        with torch.no_grad():
            for _ in range(4):
                model.net(samples["fused"])

    contestants = {"fused": fused, "cached": cached_step, "naive": naive_steps}
    with one_thread():
        seconds = alternate(contestants, repeats, clock=time.process_time)
    assert torch.equal(samples["fused"], samples["cached"]), "samples differ"
    rows = {
        f"naive step (4 of {length} timed)": seconds["naive"] / 4 * length,
        "cached PyTorch step": seconds["cached"],
        "fused walk (the default)": seconds["fused"],
    }
    sizes = f"{num_layers * num_stacks} layers x 32, receptive field {model.net.receptive_field:,}"
    table(
        f"Sampling {length} values of one stream with WaveNet ({sizes}), one thread", rows, length
    )


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
    objective = model.default_objective()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)

    def by_loop():
        net.zero_grad()
        logits = plain_loop(*weights, values) + net.bias[:, 0]
        (-model.head.log_prob(logits[..., None], values[..., None]).sum() / batch_size).backward()

    def by_reference():
        net.zero_grad()
        params = kernels.reference(*weights, net.order_table, values[..., None], "relu") + net.bias
        (-model.head.log_prob(params, values[..., None]).sum() / batch_size).backward()

    def fused():
        net.zero_grad()
        (-objective(x).sum() / batch_size).backward()

    def with_optimizer():
        fused()
        optimizer.step()

    def log_prob():
        with torch.no_grad():
            objective(x)

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
    objective = model.train().default_objective()

    def step(optimizer: torch.optim.Optimizer) -> None:
        model.zero_grad()
        (-objective(x).sum() / batch_size).backward()
        optimizer.step()

    default = torch.optim.Adam(model.parameters(), lr=1e-6)
    fused = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
    seconds = alternate(
        {"Adam": lambda: step(default), "Adam, fused (the default)": lambda: step(fused)},
        repeats=30,
    )
    table(f"Training MADE ([500]), whole step, batch {batch_size}", seconds, batch_size)


def batches(batch_size: int, repeats: int = 320) -> None:
    """What a batch from memory costs beside a whole training step of MADE, by the trainer.

    Each batch is made after a step, as in training, which leaves nothing of it in the caches;
    and means are taken, for some batches pay for those that follow.
    """
    grey = torch.randint(256, (50_000, *SPEC.shape), dtype=torch.uint8)
    grey *= torch.rand(grey.shape) < 0.2  # of MNIST's pixels, a fifth are not black
    bits = (grey > 127).to(torch.uint8)
    print(f"\nTraining batches of {batch_size} from memory beside a step of MADE ([500])")
    for name, rows, transform in (
        ("binarized on the fly", grey, binarize),
        ("as they are", bits, None),
    ):
        splits = Splits(SPEC, rows, bits[:1], bits[:1], transform=transform)
        trainer, other = (
            new_trainer(build(MADE, hidden_sizes=[500]), splits, batch_size) for _ in range(2)
        )
        seconds = [0.0, 0.0]
        for step in range(-WARM_UP, repeats):
            start = time.perf_counter()
            trainer._step()
            middle = time.perf_counter()
            other.batches.batch(step + WARM_UP)
            end = time.perf_counter()
            if step >= 0:
                seconds = [seconds[0] + middle - start, seconds[1] + end - middle]
        whole, batch = (s / repeats for s in seconds)
        share = f"{1e3 * whole:.2f} ms{batch / whole:>8.1%}"
        print(f"  rows {name:<39}{1e3 * batch:>10.3f} ms of {share}")


def transformer_training(batch_size: int = 8, length: int = 256, repeats: int = 15) -> None:
    """Whole steps by the trainer, and by a plain loop with the same network and optimizer.

    One thread does it all by the processor's clock: programs beside it do not count.
    """
    spec = DataSpec("random text", "sequence", (length,), 65, "probability")
    text = torch.randint(65, (100_000,), dtype=torch.uint8)
    rows = Windows(text, length)
    torch.manual_seed(0)
    plain, model = (AutoregressiveModel.of(Transformer, spec) for _ in range(2))
    trainer = new_trainer(model, Splits(spec, rows, rows[:1], rows[:1]), batch_size)
    net, optimizer = plain.net, torch.optim.AdamW(plain.parameters(), lr=1e-3, fused=True)

    def by_loop():
        starts = torch.randint(len(text) - length, (batch_size,))
        x = torch.stack([text[start : start + length] for start in starts])
        loss = F.cross_entropy(net(x).flatten(0, 1), x.flatten().long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    contestants = {"plain PyTorch loop": by_loop, "the trainer": trainer._step}
    with one_thread():
        seconds = alternate(contestants, repeats, clock=time.process_time)
    num_symbols = batch_size * length
    title = (
        f"Training the transformer (4 x 128), symbols, batch {batch_size} x {length}, one thread"
    )
    table(title, seconds, num_symbols)


def new_trainer(model: AutoregressiveModel, splits: Splits, batch_size: int) -> Trainer:
    """A trainer with the shipped settings, as ``armodels train`` makes it, before its steps."""
    settings = Settings(batch_size=batch_size, accelerator="cpu")
    candidate = Candidate(
        model=lambda: model,
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, fused=True),
        schedule=Cosine(),
    )
    fabric = make_fabric(settings)
    record, origin = InMemory(), Origin("made")
    trainer = Trainer([candidate], splits, settings, Watching(), fabric, record, origin)
    trainer.learner.set_up()
    model.train()
    return trainer


def levels(n: int) -> None:
    """Colour pictures pixel by pixel, and level by level: the processor's clock of one thread."""
    spec = DataSpec("random colour images", "image", (3, 64, 64), 256, "probability")
    head = heads.DiscretizedLogisticMixture(spec)
    order = orders.make("raster", spec.shape, joint=True)
    torch.manual_seed(0)
    by_pixel = PixelCNN(spec, head.num_params, order, num_layers=7, num_channels=32)
    by_level = MultiScale(spec, head.num_params, order)
    models = {
        f"PixelCNN (7 x 32), cached, {by_pixel.num_steps:,} steps": by_pixel,
        f"multiscale (as it ships), {len(by_level.groups)} passes": by_level,
    }
    with one_thread():
        seconds = alternate(
            {
                name: functools.partial(AutoregressiveModel(net, head).sample, n)
                for name, net in models.items()
            },
            repeats=1,
            warm_up=False,
            clock=time.process_time,
        )
    table(f"Sampling {n} images of 64 x 64 x 3, 256 levels", seconds, n)


def student(num_dims: int, n: int) -> None:
    """Real values drawn by a MADE, step by step, and by an inverse flow in one pass."""
    spec = DataSpec("random vectors", "vector", (num_dims,), None, "density")
    head = heads.GaussianMixture(spec)
    torch.manual_seed(0)
    order = orders.make("raster", spec.shape)
    net = MADE(spec, head.num_params, order, hidden_sizes=[max(100, num_dims)])
    teacher, flow = AutoregressiveModel(net, head), InverseFlow(spec)
    affine = InverseFlow(spec, num_bins=0)
    with one_thread():
        seconds = alternate(
            {
                f"MADE with 10 Gaussians, {num_dims} steps": lambda: teacher.sample(n),
                "inverse flow (as it ships), one pass": lambda: flow.sample(n),
                "inverse flow without splines, one pass": lambda: affine.sample(n),
            },
            repeats=5,
            clock=time.process_time,
        )
    table(f"Drawing {n:,} vectors of {num_dims} real values", seconds, n)


def comparisons() -> dict[str, Callable[[], None]]:
    """Each by its name."""
    deep, small = {"num_layers": 7, "num_channels": 32}, {"num_channels": 32, "num_resnets": 2}
    lstm, xl = {"num_layers": 3, "num_channels": 16}, {"num_layers": 8, "hidden_size": 64}

    def of(run: Callable, name: str, network: type[Network], options: dict, **keys) -> None:
        chosen[name] = lambda: run(name, build(network, **options), **keys)

    chosen: dict[str, Callable[[], None]] = {}
    of(sampling, "NADE (500)", NADE, {"hidden_size": 500})
    of(sampling, "MADE ([500])", MADE, {"hidden_sizes": [500]})
    of(sampling, "PixelCNN (7 x 32)", PixelCNN, deep, n=16, repeats=1)
    of(sampling, "Gated PixelCNN (7 x 32)", GatedPixelCNN, deep, n=16, repeats=1)
    of(cached_sampling, "PixelCNN++ (32 x 2, 2 stages)", PixelCNNPP, {"num_stages": 2, **small})
    of(cached_sampling, "PixelSNAIL (4 blocks x 32)", PixelSNAIL, {"num_blocks": 4, **small})
    of(cached_sampling, "Row LSTM (3 x 16)", RowLSTM, lstm)
    of(cached_sampling, "Diagonal BiLSTM (3 x 16)", DiagonalBiLSTM, lstm)
    blocks = {"num_blocks": 4, "num_channels": 32, "dilations": [1]}
    of(cached_sampling, "LMConv (4 x 32)", LMConv, blocks)
    for n in (1, 16, 64):
        chosen[f"transformer (8 x 64), {n} streams"] = lambda n=n: cached_sampling(
            "the transformer (8 x 64)", build(Transformer, BITS, **xl), n
        )
    for num_stacks in (1, 4):
        chosen[f"WaveNet ({num_stacks} x 10)"] = functools.partial(
            streaming, 10, num_stacks, length=1024
        )
    for n in (1, 16):
        chosen[f"levels of {n} colour images"] = functools.partial(levels, n)
    for num_dims, n in ((11, 1), (11, 64), (11, 1000), (512, 1), (512, 64), (512, 1000)):
        chosen[f"student, {n} draws of {num_dims}"] = functools.partial(student, num_dims, n)
    chosen["training the transformer"] = transformer_training
    chosen["training NADE"] = lambda: nade_training(build(NADE, hidden_size=500))
    chosen["training MADE"] = lambda: made_training(build(MADE, hidden_sizes=[500]))
    for batch_size in (100, 256):
        chosen[f"batches of {batch_size}"] = functools.partial(batches, batch_size)
    return chosen


def main(words: list[str]) -> None:
    """Run the comparisons whose names hold one of the words; without words all."""
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    every = comparisons()
    chosen = [name for name in every if not words or any(word in name for word in words)]
    if not chosen:
        raise SystemExit(f"no comparison holds {' or '.join(words)}; there are {', '.join(every)}")
    for name in chosen:
        every[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
