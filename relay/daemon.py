"""The daemon: builds the parts, opens them downstream first, closes them upstream first.

Nothing else in the package knows all of the parts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Protocol

from relay import __version__, processors, tls
from relay.admin import Admin
from relay.config import Config, Effective
from relay.delivery import Ledger
from relay.exporters import Exporter, ExporterConfig
from relay.headers import HeaderSource
from relay.logs import Reporter, event
from relay.otlp import SIGNALS, SignalSchema
from relay.pipeline import Pipeline, Pipelines
from relay.telemetry import registry

__all__ = ["Daemon"]

_log = logging.getLogger(__name__)

STOP_GRACE = 1.0
"""Seconds that requests under way have to be answered once the listeners close."""

RESERVE = 1.0
"""Seconds of the shutdown limit that are kept for closing connections and ending the process; of a
short limit a quarter."""

REPEAT = 60.0
"""Seconds in which one and the same warning about a file is written once."""


class Receiver(Protocol):
    """What the daemon asks of a listener."""

    async def start(self) -> list[str]: ...
    def stopping(self) -> None: ...
    async def stop(self, grace: float) -> None: ...


class Daemon:
    """One relay, from configuration to the last line of its log.

    Raises:
        relay.tls.TlsError: a certificate or key cannot be used.
    """

    def __init__(self, config: Config, effective: Sequence[Effective] = ()) -> None:
        self._config = config
        self._effective = effective
        self._exporters = _exporters(config)
        self._reporters = {schema.name: Reporter(schema) for schema in SIGNALS}
        self.pipelines = Pipelines(
            {
                schema.name: Pipeline(
                    schema,
                    config.pipelines[schema.name],
                    self._exporters[schema.name],
                    processors.build(schema, config.processors),
                    notify=self._reporters[schema.name],
                )
                for schema in SIGNALS
            }
        )
        self._receivers = self._build_receivers()
        self._admin: Admin | None = None
        if not config.admin.off:
            self._admin = Admin(
                config.admin,
                registry(self.pipelines.by_signal),
                lambda: self._ready,
                self.status,
                socket_mode=config.receivers.socket_mode,
            )
        self._ready = False
        self._started_at = time.time()  # noqa: TID251 - a timestamp
        self._listening: dict[str, list[str]] = {}
        self._stop: asyncio.Event | None = None
        self._signal = 0

    async def run(self) -> None:
        """Serve until a signal comes, then shut down in order.

        Raises:
            OSError: an address cannot be had; what was opened is closed again.
        """
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, number)
        try:
            await self._open()
            await self._stop.wait()
            await self._shut_down()
        finally:
            self._ready = False
            for receiver in self._receivers.values():
                await receiver.stop(0)
            for exporter in self._exporters.values():
                await exporter.close()
            if self._admin is not None:
                await self._admin.stop()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Begin an orderly shutdown; at the second call, end at once."""
        if self._signal:
            event(
                _log,
                logging.WARNING,
                "killed",
                f"second signal: {self._ledger_line()}",
                ledger=self._ledgers(),
            )
            logging.shutdown()
            os._exit(128 + number)
        self._signal = number
        if self._stop is not None:
            self._stop.set()

    def status(self) -> Mapping[str, object]:
        """What ``/status.json`` shows. Holds no secret."""
        return {
            "version": __version__,
            "ready": self._ready,
            "started_at": self._started_at,
            "now": time.time(),  # noqa: TID251 - a timestamp
            "listening": self._listening,
            "signals": {name: self._signal_status(name) for name in self.pipelines.by_signal},
            "configuration": [
                {
                    "name": row.name,
                    "signal": row.signal,
                    "value": row.shown,
                    "source": row.source,
                }
                for row in self._effective
            ],
        }

    # -- start ------------------------------------------------------------------------------

    def _build_receivers(self) -> dict[str, Receiver]:
        config = self._config.receivers
        found: dict[str, Receiver] = {}
        if not config.grpc.off and config.grpc_engine == "h2corn":
            from relay.receivers.h2 import H2Receiver  # noqa: PLC0415 - an extra

            found["grpc"] = H2Receiver(config, self.pipelines, warn=_warn)
        elif not config.grpc.off:
            from relay.receivers.grpc import GrpcReceiver  # noqa: PLC0415 - off costs nothing

            credentials = (
                None if config.tls is None else tls.grpc_server_credentials(config.tls, warn=_warn)
            )
            found["grpc"] = GrpcReceiver(config, self.pipelines, credentials)
        if not config.http.off:
            from relay.receivers.http import HttpReceiver  # noqa: PLC0415 - off costs nothing

            context = None if config.tls is None else tls.server_context(config.tls, warn=_warn)
            found["http"] = HttpReceiver(config, self.pipelines, context)
        return found

    async def _open(self) -> None:
        if self._admin is not None:
            self._listening["admin"] = await self._admin.start()
        for name, receiver in self._receivers.items():
            self._listening[name] = await receiver.start()
        self._ready = True
        fields: dict[str, object] = {
            name: addresses[0] for name, addresses in self._listening.items()
        }
        listening = ", ".join(
            f"{name} on {' and '.join(addresses)}" for name, addresses in self._listening.items()
        )
        event(
            _log,
            logging.INFO,
            "started",
            f"otlp-relay {__version__}: {listening}; forwarding {self._destinations()}",
            **fields,
            addresses=self._listening,
        )

    def _destinations(self) -> str:
        by_endpoint: dict[str, list[str]] = {}
        for schema in SIGNALS:
            exporter = self._config.exporters[schema.name]
            security = "TLS" if exporter.tls is not None else "plaintext"
            # Where every signal has the path of its own that OTLP gives it, that goes unsaid.
            endpoint = exporter.endpoint.partition("?")[0].removesuffix(schema.http_path)
            to = f"to {endpoint} ({exporter.protocol}, {security})"
            by_endpoint.setdefault(to, []).append(schema.name)
        if len(by_endpoint) == 1:
            return next(iter(by_endpoint))
        return ", ".join(f"{' and '.join(names)} {to}" for to, names in by_endpoint.items())

    # -- end --------------------------------------------------------------------------------

    async def _shut_down(self) -> None:
        config = self._config
        limit = config.shutdown_timeout
        deadline = time.monotonic() + limit - min(RESERVE, limit / 4)
        self._ready = False
        name = signal.Signals(self._signal).name
        linger = 0.0 if self._signal == signal.SIGINT else config.shutdown_linger
        linger = min(linger, limit - min(RESERVE, limit / 4))
        lingering = f"taking requests for another {linger:g} s, then " if linger else ""
        event(
            _log,
            logging.INFO,
            "stopping",
            f"{name}: {lingering}sending what waits; at most {limit:g} s in all",
        )
        grpc = self._receivers.get("grpc")
        if grpc is not None:
            grpc.stopping()
        await asyncio.sleep(linger)
        for receiver in self._receivers.values():
            receiver.stopping()
        grace = min(STOP_GRACE, max(deadline - time.monotonic(), 0.0))
        await asyncio.gather(*(receiver.stop(grace) for receiver in self._receivers.values()))
        left = max(deadline - time.monotonic(), 0.0)
        lost = sum((await self.pipelines.drain(left)).values())
        event(
            _log,
            logging.WARNING if lost else logging.INFO,
            "stopped",
            f"stopped: {self._ledger_line()}",
            ledger=self._ledgers(),
        )

    def _by_signal(self) -> list[tuple[str, Pipeline]]:
        return list(self.pipelines.by_signal.items())

    def _ledgers(self) -> dict[str, dict[str, object]]:
        return {
            name: {
                **_ledger(pipeline.delivery.ledger),
                "not_sent": pipeline.delivery.ring.items + pipeline.delivery.ledger.in_flight,
            }
            for name, pipeline in self._by_signal()
        }

    def _ledger_line(self) -> str:
        parts = []
        for name, pipeline in self._by_signal():
            delivery = pipeline.delivery
            ledger = delivery.ledger
            received = ledger.received.total()
            if not received:
                continue
            dropped = ", ".join(
                f"{reason} {count}" for reason, count in sorted(ledger.dropped.items())
            )
            waiting = delivery.ring.items + ledger.in_flight
            parts.append(
                f"{name}: received {received} = exported {ledger.exported}"
                f" + filtered {ledger.filtered.total()} + dropped {ledger.dropped.total()}"
                + (f" ({dropped})" if dropped else "")
                + (f" + not sent {waiting}" if waiting else "")
            )
        return "; ".join(parts) or "nothing was received"

    # -- status -----------------------------------------------------------------------------

    def _signal_status(self, name: str) -> Mapping[str, object]:
        pipeline = self.pipelines.by_signal[name]
        delivery = pipeline.delivery
        ledger = delivery.ledger
        ring = delivery.ring
        now = pipeline.clock()
        failing = ledger.failing_since
        outage = self._reporters[name].last_outage
        exporter = self._config.exporters[name]
        return {
            **_ledger(ledger),
            "in_flight": ledger.in_flight,
            "refused": _refused(pipeline.requests),
            "queue": {
                "items": ring.items,
                "bytes": ring.retained,
                "capacity_items": ring.max_items,
                "capacity_bytes": ring.max_bytes,
                "oldest_age_seconds": 0.0 if ring.oldest is None else now - ring.oldest.arrived,
            },
            "collector": {
                "endpoint": exporter.endpoint.partition("?")[0],
                "protocol": exporter.protocol,
                "up": ledger.up,
                "last_success": pipeline.last_success,
                "outage_seconds": 0.0 if failing is None else now - failing,
            },
            "last_outage": None if outage is None else asdict(outage),
            "errors": [
                {"at": incident.at, "code": incident.code, "message": incident.message}
                for incident in self._reporters[name].incidents
            ],
        }


def _ledger(ledger: Ledger) -> dict[str, object]:
    return {
        "received": ledger.received.total(),
        "filtered": dict(ledger.filtered),
        "dropped": dict(ledger.dropped),
        "exported": ledger.exported,
        "attempts": dict(ledger.attempts),
    }


def _refused(requests: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Requests by outcome that are not among what was received, over both transports."""
    found: dict[str, int] = {}
    for (_, outcome), count in requests.items():
        if outcome != "accepted":
            found[outcome] = found.get(outcome, 0) + count
    return found


class _Warnings:
    """Logs what is wrong with a file once, though every signal looks at it for itself."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, float] = {}

    def __call__(self, message: str) -> None:
        now = self._clock()
        self._said = {text: at for text, at in self._said.items() if now - at < REPEAT}
        if message not in self._said:
            self._said[message] = now
            _log.warning("%s", message)


_warn = _Warnings()


def _exporters(config: Config) -> dict[str, Exporter]:
    """One exporter for each signal; signals with one destination share its connection."""
    shared: dict[object, object] = {}
    found: dict[str, Exporter] = {}
    for schema in SIGNALS:
        exporter = config.exporters[schema.name]
        build = _grpc_exporter if exporter.protocol == "grpc" else _http_exporter
        found[schema.name] = build(schema, exporter, shared)
    return found


def _grpc_exporter(
    schema: SignalSchema, config: ExporterConfig, shared: dict[object, object]
) -> Exporter:
    from relay.exporters.grpc import GrpcChannel, GrpcExporter  # noqa: PLC0415 - not for http

    key = (config.endpoint, config.tls, config.compression, config.timeout, config.connect_timeout)
    channel = shared.get(key)
    if not isinstance(channel, GrpcChannel):
        channel = shared[key] = GrpcChannel(config, warn=_warn)
    headers = HeaderSource(config.headers, config.headers_file, warn=_warn)
    return GrpcExporter(schema, config, channel, headers)


def _http_exporter(schema: SignalSchema, config: ExporterConfig, _: object) -> Exporter:
    from relay.exporters.http import HttpExporter  # noqa: PLC0415 - not for grpc

    return HttpExporter(schema, config, warn=_warn)
