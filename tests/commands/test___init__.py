from pathlib import Path

import pytest

import relay.commands
from relay.commands import COMMANDS, UsageError, configure


def test_the_documented_commands_are_there() -> None:
    assert set(COMMANDS) == {"run", "check", "healthcheck", "explain", "doctor", "sink", "demo"}


def test_every_example_calls_its_command() -> None:
    assert all(example.split()[0] == name for name, (_, example) in COMMANDS.items())


def test_there_is_no_module_that_is_no_command() -> None:
    (folder,) = relay.commands.__path__
    modules = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    assert modules <= set(COMMANDS)


def test_configures_from_flags_and_environment() -> None:
    config, warnings = configure(["--queue-size=7"], {"RELAY_X": "1"})
    assert config.pipelines["logs"].queue_size == 7
    assert warnings == ("RELAY_X: no such setting",)


def test_faults_are_a_usage_error_with_all_of_them() -> None:
    with pytest.raises(UsageError) as caught:
        configure(["--queue-size=x", "--batch-size=y"], {})
    assert len(caught.value.faults) == 2
    with pytest.raises(UsageError, match="did you mean --queue-size"):
        configure(["--queu-size=x"], {})
