"""Random requests through the byte-level filters and through the plain model, for hours if wanted.

``python -m tests.campaigns.filters --seconds 600`` or ``--cases 1000000``; ``--seed N --cases 1``
replays one. Every case is a few requests in a row, with what waits and what is remembered between
them. Prints what was looked at; exits 1 at the first difference, with its seed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter

from tests.processors import model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="first seed; by default another each time")
    parser.add_argument("--cases", type=int, default=sys.maxsize)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    first = random.SystemRandom().getrandbits(48) if arguments.seed is None else arguments.seed
    until = time.monotonic() + arguments.seconds
    seen: Counter[str] = Counter()
    done = requests = 0
    while done < arguments.cases and time.monotonic() < until:
        rng = random.Random(first + done)
        settings, steps = model.case(rng)
        try:
            with model.tuned(rng):
                seen += model.compare(settings, steps)
        except Exception:  # noqa: BLE001 - whatever it is, the seed is what is wanted
            traceback.print_exc()
            print(f"difference: python -m tests.campaigns.filters --seed {first + done} --cases 1")
            print(f"settings: {settings}")
            return 1
        done += 1
        requests += len(steps)
    kept = seen.pop("", 0)
    print(f"seeds {first} to {first + done - 1}: {done} cases, {requests} requests, no difference")
    print(f"spans kept {kept}, removed {dict(seen.most_common())}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
