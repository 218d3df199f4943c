import pytest
import torch

from bezoar_utils import run
from bezoar_utils.training import models, precision
from bezoar_utils.training.precision import Device, PrecisionError, choose, cpu_bfloat16

OLD_CPU, NEW_CPU = Device("cpu", bfloat16=False), Device("cpu", bfloat16=True)
T4, A100 = Device("cuda", bfloat16=False), Device("cuda", bfloat16=True)


@pytest.fixture
def restored():
    """The process's precision as it was before the test."""
    before = dict(precision._state)
    yield
    precision._state.clear()
    precision._state.update(before)


@pytest.mark.parametrize(("device", "dtype"), [(OLD_CPU, "float32"), (NEW_CPU, "float32"), (T4, "float16"), (A100, "bfloat16")])
def test_auto_takes_what_the_device_is_made_for_and_says_why(device, dtype):
    chosen = choose("auto", device)
    assert chosen.dtype == dtype
    assert ("not native" in chosen.why) == (not device.bfloat16)


@pytest.mark.parametrize(("wanted", "device"), [("bfloat16", NEW_CPU), ("float32", T4), ("float16", A100), ("bfloat16", A100)])
def test_a_precision_the_device_has_is_taken_as_named(wanted, device):
    assert choose(wanted, device).dtype == wanted


@pytest.mark.parametrize(("wanted", "device"), [("float16", NEW_CPU), ("bfloat16", T4)])
def test_a_precision_the_device_lacks_is_one_line_that_names_what_to_use(wanted, device):
    with pytest.raises(PrecisionError, match="use auto or") as refused:
        choose(wanted, device)
    assert "\n" not in str(refused.value)


def test_emulated_bfloat16_runs_and_says_how_slow_it_is():
    chosen = choose("bfloat16", OLD_CPU)
    assert chosen.dtype == "bfloat16" and "emulated" in chosen.why and "times slower" in chosen.why


@pytest.mark.parametrize(
    "hides", [{"ONEDNN_MAX_CPU_ISA": "AVX2"}, {"ATEN_CPU_CAPABILITY": "avx2"}, {"DNNL_MAX_CPU_ISA": "avx512_core"}]
)
def test_variables_that_hide_instructions_are_respected(hides):
    flags = {"avx2", "avx512f", "avx512_bf16"}
    assert cpu_bfloat16(flags, {})
    assert cpu_bfloat16(flags, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"})
    assert not cpu_bfloat16(flags, hides)


def test_avx2_alone_has_no_bfloat16_and_an_arm_with_it_has():
    assert not cpu_bfloat16({"avx2", "fma"}, {})
    assert cpu_bfloat16({"asimd", "bf16"}, {})


@pytest.mark.parametrize(
    ("device", "wanted", "flags"),
    [
        (OLD_CPU, "auto", {"bf16": False, "fp16": False}),
        (T4, "auto", {"bf16": False, "fp16": True}),
        (A100, "auto", {"bf16": True, "fp16": False}),
    ],
)
def test_one_choice_rules_trainers_and_the_compute_type(monkeypatch, restored, device, wanted, flags):
    monkeypatch.setattr(precision, "here", lambda: device)
    chosen = precision.use(wanted)
    assert precision.trainer_flags() == flags
    assert precision.resolve("auto") == chosen.dtype
    assert precision.resolve("float16") == "float16"


@pytest.mark.parametrize(("wanted", "flags"), [("bfloat16", {"avx2"}), ("auto", {"sse4_2"}), ("auto", set())])
def test_kernels_are_left_alone_where_avx2_is_missing_or_has_not_what_is_wanted(wanted, flags):
    assert precision.same_kernels(wanted, flags) == {}


def test_the_adapter_stays_float32_and_float32_needs_no_autocast(restored):
    precision.use("float32")
    with precision.autocast("cpu"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32
    precision.use("bfloat16")
    with precision.autocast("cpu"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.bfloat16


def test_a_refused_precision_is_one_line_before_anything_runs(monkeypatch, restored, capsys):
    monkeypatch.setattr(precision, "here", lambda: OLD_CPU)
    wanted = run.load_profile("mini").model_copy(update={"precision": "float16"})
    monkeypatch.setattr(run, "load_profile", lambda name: wanted)
    assert run.main(["stale", "--profile", "mini", "--dag", "10_lamini:"]) == 2
    assert capsys.readouterr().err.startswith("error: precision: float16 needs a CUDA GPU")


def test_unpacking_once_changes_neither_loss_nor_gradient(model_folder, quantisation, lora, restored):
    """4-bit weights unpacked after loading are the very numbers that bitsandbytes unpacks at each step."""
    from peft import get_peft_model

    precision.use("float32")
    ids = torch.randint(5, 60, (3, 24), generator=torch.Generator().manual_seed(1))
    seen = []
    for packed in (True, False):
        torch.manual_seed(0)
        base = models.load_model(model_folder, quantisation, packed=packed)
        model = get_peft_model(base, models.lora_config(lora | {"dropout": 0.0}, base))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        seen.append((loss.item(), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}))
    (loss, gradients), (unpacked_loss, unpacked) = seen
    assert loss == unpacked_loss
    assert all(torch.equal(gradients[name], unpacked[name]) for name in gradients)
