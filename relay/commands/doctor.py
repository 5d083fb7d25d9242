"""``otlp-relay doctor``: why does nothing arrive? Looks at every step and says what to do."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import ssl
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from relay import addresses, probes, tls
from relay.commands import UsageError
from relay.config import THIS_MACHINE, Config, Loaded, UnknownFlagError, load, parse_flags
from relay.config.reference import usage
from relay.doctor import (
    Finding,
    Level,
    differences,
    fault,
    judge_clock,
    judge_outcomes,
    judge_relay,
    judge_spoken,
    ok,
    redacted,
    warning,
)
from relay.exporters import ClientTls, Exporter, ExporterConfig
from relay.headers import HeaderSource
from relay.otlp import SIGNALS, Outcome, SignalSchema
from relay.probes import Place
from relay.receivers import Listen

__all__ = ["examine", "run"]

SLOW: Final = 1.0
"""Seconds that a look-up of a name may take before it is worth a word."""

EXPIRES_SOON: Final = 14 * 86400.0
"""Seconds before its end from which the collector's certificate is worth a word."""

_HELP: Final = """\
Finds out why nothing arrives, and says what to do. Exit code 0: nothing is at fault; 1: something
is; 2: run would not start.

It asks the network what the relay would ask, for the configuration that run would have with the
same flags and environment: the name, each address, TLS, the protocol, and an empty request for
each signal, which no collector stores. It looks at the ports of this machine, and at the books of
a relay that runs here. No answer is waited for longer than RELAY_CONNECT_TIMEOUT.

  --json  one JSON document instead of text
"""

_EXPIRED, _NOT_YET_VALID = 10, 9
_WRONG_NAME = frozenset({62, 64})
"""X509_V_ERR_* of OpenSSL (x509_vfy.h): expired, not yet valid; host name, IP address mismatch."""


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print what was found; 0 when nothing is at fault, 1 when something is, 2 for bad settings.

    Raises:
        UsageError: the command line has what no flag accepts.
    """
    if "--help" in argv or "-h" in argv:
        print(usage("doctor", _HELP), end="")
        return 0
    try:
        flags = parse_flags(argv, also=("--json",))
    except UnknownFlagError as error:
        raise UsageError(*error.faults) from None
    loaded = load(flags, environ)
    if loaded.config is None:
        found = [fault("configuration", each, "otlp-relay check says more") for each in
                 loaded.faults]  # fmt: skip
        _report(found, as_json="--json" in flags)
        return 2
    if "GRPC_VERBOSITY" not in environ:
        os.putenv("GRPC_VERBOSITY", "NONE")  # Its core writes lines of its own to standard error.
    found = asyncio.run(examine(loaded, loaded.config))
    _report(found, as_json="--json" in flags)
    return 1 if any(each.level is Level.FAULT for each in found) else 0


def _report(found: Sequence[Finding], *, as_json: bool) -> None:
    if as_json:
        document = {
            "ok": not any(each.level is Level.FAULT for each in found),
            "findings": [
                {
                    "level": each.level.value.lower(),
                    "about": each.about,
                    "message": each.message,
                    "advice": each.advice,
                }
                for each in found
            ],
        }
        print(json.dumps(document, indent=2))
        return
    colours = {Level.OK: "32", Level.WARNING: "33", Level.FAULT: "31;1"}
    for each in found:
        word = f"{each.level.value:<8}"
        if sys.stdout.isatty():
            word = f"\033[{colours[each.level]}m{word}\033[0m"
        print(f"{word} {_printable(each.about)}: {_printable(each.message)}")
        if each.advice:
            print(f"         -> {_printable(each.advice)}")
    counts = {level: sum(each.level is level for each in found) for level in Level}
    faults, warnings = counts[Level.FAULT], counts[Level.WARNING]
    print(
        f"\n{_number(faults, 'fault')}, {_number(warnings, 'warning')}"
        + ("" if faults else ": from here everything on the way to the collector works")
    )


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _printable(text: str) -> str:
    """What a collector says may hold anything; a terminal gets text."""
    return "".join(c if c.isprintable() else " " for c in text)


async def examine(loaded: Loaded, config: Config) -> list[Finding]:
    """Look at everything, in the order in which telemetry goes. Takes seconds at most."""
    relay = await _running(config.admin, _limit(config))
    received = [
        name for name, signal in (relay.signals if relay else {}).items() if signal["received"]
    ]
    found = list(_configuration(loaded, config))
    found += _listeners(config, relay)
    if relay is not None:
        found += _relay(loaded, relay)
    groups = _destinations(config)
    listeners = [each for each in (config.receivers.grpc, config.receivers.http) if not each.off]
    looks = [_Destination(each, signals, listeners, received).look() for each, signals in groups]
    for findings in await asyncio.gather(*looks):
        found += findings
    return redacted(dict.fromkeys(found), _secrets(config))


def _limit(config: Config) -> float:
    return min(exporter.connect_timeout for exporter in config.exporters.values())


def _secrets(config: Config) -> Iterator[str]:
    for exporter in config.exporters.values():
        for _, value in _headers(exporter, []):
            yield value
        yield exporter.endpoint.partition("?")[2]


def _headers(exporter: ExporterConfig, said: list[str]) -> tuple[tuple[str, str], ...]:
    source = HeaderSource(exporter.headers, exporter.headers_file, warn=said.append)
    return source.current(time.monotonic())


# --- Configuration --------------------------------------------------------------------------------


def _configuration(loaded: Loaded, config: Config) -> Iterator[Finding]:
    about = "configuration"
    set_ = [row.source for row in loaded.effective if row.source != "default"]
    yield ok(about, f"valid; set: {', '.join(dict.fromkeys(set_)) or 'nothing, all defaults'}")
    for each in loaded.warnings:
        yield warning(about, each, "otlp-relay check shows every setting and where it came from")
    filters = config.processors
    if not filters.enabled:
        yield fault(
            about, "a setting says to discard everything",
            "set OTEL_ENABLED=true and OTEL_SDK_DISABLED=false, or RELAY_ENABLED=true for the relay"
            " alone",
        )  # fmt: skip
    elif not filters.metrics_enabled:
        yield warning(about, "metrics are discarded by a setting", "RELAY_METRICS_ENABLED=true")
    if filters.sampling_ratio == 0:
        yield fault(about, "the sampling ratio is 0: every trace is discarded",
                    "set OTEL_TRACES_SAMPLER_ARG to 1.0, or RELAY_TRACES_SAMPLER_ARG for the relay"
                    " alone")  # fmt: skip
    for exporter in dict.fromkeys(config.exporters.values()):
        said: list[str] = []
        _headers(exporter, said)
        for each in said:
            yield fault(about, each, "mend the file; the relay reads it again by itself")


def _now() -> float:
    return time.time()  # noqa: TID251 - compared with other machines' clocks


# --- This machine ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Relay:
    """A relay that runs here: where it was asked, whether it is ready, and its books."""

    where: str
    ready: bool
    status: Mapping[str, Any]

    @property
    def signals(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.status["signals"]
        return found


def _place(listen: Listen) -> Place:
    """Where to ask what listens there, from this machine."""
    if listen.path:
        return Place(path=listen.path)
    host = listen.host
    if addresses.is_wildcard(host):
        host = "::1" if ":" in addresses.numeric(host) else "127.0.0.1"
    return Place("127.0.0.1" if host == "localhost" else host, listen.port)


async def _running(admin: Listen, limit: float) -> _Relay | None:
    """The relay that answers on the admin address, if one does."""
    if admin.off or (not admin.path and not admin.port):
        return None
    place = _place(admin)
    try:
        code, body = await probes.get(place, "/status.json", limit)
        status = json.loads(body)
        if code != 200 or not {"version", "listening", "signals"} <= set(status):
            return None
        ready, _ = await probes.get(place, "/readyz", limit)
    except (OSError, ValueError, TypeError):
        return None
    return _Relay(str(place), ready == 200, status)


def _relay(loaded: Loaded, relay: _Relay) -> Iterator[Finding]:
    about = f"relay ({relay.where})"
    yield from judge_relay(about, relay.status, ready=relay.ready)
    mine = [(row.name, row.signal, row.shown) for row in loaded.effective]
    if other := differences(mine, relay.status.get("configuration", ())):
        more = f", and {len(other) - 4} more" if len(other) > 4 else ""
        yield warning(
            about,
            f"it runs with another configuration: {'; '.join(other[:4])}{more}",
            "run the doctor with the flags and the environment of the relay; what is said about the"
            " collector is about the one named here",
        )


def _listeners(config: Config, relay: _Relay | None) -> Iterator[Finding]:
    receivers = config.receivers
    for name, listen in (
        ("grpc", receivers.grpc),
        ("http", receivers.http),
        ("admin", config.admin),
    ):
        if listen.off:
            continue
        setting = f"RELAY_{name.upper()}_LISTEN"
        if relay is None or name not in relay.status["listening"]:
            look = _socket if listen.path else _port
            yield look(f"{setting}={listen}", setting, listen)
        elif listen.path:
            yield from _permissions(f"{setting}={listen}", listen.path)
    if relay is None:
        where = "it has no admin address" if config.admin.off else f"nothing at {config.admin}"
        yield warning(
            "relay", f"no relay was found running here ({where})",
            "start it: otlp-relay run; if it runs elsewhere (a container), run the doctor there",
        )  # fmt: skip


def _port(about: str, setting: str, listen: Listen) -> Finding:
    if not listen.port:
        return ok(about, "the kernel will choose a port")
    error = probes.bindable(listen)
    if error is None:
        return ok(about, "free")
    if error.errno == errno.EADDRINUSE:
        who = probes.owner(listen.port)
        by = f" by {who}" if who else ", by whom cannot be seen from here"
        return fault(
            about, f"taken{by}: a relay could not start here",
            f"stop what has the port, or set {setting} to another one"
            + ("" if who else f"; as root, ss -ltnp 'sport = :{listen.port}' tells who has it"),
        )  # fmt: skip
    if error.errno in {errno.EACCES, errno.EPERM}:
        return fault(about, "this user may not listen there", "ports below 1024 are root's:"
                     f" set {setting} to a higher one")  # fmt: skip
    return fault(about, f"a relay could not listen there: {probes.why(error)}",
                 f"set {setting} to an address that this machine has")  # fmt: skip


def _socket(about: str, setting: str, listen: Listen) -> Finding:
    folder = Path(listen.path).parent
    try:
        mode = Path(listen.path).lstat().st_mode
    except FileNotFoundError:
        if not folder.is_dir():
            return fault(about, f"there is no directory {folder}", f"make it, or change {setting}")
        if not os.access(folder, os.W_OK | os.X_OK):
            return fault(about, f"this user may not create files in {folder}",
                         "give the directory to the relay's user")  # fmt: skip
        return ok(about, "free")
    except OSError as error:
        return fault(about, probes.why(error), f"see to the path, or change {setting}")
    if not stat.S_ISSOCK(mode):
        return fault(about, "a file that is no socket is in the way",
                     f"move it, or change {setting}")  # fmt: skip
    return warning(about, "a socket is there already; a relay takes its place if nobody serves it",
                   f"if another process serves it, stop that or change {setting}")  # fmt: skip


def _permissions(about: str, path: str) -> Iterator[Finding]:
    """Who may connect to the socket of a relay that runs."""
    try:
        found = Path(path).stat()
    except OSError as error:
        yield fault(about, f"the relay runs, but its socket: {probes.why(error)}",
                    "restart the relay; something has removed the file")  # fmt: skip
        return
    mode = stat.S_IMODE(found.st_mode)
    who = f"mode {mode:04o}, user {found.st_uid}, group {found.st_gid}"
    if mode & stat.S_IWOTH:
        yield ok(about, f"served; anybody may connect ({who})")
    else:
        yield ok(about, f"served; the service must be of that user or group to connect ({who})")


# --- The collector --------------------------------------------------------------------------------


def _destinations(config: Config) -> list[tuple[ExporterConfig, dict[str, ExporterConfig]]]:
    """Signals that go to the same place in the same way; the first is one of the second."""
    groups: dict[ExporterConfig, dict[str, ExporterConfig]] = {}
    for name, exporter in config.exporters.items():
        same = replace(exporter, endpoint=_authority(exporter))
        groups.setdefault(same, {})[name] = exporter
    return [(next(iter(signals.values())), signals) for signals in groups.values()]


def _authority(exporter: ExporterConfig) -> str:
    if exporter.endpoint.startswith("unix:"):
        return exporter.endpoint
    if exporter.protocol == "grpc":
        return exporter.endpoint
    url = urlsplit(exporter.endpoint)
    port = url.port or (443 if url.scheme == "https" else 80)
    return addresses.join_host_port(url.hostname or "", port)


class _Destination:
    """One collector, asked step by step; a step that fails ends it."""

    def __init__(
        self,
        config: ExporterConfig,
        signals: Mapping[str, ExporterConfig],
        listeners: Sequence[Listen],
        received: Sequence[str],
    ) -> None:
        self._config = config
        self._signals = signals
        self._listeners = listeners
        self._received = received
        self._limit = config.connect_timeout
        self._grpc = config.protocol == "grpc"
        authority = _authority(config)
        self._about = authority
        self._host, self._port, self._path = "", 0, ""
        if authority.startswith("unix:"):
            self._path = authority.removeprefix("unix:")
        else:
            host, port = addresses.split_host_port(authority)
            self._host, self._port = host, port or 0

    async def look(self) -> list[Finding]:
        found: list[Finding] = []
        places: list[Place]
        if self._path:
            found.append(await self._unix())
            places = [Place(path=self._path)]
        else:
            looked_up, places = await self._look_up()
            found += looked_up
            found += await self._connect(places)
        if any(each.level is Level.FAULT for each in found):
            return found
        tested = await asyncio.gather(*(self._speak(place) for place in places))
        found += [finding for findings in tested for finding in findings]
        if not any(each.level is Level.FAULT for each in found):
            found += await self._export()
        return found

    async def _unix(self) -> Finding:
        about = self._about
        try:
            mode = os.stat(self._path).st_mode  # noqa: PTH116 - a look at a local file
        except FileNotFoundError:
            advice = "start the collector, or share the directory with its container"
            return fault(about, "there is no such socket", advice)
        except OSError as error:
            return fault(about, probes.why(error), "see to the permissions of the directories")
        if not stat.S_ISSOCK(mode):
            return fault(about, "this file is no socket", "see to RELAY_EXPORTER_ENDPOINT")
        try:
            async with probes.connected(Place(path=self._path), self._limit):
                return ok(about, "takes connections")
        except PermissionError:
            advice = "put the relay's user into the socket's group, or widen its mode"
            shown = f"{stat.S_IMODE(mode):04o}"
            return fault(about, f"this user may not connect (mode {shown})", advice)
        except ConnectionRefusedError:
            return fault(about, "nobody serves this socket: it was left behind",
                         "start the collector")  # fmt: skip
        except OSError as error:
            return fault(about, probes.why(error), "look at the collector itself")

    async def _look_up(self) -> tuple[list[Finding], list[Place]]:
        if addresses.numeric(self._host):
            return [], [Place(self._host, self._port)]
        looked_up = await probes.resolve(self._host, self._port, self._limit)
        about, found = self._about, list[Finding]()
        if not looked_up.addresses:
            advice = "see to the name in RELAY_EXPORTER_ENDPOINT and to DNS"
            if "." not in self._host:
                advice += (
                    "; a short name is known only inside its own Compose network or Kubernetes"
                    " namespace (elsewhere: name.namespace.svc)"
                )
            return [fault(about, f"looking up the name: {looked_up.fault}", advice)], []
        took = f"{looked_up.seconds * 1000:.0f} ms"
        shown = ", ".join(looked_up.addresses[:8])
        if looked_up.seconds > SLOW:
            advice = "see to DNS: reconnecting after an outage waits for it"
            found.append(warning(about, f"looking up the name took {took} ({shown})", advice))
        else:
            found.append(ok(about, f"the name stands for {shown} ({took})"))
        found += [finding for each in looked_up.addresses for finding in self._loop(each)]
        return found, [Place(each, self._port) for each in looked_up.addresses]

    def _loop(self, address: str) -> Iterator[Finding]:
        """Whether an address that the name stands for is one of the relay's own listeners."""
        own = addresses.is_loopback(address) or THIS_MACHINE.is_own_address(address)
        for listen in self._listeners:
            if listen.path or listen.port != self._port or not own:
                continue
            local = addresses.is_localhost(listen.host) and addresses.is_loopback(address)
            same = addresses.numeric(listen.host) == addresses.numeric(address)
            if local or same or addresses.is_wildcard(listen.host):
                yield fault(
                    self._about,
                    f"the name stands for {address}, and there the relay itself listens ({listen}):"
                    " it would forward to itself",
                    "set RELAY_EXPORTER_ENDPOINT to the collector's address",
                )

    async def _connect(self, places: list[Place]) -> list[Finding]:
        """Try each address; those that fail are taken out of ``places``."""
        errors = await asyncio.gather(*(self._try(place) for place in places))
        failed = [(place, error) for place, error in zip(places, errors, strict=True) if error]
        for place, _ in failed:
            places.remove(place)
        level = fault if not places else warning
        # An endpoint that is an address is named once: it is what all this is about.
        found = [
            level(
                self._about,
                probes.why(error) if self._single(place) else f"{place}: {probes.why(error)}",
                _advice(error),
            )
            for place, error in failed
        ]
        if places:
            at = [str(place) for place in places if not self._single(place)]
            found.append(
                ok(self._about, "takes connections" + (f" at {', '.join(at)}" if at else ""))
            )
        return found

    async def _try(self, place: Place) -> OSError | None:
        try:
            async with probes.connected(place, self._limit):
                return None
        except OSError as error:
            return error

    # TLS and the protocol.

    async def _speak(self, place: Place) -> list[Finding]:
        found: list[Finding] = []
        about = self._about if place.path or self._single(place) else f"{self._about} at {place}"
        wanted, other = ("http2", "http1") if self._grpc else ("http1", "http2")
        context = None
        if self._config.tls is not None:
            try:
                context = self._context(wanted)
            except tls.TlsError as error:
                return [fault(about, str(error), "mend the file, or the setting that names it")]
            found += await self._tls(about, place, context)
            if any(each.level is Level.FAULT for each in found):
                return found
        answer = await self._ask(place, wanted, context)
        heard = {wanted: answer.what}
        if answer.what != wanted:
            if context is not None and answer.what == "closed":
                said = await probes.alert(place, self._host, context, self._limit)
                if said is not None:
                    return [*found, _alert(about, said)]
                if not (self._config.tls and self._config.tls.cert_file):
                    return [*found, _hung_up(about)]
            second = await self._ask(place, other, context and self._context(other))
            heard[other] = second.what
        answers_tls = False
        if context is None and answer.what != wanted:
            protocols = ["h2", "http/1.1"]
            shaken = await probes.handshake(
                place, self._host or "localhost", probes.unverified(protocols), self._limit
            )
            answers_tls = shaken.error is None
        found.append(
            judge_spoken(
                about, self._config.protocol, heard,
                encrypted=context is not None, answers_tls=answers_tls,
            )
        )  # fmt: skip
        if answer.date is not None:
            found.append(judge_clock(about, answer.date, _now()))
        return found

    def _single(self, place: Place) -> bool:
        return self._host == place.host

    def _context(self, how: str) -> ssl.SSLContext:
        context = tls.client_context(self._config.tls or ClientTls())
        context.set_alpn_protocols(["h2" if how == "http2" else "http/1.1"])
        return context

    async def _ask(self, place: Place, how: str, context: ssl.SSLContext | None) -> probes.Answer:
        return await probes.ask(place, how, self._limit, context, self._host)

    async def _tls(self, about: str, place: Place, context: ssl.SSLContext) -> list[Finding]:
        shaken = await probes.handshake(place, self._host, context, self._limit)
        if shaken.error is None:
            return [_certificate(about, shaken.certificate, shaken.version)]
        error = shaken.error
        if isinstance(error, ssl.SSLCertVerificationError):
            bare = await probes.handshake(
                place, self._host, probes.unverified(["h2", "http/1.1"]), self._limit
            )
            ends = tls.validity(bare.der) if bare.der else None
            names = await self._names(place, bare.der) if bare.der else []
            custom = bool(self._config.tls and self._config.tls.ca_file)
            return [_distrusted(about, error, ends, names, custom=custom)]
        answers = await asyncio.gather(*(self._ask(place, h, None) for h in ("http2", "http1")))
        if {"http1", "http2"} & {answer.what for answer in answers}:
            return [fault(about, "it speaks plaintext, and the relay is set to TLS",
                          "write http:// in RELAY_EXPORTER_ENDPOINT, or switch the receiver's TLS"
                          " on in the collector")]  # fmt: skip
        if isinstance(error, ssl.SSLError):
            return [_alert(about, error)]
        return [fault(about, f"no TLS handshake: {probes.why(error)}",
                      "look at the collector itself, and at proxies between")]  # fmt: skip

    async def _names(self, place: Place, der: bytes) -> list[str]:
        """What a certificate that is not trusted is for: trusted on its own, it can be read."""
        context = probes.unverified(["h2", "http/1.1"])
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=der)
        shaken = await probes.handshake(place, self._host, context, self._limit)
        return _subjects(shaken.certificate)

    # An empty request.

    async def _export(self) -> list[Finding]:
        asked = [schema for schema in SIGNALS if schema.name in self._signals]
        # At once: a collector that hangs costs the limit, and not four times the limit.
        answers = await asyncio.gather(
            *(self._empty(schema, self._signals[schema.name]) for schema in asked)
        )
        outcomes = {schema.name: each for schema, each in zip(asked, answers, strict=True)}
        names = sorted({name for name, _ in _headers(self._config, [])})
        return list(judge_outcomes(self._about, outcomes, names, self._received))

    async def _empty(self, schema: SignalSchema, config: ExporterConfig) -> Outcome:
        """Send an empty request just as the relay would send a full one."""
        limit = min(config.timeout or self._limit, self._limit)
        exporter = _exporter(schema, replace(config, timeout=limit))
        try:
            return await exporter.connect() or await exporter.export(b"")
        finally:
            await exporter.close()


def _exporter(schema: SignalSchema, config: ExporterConfig) -> Exporter:
    if config.protocol != "grpc":
        from relay.exporters.http import HttpExporter  # noqa: PLC0415 - not for grpc

        return HttpExporter(schema, config, warn=_unheard)
    from relay.exporters.grpc import GrpcChannel, GrpcExporter  # noqa: PLC0415 - not for http

    channel = GrpcChannel(config, warn=_unheard)
    headers = HeaderSource(config.headers, config.headers_file, warn=_unheard)
    return GrpcExporter(schema, config, channel, headers)


def _unheard(_: str) -> None:
    """What the files are warned about is found by the configuration's own checks."""


def _advice(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return (
            "packets vanish: a firewall, a security group, a NetworkPolicy, or a machine that is"
            " gone"
        )
    if isinstance(error, ConnectionRefusedError):
        return (
            "nothing listens on this port: start the collector, see to the port, and that its"
            " receiver listens on 0.0.0.0 and not on its own localhost"
        )
    return "there is no way to this address from here: see to routes and networks"


def _certificate(about: str, certificate: Mapping[str, Any], version: str) -> Finding:
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    names = ", ".join(_subjects(certificate)[:6])
    text = f"{version}, certificate for {names}, until {certificate['notAfter']}"
    if ends - _now() < EXPIRES_SOON:
        return warning(about, f"{text}: that is soon", "renew the collector's certificate")
    return ok(about, text)


def _subjects(certificate: Mapping[str, Any]) -> list[str]:
    found = [str(name) for _, name in certificate.get("subjectAltName", ())]
    if not found:
        found = [
            str(value)
            for part in certificate.get("subject", ())
            for key, value in part
            if key == "commonName"
        ]
    return found


def _distrusted(
    about: str,
    error: ssl.SSLCertVerificationError,
    ends: tuple[float, float] | None,
    names: Iterable[str],
    *,
    custom: bool,
) -> Finding:
    def day(seconds: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))

    if error.verify_code == _EXPIRED and ends:
        advice = f"renew it; or is this machine's clock wrong? It says {day(_now())}"
        which = "its certificate, or one that it stands on, expired"
        return fault(about, f"{which} ({day(ends[1])})", advice)
    if error.verify_code == _NOT_YET_VALID and ends:
        return fault(about, f"its certificate is valid only from {day(ends[0])}",
                     f"is this machine's clock wrong? It says {day(_now())}")  # fmt: skip
    shown = ", ".join(names) or "names that cannot be read"
    if error.verify_code in _WRONG_NAME:
        return fault(about, f"its certificate is for {shown}",
                     "use one of these names in RELAY_EXPORTER_ENDPOINT, or issue it for the name"
                     " that is used")  # fmt: skip
    where = "RELAY_EXPORTER_CERTIFICATE names another authority than the one that signed it"
    advice = (
        f"{where}: name the one that did" if custom
        else "set RELAY_EXPORTER_CERTIFICATE to the file (PEM) of the authority that signed it"
    )  # fmt: skip
    return fault(about, f"its certificate is not trusted (for {shown}): {error.verify_message}",
                 advice)  # fmt: skip


_MUTUAL: Final = (
    "mutual TLS: set RELAY_EXPORTER_CLIENT_CERTIFICATE and RELAY_EXPORTER_CLIENT_KEY to a pair that"
    " the collector's authority signed"
)


def _hung_up(about: str) -> Finding:
    """Not every server says why: some close without the alert of RFC 8446, section 6.2."""
    return fault(
        about,
        "it hangs up right after the TLS handshake, as one does that wants a certificate of this"
        " side",
        f"{_MUTUAL}; if it wants none, look at what is between",
    )


def _alert(about: str, error: ssl.SSLError) -> Finding:
    reason = (error.reason or "").upper()
    if "CERTIFICATE" in reason or "HANDSHAKE_FAILURE" in reason:
        return fault(
            about,
            f"it wants a certificate of this side, or refuses the one it has: {probes.why(error)}",
            _MUTUAL,
        )
    return fault(about, f"the TLS handshake fails: {probes.why(error)}",
                 "see which versions of TLS the collector accepts (the relay: 1.2 and newer), and"
                 " its own log")  # fmt: skip
