from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from util.optim import build_optimizer, poly_learning_rate, set_learning_rate


def test_poly_schedule_equals_the_golden_numbers():
    golden = np.load(Path(__file__).parent / "golden/semseg.npz")["poly_lr"]
    ours = [poly_learning_rate(0.01, i, 1000, power=0.9) for i in range(0, 1001, 50)]
    np.testing.assert_allclose(ours, golden, rtol=0, atol=1e-15)


def test_heads_learn_ten_times_as_fast_at_every_rate():
    backbone, heads = [nn.Linear(2, 2), nn.Linear(2, 2)], [nn.Linear(2, 3)]
    optimizer = build_optimizer(backbone, heads, base_lr=0.01, momentum=0.9, weight_decay=1e-4)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.01, 0.01, 0.1])
    set_learning_rate(optimizer, 0.003)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.003, 0.003, 0.03])
    assert all(g["momentum"] == 0.9 and g["weight_decay"] == 1e-4 for g in optimizer.param_groups)


def test_every_parameter_stands_in_one_group():
    modules = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)]
    optimizer = build_optimizer(modules[:1], modules[1:], base_lr=1.0)
    grouped = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for m in modules for p in m.parameters())


def test_one_step_is_sgd_with_momentum_and_decay():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = build_optimizer([], [layer], base_lr=0.1, head_lr_factor=10, momentum=0.9, weight_decay=0.5)
    for expected in (2.0 - 1.0 * (3.0 + 0.5 * 2.0), None):
        optimizer.zero_grad()
        (3.0 * layer(torch.ones(1, 1))).sum().backward()
        optimizer.step()
        if expected is not None:
            assert layer.weight.item() == pytest.approx(expected)
    velocity = 0.9 * 4.0 + (3.0 + 0.5 * -2.0)
    assert layer.weight.item() == pytest.approx(-2.0 - velocity)
