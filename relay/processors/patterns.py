r"""URL patterns: which requests are traced.

Syntax, contract section "Filters": patterns are separated by commas, ``\,`` is a literal comma.
A leading ``^`` makes a regular expression, matched from the start of the path; a trailing ``*``
a prefix; anything else is exact. Case-sensitive. No other escapes: dots are dots.

Paths are compared as the bytes that stand in the span (UTF-8), without percent-decoding.
Expressions are RE2's (github.com/google/re2/wiki/Syntax), whose running time is linear in the
path: paths come from the outside world. The library is imported only when there is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

__all__ = [
    "DEFAULT_EXCLUDED",
    "Decision",
    "Kind",
    "Pattern",
    "PatternSet",
    "UrlRules",
    "check",
    "split",
]

DEFAULT_EXCLUDED: Final = (
    "/health",
    "/healthz",
    "/ready",
    "/readyz",
    "/livez",
    "/metrics",
    "/api/docs",
    "/api/openapi.json",
    "/favicon.ico",
)

Kind = Literal["exact", "prefix", "expression"]


def split(text: str) -> tuple[str, ...]:
    r"""The patterns in a setting's value: separated by commas, ``\,`` a literal comma.

    White space around a pattern and empty patterns are left out. A backslash before anything
    else stays: it belongs to an expression.
    """
    pieces = (piece.replace("\\,", ",").strip() for piece in re.split(r"(?<!\\),", text))
    return tuple(piece for piece in pieces if piece)


class Pattern:
    """One pattern as written.

    ``needle``: bytes that stand in every path that the pattern matches, for searches that look
    for candidates; ``b""`` when there are none to be named.

    Raises:
        ValueError: the pattern is an expression that RE2 does not take; says why.
    """

    __slots__ = ("_matches", "kind", "needle", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.kind: Kind
        self._matches: Callable[[bytes], object]
        if text.startswith("^"):
            self.kind = "expression"
            self._matches = _compile(text)
            self.needle = _literal_head(text)
        elif text.endswith("*"):
            self.kind = "prefix"
            prefix = self.needle = text[:-1].encode("utf-8", "surrogateescape")
            self._matches = lambda path: path.startswith(prefix)
        else:
            self.kind = "exact"
            self.needle = text.encode("utf-8", "surrogateescape")
            self._matches = self.needle.__eq__

    def matches(self, path: bytes) -> bool:
        return bool(self._matches(path))

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def _compile(text: str) -> Callable[[bytes], object]:
    # A native library of 1.5 MiB that most configurations do not need.
    import re2  # noqa: PLC0415

    options = re2.Options()
    # Else RE2 writes to stderr what the configuration error says.
    options.log_errors = False
    options.never_capture = True
    try:
        expression = re2.compile(text.encode("utf-8", "surrogateescape"), options)
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        if isinstance(reason, bytes):
            reason = reason.decode("utf-8", "replace")
        raise ValueError(f"not an RE2 expression: {reason}") from None
    # Anchored, so that "^/a|/b" does not find "/b" in the middle of a path.
    match: Callable[[bytes], object] = expression.match
    return match


def _literal_head(text: str) -> bytes:
    """What every path that the expression matches begins with, as far as that is plain to see."""
    if "|" in text or "\\Q" in text:
        return b""
    head = ""
    at = 1
    while at < len(text):
        char, width = text[at], 1
        if char == "\\" and at + 1 < len(text) and text[at + 1] in "./-_~,":
            char, width = text[at + 1], 2
        elif char in "\\^$.[](){}*+?":
            break
        if text[at + width : at + width + 1] in {"*", "?", "{"}:
            break
        head += char
        at += width
    return head.encode("utf-8", "surrogateescape")


def check(pattern: str) -> str | None:
    """What is wrong with a pattern; None when nothing is."""
    try:
        Pattern(pattern)
    except ValueError as error:
        return str(error)
    return None


class Decision(NamedTuple):
    """Whether a request is traced, and why.

    ``setting``: which list decided; None: none matched and there is no inclusion list.
    ``pattern``: the first pattern, as written, that matched; None when none did.
    """

    traced: bool
    setting: Literal["excluded", "included"] | None
    pattern: str | None


class PatternSet:
    """A list of patterns, asked whether one of them matches a path.

    Raises:
        ValueError: as :class:`Pattern`.
    """

    __slots__ = ("_exact", "_others", "patterns")

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(Pattern(text) for text in patterns)
        self._exact = {p.needle: p for p in reversed(self.patterns) if p.kind == "exact"}
        self._others = tuple(p for p in self.patterns if p.kind != "exact")

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def matches(self, path: bytes) -> bool:
        """Whether any pattern matches."""
        if path in self._exact:
            return True
        return any(pattern.matches(path) for pattern in self._others)

    def first(self, path: bytes) -> Pattern | None:
        """The first pattern, in the order written, that matches."""
        return next((pattern for pattern in self.patterns if pattern.matches(path)), None)


class UrlRules:
    """Both lists together: inclusions decide alone; without them the exclusions do.

    ``included`` None: no inclusion list is set. An empty list is one: nothing is traced.

    Raises:
        ValueError: as :class:`Pattern`.
    """

    __slots__ = ("excluded", "included")

    def __init__(self, excluded: Sequence[str], included: Sequence[str] | None) -> None:
        self.excluded = PatternSet(excluded if included is None else ())
        self.included = None if included is None else PatternSet(included)

    def traced(self, path: bytes) -> bool:
        """Whether a request to ``path`` is traced."""
        if self.included is not None:
            return self.included.matches(path)
        return not self.excluded.matches(path)

    def decide(self, path: bytes) -> Decision:
        """As :meth:`traced`, with the reason."""
        if self.included is not None:
            found = self.included.first(path)
            return Decision(found is not None, "included", found.text if found else None)
        found = self.excluded.first(path)
        if found is None:
            return Decision(traced=True, setting=None, pattern=None)
        return Decision(traced=False, setting="excluded", pattern=found.text)
