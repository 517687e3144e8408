"""Memory, the headline student's layers, and other stages' tables, for the page's section on cost."""

from __future__ import annotations

from matplotlib.figure import Figure

from pipeline.measure import extra_tables, layers
from pipeline.measure.layers import Layer
from stages.report_page.benchmark_rows import TITLES
from stages.report_page.evidence import Evidence
from stages.report_page.layer_figure import layer_figure
from stages.report_page.tables import ABSENT, Cell, Table, is_number

MEMORY = (
    "KB of 1,024 bytes. Flash: constant tensors, and the rest of the file (operators, names, shapes, metadata). Live "
    "peak: the most that activations take at once, below which no allocator can go; arena: one block that holds them "
    "all, planned greedily by size. Process: what a session of ONNX Runtime really took on this x86, weights, packed "
    "copies and its own code included; a microcontroller's runtime takes far less."
)
LAYERS = (
    "Layers of {name} in the order they run, {shares}. Colours: arithmetic of the layer; conversion is quantising and "
    "dequantising between the two."
)
OPERATORS = "The same layers summed by operator, in per cent."


def memory_table(evidence: Evidence) -> Table | None:
    """Return flash and RAM of every exported file; None before they were measured."""
    rows = [row for row in (evidence.benchmark or {"rows": []})["rows"] if "arena_bytes" in row]
    if not rows:
        return None

    def kb(number: object, unit: float = 1024) -> Cell:
        return Cell(f"{number / unit:,.0f}" if is_number(number) else ABSENT)  # type: ignore[operator]

    cells = [
        [
            Cell(row["model"], number=False), Cell(TITLES.get(row["precision"], row["precision"]), number=False),
            kb(row["weight_bytes"]), kb(row["graph_bytes"]), kb(row.get("file_kb"), 1),
            kb(row["peak_activation_bytes"]), kb(row["arena_bytes"]),
            kb(((row.get("x86") or {}).get("memory") or {}).get("delta_bytes")),
        ]
        for row in rows
    ]  # fmt: skip
    headings = ["model", "precision", "weights", "graph", "file", "live peak", "arena", "process"]
    emphasised = frozenset(i for i, row in enumerate(rows) if row.get("headline"))
    return Table(headings, cells, [("", 2), ("flash", 3), ("RAM", 2), ("measured, x86", 1)], emphasised)


def figures(evidence: Evidence) -> list[tuple[Figure, str]]:
    """Return the headline student's layers in float32 and in int8, each with its caption."""
    found = []
    for name, layers_of, counted in _headline(evidence):
        cpu = (evidence.layers or {}).get("cpu")
        shares = (
            f"shares of the instructions executed on an emulated {cpu}" if counted else "shares of x86 time"
        )
        found.append((layer_figure(layers_of, name), LAYERS.format(name=name, shares=shares)))
    return found


def operators_table(evidence: Evidence) -> Table | None:
    """Return the headline student's operators: nodes, and shares of MACs, parameters, time and instructions."""
    rows = []
    for name, layers_of, counted in _headline(evidence):
        sums = layers.by_operator(layers_of)
        totals = {
            key: sum(row[key] or 0 for row in sums) or 1 for key in ("macs", "parameters", "instructions")
        }
        for row in sums:
            shares = [f"{100 * (row[key] or 0) / totals[key]:.1f}" for key in ("macs", "parameters")]
            instructions = f"{100 * row['instructions'] / totals['instructions']:.1f}" if counted else ABSENT
            cells = [str(row["nodes"]), *shares, f"{100 * row['time_share']:.1f}", instructions]
            rows.append([Cell(text, number=False) for text in (name, row["op"], row["kind"])]
                        + [Cell(text) for text in cells])  # fmt: skip
    if not rows:
        return None
    headings = ["model", "operator", "runs in", "nodes", "MACs", "parameters", "x86 time", "instructions"]
    return Table(headings, rows)


def further_tables(evidence: Evidence) -> list[tuple[Table, str]]:
    """Return other stages' tables with captions that say what sort of figures they hold."""
    found = []
    for extra in evidence.extra:
        rows = [
            [
                Cell(text, number=column.decimals is not None)
                for text, column in zip(extra_tables.cells(extra, row), extra.columns, strict=True)
            ]
            for row in extra.rows
        ]
        caption = f"{extra.title} ({extra.kind}). {extra.note}".rstrip()
        found.append((Table([column.heading for column in extra.columns], rows), caption))
    return found


def _headline(evidence: Evidence) -> list[tuple[str, list[Layer], bool]]:
    models = (evidence.layers or {"models": {}})["models"]
    found = []
    for name, entry in models.items():
        if entry["model"] == evidence.headline:
            known = layers.from_json(entry["layers"])
            found.append((name, known, all(layer.instructions is not None for layer in known)))
    return found
