"""`util/schedule.py` against closed forms."""

import math

import numpy as np
import pytest

from util.common import Mistake
from util.config import ROOT, load_config
from util.optim import poly_learning_rate
from util.schedule import build_schedule, cosine, onecycle, poly, step, with_warmup

CONFIG = ROOT / "config/toy/toy_pspnet18.yaml"
CATALYST = {"schedule": "onecycle", "schedule_by": "epoch", "base_lr": 0.01, "warmup_lr": 0.001, "warmup_epochs": 3,
            "min_lr": 0.0001, "momentum": 0.95, "momentum_low": 0.85}  # fmt: skip


def config(**values):
    return load_config(CONFIG, [str(word) for pair in values.items() for word in pair])


def curve(cfg, max_iter, epoch_iters):
    """Rates and momenta (max_iter,) of a whole run."""
    schedule = build_schedule(cfg, max_iter, epoch_iters)
    return np.array([schedule(i) for i in range(max_iter)]).T


# ---- formulas ----


def test_poly_without_floor_is_bit_for_bit_the_original():
    for base_lr in (0.01, 0.1, 0.0123):
        for t in range(0, 1000, 7):
            assert poly(t, 999, base_lr) == base_lr * (1 - t / 999) ** 0.9 == poly_learning_rate(base_lr, t, 999)


def test_poly_falls_from_base_lr_to_its_floor():
    assert poly(0, 40000, 0.01, min_lr=1e-4) == pytest.approx(0.01, rel=1e-15)
    assert poly(20000, 40000, 0.01, min_lr=1e-4) == pytest.approx(0.0099 * 0.5**0.9 + 0.0001, rel=1e-15)
    assert poly(40000, 40000, 0.01, min_lr=1e-4) == 1e-4
    assert poly(3, 4, 8.0, power=2, min_lr=4.0) == 4.25
    assert np.all(np.diff([poly(t, 100, 0.01, min_lr=1e-4) for t in range(101)]) < 0)


def test_cosine_is_half_a_period():
    assert cosine(0, 90, 0.01, 0.002) == 0.01 and cosine(90, 90, 0.01, 0.002) == 0.002
    assert cosine(45, 90, 0.01, 0.002) == pytest.approx(0.006, rel=1e-12)
    assert cosine(30, 90, 1.0) == pytest.approx(0.75, rel=1e-12)
    assert np.all(np.diff([cosine(t, 90, 0.01) for t in range(91)]) < 0)


def test_step_falls_at_its_shares_exactly():
    rates = [step(t, 100, 8.0, (0.07, 0.29, 0.57), 0.5) for t in range(101)]  # shares whose product with 100 is not exact
    assert rates == [8.0] * 7 + [4.0] * 22 + [2.0] * 28 + [1.0] * 44
    assert step(3, 4, 8.0, (), 0.5) == 8.0


def test_onecycle_rises_and_falls_on_straight_lines():
    values = [onecycle(t, 13, peak=0.01, start=0.001, end=0.0001, warmup=3) for t in range(14)]
    assert values[0] == 0.001 and values[3] == 0.01 and values[13] == 0.0001
    assert values[1] == pytest.approx(0.004, rel=1e-12) and values[8] == pytest.approx(0.00505, rel=1e-12)
    assert np.diff(values) == pytest.approx([0.003] * 3 + [-0.00099] * 10, rel=1e-9)
    assert onecycle(0, 5, peak=0.01, start=0.001, end=0, warmup=0) == 0.01


def test_warmup_meets_the_regular_curve_which_counts_on():
    def regular(t):
        return poly(t, 100, 0.01)

    rates = [with_warmup(regular, t, 10, 0.002) for t in range(101)]
    assert rates[0] == 0.002 and rates[5] == pytest.approx((0.002 + regular(10)) / 2, rel=1e-12)
    assert rates[10:] == [regular(t) for t in range(10, 101)]
    assert np.diff(rates[:11]) == pytest.approx([(regular(10) - 0.002) / 10] * 10, rel=1e-9)
    assert [with_warmup(regular, t, 0, 0.002) for t in (0, 1)] == [regular(0), regular(1)]


@pytest.mark.parametrize("value", [poly(0, 0, 0.5), cosine(0, 0, 0.5), step(0, 0, 0.5, (0.5,), 0.1),
                                   onecycle(0, 0, 0.5, 0.1, 0.2, 0)])  # fmt: skip
def test_a_run_of_no_length_stands_at_the_beginning(value):
    assert value == 0.5


# ---- of a config ----


def test_the_default_is_the_original_schedule():
    rates, momenta = curve(config(), 50, 10)
    assert rates.tolist() == [poly_learning_rate(config().base_lr, i, 50) for i in range(50)]
    assert set(momenta) == {config().momentum}


@pytest.mark.parametrize("epochs", [5, 30, 200])
def test_the_one_cycle_recipe_epoch_by_epoch(epochs):
    rates, momenta = curve(config(**CATALYST), epochs * 4, 4)
    assert np.array_equal(rates, rates[::4].repeat(4)) and np.array_equal(momenta, momenta[::4].repeat(4))
    rates, momenta = rates[::4], momenta[::4]
    assert rates[0] == 0.001 and rates[3] == 0.01 and rates[-1] == 0.0001 and len(rates) == epochs
    assert rates[1] == pytest.approx(0.004, rel=1e-12) and rates[2] == pytest.approx(0.007, rel=1e-12)
    assert momenta[0] == 0.95 and momenta[3] == 0.85 and momenta[-1] == 0.95
    assert momenta[1] == pytest.approx(0.95 - 0.1 / 3, rel=1e-12)
    assert np.all(np.diff(rates[:4]) > 0) and np.all(np.diff(rates[3:]) < 0)
    assert np.all(np.diff(momenta[:4]) < 0) and np.all(np.diff(momenta[3:]) > 0)


def test_one_cycle_by_iteration_ends_in_the_last_one():
    rates, momenta = curve(config(**CATALYST | {"schedule_by": "iteration"}), 41, 4)
    assert (rates[0], rates[12], rates[40]) == (0.001, 0.01, 0.0001)
    assert (momenta[0], momenta[12], momenta[40]) == (0.95, 0.85, 0.95)
    assert np.diff(rates) == pytest.approx([0.009 / 12] * 12 + [-0.0099 / 28] * 28, rel=1e-9)


def test_one_cycle_without_momentum_low_leaves_momentum_alone():
    _, momenta = curve(config(schedule="onecycle", momentum=0.95, warmup_iters=3), 10, 5)
    assert set(momenta) == {0.95}


def test_one_epoch_of_one_cycle_is_trained_at_the_peak():
    assert curve(config(schedule="onecycle", schedule_by="epoch", base_lr=0.5), 4, 4)[0].tolist() == [0.5] * 4


def test_by_epoch_the_rate_moves_between_epochs_and_the_last_one_still_learns():
    rates, _ = curve(config(schedule_by="epoch", base_lr=1.0, power=1), 12, 3)
    assert rates.tolist() == [1.0] * 3 + [0.75] * 3 + [0.5] * 3 + [0.25] * 3
    rates, _ = curve(config(schedule="cosine", schedule_by="epoch", base_lr=1.0), 5, 3)  # the second epoch is cut short
    assert rates == pytest.approx([1.0] * 3 + [0.5] * 2)


@pytest.mark.parametrize("values", [{"warmup_epochs": 2}, {"warmup_iters": 10}])
@pytest.mark.parametrize("schedule", ["poly", "cosine", "step"])
def test_warmup_of_a_config_in_epochs_or_iterations(schedule, values):
    plain, _ = curve(config(schedule=schedule, min_lr=0.001, base_lr=0.01), 50, 5)
    rates, _ = curve(config(schedule=schedule, min_lr=0.001, base_lr=0.01, warmup_lr=0.004, **values), 50, 5)
    assert np.array_equal(rates[10:], plain[10:])
    assert rates[:11] == pytest.approx(np.linspace(0.004, plain[10], 11), rel=1e-12)


def test_keys_of_a_config_reach_their_schedule():
    rates, _ = curve(config(schedule="step", base_lr=8.0, step_at="[0.25, 0.5]", step_factor=0.5), 8, 4)
    assert rates.tolist() == [8, 8, 4, 4, 2, 2, 2, 2]
    rates, _ = curve(config(base_lr=4.0, power=2, min_lr=1.0), 3, 1)
    assert rates == pytest.approx([4, 3 * 4 / 9 + 1, 3 / 9 + 1])
    rates, _ = curve(config(schedule="cosine", base_lr=4.0, min_lr=2.0), 4, 1)
    assert rates == pytest.approx([4, 3 + math.sqrt(0.5), 3, 3 - math.sqrt(0.5)])


@pytest.mark.parametrize("values, key", [
    ({"warmup_iters": 40}, "warmup_iters"),
    ({"warmup_epochs": 10}, "warmup_epochs"),
    ({"warmup_epochs": 10, "schedule_by": "epoch", "warmup_lr": 0.001}, "warmup_epochs"),
    ({"warmup_epochs": 9, "schedule_by": "epoch", "schedule": "onecycle", "warmup_lr": 0.001}, "warmup_epochs"),
    ({"warmup_iters": 39, "schedule": "onecycle"}, "warmup_iters"),
    ({"warmup_iters": 5, "schedule_by": "epoch"}, "warmup_iters"),
    ({"warmup_epochs": 1, "schedule_by": "epoch", "warmup_lr": 0}, "warmup_lr"),  # an epoch that learns nothing
])  # fmt: skip
def test_a_warmup_that_does_not_fit_names_file_and_key(values, key):
    with pytest.raises(Mistake, match=f"{CONFIG}: TRAIN.{key}: {values[key]} "):
        build_schedule(config(**values), 40, 4)


@pytest.mark.parametrize("values", [{"warmup_iters": 39, "warmup_lr": 0}, {"warmup_epochs": 9, "schedule_by": "epoch"},
                                    {"warmup_epochs": 8, "schedule_by": "epoch", "schedule": "onecycle"}])  # fmt: skip
def test_the_longest_warmup_that_fits_is_taken(values):
    values = {"warmup_lr": 0.0001, **values}
    rates, _ = curve(config(**values), 40, 4)
    assert rates[0] == values["warmup_lr"] < rates[4] < rates.max()
