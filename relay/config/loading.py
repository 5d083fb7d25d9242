"""From flags and environment to a checked configuration, with every fault reported together.

Order of sources: flags, ``RELAY_*``, ``OTEL_*``, default. Within one source the setting of a single
signal wins over the general one. The source comes first because application and relay often
share an environment: the application's ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` names the relay, and
must not win over a ``RELAY_EXPORTER_ENDPOINT`` that names the collector.

Faults in a flag or ``RELAY_*`` count even where another source wins; an ``OTEL_*`` variable is only
looked at when its turn comes, since it may be meant for the application alone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Generic, Literal, NamedTuple, TypeVar, cast

from relay import addresses
from relay.config import settings as s
from relay.config.endpoints import DEFAULT_GRPC, DEFAULT_HTTP, Endpoint, redact, resolve
from relay.config.machine import THIS_MACHINE, Machine
from relay.config.settings import BY_FLAG, SETTINGS, SIGNAL_NAMES, Setting, flag, twin
from relay.config.values import REDACTED, InvalidError, Parsed
from relay.exporters import ClientTls, ExporterConfig, Protocol_
from relay.limits import PipelineConfig
from relay.otlp import SIGNALS
from relay.processors import ProcessorConfig
from relay.receivers import Listen, ReceiverConfig, ServerTls

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the daemon is built from. Mappings are by signal name; times in seconds."""

    receivers: ReceiverConfig
    admin: Listen
    exporters: Mapping[str, ExporterConfig]
    pipelines: Mapping[str, PipelineConfig]
    processors: ProcessorConfig
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    shutdown_linger: float = 3.0
    shutdown_timeout: float = 25.0


@dataclass(frozen=True, slots=True)
class Effective:
    """One row of ``check``: a value in force and where it came from.

    ``signal``: "" where the row is for every signal. ``shown``: the value, secrets redacted.
    ``source``: ``default``, the variable, or ``flag --x``.
    """

    name: str
    signal: str
    shown: str
    source: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came of loading. ``config`` is None exactly when there are ``faults``.

    Faults and warnings are one line each, without secrets.
    """

    config: Config | None
    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    effective: tuple[Effective, ...]


class UnknownFlagError(ValueError):
    """The command line has what no flag accepts; one line per fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(_visible(fault) for fault in faults)
        super().__init__("\n".join(self.faults))


def parse_flags(argv: Sequence[str], also: Sequence[str] = ()) -> dict[str, str]:
    """Read ``--flag value`` and ``--flag=value``; the last of a repeated flag counts.

    ``also``: flags of the command that take no value; present ones map to "".

    Raises:
        UnknownFlagError: an unknown flag (with the nearest known one), a flag without its value,
            or an argument that belongs to no flag.
    """
    flags: dict[str, str] = {}
    faults: list[str] = []
    rest = iter(argv)
    after_unknown = False
    for argument in rest:
        name, equals, value = argument.partition("=")
        if after_unknown and not argument.startswith("-"):
            after_unknown = False  # most likely the unknown flag's value: one fault is enough
        elif name in also:
            flags[name] = ""
            if equals:
                faults.append(f"{name} takes no value")
        elif name in BY_FLAG:
            given = value if equals else next(rest, None)
            if given is None or (not equals and given.startswith("--")):
                faults.append(f"{name} needs a value: {name} VALUE or {name}=VALUE")
            else:
                flags[name] = given
        elif name.startswith("-"):
            after_unknown = not equals
            faults.append(f"unknown flag {_quote(name)}{_nearest(name, [*BY_FLAG, *also], '--')}")
        else:
            faults.append(f"unexpected argument {_quote(argument)}; flags are --name VALUE")
    if faults:
        raise UnknownFlagError(faults)
    return flags


def load(
    flags: Mapping[str, str], environ: Mapping[str, str], machine: Machine = THIS_MACHINE
) -> Loaded:
    """Compose the configuration. Reads nothing but its arguments.

    ``flags``: as :func:`parse_flags` returns them; keys that are no setting's flag are ignored.
    ``machine``: answers whether files can be read and which addresses are its own.
    """
    return _Loading(flags, environ, machine).load()


def _quote(text: str) -> str:
    """A value in a report, bounded in length."""
    return f'"{text[:200]}{"..." if len(text) > 200 else ""}"'


def _visible(text: str) -> str:
    """One line that every terminal takes: what cannot be printed is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _require_utf8(text: str) -> None:
    """Refuse bytes that Python could only smuggle into a string (PEP 383)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidError("is not UTF-8") from None


def _nearest(name: str, known: Iterable[str], prefix: str) -> str:
    """A hint at the nearest name; what all names begin with makes none nearer."""
    rests = [each.removeprefix(prefix) for each in known]
    close = difflib.get_close_matches(name.removeprefix(prefix), rests, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


class _Source(NamedTuple):
    """Where a value may stand. ``rank``: 0 flag, 1 RELAY_*, 2 OTEL_*, 3 default."""

    rank: int
    label: str
    own: bool


_DEFAULT = _Source(3, "default", own=False)


class _Resolved(NamedTuple, Generic[T_co]):
    """A setting's value in force.

    ``sound``: no fault stood in its way, so checks that compare it with others mean something.
    """

    value: T_co
    shown: str
    source: _Source
    sound: bool


# What Kubernetes sets in every container for a service that is called "relay".
_SERVICE_LINK = re.compile(r"RELAY_(SERVICE_HOST|SERVICE_PORT.*|PORT|PORT_\d+_(TCP|UDP).*)")


class _Loading:
    """One run of :func:`load`."""

    def __init__(
        self, flags: Mapping[str, str], environ: Mapping[str, str], machine: Machine
    ) -> None:
        self._flags = flags
        self._environ = environ
        self._machine = machine
        self._faults: dict[str, None] = {}
        self._warnings: dict[str, None] = {}
        self._parsed: dict[str, Parsed[object] | None] = {}
        self._rows: dict[tuple[str, str], _Resolved[object]] = {}

    def load(self) -> Loaded:
        self._warn_of_unknown()
        self._parse_flags_and_twins()
        config = Config(
            receivers=self._receivers(),
            admin=self._get(s.ADMIN_LISTEN),
            exporters=self._exporters(),
            pipelines=MappingProxyType({name: self._pipeline(name) for name in SIGNAL_NAMES}),
            processors=self._processors(),
            log_level=cast("LogLevel", self._get(s.LOG_LEVEL)),
            log_format=cast("LogFormat", self._get(s.LOG_FORMAT)),
            shutdown_linger=self._get(s.SHUTDOWN_LINGER),
            shutdown_timeout=self._get(s.SHUTDOWN_TIMEOUT),
        )
        if config.shutdown_linger >= config.shutdown_timeout > 0:
            self._warn(
                "RELAY_SHUTDOWN_LINGER leaves nothing of RELAY_SHUTDOWN_TIMEOUT: what is buffered "
                "at the end is dropped instead of flushed"
            )
        self._check_listeners()
        return Loaded(
            config=None if self._faults else config,
            faults=tuple(self._faults),
            warnings=tuple(self._warnings),
            effective=tuple(self._effective()),
        )

    # Reading one setting.

    def _fault(self, text: str) -> None:
        self._faults[_visible(text)] = None

    def _warn(self, text: str) -> None:
        self._warnings[_visible(text)] = None

    def _warn_of_unknown(self) -> None:
        known = {twin(name) for setting in SETTINGS for name in setting.names}
        unknown = [n for n in self._environ if n.startswith("RELAY_") and n not in known]
        links = [name for name in unknown if _SERVICE_LINK.fullmatch(name)]
        for name in sorted(set(unknown) - set(links)):
            self._warn(f"{name[:200]}: no such setting{_nearest(name, known, 'RELAY_')}")
        if links:
            self._warn(
                f"{min(links)} and the like: ignored, Kubernetes sets them for a service named "
                "relay (enableServiceLinks: false turns them off)"
            )

    def _parse_flags_and_twins(self) -> None:
        for setting in SETTINGS:
            for name in setting.names:
                for source in self._sources(name, own=False)[:2]:
                    self._parse(setting, source)

    @staticmethod
    def _sources(name: str, *, own: bool) -> list[_Source]:
        sources = [_Source(0, f"flag {flag(name)}", own), _Source(1, twin(name), own)]
        if name.startswith("OTEL_"):
            sources.append(_Source(2, name, own))
        return sources

    def _text(self, setting: Setting[object], source: _Source) -> str | None:
        """What stands in a source, or None for unset."""
        if source.rank == 0:
            text = self._flags.get(source.label.removeprefix("flag "))
        else:
            text = self._environ.get(source.label)
        if text is None:
            return None
        text = text.strip()  # values read from files end in a newline
        if not text and not setting.clears:
            return None
        return text

    def _parse(self, setting: Setting[object], source: _Source) -> Parsed[object] | None:
        """The value in a source; None when it is unset, or at fault and reported."""
        if source.label not in self._parsed:
            text = self._text(setting, source)
            self._parsed[source.label] = None
            if text is not None:
                try:
                    _require_utf8(text)
                    self._parsed[source.label] = setting.kind.parse(text)
                except InvalidError as error:
                    self._invalid(setting, source, text, str(error))
        return self._parsed[source.label]

    def _invalid(self, setting: Setting[object], source: _Source, text: str, why: str) -> None:
        shown = REDACTED if setting.secret else _quote(self._redact(setting, text))
        line = f"{source.label.removeprefix('flag ')}={shown}: {why}"
        if source.rank < 2 or setting.strict:
            self._fault(line)
        else:
            self._warn(f"{line}; taken as unset")

    @staticmethod
    def _redact(setting: Setting[object], text: str) -> str:
        return redact(text) if setting is s.ENDPOINT else text

    def _resolve(self, setting: Setting[T], signal: str = "") -> _Resolved[T]:
        """The value in force for one signal, or for all."""
        key = (setting.name, signal)
        if key not in self._rows:
            self._rows[key] = self._search(setting, signal)
        return cast("_Resolved[T]", self._rows[key])

    def _search(self, setting: Setting[object], signal: str) -> _Resolved[object]:
        own = setting.own.get(signal)
        general = self._sources(setting.name, own=False)
        sources = sorted(
            [*(self._sources(own, own=True) if own else ()), *general], key=lambda each: each.rank
        )
        sound = True
        for source in sources:
            found = self._parse(setting, source)
            if found is not None:
                return _Resolved(found.value, found.shown, source, sound)
            if self._text(setting, source) is not None and (source.rank < 2 or setting.strict):
                sound = False
        unset = setting.kind.unset
        default = unset if unset and not setting.default else setting.kind.parse(setting.default)
        return _Resolved(default.value, default.shown, _DEFAULT, sound)

    def _get(self, setting: Setting[T], signal: str = "") -> T:
        return self._resolve(setting, signal).value

    # Composing the parts.

    def _receivers(self) -> ReceiverConfig:
        grpc, http = self._get(s.GRPC_LISTEN), self._get(s.HTTP_LISTEN)
        if grpc.off and http.off:
            self._fault(
                "RELAY_GRPC_LISTEN=off with RELAY_HTTP_LISTEN=off: nothing could be received; "
                "give one of them an address"
            )
        tls = self._server_tls()
        self._check_engine(grpc, tls)
        return ReceiverConfig(
            grpc=grpc,
            http=http,
            socket_mode=self._get(s.SOCKET_MODE),
            tls=tls,
            max_request_bytes=self._get(s.MAX_REQUEST_BYTES),
            max_connections=self._get(s.MAX_CONNECTIONS),
            max_streams=self._get(s.MAX_STREAMS),
            request_timeout=self._get(s.REQUEST_TIMEOUT),
            grpc_engine=self._get(s.GRPC_ENGINE),
        )

    def _check_engine(self, listen: Listen, tls: ServerTls | None) -> None:
        """Refuse what the chosen engine cannot do, and an engine that is not there."""
        engine = self._resolve(s.GRPC_ENGINE)
        if engine.value == s.GRPC_ENGINES[0] or listen.off:
            return
        line = f"{engine.source.label.removeprefix('flag ')}={engine.value}"
        found = self._machine.installed(engine.value)
        if found != s.FAST_EXTRA:
            why = f"version {found} is installed" if found else "not installed"
            self._fault(
                f"{line}: {why}, needs {s.FAST_EXTRA} (pip install 'otlp-relay[fast]' brings it)"
            )
        if listen.path and tls is not None:
            self._fault(
                f"{line}: no TLS on a Unix socket (RELAY_GRPC_LISTEN=unix:{listen.path}); "
                f"{s.GRPC_ENGINES[0]} can"
            )

    def _server_tls(self) -> ServerTls | None:
        cert, key = self._file(s.TLS_CERT_FILE), self._file(s.TLS_KEY_FILE)
        client_ca = self._file(s.TLS_CLIENT_CA_FILE)
        self._pair(self._resolve(s.TLS_CERT_FILE), "RELAY_TLS_KEY_FILE", key)
        self._pair(self._resolve(s.TLS_KEY_FILE), "RELAY_TLS_CERT_FILE", cert)
        if client_ca and not cert:
            self._pair(self._resolve(s.TLS_CLIENT_CA_FILE), "RELAY_TLS_CERT_FILE", cert)
        if not (cert and key):
            return None
        files = ServerTls(cert_file=cert, key_file=key, client_ca_file=client_ca)
        self._examine(files, s.TLS_CERT_FILE, s.TLS_KEY_FILE, s.TLS_CLIENT_CA_FILE)
        return files

    def _examine(
        self, files: ClientTls | ServerTls, *settings: Setting[str], signal: str = ""
    ) -> None:
        """Look into TLS files that can be read; what is found names the file itself."""
        given = [each for each in (self._resolve(one, signal) for one in settings) if each.value]
        if not given or any(self._machine.why_unreadable(each.value) for each in given):
            return
        names = ", ".join(each.source.label.removeprefix("flag ") for each in given)
        faults, warnings = self._machine.examine_tls(files)
        for text in faults:
            self._fault(f"{names}: {text}")
        for text in warnings:
            self._warn(f"{names}: {text}")

    def _pair(self, given: _Resolved[str], partner: str, value: str) -> None:
        if given.value and not value:
            self._fault(f"{given.source.label}={_quote(given.value)}: needs {partner} as well")

    def _file(self, setting: Setting[str], signal: str = "") -> str:
        """A file's path, after making sure that it can be read."""
        found = self._resolve(setting, signal)
        if found.value and (why := self._machine.why_unreadable(found.value)):
            self._fault(
                f"{found.source.label}={_quote(found.value)}: cannot be read ({why}); "
                f"expected {setting.kind.accepts}"
            )
        return found.value

    def _exporters(self) -> Mapping[str, ExporterConfig]:
        found = {schema.name: self._exporter(schema.name, schema.http_path) for schema in SIGNALS}
        return MappingProxyType(found)

    def _exporter(self, signal: str, http_path: str) -> ExporterConfig:
        protocol = cast("Protocol_", self._get(s.PROTOCOL, signal))
        target, encrypted = self._destination(signal, protocol, http_path)
        return ExporterConfig(
            protocol=protocol,
            endpoint=target,
            tls=self._client_tls(signal, encrypted=encrypted),
            headers=self._headers(signal, protocol),
            headers_file=self._file(s.HEADERS_FILE, signal),
            compression="gzip" if self._get(s.COMPRESSION, signal) == "gzip" else "none",
            timeout=self._get(s.TIMEOUT, signal) or None,
            connect_timeout=self._get(s.CONNECT_TIMEOUT),
        )

    def _destination(self, signal: str, protocol: str, http_path: str) -> tuple[str, bool]:
        """Where a signal goes, and whether encrypted."""
        endpoint = self._resolve(s.ENDPOINT, signal)
        found = endpoint.value
        if found is None:
            text = DEFAULT_GRPC if protocol == "grpc" else DEFAULT_HTTP
            found = cast("Endpoint", s.ENDPOINT.kind.parse(text).value)
            self._rows[s.ENDPOINT.name, signal] = endpoint._replace(value=found, shown=text)
        insecure = self._resolve(s.INSECURE, signal)
        name = f"{endpoint.source.label}={_quote(str(found))}"
        try:
            destination = resolve(
                found,
                protocol=protocol,
                http_path=http_path,
                own=endpoint.source.own,
                insecure=insecure.value,
            )
        except InvalidError as error:
            self._fault(f"{name}: {error}")
            return "", False
        if endpoint.sound:
            for hint in destination.hints:
                self._warn(f"{name}: {hint}")
            self._refuse_loop(name, found)
        return destination.target, destination.encrypted

    def _client_tls(self, signal: str, *, encrypted: bool) -> ClientTls | None:
        ca, cert, key = (
            self._file(setting, signal)
            for setting in (s.CERTIFICATE, s.CLIENT_CERTIFICATE, s.CLIENT_KEY)
        )
        self._pair(self._resolve(s.CLIENT_CERTIFICATE, signal), "a CLIENT_KEY", key)
        self._pair(self._resolve(s.CLIENT_KEY, signal), "a CLIENT_CERTIFICATE", cert)
        if encrypted:
            files = ClientTls(ca_file=ca, cert_file=cert, key_file=key)
            if bool(cert) == bool(key):
                self._examine(
                    files, s.CERTIFICATE, s.CLIENT_CERTIFICATE, s.CLIENT_KEY, signal=signal
                )
            return files
        for setting in (s.CERTIFICATE, s.CLIENT_CERTIFICATE):
            unused = self._resolve(setting, signal)
            if unused.value:
                self._warn(
                    f"{unused.source.label}={_quote(unused.value)}: not used, since the "
                    f"connection for {signal} is plaintext ({self._endpoint_shown(signal)})"
                )
        return None

    def _endpoint_shown(self, signal: str) -> str:
        return self._resolve(s.ENDPOINT, signal).shown

    def _headers(self, signal: str, protocol: str) -> tuple[tuple[str, str], ...]:
        """Headers as the protocol writes them: gRPC has lower-case names of few characters."""
        found = self._resolve(s.HEADERS, signal)
        if protocol != "grpc":
            return found.value
        for header, _ in found.value:
            if not re.fullmatch("[0-9a-z_.-]+", header.lower()):
                self._fault(
                    f"{found.source.label}={REDACTED}: {_quote(header)} is no name for gRPC; "
                    "expected letters, digits, _ . and -"
                )
        return tuple((header.lower(), value) for header, value in found.value)

    def _pipeline(self, signal: str) -> PipelineConfig:
        queue_size = self._resolve(s.QUEUE_SIZE, signal)
        queue_bytes = self._resolve(s.QUEUE_MAX_BYTES)
        return PipelineConfig(
            queue_size=queue_size.value,
            queue_max_bytes=queue_bytes.value,
            batch_size=self._at_most(s.BATCH_SIZE, signal, queue_size),
            schedule_delay=self._get(s.SCHEDULE_DELAY, signal),
            export_max_bytes=self._at_most(s.EXPORT_MAX_BYTES, "", queue_bytes),
            max_concurrent_exports=self._get(s.MAX_CONCURRENT_EXPORTS),
        )

    def _at_most(self, setting: Setting[int], signal: str, limit: _Resolved[int]) -> int:
        """A batch's limit, lowered to its queue's: a larger batch could never fill.

        The specification wants it so for items (``OTEL_BSP_MAX_EXPORT_BATCH_SIZE``). Someone who
        only lowers the queue need not be told.
        """
        found = self._resolve(setting, signal)
        if found.value <= limit.value:
            return found.value
        if found.source.rank < _DEFAULT.rank:
            self._warn(
                f"{found.source.label}={found.shown}: lowered to {limit.shown}, the size of the "
                f"queue ({limit.source.label})"
            )
        label = f"{found.source.label}, lowered to the queue's"
        self._rows[setting.name, signal] = found._replace(
            value=limit.value, shown=limit.shown, source=found.source._replace(label=label)
        )
        return limit.value

    def _processors(self) -> ProcessorConfig:
        service_name = self._get(s.SERVICE_NAME)
        pairs = self._get(s.RESOURCE_ATTRIBUTES)
        if service_name:  # specification of OTEL_SERVICE_NAME: it takes precedence
            pairs = tuple(pair for pair in pairs if pair[0] != "service.name")
        excluded, included = self._resolve(s.EXCLUDED_URLS), self._get(s.INCLUDED_URLS)
        if included is not None and excluded.value and excluded.source.rank < _DEFAULT.rank:
            self._warn(
                f"{excluded.source.label}: ignored, since "
                f"{self._resolve(s.INCLUDED_URLS).source.label} is set"
            )
        return ProcessorConfig(
            enabled=self._enabled(),
            metrics_enabled=self._get(s.METRICS_ENABLED),
            excluded=excluded.value or (),
            included=included,
            drop_send_receive=self._get(s.DISABLE_SEND_RECEIVE_SPANS),
            sampling_ratio=self._get(s.TRACES_SAMPLER_ARG),
            service_name=service_name,
            resource_attributes=pairs,
        )

    def _enabled(self) -> bool:
        """Two settings for one thing: the better source decides, in one source either disables."""
        enabled, disabled = self._resolve(s.ENABLED), self._resolve(s.SDK_DISABLED)
        if enabled.source.rank < disabled.source.rank:
            return enabled.value
        if disabled.source.rank < enabled.source.rank:
            return not disabled.value
        return enabled.value and not disabled.value

    # Checks across settings.

    def _listeners(self) -> list[tuple[str, Listen]]:
        """The listeners that are on, named by where their address came from."""
        found = [self._resolve(each) for each in (s.GRPC_LISTEN, s.HTTP_LISTEN, s.ADMIN_LISTEN)]
        names = (s.GRPC_LISTEN.name, s.HTTP_LISTEN.name, s.ADMIN_LISTEN.name)
        return [
            (name, each.value)
            for name, each in zip(names, found, strict=True)
            if each.sound and not each.value.off
        ]

    def _check_listeners(self) -> None:
        listeners = self._listeners()
        for index, (name, one) in enumerate(listeners):
            for other_name, other in listeners[:index]:
                if self._clash(one, other):
                    self._fault(
                        f"{name}={one}: {other_name} listens there already ({other}); "
                        "every listener needs an address of its own"
                    )

    def _clash(self, one: Listen, other: Listen) -> bool:
        if one.path or other.path:
            return bool(one.path and other.path) and self._same_file(one.path, other.path)
        if one.port != other.port or one.port == 0:
            return False
        hosts = {one.host.lower(), other.host.lower()}
        if len(hosts) == 1 or any(addresses.is_wildcard(host) for host in hosts):
            return True
        if any(addresses.is_localhost(host) for host in hosts):
            return all(
                addresses.is_localhost(host) or addresses.numeric(host) in {"127.0.0.1", "::1"}
                for host in hosts
            )
        return addresses.numeric(one.host) != "" and addresses.numeric(one.host) == (
            addresses.numeric(other.host)
        )

    def _same_file(self, one: str, other: str) -> bool:
        return self._machine.real_path(one) == self._machine.real_path(other)

    def _refuse_loop(self, name: str, endpoint: Endpoint) -> None:
        """Refuse a collector that is this relay: every item would come back for ever."""
        for listener_name, listener in self._listeners():
            if endpoint.scheme == "unix":
                same = bool(listener.path) and self._same_file(endpoint.path, listener.path)
            else:
                same = (
                    not listener.path
                    and listener.port == endpoint.effective_port
                    and self._is_own_host(endpoint.host, listener.host)
                )
            if same:
                self._fault(
                    f"{name}: this is the relay's own {listener_name} ({listener}), so it would "
                    "forward to itself; set RELAY_EXPORTER_ENDPOINT to the collector's address"
                )
                return

    def _is_own_host(self, host: str, listener: str) -> bool:
        if host.lower() == listener.lower():
            return True
        if addresses.is_loopback(host) or addresses.is_wildcard(host):
            return True
        address = addresses.numeric(host)
        return bool(address) and self._machine.is_own_address(address)

    # The report.

    def _effective(self) -> Iterable[Effective]:
        for setting in SETTINGS:
            if not setting.own:
                yield self._row(setting, "")
                continue
            rows = [self._row(setting, signal) for signal in SIGNAL_NAMES]
            if len({(row.shown, row.source) for row in rows}) == 1:
                yield replace(rows[0], name=setting.name, signal="")
            else:
                yield from rows

    def _row(self, setting: Setting[object], signal: str) -> Effective:
        found = self._resolve(setting, signal)
        name = setting.own.get(signal, setting.name)
        return Effective(name, signal, _visible(found.shown), found.source.label)
