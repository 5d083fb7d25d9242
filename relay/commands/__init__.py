"""Commands: each module has ``run(argv, environ) -> exit code``.

They are imported when they are called, so that none pays for another's imports; for the health
check's sake this file imports nothing heavy either.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing it from typing would cost more than this file does
if TYPE_CHECKING:
    from collections.abc import Mapping

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": (
        "the daemon: receives OTLP, buffers, forwards to the collector",
        "run --exporter-endpoint http://otel-collector:4317",
    ),
    "check": (
        "validates the configuration; prints every effective value and where it came from",
        "check --json",
    ),
    "healthcheck": (
        "asks a running relay's /readyz; exit code 0 or 1",
        "healthcheck --admin-listen localhost:8888",
    ),
    "explain": (
        "says for each URL or path whether a request to it is traced, and which pattern decides",
        "explain /health /api/users",
    ),
    "doctor": (
        "finds out why nothing arrives, and says what to do",
        "doctor",
    ),
    "sink": (
        "a development collector: receives OTLP, counts, and misbehaves on request",
        "sink --delay 0.5",
    ),
    "demo": (
        "relay, sink and traffic in one go: healthy, outage, recovery, with a live table",
        "demo --once",
    ),
}
"""Every command: what it does, and an example."""


class UsageError(Exception):
    """The command line or the configuration is at fault: exit code 2, one line per fault."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
