"""The one form that nearly every OTLP/HTTP request has, recognised without an HTTP library.

An exporter sends ``POST``, a path, a handful of ordinary headers with a length, and protobuf. Such
a request is told by one regular expression over its head. Whatever is not exactly that (another
method or version, compression, chunks, JSON, anything said twice, anything unusual in a header) is
not looked at any further: it is the library's.

Pure. Sources: RFC 9110 (tokens and field values), RFC 9112 (message format).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["HEAD", "Head", "head"]

HEAD: Final = 4096
"""Bytes of a head, at most."""

_HEAD: Final = re.compile(
    rb"POST (/[!-~]*+) HTTP/1\.1\r\n"
    rb"((?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[\t -~]*+\r\n)++)"
    rb"\r\n"
)
_FIELD: Final = re.compile(rb"([^:]++):[\t ]*+([^\r]*+)\r\n")
_NEVER: Final = frozenset(
    (b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"trailer")
)
_LENGTH_DIGITS: Final = 9


class Head(NamedTuple):
    """``size``: bytes of the head; ``length``: of the body behind it."""

    path: str
    size: int
    length: int


def head(data: bytes) -> Head | None:
    """The head that ``data`` begins with, if it is whole and of the one form; else None."""
    found = _HEAD.match(data, 0, HEAD)
    if found is None:
        return None
    path, lines = found.groups()
    listed = _FIELD.findall(lines)
    fields = {name.lower(): value for name, value in listed}
    length = fields.get(b"content-length", b"")
    if (
        fields.get(b"content-type") != b"application/x-protobuf"
        or not length.isdigit()
        or len(length) > _LENGTH_DIGITS
        or b"host" not in fields
        or fields.get(b"connection", b"keep-alive").lower() != b"keep-alive"
        or not _NEVER.isdisjoint(fields)
        or len(fields) != len(listed)  # one of them twice
    ):
        return None
    return Head(path.decode("ascii"), found.end(), int(length))
