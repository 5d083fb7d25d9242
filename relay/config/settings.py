"""Every setting there is, as a table: names, flag, parser, default, meaning.

One rule gives all names. A setting has one canonical variable; ``OTEL_EXPORTER_OTLP_X`` has the
twin ``RELAY_EXPORTER_X``, any other ``OTEL_X`` the twin ``RELAY_X``; and ``RELAY_X_Y`` has the flag
``--x-y``. Loading, ``check``, the help texts and the configuration reference are all read from
this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from relay.config import values
from relay.config.endpoints import endpoint
from relay.config.values import Kind
from relay.otlp import SIGNALS
from relay.processors.patterns import DEFAULT_EXCLUDED

T_co = TypeVar("T_co", covariant=True)

SIGNAL_NAMES = tuple(schema.name for schema in SIGNALS)

GRPC_ENGINES = ("grpcio", "h2corn")
"""What ``RELAY_GRPC_ENGINE`` accepts; the first is the default."""
FAST_EXTRA = "2.0.0"
"""The version of h2corn that the extra ``fast`` installs, and the only one that is entered as the
receiver does."""

_OTLP = "OTEL_EXPORTER_OTLP_"


def twin(variable: str) -> str:
    """The ``RELAY_*`` name of a setting."""
    if variable.startswith(_OTLP):
        return "RELAY_EXPORTER_" + variable.removeprefix(_OTLP)
    if variable.startswith("OTEL_"):
        return "RELAY_" + variable.removeprefix("OTEL_")
    return variable


def flag(variable: str) -> str:
    """The flag of a setting, from its canonical name or its twin."""
    return "--" + twin(variable).removeprefix("RELAY_").lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Setting(Generic[T_co]):
    """One setting.

    ``name``: the canonical variable. ``default``: as one would write it; "" is unset.
    ``strict``: a fault in the ``OTEL_*`` name ends the start as well (endpoint, protocol, TLS,
    patterns); other ``OTEL_*`` faults are warned about and taken as unset. ``secret``: the value
    is never shown. ``clears``: an empty variable is a value, not unset. ``own``: by signal, the
    canonical variable that is for that signal alone.
    """

    name: str
    kind: Kind[T_co]
    default: str
    group: str
    meaning: str
    strict: bool = False
    secret: bool = False
    clears: bool = False
    own: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def names(self) -> tuple[str, ...]:
        """The canonical variable and those of single signals."""
        return (self.name, *self.own.values())


def _by_signal(name: str) -> Mapping[str, str]:
    """``OTEL_EXPORTER_OTLP_TRACES_X`` and so on, for ``OTEL_EXPORTER_OTLP_X`` or its twin."""
    prefix = _OTLP if name.startswith(_OTLP) else "RELAY_EXPORTER_"
    rest = name.removeprefix(prefix)
    return MappingProxyType({s: f"{prefix}{s.upper()}_{rest}" for s in SIGNAL_NAMES})


def _processor(suffix: str) -> Mapping[str, str]:
    """What the SDKs' batch processors of spans and of log records call the same thing."""
    return MappingProxyType({"traces": f"OTEL_BSP_{suffix}", "logs": f"OTEL_BLRP_{suffix}"})


LISTENERS = "Listeners"
COLLECTOR = "Collector"
BUFFER = "Buffer and batches"
FILTERS = "Filters and enrichment"
PROCESS = "Process"

GRPC_LISTEN = Setting(
    "RELAY_GRPC_LISTEN",
    values.listen(),
    "localhost:4317",
    LISTENERS,
    "Where OTLP/gRPC is received: `host:port`, `unix:/path` or `off`. `localhost` binds 127.0.0.1 "
    "and, where there is one, ::1.",
)
HTTP_LISTEN = Setting(
    "RELAY_HTTP_LISTEN",
    values.listen(),
    "localhost:4318",
    LISTENERS,
    "Where OTLP/HTTP is received, likewise.",
)
ADMIN_LISTEN = Setting(
    "RELAY_ADMIN_LISTEN",
    values.listen(),
    "localhost:8888",
    LISTENERS,
    "Where `/metrics`, `/healthz`, `/readyz` and `/status.json` are served, likewise.",
)
SOCKET_MODE = Setting(
    "RELAY_SOCKET_MODE", values.mode(), "0660", LISTENERS, "Permissions of Unix sockets, in octal."
)
TLS_CERT_FILE = Setting(
    "RELAY_TLS_CERT_FILE",
    values.file(),
    "",
    LISTENERS,
    "Certificate chain (PEM) of both OTLP listeners. Read again when it changes.",
)
TLS_KEY_FILE = Setting(
    "RELAY_TLS_KEY_FILE", values.file(), "", LISTENERS, "Private key (PEM) of that certificate."
)
TLS_CLIENT_CA_FILE = Setting(
    "RELAY_TLS_CLIENT_CA_FILE",
    values.file(),
    "",
    LISTENERS,
    "Clients must present a certificate that one of these (PEM) signed.",
)
MAX_REQUEST_BYTES = Setting(
    "RELAY_MAX_REQUEST_BYTES",
    values.size(1024),
    "16MiB",
    LISTENERS,
    "Largest request accepted, after decompression.",
)
MAX_CONNECTIONS = Setting(
    "RELAY_MAX_CONNECTIONS",
    values.integer(1, 1_000_000),
    "1024",
    LISTENERS,
    "Connections at once, per listener.",
)
MAX_STREAMS = Setting(
    "RELAY_MAX_STREAMS",
    values.integer(1, 1_000_000),
    "128",
    LISTENERS,
    "gRPC calls at once, per connection.",
)
REQUEST_TIMEOUT = Setting(
    "RELAY_REQUEST_TIMEOUT",
    # The lower bound is there for those who write 30 and mean seconds.
    values.duration(1000, 3_600_000),
    "30000",
    LISTENERS,
    "Within this time an HTTP request must have arrived in full.",
)
GRPC_ENGINE = Setting(
    "RELAY_GRPC_ENGINE",
    values.choice(*GRPC_ENGINES),
    GRPC_ENGINES[0],
    LISTENERS,
    "The library that serves OTLP/gRPC: `grpcio`, or `h2corn` for less CPU per small request "
    "(`pip install 'otlp-relay[fast]'`; no TLS on a Unix socket).",
)

ENDPOINT = Setting(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    endpoint(),
    "",
    COLLECTOR,
    "The collector: `http://` (plaintext), `https://` (TLS), `unix:/path`; for grpc also "
    "`host:port`, which is TLS unless `OTEL_EXPORTER_OTLP_INSECURE`. For http/protobuf a base URL "
    "that the signal's path is added to; the endpoint of a single signal is used as it is.",
    strict=True,
    own=_by_signal("OTEL_EXPORTER_OTLP_ENDPOINT"),
)
PROTOCOL = Setting(
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    values.choice("grpc", "http/protobuf"),
    "grpc",
    COLLECTOR,
    "What the collector speaks.",
    strict=True,
    own=_by_signal("OTEL_EXPORTER_OTLP_PROTOCOL"),
)
INSECURE = Setting(
    "OTEL_EXPORTER_OTLP_INSECURE",
    values.boolean(),
    "false",
    COLLECTOR,
    "`true`: plaintext for an endpoint that is `host:port` alone. A scheme wins over it.",
    strict=True,
    own=_by_signal("OTEL_EXPORTER_OTLP_INSECURE"),
)
CERTIFICATE = Setting(
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
    values.file(),
    "",
    COLLECTOR,
    "Certificate authorities (PEM) that the collector's certificate is checked against; unset: "
    "the system's. Read again when it changes.",
    strict=True,
    own=_by_signal("OTEL_EXPORTER_OTLP_CERTIFICATE"),
)
CLIENT_KEY = Setting(
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    values.file(),
    "",
    COLLECTOR,
    "Private key (PEM) for mutual TLS.",
    strict=True,
    own=_by_signal("OTEL_EXPORTER_OTLP_CLIENT_KEY"),
)
CLIENT_CERTIFICATE = Setting(
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    values.file(),
    "",
    COLLECTOR,
    "Certificate chain (PEM) for mutual TLS.",
    strict=True,
    own=_by_signal("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
)
HEADERS = Setting(
    "OTEL_EXPORTER_OTLP_HEADERS",
    values.headers(),
    "",
    COLLECTOR,
    "Headers of every export: `name=value,name=value`, percent-decoded. Values are never shown; "
    "prefer a variable or the file to the flag, which other users of the machine can see.",
    secret=True,
    own=_by_signal("OTEL_EXPORTER_OTLP_HEADERS"),
)
HEADERS_FILE = Setting(
    "RELAY_EXPORTER_HEADERS_FILE",
    values.file(),
    "",
    COLLECTOR,
    "A file with lines `name=value`: more headers. Read again when it changes.",
    own=_by_signal("RELAY_EXPORTER_HEADERS_FILE"),
)
COMPRESSION = Setting(
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    values.choice("none", "gzip"),
    "none",
    COLLECTOR,
    "Compression of exports.",
    own=_by_signal("OTEL_EXPORTER_OTLP_COMPRESSION"),
)
TIMEOUT = Setting(
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    values.duration(1, zero="no limit"),
    "10000",
    COLLECTOR,
    "Time limit of one export attempt. 0: no limit.",
    own=_by_signal("OTEL_EXPORTER_OTLP_TIMEOUT"),
)
CONNECT_TIMEOUT = Setting(
    "RELAY_CONNECT_TIMEOUT",
    values.duration(100, 3_600_000),
    "5000",
    COLLECTOR,
    "Time limit for establishing a connection.",
)

QUEUE_SIZE = Setting(
    "RELAY_QUEUE_SIZE",
    values.integer(1),
    "2048",
    BUFFER,
    "Items that the ring holds, per signal. When it is full the oldest are dropped.",
    own=_processor("MAX_QUEUE_SIZE"),
)
QUEUE_MAX_BYTES = Setting(
    "RELAY_QUEUE_MAX_BYTES",
    values.size(1024, 2**40),
    "16MiB",
    BUFFER,
    "Bytes that the ring retains, per signal.",
)
BATCH_SIZE = Setting(
    "RELAY_BATCH_SIZE",
    values.integer(1),
    "512",
    BUFFER,
    "Most items in one export; at most the queue's size.",
    own=_processor("MAX_EXPORT_BATCH_SIZE"),
)
SCHEDULE_DELAY = Setting(
    "RELAY_SCHEDULE_DELAY",
    values.duration(0, 3_600_000),
    "5000",
    BUFFER,
    "Longest that an item waits for a batch to fill.",
    own=_processor("SCHEDULE_DELAY"),
)
EXPORT_MAX_BYTES = Setting(
    "RELAY_EXPORT_MAX_BYTES",
    values.size(1024),
    "4000000",
    BUFFER,
    "Most bytes in one export; collectors refuse more than 4 MiB by default. At most the "
    "queue's bytes.",
)
MAX_CONCURRENT_EXPORTS = Setting(
    "RELAY_MAX_CONCURRENT_EXPORTS",
    values.integer(1, 1024),
    "4",
    BUFFER,
    "Exports under way at once, per signal.",
)

ENABLED = Setting(
    "OTEL_ENABLED",
    values.boolean(),
    "true",
    FILTERS,
    "`false`: accept everything and discard it, counted as filtered.",
)
SDK_DISABLED = Setting(
    "OTEL_SDK_DISABLED",
    values.boolean(),
    "false",
    FILTERS,
    "`true`: the same as `OTEL_ENABLED=false`. A flag or `RELAY_*` for either wins over `OTEL_*` "
    "for the other.",
)
METRICS_ENABLED = Setting(
    "OTEL_METRICS_ENABLED", values.boolean(), "true", FILTERS, "`false`: the same for metrics only."
)
SERVICE_NAME = Setting(
    "OTEL_SERVICE_NAME",
    values.name(),
    "",
    FILTERS,
    "Sets `service.name` where a resource has none or `unknown_service*`.",
)
RESOURCE_ATTRIBUTES = Setting(
    "OTEL_RESOURCE_ATTRIBUTES",
    values.attributes(),
    "",
    FILTERS,
    "`key=value,key=value`, percent-decoded: adds each attribute that a resource lacks. "
    "`OTEL_SERVICE_NAME` wins over a `service.name` in it.",
)
TRACES_SAMPLER_ARG = Setting(
    "OTEL_TRACES_SAMPLER_ARG",
    values.ratio(),
    "1.0",
    FILTERS,
    "Ratio of traces kept, decided by trace id as the Python SDK's `TraceIdRatioBased` decides.",
)
EXCLUDED_URLS = Setting(
    "OTEL_EXCLUDED_URLS",
    values.patterns(cleared=()),
    ",".join(DEFAULT_EXCLUDED),
    FILTERS,
    "Requests not traced: patterns separated by commas. Set but empty clears the default.",
    strict=True,
    clears=True,
)
INCLUDED_URLS = Setting(
    "OTEL_INCLUDED_URLS",
    values.patterns(cleared=None),
    "",
    FILTERS,
    "Only these requests are traced; the exclusions are then ignored.",
    strict=True,
)
DISABLE_SEND_RECEIVE_SPANS = Setting(
    "OTEL_DISABLE_SEND_RECEIVE_SPANS",
    values.boolean(),
    "true",
    FILTERS,
    "`true`: drops the spans of ASGI send and receive events.",
)

SHUTDOWN_LINGER = Setting(
    "RELAY_SHUTDOWN_LINGER",
    values.duration(0, 3_600_000),
    "3000",
    PROCESS,
    "On SIGTERM, how long receivers stay open for the application's last flush.",
)
SHUTDOWN_TIMEOUT = Setting(
    "RELAY_SHUTDOWN_TIMEOUT",
    values.duration(0, 3_600_000),
    "25000",
    PROCESS,
    "The whole shutdown, the linger included. What is not flushed by then is dropped and counted.",
)
LOG_LEVEL = Setting(
    "RELAY_LOG_LEVEL",
    values.choice("debug", "info", "warning", "error"),
    "info",
    PROCESS,
    "Least severe messages that are logged.",
)
LOG_FORMAT = Setting(
    "RELAY_LOG_FORMAT",
    values.choice("text", "json"),
    "text",
    PROCESS,
    "How they are written, one line each.",
)

SETTINGS: tuple[Setting[object], ...] = (
    GRPC_LISTEN,
    HTTP_LISTEN,
    ADMIN_LISTEN,
    SOCKET_MODE,
    TLS_CERT_FILE,
    TLS_KEY_FILE,
    TLS_CLIENT_CA_FILE,
    MAX_REQUEST_BYTES,
    MAX_CONNECTIONS,
    MAX_STREAMS,
    REQUEST_TIMEOUT,
    GRPC_ENGINE,
    ENDPOINT,
    PROTOCOL,
    INSECURE,
    CERTIFICATE,
    CLIENT_KEY,
    CLIENT_CERTIFICATE,
    HEADERS,
    HEADERS_FILE,
    COMPRESSION,
    TIMEOUT,
    CONNECT_TIMEOUT,
    QUEUE_SIZE,
    QUEUE_MAX_BYTES,
    BATCH_SIZE,
    SCHEDULE_DELAY,
    EXPORT_MAX_BYTES,
    MAX_CONCURRENT_EXPORTS,
    ENABLED,
    SDK_DISABLED,
    METRICS_ENABLED,
    SERVICE_NAME,
    RESOURCE_ATTRIBUTES,
    TRACES_SAMPLER_ARG,
    EXCLUDED_URLS,
    INCLUDED_URLS,
    DISABLE_SEND_RECEIVE_SPANS,
    SHUTDOWN_LINGER,
    SHUTDOWN_TIMEOUT,
    LOG_LEVEL,
    LOG_FORMAT,
)
"""Every setting, in the order of reports and of the reference."""

GROUPS = (LISTENERS, COLLECTOR, BUFFER, FILTERS, PROCESS)

BY_FLAG: Mapping[str, str] = MappingProxyType({flag(n): n for s in SETTINGS for n in s.names})
"""Canonical variables by flag."""
