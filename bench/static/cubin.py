"""Reads a cubin: the resources of its kernels, their instructions, loops, and what occupies which pipe."""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.util
import math
import pathlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from . import flow

FOUND = importlib.util.find_spec("triton")
TOOLS = pathlib.Path(FOUND.submodule_search_locations[0] if FOUND else "") / "backends" / "nvidia" / "bin"
ROOM = 1024  # bytes of shared memory that the system takes of each block from sm_90 on, inside what the tools report

# The pipe of an opcode: the first that matches.
PIPES = {
    "tensor": r"HMMA|HGMMA|IMMA|IGMMA|QMMA|QGMMA|DMMA|BMMA|UTC\w*MMA",
    "memory": r"LDS|STS|LDSM|STSM|LDG|STG|LDGSTS|LDL|STL|LD|ST|ATOM[GS]?|REDG?|REDAS|REDUX|SHFL|LDTM|STTM",
    "imad": r"IMAD|IDP\w*",
    "fma": r"FFMA2?|FMUL2?|FADD2?|HFMA2|HADD2|HMUL2",
    "special": r"MUFU|I2FP?|F2I|F2F|I2I|FRND|POPC|FLO|BREV",
    "uniform": r"U[A-Z]\w*|R2UR|S2UR|VOTEU|LDCU|ELECT",
    "control": r"BRA|BRXU?|BSYNC|BSSY|BREAK|BAR|WARPSYNC|EXIT|NOP|DEPBAR|LDGDEPBAR|ARRIVES|MEMBAR|FENCE|ERRBAR|CCTL\w*"
    r"|WARPGROUP\w*|CALL|RET|SYNCS|YIELD|NANOSLEEP|ACQBULK|LDC|S2R|PREEXIT|BPT|ENDCOLLECTIVE",
    "alu": r"IADD3?|LOP3?|SHF|LEA|ISETP|SEL|PRMT|FSEL|FSETP|FMNMX3?|IMNMX|VIADD|VIMNMX3?|PLOP3|IABS|BMSK|SGXT|F2FP"
    r"|HSETP2|HMNMX2|P2R|R2P|MOV|CS2R|VOTE|VIADDMNMX|FCHK|MATCH|MOVM|SHL|SHR",
}
_PIPES = [(name, re.compile(rf"(?:{pattern})$")) for name, pattern in PIPES.items()]
_SHAPES = {"16816": (16, 8, 16), "1688": (16, 8, 8), "16832": (16, 8, 32), "884": (8, 8, 4), "16864": (16, 8, 64)}


@dataclass(frozen=True)
class Instruction:
    op: str
    operands: str
    predicated: bool
    stall: int

    @functools.cached_property
    def pipe(self) -> str:
        root = self.op.split(".")[0]
        return next((name for name, pattern in _PIPES if pattern.match(root)), "unknown")

    @property
    def width(self) -> int:
        """Bytes that each lane moves."""
        if self.op.startswith(("LDSM", "STSM")):
            return 16 if ".4" in self.op else 8 if ".2" in self.op else 4
        sizes = ((".128", 16), (".64", 8), (".U16", 2), (".S16", 2), (".U8", 1), (".S8", 1))
        return next((size for text, size in sizes if text in self.op), 4)

    @property
    def flops(self) -> int:
        """Of a tensor-core instruction: per warp, of HGMMA and its kin per four warps; 0 where it names no shape."""
        if self.pipe != "tensor":
            return 0
        if found := re.search(r"\.(\d+)x(\d+)x(\d+)", self.op):
            return 2 * math.prod(map(int, found.groups()))
        found = re.search(r"\.(16816|1688|16832|16864|884)", self.op)
        return 2 * math.prod(_SHAPES[found[1]]) if found else 0

    @property
    def cost(self) -> int:
        """Operations of bf16 that take as long: tf32 runs at half the rate."""
        return self.flops * (2 if ".TF32" in self.op else 1)

    @property
    def warps(self) -> int:
        """Warps that issue it together."""
        return 4 if re.match(r"[HIQ]GMMA", self.op) else 1

    @property
    def global_(self) -> bool:
        """Whether it loads or stores global memory (the bytes cross from or to the L2)."""
        return self.op.split(".")[0] in ("LDG", "STG", "LDGSTS", "LD", "ST")

    @property
    def atomic(self) -> bool:
        """An atomic of global memory; one of shared memory is `ATOMS`."""
        return self.op.split(".")[0] in ("ATOM", "ATOMG", "RED", "REDG")


@dataclass(frozen=True)
class Kernel:
    name: str  # demangled, without its arguments
    symbol: str
    registers: int
    stack: int
    local: int
    shared: int  # static bytes, the kernel's own
    threads: int  # of __launch_bounds__ or .reqntid, 0 where the kernel names none
    code: tuple[Instruction, ...]
    loops: tuple[tuple[int, ...], ...]  # the instructions of each

    @functools.cached_property
    def hot(self) -> tuple[int, ...]:
        """The innermost loop with the most tensor-core instructions, else the most fp32, else the longest."""

        def count(pipe: str, loop: tuple[int, ...]) -> int:
            return sum(self.code[i].pipe == pipe for i in loop)

        pipe = next((pipe for pipe in ("tensor", "fma") if any(count(pipe, loop) for loop in self.loops)), None)
        worth = {loop: count(pipe, loop) if pipe else len(loop) for loop in self.loops}
        outer = {a for a in worth for b in worth if set(b) < set(a) and 2 * worth[b] > worth[a]}
        return max(worth.keys() - outer, key=lambda loop: (worth[loop], len(loop)), default=())

    @functools.cached_property
    def body(self) -> tuple[Instruction, ...]:
        """The hot loop; the whole kernel where there is none."""
        return tuple(self.code[i] for i in self.hot) or self.code

    @property
    def nested(self) -> int:
        """Loops inside the hot one: their bodies are counted once, however often they run."""
        return sum(set(loop) < set(self.hot) for loop in self.loops) if self.hot else len(self.loops)

    @property
    def spills(self) -> int:
        return sum(i.op.startswith(("LDL", "STL")) for i in self.code)

    @property
    def atomics(self) -> int:
        return sum(i.atomic for i in self.code)


def mix(code: tuple[Instruction, ...]) -> dict[str, int]:
    """Instructions per pipe."""
    return dict(sorted(collections.Counter(i.pipe for i in code).items()))


def widths(code: tuple[Instruction, ...]) -> dict[str, int]:
    """How many loads and stores of each kind and width: {"LDG.128": 4, "LDS.32": 2, ...}, bits a lane."""
    found = collections.Counter(
        f"{i.op.split('.')[0]}.{8 * i.width}" for i in code if i.pipe == "memory" and not i.op.startswith("SHFL")
    )
    return dict(sorted(found.items()))


def kinds(code: tuple[Instruction, ...]) -> dict[str, int]:
    """Tensor-core instructions by kind and shape."""
    return dict(sorted(collections.Counter(i.op for i in code if i.pipe == "tensor").items()))


def flops(code: tuple[Instruction, ...], warps: int, unnamed: int = 0) -> float:
    """Tensor-core operations of a block of `warps`; `unnamed`: of an instruction that does not name its shape."""
    return sum((i.flops * warps / i.warps) or unnamed for i in code if i.pipe == "tensor")


def read(path: str | pathlib.Path) -> list[Kernel]:
    """The kernels of a cubin."""
    usage, text = tool("cuobjdump", "-res-usage", str(path)), tool("nvdisasm", "-c", "-hex", str(path))
    threads = _threads(tool("cuobjdump", "-elf", str(path)))
    numbers = r"Function (\S+?):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    resources = {m[1]: tuple(map(int, m.groups()[1:])) for m in re.finditer(numbers, usage)}
    arch = int(re.search(r"(?:\.target\s+sm_|EF_CUDA_SM)(\d+)", text)[1])
    found = []
    for symbol, code, loops in _functions(text):
        if symbol in resources:
            registers, stack, shared, local = resources[symbol]
            own = max(0, shared - ROOM) if arch >= 90 else shared
            name = demangle(symbol)
            found.append(Kernel(name, symbol, registers, stack, local, own, threads.get(symbol, 0), code, loops))
    return found


def demangle(symbol: str) -> str:
    """`rdk::gpu::many_rows<float, 4>` of a mangled name; without binutils the mangled name."""
    try:
        text = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return symbol
    text = re.sub(r"^void ", "", text)
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign == "<") - (sign == ">")
        if sign == "(" and depth == 0 and not text.startswith("(anonymous", at):
            return text[:at]
    return text


def _functions(text: str) -> Iterator[tuple[str, tuple[Instruction, ...], tuple[tuple[int, ...], ...]]]:
    """Symbol, instructions and loops of each function of a disassembly."""
    for part in re.split(r"^//-+ \.text\.", text, flags=re.M)[1:]:
        code: list[Instruction] = []
        labels: dict[str, int] = {}
        for line in part.splitlines():
            if found := re.match(r"(\.L_x_\d+):", line):
                labels[found[1]] = len(code)
            elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line):
                code.append(Instruction(found[2], found[3].strip(), bool(found[1]), 1))
            elif code and (found := re.match(r"\s+/\* 0x([0-9a-f]{16}) \*/", line)):
                stall = max(1, int(found[1], 16) >> 41 & 0xF)  # the control word's cycles before the next instruction
                code[-1] = dataclasses.replace(code[-1], stall=stall)
        yield re.match(r"\S+", part)[0], tuple(code), tuple(flow.loops(code, labels))


def _threads(text: str) -> dict[str, int]:
    """Threads of a block, from the attributes of each kernel's .nv.info section."""
    found = {}
    for part in re.split(r"^\.nv\.info\.", text, flags=re.M)[1:]:
        value = re.search(r"EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:\s+\w+\s+Value:\s+((?:0x[0-9a-f]+\s+){3})", part)
        if value:
            found[part.split()[0]] = math.prod(int(n, 16) for n in value[1].split())
    return found


def tool(name: str, *arguments: str) -> str:
    """Output of one of the CUDA tools that the triton wheel brings."""
    done = subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
