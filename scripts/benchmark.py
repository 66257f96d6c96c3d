"""Speed side by side: samplers of every family, log-probabilities, training steps, and coding.

    python scripts/benchmark.py [WORD ...]    (only comparisons whose name holds one of the words)
    python scripts/benchmark.py RUN ... [draft=RUN] [num=1,16]    (the samplers of trained models)

Each comparison runs its contestants in one process on the same weights, and takes medians of
those that are short, because absolute figures drift: only the ratios of one run mean something.
Of a naive walk three steps are timed and multiplied: each is a forward pass, and takes as long.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import armodels  # noqa: F401  (first: it sets how long OpenMP's threads spin)

# isort: split
import constriction
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from armodels import coding, heads, orders
from armodels.data.base import Splits, binarize
from armodels.data.rows import Windows
from armodels.density.autoregressive import AutoregressiveModel
from armodels.density.samplers import Sampler
from armodels.density.walk import draw_noise, one_thread, walk
from armodels.flows import InverseFlow
from armodels.kernels import nade as kernels
from armodels.machine import processor
from armodels.networks.base import Network
from armodels.networks.deep_nade import DeepNADE
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
RGB = DataSpec("random colours", "image", (3, 32, 32), 256, "probability")
LEVELS = DataSpec("random levels", "sequence", (1024,), 256, "probability")
NAIVE_STEPS = 3
"""Forward passes that are timed in place of all that a naive walk takes."""
EXPECTED_PASSES = 60
LONGEST = 20
"""Seconds: a fixed point of so many passes that would take longer is left out."""
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


def build(
    network: type[Network], spec: DataSpec = SPEC, logistics: int = 0, **options
) -> AutoregressiveModel:
    """A model with random weights that make values depend on one another."""
    torch.manual_seed(0)
    head = heads.auto(spec)
    if logistics:
        head = heads.DiscretizedLogisticMixture(spec, num_components=logistics)
    order = orders.make("raster", spec.shape, joint=head.joint)
    net = network(spec, head.num_params, order, **options)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.05)
    if spec.levels == 2:
        net.set_marginals(torch.full((spec.num_dims, 1), -1.9))  # 13 % ones, as in MNIST
    return AutoregressiveModel(net, head).eval()


def sampling(
    model: AutoregressiveModel, title: str, n: int, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Draw the same events by every sampler, from the same weights and the same noise.

    All naive steps take as long, a forward pass, so that a few of them are timed.
    """
    net, num_steps = model.net, model.net.num_steps
    generator = torch.Generator().manual_seed(1)
    noise = draw_noise((n, num_steps, model.head.num_noise), generator, "cpu")
    samples: dict[str, Tensor] = {}
    passes = {}

    def draw(name: str) -> None:
        sampler = Sampler(name)
        samples[name] = model.sample(n, noise=noise, sampler=sampler)
        passes[name] = sampler.tally.passes

    def naive_steps() -> None:
        with torch.no_grad():
            for _ in range(NAIVE_STEPS):
                net(x)

    model.sample(1)  # the warm-up: a walk may be too long for one
    x = model.sample(n, noise=noise, sampler="cached")
    naive = alternate({"": naive_steps}, 1, clock=clock)[""] / NAIVE_STEPS
    names = ["cached"]
    if naive * EXPECTED_PASSES < LONGEST:
        names.append("fixed_point")
    if type(net).fused_walk is not Network.fused_walk:
        names.append("auto")
    contestants = {name: functools.partial(draw, name) for name in names}
    seconds = alternate(contestants, 1, warm_up=False, clock=clock)
    if sum(seconds.values()) < 1:
        seconds = alternate(contestants, 3, warm_up=False, clock=clock)
    rows = {f"naive ({NAIVE_STEPS} of {num_steps:,} steps timed)": naive * num_steps}
    for name in names:
        label = {"auto": "fused", "fixed_point": f"fixed point ({passes[name]} passes)"}
        rows[label.get(name, name)] = seconds[name]
    table(f"Sampling {n} {title}", rows, n)
    for name, drawn in samples.items():
        apart = int((drawn != x).flatten(1).any(1).sum())
        if apart:  # a value whose noise lies within rounding of a boundary
            print(f"  {apart} of {n} samples by {name} differ from those of the cached steps")
    require_equal_steps(model, x[:1])


def require_equal_steps(model: AutoregressiveModel, x: Tensor) -> None:
    """Raise AssertionError unless the cached steps say of an event what a forward pass says."""
    values = as_steps(model, x)
    steps: list[Tensor] = []

    def follow(s: int, params: Tensor) -> Tensor:
        steps.append(params.clone())
        return values[:, s]

    with torch.no_grad():
        walk(model.net, 1, follow)
        torch.testing.assert_close(
            torch.stack(steps, 1), model.net(x).float(), rtol=1e-3, atol=1e-3
        )


def as_steps(model: AutoregressiveModel, x: Tensor) -> Tensor:
    """(B, *event) -> (B, S, K)."""
    order = model.net.order_table
    return x.flatten(1)[:, order.flatten()].unflatten(1, order.shape)


def speculating(model: AutoregressiveModel, draft: AutoregressiveModel, n: int) -> None:
    """Draw by the cached steps, and by a draft that the model verifies, 2 to 64 steps at once."""
    found = {}

    def draw(num: int) -> None:
        sampler = Sampler("cached")
        if num:
            sampler = Sampler("speculative", draft=draft, draft_steps=num)
        model.sample(n, generator=torch.Generator().manual_seed(1), sampler=sampler)
        found[num] = sampler.tally

    contestants = {str(num): functools.partial(draw, num) for num in (0, 2, 4, 6, 8, 16, 64)}
    rows = {}
    for name, seconds in alternate(contestants, 3, clock=time.process_time).items():
        tally = found[int(name)]
        label = f"draft of {name} steps ({tally.acceptance:.0%}, {tally.passes} passes)"
        rows[label if int(name) else "cached"] = seconds
    table(f"Sampling {n} by a draft, {draft.description} (accepted, passes)", rows, n)


def throughput(model: AutoregressiveModel, title: str, batch_size: int) -> None:
    """Log-probabilities, and whole training steps with AdamW."""
    generator = torch.Generator().manual_seed(0)
    spec = model.spec
    x = torch.randint(spec.num_levels, (batch_size, *spec.shape), generator=generator)
    if spec.levels == 2:
        x = torch.rand(batch_size, *spec.shape, generator=generator) < ONES
    x = x.to(spec.dtype)
    objective = model.default_objective()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def log_prob() -> None:
        model.eval()
        with torch.no_grad():
            model.log_prob(x)

    def step() -> None:
        model.train()
        optimizer.zero_grad()
        (-objective(x).sum() / batch_size).backward()
        optimizer.step()

    seconds = alternate({"training step": step, "log_prob": log_prob}, 3)
    table(f"Batches of {batch_size} {title}", seconds, batch_size)


def plain_loop(weight: Tensor, hidden_bias: Tensor, output: Tensor, x: Tensor) -> Tensor:
    """NADE's conditionals as a loop over dimensions is commonly written: (B, D) -> (B, D)."""
    total = hidden_bias.expand(len(x), -1)
    logits = []
    for d in range(x.shape[1]):
        logits.append(torch.relu(total) @ output[d, 0])
        total = total + x[:, d : d + 1] * weight[d]
    return torch.stack(logits, 1)


def coding_speed(model: AutoregressiveModel, title: str, n: int) -> None:
    """Encode and decode n events side by side, and say their log-probabilities without coding.

    All in one thread, as coding is; by the processor's clock: programs beside it do not count.
    """
    events = model.sample(n, generator=torch.Generator().manual_seed(1))
    lengths = [model.spec.num_dims] * n
    data = coding.encode(model, list(events)).data
    assert torch.equal(torch.stack(coding.decode(model, data, lengths)), events)

    def log_prob() -> None:
        with torch.no_grad():
            model.log_prob(events)

    contestants = {
        "decode": lambda: coding.decode(model, data, lengths),
        "encode": lambda: coding.encode(model, list(events)),
        "log_prob alone": log_prob,
    }
    with one_thread():
        seconds = alternate(contestants, 3, clock=time.process_time)
    table(f"Coding {n} {title}, values /s", seconds, events.numel())


def entropy_coder(num_levels: int, num: int = 50_000) -> None:
    """The entropy coder alone: the same symbols one a call, and all of a step in one."""
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(num, num_levels, generator=generator).log_softmax(-1)
    counts = coding.frequencies(log_probs)
    symbols = log_probs.exp().multinomial(1, generator=generator)[:, 0].to(torch.int32).numpy()
    streams = constriction.stream
    family = streams.model.Categorical(perfect=False)
    written: dict[int, bytes] = {}

    def encode(width: int) -> None:
        encoder = streams.queue.RangeEncoder()
        for start in range(0, num, width):
            some = slice(start, start + width)
            encoder.encode(symbols[some], family, counts[some])
        written[width] = encoder.get_compressed()

    def decode(width: int) -> None:
        decoder = streams.queue.RangeDecoder(written[width])
        for start in range(0, num, width):
            some = slice(start, start + width)
            assert (decoder.decode(family, counts[some]) == symbols[some]).all()

    widths = (1, 64, num)
    for what, function in (("Encoding", encode), ("Decoding", decode)):
        contestants = {f"{width:,} a call": functools.partial(function, width) for width in widths}
        seconds = alternate(contestants, 3, clock=time.process_time)
        table(f"{what} {num:,} symbols of {num_levels} levels by constriction", seconds, num)
    assert all((written[width] == written[num]).all() for width in widths)


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


@dataclass(frozen=True)
class Family:
    """A model that is measured.

    Attributes:
        network: Its class.
        options: Of the network.
        spec: Of its data.
        what: Its events, in words.
        numbers: So many events are drawn side by side.
        batch_size: Of a training step.
        logistics: Of the head; 0: the head that suits the data.
    """

    network: type[Network]
    options: dict
    spec: DataSpec = SPEC
    what: str = "binary 28x28 images"
    numbers: tuple[int, ...] = (1, 16, 64)
    batch_size: int = 64
    logistics: int = 0

    def build(self) -> AutoregressiveModel:
        """With random weights that make values depend on one another."""
        return build(self.network, self.spec, self.logistics, **self.options)


DEEP = {"num_layers": 7, "num_channels": 32}
LSTM = {"num_layers": 3, "num_channels": 16}
SMALL = {"num_channels": 32, "num_resnets": 2}
COLOUR = {"spec": RGB, "what": "RGB 32x32 images of 256 levels", "logistics": 10}
STREAM = {"spec": BITS, "what": "streams of 784 bits"}
SOUND = {"spec": LEVELS, "what": "streams of 1,024 values of 256 levels", "batch_size": 8}
FAMILIES = {
    "MADE ([500])": Family(MADE, {"hidden_sizes": [500]}),
    "NADE (500)": Family(NADE, {"hidden_size": 500}),
    "PixelCNN (7 x 32)": Family(PixelCNN, DEEP),
    "Gated PixelCNN (7 x 32)": Family(GatedPixelCNN, DEEP),
    "PixelCNN++ (32 x 2, 2 stages)": Family(
        PixelCNNPP, {"num_stages": 2, **SMALL}, batch_size=16, **COLOUR
    ),
    "LMConv (4 x 32)": Family(LMConv, {"num_blocks": 4, "num_channels": 32, "dilations": [1]}),
    "transformer (8 x 64)": Family(
        Transformer, {"num_layers": 8, "hidden_size": 64}, batch_size=16, **STREAM
    ),
    "WaveNet (1 x 10)": Family(WaveNet, {"num_layers": 10, "num_stacks": 1}, **SOUND),
    "WaveNet (4 x 10)": Family(
        WaveNet, {"num_layers": 10, "num_stacks": 4}, numbers=(1,), **SOUND
    ),
    "PixelSNAIL (4 blocks x 32)": Family(
        PixelSNAIL, {"num_blocks": 4, **SMALL}, numbers=(16,), batch_size=16
    ),
    "Row LSTM (3 x 16)": Family(RowLSTM, LSTM, numbers=(16,)),
    "Diagonal BiLSTM (3 x 16)": Family(DiagonalBiLSTM, LSTM, numbers=(16,)),
    "DeepNADE (500, 500)": Family(DeepNADE, {"hidden_sizes": [500, 500]}, numbers=(1, 16)),
}


SMALL_COLOUR = Family(
    PixelCNNPP,
    {"num_stages": 1, "num_channels": 16, "num_resnets": 1},
    DataSpec("random colours", "image", (3, 16, 16), 256, "probability"),
    "RGB 16x16 images of 256 levels",
    logistics=5,
)


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
    chosen: dict[str, Callable[[], None]] = {}
    for name, family in FAMILIES.items():
        title = f"{family.what} with {name}"
        for n in family.numbers:
            chosen[f"sampling {n} by {name}"] = lambda family=family, title=title, n=n: sampling(
                family.build(), title, n
            )
        chosen[f"throughput of {name}"] = lambda family=family, title=title: throughput(
            family.build(), title, family.batch_size
        )
    for n in (1, 16):
        chosen[f"levels of {n} colour images"] = functools.partial(levels, n)
    for num_dims, n in ((11, 1), (11, 64), (11, 1000), (512, 1), (512, 64), (512, 1000)):
        chosen[f"student, {n} draws of {num_dims}"] = functools.partial(student, num_dims, n)
    chosen["coding by NADE"] = lambda: coding_speed(
        FAMILIES["NADE (500)"].build(), "binary 28x28 images by NADE (500)", 64
    )
    chosen["coding by PixelCNN++"] = lambda: coding_speed(
        SMALL_COLOUR.build(), f"{SMALL_COLOUR.what} by PixelCNN++ (16 x 1, 1 stage)", 16
    )
    for num_levels in (2, 256):
        chosen[f"coding {num_levels} levels"] = functools.partial(entropy_coder, num_levels)
    chosen["training the transformer"] = transformer_training
    chosen["training NADE"] = lambda: nade_training(build(NADE, hidden_size=500))
    chosen["training MADE"] = lambda: made_training(build(MADE, hidden_sizes=[500]))
    for batch_size in (100, 256):
        chosen[f"batches of {batch_size}"] = functools.partial(batches, batch_size)
    return chosen


def of_runs(runs: list[str], draft: str | None, numbers: list[int]) -> None:
    """Measure the models of trained runs, and what a draft makes of them.

    One thread does it all by the processor's clock: programs beside it do not count.

    Args:
        runs: Their paths.
        draft: The path of a run; None: nothing is drafted.
        numbers: So many events are drawn side by side.
    """
    for run in runs:
        model = armodels.load_model(run)
        with one_thread():
            for n in numbers:
                sampling(model, f"events of {model.spec.name} with {run}", n, time.process_time)
            if draft is not None:
                for n in numbers[:2]:
                    speculating(model, armodels.load_model(draft), n)


def main(words: list[str]) -> None:
    """Run the comparisons whose names hold one of the words, without words all; or of runs."""
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    started = time.perf_counter()
    keys = dict(word.split("=", 1) for word in words if word.startswith(("draft=", "num=")))
    numbers = [int(number) for number in keys.get("num", "1,16,64").split(",")]
    runs = [word for word in words if Path(word).is_dir()]
    words = [word for word in words if word not in runs and "=" not in word]
    of_runs(runs, keys.get("draft"), numbers)
    every = comparisons()
    chosen = [name for name in every if any(word in name for word in words)]
    if not words and not runs:
        chosen = [*every]
    if words and not chosen:
        raise SystemExit(f"no comparison holds {' or '.join(words)}; there are {', '.join(every)}")
    for name in chosen:
        every[name]()
    print(f"\n{time.perf_counter() - started:.0f} seconds in all")


if __name__ == "__main__":
    main(sys.argv[1:])
