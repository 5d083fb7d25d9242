"""Search for inputs that break a parser: ``python -m tests.campaigns.fuzz --seconds 60``.

Guided by coverage where atheris is installed (it has no wheels for every Python), else by a plain
mutator of the corpus. ``--target`` names one; ``--keep`` adds what the search found interesting to
tests/corpus, smallest first. What breaks a target is written to .cache/fuzz/ and printed; the
exit code is then 1.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).resolve().parents[1] / "corpus"
FAILURES = Path(".cache/fuzz")
LARGEST = 4096
"""Bytes of one input."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all, for all targets")
    parser.add_argument("--target")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(31))
    parser.add_argument("--keep", type=int, default=0, metavar="N", help="inputs for each target")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    parser.add_argument("--guided", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.guided:
        return _guided(options.target, options.guided, options.seconds, options.seed)

    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - atheris imports them itself

    names = [options.target] if options.target else list(TARGETS)
    guided = importlib.util.find_spec("atheris") is not None and not options.plain
    print(f"seed {options.seed}, {'atheris' if guided else 'plain mutator'}")
    broken = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            seconds = options.seconds / len(names)
            if guided:
                failed = _in_child(name, folder, seconds, options.seed)
            else:
                failed = _mutate(name, seconds, options.seed)
            broken += failed
            if options.keep and not failed:
                _keep(name, Path(folder), options.keep)
    return 1 if broken else 0


def _in_child(name: str, folder: str, seconds: float, seed: int) -> int:
    """Run atheris, which never returns, in a process of its own."""
    FAILURES.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.campaigns.fuzz", "--target", name]
    command += ["--guided", folder, "--seconds", str(seconds), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    ran = re.findall(r"#(\d+)\s+DONE.*?cov: (\d+)", done.stderr)
    if done.returncode:
        print(f"{name}: BROKEN\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return 1
    runs, coverage = ran[-1] if ran else ("?", "?")
    print(f"{name}: {runs} inputs, {coverage} branches, nothing broken", flush=True)
    return 0


def _guided(name: str, folder: str, seconds: float, seed: int) -> int:
    atheris: Any = importlib.import_module("atheris")

    with atheris.instrument_imports(include=["relay"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - instrumented

    arguments = [
        sys.argv[0],
        f"-max_total_time={max(int(seconds), 1)}",
        f"-seed={seed}",
        f"-max_len={LARGEST}",
        f"-artifact_prefix={FAILURES}/{name}-",
        "-timeout=20",
        "-rss_limit_mb=2048",
        folder,
        str(CORPUS / name),
    ]
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()
    return 0


def _mutate(name: str, seconds: float, seed: int) -> int:
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415 - as in main

    rng = random.Random(seed)
    pool = [file.read_bytes() for file in sorted((CORPUS / name).iterdir())] or [b""]
    until = time.monotonic() + seconds
    runs = 0
    while time.monotonic() < until:
        data = _mutation(rng, pool)
        runs += 1
        try:
            TARGETS[name](data)
        except Exception:  # noqa: BLE001 - the find of the search
            FAILURES.mkdir(parents=True, exist_ok=True)
            path = FAILURES / f"{name}-{seed}-{runs}"
            path.write_bytes(data)
            traceback.print_exc()
            print(f"{name}: BROKEN by {path}: {data!r}")
            return 1
    print(f"{name}: {runs} inputs, nothing broken", flush=True)
    return 0


def _mutation(rng: random.Random, pool: list[bytes]) -> bytes:
    data = bytearray(rng.choice(pool))
    for _ in range(rng.randint(1, 8)):
        at = rng.randint(0, len(data))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randint(1, 8))
        elif kind == 2:
            del data[at : at + rng.randint(1, 16)]
        elif kind == 3:
            other = rng.choice(pool)
            start = rng.randint(0, len(other))
            data[at:at] = other[start : start + rng.randint(1, 64)]
        elif kind == 4 and data:
            data[at % len(data)] = rng.choice(b"\x00\x01\x7f\x80\xff\"'{}[],:*^\\=\n")
        else:
            data[at:at] = data[at : at + rng.randint(1, 32)]
    return bytes(data[:LARGEST])


def _keep(name: str, folder: Path, count: int) -> None:
    """Add the smallest of what the search found interesting."""
    found = sorted(folder.iterdir(), key=lambda file: (file.stat().st_size, file.name))
    for file in found[:: max(len(found) // count, 1)][:count]:
        (CORPUS / name / file.name[:16]).write_bytes(file.read_bytes())


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code) if code else sys.exit(0)
