"""Measured figures for the pages: `python docs/measured.py` turns bench/results/*.json into docs/measured/.

For every result file, its tables (ratio, quartiles, goal, share of the limit) and one plot; `<op>.md` holds them all.
A result comes from `python -m rdkernels bench --json bench/results/<machine>.json`. Nothing is measured here.
"""

import json
import pathlib

from rdkernels.benchmark import report

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE.parent / "bench" / "results"
OUT = HERE / "measured"
OP = "hashed_linear"


def table(result: dict, panel: str) -> str:
    """One panel as a Markdown table."""
    columns = report.columns(result)
    rule = ["---" if name in ("layer", "backend") else "---:" for name in columns]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(rule)} |"]
    for row in (r for r in result["results"] if r["panel"] == panel):
        cells = {name: text(row) for name, text in columns.items()}
        cells["ratio"] = f"**{cells['ratio']}**"
        lines.append(f"| {' | '.join(cells.values())} |")
    return "\n".join(lines)


def page(result: dict, name: str) -> str:
    """One machine: its stamp, its limits, the plot and the tables."""
    checks = [f"{name}: {c['verdict']}, {c['detail']}" for name, c in result.get("checks", {}).items()]
    limits = "\n".join(f"* {line}" for line in [*report.limit_lines(result), *checks])
    panels = dict.fromkeys(r["panel"] for r in result["results"])
    tables = "\n\n".join(f"**{panel}**\n\n{table(result, panel)}" for panel in panels)
    plot = f"```{{image}} /measured/{name}.png\n:alt: torch time over ours, per number of rows\n```"
    return f"### {report.machine_line(result)}\n\n{limits}\n\n{plot}\n\n{tables}\n"


def main() -> None:
    OUT.mkdir(exist_ok=True)
    pages = []
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if result.get("fake"):
            raise SystemExit(f"{path.name} holds {report.FAKE}: it is no result")
        pages.append(page(result, path.stem))
        report.plot(result, OUT / f"{path.stem}.png")
    empty = "No result is committed yet: `python -m rdkernels bench --json bench/results/<machine>.json` makes one.\n"
    (OUT / f"{OP}.md").write_text("\n".join(pages) or empty)


if __name__ == "__main__":
    main()
