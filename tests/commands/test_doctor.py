"""The doctor against real servers in every state that it knows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from relay.commands import UsageError, doctor
from relay.config import load
from relay.doctor import Finding, Level
from relay.otlp import TRACES
from relay.receivers import Listen, ServerTls
from relay.sink import Behaviour, Sink
from relay.sink.server import OFF
from tests.e2e.harness import RelayProcess, clean_environment, numbered_request, send
from tests.network import refusing, silent_listener
from tests.pki import Authority

SECRET = "sesame-open-the-door"

NOTHING_LOCAL = {
    "RELAY_GRPC_LISTEN": "127.0.0.1:0",
    "RELAY_HTTP_LISTEN": "127.0.0.1:0",
    "RELAY_ADMIN_LISTEN": "off",
    "RELAY_CONNECT_TIMEOUT": "20000",  # never the cause of a fault, unless a test sets its own
}


async def look(endpoint: str = "", **settings: str) -> list[Finding]:
    """What the doctor finds; settings as environment variables."""
    environ = {**NOTHING_LOCAL, "RELAY_EXPORTER_ENDPOINT": endpoint, **settings}
    loaded = load({}, environ)
    assert loaded.config is not None, loaded.faults
    return await doctor.examine(loaded, loaded.config)


def faults(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.level is Level.FAULT]


def the_fault(found: list[Finding]) -> str:
    """Message and advice of the only fault."""
    assert len(faults(found)) == 1, found
    (each,) = faults(found)
    assert each.advice
    return f"{each.message} -> {each.advice}"


def words(found: list[Finding], level: Level = Level.OK) -> str:
    return "\n".join(f"{each.about}: {each.message}" for each in found if each.level is level)


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with Sink(seed=1) as sink:
        yield sink


HTTP = {"RELAY_EXPORTER_PROTOCOL": "http/protobuf"}

# -------------------------------------------------------------- nothing wrong


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_good_collector(sink: Sink, protocol: str) -> None:
    url = f"http://{sink.grpc_endpoint}" if protocol == "grpc" else sink.http_url
    found = await look(url, RELAY_EXPORTER_PROTOCOL=protocol)
    assert not faults(found)
    assert "takes traces, metrics, logs and profiles" in words(found)
    assert "speaks" in words(found)
    assert sum(each.items for each in sink.received) == 0, "nothing is stored"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_good_collector_with_tls(tmp_path: Path, protocol: str) -> None:
    authority = Authority(tmp_path)
    async with Sink(tls=authority.server()) as sink:
        address = sink.grpc_endpoint if protocol == "grpc" else sink.http_endpoint
        found = await look(
            f"https://{address}",
            RELAY_EXPORTER_PROTOCOL=protocol,
            RELAY_EXPORTER_CERTIFICATE=authority.file,
        )
    assert not faults(found)
    assert "certificate for localhost, 127.0.0.1, 0:0:0:0:0:0:0:1, until" in words(found)
    assert "over TLS" in words(found)
    assert "takes traces, metrics, logs and profiles" in words(found)


async def test_a_good_collector_behind_a_unix_socket(tmp_path: Path) -> None:
    listen = Listen(path=str(tmp_path / "otlp.sock"))
    async with Sink(grpc=listen, http=OFF) as sink:
        found = await look(sink.grpc_endpoint)
    assert not faults(found)
    assert "takes traces, metrics, logs and profiles" in words(found)


async def test_signals_with_collectors_of_their_own(sink: Sink) -> None:
    with refusing() as gone:
        found = await look(
            f"http://{sink.grpc_endpoint}", RELAY_EXPORTER_LOGS_ENDPOINT=f"http://{gone}"
        )
    assert "refused" in the_fault(found)
    assert faults(found)[0].about == gone
    assert "takes traces, metrics and profiles" in words(found)


# -------------------------------------------------------------- names and addresses


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Names that stand for these addresses here."""
    table: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def look_up(host: object, port: object, *args: object, **kwargs: object) -> object:
        if host in table:
            return [
                each
                for address in table[str(host)]
                for each in real(address, port, *args, **kwargs)  # type: ignore[arg-type]  # passed on
            ]
        return real(host, port, *args, **kwargs)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


async def test_a_name_that_nobody_knows() -> None:
    found = await look("http://no-such-collector.invalid:4317")
    assert "looking up the name" in the_fault(found)


async def test_a_short_name_gets_a_hint() -> None:
    assert "its own Compose network" in the_fault(await look("http://nosuchcollector-x:4317"))


async def test_nobody_listens() -> None:
    with refusing() as address:
        found = await look(f"http://{address}")
    assert "connection refused -> nothing listens on this port" in the_fault(found)
    (refused,) = faults(found)
    assert (refused.about, refused.message) == (address, "connection refused"), "named once"


@pytest.mark.skipif(sys.platform != "linux", reason="a full backlog is silent on Linux")
async def test_packets_vanish() -> None:
    with silent_listener(full=True) as address:
        started = time.monotonic()
        found = await look(f"http://{address}", RELAY_CONNECT_TIMEOUT="200")
        assert time.monotonic() - started < 5
    assert "no answer in time -> packets vanish: a firewall" in the_fault(found)


async def test_one_of_several_addresses_is_dead(sink: Sink, names: dict[str, list[str]]) -> None:
    port = sink.http_endpoint.rpartition(":")[2]
    names["collector.test"] = ["127.0.0.1", "127.0.0.2"]
    found = await look(f"http://collector.test:{port}", **HTTP)
    assert not faults(found)
    assert f"127.0.0.2:{port}: connection refused" in words(found, Level.WARNING)
    assert "the name stands for 127.0.0.1, 127.0.0.2" in words(found)


async def test_a_name_that_leads_back_to_the_relay(names: dict[str, list[str]]) -> None:
    names["collector.test"] = ["127.0.0.1"]
    with silent_listener() as address:
        port = address.rpartition(":")[2]
        found = await look(f"http://collector.test:{port}", RELAY_GRPC_LISTEN=f"localhost:{port}")
    texts = [each.message for each in faults(found)]
    assert any("it would forward to itself" in text for text in texts), texts


# -------------------------------------------------------------- the wrong thing on the port


async def test_the_http_port_with_grpc(sink: Sink) -> None:
    found = await look(sink.http_url)
    assert "no gRPC: an OTLP/HTTP port" in the_fault(found)
    assert "RELAY_EXPORTER_PROTOCOL=http/protobuf" in the_fault(found)


async def test_the_grpc_port_with_http(sink: Sink) -> None:
    found = await look(f"http://{sink.grpc_endpoint}", **HTTP)
    assert "HTTP/2 only: an OTLP/gRPC port" in the_fault(found)


async def test_the_wrong_port_with_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trust = {"RELAY_EXPORTER_CERTIFICATE": authority.file}
    async with Sink(tls=authority.server()) as sink:
        found = await look(f"https://{sink.http_endpoint}", **trust)
        assert "an OTLP/HTTP port" in the_fault(found)
        found = await look(f"https://{sink.grpc_endpoint}", **trust, **HTTP)
        assert len(faults(found)) == 1


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@contextlib.asynccontextmanager
async def server(greeting: bytes) -> AsyncIterator[str]:
    """Says something to whoever connects, and closes."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_something_else_listens(protocol: str) -> None:
    async with server(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n") as address:
        found = await look(f"http://{address}", RELAY_EXPORTER_PROTOCOL=protocol)
    assert "neither HTTP nor gRPC: it is no OTLP receiver" in the_fault(found)


async def test_accepts_and_closes() -> None:
    async with server(b"") as address:
        assert "closes it without a word" in the_fault(await look(f"http://{address}"))


async def test_accepts_and_says_nothing() -> None:
    with silent_listener() as address:
        found = await look(f"http://{address}", RELAY_CONNECT_TIMEOUT="150")
    assert "says nothing" in the_fault(found)


async def test_a_clock_that_is_off() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        date = formatdate(time.time() - 7200, usegmt=True)
        writer.write(f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        found = await look(f"http://127.0.0.1:{port}", **HTTP)
    assert "2 h 0 min ahead of the collector's" in words(found, Level.WARNING)


# -------------------------------------------------------------- TLS


async def test_tls_where_plaintext_is_set(tmp_path: Path) -> None:
    async with Sink(tls=Authority(tmp_path).server()) as sink:
        for address, more in ((sink.grpc_endpoint, {}), (sink.http_endpoint, HTTP)):
            found = await look(f"http://{address}", **more)
            assert "it wants TLS" in the_fault(found)
            assert "write https://" in the_fault(found)


async def test_plaintext_where_tls_is_set(sink: Sink) -> None:
    for address, more in ((sink.grpc_endpoint, {}), (sink.http_endpoint, HTTP)):
        found = await look(f"https://{address}", **more)
        assert "it speaks plaintext, and the relay is set to TLS" in the_fault(found)


@pytest.mark.parametrize("trust", ["", "other"])
async def test_an_authority_that_is_not_trusted(tmp_path: Path, trust: str) -> None:
    more = {"RELAY_EXPORTER_CERTIFICATE": Authority(tmp_path, "other").file} if trust else {}
    async with Sink(tls=Authority(tmp_path).server()) as sink:
        found = await look(f"https://{sink.grpc_endpoint}", **more)
    text = the_fault(found)
    assert "not trusted (for localhost, 127.0.0.1" in text
    assert ("names another authority" if trust else "set RELAY_EXPORTER_CERTIFICATE to") in text


async def test_a_certificate_for_another_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server", "collector.example.com")
    async with Sink(tls=ServerTls(*pair)) as sink:
        found = await look(
            f"https://{sink.grpc_endpoint}", RELAY_EXPORTER_CERTIFICATE=authority.file
        )
    assert "its certificate is for collector.example.com" in the_fault(found)


async def test_a_certificate_that_expired(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server", expired=True)
    async with Sink(tls=ServerTls(*pair)) as sink:
        found = await look(
            f"https://{sink.grpc_endpoint}", RELAY_EXPORTER_CERTIFICATE=authority.file
        )
    text = the_fault(found)
    assert "expired (20" in text
    assert "clock" in text


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_mutual_tls(tmp_path: Path, protocol: str) -> None:
    authority = Authority(tmp_path)
    client = authority.client(certificate=True)
    trust = {
        "RELAY_EXPORTER_CERTIFICATE": authority.file,
        "RELAY_EXPORTER_PROTOCOL": protocol,
    }
    pair = {
        "RELAY_EXPORTER_CLIENT_CERTIFICATE": client.cert_file,
        "RELAY_EXPORTER_CLIENT_KEY": client.key_file,
    }
    async with Sink(tls=authority.server(mutual=True)) as sink:
        address = sink.grpc_endpoint if protocol == "grpc" else sink.http_endpoint
        found = await look(f"https://{address}", **trust)
        assert "RELAY_EXPORTER_CLIENT_CERTIFICATE" in the_fault(found)
        found = await look(f"https://{address}", **trust, **pair)
        assert not faults(found)


async def test_mutual_tls_with_a_server_that_says_so(tmp_path: Path) -> None:
    """As Go's does, so the Collector: it sends the alert "certificate required"."""
    authority = Authority(tmp_path)
    pair = authority.pair("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    context.load_verify_locations(authority.file)
    context.verify_mode = ssl.CERT_REQUIRED
    stopped = threading.Event()

    def serve(listener: socket.socket) -> None:
        while not stopped.is_set():
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                with plain, context.wrap_socket(plain, server_side=True) as wrapped:
                    wrapped.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        port = listener.getsockname()[1]
        try:
            found = await look(
                f"https://127.0.0.1:{port}", RELAY_EXPORTER_CERTIFICATE=authority.file
            )
        finally:
            stopped.set()
            socket.create_connection(("127.0.0.1", port)).close()
            thread.join()
    text = the_fault(found)
    assert "certificate required" in text
    assert "RELAY_EXPORTER_CLIENT_CERTIFICATE" in text


def test_files_of_tls_that_cannot_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    settings = {
        "RELAY_EXPORTER_ENDPOINT": "https://127.0.0.1:1",
        "RELAY_EXPORTER_CERTIFICATE": str(broken),
    }
    assert doctor.run([], settings) == 2
    assert "holds no PEM certificate" in capsys.readouterr().out


# -------------------------------------------------------------- what it answers


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("UNAUTHENTICATED", "refuses who is asking"),
        ("PERMISSION_DENIED", "refuses who is asking"),
        ("UNAVAILABLE", "says later"),
        ("UNIMPLEMENTED", "does not take traces, metrics, logs and profiles"),
        ("INTERNAL", "refuses"),
    ],
)
async def test_answers(sink: Sink, protocol: str, code: str, text: str) -> None:
    sink.behave(Behaviour(code=code, message=f"you sent Bearer {SECRET}"))
    url = f"http://{sink.grpc_endpoint}" if protocol == "grpc" else sink.http_url
    found = await look(
        url,
        RELAY_EXPORTER_PROTOCOL=protocol,
        RELAY_EXPORTER_HEADERS=f"authorization=Bearer%20{SECRET}",
    )
    assert text in the_fault(found)
    assert SECRET not in repr(found)
    if code == "UNAUTHENTICATED":
        assert "sent along: authorization" in the_fault(found)


async def test_one_signal_without_a_pipeline(sink: Sink) -> None:
    sink.behaviours["metrics"] = Behaviour(code="UNIMPLEMENTED")
    found = await look(f"http://{sink.grpc_endpoint}")
    assert not faults(found)
    assert "does not take metrics (UNIMPLEMENTED)" in words(found, Level.WARNING)


async def test_a_path_that_is_not_there(sink: Sink) -> None:
    found = await look(f"{sink.http_url}/elsewhere", **HTTP)
    assert "with http/protobuf, its path" in the_fault(found)


async def test_a_collector_that_hangs(sink: Sink) -> None:
    sink.behave(Behaviour(hang=True))
    started = time.monotonic()
    found = await look(f"http://{sink.grpc_endpoint}", RELAY_CONNECT_TIMEOUT="300")
    assert time.monotonic() - started < 10
    assert "does not answer a request in time" in the_fault(found)


async def test_a_headers_file_that_is_broken(sink: Sink, tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text(f"{SECRET}\n")
    found = await look(f"http://{sink.grpc_endpoint}", RELAY_EXPORTER_HEADERS_FILE=str(file))
    assert "not name=value" in the_fault(found)
    assert SECRET not in repr(found)


# -------------------------------------------------------------- Unix sockets


async def test_unix_sockets_in_every_state(tmp_path: Path) -> None:
    missing = tmp_path / "missing.sock"
    assert "no such socket" in the_fault(await look(f"unix:{missing}"))
    plain = tmp_path / "plain"
    plain.write_text("")
    assert "no socket" in the_fault(await look(f"unix:{plain}"))
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(stale))
    assert "left behind" in the_fault(await look(f"unix:{stale}"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may connect to every socket")
async def test_a_unix_socket_that_is_not_for_us(tmp_path: Path) -> None:
    path = tmp_path / "otlp.sock"
    async with Sink(grpc=Listen(path=str(path)), http=OFF):
        path.chmod(0o000)
        assert "may not connect (mode 0000)" in the_fault(await look(f"unix:{path}"))


async def test_listening_on_unix_sockets(sink: Sink, tmp_path: Path) -> None:
    good = f"http://{sink.grpc_endpoint}"
    found = await look(good, RELAY_GRPC_LISTEN=f"unix:{tmp_path}/no/otlp.sock")
    assert f"there is no directory {tmp_path}/no" in the_fault(found)
    plain = tmp_path / "plain"
    plain.write_text("")
    found = await look(good, RELAY_GRPC_LISTEN=f"unix:{plain}")
    assert "is in the way" in the_fault(found)
    found = await look(good, RELAY_GRPC_LISTEN=f"unix:{tmp_path}/otlp.sock")
    assert not faults(found)


# -------------------------------------------------------------- ports and relays here


async def test_ports_that_are_taken(sink: Sink) -> None:
    with silent_listener() as taken:
        found = await look(f"http://{sink.grpc_endpoint}", RELAY_GRPC_LISTEN=taken)
    text = the_fault(found)
    assert "taken by" in text
    if sys.platform == "linux":
        assert f"(pid {os.getpid()})" in text
    assert "RELAY_GRPC_LISTEN" in text


async def test_an_address_that_is_not_this_machines(sink: Sink) -> None:
    found = await look(f"http://{sink.grpc_endpoint}", RELAY_HTTP_LISTEN="192.0.2.1:4318")
    assert "could not listen there" in the_fault(found)


async def test_no_relay_runs(sink: Sink) -> None:
    found = await look(f"http://{sink.grpc_endpoint}")
    assert "no relay was found running here" in words(found, Level.WARNING)


async def test_a_relay_that_runs(sink: Sink) -> None:
    good = f"http://{sink.grpc_endpoint}"
    async with RelayProcess(good) as relay:
        here = {"RELAY_ADMIN_LISTEN": relay.admin}
        found = await look(good, **here)
        assert not faults(found)
        assert "nothing has arrived" in words(found, Level.WARNING)
        assert f"grpc on {relay.grpc}" in words(found)

        async with relay.channel() as channel:
            await send(channel, TRACES, numbered_request(0, 5))
        await relay.drained()
        found = await look(good, **here)
        assert "traces: received 5, exported 5" in words(found)
        assert "nothing has arrived" not in words(found, Level.WARNING)

        found = await look(good, **here, RELAY_QUEUE_SIZE="4096")
        text = words(found, Level.WARNING)
        assert "another configuration" in text
        assert "RELAY_QUEUE_SIZE is 2048 there, 4096 here" in text

        sink.behaviours["traces"] = Behaviour(code="UNIMPLEMENTED")
        found = await look(good, **here)
        assert "but traces arrive at the relay, which has to drop them" in the_fault(found)


async def test_a_relay_in_an_outage(sink: Sink) -> None:
    good = f"http://{sink.grpc_endpoint}"
    async with RelayProcess(good, {"RELAY_QUEUE_SIZE": "5"}) as relay:
        await sink.stop()
        async with relay.channel() as channel:
            await send(channel, TRACES, numbered_request(0, 20))
        await relay.until(lambda scrape: scrape.has("collector_up"), "an export failed")
        found = await look(good, RELAY_ADMIN_LISTEN=relay.admin, RELAY_QUEUE_SIZE="5")
    texts = words(found, Level.FAULT)
    assert "traces: no export has succeeded for" in texts
    assert "connection refused" in texts
    assert "traces: 15 lost as queue_full" in words(found, Level.WARNING)


async def test_settings_that_leave_nothing(sink: Sink) -> None:
    good = f"http://{sink.grpc_endpoint}"
    assert "discard everything" in the_fault(await look(good, OTEL_ENABLED="false"))
    assert "sampling ratio is 0" in the_fault(await look(good, OTEL_TRACES_SAMPLER_ARG="0"))
    found = await look(good, RELAY_METRICS_ENABLED="false")
    assert "metrics are discarded" in words(found, Level.WARNING)
    found = await look(good, RELAY_QUEU_SIZE="1")
    assert "did you mean RELAY_QUEUE_SIZE" in words(found, Level.WARNING)


# -------------------------------------------------------------- the command


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*argv: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "relay", "doctor", *argv],
            env={**clean_environment(), **NOTHING_LOCAL, **settings},
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    return run


async def test_exit_codes_and_what_is_printed(
    sink: Sink, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    good = f"http://{sink.grpc_endpoint}"
    done = await asyncio.to_thread(command, "--exporter-endpoint", good)
    assert (done.returncode, done.stderr) == (0, "")
    assert "from here everything on the way to the collector works" in done.stdout

    with refusing() as gone:
        done = await asyncio.to_thread(command, RELAY_EXPORTER_ENDPOINT=f"http://{gone}")
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAULT" in done.stdout
    assert "         -> nothing listens on this port" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 fault, 1 warning"

    done = await asyncio.to_thread(command, "--json", RELAY_EXPORTER_ENDPOINT=good)
    document = json.loads(done.stdout)
    assert document["ok"]
    assert {"level", "about", "message", "advice"} == set(document["findings"][0])

    done = await asyncio.to_thread(command, RELAY_EXPORTER_ENDPOINT="ftp://x")
    assert done.returncode == 2
    assert "FAULT" in done.stdout


def test_a_flag_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="--jsn"):
        doctor.run(["--jsn"], {})


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(["--help"], {}) == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "--exporter-endpoint" in text
