"""What ``make docs`` makes beside the pages of docs/: nothing is written twice.

A hook of MkDocs (``mkdocs.yml``). The front page is README.md. A page of docs/models gets its
config from configs/model, its sources and its differences from the docstring, and its numbers from
docs/results.md. The pages of the API are the docstrings, by mkdocstrings. The notebooks of
examples/notebooks are executed. Maths become MathML. A page that would fetch anything from
elsewhere ends the build.
"""

import hashlib
import html
import importlib
import inspect
import re
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples/notebooks").glob("*.py"))
EXECUTED = ROOT / "build/notebooks"
"""Executed notebooks, by what they and the package say: they are executed when either changes."""

CALLS = ["load_data", "build", "fit", "evaluate", "load_model", "Splits", "Settings", "Watching",
         "Result", "DataSpec", "bits_per_dim"]  # fmt: skip
API = {
    "models": (
        "Models",
        "What every model can do, and what an autoregressive one is made of.",
        ["density.base.DensityModel", "density.autoregressive.AutoregressiveModel",
         "density.mixture.OrderMixture", "density.completion.Completion", "density.walk.walk",
         "orders", "objectives"],
    ),
    "heads": ("Heads", "What the parameters of a step mean.", ["heads"]),
}  # fmt: skip


# Models

CAPTION = """*Trained on 8x8 digits for a minute or two of a busy core. Left: how far the
parameters of each step move where the value of another one is replaced (logarithmic). Middle: the
same for one pixel, which is marked. Right: samples. A model without steps has the correlations and
the means of its values instead. A model of sequences reads a digit as 64 values in a row.*"""
"""Under each model's picture, which ``scripts/portraits.py`` draws."""


def models() -> dict[str, str]:
    """Name of each model -> the YAML that ships for it."""
    return {
        path.stem: path.read_text() for path in sorted((ROOT / "configs/model").glob("*.yaml"))
    }


def targets(group: str) -> list[str]:
    """Dotted names of the classes that the configs of a group name, each once."""
    found = [
        yaml.safe_load(path.read_text())["_target_"]
        for path in sorted((ROOT / "configs" / group).glob("*.yaml"))
    ]
    return list(dict.fromkeys(found))


def located(target: str) -> Any:
    """The object of a dotted name."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def home(target: str) -> str:
    """The dotted name of a class where it is defined: ``armodels.baselines.gmm.GMM``."""
    made = located(target)
    return f"{made.__module__}.{made.__qualname__}"


def paragraph(doc: str, start: str) -> str:
    """What follows ``start`` in a docstring, up to the next empty line or section."""
    found = re.search(rf"^{start}:\s+(.+?)(?=\n\n|\n[A-Z][\w ]+:|\Z)", doc, re.M | re.S)
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(found.group(1).split())) if found else ""


def differences(target: str) -> str:
    """How a class differs from its papers, as its docstring says."""
    text = paragraph(inspect.getdoc(located(target)) or "", "Differs from the papers?")
    if text == "see `KneserNey`.":
        return differences("armodels.networks.kneser_ney.KneserNey")
    if not text:
        raise ValueError(f"the docstring of {target} does not say how it differs from its paper")
    return text[0].upper() + text[1:]


def sources(target: str) -> str:
    """The papers of a class, as its docstring names them, one an item where it lists them."""
    doc = inspect.getdoc(located(target)) or ""
    listed = re.search(r"^References:\n((?:    .+\n?)+)", doc, re.M)
    if not listed:
        return "\n".join(f"- {one}" for one in paragraph(doc, "Sources?").rstrip(".").split("; "))
    items = [""]
    for line in listed.group(1).splitlines():
        items[-1] = f"{items[-1]} {line.strip()}".strip()
        if "http" in line:  # with which a source ends
            items.append("")
    return "\n".join(f"- {item}" for item in items if item)


def trained_by(command: str) -> str | None:
    """The model that a command of docs/results.md trains; None: it trains none."""
    if named := re.search(r"(?<!/)\bmodel=(\w+)", command):
        return named.group(1)
    for key, folder in (("experiment", "experiment"), ("data", "recipe")):
        if found := re.search(rf"\b{key}=([\w/]+)", command):
            config = ROOT / f"configs/{folder}/{found.group(1)}.yaml"
            text = config.read_text() if config.is_file() else ""
            model = re.search(r"- (?:override )?/model: (\w+)", text)
            return model.group(1) if model else "made"
    return None


VALUES = ("test nats", "test", "nats/char", "one order, test")
"""Columns of docs/results.md that hold the number of a row."""


def numbers() -> dict[str, dict[str, list[str]]]:
    """Model -> title of a section -> lines of a table: what docs/results.md has with a command."""
    found: dict[str, dict[str, list[str]]] = {}
    title, head = "", []
    for line in (ROOT / "docs/results.md").read_text().splitlines():
        if line.startswith("## "):
            title = re.split(r" [(,]", line[3:])[0]
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not head:
            head = cells if cells[-1] == "command" else []
        elif head and len(cells) == len(head) and not set(line) <= set("|- "):
            row = dict(zip(head, cells, strict=True))
            model, column = trained_by(row["command"]), next(key for key in VALUES if key in row)
            if model and row[column] not in ("", "not run"):
                beside = "published" if "published" in row else "command"
                table = found.setdefault(model, {}).setdefault(title, [])
                if not table:
                    table += [f"| {title} | {column} | {beside} |", "| --- | --- | --- |"]
                table.append(f"| {row[head[0]]} | {row[column]} | {row[beside]} |")
    return found


def generated(name: str) -> str:
    """What a model's page has beside what is written in it."""
    text = models()[name]
    target = yaml.safe_load(text)["_target_"]
    parts = [
        f"## The config\n\n`armodels train model={name}` takes, from "
        f"`configs/model/{name}.yaml`:\n\n"
        f"```yaml\n{text.rstrip()}\n```\n\n"
        f'In Python: `armodels.build("{name}", spec)`, which makes a [`{target.split(".")[-1]}`]'
        f"[{home(target)}].",
        f"## How it differs from the paper\n\n{differences(target)}",
    ]
    if papers := sources(target):
        parts.append(f"Sources:\n\n{papers}")
    tables = ["\n".join(table) for table in numbers().get(name, {}).values()]
    in_words = f"`{name}`" in (ROOT / "docs/results.md").read_text()
    none = "They stand in words in" if in_words else "There are none yet in"
    told = "\n\n".join(tables) or f"{none} [results](../results.md)."
    where = "Time, hardware, seeds and commands: [results](../results.md)." if tables else ""
    parts.append(f"## Its numbers\n\n{told}\n\n{where}")
    return "\n\n".join(parts)


# The API


def documented(names: list[str]) -> str:
    """Directives of mkdocstrings for objects."""
    return "\n\n".join(f"::: {name}" for name in names)


def api() -> Iterator[tuple[str, str]]:
    """Path and text of each page."""
    import armodels

    calls = [f"{armodels._PUBLIC[name]}.{name}" for name in CALLS]
    yield (
        "api/index.md",
        "# From Python\n\nAll of it stands in `armodels` itself, such as `armodels.fit`. "
        "These are the classes and the trainer of the command line; there is no second way.\n\n"
        + documented(calls),
    )
    for name, (title, about, objects) in API.items():
        text = documented([f"armodels.{one}" for one in objects])
        yield f"api/{name}.md", f"# {title}\n\n{about}\n\n{text}"
    networks = ["armodels.networks.base.Network", "armodels.networks.base.State"]
    networks += dict.fromkeys(home(target) for target in targets("model"))
    yield (
        "api/networks.md",
        "# Networks and baselines\n\nWhat `model=` names, each with its arguments.\n\n"
        + documented(networks),
    )
    data = ["armodels.data.base.Source", *dict.fromkeys(home(one) for one in targets("data"))]
    yield (
        "api/data.md",
        "# Data\n\nWhat `data=` names; [`Splits.of`][armodels.data.base.Splits.of] takes your own."
        "\n\n" + documented(data),
    )


# Notebooks


def executed(path: Path) -> Any:
    """A notebook with its outputs."""
    import jupytext
    import nbformat
    from nbclient import NotebookClient

    digest = hashlib.sha256(path.read_bytes())
    for source in sorted((ROOT / "armodels").rglob("*.py")):
        digest.update(source.read_bytes())
    kept = EXECUTED / f"{path.stem}-{digest.hexdigest()[:16]}.ipynb"
    if not kept.is_file():
        notebook = jupytext.read(path)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(
                notebook,
                timeout=600,
                kernel_name="python3",
                extra_arguments=["--log-level=40"],
                resources={"metadata": {"path": folder}},
            ).execute()
        EXECUTED.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, kept)
    return nbformat.read(kept, as_version=4)


def notebook_files(path: Path, execute: bool) -> Iterator[tuple[str, str | bytes]]:
    """Path and content of the files that a notebook becomes: its page, pictures and itself."""
    import jupytext
    import nbformat
    from nbconvert import MarkdownExporter

    notebook = executed(path) if execute else jupytext.read(path)
    name = f"notebooks/{path.stem}"
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"unique_key": path.stem, "output_files_dir": path.stem}
    )
    source = f"examples/notebooks/{path.name}"
    where = f"[This notebook, executed]({path.stem}.ipynb), is made of `{source}`."
    first, _, rest = text.strip().partition("\n")
    yield f"{name}.md", f"{first}\n\n{where}\n{rest}"
    yield f"{name}.ipynb", nbformat.writes(notebook)
    for file, content in resources.get("outputs", {}).items():
        yield f"notebooks/{Path(file).as_posix()}", content


# Hooks of MkDocs


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    readme = (ROOT / "README.md").read_text().replace("](docs/", "](")
    readme = readme.replace("](examples/notebooks)", f"](notebooks/{NOTEBOOKS[-2].stem}.md)")
    made: list[tuple[str, str | bytes]] = [("index.md", readme), *api()]
    for path in NOTEBOOKS:
        made += notebook_files(path, config["extra"]["execute_notebooks"])
    for uri, content in made:
        files.append(File.generated(config, uri, content=content))
    return files


def on_nav(nav: Any, config: Any, files: Any) -> Any:
    """Raise ValueError where a model has no page."""
    pages = {page.file.src_uri for page in nav.pages}
    if lacking := [name for name in models() if f"models/{name}.md" not in pages]:
        raise ValueError(f"mkdocs.yml names no page of {', '.join(lacking)}")
    return nav


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Add to a model's page what is not written in it."""
    folder, _, name = page.file.src_uri.rpartition("/")
    if folder != "models":
        return markdown
    markdown = markdown.replace("\n## The maths", f"\n{CAPTION}\n\n## The maths")
    return f"{markdown}\n\n{generated(name.removesuffix('.md'))}\n"


def on_page_content(content: str, page: Any, config: Any, files: Any) -> str:
    """Turn formulas into MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match) -> str:
        tex = html.unescape(found.group(2)).strip().replace(r"\log ", r"\log\, ")
        block = found.group(1) == "div"
        return str(convert(tex[2:-2], display="block" if block else "inline"))

    return re.sub(r'<(span|div) class="arithmatex">(.+?)</\1>', mathml, content, flags=re.S)


class Fetched(HTMLParser):
    """Addresses of other hosts that a page loads by itself: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag loads."""
        keys = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
        own = dict(attrs)
        address = own.get(keys.get(tag, "")) or ""
        if re.match(r"(https?:)?//", address) and own.get("rel") != "canonical":
            self.found.append(address)


def on_post_build(config: Any) -> None:
    """Raise ValueError where a page would fetch anything from elsewhere."""
    for path in sorted(Path(config["site_dir"]).rglob("*.html")):
        parser = Fetched()
        parser.feed(path.read_text(encoding="utf-8"))
        if parser.found:
            raise ValueError(f"{path} fetches {', '.join(parser.found)}")
