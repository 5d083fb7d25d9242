"""What the tests of compose/ and deploy/ share: files, programs, metric names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from relay.telemetry import DROP_REASONS, FILTER_REASONS, METRICS, OUTCOMES

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE: Final = ROOT / "compose"
DEPLOY: Final = ROOT / "deploy"


def program(name: str, why: str) -> str:
    """The program's path; skips the test where it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not on the PATH ({why})")
    return path


PROMTOOL_WHY: Final = "Debian package prometheus"
OTELCOL_WHY: Final = "deploy/collector/build.sh makes one"


def run(*command: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Run a program that must succeed; what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def load(path: Path) -> Any:
    """The only YAML document of a file; keys that stand twice are a fault."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)  # noqa: S506 - is a SafeLoader


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            name = key.value
            if name in seen and name != "<<":
                raise AssertionError(f"{key.start_mark}: {name!r} stands twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


def relay_check(env: Mapping[str, str]) -> str:
    """``otlp-relay check`` under exactly these settings: what it printed.

    It fails on faults, and unknown RELAY_* names are warnings, which must not occur.
    """
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("OTEL", "RELAY"))
    }
    done = subprocess.run(
        [sys.executable, "-m", "relay", "check"],
        cwd=ROOT,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "warning" not in said.lower(), said
    return said


SUFFIXES: Final = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
}
SERIES: Final = {
    f"otlp_relay_{info.name}{suffix}": info
    for info in METRICS.values()
    for suffix in SUFFIXES[info.kind]
}
"""Every series name of the relay, with what it is."""


def check_names(expression: str, *, families: bool = False) -> None:
    """Every metric, label and reason in a PromQL expression exists.

    ``families``: a histogram may also stand without _bucket, _sum or _count, as in prose.
    """
    # A recording rule's own name (level:metric:operation) is not a series of the relay.
    bare = re.sub(r"\w+:\w+:\w+", "", expression)
    known_names = {*SERIES, "otlp_relay_build_info"}
    if families:
        known_names |= {f"otlp_relay_{name}" for name in METRICS}
    for name in re.findall(r"\botlp_relay_\w+", bare):
        assert name in known_names, f"{name} in {expression}"
    for name, value in re.findall(r'(reason|outcome)=~?"([^"]*)"', bare):
        known = OUTCOMES if name == "outcome" else (*DROP_REASONS, *FILTER_REASONS)
        assert set(value.split("|")) <= set(known), expression
    for name, info in SERIES.items():
        for used in re.findall(
            rf"\b(?:by|without) \(([^)]*)\) \(\s*(?:rate|increase)?\(?{name}\b", bare
        ):
            labels = {label.strip() for label in used.split(",")}
            allowed = {*info.labels, "signal", "instance", "le", "job"}
            assert labels <= allowed, f"{labels - allowed} of {name} in {expression}"


def interpolate(value: Any) -> Any:
    """Compose's ${NAME:-default} in every string, with nothing set; numbers become numbers."""
    if isinstance(value, dict):
        return {key: interpolate(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolate(inner) for inner in value]
    if isinstance(value, str) and "${" in value:
        done = re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", value)
        return int(done) if done.isdecimal() else done
    return value
