import re
import tomllib

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from bezoar_utils.study.profile import CODE

REQUIREMENTS = CODE / "requirements"


def asked():
    lines = (line.split("#")[0].strip() for line in (REQUIREMENTS / "base.in").read_text().splitlines())
    return {canonicalize_name(r.name): r for r in (Requirement(line) for line in lines if line)}


def pins(name):
    found = re.findall(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]+\])?==([^\s\\]+)", (REQUIREMENTS / name).read_text(), re.MULTILINE)
    return {canonicalize_name(package): Version(version) for package, version in found}


def test_the_lock_satisfies_every_range():
    locked = pins("lock.txt")
    for name, requirement in asked().items():
        assert name in locked and locked[name] in requirement.specifier, name


def test_constraints_are_the_lock_without_hashes():
    assert pins("constraints.txt") == pins("lock.txt")
    assert "--hash" not in (REQUIREMENTS / "constraints.txt").read_text()


def test_every_pin_of_the_lock_has_a_hash_and_torch_is_not_among_them():
    entries = re.split(r"\n(?=[a-z])", (REQUIREMENTS / "lock.txt").read_text().strip())
    assert len(entries) == len(pins("lock.txt")) > 100
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not {"torch", "triton"} & set(pins("lock.txt"))
    assert not [name for name in pins("lock.txt") if name.startswith(("nvidia-", "cuda-"))]


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((CODE / "environment.yml").read_text())
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["-r requirements/torch.txt", "-r requirements/base.in", "-c requirements/constraints.txt"]
    assert "python>=3.11.5,<3.14" in environment["dependencies"]


def test_torch_is_pinned_exactly_and_alone():
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+\n", (REQUIREMENTS / "torch.txt").read_text())


def test_no_file_of_the_environment_names_an_index():
    for path in [*REQUIREMENTS.glob("*.txt"), REQUIREMENTS / "base.in", CODE / "environment.yml"]:
        assert not re.search(r"https?://|--index-url|file:", path.read_text()), path


def test_what_is_installed_is_what_is_locked():
    from importlib.metadata import version

    locked = pins("lock.txt")
    for name in ("transformers", "trl", "peft", "bitsandbytes", "datasets", "papermill", "nbval", "openai", "lm-eval"):
        assert Version(version(name)) == locked[name]
    assert Version(version("torch")).base_version == (REQUIREMENTS / "torch.txt").read_text().strip().split("==")[1]


def test_uv_installs_torch_with_all_that_torch_asks_for():
    """What the lock is resolved with says that torch needs no CUDA libraries; read at installation, torch would not load."""
    assert "uv" not in tomllib.loads((CODE / "pyproject.toml").read_text())["tool"]
    metadata = tomllib.loads((CODE / "requirements" / "pyproject.toml").read_text())["tool"]["uv"]["dependency-metadata"]
    assert [package["name"] for package in metadata] == ["torch"]
