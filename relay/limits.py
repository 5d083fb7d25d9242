"""The limits of one signal's pipeline: what its ring holds and how it leaves in batches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Limits of one signal. Counts in items, sizes in bytes, times in seconds.

    ``batch_size`` is at most ``queue_size`` and ``export_max_bytes`` at most ``queue_max_bytes``:
    a batch larger than the ring could never fill.
    """

    queue_size: int = 2048
    queue_max_bytes: int = 16 * 1024 * 1024
    batch_size: int = 512
    schedule_delay: float = 5.0
    export_max_bytes: int = 4_000_000
    max_concurrent_exports: int = 4
