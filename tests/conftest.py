"""For all tests: Hypothesis profiles, and one message of grpcio's that is about no test.

`fixed`, the default: the same examples on every run, so that a change fails by its own fault and
not by the luck of the draw. `HYPOTHESIS_PROFILE=search` draws new ones every time: for campaigns.

grpcio has one poller for all event loops of a process. When it has something left for the loop of
a test that is over, it says so in the log of the one that runs, whose records would then not be its
own. A relay has one loop as long as it lives.
"""

from __future__ import annotations

import logging
import os

from hypothesis import settings

# No deadline for one example: the machines that run this are shared.
settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "fixed")


def _of_a_test(record: logging.LogRecord) -> bool:
    return "PollerCompletionQueue._handle_events" not in record.getMessage()


logging.getLogger("asyncio").addFilter(_of_a_test)
