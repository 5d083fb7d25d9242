"""Run the examples of a page as a reader would: ``python docs/examples.py docs/index.md``.

An HTML comment before a fenced block says what to do with it; blocks without one are not run:

* ``<!-- run -->``: run each ``$ `` line; the lines that follow it must appear in the output, in
  this order; ``...`` stands for anything.
* ``<!-- run: eventually -->``: the same, again and again until it holds.
* ``<!-- run: background -->``: start it and leave it running once the lines have appeared.
* ``<!-- run: fails -->``: the same as ``run``, and the exit code is not 0.
* ``<!-- run: file NAME -->``: the block is the content of a file.

Everything happens in a new directory. The examples use the usual ports, so run this where they are
free, or in a network namespace of its own (``unshare --net``), as the tests do.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

LIMIT = 30.0
"""Seconds that one command may take."""

_BLOCK = re.compile(
    r"^<!-- run(?:: (?P<mode>[^\n]*?))? -->\n+```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A block that is run: what to do with it, its content, the line it stands in."""

    mode: str
    body: str
    line: int


def blocks(text: str) -> list[Block]:
    """The blocks of a page that are run."""
    return [
        Block(found["mode"] or "", found["body"], text[: found.start()].count("\n") + 1)
        for found in _BLOCK.finditer(text)
    ]


def steps(body: str) -> list[tuple[str, list[str]]]:
    """Commands with the output that is expected of each."""
    found: list[tuple[str, list[str]]] = []
    for line in body.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", [])
        elif found:
            found[-1][1].append(line)
    return found


def missing(expected: list[str], output: str) -> str:
    """The first expected line that does not appear after the ones before it; "" when all do."""
    lines = iter(output.splitlines())
    for wanted in expected:
        pattern = re.compile(re.escape(wanted.strip()).replace(r"\.\.\.", ".*"))
        if wanted.strip() in {"", "..."}:
            continue
        if not any(pattern.fullmatch(line.strip()) for line in lines):
            return wanted
    return ""


class Session:
    """One reader at one terminal, and others for what keeps running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bash = shutil.which("bash") or "bash"
        self._running: list[subprocess.Popen[str]] = []
        command = folder / "bin" / "otlp-relay"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m relay "$@"\n')
        command.chmod(0o755)
        here = Path(sys.executable).parent
        self._environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "RELAY_"))},
            "PATH": f"{command.parent}:{here}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
            "PYTHONUNBUFFERED": "1",
        }

    def close(self) -> None:
        for process in reversed(self._running):
            process.kill()
            process.wait()

    def run(self, block: Block) -> None:
        """Raises SystemExit when a block does not do what the page says."""
        mode, _, name = block.mode.partition(" ")
        if mode == "file":
            (self._folder / name).write_text(block.body)
            return
        for command, expected in steps(block.body):
            if mode == "background":
                self._start(block, command, expected)
            else:
                self._try(block, command, expected, mode)

    def _try(self, block: Block, command: str, expected: list[str], mode: str) -> None:
        deadline = time.monotonic() + LIMIT
        while True:
            done = subprocess.run(  # noqa: S603 - our own pages
                [self._bash, "-c", command], cwd=self._folder, env=self._environ, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
            lacks = missing(expected, done.stdout)
            wrong = (done.returncode == 0) == (mode == "fails")
            if not lacks and not wrong:
                return
            if mode != "eventually" or time.monotonic() > deadline:
                break
            time.sleep(0.2)
        why = f"no line {lacks!r}" if lacks else f"exit code {done.returncode}"
        raise SystemExit(f"line {block.line}: $ {command}\n{why} in:\n{done.stdout}")

    def _start(self, block: Block, command: str, expected: list[str]) -> None:
        process = subprocess.Popen(  # noqa: S603 - as above
            [self._bash, "-c", f"exec env {command}"],
            cwd=self._folder, env=self._environ, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._running.append(process)
        output: list[str] = []
        news = threading.Condition()

        def read() -> None:
            for line in process.stdout or ():
                with news:
                    output.append(line)
                    news.notify()

        threading.Thread(target=read, daemon=True).start()
        with news:
            if not news.wait_for(lambda: not missing(expected, "".join(output)), LIMIT):
                raise SystemExit(
                    f"line {block.line}: $ {command}\nno line"
                    f" {missing(expected, ''.join(output))!r} in:\n{''.join(output)}"
                )


def main(page: str) -> int:
    """Run a page's examples; 0 when all of them do what it says."""
    found = blocks(Path(page).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        session = Session(Path(folder))
        try:
            for block in found:
                session.run(block)
        finally:
            session.close()
    print(f"{page}: {len(found)} examples work")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
