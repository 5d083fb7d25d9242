"""Hypothesis profiles for all tests.

`fixed`, the default: the same examples on every run, so that a change fails by its own fault and
not by the luck of the draw. `HYPOTHESIS_PROFILE=search` draws new ones every time: for campaigns.
"""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline for one example: the machines that run this are shared.
settings.register_profile("fixed", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("search", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or "fixed")
