"""``otlp-relay explain URL...``: whether a request is traced, and which pattern decides."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from relay.commands import UsageError
from relay.config import Loaded, UnknownFlagError, load, parse_flags
from relay.config.reference import usage
from relay.config.settings import (
    BY_FLAG,
    ENABLED,
    EXCLUDED_URLS,
    INCLUDED_URLS,
    SDK_DISABLED,
    TRACES_SAMPLER_ARG,
)
from relay.processors import ProcessorConfig
from relay.processors.patterns import UrlRules
from relay.processors.spans import path_of_url

_HELP = """\
Says for each URL or path whether a request to it is traced, and which pattern decides, with the
settings that run would have. Exit code 0; 2 when run would not start.

example: otlp-relay explain /health http://shop/api/users --excluded-urls '/health,^/internal/'

  --json  one JSON document instead of text
"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What becomes of the server spans of requests to one URL.

    ``setting``: the one that decides, and ``source`` where its value comes from; ``pattern``: the
    first of its patterns that matches, None when none does.
    """

    url: str
    path: str
    traced: bool
    setting: str
    source: str
    pattern: str | None


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Print a line for each URL or path; 0, or 2 when a daemon would not start.

    Raises:
        UsageError: no URL, something that is neither URL nor path, a faulty configuration.
    """
    if "--help" in argv or "-h" in argv:
        print(usage("explain URL...", _HELP), end="")
        return 0
    urls, rest = _urls(argv)
    try:
        flags = parse_flags(rest, also=("--json",))
    except UnknownFlagError as error:
        raise UsageError(*error.faults) from None
    if not urls:
        raise UsageError("explain needs at least one URL or path: otlp-relay explain /health")
    loaded = load(flags, environ)
    if loaded.config is None:
        raise UsageError(*loaded.faults)
    found = [_explain(url, loaded, loaded.config.processors) for url in urls]
    ratio = loaded.config.processors.sampling_ratio
    if "--json" in flags:
        document = {"sampling_ratio": ratio, "urls": [asdict(each) for each in found]}
        print(json.dumps(document, indent=2))
    else:
        print("\n".join(_report(found, ratio)))
        for warning in loaded.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    return 0


def _urls(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are URLs, and the flags with their values."""
    urls: list[str] = []
    flags: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if not argument.startswith("-"):
            urls.append(argument)
            continue
        flags.append(argument)
        if argument in BY_FLAG:
            flags += [value for value in [next(rest, None)] if value is not None]
    return urls, flags


def _path(url: str) -> bytes:
    """The path that a server span of a request to ``url`` names."""
    if not url.startswith("/") and "://" not in url:
        raise UsageError(f"{url!r} is neither a URL nor a path: write http://host/path, or /path")
    # As a server takes it from the request, without percent-decoding.
    return path_of_url(url.encode("utf-8", "surrogateescape")) or b"/"


def _explain(url: str, loaded: Loaded, config: ProcessorConfig) -> Explanation:
    path = _path(url)
    shown = path.decode("utf-8", "backslashreplace")
    if not config.enabled:
        rows = {each.name: each for each in loaded.effective}
        switch = rows[ENABLED.name]
        if rows[SDK_DISABLED.name].source != "default" and switch.source == "default":
            switch = rows[SDK_DISABLED.name]
        return Explanation(url, shown, False, switch.name, switch.source, None)
    decision = UrlRules(config.excluded, config.included).decide(path)
    setting = EXCLUDED_URLS if config.included is None else INCLUDED_URLS
    source = next(each.source for each in loaded.effective if each.name == setting.name)
    return Explanation(url, shown, decision.traced, setting.name, source, decision.pattern)


def _report(found: Sequence[Explanation], ratio: float) -> Iterator[str]:
    width = max(len(each.url) for each in found)
    for each in found:
        verdict = "traced    " if each.traced else "not traced"
        if each.setting in {ENABLED.name, SDK_DISABLED.name}:
            why = "the relay is disabled:"
        elif each.pattern is None:
            why = "no pattern matches in"
        else:
            why = f"{each.pattern} in"
        yield f"{each.url:<{width}}  {verdict}  {why} {each.setting} ({each.source})"
    if ratio < 1 and any(each.traced for each in found):
        yield f"of what is traced, {ratio:g} of all traces are kept ({TRACES_SAMPLER_ARG.name})"
