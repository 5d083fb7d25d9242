"""deploy/systemd/: what systemd says of the unit."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

import pytest

from tests.deploy.tools import DEPLOY, program, relay_check, run

UNIT = DEPLOY / "systemd" / "otlp-relay.service"
COMMAND = "/opt/otlp-relay/bin/otlp-relay"
WHY = "Debian package systemd"


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    parser.read(UNIT)
    return parser


def verify(tmp_path: Path, text: str) -> str:
    # A program that exists here in the place of one that is installed there.
    path = tmp_path / UNIT.name
    path.write_text(text.replace(COMMAND, sys.executable))
    return run(program("systemd-analyze", WHY), "verify", path)


def test_verify(tmp_path: Path) -> None:
    # Faults of other units on this machine are not ours.
    said = verify(tmp_path, UNIT.read_text())
    assert UNIT.name not in said, said


def test_a_fault_is_found(tmp_path: Path) -> None:
    said = verify(tmp_path, UNIT.read_text().replace("RestartSec=1s", "RestartSex=1s"))
    assert "RestartSex" in said


def test_exposure(tmp_path: Path) -> None:
    # On systemd's scale from 0 (nothing exposed) to 10; the program fails above the threshold.
    analyze = program("systemd-analyze", WHY)
    said = run(analyze, "security", "--offline=yes", "--threshold=15", "--no-pager", UNIT)
    assert re.search(r"Overall exposure level", said), said


def test_it_stops_no_sooner_than_the_relay() -> None:
    service = unit()["Service"]
    effective = relay_check({})
    found = re.search(r"^\s*RELAY_SHUTDOWN_TIMEOUT\s.*?(\d+)", effective, re.MULTILINE)
    assert found
    assert int(service["TimeoutStopSec"].removesuffix("s")) * 1000 >= int(found[1]) + 3000
    # A configuration error is not tried again; everything else that fails is.
    assert service["RestartPreventExitStatus"] == "2"
    assert service["Restart"] == "on-failure"


@pytest.mark.parametrize("line", ["ExecStart"])
def test_command(line: str) -> None:
    assert unit()["Service"][line] == f"{COMMAND} run"
