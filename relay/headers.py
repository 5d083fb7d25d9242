"""Headers for the collector: the configured ones, and those of a file that may change.

Tokens expire: the file is read again when it changes, with no restart. Values are secrets; no
message of this module holds one.

The file: one ``name=value`` a line. Space around name and value does not count; empty lines and
lines that start with ``#`` are skipped. The value is everything after the first ``=``, taken as it
stands (no percent-decoding, no quotes). A name may come once. The file wins over the settings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from relay.files import Rotating, Warn

__all__ = ["HeaderSource", "Headers", "HeadersError", "parse", "usable"]

Headers = tuple[tuple[str, str], ...]

MAX_BYTES: Final = 64 * 1024
"""Largest file; collectors refuse far smaller headers."""

_NAME: Final = re.compile(r"[0-9a-z!#$%&'*+.^_`|~-]+")  # token of RFC 9110, section 5.6.2
_VALUE: Final = re.compile(r"[ -~]*")  # printable ASCII, what gRPC metadata and HTTP have in common
_OURS: Final = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class HeadersError(ValueError):
    """The file cannot be used; the text names file, line and fault, never a value."""


def usable(name: str) -> bool:
    """Whether a header is the user's to set; framing and ``grpc-*`` are the transport's."""
    name = name.lower()
    return (
        _NAME.fullmatch(name) is not None
        and name not in _OURS
        and not name.startswith("grpc-")
        and not name.endswith("-bin")
    )


def parse(text: str, path: str) -> Headers:
    """Read a headers file. Names come out in lower case.

    Raises:
        HeadersError: a line is not ``name=value``, or a name or value may not be sent.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()  # noqa: PLW2901 - the line without its margins is the line
        if not line or line.startswith("#"):
            continue
        where = f"headers file {path!r}, line {number}"
        raw, separator, value = line.partition("=")
        name = raw.strip().lower()
        if not separator:
            # Not even the name: it may well be a bare token.
            raise HeadersError(f"{where}: not name=value")
        if not _NAME.fullmatch(name):
            raise HeadersError(f"{where}: what stands before '=' is no header name")
        if not usable(name):
            raise HeadersError(f"{where}: {name} is set by the transport itself")
        if not _VALUE.fullmatch(value.strip()):
            raise HeadersError(f"{where}: the value of {name} holds more than printable ASCII")
        if name in found:
            raise HeadersError(f"{where}: {name} is set twice")
        found[name] = value.strip()
    return tuple(found.items())


class HeaderSource:
    """The headers of one destination. Used by the exporters of both transports.

    A file that is missing or broken keeps the last good values (at start: the configured ones) and
    is reported once through ``warn``.
    """

    __slots__ = ("_file", "_static")

    def __init__(self, static: Headers, file: str, *, warn: Warn) -> None:
        self._static = static
        self._file = (
            Rotating((file,), lambda: self._load(file), warn=warn, initial=static) if file else None
        )

    def current(self, now: float) -> Headers:
        """Return what to send. ``now``: monotonic seconds; one ``stat`` a second at most."""
        return self._static if self._file is None else self._file.current(now)

    def refused(self, now: float) -> bool:
        """Look at the file at once, since the collector refused the headers (UNAUTHENTICATED, 401).

        Returns whether there are other headers now, so that trying once more makes sense.
        """
        if self._file is None:
            return False
        before = self._file.current(now)
        self._file.again()
        return self._file.current(now) != before

    def _load(self, path: str) -> Headers:
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise HeadersError(f"cannot read the headers file {path!r}: {error.strerror}") from None
        if len(data) > MAX_BYTES:
            raise HeadersError(f"the headers file {path!r} is larger than {MAX_BYTES} bytes")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise HeadersError(f"the headers file {path!r} is not UTF-8 text") from None
        own = dict(parse(text, path))
        kept = tuple(pair for pair in self._static if pair[0].lower() not in own)
        return kept + tuple(own.items())
