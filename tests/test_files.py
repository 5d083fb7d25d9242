from __future__ import annotations

import os
from pathlib import Path

import pytest

from relay.files import INTERVAL, Rotating, fingerprint


def number(path: Path) -> int:
    return int(path.read_text())


def write(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "n"
    path.write_text("1")
    return path


@pytest.fixture
def warnings() -> list[str]:
    return []


def rotating(path: Path, warnings: list[str], initial: int | None = None) -> Rotating[int]:
    return Rotating((str(path),), lambda: number(path), warn=warnings.append, initial=initial)


def test_a_change_is_seen_within_the_interval_and_not_looked_for_before_it(
    path: Path, warnings: list[str]
) -> None:
    value = rotating(path, warnings)
    assert value.current(100.0) == 1
    write(path, "2")
    assert value.current(100.0 + INTERVAL - 0.01) == 1
    assert value.generation == 0
    assert value.current(100.0 + INTERVAL) == 2
    assert value.generation == 1
    assert warnings == []


def test_again_looks_at_once(path: Path, warnings: list[str]) -> None:
    value = rotating(path, warnings)
    assert value.current(100.0) == 1
    write(path, "2")
    value.again()
    assert value.current(100.0) == 2


def test_what_cannot_be_built_keeps_the_last_good_value_and_warns_once(
    path: Path, warnings: list[str]
) -> None:
    value = rotating(path, warnings)
    write(path, "half")
    assert value.current(1.0) == 1
    assert len(warnings) == 1
    assert "half" in warnings[0]
    write(path, "half")  # the same fault in a new file
    assert value.current(2.0) == 1
    assert value.current(3.0) == 1
    assert len(warnings) == 1
    write(path, "3")
    assert value.current(4.0) == 3
    write(path, "half")
    assert value.current(5.0) == 3
    assert len(warnings) == 2, "a good version in between makes it a new fault"


def test_a_file_that_goes_away_and_comes_back(path: Path, warnings: list[str]) -> None:
    value = rotating(path, warnings)
    path.unlink()
    assert value.current(1.0) == 1
    assert len(warnings) == 1
    path.write_text("2")
    assert value.current(2.0) == 2


def test_without_a_first_value_the_fault_is_the_callers(
    tmp_path: Path, warnings: list[str]
) -> None:
    with pytest.raises(OSError, match="missing"):
        rotating(tmp_path / "missing", warnings)
    assert warnings == []


def test_an_initial_value_stands_in_until_the_file_appears(
    tmp_path: Path, warnings: list[str]
) -> None:
    path = tmp_path / "late"
    value = rotating(path, warnings, initial=7)
    assert value.current(1.0) == 7
    assert len(warnings) == 1
    path.write_text("8")
    assert value.current(2.0) == 8


def test_a_file_that_changes_under_the_reader_is_not_believed(
    path: Path, warnings: list[str]
) -> None:
    races: list[str] = []

    def build() -> int:
        value = number(path)
        if races:
            write(path, races.pop())
        return value

    races.append("2")
    value = Rotating((str(path),), build, warn=warnings.append)
    assert value.current(0.0) == 2, "read again at start"
    write(path, "3")
    races.append("4")
    assert value.current(1.0) == 2, "3 may be half of it"
    assert value.current(2.0) == 4
    assert warnings == []


def test_a_swapped_link_is_a_change(tmp_path: Path, warnings: list[str]) -> None:
    # Kubernetes replaces a mounted secret by pointing a link to another folder.
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "n").write_text(version)
        os.utime(tmp_path / version / "n", ns=(5, 5))
    link = tmp_path / "data"
    link.symlink_to("1")
    value = rotating(link / "n", warnings)
    fresh = tmp_path / "data.new"
    fresh.symlink_to("2")
    fresh.rename(link)
    assert value.current(1.0) == 2


def test_fingerprint_of_what_is_not_there(tmp_path: Path) -> None:
    assert fingerprint(str(tmp_path / "x")) == (None,)
