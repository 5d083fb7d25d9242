"""Plots of the results, as PNG and SVG. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.report import PER_SPAN, Getter, Results, Table, field, quantile

HINT: Final = "no plots: matplotlib is missing (it is in the dependency group bench)"
COLOURS: Final = {
    "relay": "#0b6e4f", "relay-defaults": "#6bbf9c", "relay-h2corn": "#8a6bbf",
    "rotel": "#c44536", "otelcol": "#3d5a98",
}  # fmt: skip


def draw(results: Results, folder: Path) -> list[str]:
    """Write every plot there is data for; their names without suffix.

    Raises:
        ImportError: matplotlib is missing.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only here, and it may be missing

    mpl.use("Agg")
    mpl.rcParams |= {
        "svg.hashsalt": "otlp-relay",  # the same data, the same file
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": 110,
        "font.size": 9,
    }
    folder.mkdir(parents=True, exist_ok=True)
    table = Table(results)
    made = []
    for name, plot in (
        ("cost", _cost),
        ("answer-time", _answer_time),
        ("lossless", _lossless),
        ("memory", _memory),
        ("growth", _growth),
    ):
        figure = plot(table)
        if figure is None:
            for old in folder.glob(f"{name}.*"):  # of results that are no more
                old.unlink()
            continue
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        made.append(name)
    return made


def _figure(columns: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(4.2 * columns, 3.4), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _bars(axes: Any, table: Table, get: Getter, section: str, key: str, **case: object) -> None:
    """Groups by the values of a key, one bar for each contestant."""
    values = table.values(section, key, **case)
    names = table.names
    width = 0.8 / len(names)
    for at, name in enumerate(names):
        heights = [
            table.median(get, section, contestant=name, **case, **{key: value}) for value in values
        ]
        places = [
            index + (at - (len(names) - 1) / 2) * width
            for index, height in enumerate(heights)
            if height is not None
        ]
        shown = [height for height in heights if height is not None]
        axes.bar(places, shown, width, label=name, color=COLOURS[name])
    axes.set_xticks(range(len(values)), [f"{value:,}" for value in values])


def _lines(axes: Any, table: Table, get: Getter, section: str, key: str) -> None:
    values = table.values(section, key)
    for name in table.names:
        points = [
            (value, middle)
            for value in values
            if (middle := table.median(get, section, contestant=name, **{key: value})) is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", label=name, color=COLOURS[name])
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.margins(y=0.1)
    if key == "attribute_bytes":
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _cost(table: Table) -> Any:
    transports = table.values("cost", "transport", tls=False)
    if not transports:
        return None
    figure, axes = _figure(len(transports))
    for each, transport in zip(axes, transports, strict=True):
        _bars(each, table, PER_SPAN, "cost", "spans", transport=transport, tls=False)
        each.set_yscale("log")
        each.set_title({"grpc": "gRPC receiver", "http": "HTTP receiver"}[transport])
        each.set_xlabel("spans a request")
    axes[0].set_ylabel("CPU seconds per million spans")
    axes[-1].legend(frameon=False)
    return figure


def _answer_time(table: Table) -> Any:
    case = {"transport": "grpc", "tls": False, "rate": 10_000}
    if not table.of("rates", **case):
        return None
    figure, axes = _figure(2)
    for each, name in zip(axes, ("p50", "p99"), strict=True):
        _bars(each, table, quantile(name), "rates", "spans", **case)
        each.set_title(f"answer time, {name}, 10,000 spans/s, gRPC")
        each.set_xlabel("spans a request")
        each.set_yscale("log")
    axes[0].set_ylabel("ms")
    axes[-1].legend(frameon=False)
    return figure


def _lossless(table: Table) -> Any:
    if not table.of("lossless"):
        return None
    figure, (axes,) = _figure(1)
    _bars(axes, table, field("spans_per_second"), "lossless", "delay_ms")
    axes.set_title("highest rate without loss")
    axes.set_xlabel("collector answers after, ms")
    axes.set_ylabel("spans a second")
    axes.legend(frameon=False)
    return figure


def _memory(table: Table) -> Any:
    runs = table.of("slope")
    if not runs:
        return None
    figure, (axes,) = _figure(1)
    for run in runs:
        name = run["contestant"]
        axes.plot(*zip(*run["samples"], strict=True), label=name, color=COLOURS[name])
    axes.set_title("resident memory, 10,000 spans/s")
    axes.set_xlabel("seconds")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _growth(table: Table) -> Any:
    wanted = [
        (section, key, title)
        for section, key, title in (
            ("clients", "clients", "clients"),
            ("attributes", "attribute_bytes", "bytes of attributes a span"),
            ("rings", "ring", "ring, spans (full, no collector)"),
        )
        if table.of(section)
    ]
    if not wanted:
        return None
    figure, axes = _figure(len(wanted))
    for each, (section, key, title) in zip(axes, wanted, strict=True):
        _lines(each, table, PER_SPAN, section, key)
        each.set_xlabel(title)
        each.tick_params(axis="x", rotation=30)
    axes[0].set_ylabel("CPU seconds per million spans")
    axes[0].legend(frameon=False)
    return figure
