"""The site of documentation: a page a model, nothing twice, nothing fetched, notebooks run."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script(name: str):
    """A module of scripts/."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages, tour = script("pages"), script("tour")
MODELS = sorted(pages.models())
PAGE = (ROOT / "docs/tour.md").read_text()


@pytest.mark.parametrize("name", MODELS)
def test_a_models_page_has_all_its_parts(name):
    """Three sentences, a picture and the maths are written, and the rest is made."""
    written = (ROOT / f"docs/models/{name}.md").read_text()
    assert f"]({name}.png)" in written
    assert (ROOT / f"docs/models/{name}.png").stat().st_size < 60_000
    about = written.split("\n\n")[1]
    assert len(re.findall(r"[.:?](?:\s|$)", about)) >= 3
    assert "## The maths" in written
    assert "$$" in written
    assert f"models/{name}.md" in (ROOT / "mkdocs.yml").read_text()
    text = pages.generated(name)
    assert (ROOT / f"configs/model/{name}.yaml").read_text().rstrip() in text
    parts = ["The config", "How it differs from the paper", "Its numbers"]
    assert re.findall(r"^## (.+)$", text, re.M) == parts
    assert len(text.split("differs from the paper\n\n")[1].split("\n\n")[0]) > 10


def test_numbers_of_a_page_are_those_of_the_results():
    rows = pages.numbers()
    row = "| FVSBN | 97.35 ± 0.45 (3 seeds, std 0.00) | 97.45 (Larochelle & Murray 2011) |"
    assert row in rows["fvsbn"]["Fixed binarized MNIST"]
    assert {"made", "pixelcnn_pp", "gmm", "ngram"} <= {*rows} <= {*MODELS}
    assert "not run" not in str(rows)


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("`armodels train experiment=eonade_mnist_fixed && armodels eval run=...`", "deep_nade"),
        ("`armodels train experiment=made_vs_gmm/anime model=gmm`", "gmm"),
        ("`armodels train data=digits`", "made"),
        ("`armodels train data=tinyshakespeare out=counts`", "ngram"),
        ("", None),
    ],
)
def test_a_command_says_its_model(command, model):
    assert pages.trained_by(command) == model


def test_what_a_page_would_fetch_is_seen():
    for tag in ('<script src="https://a.b/c.js">', '<link rel="stylesheet" href="//a.b/c.css">',
                '<img src="http://a.b/c.png">'):  # fmt: skip
        parser = pages.Fetched()
        parser.feed(f'<a href="https://a.b">{tag}<img src="own.png">')
        assert len(parser.found) == 1


def test_formulas_become_mathml():
    found = pages.on_page_content(
        r'<p><span class="arithmatex">\(x &lt; 1\)</span></p>', None, None, None
    )
    assert found.startswith("<p><math")
    assert "&#x0003C;" in found
    assert "arithmatex" not in found


def test_the_tour_has_what_its_commands_print():
    """Each command is followed by its output; pictures are there."""
    blocks = [text for kind, text in tour.BLOCK.findall(PAGE) if kind == "console"]
    for text in blocks:
        for output in re.split(r"^\$ .+\n", text, flags=re.M)[1:]:
            assert output.strip()
    assert len(tour.commands(PAGE)) >= 8
    assert len(tour.PICTURE.findall(PAGE)) == 2
    for _, picture in tour.PICTURE.findall(PAGE):
        assert (ROOT / "docs" / picture).is_file()
    assert "```text\n" in PAGE


def test_pictures_of_the_site_are_small():
    drawn = [*(ROOT / "docs/models").glob("*.png"), *(ROOT / "docs/tour").glob("*.png")]
    assert sum(path.stat().st_size for path in drawn) < 1_500_000


@pytest.mark.slow
@pytest.mark.parametrize("path", pages.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    notebook = pages.executed(path)
    shown = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    assert len(shown) > 5
    assert not [one for one in shown if one.output_type == "error"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """Dead links, lost anchors and what is fetched from elsewhere end the build."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NOTEBOOKS": "false", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    made = (tmp_path / "models/made.html").read_text()
    assert "<math" in made
    assert "hidden_sizes" in made
    assert "armodels.named.build" in (tmp_path / "api/index.html").read_text()
