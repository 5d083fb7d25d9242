import importlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from relay import __version__
from relay.__main__ import main
from relay.commands import COMMANDS, UsageError

Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[1]


def command(*arguments: str, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run the real program."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RELAY_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=kept | dict(environ or {}),
    )
    return done.returncode, done.stdout, done.stderr


def test_without_a_command_there_is_help_and_a_usage_error() -> None:
    code, out, err = command()
    assert (code, out) == (2, "")
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize("argument", ["--help", "-h", "help"])
def test_help_has_every_command_with_an_example(argument: str, capsys: Captured) -> None:
    assert main([argument]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for example in (example for _, example in COMMANDS.values()):
        assert f"otlp-relay {example}\n" in out


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"otlp-relay {__version__}\n"


@pytest.mark.parametrize("name", ["run", "check", "explain", "doctor"])
def test_help_of_a_command_is_made_from_the_table(name: str, capsys: Captured) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "--exporter-endpoint" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_the_usage(name: str) -> None:
    code, out, err = command(name, "--help")
    assert (code, err) == (0, "")
    usage, _, rest = out.partition("\n\n")
    assert usage.startswith(f"usage: otlp-relay {name}")
    assert rest[:1].isupper(), "then what it does"
    assert all(len(line) <= 100 for line in rest.partition("\n\n")[0].splitlines())


def test_an_unknown_command_gets_the_nearest_name(capsys: Captured) -> None:
    assert main(["chekc"]) == 2
    assert capsys.readouterr().err == "otlp-relay: unknown command 'chekc'; did you mean check?\n"
    assert main(["--queue-size"]) == 2
    assert "there are run, check" in capsys.readouterr().err


def test_check_as_a_program() -> None:
    code, out, err = command("check", environ={"RELAY_QUEUE_SIZE": "77"})
    assert (code, err) == (0, "")
    assert "RELAY_QUEUE_SIZE" in out
    code, out, err = command("check", "--queue-size=x", "--log-level=y")
    assert code == 2
    assert len(err.splitlines()) == 3
    code, out, err = command("check", "--nonsense", "--also")
    assert (code, out) == (2, "")
    assert [line.split(": ")[0] for line in err.splitlines()] == ["otlp-relay", "otlp-relay"]


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "relay", "run", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command's module in place of ``check``."""
    module = ModuleType("relay.commands.check")
    importlib.import_module("relay.commands")
    monkeypatch.setitem(sys.modules, "relay.commands.check", module)
    return module


def test_commands_get_arguments_and_environment_and_give_the_exit_code(
    fake: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
        seen.append((argv, environ.get("RELAY_LOG_LEVEL")))
        return 1

    monkeypatch.setattr(fake, "run", run, raising=False)
    monkeypatch.setenv("RELAY_LOG_LEVEL", "debug")
    assert main(["check", "a", "--b"]) == 1
    assert seen == [(["a", "--b"], "debug")]


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UsageError("one", "two"), 2, "otlp-relay: one\notlp-relay: two\n"),
        (KeyboardInterrupt(), 130, "\n"),
    ],
)
def test_what_a_command_raises(
    fake: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    error: BaseException,
    code: int,
    says: str,
) -> None:
    def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
        raise error

    monkeypatch.setattr(fake, "run", run, raising=False)
    assert main(["check"]) == code
    assert capsys.readouterr().err == says
