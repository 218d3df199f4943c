"""What a log says of its training, and what no log says."""

import pytest

from bezoar_utils.training import loop


def test_curve_facts_are_those_one_reads_off_the_chart():
    nan = float("nan")
    log = [{"step": s, "loss": 5.0 - 0.2 * s} for s in range(1, 21)]
    log += [{"step": s, "loss": nan, "eval_loss": v} for s, v in ((5, 3.0), (10, 2.0), (15, 2.5))]
    facts = loop.curve_facts(log)
    assert facts["first training loss"] == pytest.approx(4.7), "the mean of two of twenty steps"
    assert facts["last training loss"] == pytest.approx(1.1)
    assert (facts["lowest validation loss"], facts["at step"], facts["last validation loss"]) == (2.0, 10, 2.5)


def test_flops_are_two_four_or_six_a_parameter_and_token():
    assert loop.flops(10, read=3) == 60 and loop.flops(10, trained=3) == 120 and loop.flops(10, every_weight=3, read=1) == 200
