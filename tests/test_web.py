"""What the relay takes of aiohttp's server, and what it leaves."""

from __future__ import annotations

import json
import subprocess
import sys

from aiohttp import web as whole

from relay import web

# In a process of its own: the tests' clients and sinks have loaded it all here.
DAEMON = """
import json, sys
import relay.commands.run, relay.daemon, relay.receivers.grpc, relay.receivers.http
import relay.exporters.grpc
print(json.dumps(sorted(sys.modules)))
"""


def test_it_is_what_aiohttp_documents() -> None:
    for name in web.__all__:
        assert getattr(web, name) is getattr(whole, name)


def test_the_daemon_loads_nothing_that_costs_memory_and_serves_no_request_of_the_usual_kind() -> (
    None
):
    done = subprocess.run(
        [sys.executable, "-c", DAEMON], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert {"aiohttp.web_server", "grpc.aio", "prometheus_client"} <= loaded
    assert not loaded & {
        "aiohttp.web", "aiohttp.web_app", "aiohttp.web_urldispatcher", "argparse", "decimal",
        "google.protobuf", "relay.otlp_json", "relay.sink",
    }  # fmt: skip
