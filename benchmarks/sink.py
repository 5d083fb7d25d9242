"""The collector of the benchmark: takes traces over gRPC, counts the spans, does nothing else.

Usage: python -m benchmarks.sink [--port PORT] [--delay SECONDS]

Prints its port. Reads commands from standard input: ``count`` prints spans, requests and its own
CPU seconds; ``delay SECONDS`` makes it wait so long before each answer; end of file ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import grpc.aio
import uvloop

from relay import wire
from relay.otlp import TRACES


class Sink:
    """Counts, and waits before it answers."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.spans = 0
        self.requests = 0

    async def export(self, payload: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        if self.delay:
            await asyncio.sleep(self.delay)
        # Counted when answered: what was counted has been accepted.
        self.spans += wire.count(payload, TRACES)[1]
        self.requests += 1
        return b""

    def obey(self, line: str) -> None:
        command, _, argument = line.strip().partition(" ")
        if command == "count":
            print(self.spans, self.requests, time.process_time(), flush=True)
        elif command == "delay":
            self.delay = float(argument)
        else:
            raise ValueError(f"unknown command {line!r}")


async def serve(port: int, delay: float) -> None:
    sink = Sink(delay)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
            ("grpc.so_reuseport", 0),
        ]
    )
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(sink.export)
    server.add_registered_method_handlers(TRACES.service, {"Export": handler})
    print(server.add_insecure_port(f"127.0.0.1:{port}"), flush=True)
    await server.start()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        sink.obey(line.decode())
    await server.stop(None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()
    uvloop.run(serve(given.port, given.delay))
