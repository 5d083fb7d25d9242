"""`.ci/run` fails when anything failed or nothing ran; `.ci/find-python` finds or explains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = (".ci/run", ".ci/find-python", ".ci/image-check", "deploy/image/build")


def _checkout(folder: Path, make: str) -> dict[str, str]:
    """A folder with only the scripts, and an environment in which `make` is the given script."""
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    (folder / ".ci" / "apt-packages").write_text("# none\n")
    (folder / ".ci" / "image-check").write_text("#!/bin/sh\n")
    programs = folder / "programs"
    programs.mkdir()
    (programs / "make").write_text(f'#!/bin/sh\necho make "$@" >> calls\n{make}\n')
    (programs / "make").chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "CI": "true"}


def _run(folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(folder / ".ci" / "run")],
        cwd="/", env=environ, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_ci_runs_make_test_which_has_every_stage(tmp_path: Path) -> None:
    done = _run(tmp_path, _checkout(tmp_path, "exit 0"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "CI passed" in done.stdout
    calls = (tmp_path / "calls").read_text()
    for stage in ("dev", "test"):
        assert f" {stage}\n" in calls
    line = next(row for row in (ROOT / "Makefile").read_text().splitlines() if row[:6] == "test: ")
    assert line.partition("##")[0].split()[1:] == ["lint", "types", "unit", "e2e"]


@pytest.mark.parametrize(("stage", "status"), [("test", 2), ("dev", 2)])
def test_ci_fails_when_a_stage_fails(tmp_path: Path, stage: str, status: int) -> None:
    script = f'case "$*" in *{stage}*) exit {status} ;; esac'
    done = _run(tmp_path, _checkout(tmp_path, script))
    assert done.returncode == status
    assert "CI FAILED in" in done.stdout
    assert "CI passed" not in done.stdout
    assert (tmp_path / "calls").read_text().splitlines()[-1].endswith(f" {stage}")


def test_pytest_does_not_pass_when_it_collects_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stdout


def test_find_python_names_one_that_can_make_environments() -> None:
    found = subprocess.run(
        [ROOT / ".ci/find-python"], capture_output=True, text=True, timeout=30, check=True
    ).stdout.strip()
    check = "import sys, venv, ensurepip; print(sys.version_info >= (3, 11))"
    assert subprocess.check_output([found, "-c", check], text=True).strip() == "True"


def test_find_python_explains_when_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\necho Python 3.9.2\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(ROOT / ".ci/find-python")],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "python3 is Python 3.9.2" in done.stderr
    assert not done.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_have_nothing_that_shellcheck_minds() -> None:
    subprocess.run(["shellcheck", *SCRIPTS], cwd=ROOT, check=True, timeout=30)
