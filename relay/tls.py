"""TLS of both transports, towards the collector and on the listeners.

One rule for gRPC and HTTP: without a CA of one's own the system's roots count (grpc would take the
roots bundled with it), and certificates are read again when they change on disk, without a restart.
A pair that is half-written or does not match keeps the old one in use, with one warning.

Sources: OpenTelemetry protocol exporter specification ("Certificate File", "Client key file",
"Client certificate file"); X.509 field order: RFC 5280, section 4.1.
"""

from __future__ import annotations

import binascii
import datetime as dt
import functools
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from relay.exporters import ClientTls
from relay.files import Rotating, Warn
from relay.receivers import ServerTls

if TYPE_CHECKING:
    import grpc

__all__ = [
    "TlsError",
    "check_client",
    "check_server",
    "client_context",
    "client_warnings",
    "grpc_channel_credentials",
    "grpc_server_credentials",
    "rotating_channel_credentials",
    "rotating_client_context",
    "server_context",
    "server_warnings",
    "system_roots",
]

EXPIRES_SOON: Final = 7 * 24 * 3600.0
"""Seconds before its end from which a certificate is worth a warning at start."""

_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine, Arch, distroless
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # RHEL 7 and newer
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/ssl/cert.pem",  # Alpine, macOS, BSD
)
_DIRECTORIES: Final = ("/etc/ssl/certs", "/etc/pki/tls/certs")
_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL
)
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")


class TlsError(ValueError):
    """A file of the TLS settings cannot be used; the text names the file and what is wrong."""


# --- Towards the collector ------------------------------------------------------------------------


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """Build what the HTTP client needs: TLS 1.2 or newer, the server's name and chain checked.

    Raises:
        TlsError: a file cannot be read, is not PEM, or certificate and key do not belong together.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca_file:
        _load_authorities(context, tls.ca_file)
    else:
        # Honours SSL_CERT_FILE and SSL_CERT_DIR. Interpreters built elsewhere may look in places
        # that this machine does not have: then what the distribution has counts.
        context.set_default_verify_paths()
        paths = ssl.get_default_verify_paths()
        if not (paths.cafile or paths.capath) and (roots := system_roots()):
            context.load_verify_locations(cadata=roots.decode("ascii", "ignore"))
    if tls.cert_file or tls.key_file:
        _load_pair(context, tls.cert_file, tls.key_file)
    context.set_alpn_protocols(["http/1.1"])
    return context


@functools.cache
def _system_context() -> ssl.SSLContext:
    """Build the context that trusts the system's roots, once for all who need no other.

    Reading them takes tens of milliseconds and about a megabyte each time.
    """
    return client_context(ClientTls())


def grpc_channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """Build what a gRPC channel needs; same rules as :func:`client_context`.

    Raises:
        TlsError: as there.
    """
    import grpc  # noqa: PLC0415 - heavy, and the HTTP side does without

    if faults := check_client(tls):  # grpc says nothing about them before the first handshake
        raise TlsError("; ".join(faults))
    roots = _read(tls.ca_file, "CA") if tls.ca_file else system_roots()
    key = _read(tls.key_file, "key") if tls.key_file else None
    chain = _read(tls.cert_file, "certificate") if tls.cert_file else None
    # roots None, a machine without any: the roots that grpc brings along.
    return grpc.ssl_channel_credentials(roots, key, chain)


def rotating_client_context(tls: ClientTls, *, warn: Warn) -> Rotating[ssl.SSLContext]:
    """Return :func:`client_context`, built again whenever its files change.

    Raises:
        TlsError: as there, for the first build.
    """
    if not (files := _client_files(tls)):
        return Rotating((), _system_context, warn=warn)
    return Rotating(files, lambda: client_context(tls), warn=warn)


def rotating_channel_credentials(
    tls: ClientTls, *, warn: Warn
) -> Rotating[grpc.ChannelCredentials]:
    """Return :func:`grpc_channel_credentials`, built again whenever its files change.

    A channel keeps the credentials that it was made with: make a new one when ``generation`` grew.

    Raises:
        TlsError: as there, for the first build.
    """
    return Rotating(_client_files(tls), lambda: grpc_channel_credentials(tls), warn=warn)


def _client_files(tls: ClientTls) -> tuple[str, ...]:
    return tuple(path for path in (tls.ca_file, tls.cert_file, tls.key_file) if path)


def system_roots() -> bytes | None:
    """Return the certificates that this machine trusts, as PEM; None where none are found.

    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR`` win, as with OpenSSL, then the places OpenSSL was built
    with, then where distributions keep them.
    """
    paths = ssl.get_default_verify_paths()  # looks at the two variables itself
    extra = paths.capath if paths.capath != paths.openssl_capath else None
    for bundle in (paths.cafile, *_BUNDLES):
        if bundle and (found := _certificates(Path(bundle))):
            return _join(found + _directory(extra))
    for directory in (paths.capath, *_DIRECTORIES):
        if found := _directory(directory):
            return _join(found)
    return None


def _join(certificates: list[bytes]) -> bytes:
    # A file in a directory of roots and its hashed link are one certificate.
    return b"\n".join(dict.fromkeys(certificates)) + b"\n"


def _directory(path: str | None) -> list[bytes]:
    if not path:
        return []
    try:
        entries = sorted(Path(path).iterdir())
    except OSError:
        return []
    return [certificate for entry in entries for certificate in _certificates(entry)]


def _certificates(path: Path) -> list[bytes]:
    try:
        return _CERTIFICATE.findall(path.read_bytes())
    except OSError:
        return []


# --- On the listeners -----------------------------------------------------------------------------


def server_context(
    tls: ServerTls, *, warn: Warn, clock: Callable[[], float] = time.monotonic
) -> ssl.SSLContext:
    """Build what an HTTP listener needs; its certificates and client CA follow the files.

    The listener keeps this one context for good. At every handshake the TLS library asks for the
    context of the name that the client wants (also when it names none), and is given the latest.

    Raises:
        TlsError: a file cannot be read, is not PEM, or certificate and key do not belong together.
    """
    rotating = Rotating(_server_files(tls), lambda: _server_context(tls), warn=warn)
    first = _server_context(tls)

    def choose(
        connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = rotating.current(clock())

    first.sni_callback = choose
    return first


def _server_context(tls: ServerTls) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load_pair(context, tls.cert_file, tls.key_file)
    if tls.client_ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_authorities(context, tls.client_ca_file)
        # A resumed session skips the check of the client's certificate: without tickets a CA that
        # was taken away no longer opens the door.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    return context


def grpc_server_credentials(
    tls: ServerTls, *, warn: Warn, clock: Callable[[], float] = time.monotonic
) -> grpc.ServerCredentials:
    """Build what a gRPC listener needs; its certificates and client CA follow the files.

    ``warn`` may be called from a thread of grpc.

    Raises:
        TlsError: as :func:`server_context`.
    """
    import grpc  # noqa: PLC0415 - heavy, and the HTTP side does without

    def build() -> grpc.ServerCertificateConfiguration:
        _server_context(tls)  # says what is wrong with the files; grpc would not
        pair = _read(tls.key_file, "key"), _read(tls.cert_file, "certificate")
        roots = _read(tls.client_ca_file, "CA") if tls.client_ca_file else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    rotating = Rotating(_server_files(tls), build, warn=warn)
    initial = rotating.current(clock())
    given = initial

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal given
        latest = rotating.current(clock())
        if latest is given:
            return None  # no change: grpc goes on with what it has
        given = latest
        return latest

    return grpc.dynamic_ssl_server_credentials(
        initial,
        fetch,  # type: ignore[arg-type]  # None for "no change" is documented; the stubs forgot
        require_client_authentication=bool(tls.client_ca_file),
    )


def _server_files(tls: ServerTls) -> tuple[str, ...]:
    return tuple(path for path in (tls.cert_file, tls.key_file, tls.client_ca_file) if path)


# --- At start -------------------------------------------------------------------------------------


def check_client(tls: ClientTls) -> list[str]:
    """Say what is wrong with the files, one line each; nothing when they can be used."""
    return _check(tls.cert_file, tls.key_file, tls.ca_file, ssl.PROTOCOL_TLS_CLIENT)


def check_server(tls: ServerTls) -> list[str]:
    """Say what is wrong with the files, one line each; nothing when they can be used."""
    return _check(tls.cert_file, tls.key_file, tls.client_ca_file, ssl.PROTOCOL_TLS_SERVER)


def client_warnings(tls: ClientTls, now: float) -> list[str]:
    """Say which certificates are out of date or soon will be. ``now``: Unix time in seconds."""
    return [*_dates(tls.cert_file, now), *_dates(tls.ca_file, now)]


def server_warnings(tls: ServerTls, now: float) -> list[str]:
    """Say which certificates are out of date or soon will be. ``now``: Unix time in seconds."""
    return [*_dates(tls.cert_file, now), *_dates(tls.client_ca_file, now)]


def _check(cert: str, key: str, authorities: str, protocol: ssl._SSLMethod) -> list[str]:
    faults: list[str] = []
    context = _context(protocol)
    if cert or key or protocol is ssl.PROTOCOL_TLS_SERVER:
        try:
            _load_pair(context, cert, key)
        except TlsError as error:
            faults.append(str(error))
    if authorities:
        try:
            _load_authorities(context, authorities)
        except TlsError as error:
            faults.append(str(error))
    return faults


def _dates(path: str, now: float) -> list[str]:
    """Judge every certificate of a file; a file that cannot be read is for the check to report."""
    if not path:
        return []
    said: list[str] = []
    for position, pem in enumerate(_certificates(Path(path)), 1):
        try:
            start, end = validity(ssl.PEM_cert_to_DER_cert(pem.decode("ascii")))
        except ValueError:
            continue
        which = f"certificate {position} in {path!r}"
        if now < start:
            said.append(f"{which} is not valid before {_date(start)}")
        elif now >= end:
            said.append(f"{which} expired on {_date(end)}")
        elif end - now < EXPIRES_SOON:
            said.append(f"{which} expires soon, on {_date(end)}")
    return said


def _date(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def validity(der: bytes) -> tuple[float, float]:
    """Return (not before, not after) of an X.509 certificate in DER, in Unix seconds.

    The standard library reads these of a peer's certificate only, not of a file's.

    Raises:
        ValueError: the bytes are not laid out as a certificate.
    """
    body = _element(der, 0)[1]  # Certificate
    body = _element(body, 0)[1]  # TBSCertificate
    position = 0
    tag, _, after = _element(body, position)
    if tag == 0xA0:  # [0] version, absent in version 1
        position = after
    for _ in range(3):  # serialNumber, signature, issuer
        position = _element(body, position)[2]
    times = _element(body, position)[1]  # Validity
    first_tag, first, after = _element(times, 0)
    last_tag, last, _ = _element(times, after)
    return _time(first_tag, first), _time(last_tag, last)


def _element(data: bytes, position: int) -> tuple[int, bytes, int]:
    """Read one DER element: its tag, its content, and where the next one starts."""
    if position + 2 > len(data):
        raise ValueError("truncated DER")
    tag, length = data[position], data[position + 1]
    position += 2
    if length & 0x80:
        size = length & 0x7F
        length = int.from_bytes(data[position : position + size], "big")
        position += size
    if position + length > len(data):
        raise ValueError("truncated DER")
    return tag, data[position : position + length], position + length


def _time(tag: int, text: bytes) -> float:
    """Read UTCTime (tag 23, two digits of the year, 50 to 49) or GeneralizedTime."""
    value = text.decode("ascii")
    if tag == 23:
        value = ("20" if int(value[:2]) < 50 else "19") + value
    return dt.datetime.strptime(value, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC).timestamp()


# --- Files ----------------------------------------------------------------------------------------


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext:
    """Start a context with the same rules on every Python version and as near to grpc's as can be.

    Made by hand since ``create_default_context`` became stricter in Python 3.13 about how a CA was
    issued: a collector that worked would stop with an update of the interpreter, on HTTP only.
    """
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise TlsError(f"cannot read the {what} file {path!r}: {error.strerror}") from None


def _load_authorities(context: ssl.SSLContext, path: str) -> None:
    data = _read(path, "CA")
    found = _CERTIFICATE.findall(data)
    if not found:
        raise TlsError(_no_pem(path, "CA", "certificate", data))
    try:
        # Only the certificates: text between them, and a key beside them, are no fault.
        context.load_verify_locations(cadata=b"\n".join(found).decode("ascii"))
    except (ssl.SSLError, ValueError, binascii.Error):
        raise TlsError(f"the CA file {path!r} holds a damaged certificate") from None


def _load_pair(context: ssl.SSLContext, cert: str, key: str) -> None:
    if not cert or not key:
        have, lack = (cert, "key") if cert else (key, "certificate")
        raise TlsError(f"{have!r} needs a {lack} file beside it: set both or neither")
    data = _read(cert, "certificate")
    if not _CERTIFICATE.search(data):
        raise TlsError(_no_pem(cert, "certificate", "certificate", data))
    data = _read(key, "key")
    if not _PRIVATE_KEY.search(data):
        raise TlsError(_no_pem(key, "key", "private key", data))
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"the key in {key!r} does not belong to the certificate in {cert!r}"
        elif error.reason in {"KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}:
            message = f"the key in {key!r} is of another kind than the certificate in {cert!r}"
        else:
            why = (error.reason or "damaged").replace("_", " ").lower()
            message = f"cannot use the certificate {cert!r} with the key {key!r}: {why}"
        raise TlsError(message) from None
    except ValueError:
        raise TlsError(
            f"the key in {key!r} is encrypted; the relay has no password for it"
        ) from None
    except OSError as error:
        raise TlsError(f"cannot read {cert!r} or {key!r}: {error.strerror}") from None


def _no_password() -> str:
    """Refuse, where OpenSSL would ask for a password on the terminal and hang a daemon."""
    raise ValueError("encrypted")


def _no_pem(path: str, file: str, what: str, data: bytes) -> str:
    if not data.strip():
        return f"the {file} file {path!r} is empty"
    hint = "; it looks like DER: convert it with openssl" if data[:1] == b"\x30" else ""
    return f"the {file} file {path!r} holds no PEM {what}{hint}"
