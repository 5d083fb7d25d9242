from __future__ import annotations

import math

from relay.batch import due
from relay.limits import PipelineConfig

LIMITS = PipelineConfig(batch_size=512, schedule_delay=5.0)


def test_a_full_batch_may_leave_at_once() -> None:
    assert due(LIMITS, 4_000_000, 512, 1, oldest=100.0) == -math.inf
    assert due(LIMITS, 4_000_000, 513, 1, oldest=100.0) == -math.inf


def test_the_byte_limit_counts_as_full() -> None:
    assert due(LIMITS, 4_000_000, 1, 4_000_000, oldest=100.0) == -math.inf
    # A collector that takes less has lowered it.
    assert due(LIMITS, 1000, 1, 1000, oldest=100.0) == -math.inf
    assert due(LIMITS, 1000, 1, 999, oldest=100.0) == 105.0


def test_else_the_oldest_waits_the_schedule_delay_and_no_longer() -> None:
    assert due(LIMITS, 4_000_000, 511, 3_999_999, oldest=100.0) == 105.0
