"""Optimizers beside those of torch."""

import pytest
import torch
from command import QUICK, done
from torch import nn

from armodels.checkpoints import load_checkpoint
from armodels.networks.layers import mark_table
from armodels.optimizers import Muon

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (6, 2), (2, 2, 2)]
    made = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    mark_table(made[2])
    return made


def moved(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int = 3) -> None:
    for step in range(steps):
        for one in params:
            one.grad = (one.detach() + step).cos()
        optimizer.step()


def test_matrices_of_layers_alone_are_made_orthogonal():
    params, copies = weights(), weights()
    moved(Muon(params, lr=0.1, adam_lr=0.01, momentum=0.9, weight_decay=0.2), params)
    matrix, others = copies[:1], copies[1:]
    moved(torch.optim.Muon(matrix, lr=0.1, momentum=0.9, weight_decay=0.2), matrix)
    moved(torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), weight_decay=0.2), others)
    for one, other in zip(params, copies, strict=True):
        torch.testing.assert_close(one, other)


def test_a_schedule_reaches_every_part():
    params = weights()
    optimizer = Muon(params)
    before = [one.detach().clone() for one in params]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    moved(optimizer, params, 1)
    assert all(one.equal(old) for one, old in zip(params, before, strict=True))


def test_a_saved_state_goes_on():
    params, copies = weights(), weights()
    whole, first, second = Muon(params), Muon(copies), Muon(copies)
    moved(whole, params, 3)
    moved(whole, params, 2)
    moved(first, copies, 3)
    second.load_state_dict(first.state_dict())
    moved(second, copies, 2)
    for one, other in zip(params, copies, strict=True):
        assert one.equal(other)
    for group in second.param_groups:
        group["lr"] = 0.0
    moved(second, copies, 1)
    assert all(one.equal(other) for one, other in zip(params, copies, strict=True))
    with pytest.raises(ValueError, match="saved for others, not matrices and others"):
        whole.load_state_dict(Muon(weights()[1:]).state_dict())


def test_a_run_goes_on_bit_for_bit(tmp_path):
    keys = ("data=text", "data.path=verse.txt", "data.length=8", "model=transformer")
    keys += ("model.hidden_size=8", "model.num_heads=2", "model.num_layers=1", "optimizer=muon")
    keys += ("trainer.batch_size=8", *QUICK)
    (tmp_path / "verse.txt").write_text("the cat sat on the mat.\n" * 40)
    done(tmp_path, "train", *keys, "trainer.max_steps=6", "out=whole", "schedule=constant")
    done(tmp_path, "train", *keys, "trainer.max_steps=3", "out=parts", "schedule=constant")
    done(tmp_path, "train", "resume=parts", "trainer.max_steps=6")
    whole, parts = (
        load_checkpoint(tmp_path / name / "checkpoints/last.pt") for name in ("whole", "parts")
    )
    assert parts["step"] == 6
    for name, weight in whole["model"].items():
        assert weight.equal(parts["model"][name]), name
