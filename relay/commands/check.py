"""``otlp-relay check``: what the configuration comes to, where from, and what is wrong with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence

from relay.commands import UsageError
from relay.config import Config, Loaded, UnknownFlagError, load, parse_flags


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print every effective value with its source; 0, or 2 when a daemon would not start.

    Raises:
        UsageError: the command line has what no flag accepts.
    """
    try:
        flags = parse_flags(argv, also=("--json",))
    except UnknownFlagError as error:
        raise UsageError(*error.faults) from None
    loaded = load(flags, environ)
    if "--json" in flags:
        print(json.dumps(document(loaded), indent=2))
    else:
        print("\n".join(report(loaded)), flush=True)
        for line in [*(f"warning: {w}" for w in loaded.warnings), *_faults(loaded)]:
            print(line, file=sys.stderr)
    return 0 if loaded.config is not None else 2


def report(loaded: Loaded) -> Iterator[str]:
    """The effective values as aligned lines, and where every signal goes."""
    rows = [("SETTING", "SOURCE", "VALUE")]
    for each in loaded.effective:
        signal = f" ({each.signal})" if each.signal else ""
        rows.append((each.name + signal, each.source, each.shown))
    yield from _aligned(rows)
    if loaded.config is not None:
        yield ""
        yield from _aligned([("SIGNAL", "PROTOCOL", "DESTINATION"), *_destinations(loaded.config)])


def document(loaded: Loaded) -> dict[str, object]:
    """The same as one JSON document."""
    return {
        "valid": loaded.config is not None,
        "settings": [
            {
                "name": each.name,
                "signal": each.signal or None,
                "value": each.shown,
                "source": each.source,
            }
            for each in loaded.effective
        ],
        "destinations": [
            {"signal": signal, "protocol": protocol, "destination": destination}
            for signal, protocol, destination in (
                _destinations(loaded.config) if loaded.config is not None else ()
            )
        ],
        "warnings": list(loaded.warnings),
        "faults": list(loaded.faults),
    }


def _destinations(config: Config) -> Iterator[tuple[str, str, str]]:
    for signal, exporter in config.exporters.items():
        address, query, _ = exporter.endpoint.partition("?")
        encryption = "TLS" if exporter.tls is not None else "plaintext"
        yield (
            signal,
            exporter.protocol,
            f"{address}{'?<redacted>' if query else ''} ({encryption})",
        )


def _faults(loaded: Loaded) -> Iterator[str]:
    yield from (f"fault: {fault}" for fault in loaded.faults)
    if loaded.faults:
        count = len(loaded.faults)
        yield f"{count} fault{'s' if count > 1 else ''}: otlp-relay run would not start"


def _aligned(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for first, second, third in rows:
        yield f"{first:<{widths[0]}}  {second:<{widths[1]}}  {third}"
