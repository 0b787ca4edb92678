"""Measured figures for the pages: `python docs/measured.py` turns bench/results/*.json into docs/measured/.

For every operation `<op>.md`: of each result file that holds it the summaries, the tables (figure, quartiles, goal,
share of the limit) and one plot. A result comes from `python -m rdkernels bench --json bench/results/<machine>.json`.
For every paper `papers/<paper>.md` and its plot, as its experiment left them in bench/papers/results; all their claims
in `papers/claims.md`.
Nothing is measured here.
"""

import json
import pathlib
import shutil
from collections.abc import Sequence

from rdkernels import registry
from rdkernels.benchmark import plots, report

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE.parent / "bench" / "results"
PAPERS = HERE.parent / "bench" / "papers" / "results"
OUT = HERE / "measured"
NAMES = ("hashednets", "denil", "denton", "ba_caruana", "deep_compression")
FIRST = "hashed_linear"  # whose the rows of older results are, which do not name their operation


def markdown(columns: report.Columns, rows: Sequence[dict]) -> str:
    """Rows as a Markdown table, their figures in bold."""
    rule = ["---" if name in report.TEXT_COLUMNS else "---:" for name in columns]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(rule)} |"]
    for row in rows:
        bold = {"mean"} if "mean" in row else {"ratio"} if row.get("captured") is None else {"captured"}
        cells = {name: text(row) for name, text in columns.items()}
        cells |= {name: f"**{cells[name]}**" for name in bold}
        lines.append(f"| {' | '.join(cells.values())} |")
    return "\n".join(lines)


def page(result: dict, image: str) -> str:
    """One machine: its stamp, its limits, the plot, the summaries and the tables."""
    checks = [f"{name}: {c['verdict']}, {c['detail']}" for name, c in result.get("checks", {}).items()]
    limits = "\n".join(f"* {line}" for line in [*report.limit_lines(result), *checks])
    parts = [f"### {report.machine_line(result)}", limits]
    parts.append(f"```{{image}} /measured/{image}.png\n:alt: torch time over ours\n```")
    if result.get("summaries"):
        parts += ["**Geometric means**", markdown(report.SUMMARY_COLUMNS, result["summaries"])]
    for panel in dict.fromkeys(r["panel"] for r in result["results"]):
        rows = [r for r in result["results"] if r["panel"] == panel]
        parts += [f"**{panel}**", markdown(report.columns(result, rows), rows)]
    return "\n\n".join(parts) + "\n"


def split(result: dict) -> dict[str, dict]:
    """The result of each operation."""
    rows = [{**row, "op": row.get("op", FIRST)} for row in result["results"]]
    return {
        op: {
            **result,
            "results": [row for row in rows if row["op"] == op],
            "summaries": [s for s in result.get("summaries", ()) if s["op"] == op],
        }
        for op in dict.fromkeys(row["op"] for row in rows)
    }


def paper(name: str, out: pathlib.Path) -> None:
    """One paper's section and plot, into the folder `out`."""
    result, plot = PAPERS / f"{name}.md", PAPERS / f"{name}.png"
    text = f"No result is committed yet: `python -m bench.papers.{name}` makes one.\n"
    if result.exists():
        shutil.copyfile(plot, out / plot.name)
        text = f"{result.read_text()}\n```{{image}} /measured/papers/{plot.name}\n:alt: plot of the table above\n```\n"
    (out / result.name).write_text(text)


def claims() -> str:
    """What each experiment claims, and whether it holds."""
    rows = []
    for name in NAMES:
        if (path := PAPERS / f"{name}.json").exists():
            for claim in json.loads(path.read_text())["claims"]:
                rows.append(f"| {name} | {claim['claim']} | {'holds' if claim['holds'] else '**does not hold**'} |")
    return "\n".join(["| script | claim | |", "| --- | --- | --- |", *rows]) + "\n"


def main() -> None:
    (OUT / "papers").mkdir(parents=True, exist_ok=True)
    pages: dict[str, list[str]] = {op: [] for op in registry.operations()}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if result.get("fake"):
            raise SystemExit(f"{path.name} holds {report.FAKE}: it is no result")
        parts = split(result)
        for op, part in parts.items():
            image = path.stem if len(parts) == 1 else f"{path.stem}-{op}"
            pages[op].append(page(part, image))
            plots.plot(part, OUT / f"{image}.png")
    for op, texts in pages.items():
        command = f"python -m rdkernels bench --op {op} --json bench/results/<machine>.json"
        empty = f"No result is committed yet: `{command}` makes one.\n"
        (OUT / f"{op}.md").write_text("\n".join(texts) or empty)
    for name in NAMES:
        paper(name, OUT / "papers")
    (OUT / "papers" / "claims.md").write_text(claims())


if __name__ == "__main__":
    main()
