"""The pinned files agree with pyproject.toml, with each other and with every platform."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest

from relay.config.settings import FAST_EXTRA

ROOT = Path(__file__).resolve().parents[1]
FILES = ("run", "build", "test", "dev", "bench")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# What the relay runs on (Linux on both processors, macOS for development).
PLATFORMS = {
    "linux-arm64": r"(manylinux[0-9_]+_aarch64\.?)+",
    "linux-x86_64": r"(manylinux[0-9_]+_x86_64\.?)+",
    "macos-arm64": r"macosx_[0-9_]+_(arm64|universal2)",
}


PIN = re.compile(r"([A-Za-z0-9._-]+)==(\S+)( ; [^-]*?)?((\s+--hash=sha256:\w{64})+)")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Name -> version and hashes. A name with a marker per Python counts with all its versions."""
    text = (ROOT / "requirements" / f"{file}.txt").read_text().replace("\\\n", " ")
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        match = PIN.fullmatch(line)
        assert match is not None, f"{file}.txt: not a pin with hashes: {line[:100]}"
        name = normal(match[1])
        version, hashes = match[2], frozenset(re.findall(r"sha256:(\w{64})", match[4]))
        if name in found:
            version, hashes = f"{found[name][0]},{version}", found[name][1] | hashes
        found[name] = version, hashes
    assert found
    return found


@pytest.mark.parametrize("file", FILES)
def test_every_line_is_a_pin_with_hashes_and_nothing_else(file: str) -> None:
    pins(file)  # neither an index nor a link, an option or a path is a pin
    assert "://" not in (ROOT / "requirements" / f"{file}.txt").read_text()


@pytest.mark.parametrize(
    ("small", "large"), [("run", "fast"), ("fast", "test"), ("test", "dev"), ("build", "dev")]
)
def test_the_larger_file_pins_the_same_versions(small: str, large: str) -> None:
    inner, outer = pins(small), pins(large)
    assert {name: inner[name] for name in inner} == {name: outer.get(name) for name in inner}


def test_every_dependency_of_the_project_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]

    def names(group: str) -> set[str]:
        found: set[str] = set()
        for item in groups[group]:
            if isinstance(item, dict):
                found |= names(item["include-group"])
            else:
                found.add(normal(re.split(r"[\s;<>=!~\[]", item, maxsplit=1)[0]))
        return found

    run = {
        normal(re.split(r"[\s;<>=!~\[]", item, maxsplit=1)[0])
        for item in project["project"]["dependencies"]
    }
    assert run <= set(pins("run"))
    (fast,) = project["project"]["optional-dependencies"]["fast"]
    name, version = fast.split("==")
    assert pins("fast")[name][0] == version == FAST_EXTRA
    for group in ("build", "test", "dev", "bench"):
        assert names(group) <= set(pins(group)), group


def test_every_run_dependency_has_a_wheel_for_every_platform_and_python() -> None:
    pinned = pins("fast")
    recorded: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for line in (ROOT / "requirements" / "wheels.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        platform, python, wheel, digest = line.split(" ")
        name, version, *_, tag_python, tag_abi, tag_platform = wheel.removesuffix(".whl").split("-")
        assert normal(name) in pinned, f"{wheel} is not in fast.txt: run make requirements"
        pin, hashes = pinned[normal(name)]
        assert version == pin, f"{wheel}, but fast.txt has {pin}: run make requirements"
        assert digest in hashes, f"{wheel}: fast.txt does not allow this file"
        assert re.fullmatch(PLATFORMS[platform] + "|any", tag_platform), f"{wheel} for {platform}"
        major, minor = python.split(".")
        fits = {f"cp{major}{minor}", f"py{major}", f"py2.py{major}"}
        assert tag_python in fits or tag_abi == "abi3", f"{wheel} for Python {python}"
        recorded[platform, python].add(normal(name))
    for platform, python in itertools.product(PLATFORMS, PYTHONS):
        missing = set(pinned) - recorded[platform, python]
        assert not missing, f"no wheel for {platform}, Python {python}: {sorted(missing)}"


def test_the_promised_pythons_are_the_recorded_ones() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = {
        item.rpartition(" ")[2]
        for item in project["classifiers"]
        if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", item)
    }
    assert promised == set(PYTHONS)
    assert project["requires-python"] == f">={PYTHONS[0]}"
