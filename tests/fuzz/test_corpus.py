"""Every input that a search kept, or that once broke something, goes through its target again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).resolve().parents[1] / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_passes(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    assert len(files) >= 10, "a corpus that is not there proves nothing"
    for file in files:
        try:
            TARGETS[name](file.read_bytes())
        except Exception as error:
            raise AssertionError(f"{file.relative_to(CORPUS)}: {error!r}") from error


def test_every_folder_of_the_corpus_has_its_target() -> None:
    assert {each.name for each in CORPUS.iterdir() if each.is_dir()} == set(TARGETS)
