"""The command line: what is asked is done, and what cannot be done is said in one sentence."""

import contextlib
import gzip
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
from command import QUICK, TINY, armodels, done, process, snapshot, start
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from armodels import __version__, cli
from armodels.data.mnist import MNIST
from armodels.run import RunDirectory

VERBS = (
    "train, tune, distill, eval, sample, complete, score, query, features, compress, decompress, "
    "export, compare, list, tensorboard"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds one finished run called ``run``, as small as can be."""
    folder = tmp_path_factory.mktemp("shell")
    done(folder, "train", *TINY, "trainer.max_steps=2", "out=run")
    return folder


# What is answered before torch is imported


@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        ((), 0, "usage: armodels VERB"),
        (("-h",), 0, "examples:"),
        (("--help",), 0, "examples:"),
        (("--version",), 0, f"armodels {__version__}\n"),
        (("trian",), 2, "armodels: error: 'trian' is no verb of armodels; did you mean train?\n"),
        (("xyz",), 2, f"armodels: error: 'xyz' is no verb of armodels; choose from {VERBS}\n"),
        (("-m", "train"), 2, f"armodels: error: '-m' is no verb of armodels; choose from {VERBS}"),
    ],
)
def test_answers_without_torch(args, code, told, tmp_path):
    result = armodels(tmp_path, *args)
    assert result.code == code
    assert told in (result.err if code else result.out)
    assert bool(result.err) == bool(code)


def test_nothing_is_imported_before_a_verb(tmp_path):
    program = (
        "import sys, armodels.cli as cli\n"
        "for args in ([], ['-h'], ['--version'], ['trian']):\n"
        "    sys.argv = ['armodels', *args]\n"
        "    try: cli.main()\n"
        "    except SystemExit: pass\n"
        "import armodels\n"
        "heavy = {'torch', 'hydra', 'numpy', 'omegaconf', 'tensorboard'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = process(tmp_path, launcher=("-c", program))
    assert result.code == 0, result.err


def test_every_verb_has_a_config_and_a_task(tmp_path):
    for name, verb in cli.VERBS.items():
        assert (Path(cli.__file__).parent / "tasks" / f"{verb.module}.py").is_file()
        flags = (
            ()
            if name not in ("eval", "sample", "complete", "score", "query", "features")
            else ("run=x",)
        )
        shown = done(tmp_path, name, *flags, "--cfg", "job")
        assert "hydra:\n" not in shown
        assert verb.path_key is None or f"{verb.path_key}:" in shown


# Bad input: one sentence, exit code 1, nothing touched

RUN = ("out=new", *TINY, "trainer.max_steps=1")
BAD = {
    "key": (("train", "modl=made"), "modl is no key of armodels train; did you mean model?"),
    "nested-key": (
        ("train", "trainer.max_step=3"),
        "trainer.max_step is no key of armodels train; did you mean trainer.max_steps?",
    ),
    "key-of-another-choice": (
        ("train", "model=gmm", "model.context=label"),
        "model=gmm has no key context, only covariance_type, max_iter, num_components, num_init, "
        "regularization, seed, tolerance; use model=conv_nade, deep_nade, diagonal_bilstm or "
        "another for it",
    ),
    "order-of-a-raster-network": (
        ("train", "model=pixelcnn", "model.order=random"),
        "model=pixelcnn follows one order only: it has no model.order; use "
        "model=conv_nade, deep_nade, fvsbn or another for it",
    ),
    "orders-of-a-raster-network": (
        ("train", "model=pixelcnn", "model.num_orders=4"),
        "model=pixelcnn follows one order only: it has no model.num_orders; use "
        "model=conv_nade, deep_nade, fvsbn or another for it",
    ),
    "key-of-another-default": (
        ("train", "head.mixing=uniform"),
        "head=auto has no key mixing, only num_components; use head=gaussian_mixture for it",
    ),
    "key-of-a-resumed-run": (
        ("train", "resume=run", "data.kind=sequence"),
        "data.kind of a run that is resumed cannot change; start a new run instead",
    ),
    "far-key": (
        ("train", "zzzzzz=3"),
        "zzzzzz is no key of armodels train; see armodels train --cfg job",
    ),
    "other-verb": (("sample", "run=run", "keep=0.5"), "keep is no key of armodels sample"),
    "choice": (
        ("train", "schedule=cosinus"),
        "schedule=cosinus is unknown; did you mean schedule=cosine? "
        "choose from constant, cosine, exponential",
    ),
    "far-choice": (
        ("train", "head=xyz"),
        "head=xyz is unknown; choose from auto, bernoulli, categorical, "
        "discretized_logistic_mixture, gaussian_mixture",
    ),
    "sweep-without-m": (
        ("train", "seed=1,2"),
        "seed=1,2 is a sweep, which needs -m; a list is written seed=[1,2]",
    ),
    "sweep-of-choices-without-m": (
        ("train", "model=made,fvsbn"),
        "model=made,fvsbn is a sweep, which needs -m; a list is written model=[made,fvsbn]",
    ),
    "type": (
        ("train", "trainer.max_steps=many"),
        "trainer.max_steps is 'many'; it must be a whole number or null",
    ),
    "float-for-int": (
        ("train", "trainer.batch_size=8.5"),
        "trainer.batch_size is 8.5; it must be a whole number",
    ),
    "bool-for-int": (
        ("train", "trainer.batch_size=true"),
        "trainer.batch_size is True; it must be a whole number",
    ),
    "zero": (
        ("train", "trainer.batch_size=0"),
        "trainer.batch_size is 0; it must be at least 1",
    ),
    "graphs of what is not compiled": (
        ("train", *TINY, "trainer.cuda_graphs=true"),
        "trainer.cuda_graphs=true replays compiled code: set trainer.compile=true",
    ),
    "no-limit": (
        ("train", "trainer.max_epochs=null", "trainer.max_steps=null"),
        "set trainer.max_epochs, trainer.max_steps or trainer.max_minutes",
    ),
    "weights": (
        ("train", *TINY, "eval.weights=best"),
        "eval.weights is 'best'; choose ema or raw",
    ),
    "pair": (
        ("train", *TINY, "optimizer.betas=5", "trainer.max_steps=1"),
        "optimizer.betas is 5; it must be a list of 2 numbers",
    ),
    "order": (
        ("train", *TINY, "model.order=zigzag"),
        "model.order is 'zigzag'; choose raster, reverse",
    ),
    "connectivity": (
        ("train", *TINY, "model.connectivity=odd"),
        "connectivity is 'odd'; choose even or random",
    ),
    "head-for-grey": (
        ("train", "head=bernoulli", "data=digits"),
        "head bernoulli needs data of 2 levels, but digits has 17 levels; "
        "use head=auto, or binarize the data",
    ),
    "head-for-levels": (
        ("train", *TINY, "head=gaussian_mixture"),
        "head gaussian_mixture needs real values, but tiny-image has 3 levels; use head=auto",
    ),
    "model-for-kind": (
        ("train", *TINY, "data.kind=vector", "data.shape=[3]", "model._target_=tiny.OnlyImages"),
        "model OnlyImages takes image data, but tiny-vector is vector data; "
        "use a model that takes it, such as model=made",
    ),
    "model-for-levels": (
        ("train", "model=mixture_of_categoricals", "data=red_wine"),
        "model MixtureOfCategoricals needs data with levels, but red_wine-fold0 has real values; "
        "use model=gmm",
    ),
    "text-for-a-number": (
        ("train", *TINY, "model.num_orders=two"),
        "model.num_orders is 'two'; it must be a whole number",
    ),
    "number-for-a-list": (
        ("train", *TINY, "model.hidden_sizes=5"),
        "hidden_sizes is 5; it must be a list of whole numbers, such as [100]",
    ),
    "text-for-a-seed": (("train", *TINY, "seed=one"), "seed is 'one'; it must be a whole number"),
    "text-in-a-section": (
        ("train", *TINY, "eval.batch_size=half"),
        "eval.batch_size is 'half'; it must be a whole number",
    ),
    "text-for-a-rate": (
        ("train", *TINY, "optimizer.lr=fast"),
        "lr is 'fast'; it must be a number",
    ),
    "nan": (
        ("train", *TINY, "data.kind=vector", "data.shape=[2]", "data.levels=null",
         "data.num_train=1100", "data.damage=missing"),
        "data 'tiny-vector' holds NaN or infinite values",
    ),
    "out-of-range": (
        ("train", *TINY, "data.num_train=1100", "data.damage=range"),
        "data 'tiny-image' has levels 0..2, got values in 0..200",
    ),
    "missing-files": (
        ("train", "data=mnist", "data.root=none", "data.download=false"),
        "put them into none/MNIST/raw",
    ),
    "parted among one": (
        ("train", *TINY, "trainer.strategy=fsdp"),
        "trainer.strategy=fsdp parts the weights among processes, and there is one; start with "
        "torchrun --nproc-per-node=2 -m armodels train and the same words",
    ),
    "parted in float64": (
        ("train", *TINY, "trainer.strategy=fsdp", "trainer.precision=64-true"),
        "trainer.precision=64-true is not for trainer.strategy=fsdp; choose 32-true or bf16-mixed",
    ),
    "devices": (
        ("train", *TINY, "trainer.devices=2"),
        "trainer.devices=2 needs one process a device, and there is one process; start with "
        "torchrun --nproc-per-node=2 -m armodels train and the same words",
    ),
    "resume-nothing": (
        ("train", "resume=nothing"),
        "nothing is not a run directory: it has no config.yaml to resume from",
    ),
    "own-class": (
        ("train", *TINY, "model._target_=nowhere.Net"),
        "_target_ is 'nowhere.Net', which cannot be imported (No module named 'nowhere'); write "
        "it as module.Class",
    ),
    "context": (
        ("train", *TINY, "model.context=[label]"),
        "model.context is ['label']; it must be text or null",
    ),
    "taken-key": (
        ("train", "~trainer.batch_size"),
        "trainer.batch_size is missing",
    ),
    "taken-group": (("train", "~model"), "~model takes away what armodels train needs"),
    "variable": (
        ("train", "data=table", "data.path=${oc.env:NO_SUCH_VARIABLE}"),
        "Environment variable 'NO_SUCH_VARIABLE' not found",
    ),
    "config-dir": (("train", "--config-dir", "nothing"), "nothing' not found"),
    "device": (("eval", "run=run", "device=null"), "device is None; it must be text"),
    "no-run": (("eval",), "run=... is missing; see armodels eval --help"),
    "run-of-nothing": (
        ("sample", "run=nothing"),
        "run nothing does not exist; name a run directory or checkpoint",
    ),
    "run-of-another-folder": (
        ("score", "run=."),
        ". is not a run directory: it has no config.yaml",
    ),
    "num-orders-type": (
        ("eval", "run=run", "eval.num_orders=two"),
        "eval.num_orders is 'two'; it must be a whole number",
    ),
    "keep-type": (("complete", "run=run", "keep=half"), "keep is 'half'; it must be a number"),
    "no-completions": (("complete", "run=run", "num=0"), "num is 0; it must be at least 1"),
    "no-mask": (("complete", "run=run", "mask=no.png"), "mask no.png does not exist"),
    "no-columns": (
        ("complete", "run=run", "known=[pH]"),
        "known is ['pH'], but tiny-image has no named columns; name a part by a mask (png or "
        "npy), or by top, bottom",
    ),
    "checkpoint": (
        ("eval", "run=run", "checkpoint=first"),
        "checkpoint is 'first'; choose best or last",
    ),
    "split": (
        ("eval", "run=run", "split=val"),
        "split 'val' is unknown; choose from train, valid, test",
    ),
    "other-data": (
        ("eval", "run=run", "data=digits"),
        "the model was trained on tiny-image (image (1, 3, 4), levels 3) "
        "and cannot score digits (image (1, 8, 8), levels 17)",
    ),
    "batch": (
        ("eval", "run=run", "eval.batch_size=0"),
        "eval.batch_size is 0; it must be at least 1",
    ),
    "num": (("sample", "run=run", "num=0"), "num is 0; it must be at least 1"),
    "temperature": (
        ("sample", "run=run", "temperature=-1"),
        "temperature is -1; it must be at least 0",
    ),
    "keep": (("complete", "run=run", "keep=2"), "keep is 2; it must be from 0 to 1"),
    "known": (
        ("complete", "run=run", "known=middle"),
        "known is 'middle'; choose from top, bottom, left, right, border, random",
    ),
    "image": (("complete", "run=run", "image=none.png"), "image none.png does not exist"),
    "no-image": (("complete", "run=run", "image=words.txt"), "image words.txt cannot be read"),
    "particles": (
        ("complete", "run=run", "num_particles=0"),
        "num_particles is 0; it must be at least 1",
    ),
    "compare-nothing": (
        ("compare", "nothing"),
        "nothing does not exist; name folders that hold runs",
    ),
    "compare-no-runs": (("compare", "empty"), "no run in empty; train something first"),
    "format": (
        ("compare", "run", "format=html"),
        "format is 'html'; choose table, markdown or csv",
    ),
    "group": (
        ("list", "group=models"),
        "group models is unknown; choose from model, data, head",
    ),
    "no-events": (("tensorboard", "empty"), "empty holds no TensorBoard events"),
}  # fmt: skip


def test_a_key_that_one_model_of_a_sweep_lacks(tmp_path):
    args = ("train", "-m", "model=made,uniform", "model.context=label", "data=tiny")
    assert armodels(tmp_path, *args).error == (
        "model=uniform has no key context, only margin; use model=conv_nade, deep_nade, "
        "diagonal_bilstm or another for it"
    )


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, folder):
    args, told = BAD[name]
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "words.txt").write_text("no image\n")
    before = snapshot(folder)
    result = armodels(folder, *args)
    assert result.code == 1
    assert told in result.error
    assert snapshot(folder) == before


@pytest.mark.parametrize("damage", ["truncated", "corrupted"])
def test_a_damaged_data_file(damage, tmp_path):
    """Cut short, gzip's stream ends; otherwise the checksum alone tells."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    damaged = gzip.compress(bytes(1000))
    if damage == "truncated":
        damaged = damaged[:-10]
    for name in MNIST.checksums:
        (raw / f"{name}.gz").write_bytes(damaged)
    before = snapshot(tmp_path)
    told = armodels(tmp_path, "train", "data=mnist", f"data.root={tmp_path}", *QUICK).error
    assert told.startswith(f"{raw / 'train-images-idx3-ubyte.gz'} is truncated or corrupted")
    assert told.endswith("delete it and fetch or copy it again")
    assert snapshot(tmp_path) == before


def test_what_other_packages_log_does_not_fill_the_directory_of_a_run_to_come(tmp_path):
    result = armodels(
        tmp_path, "train", *TINY, "data.damage=noise", "trainer.max_steps=1", "out=noisy"
    )
    assert result.code == 0, result.err
    assert "a package has something to say" in result.err
    assert "data   tiny-image" in (tmp_path / "noisy/train.log").read_text()


def test_an_output_directory_that_exists_is_left_alone(folder):
    before = snapshot(folder)
    told = armodels(folder, "train", *TINY, "out=run").error
    assert told == (
        "output directory run exists and is not empty; "
        "choose another with out=, or continue it with resume=run"
    )
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("model.hidden_sizes=[7]", "model.hidden_sizes"),
        ("model.order=reverse", "model.order"),
        ("data.levels=4", "data.levels"),
        ("seed=1", "seed"),
    ],
)
def test_resume_refuses_another_model(change, name, folder):
    before = snapshot(folder)
    told = armodels(folder, "train", "resume=run", change).error
    assert told == (
        f"resume continues the same run, whose {name} cannot change; start a new run instead"
    )
    assert snapshot(folder) == before


@pytest.mark.parametrize("change", ["model=fvsbn", "data=digits", "optimizer=sgd"])
def test_resume_refuses_whole_groups(change, folder):
    before = snapshot(folder)
    told = armodels(folder, "train", "resume=run", change).error
    assert told == (
        f"resume continues the same run, to which {change!r} cannot be applied; "
        "name single keys, such as trainer.max_epochs=20"
    )
    assert snapshot(folder) == before


def test_full_error_shows_where(folder):
    result = armodels(folder, "eval", "run=nothing", HYDRA_FULL_ERROR="1")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "find_checkpoint" in result.err
    assert result.err.strip().endswith("name a run directory or checkpoint")


# Users' own configs and classes

OWN = '''
from armodels.data.base import Source, Splits
from armodels.spec import DataSpec
import torch

class Own(Source):
    """Constant bits."""

    def __init__(self, length):
        self.length = length

    @property
    def spec(self):
        return DataSpec("own", "vector", (self.length,), 2, "probability")

    def load(self):
        x = torch.zeros(20, self.length, dtype=torch.uint8)
        return Splits(self.spec, x, x[:5], x[:5])
'''


@pytest.mark.parametrize("how", ["--config-dir", "environment"])
def test_own_classes_and_configs(how, tmp_path):
    (tmp_path / "own_classes.py").write_text(OWN)
    (tmp_path / "conf/data").mkdir(parents=True)
    text = "# Constant bits\n_target_: own_classes.Own\nlength: 4\n"
    (tmp_path / "conf/data/own.yaml").write_text(text)
    flags = ("--config-dir", "conf") if how == "--config-dir" else ()
    env = {} if flags else {"ARMODELS_CONFIG_PATH": "conf"}
    try:
        told = done(
            tmp_path, "train", *flags, *TINY, "data=own", "data.length=3", "out=run",
            "trainer.max_steps=1", **env,
        )  # fmt: skip
        assert "data   own: vector 3, levels 2, 20 / 5 / 5" in told
        assert "armodels eval run=run split=test trust=own_classes.Own" in told
        assert "own" in done(tmp_path, "eval", "run", "trust=own_classes.Own", **env)
        if env:
            assert "Constant bits" in done(tmp_path, "list", **env)
    finally:
        del sys.modules["own_classes"]


def test_runs_do_not_share_a_directory(tmp_path):
    for _ in range(2):
        done(tmp_path, "train", *TINY, "trainer.max_steps=0")
    runs = sorted((tmp_path / "outputs/tiny/made").iterdir())
    assert len(runs) == 2
    assert all(
        re.fullmatch(r"hidden_sizes6-batch_size8-.*-seed0-[a-z2-7]{8}", run.name) for run in runs
    )


@pytest.mark.slow
def test_a_sweep_outlives_a_failing_job(tmp_path):
    result = armodels(
        tmp_path, "train", "-m", *TINY, "trainer.max_steps=1", "seed=1,2",
        "head=auto,gaussian_mixture", "trainer.patience=1",
    )  # fmt: skip
    assert result.code == 1
    errors = [line for line in result.err.strip().splitlines() if "warning" not in line]
    assert len(errors) == 4  # two jobs: which one, and why
    assert "head=gaussian_mixture" in errors[0]
    assert "seed=1" in errors[0]
    told = "head gaussian_mixture needs real values, but tiny-image has 3 levels; use head=auto"
    assert errors[1] == f"armodels: error: {told}"
    statuses = {}
    for run in (tmp_path / "outputs/tiny/made").iterdir():
        status = RunDirectory(run).read_status()
        statuses.setdefault(status["status"], []).append(run)
        if status["status"] == "failed":
            assert status["reason"] == told
            log = (run / "train.log").read_text()
            assert "Traceback" in log
            assert told in log
    assert {name: len(runs) for name, runs in statuses.items()} == {"done": 2, "failed": 2}
    assert f"failed: {told[:40]}" in done(tmp_path, "compare", "outputs")


def test_a_failure_is_told_where_nothing_can_be_written(tmp_path, monkeypatch):
    """Not even below the system's folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert armodels(tmp_path, "eval", "nothing").error.startswith("run nothing does not exist")


def test_a_refused_run_does_not_take_the_directory(tmp_path):
    for bad in (
        "trainer.max_steps=many",
        "data.damage=range",
        "schedule.final=x",
        "head=bernoulli",
    ):
        assert armodels(tmp_path, "train", *TINY, "data.num_train=1100", "out=run", bad).code == 1
        assert not (tmp_path / "run").exists()
    done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run")


def test_commands_of_one_process_share_one_plugin(folder):
    """Each that Hydra knows of lengthens the search path of all commands after it."""
    for _ in range(2):
        done(folder, "list", "group=head")
        known = [kind.__name__ for kind in Plugins.instance().discover(SearchPathPlugin)]
        assert known.count("UserConfigs") == 1


# Bare paths and flags


def test_bare_paths(folder):
    table = done(folder, "compare", "run", "--csv")
    assert table.splitlines()[0].startswith("data,measure,per,model,")
    assert done(folder, "compare", "--csv", "run") == table
    assert done(folder, "compare", "./run", "run", "--csv").count("\n") == table.count("\n")
    assert done(folder, "compare", "--markdown", "run").startswith("| data")
    told = armodels(folder, "eval", "run", "run")
    assert told.code == 2
    assert "armodels eval takes one path, got run run" in told.err
    assert "(23 examples)" in done(folder, "eval", "run/checkpoints/last.pt")
    # Quotes and equals signs in a name are no matter to a bare path.
    (folder / "it's a=b").mkdir(exist_ok=True)
    assert "no run in ./it's a=b" in armodels(folder, "compare", "./it's a=b").error


# Tab completion, as bash asks for it


def completions(folder: Path, line: str) -> set[str]:
    result = armodels(folder, "-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    return set(result.out.split())


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("armodels ", {"train", "compare"}),
        ("armodels tr", {"train"}),
        ("armodels train mod", {"model=", "model."}),
        ("armodels train model=", {"model=made", "model=fvsbn"}),
        ("armodels train model=made trainer.max_", {"trainer.max_steps=", "trainer.max_epochs="}),
        ("armodels sample tem", {"temperature="}),
    ],
)
def test_tab_completion(line, some, tmp_path):
    assert some <= completions(tmp_path, line)


def test_tab_completion_installs(tmp_path):
    assert "armodels" in armodels(tmp_path, "-sc", "install=bash").out


def test_tab_completion_of_nonsense_is_silent(tmp_path):
    assert completions(tmp_path, "armodels nonsense mod") == set()


# In its own process


@pytest.mark.slow
def test_python_m_armodels(folder):
    with start(folder, "eval", "run", "device=cpu") as child:
        out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "23 examples" in out
    assert not list(folder.glob("*.log")), "a verb left a log in the shell's directory"
    assert os.listdir(folder)


# What other launchers leave in the environment


LEFT_BEHIND = {
    "a rank of no torchrun": {"RANK": "1"},
    "a local rank of no torchrun": {"LOCAL_RANK": "1", "WORLD_SIZE": "4"},
    "one of four tasks of Slurm": {
        "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_variables_of_other_launchers_neither_silence_nor_refuse_one_process(name, tmp_path):
    told = done(tmp_path, "train", *TINY, "trainer.max_steps=1", "out=run", **LEFT_BEHIND[name])
    assert "Next:" in told
    assert RunDirectory(tmp_path / "run").read_status()["status"] == "done"


@pytest.mark.parametrize("late", [True, False], ids=["after", "before"])
def test_a_signal_after_the_last_sentence_adds_none(late, monkeypatch, capsys):
    """torchrun stops the other processes while one of them may be ending by itself."""

    def answer(*args):
        with contextlib.suppress(SystemExit):
            if late:
                cli.fail("it cannot be")
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_answer", answer)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 130
    said = "error: it cannot be" if late else "interrupted"
    assert capsys.readouterr().err == f"armodels: {said}\n"
