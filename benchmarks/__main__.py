"""Measure, or show what was measured.

python -m benchmarks                       everything; takes hours
python -m benchmarks --quick               everything in small; minutes
python -m benchmarks cost rates --peer rotel --rounds 3
python -m benchmarks report                tables and plots anew, and into docs/performance.md
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import contestants, load, machine, plots, report, sections

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
SCRATCH: Final = RESULTS / "raw" / "latest"
DOCS: Final = ROOT / "docs" / "performance.md"
BEGIN: Final = "<!-- figures: begin (python -m benchmarks report) -->"
END: Final = "<!-- figures: end -->"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION",
        help=f"{', '.join(sections.SECTIONS)} (default: all), or report")  # fmt: skip
    add("--quick", action="store_true", help="little of everything, to see that it works")
    add("--rounds", type=int, help="how often everyone has a turn")
    add("--peer", action="append", choices=[*contestants.PEERS, "none"],
        help="measure beside this one (repeatable; default: all that are there)")  # fmt: skip
    add("--only", choices=["relay", "relay-defaults"], help="one variant of the relay")
    add("--spans", type=_numbers, help="spans in a request, such as 1,100")
    add("--rates", type=_numbers, help="spans a second, such as 1000,10000")
    add("--transport", choices=["grpc", "http"], help="of the receivers (default: both)")
    add("--plain", action="store_true", help="without TLS")
    add("--delays", type=_numbers, help="ms after which the collector answers, such as 0,20")
    add("--seconds", type=float, help="of load in one run at a given rate")
    add("--slope-seconds", type=float, help="of load for the slope of memory")
    where = "folder of results (default: benchmarks/results for a run with no other choice, else"
    add("--output", type=Path, help=f"{where} benchmarks/results/raw/latest)")
    merge = "keep the sections that the results in the folder have and this run has not"
    add("--merge", action="store_true", help=merge)
    given = parser.parse_args(arguments)
    unknown = set(given.sections) - set(sections.SECTIONS) - {"report"}
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are "
                     f"{', '.join(sections.SECTIONS)}")  # fmt: skip
    return given


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(","))


def plan_of(given: argparse.Namespace) -> sections.Plan:
    plan = sections.QUICK if given.quick else sections.FULL
    changes: dict[str, Any] = {
        "rounds": given.rounds, "spans": given.spans, "rates": given.rates,
        "transports": (given.transport,) if given.transport else None,
        "tls": (False,) if given.plain else None,
        "delays_ms": given.delays,
        "seconds": given.seconds, "slope_seconds": given.slope_seconds,
    }  # fmt: skip
    return dataclasses.replace(plan, **{k: v for k, v in changes.items() if v is not None})


def contestants_of(given: argparse.Namespace) -> list[contestants.Contestant]:
    """Who is there; says who is not."""
    ours = [contestants.RELAY, contestants.DEFAULTS]
    if contestants.missing(contestants.H2CORN.name) is None:
        ours.append(contestants.H2CORN)
    if given.only:
        ours = [each for each in ours if each.name == given.only]
    wanted = [] if given.peer == ["none"] else given.peer or list(contestants.PEERS)
    there = []
    for name in wanted:
        if why := contestants.missing(name):
            print(f"without {name}: {why}", file=sys.stderr)
        else:
            there.append(contestants.PEERS[name])
    # The one that is compared runs right before those it is compared with.
    return [*reversed(ours), *there]


def measure(given: argparse.Namespace, output: Path) -> int:
    if not load.there():
        print(load.HINT, file=sys.stderr)
        return 1
    plan = plan_of(given)
    who = contestants_of(given)
    chosen = given.sections or list(sections.SECTIONS)
    began = time.monotonic()
    results: dict[str, Any] = {
        "started": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "quick": given.quick,
        "machine": machine.facts(),
        "versions": {each.name: contestants.version(each.name.partition("-")[0]) for each in who},
        "load_before": machine.load_average(),
        "plan": dataclasses.asdict(plan),
    }

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="otlp-relay-bench-") as folder:
        bench = sections.Bench(plan, who, Path(folder), tell)
        try:
            for name in chosen:
                tell(f"--- {name}")
                sections.SECTIONS[name](bench)
                # After each section: hours of measuring are not lost to a fault in the last.
                results["records"] = bench.records
                results["load_after"] = machine.load_average()
                save(results, output, merge=given.merge)
        except KeyboardInterrupt:
            print("interrupted: sections that were finished are saved", file=sys.stderr)
        finally:
            bench.close()
    return show(output)


def save(results: dict[str, Any], output: Path, *, merge: bool) -> None:
    output.mkdir(parents=True, exist_ok=True)
    path = output / "results.json"
    if merge and path.exists():
        fresh = {each["section"] for each in results["records"]}
        old = json.loads(path.read_text(encoding="utf-8"))
        kept = [each for each in old["records"] if each["section"] not in fresh]
        if results["command"] not in old["command"]:
            results["command"] = f"{old['command']}; {results['command']}"
        results = {
            **results,
            "records": kept + results["records"],
            "versions": old["versions"] | results["versions"],
            "quick": old["quick"] or results["quick"],
        }
    records = ",\n".join(json.dumps(_rounded(each)) for each in results["records"])
    rest = json.dumps({**results, "records": []}, indent=1)
    # One record a line: readable differences, and no page of brackets.
    text = rest.replace('"records": []', f'"records": [\n{records}\n]')
    path.write_text(text + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return value


def show(output: Path) -> int:
    path = output / "results.json"
    if not path.exists():
        print(f"nothing was measured yet: no {path}", file=sys.stderr)
        return 1
    results = json.loads(path.read_text(encoding="utf-8"))
    text = report.markdown(results)
    (output / "results.md").write_text("# Results\n\n" + text, encoding="utf-8")
    print("\n" + text)
    try:
        made = plots.draw(results, output)
    except ImportError:
        print(plots.HINT, file=sys.stderr)
        made = []
    print(f"written: {path}, results.md{', ' if made else ''}{', '.join(made)}")
    voids = sum(1 for each in results["records"] if each["void"])
    if voids:
        print(f"{voids} runs are VOID: not everything that was sent arrived", file=sys.stderr)
    return 0


def write_docs(output: Path) -> int:
    """Put tables and plots into docs/performance.md, between the marks."""
    if code := show(output):
        return code
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    images = DOCS.parent / "images" / "performance"
    images.mkdir(parents=True, exist_ok=True)
    shown = []
    for plot in sorted(output.glob("*.svg")):
        shutil.copyfile(plot, images / plot.name)
        shown.append(f"![{plot.stem}](images/performance/{plot.name})")
    figures = report.markdown(results, level=3) + "\n" + "\n\n".join(shown)
    text = DOCS.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        print(f"{DOCS} has no place for the figures ({BEGIN} ... {END})", file=sys.stderr)
        return 1
    fresh = f"{BEGIN}\n\n{figures.strip()}\n\n{END}"
    DOCS.write_text(pattern.sub(lambda _: fresh, text), encoding="utf-8")
    print(f"written: {DOCS}")
    return 0


def main(arguments: Sequence[str]) -> int:
    given = parse(arguments)
    if "report" in given.sections:
        return write_docs(given.output or RESULTS)
    chosen = given.quick or len(arguments) > 0
    return measure(given, given.output or (SCRATCH if chosen else RESULTS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
