"""The table of settings as text: the configuration reference, and the help of the commands.

``python -m relay.config.reference`` prints the reference as Markdown.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator

from relay.config.settings import GROUPS, SETTINGS, SIGNAL_NAMES, Setting, flag, twin

RULES = """\
Sources, first wins: flags, `RELAY_*`, `OTEL_*`, default. Within one source the setting of a
single signal wins over the general one. So an application's `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`
that names the relay does no harm where `RELAY_EXPORTER_ENDPOINT` names the collector.

Every setting has its names by one rule: `OTEL_EXPORTER_OTLP_X` is also `RELAY_EXPORTER_X`, any
other `OTEL_X` is also `RELAY_X`, and `RELAY_X_Y` is the flag `--x-y` (`--x-y VALUE` or
`--x-y=VALUE`).

An empty variable counts as unset, except where noted. Booleans are `true` or `false`, any case. A
plain number for a time is milliseconds; `250ms` and `1.5s` are accepted too. A plain number for a
size is bytes; `512KiB`, `16MiB` and `1GiB` are accepted too.

All faults are reported together. A fault in a flag or `RELAY_*`, or in any endpoint, protocol, TLS
or URL pattern setting, ends the start with exit code 2; a fault in another `OTEL_*` is warned
about and the variable taken as unset. An unknown `RELAY_*` is warned about."""


def default(setting: Setting[object]) -> str:
    """The default as reports show it."""
    if not setting.default and setting.kind.unset is not None:
        return setting.kind.unset.shown
    return setting.kind.parse(setting.default).shown


def markdown() -> str:
    """The configuration reference: the rules, then one table per group."""
    lines = [" ".join(part.split()) + "\n" for part in RULES.split("\n\n")]
    for group in GROUPS:
        lines += [f"### {group}\n", "| setting | flag | default | meaning |", "|---|---|---|---|"]
        lines += [_row(setting) for setting in SETTINGS if setting.group == group]
        lines.append("")
    return "\n".join(lines)


def _row(setting: Setting[object]) -> str:
    names = "<br>".join(f"`{name}`" for name in _names(setting.name))
    meaning = f"{setting.meaning} Accepts {setting.kind.accepts}."
    own = _own(setting)
    if own:
        meaning += f" {own[0]}: " + ", ".join(f"`{name}`" for name in own[1]) + "."
    cells = (names, f"`{flag(setting.name)}`", f"`{default(setting)}`", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _names(name: str) -> list[str]:
    return list(dict.fromkeys((name, twin(name))))


def _own(setting: Setting[object]) -> tuple[str, list[str]] | None:
    """How the variables of single signals are introduced, and they."""
    if not setting.own:
        return None
    which = "For one signal" if len(setting.own) == len(SIGNAL_NAMES) else "For that signal alone"
    return which, list(setting.own.values())


def usage(command: str, about: str) -> str:
    """The help of a command that takes every setting; ``about``: what it does, in whole lines."""
    return "\n".join(_usage(command, about)) + "\n"


def _usage(command: str, about: str) -> Iterator[str]:
    yield f"usage: otlp-relay {command} [FLAGS]"
    yield ""
    yield about.strip("\n")
    for part in RULES.replace("`", "").split("\n\n"):
        yield ""
        yield from textwrap.wrap(" ".join(part.split()), 96)
    for group in GROUPS:
        yield ""
        yield f"{group}:"
        for setting in SETTINGS:
            if setting.group == group:
                yield ""
                yield from _entry(setting)


def _entry(setting: Setting[object]) -> Iterator[str]:
    yield f"  {flag(setting.name)}  (default: {default(setting)})"
    texts = [setting.meaning.replace("`", ""), f"Accepts {setting.kind.accepts}."]
    texts.append("Variables: " + ", ".join(_names(setting.name)))
    own = _own(setting)
    if own:
        texts.append(f"{own[0]}: " + ", ".join(own[1]))
    for text in texts:
        yield from textwrap.wrap(
            text,
            96,
            initial_indent="      ",
            subsequent_indent="      ",
            break_long_words=False,
            break_on_hyphens=False,
        )


if __name__ == "__main__":
    sys.stdout.write(markdown())
