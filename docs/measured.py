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
HEAD = (
    "| layer | rows | threads | ours ms | torch ms | ratio | quartiles | goal | GFLOP/s | of limit | backend |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)


def table(result: dict, panel: str) -> str:
    """One panel as a Markdown table."""
    lines = [HEAD]
    for r in (r for r in result["results"] if r["panel"] == panel):
        goal = "" if r["goal"] is None else f"{r['goal']:g}"
        cells = [r["line"], r["at"], r["threads"], f"{1e3 * r['ours']:.3g}", f"{1e3 * r['rival']:.3g}"]
        cells += [f"**{r['ratio']:.2f}**", f"{r['low']:.2f}-{r['high']:.2f}", goal, f"{r['gflops']:.1f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{100 * r['share']:.0f} %", r["backend"]])) + " |")
    return "\n".join(lines)


def page(result: dict, name: str) -> str:
    """One machine: its stamp, its limits, the plot and the tables."""
    limits = "\n".join(f"* {line}" for line in report.limit_lines(result))
    panels = dict.fromkeys(r["panel"] for r in result["results"])
    tables = "\n\n".join(f"**{panel}**\n\n{table(result, panel)}" for panel in panels)
    plot = f"```{{image}} /measured/{name}.png\n:alt: torch time over ours, per number of rows\n```"
    return f"### {report.machine_line(result)}\n\n{limits}\n\n{plot}\n\n{tables}\n"


def main() -> None:
    OUT.mkdir(exist_ok=True)
    pages = []
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        pages.append(page(result, path.stem))
        report.plot(result, OUT / f"{path.stem}.png")
    empty = "No result is committed yet: `python -m rdkernels bench --json bench/results/<machine>.json` makes one.\n"
    (OUT / f"{OP}.md").write_text("\n".join(pages) or empty)


if __name__ == "__main__":
    main()
