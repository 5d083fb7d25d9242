"""Less memory: what is not read at the start, and what is given back after a burst.

glibc raises its threshold for separate mappings with every large block that is freed, up to 32 MiB;
after a flood of large requests their memory then stays in the heap for good. A fixed threshold
gives large blocks back at once, while what is usual (a batch of 512 spans is a quarter of a
mebibyte) stays on the fast path.

Sources: mallopt(3); X509_get_default_cert_file_env(3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["steady", "without_system_roots"]

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

_LARGE = 1024 * 1024
_SLACK = 2 * 1024 * 1024
_ARENAS = 2

_ROOTS = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def steady() -> bool:
    """Fix the thresholds; whether there was a glibc to tell. Call it before threads are started."""
    import ctypes  # noqa: PLC0415 - for the daemon only

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # musl and macOS have no such call, nor the habit.
    settings = ((M_MMAP_THRESHOLD, _LARGE), (M_TRIM_THRESHOLD, _SLACK), (M_ARENA_MAX, _ARENAS))
    return all(mallopt(name, value) == 1 for name, value in settings)


@contextmanager
def without_system_roots(environ: Mapping[str, str]) -> Iterator[None]:
    """TLS contexts that are made in here trust nobody instead of the system's authorities.

    For the import of aiohttp. It makes two contexts for clients that bring none, each with all of
    the system's certificates: with Debian's 2 MiB, and 70 ms of the start. The relay's exporter
    brings its own. OpenSSL is told by the process's environment, which ``environ`` says how to put
    back; so call it before threads are started.
    """
    for name in _ROOTS:
        os.putenv(name, os.devnull)
    try:
        yield
    finally:
        for name in _ROOTS:
            if name in environ:
                os.putenv(name, environ[name])
            else:
                os.unsetenv(name)
