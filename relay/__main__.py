"""``otlp-relay`` and ``python -m relay``: which command, and the exit codes.

0: done, or an orderly shutdown. 1: runtime failure. 2: usage or configuration error.
128 + signal: ended by a second signal. Nothing heavy is imported before the command is known.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from relay import __version__
from relay.commands import COMMANDS, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; ``argv`` without the program's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except UsageError as error:
        for fault in error.faults:
            sys.stderr.write(f"otlp-relay: {fault}\n")
        return USAGE
    except BrokenPipeError:
        # The reader (head, less) has gone; without this the interpreter complains once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED
    return code


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        sys.stderr.write(overview())
        return USAGE
    command, *rest = arguments
    if command in {"--help", "-h", "help"}:
        sys.stdout.write(overview())
        return OK
    if command in {"--version", "-V"}:
        sys.stdout.write(f"otlp-relay {__version__}\n")
        return OK
    if command not in COMMANDS:
        raise UsageError(_unknown(command))
    if command in {"run", "check"} and not {"--help", "-h"}.isdisjoint(rest):
        from relay.config.reference import usage  # noqa: PLC0415 - few ask

        does, example = COMMANDS[command]
        about = f"{does[:1].upper()}{does[1:]}.\n\nexample: otlp-relay {example}"
        sys.stdout.write(usage(command, about))
        return OK
    code: int = import_module(f"relay.commands.{command}").run(rest, os.environ)
    return code


def _unknown(command: str) -> str:
    import difflib  # noqa: PLC0415 - few err

    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
    return f"unknown command {command!r}; {hint}"


def overview() -> str:
    """Every command with an example."""
    lines = [
        f"otlp-relay {__version__}: a small OTLP sidecar that buffers, batches and forwards",
        "",
        "usage: otlp-relay COMMAND [FLAGS]",
        "",
    ]
    for name, (does, example) in COMMANDS.items():
        lines += [f"  {name:<12} {does}", f"  {'':<12}   otlp-relay {example}"]
    lines += [
        "",
        "otlp-relay COMMAND --help says more; otlp-relay --version the version.",
        "Every flag of run is also an environment variable: otlp-relay run --help lists both.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
