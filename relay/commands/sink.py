"""``otlp-relay sink``: a development collector that counts and misbehaves on request."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from relay.addresses import parse_listen
from relay.commands import UsageError
from relay.receivers import Listen
from relay.sink import Behaviour, Received, Sink
from relay.sink.behaviour import parse_delay, parse_fail, parse_outage
from relay.sink.report import as_json

__all__ = ["Options", "parse", "run"]

FIRST_LINE = "listening"
"""The ``event`` of the first line of output, which has the bound addresses."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the flags say. Times in seconds, sizes in bytes."""

    grpc: Listen
    http: Listen
    behaviour: Behaviour
    outages: tuple[tuple[float, float], ...]
    max_message: int
    seed: int | None
    show: bool


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:  # noqa: ARG001 - no variable
    """Serve until SIGINT or SIGTERM; 0, or 1 when an address is taken.

    The first line of output is ``{"event": "listening", "grpc": [...], "http": [...]}`` with
    every bound address, the last one the counts: an object per signal.

    Raises:
        UsageError: a flag is wrong.
    """
    options = parse(argv)
    code = 0
    try:
        with asyncio.Runner() as runner:
            runner.run(_serve(options))
    except* OSError as errors:
        code = 1
        for error in errors.exceptions:
            words = error.strerror if isinstance(error, OSError) else ""
            print(f"otlp-relay sink: {words or error}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"sink: {message}")


def _typed(parse: Callable[[str], object]) -> Callable[[str], object]:
    """A parser whose words argparse shows."""

    def convert(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _whole(least: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise ValueError(f"{text!r}: expected a whole number of {least} or more")
        return int(text)

    return convert


def _seconds(text: str) -> float:
    delay, hang = parse_delay(text)
    if hang:
        raise ValueError(f"{text!r}: expected seconds")
    return delay


def parse(argv: Sequence[str]) -> Options:
    """Read the flags.

    Raises:
        UsageError: a flag is unknown, or its value is.
    """
    parser = _Parser(
        prog="otlp-relay sink",
        allow_abbrev=False,
        description="A development collector: receives OTLP over gRPC and HTTP, counts it, and "
        "misbehaves on request. The first line of output has the bound addresses; on SIGINT or "
        "SIGTERM it prints its counts as one JSON line and ends.",
        epilog="example: otlp-relay sink --fail UNAVAILABLE:0.1 --outage 10:5 --print",
    )
    listen = _typed(lambda text: Listen(*parse_listen(text)))
    parser.add_argument(
        "--grpc",
        metavar="HOST:PORT",
        type=listen,
        default="localhost:4317",
        help="where to listen for gRPC; port 0: any; unix:/path; off (default: %(default)s)",
    )
    parser.add_argument(
        "--http",
        metavar="HOST:PORT",
        type=listen,
        default="localhost:4318",
        help="the same for HTTP (default: %(default)s)",
    )
    parser.add_argument(
        "--fail",
        metavar="CODE[:PROBABILITY]",
        type=_typed(parse_fail),
        default=None,
        help="answer with this gRPC status (name or number) or HTTP status",
    )
    parser.add_argument(
        "--retry-after",
        metavar="SECONDS",
        type=_typed(_seconds),
        help="with --fail: ask for this pause (RetryInfo, Retry-After)",
    )
    parser.add_argument(
        "--delay",
        metavar="SECONDS",
        type=_typed(parse_delay),
        default="0",
        help="answer so much later; 'hang': never",
    )
    parser.add_argument(
        "--outage",
        metavar="START:DURATION",
        type=_typed(parse_outage),
        action="append",
        default=[],
        help="close the listeners START seconds after the start, for DURATION seconds; repeatable",
    )
    parser.add_argument(
        "--reject",
        metavar="N",
        type=_typed(_whole(0)),
        default="0",
        help="reject N items of each request in a partial success",
    )
    parser.add_argument(
        "--max-message",
        metavar="BYTES",
        type=_typed(_whole(1)),
        default=str(4 * 1024 * 1024),
        help="largest request accepted (default: %(default)s, as collectors have it)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=_typed(_whole(0)), help="of the chances, to replay a run"
    )
    parser.add_argument("--print", action="store_true", help="print one line for each item")
    values = parser.parse_args(argv)
    if values.retry_after is not None and values.fail is None:
        raise UsageError("sink: --retry-after needs --fail")
    if values.grpc.off and values.http.off:
        raise UsageError("sink: --grpc and --http are both off: nothing to do")
    outages = tuple(sorted(values.outage))
    for (start, duration), (following, _) in itertools.pairwise(outages):
        if start + duration > following:
            raise UsageError(f"sink: the outages at {start:g} and {following:g} overlap")
    delay, hang = values.delay
    return Options(
        grpc=values.grpc,
        http=values.http,
        behaviour=replace(
            values.fail or Behaviour(),
            retry_after=values.retry_after,
            delay=delay,
            hang=hang,
            reject=values.reject,
        ),
        outages=outages,
        max_message=values.max_message,
        seed=values.seed,
        show=values.print,
    )


async def _serve(options: Options) -> None:
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    ended: list[signal.Signals] = []

    def end(number: signal.Signals) -> None:
        if ended:
            # A second signal: at once, and by the signal's own doing, so 128 + signal.
            loop.remove_signal_handler(number)
            signal.raise_signal(number)
        ended.append(number)
        done.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end, number)
    show = _show() if options.show else None
    async with Sink(
        grpc=options.grpc,
        http=options.http,
        behaviour=options.behaviour,
        max_message=options.max_message,
        seed=options.seed,
        record=False,
        on_received=show,
    ) as sink:
        print(json.dumps({"event": FIRST_LINE, **sink.addresses}), flush=True)
        async with asyncio.TaskGroup() as tasks:
            outages = tasks.create_task(_outages(sink, options.outages))
            await done.wait()
            outages.cancel()
        await sink.stop()
        print(as_json(sink.counts), flush=True)


async def _outages(sink: Sink, outages: tuple[tuple[float, float], ...]) -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for start, duration in outages:
        await asyncio.sleep(begin + start - loop.time())
        await sink.stop()
        print(f"outage: closed for {duration:g} s", file=sys.stderr, flush=True)
        await asyncio.sleep(begin + start + duration - loop.time())
        await sink.start()
        print("outage: over, listening again", file=sys.stderr, flush=True)


def _show() -> Callable[[Received], None]:
    from relay.sink.messages import describe  # noqa: PLC0415 - message classes are asked for

    def show(received: Received) -> None:
        for line in describe(received.payload, received.signal):
            print(line)
        sys.stdout.flush()

    return show
