from pathlib import Path

import relay.commands
from relay.commands import COMMANDS, UsageError


def test_the_documented_commands_are_there() -> None:
    assert set(COMMANDS) == {"run", "check", "healthcheck", "explain", "doctor", "sink", "demo"}


def test_every_example_calls_its_command() -> None:
    assert all(example.split()[0] == name for name, (_, example) in COMMANDS.items())


def test_there_is_no_module_that_is_no_command() -> None:
    (folder,) = relay.commands.__path__
    modules = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    assert modules <= set(COMMANDS)


def test_a_usage_error_has_every_fault() -> None:
    error = UsageError("one", "two")
    assert error.faults == ("one", "two")
    assert str(error) == "one\ntwo"
