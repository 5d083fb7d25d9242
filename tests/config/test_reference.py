import subprocess
import sys

from relay.config import reference
from relay.config.settings import BY_FLAG, GROUPS, SETTINGS, flag, twin


def test_the_markdown_names_every_variable_flag_and_default() -> None:
    text = reference.markdown()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(SETTINGS)
    for setting, row in zip(SETTINGS, rows, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 4
        assert f"`{setting.name}`" in cells[0]
        assert f"`{twin(setting.name)}`" in cells[0]
        assert cells[1] == f"`{flag(setting.name)}`"
        assert cells[2] == f"`{reference.default(setting)}`"
        assert all(f"`{name}`" in cells[3] for name in setting.own.values())


def test_the_markdown_has_one_table_per_group() -> None:
    text = reference.markdown()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        f"### {group}" for group in GROUPS
    ]
    assert text.count("|---|---|---|---|") == len(GROUPS)


def test_the_module_prints_it() -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "relay.config.reference"], capture_output=True, check=True, text=True
    )
    assert printed.stdout == reference.markdown()


def test_the_help_has_every_name_and_fits_a_terminal() -> None:
    text = reference.usage("run", "What it does.")
    words = set(text.replace(",", " ").split())
    assert {flag(setting.name) for setting in SETTINGS} <= words
    assert set(BY_FLAG.values()) <= words
    assert {twin(setting.name) for setting in SETTINGS} <= words
    assert max(map(len, text.splitlines())) <= 120
    assert "`" not in text
