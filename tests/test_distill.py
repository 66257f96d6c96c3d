"""armodels distill: a student comes near its teacher, and says how near."""

import csv
import json
import math
import re
import shutil
from importlib import resources

import pytest
import torch
from cases import data
from command import QUICK, armodels, done
from omegaconf import OmegaConf
from test_select import same

from armodels import distilling
from armodels.baselines import GMM
from armodels.checkpoints import load_checkpoint
from armodels.flows import InverseFlow
from armodels.objectives import Distillation

PLANE = data("vector", 2, levels=None)


def gaussian(mean, factor) -> GMM:
    """One Gaussian of given mean and lower factor of its covariance, fitted by nothing."""
    model = GMM(PLANE, num_components=1)
    noise = torch.randn(50, 2, dtype=torch.double)
    model.initialize([noise])
    model.means.copy_(torch.tensor([mean]).double())
    model.scale.copy_(torch.tensor([factor]).double())
    return model.double().eval()


def plain(mean, log_std) -> InverseFlow:
    """A flow whose layers do nothing: independent Gaussians."""
    model = InverseFlow(PLANE, num_layers=2, hidden_sizes=[4]).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.mean.copy_(torch.tensor(mean))
        model.log_std.copy_(torch.tensor(log_std))
    return model.eval()


def divergence(mean, log_std, other, factor) -> float:
    """KL of independent Gaussians from another one, in closed form."""
    own = torch.distributions.MultivariateNormal(
        torch.tensor(mean).double(), torch.diag(torch.tensor(log_std).double().mul(2).exp())
    )
    theirs = torch.distributions.MultivariateNormal(
        torch.tensor(other).double(), scale_tril=torch.tensor(factor).double()
    )
    return float(torch.distributions.kl_divergence(own, theirs))


SHIFTED = ([0.5, -1.0], [0.3, -0.2])
WIDE = ([0.0, 0.0], [[1.5, 0.0], [0.6, 1.2]])


def test_the_gap_is_the_divergence_in_closed_form():
    found = distilling.gap(plain(*SHIFTED), gaussian(*WIDE), num_draws=4500)
    expected = divergence(*SHIFTED, *WIDE)
    assert found.num_draws == 4500
    assert expected > 0.3
    assert abs(found.nats - expected) < 4 * found.standard_error
    assert found.standard_error < 0.02
    same_one = distilling.gap(
        plain([0.0, 0.0], [0.0, 0.0]), gaussian([0.0, 0.0], [[1.0, 0], [0, 1.0]])
    )
    assert abs(same_one.nats) < 1e-12


def test_the_objective_is_the_gap_with_its_sign():
    student = plain(*SHIFTED)
    torch.manual_seed(0)
    each = Distillation(student, gaussian(*WIDE))(torch.zeros(4000, 2)).detach()
    assert each.shape == (4000,)
    expected = divergence(*SHIFTED, *WIDE)
    assert abs(float(each.mean()) + expected) < 4 * float(each.std()) / math.sqrt(4000)


def test_coverage_mixes_in_the_likelihood_of_the_data_by_its_share():
    student, teacher = plain(*SHIFTED), gaussian(*WIDE)
    x = torch.randn(30, 2, dtype=torch.double)

    def each(coverage):
        torch.manual_seed(0)
        return Distillation(student, teacher, coverage)(x)

    mixed = 0.75 * each(0.0) + 0.25 * student.log_prob(x)
    torch.testing.assert_close(each(0.25), mixed, rtol=0, atol=1e-12)
    torch.testing.assert_close(each(1.0), student.log_prob(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("coverage", [0.0, 0.5])
def test_a_student_keeps_modes_by_coverage_alone(coverage):
    """Of two Gaussians eight deviations apart, where it starts at one."""
    teacher = GMM(PLANE, num_components=2).double()
    teacher.initialize([torch.randn(50, 2, dtype=torch.double)])
    teacher.means.copy_(torch.tensor([[-4.0, 0.0], [4.0, 0.0]]))
    teacher.scale.copy_(torch.eye(2).expand(2, 2, 2))
    teacher.log_weights.fill_(math.log(0.5))
    data = teacher.eval().sample(2000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    student = InverseFlow(PLANE, num_layers=2, hidden_sizes=[8]).double()
    with torch.no_grad():
        student.mean.copy_(teacher.means[0])
    objective = Distillation(student, teacher, coverage)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    for step in range(80):
        optimizer.zero_grad()
        (-objective(data[torch.arange(100) + 100 * (step % 20)]).mean()).backward()
        optimizer.step()
    drawn = student.eval().sample(2000, generator=torch.Generator().manual_seed(0))
    share = float((drawn[:, 0] > 0).double().mean())
    assert share > 0.2 if coverage else share < 0.01


def test_the_teacher_is_no_part_of_what_is_trained():
    objective = Distillation(plain(*SHIFTED), gaussian(*WIDE))
    assert all(name.startswith("model.") for name in objective.state_dict())


def test_a_student_of_a_gaussian_comes_to_it():
    teacher = gaussian([1.0, -2.0], [[1.5, 0.0], [1.2, 0.4]])
    torch.manual_seed(0)
    student = InverseFlow(PLANE, num_layers=2, hidden_sizes=[8], num_bins=0).double()
    objective = Distillation(student, teacher)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    before = distilling.gap(student, teacher, 2000).nats
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 400)
        optimizer.zero_grad()
        (-objective(torch.zeros(100, 2)).mean()).backward()
        optimizer.step()
    after = distilling.gap(student.eval(), teacher, 2000)
    assert before > 3
    assert after.nats < 0.01


# The command

REAL = ("data=tiny", "data.levels=null", *QUICK, "trainer.batch_size=8")
STUDENT = (
    "schedule=constant",
    "model.hidden_sizes=[5]",
    "model.num_layers=2",
    "trainer.batch_size=8",
    *QUICK,
)
TRUST = "trust=tiny.Tiny"


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder with a teacher, a student of 20 steps, and what was said."""
    folder = tmp_path_factory.mktemp("taught")
    done(folder, "train", *REAL, "model=made", "model.hidden_sizes=[6]", "trainer.max_steps=8",
         "out=teacher")  # fmt: skip
    said = done(
        folder, "distill", "teacher", *STUDENT, TRUST, "trainer.max_steps=20", "out=student"
    )
    return folder, said


def metrics(path):
    return json.loads((path / "metrics.json").read_text())


def test_a_student_says_how_far_it_is_and_how_fast(taught):
    folder, said = taught
    found = metrics(folder / "student")
    assert found["steps"] == 20
    assert found["teacher"]["run"] == str(folder / "teacher")
    assert found["teacher"]["num_draws"] == 10_000
    assert 0 < found["teacher"]["kl_nats_ci95"] < 10
    with open(folder / "student/metrics.csv", encoding="utf-8") as file:
        train = [float(row["train/nats"]) for row in csv.DictReader(file) if row["train/nats"]]
    # It is the divergence of the last steps: of the data it would be 4 off.
    assert abs(train[-1] - found["teacher"]["kl_nats"]) < 2
    assert f"KL(student || teacher) {found['teacher']['kl_nats']:.4f}" in said
    assert "1,000 draws: student" in said
    for line in ("sample run=student num=4", "eval run=student split=valid", "compare student"):
        done(folder, *line.split(), *([] if "compare" in line else [TRUST]))


def test_a_student_has_the_coverage_that_was_asked_for(taught, tmp_path):
    """At coverage 1 it learns from the data alone, which is what train says of its first batch."""
    folder, _ = taught
    shipped = resources.files("armodels.configs").joinpath("distill.yaml").read_text()
    assert f"null: {distilling.COVERAGE}\n" in shipped
    usual = OmegaConf.load(folder / "student/config.yaml")
    assert usual.teacher.coverage == distilling.COVERAGE
    words = (*STUDENT, "trainer.max_steps=1", "trainer.max_epochs=null", "out=other")
    done(tmp_path, "distill", f"teacher={folder / 'teacher'}", *words, TRUST, "coverage=1")
    config = OmegaConf.load(tmp_path / "other/config.yaml")
    assert config.teacher.coverage == 1
    assert "coverage=1" in config.overrides
    done(tmp_path, "train", *REAL, "model=inverse_flow", *words[:-1], "out=alone")
    whole, alone = (load_checkpoint(tmp_path / name / "checkpoints/last.pt")["model"]
                    for name in ("other", "alone"))  # fmt: skip
    assert whole.keys() == alone.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(weight, alone[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_student_goes_on_bit_for_bit(taught, tmp_path):
    folder, _ = taught
    teacher = f"teacher={folder / 'teacher'}"
    done(tmp_path, "distill", teacher, *STUDENT, TRUST, "trainer.max_steps=10", "out=half")
    done(tmp_path, "distill", "resume=half", TRUST, "trainer.max_steps=20")
    whole, half = (load_checkpoint(path / "checkpoints/last.pt")
                   for path in (folder / "student", tmp_path / "half"))  # fmt: skip
    assert whole["model"].keys() == half["model"].keys()
    assert same(whole["model"], half["model"])
    assert metrics(tmp_path / "half")["teacher"]["kl_nats"] == pytest.approx(
        metrics(folder / "student")["teacher"]["kl_nats"]
    )


@pytest.mark.slow
def test_a_teacher_that_has_changed_is_refused(taught, tmp_path):
    folder, _ = taught
    for name in ("teacher", "student"):
        shutil.copytree(folder / name, tmp_path / name)
    config = (tmp_path / "student/config.yaml").read_text()
    config = config.replace(str(folder / "teacher"), str(tmp_path / "teacher"))
    (tmp_path / "student/config.yaml").write_text(config)
    done(tmp_path, "train", "resume=teacher", TRUST, "trainer.max_steps=9")
    told = armodels(tmp_path, "distill", "resume=student", TRUST, "trainer.max_steps=30")
    assert "has changed since the student began to learn from it" in told.error
    assert metrics(tmp_path / "student")["steps"] == 20


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ((), "teacher=... is missing; name the run to learn from: armodels distill RUN"),
        (
            ("teacher", "data=toy"),
            "data is no key of armodels distill: a student has its teacher's",
        ),
        (("teacher", "model=made", TRUST), "MADE with gaussian_mixture head cannot be a student"),
        (("teacher", "trust=null"), "if you know that code and trust it, add trust=tiny.Tiny"),
        (("teacher", "-m", "seed=1,2"), "armodels distill trains one student; leave -m away"),
        (("teacher", "resume=student"), "a student's run knows its teacher; leave teacher away"),
        (("teacher", "coverage=1.5"), "coverage is 1.5; it must be"),
        (("resume=student", "coverage=0.5"), "a student's run knows its coverage; leave coverage"),
        (("nowhere",), "nowhere"),
        (("teacher", "trainer.max_step=3", TRUST), "did you mean trainer.max_steps?"),
    ],
)
def test_what_no_student_can_be_is_refused(taught, args, sentence):
    folder, _ = taught
    told = armodels(folder, "distill", *args, "out=new")
    assert sentence in told.error
    assert not (folder / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("model=made", "model.hidden_sizes=[6]", "data.levels=5"), "is a model of 5 levels"),
        (("model=histogram", "data.levels=null"), "whose log-density has no slope to follow"),
        (
            ("model=made", "model.hidden_sizes=[6]", "data.levels=null", "model.context=features"),
            "is conditioned on features, but a student on nothing",
        ),
    ],
)
def test_a_run_that_is_no_teacher_is_refused(words, sentence, tmp_path):
    done(tmp_path, "train", "data=tiny", *QUICK, *words, "trainer.max_steps=1", "out=teacher")
    told = armodels(tmp_path, "distill", "teacher", TRUST, *STUDENT, "out=new")
    assert sentence in told.error
    assert not (tmp_path / "new").exists()


def test_the_teacher_of_a_run_cannot_change(taught):
    folder, _ = taught
    told = armodels(folder, "train", "resume=student", "teacher.run=teacher", TRUST)
    assert told.error == (
        "teacher.run of a run that is resumed cannot change; start a new run instead"
    )


@pytest.mark.slow
def test_the_gap_is_told_where_data_are_impossible(taught, monkeypatch, tmp_path):
    def nowhere(self, x, context):
        return torch.full((len(x),), -math.inf)

    monkeypatch.setattr(InverseFlow, "_log_prob", nowhere)
    teacher = str(taught[0] / "teacher")
    words = (
        "distill",
        teacher,
        *STUDENT,
        TRUST,
        "trainer.max_steps=3",
        "coverage=0",
        "out=student",
    )
    result = armodels(tmp_path, *words)
    assert result.code != 0
    assert re.search(r"^gap    KL\(student \|\| teacher\) ", result.out, re.M)
    assert "is impossible under the model" in result.err
