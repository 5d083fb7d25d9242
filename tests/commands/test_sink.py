"""``otlp-relay sink``: flags, and the command as a process."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from relay.commands import UsageError
from relay.commands.sink import Options, parse
from relay.otlp import TRACES
from relay.receivers import Listen
from relay.sink import Behaviour

ANY = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")


def test_defaults_are_those_of_a_collector() -> None:
    assert parse([]) == Options(
        grpc=Listen(host="localhost", port=4317),
        http=Listen(host="localhost", port=4318),
        behaviour=Behaviour(),
        outages=(),
        max_message=4 * 1024 * 1024,
        seed=None,
        show=False,
    )


def test_every_flag_has_its_meaning() -> None:
    options = parse(
        [
            "--grpc",
            "off",
            "--http",
            "[::1]:0",
            "--fail",
            "503:0.5",
            "--retry-after",
            "2.5",
            "--delay",
            "0.25",
            "--outage",
            "9:1",
            "--outage",
            "2:3",
            "--reject",
            "4",
            "--max-message",
            "1000",
            "--seed",
            "7",
            "--print",
        ]
    )
    assert options == Options(
        grpc=Listen(),
        http=Listen(host="::1"),
        behaviour=Behaviour(
            code="UNAVAILABLE",
            http_status=503,
            probability=0.5,
            retry_after=2.5,
            delay=0.25,
            reject=4,
        ),
        outages=((2.0, 3.0), (9.0, 1.0)),
        max_message=1000,
        seed=7,
        show=True,
    )
    assert parse(["--delay", "hang"]).behaviour == Behaviour(hang=True)
    assert parse(["--grpc", "unix:/run/sink.sock"]).grpc == Listen(path="/run/sink.sock")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--fail", "AWAY"], "--fail.*UNAVAILABLE"),
        (["--delay", "soon"], "--delay.*'hang'"),
        (["--outage", "5"], "--outage.*START:DURATION"),
        (["--outage", "1:5", "--outage", "2:1"], "overlap"),
        (["--reject", "-1"], "--reject.*0 or more"),
        (["--max-message", "0"], "--max-message.*1 or more"),
        (["--seed", "x"], "--seed.*whole number"),
        (["--retry-after", "hang"], "--retry-after.*seconds"),
        (["--retry-after", "1"], "needs --fail"),
        (["--grpc", "4317"], "--grpc.*port is missing; expected host:port"),
        (["--http", "unix:here.sock"], "--http.*absolute path"),
        (["--grpc", "off", "--http", "off"], "nothing to do"),
        (["--wat"], "--wat"),
    ],
)
def test_what_is_wrong_is_said(argv: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(argv)


@asynccontextmanager
async def sink_process(argv: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "relay", "sink", *argv),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode()


def spans(count: int) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(count):
        scope.spans.add(name=f"span {number}")
    return request.SerializeToString()


async def send(endpoint: str, payload: bytes) -> None:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(TRACES.method)
        await export(payload, timeout=20, wait_for_ready=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_first_line_has_the_addresses_and_the_last_the_counts(
    number: signal.Signals,
) -> None:
    async with sink_process([*ANY, "--print", "--reject", "1"]) as process:
        first = json.loads(await line(process))
        assert first["event"] == "listening"
        await send(first["grpc"][0], spans(3))
        for name in ("span 0", "span 1", "span 2"):
            assert f'name="{name}"' in await line(process)
        process.send_signal(number)
        counts = json.loads(await line(process))
        assert counts["traces"] == {
            "requests": 1,
            "items": 3,
            "bytes": len(spans(3)),
            "accepted_items": 2,
            "rejected_items": 1,
            "largest_batch": 3,
            "answers": {"OK": 1},
        }
        assert list(counts) == ["traces", "metrics", "logs", "profiles"]
        assert await process.wait() == 0


async def test_an_outage_closes_the_listeners_and_opens_them_again_on_the_same_ports() -> None:
    async with sink_process([*ANY, "--outage", "0:0.05"]) as process:
        first = json.loads(await line(process))
        assert process.stderr is not None
        assert b"closed" in await process.stderr.readline()
        assert b"over" in await process.stderr.readline()
        await send(first["grpc"][0], spans(1))
        process.terminate()
        assert json.loads(await line(process))["traces"]["items"] == 1
        assert await process.wait() == 0


async def test_a_taken_port_is_exit_1_and_a_wrong_flag_exit_2() -> None:
    async with sink_process(ANY) as first:
        taken = json.loads(await line(first))["grpc"][0]
        async with sink_process(["--grpc", taken, "--http", "off"]) as second:
            _, stderr = await second.communicate()
            assert second.returncode == 1
            assert taken in stderr.decode()
    async with sink_process(["--reject", "many"]) as third:
        _, stderr = await third.communicate()
        assert third.returncode == 2
        assert "--reject" in stderr.decode()
