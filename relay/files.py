"""Files that are read again when they change on disk: certificates, keys, tokens.

Nothing here watches in the background: whoever needs the value asks for it with the time in hand,
and at most once a second that question costs one ``stat`` per file. Rotation in clusters replaces
files in several steps (Kubernetes swaps a symbolic link, cert-manager and scripts write one file
after the other), so a value that cannot be built keeps the last good one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

T = TypeVar("T")

Warn: TypeAlias = Callable[[str], object]
"""Takes one line for the log. Never given a secret."""

Stamp: TypeAlias = tuple[int, int, int, int] | None
Fingerprint: TypeAlias = tuple[Stamp, ...]

INTERVAL: Final = 1.0
"""Seconds between two looks at the file system."""

SETTLING: Final = 3
"""Reads tried at start when the files change under the reader."""


def fingerprint(*paths: str) -> Fingerprint:
    """Tell versions of files apart: modification and change time (ns), size, inode.

    Symbolic links are followed. A file that cannot be looked at is None. The change time is part of
    it because a mended permission is a reason to try again.
    """
    return tuple(_stamp(path) for path in paths)


def _stamp(path: str) -> Stamp:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


class Rotating(Generic[T]):
    """A value built from files, rebuilt when they change, the old one kept when that fails.

    ``build`` reads the files and raises ``ValueError`` or ``OSError`` (whose text is shown in the
    warning, so it must hold no secret). One warning per fault, until a build succeeds again.
    ``generation`` grows by one with every new value, so that users of it know to start anew.
    Safe to call from several threads as far as the interpreter's own operations are: at worst two
    threads build the same value.
    """

    __slots__ = ("_build", "_fault", "_looked", "_paths", "_seen", "_value", "_warn", "generation")

    def __init__(
        self,
        paths: tuple[str, ...],
        build: Callable[[], T],
        *,
        warn: Warn,
        initial: T | None = None,
    ) -> None:
        """Build the first value.

        Raises:
            ValueError, OSError: the first build failed, and there is no ``initial`` to start with.
        """
        self._paths = paths
        self._build = build
        self._warn = warn
        self._looked: float | None = None
        self._fault = ""
        self.generation = 0
        self._seen = fingerprint(*paths)
        try:
            self._value = self._first()
        except (ValueError, OSError) as error:
            if initial is None:
                raise
            self._value = initial
            self._report(error, "going on without it until it can be used")

    def _first(self) -> T:
        for _ in range(SETTLING):
            value = self._build()
            now = fingerprint(*self._paths)
            if now == self._seen:
                return value
            self._seen = now
        return self._build()

    def current(self, now: float) -> T:
        """Return the latest good value. ``now``: monotonic seconds."""
        if self._looked is None or now - self._looked >= INTERVAL:
            self._looked = now
            self._look()
        return self._value

    def again(self) -> None:
        """Make the next question look at the files at once, whatever the interval."""
        self._looked = None

    def _look(self) -> None:
        before = fingerprint(*self._paths)
        if before == self._seen:
            return
        try:
            value = self._build()
        except (ValueError, OSError) as error:
            self._seen = before
            self._report(error)
            return
        if fingerprint(*self._paths) != before:
            return  # written under our hands: what was read may be half of each; look again later
        self._seen = before
        self._value = value
        self._fault = ""
        self.generation += 1

    def _report(
        self, error: Exception, consequence: str = "the last good version stays in use"
    ) -> None:
        fault = str(error)
        if fault != self._fault:
            self._fault = fault
            self._warn(f"{fault}; {consequence}")
