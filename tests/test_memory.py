from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from relay import memory

# In a process of its own: the thresholds are the whole process's, and so is what it holds.
FLOOD = """
import sys
from relay.memory import steady

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

if sys.argv[1] == "steady":
    print("told", steady(), file=sys.stderr)
# glibc learns from each large block that is freed.
for size in range(1, 31):
    block = bytearray(size << 20)
    del block
before = resident()
keep = []
blocks = []
for _ in range(40):
    blocks.append(bytearray(b"x" * (3 << 20)))
    keep.append(bytearray(b"y" * 2000))  # small ones between, which pin the heap below them
del blocks
print(resident() - before)
"""


def _left(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FLOOD, mode], capture_output=True, text=True, check=True
    )
    if mode == "steady" and "told False" in done.stderr:
        pytest.skip("this C library has no mallopt")
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_flood_needed_is_given_back() -> None:
    # Without, some 6 MiB stay on this sequence.
    assert _left("steady") < 2 << 20


def _trusted() -> int:
    return len(ssl.create_default_context().get_ca_certs())


def test_the_systems_roots_are_not_read_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert _trusted() == 1
    with memory.without_system_roots(os.environ):
        assert _trusted() == 0
    assert _trusted() == 1


def test_variables_that_were_not_set_are_not_set_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    before = _trusted()
    with memory.without_system_roots({}):
        assert _trusted() == 0
    assert _trusted() == before
