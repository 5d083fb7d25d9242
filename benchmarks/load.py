"""As fast as it answers: h2load (of nghttp2), for cost per span. See also paced.py."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from benchmarks import bodies

HINT = (
    "h2load is missing: it comes with nghttp2 (Debian and Ubuntu: apt-get install nghttp2-client)"
)


class LoadError(RuntimeError):
    """The load could not be made."""


class Load(NamedTuple):
    """What h2load did: requests answered with 200, and seconds."""

    answered: int
    seconds: float


def there() -> bool:
    return shutil.which("h2load") is not None


def closed_loop(  # noqa: PLR0913 - options of one command line
    endpoint: str,
    spans: int,
    requests: int,
    *,
    folder: Path,
    grpc: bool,
    tls: bool = False,
    clients: int = 4,
    streams: int = 4,
    attribute_bytes: int = 0,
) -> Load:
    """Send so many requests, the next as soon as one is answered.

    gRPC: ``streams`` calls at once on each of ``clients`` connections. HTTP: HTTP/1.1, one
    request at once on each connection, as exporters do; ``clients`` times ``streams``
    connections, so that as many requests are under way.

    Raises:
        LoadError: h2load is missing, failed, or does not say what it did.
    """
    payload = bodies.trace_request(spans, attribute_bytes)
    body = folder / f"body-{spans}-{attribute_bytes}-{'grpc' if grpc else 'http'}"
    if not body.exists():
        body.write_bytes(bodies.grpc_message(payload) if grpc else payload)
    scheme = "https" if tls else "http"
    path = bodies.GRPC_PATH if grpc else bodies.HTTP_PATH
    connections = clients if grpc else clients * streams
    # Fewer requests than connections is an error to h2load.
    connections = min(connections, requests)
    command = ["h2load", "-n", str(requests), "-c", str(connections), "--data", str(body)]
    if grpc:
        command += ["-m", str(streams), "-H", "content-type: application/grpc"]
        command += ["-H", "te: trailers"]
    else:
        command += ["--h1", "-m", "1", "-H", "content-type: application/x-protobuf"]
    try:
        done = subprocess.run(
            [*command, f"{scheme}://{endpoint}{path}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
    except FileNotFoundError as error:
        raise LoadError(HINT) from error
    except subprocess.SubprocessError as error:
        raise LoadError(f"h2load: {error}") from error
    codes = re.search(r"status codes: (\d+) 2xx", done.stdout)
    took = re.search(r"finished in ([\d.]+)(us|ms|s|m)", done.stdout)
    if codes is None or took is None:
        raise LoadError(f"h2load said: {done.stdout[-500:]} {done.stderr[-500:]}")
    unit = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[took[2]]
    return Load(int(codes[1]), float(took[1]) * unit)
