"""Each pin of the lock has a file for every Python and system the README names. Asks the package index; `.ci/run` runs it."""

import itertools
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.request import Request, urlopen

import pytest
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name, parse_wheel_filename

from bezoar_utils.study.profile import CODE

PYTHONS = [(3, 11), (3, 12), (3, 13)]
SYSTEMS = {
    "linux x86_64": ("linux", "x86_64", [f"manylinux_2_{n}_x86_64" for n in range(36, 4, -1)] + ["manylinux2014_x86_64"]),
    "linux aarch64": ("linux", "aarch64", [f"manylinux_2_{n}_aarch64" for n in range(36, 16, -1)] + ["manylinux2014_aarch64"]),
    "macOS arm64": ("darwin", "arm64", list(mac_platforms((15, 0), "arm64"))),
}
# pure Python without a wheel; pip builds them anywhere
SOURCE_ONLY = {"rouge-score", "sqlitedict", "word2number"}
pytestmark = pytest.mark.index


def pins() -> list[Requirement]:
    lines = [line for name in ("torch.txt", "constraints.txt") for line in (CODE / "requirements" / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if re.match("[a-z]", line)]


def index_address() -> str:
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"], capture_output=True, text=True, check=False
    )
    return (os.environ.get("PIP_INDEX_URL") or pip.stdout.strip() or "https://pypi.org/simple").rstrip("/")


def files_of(pin: Requirement) -> list[str]:
    """The names of a pin's files on the index."""
    accept = {"Accept": "application/vnd.pypi.simple.v1+json, text/html;q=0.5"}
    with urlopen(Request(f"{index_address()}/{canonicalize_name(pin.name)}/", headers=accept), timeout=60) as reply:  # noqa: S310
        text = reply.read().decode()
    names = (
        [f["filename"] for f in json.loads(text)["files"]] if text.startswith("{") else re.findall(r">([^<>]+\.(?:whl|gz))<", text)
    )
    version = next(iter(pin.specifier)).version
    return [name for name in names if f"-{version}" in name]


def wheel_fits(name: str, tags: set) -> bool:
    return name.endswith(".whl") and not parse_wheel_filename(name)[3].isdisjoint(tags)


def test_every_pin_can_be_installed_on_every_python_and_system():
    wanted = pins()
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip((pin.name for pin in wanted), pool.map(files_of, wanted)))
    lacking = []
    for python, (system, (sys_platform, machine, platforms)) in itertools.product(PYTHONS, SYSTEMS.items()):
        tags = {*cpython_tags(python, platforms=platforms), *compatible_tags(python, f"cp{python[0]}{python[1]}", platforms)}
        version = f"{python[0]}.{python[1]}"
        markers = {
            "sys_platform": sys_platform,
            "platform_machine": machine,
            "python_version": version,
            "python_full_version": f"{version}.9",
        }
        for pin in wanted:
            needed = pin.marker is None or pin.marker.evaluate(markers)
            if needed and pin.name not in SOURCE_ONLY and not any(wheel_fits(name, tags) for name in found[pin.name]):
                lacking.append(f"{pin} on Python {version}, {system}")
    assert not lacking, lacking
