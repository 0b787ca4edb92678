"""Static bounds as Markdown tables and a plot."""

from __future__ import annotations

import pathlib
from typing import Any

from . import bounds

OUT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "measured"
JSON = OUT / "static.json"
LABEL = "static estimate, not run on a GPU"
GOALS = {"tile": 0.9, "chunk": 0.75}  # of the dense twin's bound: H100, bf16, 1024 rows and more


def _pick(result: dict, **what: Any) -> dict | None:
    return next((r for r in result["bounds"] if all(r[key] == value for key, value in what.items())), None)


def _ratio(result: dict, row: dict, key: str) -> float | None:
    """To the dense twin of the same code on the same GPU, both at the same end of the bracket."""
    dense = _pick(result, code=row["code"], problem=row["problem"], gpu=row["gpu"], line="dense")
    return row[key] / dense[key] if dense and dense[key] and row is not dense else None


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def many(result: dict, gpu: bounds.Gpu) -> str:
    """Kernels that multiplications bound: TFLOP/s, and the ratio to the dense twin."""
    peak = gpu.tensor * gpu.sms * gpu.ghz / 1e3
    lines = [
        "| pass | weights | code | TFLOP/s | of peak | bound by | ratio to dense, low | high "
        "| mma.sync at peak rate: TFLOP/s | ratio, high | registers | blocks per SM |",
        "| --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in result["bounds"]:
        if r["gpu"] != gpu.name or "few" in r["problem"]:
            continue
        sync = (r["full_low"], r["full_high"]) != (r["low"], r["high"])
        cells = [r["problem"].split(",")[0], r["line"], r["code"], f"{r['low']:.0f}-{r['high']:.0f}"]
        cells += [f"{100 * r['low'] / peak:.0f}-{100 * r['high'] / peak:.0f} %", r["by"]]
        cells += [_text(_ratio(result, r, "low")), _text(_ratio(result, r, "high"))]
        cells += [f"{r['full_low']:.0f}-{r['full_high']:.0f}" if sync else ""]
        cells += [_text(_ratio(result, r, "full_high")) if sync else "", str(r["registers"]), str(r["blocks"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def weights(row: dict, end: str) -> float:
    """Virtual weights per second at one end of the bracket."""
    return row[end] * 1e12 / (2 * row["rows"])


def few(result: dict, gpu: bounds.Gpu) -> str:
    """Kernels that would be bound by reading weights: against a dense layer that reads each once from DRAM."""
    lines = [
        "| pass | weights | code | 10^9 weights/s | dense reading DRAM | ratio | bound by | instructions per weight |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | ---: |",
    ]
    dense = gpu.dram / 2
    for r in result["bounds"]:
        if r["gpu"] != gpu.name or "few" not in r["problem"]:
            continue
        low, high = weights(r, "low"), weights(r, "high")
        cells = [r["problem"].split(",")[0], r["line"], r["code"], f"{low / 1e9:.0f}-{high / 1e9:.0f}"]
        cells += [f"{dense / 1e9:.0f}", f"{low / dense:.2f}-{high / dense:.2f}", r["by"], f"{r['instructions']:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def goals(result: dict) -> str:
    """The goals on H100, each beside what the bounds give."""
    lines = []
    for problem in ("fwd, 1024 rows", "bwd_x, 1024 rows"):
        for line, goal in GOALS.items():
            row = _pick(result, code="CUDA", problem=problem, line=line, gpu="H100")
            ratios = {key: _ratio(result, row, key) for key in ("low", "high", "full_low", "full_high")}
            met = "met" if min(ratios["low"], ratios["high"]) >= goal else "missed"
            lines.append(
                f"* H100, bf16, {problem}, {line}: {ratios['low']:.3f} (low end) and {ratios['high']:.3f} (high end) "
                f"of the dense twin's bound, goal {goal}: {met}; with mma.sync at the peak rate "
                f"{ratios['full_low']:.3f} and {ratios['full_high']:.3f}"
            )
    return "\n".join(lines)


def beside(result: dict) -> str:
    """Which code has the higher bound at both ends of the bracket; "either" where the ends disagree."""
    lines = ["| problem | weights | " + " | ".join(gpu.name for gpu in bounds.GPUS) + " |"]
    lines.append("| --- | --- |" + " --- |" * len(bounds.GPUS))
    for problem, line in dict.fromkeys((r["problem"], r["line"]) for r in result["bounds"] if r["line"] != "dense"):
        cells = []
        for gpu in bounds.GPUS:
            rows = [_pick(result, code=code, problem=problem, line=line, gpu=gpu.name) for code in ("CUDA", "Triton")]
            scale = [1 / r["rows"] if "few" in problem else 1 for r in rows]
            low, high = ([r[end] * s for r, s in zip(rows, scale, strict=True)] for end in ("low", "high"))
            ahead = {low[0] > low[1], high[0] > high[1]}
            cells.append("either" if len(ahead) > 1 else "CUDA" if ahead == {True} else "Triton")
        lines.append(f"| {problem} | {line} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(result: dict) -> str:
    """All tables as one Markdown text."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    parts = [
        f"Every figure here is a **{LABEL}** ({versions}).",
        f"```{{image}} /measured/static.png\n:alt: {LABEL}\n```",
    ]
    for gpu in bounds.GPUS:
        parts += [f"### {gpu.name}, many rows ({LABEL})", many(result, gpu)]
        parts += [f"### {gpu.name}, few rows ({LABEL})", few(result, gpu)]
    parts += [f"### Goals ({LABEL})", goals(result), f"### Whose bound is higher ({LABEL})", beside(result)]
    return "\n\n".join(parts) + "\n"


def plot(result: dict, path: pathlib.Path) -> None:
    """Brackets of the kernels that multiplications bound, a panel per GPU."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    keys = list(dict.fromkeys((r["problem"], r["line"]) for r in result["bounds"] if "few" not in r["problem"]))
    figure, axes = plt.subplots(len(bounds.GPUS), 1, figsize=(11, 9), layout="constrained", sharex=True)
    for axis, gpu in zip(axes, bounds.GPUS, strict=True):
        for number, code in enumerate(("CUDA", "Triton")):
            rows = [_pick(result, code=code, problem=problem, line=line, gpu=gpu.name) for problem, line in keys]
            at = [place + 0.4 * number - 0.2 for place in range(len(keys))]
            tall = [r["high"] - r["low"] for r in rows]
            axis.bar(at, tall, 0.36, [r["low"] for r in rows], color=f"C{number}", label=code)
            axis.hlines(
                [r["full_high"] for r in rows], [a - 0.18 for a in at], [a + 0.18 for a in at], f"C{number}", ":"
            )
        peak = gpu.tensor * gpu.sms * gpu.ghz / 1e3
        axis.axhline(peak, color="black", linewidth=1)
        axis.set(title=f"{gpu.name}: {LABEL}", ylabel="TFLOP/s, bf16", ylim=(0, 1.08 * peak))
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=8)
    axes[-1].set_xticks(range(len(keys)), [f"{p.split(',')[0]}\n{line}" for p, line in keys])
    note = (
        "bars: low to high end of the bracket; dotted: high end with mma.sync at the peak rate; line: tensor-core peak"
    )
    figure.suptitle(f"{LABEL}\n{note}", fontsize=9)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def render(result: dict) -> None:
    (OUT / "static.md").write_text(page(result))
    plot(result, OUT / "static.png")
