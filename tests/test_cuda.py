"""On an NVIDIA GPU every model is the distribution that it is on the CPU."""

import json

import pytest
import torch
from cases import CASES
from command import TINY, armodels, done

from armodels.density.walk import draw_noise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
over_all = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
over_steps = pytest.mark.parametrize(
    "case",
    [case for case in CASES.values() if case.steps],
    ids=[name for name, case in CASES.items() if case.steps],
)


@over_all
def test_log_probs_and_gradients_are_those_of_the_cpu(case):
    x = case.events(8)
    here, there = case.build(0), case.build(0).cuda()
    log_prob, other = here.log_prob(x), there.log_prob(x.cuda())
    torch.testing.assert_close(other.cpu(), log_prob, rtol=1e-10, atol=1e-10)
    if log_prob.requires_grad:
        log_prob.sum().backward()
        other.sum().backward()
        for a, b in zip(here.parameters(), there.parameters(), strict=True):
            if a.grad is not None and b.grad is not None:
                torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=1e-8, atol=1e-9)


@over_steps
def test_samples_are_those_of_the_cpu_under_the_same_noise(case):
    model = case.build(0)
    shape = (8, model.net.num_steps, model.head.num_noise)
    noise = draw_noise(shape, torch.Generator().manual_seed(0), "cpu")
    x, log_prob = model.sample_with_log_prob(8, noise=noise)
    y, other = case.build(0).cuda().sample_with_log_prob(8, noise=noise.cuda())
    torch.testing.assert_close(y.cpu(), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.cpu(), log_prob, rtol=1e-9, atol=1e-9)


@over_all
def test_completion_stays_on_its_device(case):
    model, x = case.build(0).cuda(), case.events(4).cuda()
    known = torch.zeros(case.spec.shape, dtype=torch.bool, device="cuda")
    generator = torch.Generator().manual_seed(0)
    values = model.complete(x, known, num_particles=2, generator=generator).values
    assert values.device.type == "cuda"
    case.spec.check(values)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_run_moves_between_devices(tmp_path, precision):
    """Trained there, evaluated here, continued there."""
    options = [*TINY, "trainer.accelerator=cuda", f"trainer.precision={precision}", "out=run"]
    done(tmp_path, "train", *options, "trainer.max_steps=10", "trainer.ema=0.9")
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    for device in ("cpu", "cuda"):
        done(tmp_path, "eval", "run=run", f"device={device}", "out=here.json")
        here = json.loads((tmp_path / "here.json").read_text())
        assert abs(here["nats"] - metrics["test"]["nats"]) < 1e-4
    done(tmp_path, "sample", "run=run", "device=cuda", "num=8")
    done(tmp_path, "train", "resume=run", "trainer.max_steps=20")


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad", "adadelta"])
def test_every_optimizer_runs(tmp_path, name):
    options = [*TINY, "trainer.accelerator=cuda", f"optimizer={name}"]
    done(tmp_path, "train", *options, "trainer.max_steps=3", "out=run")


def test_a_gpu_run_continues_bit_for_bit(tmp_path):
    options = [*TINY, "trainer.accelerator=cuda", "schedule=constant"]
    done(tmp_path, "train", *options, "out=whole", "trainer.max_steps=20")
    done(tmp_path, "train", *options, "out=parts", "trainer.max_steps=7")
    done(tmp_path, "train", "resume=parts", "trainer.max_steps=20")
    weights = [
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["model"]
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("dynamic", ["false", "true"])
def test_rows_may_stay_off_the_device(tmp_path, monkeypatch, dynamic):
    """A set that does not fit is brought over batch by batch, to the same weights."""
    options = [*TINY, "trainer.accelerator=cuda", f"data.dynamic={dynamic}", "model.context=label",
               "trainer.max_steps=10"]  # fmt: skip
    done(tmp_path, "train", *options, "out=here")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    done(tmp_path, "train", *options, "out=there")
    weights = [
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["model"]
        for name in ("here", "there")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_memory_that_runs_out_is_said_in_one_sentence(tmp_path):
    told = armodels(
        tmp_path, "train", *TINY, "trainer.accelerator=cuda", "model.hidden_sizes=[400000,400000]"
    ).error
    assert told.startswith("out of memory; lower trainer.batch_size or raise trainer.accumulate")


def test_cuda_graphs_change_nothing_but_speed(tmp_path):
    """Also where an epoch ends in a smaller batch."""
    options = [*TINY, "trainer.accelerator=cuda", "trainer.compile=true", "model.dropout=0.0"]
    options += ["trainer.batch_size=7", "trainer.max_epochs=3", "trainer.ema=0.9"]
    done(tmp_path, "train", *options, "out=compiled")
    done(tmp_path, "train", *options, "trainer.cuda_graphs=true", "out=graphs")
    weights = [
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)["model"]
        for name in ("compiled", "graphs")
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-5)
