"""TLS with real processes: to the collector, on both listeners, and while certificates rotate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest

from relay.exporters import ClientTls
from relay.otlp import TRACES
from relay.receivers import ServerTls
from relay.sink import Sink
from relay.tls import client_context
from tests.e2e.harness import (
    OWN_CONNECTION,
    RelayProcess,
    numbered_request,
    numbers,
    send,
    until,
    within,
)
from tests.pki import Authority, replace

PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Authority:
    folder = tmp_path / "other"
    folder.mkdir()
    return Authority(folder)


def towards(sink: Sink, protocol: str, tls: ClientTls) -> tuple[str, dict[str, str]]:
    """Return the endpoint of a sink, and the settings of a relay that trusts it so."""
    endpoint = sink.grpc_endpoint if protocol == "grpc" else sink.http_endpoint
    port = endpoint.rpartition(":")[2]
    return f"https://localhost:{port}", {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_CERTIFICATE": tls.ca_file,
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": tls.cert_file,
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": tls.key_file,
    }


def listeners(tls: ServerTls) -> dict[str, str]:
    return {
        "RELAY_TLS_CERT_FILE": tls.cert_file,
        "RELAY_TLS_KEY_FILE": tls.key_file,
        "RELAY_TLS_CLIENT_CA_FILE": tls.client_ca_file,
    }


async def post(relay: RelayProcess, payload: bytes, context: ssl.SSLContext) -> None:
    """Send one request over HTTP on a connection of its own."""
    url = f"https://localhost:{relay.http.rpartition(':')[2]}/v1/traces"
    headers = {"Content-Type": "application/x-protobuf"}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.post(url, data=payload, headers=headers) as answer,
    ):
        assert answer.status == 200


@asynccontextmanager
async def secure(relay: RelayProcess, tls: ClientTls) -> AsyncIterator[grpc.aio.Channel]:
    def read(path: str) -> bytes | None:
        return Path(path).read_bytes() if path else None

    credentials = grpc.ssl_channel_credentials(
        read(tls.ca_file), read(tls.key_file), read(tls.cert_file)
    )
    target = f"localhost:{relay.grpc.rpartition(':')[2]}"
    async with grpc.aio.secure_channel(target, credentials, OWN_CONNECTION) as channel:
        yield channel


async def presented(endpoint: str, context: ssl.SSLContext, *alpn: str) -> bytes:
    """Return the certificate that a listener presents to a new connection."""
    if alpn:
        context.set_alpn_protocols(list(alpn))
    port = int(endpoint.rpartition(":")[2])
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost"
    )
    try:
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(certificate, bytes)
        return certificate
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


# --- To the collector -----------------------------------------------------------------------------


@PROTOCOLS
@pytest.mark.parametrize("mutual", [False, True])
async def test_to_the_collector(authority: Authority, protocol: str, mutual: bool) -> None:
    async with Sink(tls=authority.server(mutual=mutual)) as sink:
        target, settings = towards(sink, protocol, authority.client(certificate=mutual))
        async with RelayProcess(target, settings) as relay:
            async with relay.channel() as channel:
                await send(channel, TRACES, numbered_request(0, 50))
            await relay.drained()
        assert numbers(*sink.accepted("traces")) == list(range(50))


@PROTOCOLS
@pytest.mark.parametrize("fault", ["ca", "name", "expired", "certificate"])
async def test_what_is_not_trusted_gets_nothing_until_it_is_mended(
    authority: Authority, other: Authority, protocol: str, fault: str
) -> None:
    tls = authority.client(certificate=True)
    served = authority.server(mutual=fault == "certificate")
    good = b""
    if fault == "ca":
        good = Path(tls.ca_file).read_bytes()
        tls = ClientTls(
            str(Path(tls.ca_file).with_name("trusted.pem")), tls.cert_file, tls.key_file
        )
        replace(Path(tls.ca_file), Path(other.file).read_bytes())
    elif fault == "name":
        authority.pair("server", "elsewhere.test")
    elif fault == "expired":
        authority.pair("server", expired=True)
    else:
        other_pair = other.pair("client")
        replace(Path(tls.cert_file), Path(other_pair.cert).read_bytes())
        replace(Path(tls.key_file), Path(other_pair.key).read_bytes())
    async with Sink(tls=served) as sink:
        target, settings = towards(sink, protocol, tls)
        async with RelayProcess(target, settings) as relay:
            async with relay.channel() as channel:
                await send(channel, TRACES, numbered_request(0, 50))
            scrape = await relay.until(
                lambda s: s.has("collector_up", signal="traces"), "an attempt failed"
            )
            assert scrape.value("collector_up", signal="traces") == 0
            assert scrape.value("queue_items", signal="traces") == 50, "it waits"
            assert sink.requests("traces") == 0
            assert "outage_began" in {record.get("event") for record in relay.records}
            # Mended on disk, without a restart of the relay.
            if fault == "ca":
                replace(Path(tls.ca_file), good)
            elif fault == "certificate":
                authority.pair("client", "client.test")
            else:
                await sink.stop()
                authority.pair("server")
                await sink.start()
            scrape = await relay.drained()
            assert scrape.value("exported_items_total", signal="traces") == 50
        assert numbers(*sink.accepted("traces")) == list(range(50))


@PROTOCOLS
@pytest.mark.timeout(120)
async def test_rotation_towards_the_collector_under_load(
    authority: Authority, other: Authority, protocol: str
) -> None:
    """A new CA is announced, then both sides change their certificates; nothing is lost."""
    tls = authority.client(certificate=True)
    trusted = authority.folder / "trusted.pem"
    replace(trusted, Path(authority.file).read_bytes())
    tls = ClientTls(str(trusted), tls.cert_file, tls.key_file)
    accepted = authority.folder / "accepted.pem"
    both = Path(authority.file).read_bytes() + Path(other.file).read_bytes()
    replace(accepted, both)
    served = authority.server()
    served = ServerTls(served.cert_file, served.key_file, str(accepted))
    async with Sink(tls=served) as sink:
        target, settings = towards(sink, protocol, tls)
        settings |= {"RELAY_QUEUE_SIZE": "1000000", "RELAY_BATCH_SIZE": "50"}
        async with RelayProcess(target, settings) as relay, relay.channel() as channel:
            sent = 0

            async def on() -> None:
                """Send until the collector has what was sent so far."""
                nonlocal sent
                goal = sent + 500

                async def arrived() -> bool:
                    nonlocal sent
                    await send(channel, TRACES, numbered_request(sent, sent + 10))
                    sent += 10
                    return sink.accepted_items("traces") >= goal

                await until(arrived, f"{goal} items arrived", relay.tail)

            await on()
            replace(trusted, both)
            await on()
            pair = other.pair("client", "client.test")
            replace(Path(tls.cert_file), Path(pair.cert).read_bytes())
            replace(Path(tls.key_file), Path(pair.key).read_bytes())
            await on()
            await sink.stop()
            pair = other.pair("server")
            replace(Path(served.cert_file), Path(pair.cert).read_bytes())
            replace(Path(served.key_file), Path(pair.key).read_bytes())
            replace(accepted, Path(other.file).read_bytes())
            await sink.start()
            await on()
            scrape = await relay.drained()
            assert scrape.value("dropped_items_total") == 0
        assert set(numbers(*sink.accepted("traces"))) == set(range(sent))


# --- On the listeners -----------------------------------------------------------------------------


async def test_on_both_listeners(sink: Sink, authority: Authority, other: Authority) -> None:
    relay = RelayProcess(f"http://{sink.grpc_endpoint}", listeners(authority.server(mutual=True)))
    good = authority.client(certificate=True)
    bad = [
        authority.client(),
        ClientTls(authority.file, *other.pair("client")),
        ClientTls(other.file, good.cert_file, good.key_file),
    ]
    async with relay:
        async with secure(relay, good) as channel:
            await send(channel, TRACES, numbered_request(0, 10))
        await post(relay, numbered_request(10, 20), client_context(good))
        for tls in bad:
            async with secure(relay, tls) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await send(channel, TRACES, numbered_request(20, 30))
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises((aiohttp.ClientError, OSError)):
                await post(relay, numbered_request(20, 30), client_context(tls))
        scrape = await relay.drained()
        assert scrape.value("received_items_total") == 20
    assert sorted(numbers(*sink.accepted("traces"))) == list(range(20))


async def test_plaintext_clients_are_refused(sink: Sink, authority: Authority) -> None:
    relay = RelayProcess(f"http://{sink.grpc_endpoint}", listeners(authority.server()))
    async with relay, relay.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await send(channel, TRACES, numbered_request(0, 10), timeout=10)
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.post(f"http://{relay.http}/v1/traces", data=b"")
        # Those who speak TLS are served as before.
        await post(relay, numbered_request(0, 10), client_context(authority.client()))
        await relay.drained()
    assert numbers(*sink.accepted("traces")) == list(range(10))


@pytest.mark.timeout(120)
async def test_rotation_of_the_listeners_under_load(sink: Sink, authority: Authority) -> None:
    tls = authority.client(certificate=True)
    relay = RelayProcess(
        f"http://{sink.grpc_endpoint}",
        listeners(authority.server(mutual=True)) | {"RELAY_QUEUE_SIZE": "1000000"},
    )
    async with relay:
        sent = 0
        stop = False

        async def load() -> None:
            """Send over both transports, each request on a connection of its own."""
            nonlocal sent
            while not stop:
                async with secure(relay, tls) as channel:
                    first, sent = sent, sent + 10
                    await send(channel, TRACES, numbered_request(first, sent))
                first, sent = sent, sent + 10
                await post(relay, numbered_request(first, sent), client_context(tls))

        async with asyncio.TaskGroup() as group:
            group.create_task(load())
            for _ in range(2):
                before = [
                    await presented(relay.grpc, client_context(tls), "h2"),
                    await presented(relay.http, client_context(tls)),
                ]
                assert before[0] == before[1]
                authority.pair("server")

                async def changed(before: list[bytes] = before) -> bool:
                    return (
                        await presented(relay.grpc, client_context(tls), "h2") != before[0]
                        and await presented(relay.http, client_context(tls)) != before[1]
                    )

                await until(changed, "both listeners present the new certificate", relay.tail)
            stop = True
        async with within("everything arrives", relay.tail):
            scrape = await relay.drained()
        assert scrape.value("dropped_items_total") == 0
        assert scrape.value("received_items_total") == sent
    assert set(numbers(*sink.accepted("traces"))) == set(range(sent))


async def test_a_broken_rotation_keeps_the_listeners_going(
    sink: Sink, authority: Authority
) -> None:
    served = authority.server()
    trust = client_context(authority.client())
    relay = RelayProcess(f"http://{sink.grpc_endpoint}", listeners(served))
    async with relay:
        before = await presented(relay.http, trust)
        replace(Path(served.key_file), b"half")

        async def warned() -> bool:
            assert await presented(relay.http, trust) == before
            await presented(relay.grpc, client_context(authority.client()), "h2")
            return any("holds no PEM private key" in line for line in relay.output)

        await until(warned, "a warning about the key", relay.tail)
        await post(relay, numbered_request(0, 10), trust)
        await relay.drained()
    assert numbers(*sink.accepted("traces")) == list(range(10))


async def test_files_that_cannot_be_used_end_the_start_with_what_is_wrong(
    sink: Sink, authority: Authority, other: Authority
) -> None:
    served = authority.server()
    replace(Path(served.key_file), Path(other.pair("server").key).read_bytes())
    relay = RelayProcess(f"http://{sink.grpc_endpoint}", listeners(served))
    with pytest.raises(AssertionError, match="ended before"):
        await relay.start()
    assert await relay.exit_code() == 2
    assert any("does not belong to the certificate" in line for line in relay.output)
    await relay.reap()
