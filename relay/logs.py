"""Log lines: text for people, JSON for machines; and which of a pipeline's events deserve one.

An outage is a warning when it begins and a line when it ends; in between, and for refusals, at
most one line in 30 s for each signal. No line is written for a dropped item, nor for each of the
outages of a collector that comes and goes.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TextIO

from relay.delivery import (
    Event,
    LimitLowered,
    OutageBegan,
    OutageContinues,
    OutageEnded,
    Refused,
    Unimplemented,
)
from relay.otlp import SignalSchema

__all__ = ["Incident", "PastOutage", "Reporter", "event", "set_up"]

INTERVAL: Final = 30.0
"""Seconds between two lines about one lasting condition."""

OUTAGES: Final = 3
"""Outages within that time that are told; of a destination that comes and goes, the rest is summed.
"""

_KEPT: Final = 20

_log = logging.getLogger("relay")


def set_up(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send the relay's log lines to ``stream`` (standard error), as ``text`` or ``json``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Libraries speak up when something is wrong, not to say what they do.
    for name in ("asyncio", "aiohttp", "grpc"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(capture=True)


def event(log: logging.Logger, level: int, name: str, message: str, **fields: object) -> None:
    """One line that machines can tell by ``name`` and read by ``fields``."""
    log.log(level, message, extra={"event": name, "fields": fields})


def _time(created: float, milliseconds: float) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created))
    return f"{moment}.{int(milliseconds):03d}Z"


def _one_line(message: str) -> str:
    """What a collector says is no line of ours: control characters are shown, not written."""
    if message.isprintable():
        return message
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = _time(record.created, record.msecs)
        text = f"{moment} {record.levelname.lower():7} {_one_line(record.getMessage())}"
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record.created, record.msecs),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        name = getattr(record, "event", None)
        if name is not None:
            line["event"] = name
            line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that went wrong, for the status page. ``at``: Unix time in seconds."""

    at: float
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class PastOutage:
    """An outage that is over. ``ended_at``: Unix time; ``seconds`` it took; ``lost`` items."""

    ended_at: float
    seconds: float
    lost: int


class Reporter:
    """Turns one signal's events into log lines, few enough to be read."""

    def __init__(
        self,
        schema: SignalSchema,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,  # noqa: TID251 - a timestamp
    ) -> None:
        self._schema = schema
        self._clock = clock
        self._wall = wall
        self._said: dict[str, float] = {}
        self._unsaid: dict[str, int] = {}
        self._told: deque[float] = deque(maxlen=OUTAGES)
        self._quiet = False
        self._untold = self._untold_lost = 0
        self.incidents: deque[Incident] = deque(maxlen=_KEPT)
        """The latest incidents, oldest first."""
        self.last_outage: PastOutage | None = None

    def __call__(self, happened: Event) -> None:
        """Report one event."""
        signal = self._schema.name
        match happened:
            case OutageBegan(code, message):
                self._incident(code, message)
                now = self._clock()
                self._quiet = len(self._told) == OUTAGES and now - self._told[0] < INTERVAL
                if self._quiet:
                    self._untold += 1
                    return
                self._told.append(now)
                self._said["outage"] = now
                event(
                    _log, logging.WARNING, "outage_began",
                    f"{signal}: cannot export ({_reason(code, message)}); keeping the newest"
                    f" and retrying{self._shorter()}",
                    signal=signal, code=code, detail=message,
                )  # fmt: skip
            case OutageContinues(seconds, lost, code, message):
                self._incident(code, message)
                if self._due("outage"):
                    self._quiet = False
                    event(
                        _log, logging.WARNING, "outage_continues",
                        f"{signal}: still cannot export after {seconds:.0f} s"
                        f" ({_reason(code, message)}); {self._count(lost)} lost so far",
                        signal=signal, seconds=round(seconds, 1), lost=lost, code=code,
                        detail=message,
                    )  # fmt: skip
            case OutageEnded(seconds, lost):
                self.last_outage = PastOutage(self._wall(), seconds, lost)
                if self._quiet:
                    self._untold_lost += lost
                    return
                event(
                    _log, logging.INFO, "outage_ended",
                    f"{signal}: exporting again after {seconds:.1f} s;"
                    f" {self._count(lost)} lost meanwhile",
                    signal=signal, seconds=round(seconds, 1), lost=lost,
                )  # fmt: skip
            case Refused():
                self._refused(happened)
            case LimitLowered(size, limit, message):
                self._incident("too_large", message)
                event(
                    _log, logging.WARNING, "limit_lowered",
                    f"{signal}: the collector calls {size} bytes too large ({message}); exports"
                    f" hold at most {limit} bytes from now on. To avoid this, set"
                    " RELAY_EXPORT_MAX_BYTES to what the collector takes",
                    signal=signal, size=size, limit=limit,
                )  # fmt: skip
            case Unimplemented(True, message):
                self._incident("UNIMPLEMENTED", message)
                event(
                    _log, logging.WARNING, "unimplemented",
                    f"{signal}: the collector does not take {signal} ({message}); they are dropped."
                    f" Enable a {signal} pipeline in the collector, or point"
                    f" RELAY_EXPORTER_{signal.upper()}_ENDPOINT at one that has it; tried again"
                    " every 60 s",
                    signal=signal,
                )  # fmt: skip
            case Unimplemented():
                event(
                    _log, logging.INFO, "implemented",
                    f"{signal}: the collector takes {signal} now", signal=signal,
                )  # fmt: skip

    def _shorter(self) -> str:
        """What is to be added about outages that no line was written for."""
        if not self._untold:
            return ""
        lost = self._count(self._untold_lost)
        text = f"; {self._untold} more outages since the last line, {lost} lost"
        self._untold = self._untold_lost = 0
        return text

    def _refused(self, happened: Refused) -> None:
        reason = happened.reason
        self._incident(happened.code, f"{self._count(happened.items)}: {happened.message}")
        self._unsaid[reason] = self._unsaid.get(reason, 0) + happened.items
        if self._due(reason):
            items = self._unsaid.pop(reason)
            event(
                _log, logging.WARNING, "refused",
                f"{self._schema.name}: dropped {self._count(items)} as {reason}"
                f" ({_reason(happened.code, happened.message)})",
                signal=self._schema.name, reason=reason, items=items, code=happened.code,
                detail=happened.message,
            )  # fmt: skip

    def _incident(self, code: str, message: str) -> None:
        self.incidents.append(Incident(self._wall(), code, message))

    def _due(self, topic: str) -> bool:
        now = self._clock()
        last = self._said.get(topic)
        if last is not None and now - last < INTERVAL:
            return False
        self._said[topic] = now
        return True

    def _count(self, items: int) -> str:
        return f"{items} {self._schema.item}{'' if items == 1 else 's'}"


def _reason(code: str, message: str) -> str:
    return f"{code}: {message}" if message else code
