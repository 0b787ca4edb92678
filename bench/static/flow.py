"""The loops of a disassembled function, from its control flow."""

from __future__ import annotations

import itertools
import re
from typing import Any

LABEL = re.compile(r"\.L_x_\d+")
LEAVES = ("EXIT", "RET", "BRX", "BRXU", "KILL")


def loops(code: list[Any], labels: dict[str, int]) -> list[tuple[int, ...]]:
    """Instructions of each natural loop, from its head to its last branch back.

    What a loop jumps out to and returns from, behind that branch, is left out: the compiler puts there what seldom
    runs, such as a wait that did not succeed at once.
    """
    blocks = _blocks(code, labels)
    after = {start: _after(code, labels, start, end) for start, end in blocks.items()}
    after = {start: [to for to in targets if to in blocks] for start, targets in after.items()}
    over = _dominators(after)
    found: dict[int, set[int]] = {}
    latches: dict[int, int] = {}
    for start, targets in after.items():
        for head in targets:
            if start in over and head in over[start]:
                found.setdefault(head, {head}).update(_reaching(after, start, head))
                latches[head] = max(latches.get(head, 0), start)
    bodies = []
    for head, body in sorted(found.items()):
        inside = sorted(start for start in body if head <= start <= latches[head])
        bodies.append(tuple(i for start in inside for i in range(start, blocks[start])))
    return [body for body in bodies if len(body) >= 4]  # a kernel ends in a branch to itself


def _blocks(code: list[Any], labels: dict[str, int]) -> dict[int, int]:
    """Start and end of the stretches without a branch in or out."""
    jumps = ("BRA", "BSYNC", *LEAVES)
    cuts = {0, len(code), *labels.values()} | {n + 1 for n, i in enumerate(code) if i.op.split(".")[0] in jumps}
    edges = sorted(cut for cut in cuts if cut <= len(code))
    return dict(itertools.pairwise(edges))


def _after(code: list[Any], labels: dict[str, int], start: int, end: int) -> list[int]:
    """Where control goes from the end of a block."""
    last = code[end - 1]
    name, label = last.op.split(".")[0], LABEL.search(last.operands)
    if name == "BRA" and label:
        always = not last.predicated and LABEL.sub("", last.operands).strip("`() ") == ""
        return [labels[label[0]]] if always else [labels[label[0]], end]
    return [end] if last.predicated or name not in LEAVES else []


def _dominators(after: dict[int, list[int]]) -> dict[int, set[int]]:
    """For each block that the entry reaches, the blocks on every way there."""
    before: dict[int, list[int]] = {}
    order, todo = [], [0]
    while todo:
        start = todo.pop()
        if start not in order:
            order.append(start)
            todo += after[start]
    for start in order:
        for to in after[start]:
            before.setdefault(to, []).append(start)
    order.sort()
    over = {start: set(order) for start in order} | {0: {0}}
    changed = True
    while changed:
        changed = False
        for start in order[1:]:
            new = {start} | set.intersection(*(over[b] for b in before[start]))
            changed |= new != over[start]
            over[start] = new
    return over


def _reaching(after: dict[int, list[int]], latch: int, head: int) -> set[int]:
    """The blocks from which `latch` is reached without passing `head`."""
    before: dict[int, list[int]] = {}
    for start, targets in after.items():
        for to in targets:
            before.setdefault(to, []).append(start)
    found, todo = set(), [latch]
    while todo:
        start = todo.pop()
        if start != head and start not in found:
            found.add(start)
            todo += before.get(start, [])
    return found
