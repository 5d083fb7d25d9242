from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest
import trustme

from relay.exporters import ClientTls
from relay.receivers import ServerTls
from relay.tls import (
    TlsError,
    check_client,
    check_server,
    client_context,
    client_warnings,
    grpc_channel_credentials,
    grpc_server_credentials,
    rotating_channel_credentials,
    rotating_client_context,
    server_context,
    server_warnings,
    system_roots,
    validity,
)
from tests.pki import LONG_AGO, YESTERDAY, Authority, replace


class Clock:
    """Moves a second at every look, so that no change of a file waits for real time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    folder = tmp_path / "stranger"
    folder.mkdir()
    return Authority(folder)


# --- Handshakes over sockets ----------------------------------------------------------------------


@asynccontextmanager
async def listening(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(b"hello")
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def handshake(port: int, context: ssl.SSLContext, name: str = "localhost") -> bytes:
    """Connect, read the greeting (a refusal of TLS 1.3 comes with it), return the certificate."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name
    )
    try:
        if await reader.read() != b"hello":
            raise ConnectionError("closed before a word was said")
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(certificate, bytes)
        return certificate
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_the_right_ca_is_accepted_and_http_negotiated(authority: Authority) -> None:
    async with listening(server_context(authority.server(), warn=pytest.fail)) as port:
        context = client_context(authority.client())
        assert await handshake(port, context)
        assert await handshake(port, context, name="127.0.0.1")


@pytest.mark.parametrize("trusts", ["stranger", "system"])
async def test_a_ca_that_is_not_trusted_is_refused(
    authority: Authority, stranger: Authority, trusts: str
) -> None:
    tls = stranger.client() if trusts == "stranger" else ClientTls()
    async with listening(server_context(authority.server(), warn=pytest.fail)) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            await handshake(port, client_context(tls))


async def test_a_wrong_name_is_refused(authority: Authority) -> None:
    pair = authority.pair("server", "collector.test")
    async with listening(server_context(ServerTls(*pair), warn=pytest.fail)) as port:
        assert await handshake(port, client_context(authority.client()), name="collector.test")
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await handshake(port, client_context(authority.client()))


async def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    pair = authority.pair("server", expired=True)
    async with listening(server_context(ServerTls(*pair), warn=pytest.fail)) as port:
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            await handshake(port, client_context(authority.client()))


async def test_mutual_tls(authority: Authority, stranger: Authority) -> None:
    served = server_context(authority.server(mutual=True), warn=pytest.fail)
    async with listening(served) as port:
        assert await handshake(port, client_context(authority.client(certificate=True)))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(port, client_context(authority.client()))
        pair = stranger.pair("client")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(port, client_context(ClientTls(authority.file, *pair)))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_listener_follows_its_files(
    authority: Authority, stranger: Authority, version: ssl.TLSVersion
) -> None:
    warnings: list[str] = []
    tls = authority.server(mutual=True)
    own = authority.client(certificate=True)
    foreign = ClientTls(authority.file, *stranger.pair("client"))
    context = server_context(tls, warn=warnings.append, clock=Clock())
    own_context, foreign_context = client_context(own), client_context(foreign)
    own_context.maximum_version = foreign_context.maximum_version = version
    async with listening(context) as port:
        before = await handshake(port, own_context)
        authority.pair("server")
        after = await handshake(port, own_context)
        assert after != before, "a new certificate is presented to new connections"

        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(port, foreign_context)
        replace(authority.path, Path(stranger.file).read_bytes())
        assert await handshake(port, foreign_context) == after
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await handshake(port, own_context)
    assert warnings == []


async def test_a_half_done_rotation_keeps_the_old_pair_with_one_warning(
    authority: Authority,
) -> None:
    warnings: list[str] = []
    tls = authority.server()
    context = server_context(tls, warn=warnings.append, clock=Clock())
    trust = client_context(authority.client())
    async with listening(context) as port:
        before = await handshake(port, trust)
        key = Path(tls.key_file).read_bytes()
        authority.pair("server")
        fresh = Path(tls.key_file).read_bytes()
        replace(Path(tls.key_file), key)
        for _ in range(3):
            assert await handshake(port, trust) == before
        assert len(warnings) == 1
        assert "does not belong" in warnings[0]
        replace(Path(tls.key_file), fresh)
        assert await handshake(port, trust) != before
    assert len(warnings) == 1


# --- The same over gRPC ---------------------------------------------------------------------------


class Echo(grpc.GenericRpcHandler):
    def service(
        self, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        async def answer(request: bytes, context: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials) -> AsyncIterator[int]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def call(port: int, credentials: grpc.ChannelCredentials) -> bytes:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/a.B/C")
        answer = await method(b"x", timeout=20)
        assert isinstance(answer, bytes)
        return answer


async def test_grpc_right_wrong_and_mutual(authority: Authority, stranger: Authority) -> None:
    served = grpc_server_credentials(authority.server(mutual=True), warn=pytest.fail)
    async with serving(served) as port:
        good = grpc_channel_credentials(authority.client(certificate=True))
        assert await call(port, good) == b"x"
        wrong = [
            authority.client(),
            stranger.client(certificate=True),
            ClientTls(authority.file, *stranger.pair("client")),
            ClientTls(),
        ]
        for tls in wrong:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(port, grpc_channel_credentials(tls))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_grpc_listener_follows_its_files(authority: Authority, stranger: Authority) -> None:
    warnings: list[str] = []
    tls = authority.server(mutual=True)
    own = grpc_channel_credentials(authority.client(certificate=True))
    foreign = grpc_channel_credentials(ClientTls(stranger.file, *stranger.pair("client")))
    credentials = grpc_server_credentials(tls, warn=warnings.append, clock=Clock())
    async with serving(credentials) as port:
        assert await call(port, own) == b"x"
        old = Path(tls.key_file).read_bytes()
        pair = stranger.pair("server")
        replace(Path(tls.cert_file), Path(pair.cert).read_bytes())
        assert Path(tls.key_file).read_bytes() == old
        assert await call(port, own) == b"x", "half done: the old pair stays in use"
        assert len(warnings) == 1
        replace(Path(tls.key_file), Path(pair.key).read_bytes())
        replace(authority.path, Path(stranger.file).read_bytes())
        assert await call(port, foreign) == b"x"
        with pytest.raises(grpc.aio.AioRpcError):
            await call(port, own)
    assert len(warnings) == 1


@pytest.mark.parametrize("build", [rotating_client_context, rotating_channel_credentials])
def test_client_rotation_is_a_new_generation(
    authority: Authority, build: Callable[..., object]
) -> None:
    warnings: list[str] = []
    tls = authority.client(certificate=True)
    make = rotating_client_context if build is rotating_client_context else None
    rotating = (make or rotating_channel_credentials)(tls, warn=warnings.append)
    first = rotating.current(0.0)
    assert rotating.current(1.0) is first
    authority.pair("client")
    assert rotating.current(2.0) is not first
    assert rotating.generation == 1
    replace(Path(tls.key_file), b"")
    second = rotating.current(3.0)
    assert rotating.current(4.0) is second
    assert rotating.generation == 1
    assert len(warnings) == 1
    assert "is empty" in warnings[0]


# --- The system's roots ---------------------------------------------------------------------------

ROOTS = """
import sys
from relay.tls import system_roots
sys.stdout.buffer.write(system_roots() or b"none")
"""


def roots(**environment: str) -> bytes:
    env = {k: v for k, v in os.environ.items() if k not in {"SSL_CERT_FILE", "SSL_CERT_DIR"}}
    ran = subprocess.run(
        [sys.executable, "-c", ROOTS], env=env | environment, check=True, capture_output=True
    )
    return ran.stdout


def test_the_variables_of_openssl_win(authority: Authority, tmp_path: Path) -> None:
    pem = Path(authority.file).read_bytes().strip()
    assert roots(SSL_CERT_FILE=authority.file).strip() == pem
    folder = tmp_path / "roots"
    folder.mkdir()
    (folder / "one.pem").write_bytes(pem)
    (folder / "1234abcd.0").symlink_to("one.pem")
    both = roots(SSL_CERT_DIR=str(folder))
    assert both.count(pem) == 1
    assert roots(SSL_CERT_DIR=str(folder), SSL_CERT_FILE=authority.file).strip() == pem


async def test_system_roots_are_what_both_transports_trust(authority: Authority) -> None:
    program = """
import asyncio, socket, ssl, sys
import grpc
from relay.exporters import ClientTls
from relay.tls import client_context, grpc_channel_credentials
grpc_port, port = map(int, sys.argv[1:])
with socket.create_connection(("127.0.0.1", port)) as plain:
    with client_context(ClientTls()).wrap_socket(plain, server_hostname="localhost") as secure:
        print(secure.version())
with grpc.secure_channel(f"localhost:{grpc_port}", grpc_channel_credentials(ClientTls())) as ch:
    print(ch.unary_unary("/a.B/C")(b"x", timeout=20))
"""
    tls = authority.server()
    async with (
        serving(grpc_server_credentials(tls, warn=pytest.fail)) as grpc_port,
        listening(server_context(tls, warn=pytest.fail)) as port,
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, str(grpc_port), str(port)),
            env=os.environ | {"SSL_CERT_FILE": authority.file},
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert out.split() == [b"TLSv1.3", b"b'x'"]


def test_the_systems_roots_are_read_once_for_all_exporters() -> None:
    first = rotating_client_context(ClientTls(), warn=pytest.fail).current(0.0)
    assert rotating_client_context(ClientTls(), warn=pytest.fail).current(5.0) is first


def test_where_the_machine_has_roots_they_are_found() -> None:
    found = system_roots()
    if found is None:
        pytest.skip("this machine trusts no certificate authority at all")
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found.decode())


# --- Faults at start ------------------------------------------------------------------------------


def test_good_files_have_no_faults(authority: Authority) -> None:
    assert check_client(ClientTls()) == []
    assert check_client(authority.client(certificate=True)) == []
    assert check_server(authority.server(mutual=True)) == []


def test_each_fault_is_named(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.pair("good")
    other = authority.pair("other")
    rsa = authority.ca.issue_cert("localhost", key_type=trustme.KeyType.RSA)
    paths = {name: tmp_path / name for name in ("empty", "text", "der", "damaged", "rsa", "locked")}
    paths["empty"].write_bytes(b"\n")
    paths["text"].write_bytes(b"hello")
    paths["der"].write_bytes(ssl.PEM_cert_to_DER_cert(Path(authority.file).read_text()))
    paths["damaged"].write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    paths["rsa"].write_bytes(rsa.private_key_pem.bytes())
    name = {key: str(path) for key, path in paths.items()}
    missing = str(tmp_path / "missing")
    table = [
        ((missing, key), f"cannot read the certificate file '{missing}': No such file"),
        ((cert, missing), f"cannot read the key file '{missing}': No such file"),
        ((cert, str(tmp_path)), "Is a directory"),
        ((name["empty"], key), "is empty"),
        ((name["text"], key), "holds no PEM certificate"),
        ((name["der"], key), "it looks like DER"),
        ((cert, cert), "holds no PEM private key"),
        ((cert, other.key), f"the key in '{other.key}' does not belong to the certificate in"),
        ((cert, name["rsa"]), "is of another kind than the certificate in"),
        ((name["damaged"], key), "cannot use the certificate"),
        ((cert, ""), "needs a key file beside it"),
        (("", key), "needs a certificate file beside it"),
    ]
    for (cert_file, key_file), expected in table:
        faults = check_server(ServerTls(cert_file, key_file))
        assert len(faults) == 1, expected
        assert expected in faults[0]
        assert check_client(ClientTls("", cert_file, key_file)) == faults
        with pytest.raises(TlsError) as caught:
            client_context(ClientTls("", cert_file, key_file))
        assert str(caught.value) == faults[0]
        with pytest.raises(TlsError):
            grpc_channel_credentials(ClientTls("", cert_file, key_file))
        with pytest.raises(TlsError):
            server_context(ServerTls(cert_file, key_file), warn=pytest.fail)
        with pytest.raises(TlsError):
            grpc_server_credentials(ServerTls(cert_file, key_file), warn=pytest.fail)
    for authorities in ("missing", "empty", "text", "der", "damaged"):
        path = name.get(authorities, missing)
        faults = check_server(ServerTls(cert, key, path))
        assert len(faults) == 1
        assert "CA file" in faults[0]
        assert check_client(ClientTls(path)) == faults
    both = check_server(ServerTls(cert, other.key, name["text"]))
    assert len(both) == 2, "all faults are reported together"


def test_an_encrypted_key_is_a_fault_and_asks_nobody(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.pair("good")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", str(locked)],
        check=True,
    )
    faults = check_server(ServerTls(cert, str(locked)))
    assert len(faults) == 1
    assert "is encrypted" in faults[0]


def test_dates_are_warnings(authority: Authority) -> None:
    old = authority.pair("old", expired=True)
    assert check_server(ServerTls(*old)) == [], "it may be on its way to be replaced"
    now = YESTERDAY.timestamp() + 10
    said = server_warnings(ServerTls(*old), now)
    assert len(said) == 1
    assert "expired on" in said[0]
    assert old.cert in said[0]
    assert "expires soon" in client_warnings(ClientTls("", *old), now - 3600)[0]
    assert client_warnings(ClientTls("", *old), now - 30 * 24 * 3600) == []
    early = client_warnings(ClientTls("", *old), LONG_AGO.timestamp() - 1)
    assert "is not valid before 2020-01-01" in early[0]


def test_validity_is_what_the_library_reads(authority: Authority) -> None:
    leaf = authority.ca.issue_cert("localhost", not_before=LONG_AGO, not_after=YESTERDAY)
    der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
    assert validity(der) == (LONG_AGO.timestamp(), int(YESTERDAY.timestamp()))
    for end in range(len(der)):
        with suppress(ValueError):
            validity(der[:end])


def test_roots_of_the_system_have_dates_that_can_be_read() -> None:
    for pem in (system_roots() or b"").split(b"-----END CERTIFICATE-----"):
        if b"BEGIN" in pem:
            text = pem.decode() + "-----END CERTIFICATE-----"
            start, end = validity(ssl.PEM_cert_to_DER_cert(text[text.index("-----BEGIN") :]))
            assert start < end
