"""Record which wheel of each run dependency serves which platform and Python: wheels.txt.

`make requirements` runs this after compiling the pins. It asks pip to resolve fast.txt, which is
run.txt and what the extra `fast` adds, with wheels only, for every platform and Python that the
relay promises, and fails if one has no wheel: a dependency that needs a compiler, or that exists
for one processor only, does not get in. The tests hold the record against fast.txt without any
network.

Usage: python requirements/record_wheels.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Tags that pip takes as given, so every one that such a machine understands is listed.
# glibc 2.28: Debian 10, RHEL 8 and newer.
PLATFORMS = {
    "linux-arm64": ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"),
    "linux-x86_64": ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "macos-arm64": ("macosx_14_0_arm64",),
}


def wheels(python: str, tags: tuple[str, ...]) -> list[tuple[str, str]]:
    """The (file name, sha256) that pip would install for one Python on one platform.

    Raises:
        subprocess.CalledProcessError: a pin has no wheel there; pip said which on stderr.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        command += ["--ignore-installed", "--only-binary", ":all:", "--require-hashes"]
        command += ["--target", str(Path(scratch, "target")), "--implementation", "cp"]
        command += ["--python-version", python, "--report", str(report)]
        for tag in tags:
            command += ["--platform", tag]
        command += ["--requirement", str(HERE / "fast.txt")]
        subprocess.run(command, check=True)
        installs = json.loads(report.read_text())["install"]
    found = []
    for item in installs:
        info = item["download_info"]
        name = info["url"].rsplit("/", 1)[1]
        found.append((name, info["archive_info"]["hashes"]["sha256"]))
    return found


def main() -> None:
    """Write wheels.txt: platform, Python, wheel, sha256, one wheel a line."""
    lines = ["# Made by record_wheels.py: which wheel of fast.txt serves which platform, Python."]
    for platform, tags in sorted(PLATFORMS.items()):
        for python in PYTHONS:
            found = sorted(wheels(python, tags))
            lines += [f"{platform} {python} {name} {digest}" for name, digest in found]
    (HERE / "wheels.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
