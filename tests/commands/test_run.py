"""What ``run`` says and returns when it cannot run, and what it does when it can."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.commands import UsageError, run
from tests.e2e.harness import ROOT, RelayProcess, clean_environment

Captured = pytest.CaptureFixture[str]

ANYWHERE = {
    "RELAY_GRPC_LISTEN": "127.0.0.1:0",
    "RELAY_HTTP_LISTEN": "127.0.0.1:0",
    "RELAY_ADMIN_LISTEN": "127.0.0.1:0",
    "RELAY_EXPORTER_ENDPOINT": "http://127.0.0.1:9",
}


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


def test_bad_settings_are_told_all_at_once_and_end_with_2(capsys: Captured) -> None:
    environ = ANYWHERE | {"RELAY_QUEUE_SIZE": "many", "RELAY_EXPORTER_PROTOCOL": "smoke"}
    assert run.run(["--batch-size", "0"], environ) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for text in ("RELAY_QUEUE_SIZE", "RELAY_EXPORTER_PROTOCOL", "--batch-size"):
        assert sum(text in line for line in lines) == 1
    assert all(" error " in line for line in lines)


def test_an_unknown_flag_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--no-such-flag"):
        run.run(["--no-such-flag"], {})


def test_certificates_that_cannot_be_used_end_with_2(capsys: Captured, tmp_path: Path) -> None:
    nonsense = tmp_path / "cert.pem"
    nonsense.write_text("nonsense")
    environ = ANYWHERE | {
        "RELAY_TLS_CERT_FILE": str(nonsense),
        "RELAY_TLS_KEY_FILE": str(nonsense),
    }
    assert run.run([], environ) == 2
    assert str(nonsense) in capsys.readouterr().err


@pytest.mark.parametrize("listener", ["GRPC", "HTTP", "ADMIN"])
def test_a_taken_port_ends_with_1_and_one_line_that_says_which(
    capsys: Captured, listener: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        environ = ANYWHERE | {f"RELAY_{listener}_LISTEN": f"127.0.0.1:{port}"}
        assert run.run([], environ) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f" error   cannot listen on 127.0.0.1:{port}: another process listens there"
    )


def test_a_taken_unix_socket_ends_with_1_and_is_left_alone(
    capsys: Captured, tmp_path: Path
) -> None:
    path = tmp_path / "relay.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        for listener in ("GRPC", "HTTP", "ADMIN"):
            environ = ANYWHERE | {f"RELAY_{listener}_LISTEN": f"unix:{path}"}
            assert run.run([], environ) == 1
            assert f"cannot listen on unix:{path}: another process" in capsys.readouterr().err
        assert path.is_socket()


async def test_a_second_relay_leaves_the_first_alone_with_an_exit_code_of_1() -> None:
    async with RelayProcess("http://127.0.0.1:9") as first:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "relay", "run", "--grpc-listen", first.grpc],
            env=clean_environment() | ANYWHERE,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert f"cannot listen on {first.grpc}: another process listens there" in line
        assert (await first.get("/readyz"))[0] == 200
        assert await first.stop() == 0


async def test_warnings_of_the_settings_come_first_and_in_the_format_asked_for() -> None:
    settings = {"RELAY_QUEUE_SISE": "1", "OTEL_TRACES_SAMPLER_ARG": "much"}
    async with RelayProcess("http://127.0.0.1:9", settings) as relay:
        assert await relay.stop() == 0
    warnings = [record for record in relay.records if record["level"] == "warning"]
    assert relay.records[:2] == warnings
    assert "RELAY_QUEUE_SIZE" in warnings[0]["message"]
    assert "OTEL_TRACES_SAMPLER_ARG" in warnings[1]["message"]


def test_a_signal_during_the_start_is_an_orderly_end() -> None:
    script = """
import os, signal, sys
from relay.__main__ import main
from relay import daemon
opened = daemon.Daemon._open
async def slow(self):
    os.kill(os.getpid(), signal.SIGTERM)
    await opened(self)
daemon.Daemon._open = slow
sys.exit(main(["run", "--shutdown-linger", "0", "--log-format", "json"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean_environment() | ANYWHERE,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert names == ["started", "stopping", "stopped"]


def test_a_thread_that_hangs_does_not_outlast_the_end() -> None:
    script = """
import asyncio, sys, threading
from relay.__main__ import main
from relay import daemon
opened = daemon.Daemon._open
async def then_hang(self):
    await opened(self)
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    self.stop()
daemon.Daemon._open = then_hang
sys.exit(main(["run", "--shutdown-linger", "0", "--log-format", "json"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=clean_environment() | ANYWHERE,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert names == ["started", "stopping", "stopped"]


def test_the_loop_is_uvloops_where_it_installs() -> None:
    factory = run._loop_factory()
    assert factory is not None
    loop = factory()
    loop.close()
    assert type(loop).__module__.startswith("uvloop")
