"""The C library's allocator, told to give back what a burst needed.

glibc raises its threshold for separate mappings with every large block that is freed, up to 32 MiB;
after a flood of large requests their memory then stays in the heap for good. A fixed threshold
gives large blocks back at once, while what is usual (a batch of 512 spans is a quarter of a
mebibyte) stays on the fast path.

Source: mallopt(3).
"""

from __future__ import annotations

__all__ = ["steady"]

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8

_LARGE = 1024 * 1024
_SLACK = 2 * 1024 * 1024
_ARENAS = 2


def steady() -> bool:
    """Fix the thresholds; whether there was a glibc to tell. Call it before threads are started."""
    import ctypes  # noqa: PLC0415 - for the daemon only

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # musl and macOS have no such call, nor the habit.
    settings = ((M_MMAP_THRESHOLD, _LARGE), (M_TRIM_THRESHOLD, _SLACK), (M_ARENA_MAX, _ARENAS))
    return all(mallopt(name, value) == 1 for name, value in settings)
