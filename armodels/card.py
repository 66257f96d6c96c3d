"""The card of a model in Markdown: what it is, its numbers, how it came about, how it is used."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from armodels import limits, show
from armodels.licences import licence_of
from armodels.spec import DataSpec

MEASURES = {
    "probability": "exact probabilities of whole events",
    "density": "exact densities, in the original units of the data",
    "bound": "lower bounds of the likelihood",
}
"""What nats are the negative logarithm of."""


@final
@dataclass(frozen=True)
class About:
    """What a card is about.

    Attributes:
        name: Of the model, such as ``made``.
        description: Of the model, in words.
        config: Of its run.
        spec: What a datum is.
        weights: ``ema`` or ``raw``.
        step: Training steps behind them.
        metrics: Numbers of these very weights; None: there are none.
        commands: By which it was trained, one after another; none: it was trained in Python.
        folder: Of the files, as it was typed.
        context: What the model is conditioned on; None: nothing.
        trust: What a command about it must say besides.
    """

    name: str
    description: str
    config: Mapping[str, Any]
    spec: DataSpec
    weights: str
    step: int
    metrics: Mapping[str, Any] | None
    commands: Sequence[str]
    folder: str
    context: str | None
    trust: Mapping[str, Any]


def card(about: About) -> str:
    """README.md of a folder with a model."""
    spec = about.spec
    data = spec.name if about.context is None else f"{spec.name}|{about.context}"
    parts = [
        _front_matter(about),
        f"# {_plain(about.name)} on {_plain(data)}",
        f"{_plain(about.description)}, of {_datum(spec)}. {_what(about)}",
        "## Numbers",
        *_numbers(about),
        "## Training",
        *_training(about),
        "## Data",
        _data(about),
        "## Use",
        *_use(about),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(about: About) -> str:
    """What the pages of model hubs read; fixed words alone, since names may be a stranger's."""
    tags = ["autoregressive", "density-estimation", about.spec.kind]
    lines = ["library_name: armodels", "license: unknown", "tags:", *(f"- {tag}" for tag in tags)]
    return "\n".join(["---", *lines, "---"])


def _plain(value: object) -> str:
    """A text within a line of Markdown, in which it marks nothing up."""
    text = " ".join(show.clean(str(value)).split())
    return "".join(f"\\{sign}" if sign in "\\`*_|<>[]#!" else sign for sign in text)


def _datum(spec: DataSpec) -> str:
    shape = "x".join(map(str, spec.shape))
    values = "real values" if spec.levels is None else f"{spec.levels} levels"
    return f"{spec.kind}s {shape} of {values}"


def _what(about: About) -> str:
    conditioned = f" given {_plain(about.context)}" if about.context else ""
    return (
        f"It has an exact log-likelihood of each{conditioned}, draws samples, and fills in what "
        f"is missing. These are its {'averaged' if about.weights == 'ema' else 'raw'} weights "
        f"after {about.step:,} steps."
    )


def _number(value: object, form: str) -> str:
    """A number of metrics.json, which may lack it or be damaged."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    return format(value, form) if good and math.isfinite(value) else "not known"  # type: ignore


def _numbers(about: About) -> Iterator[str]:
    metrics = about.metrics
    if metrics is None:
        yield (
            "None: the run has no numbers of these very weights. "
            f"`{show.command('eval', run=about.folder, **about.trust)}` evaluates them."
            if about.commands
            else "None: the run has no numbers of these very weights."
        )
        return
    symbols = about.spec.unit if about.spec.num_units else None
    head = ["split", "examples", "nats", "bits/dim", *([f"nats/{symbols}"] if symbols else [])]
    rows = [head, ["---"] * len(head)]
    sizes = metrics.get("splits")
    for split in ("train", "valid", "test"):
        report = metrics.get(split)
        size = sizes.get(split) if isinstance(sizes, Mapping) else None
        if isinstance(report, Mapping):
            size = size if size is not None else report.get("num_examples")
        if size is not None or isinstance(report, Mapping):  # older runs do not count train
            rows.append([split, _number(size, ","), *_of_split(report, symbols)])
    yield "\n".join(f"| {' | '.join(row)} |" for row in rows)
    measure = metrics.get("measure")
    meaning = MEASURES.get(measure, "not known") if isinstance(measure, str) else "not known"
    yield (
        f"Negative log-likelihoods, mean over the examples ± half of its 95 % interval; lower is "
        f"better. Measure: {_plain(measure)}, {meaning}. Weights and settings were chosen on "
        f"valid; test was read for these numbers alone."
    )
    if warning := metrics.get("warning"):
        yield f"Warning of its training: {_plain(warning)}."


def _of_split(report: object, symbols: str | None) -> list[str]:
    names = ["nats", "bits_per_dim", *(["nats_per_symbol"] if symbols else [])]
    if not isinstance(report, Mapping):
        return [""] * len(names)
    return [
        f"{_number(report.get(name), '.4f')} ± {_number(report.get(f'{name}_ci95'), '.4f')}"
        for name in names
    ]


def _training(about: About) -> Iterator[str]:
    if not about.commands:
        yield "Trained in Python, by `armodels.fit`."
    else:
        if len(about.commands) > 1:
            yield (
                "It went on under other values, so that no single command gives its numbers; it "
                "was begun by the first of these, and went on by the others where it stood:"
            )
        yield "```\n{}\n```".format("\n".join(about.commands))
    facts = [("seed", about.config.get("seed")), ("begun", about.config.get("started"))]
    if about.metrics is not None:
        seconds, environment = about.metrics.get("seconds"), about.metrics.get("environment")
        if isinstance(seconds, (int, float)) and math.isfinite(seconds):
            facts.append(("time", limits.spoken(seconds)))
        facts += [(key, about.metrics.get(key)) for key in ("steps", "epochs", "parameters")]
        if isinstance(environment, Mapping):
            facts += [(str(key).replace("_", " "), one) for key, one in environment.items()]
    known = [(name, value) for name, value in facts if value is not None]
    yield "\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in known)


def _data(about: About) -> str:
    licence = licence_of(about.config.get("data") or {})
    return (
        f"{_plain(about.spec.name)}. Source: {licence.source}. Licence of the data: "
        f"{licence.terms}. The licence of these weights is for whoever publishes them to say."
    )


def _use(about: About) -> Iterator[str]:
    trusted = about.trust.get("trust")
    more = "" if trusted is None else f", trust={trusted!r}"
    own = not about.commands
    lines = ["import armodels", ""]
    lines += ["# model = ..., made as for its training"] if own else []
    more += ", model=model" if own else ""
    lines += [f"model = armodels.load_model({about.folder!r}{more})"]
    if about.context is None:
        lines += ["x = model.sample(4)", "print(model.log_prob(x))  # in nats"]
    else:
        lines += ["print(model.description)"]
    yield "```python\n" + "\n".join(lines) + "\n```"
    if not own:
        commands: Sequence[str] = [
            show.command("sample", run=about.folder, num=16, **about.trust),
            show.command("eval", run=about.folder, split="test", **about.trust),
        ]
        yield "```\n" + "\n".join(commands) + "\n```"
        yield "`eval` reads the data where the run had them; `data.root=` says where they lie now."
