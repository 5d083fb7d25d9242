"""What the doctor makes of what it saw: facts in, findings with advice out. No IO, no clock.

The facts come from :mod:`relay.probes`, from the exporters, and from a running relay's
``/status.json``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from relay.otlp import Accepted, Fault, Outcome, Permanent

__all__ = [
    "Finding", "Level", "differences", "judge_clock", "judge_outcomes", "judge_relay",
    "judge_spoken", "redacted", "spoken",
]  # fmt: skip

GRPC_PORT: Final = 4317
HTTP_PORT: Final = 4318
SKEW: Final = 60.0
"""Seconds by which two clocks may differ before it is worth a word; a Date header has seconds."""


class Level(enum.Enum):
    """How bad; in order."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "FAULT"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``about``: what; ``advice``: what to do, empty when fine."""

    level: Level
    about: str
    message: str
    advice: str = ""


def ok(about: str, message: str) -> Finding:
    return Finding(Level.OK, about, message)


def warning(about: str, message: str, advice: str) -> Finding:
    return Finding(Level.WARNING, about, message, advice)


def fault(about: str, message: str, advice: str) -> Finding:
    return Finding(Level.FAULT, about, message, advice)


def redacted(findings: Iterable[Finding], secrets: Iterable[str]) -> list[Finding]:
    """Take secrets out of findings, in case that a collector repeats what it was sent.

    A part of a value that stands alone counts as well (``Bearer TOKEN``). Texts of fewer than four
    characters are no secrets, and would make every text unreadable.
    """
    words = {part for secret in secrets for part in (secret, *secret.split()) if len(part) >= 4}
    longest_first = sorted(words, key=len, reverse=True)

    def clean(text: str) -> str:
        for word in longest_first:
            text = text.replace(word, "<redacted>")
        return text

    return [
        replace(each, message=clean(each.message), advice=clean(each.advice)) for each in findings
    ]


# --- What speaks there ----------------------------------------------------------------------------


def spoken(first: bytes) -> str:
    """What the first bytes of an answer are: http2, http1, tls, other; "" when there are none.

    Sources: RFC 9113, sections 3.4 and 4.1 (a server's first frame is SETTINGS, on stream 0);
    RFC 8446, section 5.1 (an alert record: 21, version 3.x).
    """
    if not first:
        return ""
    if len(first) >= 9 and first[3] == 4 and first[5:9] == b"\0\0\0\0":
        return "http2"
    if first.startswith(b"HTTP/1."):
        return "http1"
    if first[:2] == b"\x15\x03":
        return "tls"
    return "other"


_SPEAKS = {
    "http2": "HTTP/2, as gRPC does",
    "http1": "HTTP/1.1, not gRPC",
    "tls": "TLS",
    "other": "neither HTTP nor gRPC",
}


def judge_spoken(
    about: str, wanted: str, heard: Mapping[str, str], *, encrypted: bool, answers_tls: bool
) -> Finding:
    """Whether what listens speaks the protocol that the relay is set to.

    ``wanted``: grpc or http/protobuf. ``heard``: what came back after an HTTP/2 preface (http2)
    and after an HTTP/1.1 request (http1), in the words of :func:`spoken`, "closed" or "silent".
    ``answers_tls``: whether it takes a TLS handshake, asked where plaintext was no success.
    """
    needs = "http2" if wanted == "grpc" else "http1"
    name = "gRPC (HTTP/2)" if wanted == "grpc" else "HTTP/1.1"
    if heard.get(needs) == needs:
        return ok(about, f"speaks {name}{' over TLS' if encrypted else ', plaintext'}")
    if not encrypted and (answers_tls or "tls" in heard.values()):
        return fault(
            about,
            "it wants TLS, and the relay is set to plaintext",
            "write https:// in RELAY_EXPORTER_ENDPOINT",
        )
    if wanted == "grpc" and heard.get("http1") == "http1":
        return fault(
            about,
            "it speaks HTTP/1.1 and no gRPC: an OTLP/HTTP port, or a web server",
            f"use the collector's gRPC port (usually {GRPC_PORT}), or set"
            " RELAY_EXPORTER_PROTOCOL=http/protobuf",
        )
    if wanted != "grpc" and heard.get("http2") == "http2":
        return fault(
            about,
            "it speaks HTTP/2 only: an OTLP/gRPC port",
            f"use the collector's HTTP port (usually {HTTP_PORT}), or set"
            " RELAY_EXPORTER_PROTOCOL=grpc",
        )
    answers = {each for each in heard.values() if each not in {"silent", "closed"}}
    if answers:
        return fault(
            about,
            f"what listens there speaks {_SPEAKS[min(answers)]}: it is no OTLP receiver",
            "look which program has this port; OTLP/gRPC is usually"
            f" {GRPC_PORT}, OTLP/HTTP {HTTP_PORT}",
        )
    if "closed" in heard.values():
        return fault(
            about,
            "it takes the connection and closes it without a word",
            "something between (a proxy, a port forward, a service without pods) has no collector"
            " behind it; look at the collector itself",
        )
    return fault(
        about,
        "it takes the connection and says nothing",
        "the collector hangs, or a firewall swallows what it says; look at the collector itself",
    )


# --- What it answers to an empty request ----------------------------------------------------------

_REFUSED = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED", "401", "403"})
_LATER = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "429", "502", "503", "504"})


def judge_outcomes(
    about: str, outcomes: Mapping[str, Outcome], headers: Sequence[str], received: Iterable[str]
) -> Iterator[Finding]:
    """What the answers to an empty request of each signal mean.

    ``headers``: names of what is sent along. ``received``: signals that a running relay has got.
    """
    takes = [name for name, outcome in outcomes.items() if isinstance(outcome, Accepted)]
    lacks = {name: each for name, each in outcomes.items() if _is_unimplemented(each)}
    if takes:
        yield ok(about, f"takes {_listed(takes)}")
    if lacks:
        yield _unimplemented(about, lacks, alone=not takes, received=set(received))
    # By code alone: gRPC words one fault in several ways ("Deadline Exceeded", and "Stream removed
    # (Deadline Exceeded)"), and it is one fault all the same; the first message stands for all.
    groups: dict[str, dict[str, str]] = {}
    for name, outcome in outcomes.items():
        if not isinstance(outcome, Accepted) and name not in lacks:
            groups.setdefault(outcome.code, {})[name] = outcome.message
    for code, messages in groups.items():
        message = next(filter(None, messages.values()), "")
        yield _refusal(about, f"{_listed(list(messages))}: {code}{message and f', {message}'}",
                       code, headers)  # fmt: skip


def _is_unimplemented(outcome: Outcome) -> bool:
    return isinstance(outcome, Permanent) and outcome.fault is Fault.UNIMPLEMENTED


def _unimplemented(
    about: str, lacks: Mapping[str, Outcome], *, alone: bool, received: set[str]
) -> Finding:
    names = _listed(list(lacks))
    first = next(iter(lacks.values()))
    message = f"does not take {names} ({first.code})"
    if alone:
        return fault(
            about,
            f"{message}: what answers there is no OTLP receiver, or has no pipeline",
            "look at the address and, with http/protobuf, its path; in the collector, put the"
            " receiver otlp into a pipeline of each signal",
        )
    wanted = sorted(received & set(lacks))
    if wanted:
        return fault(
            about,
            f"{message}, but {_listed(wanted)} arrive at the relay, which has to drop them",
            f"add a pipeline for {_listed(wanted)} to the collector, or have the service send none",
        )
    if set(lacks) == {"profiles"}:
        return ok(about, f"{message}, as most collectors; harmless where nobody sends them")
    return warning(
        about,
        message,
        f"harmless if no service sends {names}; otherwise add a pipeline for them to the collector",
    )


def _refusal(about: str, message: str, code: str, headers: Sequence[str]) -> Finding:
    if code in _REFUSED:
        sent = f"sent along: {', '.join(headers)}" if headers else "no header is sent along"
        return fault(
            about,
            f"refuses who is asking: {message} ({sent})",
            "set the token in RELAY_EXPORTER_HEADERS_FILE or RELAY_EXPORTER_HEADERS"
            " (authorization=Bearer ...), or renew it",
        )
    if code in _LATER:
        return fault(
            about,
            f"answers, and says later: {message}",
            "the collector is overloaded, or what it sends to is away: look at its own log"
            " (memory_limiter, sending_queue)",
        )
    if code in {"DEADLINE_EXCEEDED", "TIMEOUT"}:
        return fault(
            about,
            f"does not answer a request in time: {message}",
            "the collector is stuck: look at its own log, restart it",
        )
    if code.startswith("3") and code.isdigit():
        return fault(
            about,
            f"redirects: {message}",
            "redirects are not followed: set the endpoint to where it leads (https:// perhaps)",
        )
    if code.startswith("CONNECT") or code == "CONNECTION_LOST":
        return fault(
            about,
            f"the exporter gets no connection: {message}",
            "see what the lines above say about the address",
        )
    if code in {"INVALID_ARGUMENT", "400"}:
        return warning(
            about,
            f"refuses an empty request: {message}",
            "the OTLP specification asks to accept it; what has content may pass all the same",
        )
    return fault(about, f"refuses: {message}", "look at the collector's own log")


# --- A relay that runs ----------------------------------------------------------------------------

_LOSSES: Final[Mapping[str, str]] = {
    "queue_full": "the collector was away or too slow for longer than the ring holds: see to the"
    " collector; RELAY_QUEUE_SIZE makes the ring larger",
    "queue_bytes": "as queue_full, by bytes: RELAY_QUEUE_MAX_BYTES makes the ring larger",
    "rejected": "the collector refuses them for good; the relay's log has its words",
    "malformed": "an SDK writes what does not parse; the relay's log says more",
    "partial_success": "the collector took the batch and refused these; its log says why",
    "too_large": "single items larger than the collector takes: raise its limit, or shorten the"
    " attributes in the service",
    "timeout": "the collector hangs on these items and not on others; its log says more",
    "unimplemented": "the collector has no pipeline for this signal, or is no OTLP receiver",
    "shutdown": "the collector did not take them before the shutdown limit",
}

_SETTINGS: Final[Mapping[str, str]] = {
    "excluded_url": "OTEL_EXCLUDED_URLS",
    "not_included_url": "OTEL_INCLUDED_URLS",
    "subtree": "OTEL_EXCLUDED_URLS or OTEL_INCLUDED_URLS",
    "send_receive": "OTEL_DISABLE_SEND_RECEIVE_SPANS",
    "sampled_out": "OTEL_TRACES_SAMPLER_ARG",
    "disabled": "OTEL_ENABLED, OTEL_SDK_DISABLED or OTEL_METRICS_ENABLED",
}


def judge_relay(about: str, status: Mapping[str, Any], *, ready: bool) -> Iterator[Finding]:
    """What a running relay's own books say. ``status``: its ``/status.json``."""
    signals: Mapping[str, Any] = status["signals"]
    listening = "; ".join(
        f"{name} on {', '.join(bound)}" for name, bound in status["listening"].items()
    )
    up = _duration(float(status["now"]) - float(status["started_at"]))
    if ready:
        yield ok(about, f"relay {status['version']} is running, for {up}: {listening}")
    else:
        yield fault(
            about,
            f"relay {status['version']} is running and not ready",
            "it is starting or stopping: wait, then ask again; its log says more",
        )
    invalid = sum(signal.get("refused", {}).get("invalid", 0) for signal in signals.values())
    if invalid:
        yield warning(
            about,
            f"{invalid} requests were refused as invalid: they were no OTLP",
            f"is the service set to gRPC for port {GRPC_PORT} and to HTTP for {HTTP_PORT}?",
        )
    if not any(signal["received"] for signal in signals.values()):
        yield warning(
            about,
            "nothing has arrived at the relay since it was started",
            "point the service at it: OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317 with"
            " OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or http://localhost:4318 with http/protobuf; in"
            " containers localhost is the service's own, unless they share a network namespace",
        )
    for name, signal in signals.items():
        yield from _signal(about, name, signal)


def _signal(about: str, name: str, signal: Mapping[str, Any]) -> Iterator[Finding]:
    collector = signal["collector"]
    received = signal["received"]
    if collector["up"] is False:
        last = signal["errors"][-1] if signal["errors"] else {"code": "?", "message": ""}
        yield fault(
            about,
            f"{name}: no export has succeeded for {_duration(collector['outage_seconds'])}; last:"
            f" {last['code']}{', ' if last['message'] else ''}{last['message']};"
            f" {signal['queue']['items']} wait in the ring",
            "see what is found about the collector; the relay goes on trying, do not restart it",
        )
    elif received and collector["up"]:
        yield ok(about, f"{name}: received {received}, exported {signal['exported']}")
    filtered = sum(signal["filtered"].values())
    if received and filtered == received:
        names = sorted({_SETTINGS.get(each, each) for each in signal["filtered"]})
        yield fault(
            about,
            f"{name}: all {received} items were removed by settings"
            f" ({_counts(signal['filtered'])})",
            f"change {_listed(names)}; otlp-relay explain URL says which pattern decides",
        )
    for reason, count in sorted(signal["dropped"].items()):
        if count:
            yield warning(about, f"{name}: {count} lost as {reason}", _LOSSES.get(reason, reason))


def differences(
    examined: Iterable[tuple[str, str, str]], running: Iterable[Mapping[str, str]]
) -> list[str]:
    """Settings in which a running relay's configuration is not the one that was examined.

    ``examined``: (name, signal, value as shown). Logging makes no difference.
    """
    theirs = {(row["name"], row["signal"]): row["value"] for row in running}
    return [
        f"{name}{f' ({signal})' if signal else ''} is {theirs[name, signal]} there, {shown} here"
        for name, signal, shown in examined
        if not name.startswith("RELAY_LOG_")
        and (name, signal) in theirs
        and theirs[name, signal] != shown
    ]


def judge_clock(about: str, theirs: float, ours: float) -> Finding:
    """Compare two clocks, in Unix seconds."""
    ahead = ours - theirs
    if abs(ahead) <= SKEW:
        return ok(about, "its clock and this machine's agree")
    return warning(
        about,
        f"this machine's clock is {_duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'}"
        " the collector's",
        "spans stand at the wrong time, outside of the time range that people look at, and"
        " certificates and tokens may count as expired: set both clocks by NTP",
    )


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))


def _listed(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
