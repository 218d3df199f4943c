"""The benchmarks of training run at their smallest: what they measure is the same training. How fast it is, they say themselves."""

import random

import pytest
import torch

from benchmarks import dpo, gpu, near_copies, sft

pytestmark = pytest.mark.slow  # `.ci/run` runs it


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return sft.small_case(tmp_path_factory.mktemp("benchmarks"), profile="tiny", documents=60)


@pytest.fixture(scope="module")
def rows(case):
    return sft.scheme_rows(case.world, 2 * sft.BATCH, random.Random(1))


@pytest.fixture(scope="module")
def pairs(case):
    return dpo.hh_pairs(case.world, 2 * sft.BATCH, random.Random(1))


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    return gpu.prepare(tmp_path_factory.mktemp("gpu"), on_gpu=False)


def within(differences, tolerated):
    return all(abs(ours - theirs) <= tolerated[name] for name, (theirs, ours) in differences.items())


def test_sft_is_the_same_training_both_ways(case, rows):
    assert within(sft.compare(case, rows), sft.TOLERATED)


def test_dpo_is_the_same_training_both_ways(case, pairs):
    assert within(dpo.compare(case, pairs), dpo.TOLERATED)


@pytest.mark.parametrize("way", [sft.DEFAULTS, sft.STUDY, *sft.OPTIONS], ids=lambda way: way.name)
def test_sft_is_timed(case, rows, way):
    speeds = sft.measure(sft.trainer_for, way, case, rows, 100, seed=0)
    assert 0 < speeds["with set-up"] < speeds["speed"] and speeds["by CPU time"] > 0


@pytest.mark.parametrize("way", [dpo.DEFAULTS, dpo.STUDY], ids=lambda way: way.name)
def test_dpo_is_timed(case, pairs, way):
    speeds = sft.measure(dpo.trainer_for, way, case, pairs, 100, seed=0)
    assert 0 < speeds["with set-up"] < speeds["speed"] and speeds["by CPU time"] > 0


def test_a_difference_is_printed_and_fails(capsys):
    assert sft.print_differences({"loss": (1.0, 1.1)}, {"loss": 0.05})
    assert not sft.print_differences({"loss": (1.0, 1.04)}, {"loss": 0.05})
    assert capsys.readouterr().out.count("NO") == 1


def test_the_head_is_put_back_as_it_was():
    from trl.trainer import utils

    before = utils._use_triton
    with pytest.raises(ZeroDivisionError), sft.supervised_positions_only():
        assert utils._use_triton(torch.device("cpu"))
        1 / 0  # noqa: B018
    assert utils._use_triton is before


def test_near_copies_are_found_by_both_searches():
    texts = near_copies.make_texts(300, 40, 0.9, random.Random(0))
    (_, exact), (_, ours) = near_copies.search(texts, 0.9, len(texts)), near_copies.search(texts, 0.9, 0)
    assert 5 < sum(exact) < 60 and exact == ours


@pytest.mark.parametrize("setting", gpu.SETTINGS, ids=lambda setting: setting.name)
def test_the_gpu_benchmark_runs_at_toy_size(machine, setting):
    result = gpu.measure(machine, setting, steps=1)
    assert result["tokens/s"] > 0 and result["name"] == setting.name
    table = gpu.markdown([result], machine, "CPU", None)
    assert "says nothing about a GPU" in table and setting.name in table


def test_flops_are_four_a_weight_and_six_with_a_reference():
    """OpenLLaMA-3B-v2 has 3,426,473,600 parameters, of which its input embeddings take part in no matrix product."""
    embeddings = 32000 * 3200
    weights = 3_426_473_600 - embeddings
    attention = 2 * 26 * 3200 * 100
    alone = gpu.flops_a_token(gpu.OPENLLAMA_3B_V2, [100, 100], reference=False)
    assert alone == pytest.approx(4 * weights + 3 * attention, rel=1e-3)
    assert gpu.flops_a_token(gpu.OPENLLAMA_3B_V2, [100], reference=True) == pytest.approx(1.5 * alone, rel=0.01)


def test_what_does_not_fit_is_tried_smaller_then_checkpointed(machine, monkeypatch):
    tried = []

    def too_large(machine, setting, steps):
        tried.append((setting.micro_batch, setting.arguments["gradient_checkpointing"]))
        if len(tried) < 4:
            raise torch.OutOfMemoryError
        return {"tried": tried}

    monkeypatch.setattr(gpu, "run", too_large)
    setting = gpu.Setting("fast", "sft", 4, gpu.UNCHECKPOINTED)
    assert gpu.measure(machine, setting, 1) == {"tried": [(4, False), (2, False), (1, False), (4, True)]}


@pytest.mark.parametrize(
    ("given", "device", "peak"),
    [("H100", "CPU", 989.0), ("12.5", "CPU", 12.5), (None, "NVIDIA GeForce RTX 4090", 165.2), (None, "CPU", None)],
)
def test_the_peak_is_a_gpus_or_a_number(given, device, peak):
    assert gpu.peak_of(given, device) == peak
