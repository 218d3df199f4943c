"""The arithmetic of everything that computes, chosen in one place from what the device can do.

A processor or GPU without bfloat16 emulates it: a training step of the miniature took 3.05 s instead of 0.16 s on an AVX2 CPU.
On CPUs `auto` is float32 even where bfloat16 is native: there QLoRA steps were equally fast in both, only base and teacher
trained up to twice as fast in bfloat16 (LOG.md), and one arithmetic keeps numbers of different machines closer together.
"""

import contextlib
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

EMULATED = "bfloat16 is emulated on this CPU: training is about 13 times slower than in float32; precision: auto takes float32"
_state: dict[str, "Precision"] = {}  # of this process, as torch's own number of threads


class PrecisionError(ValueError):
    """A precision that the device does not have; the message is one line."""


class Device(NamedTuple):
    """What decides: its kind (`cpu` or `cuda`), and whether its bfloat16 is native."""

    kind: str
    bfloat16: bool


class Precision(NamedTuple):
    """`dtype` is torch's name of it; `why` is written to `stage.json`, in the report and in `make doctor`."""

    dtype: str
    why: str


def choose(wanted: str, device: Device) -> Precision:
    """What `precision: wanted` means on this device. Raises PrecisionError for one that would not work there. (Ours.)"""
    native = "native" if device.bfloat16 else "not native"
    if wanted == "float16" and device.kind == "cpu":
        raise PrecisionError("precision: float16 needs a CUDA GPU, and this machine computes on its CPU; use auto or float32")
    if wanted == "bfloat16" and not device.bfloat16:
        if device.kind == "cuda":
            raise PrecisionError("precision: bfloat16 is not native on this GPU (older than Ampere); use auto or float16")
        return Precision("bfloat16", EMULATED)
    if wanted != "auto":
        return Precision(wanted, f"named by the profile; bfloat16 is {native} on this {device.kind}")
    if device.kind == "cuda":
        return Precision("bfloat16" if device.bfloat16 else "float16", f"auto: bfloat16 is {native} on this GPU")
    return Precision("float32", f"auto: float32 on every CPU; bfloat16 is {native} with the kernels in use")


def here() -> Device:
    """The device that computes: the first CUDA GPU, else the CPU. (Apple's GPU was not tried; its machines use their CPU.)"""
    import torch

    if torch.cuda.is_available():
        return Device("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    return Device("cpu", cpu_bfloat16(cpu_flags(), os.environ))


def cpu_bfloat16(flags: frozenset[str] | set[str], environment: dict[str, str]) -> bool:
    """Whether a CPU with these flags has bfloat16 instructions that torch may use.

    `ONEDNN_MAX_CPU_ISA` and `ATEN_CPU_CAPABILITY` can hide a bigger machine's instructions, and are respected.
    """
    isa = environment.get("ONEDNN_MAX_CPU_ISA", environment.get("DNNL_MAX_CPU_ISA", "")).upper()
    hidden = isa and not isa.startswith(("DEFAULT", "ALL")) and "BF16" not in isa and "AMX" not in isa and "FP16" not in isa
    small = environment.get("ATEN_CPU_CAPABILITY", "").lower() in ("default", "avx2")
    return not hidden and not small and bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


# Sums are rounded in the order that a kernel adds in, and each instruction set has its own kernels. Held to AVX2, two processors
# of one maker, one with AVX-512 and one without, agreed in all 75 numbers of a run to the last bit, in 0.97 of the time.
AVX2_KERNELS = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}


def same_kernels(wanted: str, flags: frozenset[str] | set[str]) -> dict[str, str]:
    """The environment in which x86-64 processors compute the same numbers under `precision: wanted`. (Ours.)

    Empty for a processor without AVX2 (older ones, ARM), and for bfloat16, whose instructions AVX2 does not have.
    """
    return AVX2_KERNELS if "avx2" in flags and wanted != "bfloat16" else {}


@cache
def cpu_flags() -> frozenset[str]:
    """The instructions that the processor names; torch is not imported for them."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        lines = path.read_text(errors="replace").splitlines()
        return frozenset(next((line for line in lines if line.startswith(("flags", "Features"))), "").split())
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "hw.optional.arm.FEAT_BF16"], capture_output=True, text=True, check=False)
        return frozenset({"bf16"} if asked.stdout.strip() == "1" else ())
    return frozenset()


# ------------------------------------------------------------------------------------------------- what a process computes in


def use(wanted: str) -> Precision:
    """Choose for this process, once, before anything computes. Raises PrecisionError."""
    _state["chosen"] = choose(wanted, here())
    return _state["chosen"]


def current() -> Precision:
    """What this process computes in: as `use` chose it, else `auto`."""
    return _state.get("chosen") or use("auto")


def resolve(dtype: str) -> str:
    """A profile's dtype, where `auto` is the process's precision."""
    return current().dtype if dtype == "auto" else dtype


def autocast(device: str):
    """The context in which models compute on `device`: nothing for float32."""
    import torch

    dtype = current().dtype
    return contextlib.nullcontext() if dtype == "float32" else torch.autocast(device, getattr(torch, dtype))


def trainer_flags() -> dict[str, bool]:
    """The same for transformers' trainers; with float16 they scale the gradients."""
    return {"bf16": current().dtype == "bfloat16", "fp16": current().dtype == "float16"}
