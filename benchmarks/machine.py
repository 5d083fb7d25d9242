"""Where it was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = ("grpcio", "aiohttp", "uvloop", "protobuf")


def facts() -> dict[str, str]:
    """The machine and what runs on it, by name."""
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        memory = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        cpu = memory = ""
    model = re.search(r"^model name\s*: (.*)$", cpu, re.MULTILINE)
    size = re.search(r"^MemTotal:\s+(\d+)", memory, re.MULTILINE)
    versions = ", ".join(f"{each} {importlib.metadata.version(each)}" for each in PACKAGES)
    return {
        "CPU": f"{model[1] if model else platform.processor() or 'unknown'} ({platform.machine()})",
        "cores": str(len(os.sched_getaffinity(0))),
        "virtual": "yes" if re.search(r"\bhypervisor\b", cpu) else "no sign of it",
        "memory": f"{int(size[1]) / 2**20:.1f} GiB" if size else "unknown",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {sys.version.split()[0]}",
        "libraries": versions,
        "h2load": _output("h2load", "--version"),
    }


def load_average() -> float:
    """Of the last minute: what else the machine is doing."""
    return os.getloadavg()[0]


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "missing"
    return done.stdout.strip()
