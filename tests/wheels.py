"""Audits a wheel, and installs it where it must work: what `make wheel-check` runs.

    python tests/wheels.py dist/rdkernels-*.whl [--torch SPEC] [--index URL] [--cuda-torch] [--audit-only]

The audits need rdkernels[wheel]. The installs make an empty environment with the CPU build of torch (--cuda-torch: and
one with the CUDA build, 5 GB) and build pure wheels where torch, compiler and nvcc are out of sight. One line a check.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAX_BYTES = 5_000_000
FLOOR = (2, 13, 0)  # of torch: TORCH_TARGET_VERSION in setup.py
CPU = ("base", "avx2", "avx512") if platform.machine() in ("x86_64", "AMD64") else ("base",)
NEEDED = re.compile(r"lib(torch_cpu|c10)\.so|lib(stdc\+\+|gcc_s|m|c|dl|rt|pthread)\.so\.\d+|ld-linux-[\w-]+\.so\.\d")
EXPORTED = re.compile(r"rdk_cuda_(archs|version)|__bss_start|_edata|_end|_Z\w*St\w+")  # the last: C++'s own, weak
BUILD_PATH = re.compile(rb"(?<![\w.+-])/(?:[\w.+-]+/)+[\w.+-]+\.(?:h|hpp|cuh|c|cc|cpp|cu|py|o)\b")
CALL = """
import json, time, torch
start = time.perf_counter()
import rdkernels as rd
took = time.perf_counter() - start
assert not torch.cuda.is_initialized()
from rdkernels import registry
info = rd.build_info()
torch.manual_seed(0)
layer = rd.nn.HashedLinear(96, 80, compression=8)
ran = {}
for device in ["cpu"] + ["cuda"] * info["native_cuda"].endswith(".so"):
    layer, x = layer.to(device), torch.randn(7, 96, device=device, requires_grad=True)
    got = []
    for backend in (None, "reference"):
        with rd.use(backend), registry.trace() as calls:
            y = layer(x)
            got.append((y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])))
        if backend is None:
            ran[device] = sorted({name for _, name in calls})
    torch.testing.assert_close(*got, rtol=1e-4, atol=1e-4)
print(json.dumps({"file": rd.__file__, "ran": ran, "ms": round(1000 * took, 1), **info}))
"""


def private_paths() -> list[str]:
    """Folders of this machine that a shipped file must not name."""
    spec = importlib.util.find_spec("torch")
    torch = [str(pathlib.Path(spec.origin).parent)] if spec and spec.origin else []
    return [str(ROOT), str(pathlib.Path.home()), sys.prefix, tempfile.gettempdir(), *torch]


def library_faults(path: pathlib.Path) -> list[str]:
    """What is wrong with one compiled library, read from its file alone."""
    from elftools.elf.elffile import ELFFile

    faults, data = [], path.read_bytes()
    with path.open("rb") as file:
        elf = ELFFile(file)
        tags = list(elf.get_section_by_name(".dynamic").iter_tags())
        symbols = [(s.name, s["st_shndx"] != "SHN_UNDEF") for s in elf.get_section_by_name(".dynsym").iter_symbols()]
    needed = [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
    faults += [f"needs {name}" for name in needed if not NEEDED.fullmatch(name)]
    faults += [f"carries a search path, {tag.entry.d_tag}" for tag in tags if "PATH" in str(tag.entry.d_tag)]
    faults += [f"exports {n}" for n, own in symbols if own and n and not EXPORTED.fullmatch(n)]
    faults += [f"uses Python's {n}" for n, own in symbols if not own and re.match(r"_?Py[A-Z_]", n)]
    named = [re.escape(folder.encode()) + rb"/\w[\w./+-]*" for folder in private_paths()]
    hits = {hit for pattern in (BUILD_PATH, *map(re.compile, named)) for hit in pattern.findall(data)}
    return faults + [f"names {hit.decode()}" for hit in sorted(hits)]


def target_faults(path: pathlib.Path) -> list[str]:
    """Whether the CUDA library holds the code for the GPUs that it claims."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        elf = ELFFile(file)
        found = elf.get_section_by_name(".dynsym").get_symbol_by_name("rdk_cuda_archs")
        if not found:
            return ["does not say what it was built for (rdk_cuda_archs)"]
        (offset,) = elf.address_offsets(found[0]["st_value"], found[0]["st_size"])
        claim = elf.stream.seek(offset) and elf.stream.read(found[0]["st_size"] - 1).decode()
    spec = importlib.util.find_spec("triton")
    bundled = pathlib.Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec and spec.origin else None
    tool = str(bundled) if bundled and bundled.exists() else shutil.which("cuobjdump")
    if not tool:
        return ["cuobjdump is not here (it comes with Triton, and with CUDA): the code for the GPUs was not looked at"]
    lists = [subprocess.run([tool, f"--list-{kind}", path], capture_output=True, text=True) for kind in ("elf", "ptx")]
    code, ptx = ({arch for arch in re.findall(r"\bsm_(\w+)\.", listed.stdout)} for listed in lists)
    archs = [arch.partition("+") for arch in claim.split(";")]
    want, want_ptx = {n for n, _, _ in archs}, {n for n, _, kind in archs if kind}
    return [f"holds code for {sorted(code)}, PTX {sorted(ptx)}; claims {claim}"] * ((code, ptx) != (want, want_ptx))


def wheel_faults(wheel: pathlib.Path, folder: pathlib.Path) -> tuple[list[str], list[pathlib.Path]]:
    """What is wrong with the wheel as a file, and its libraries, unpacked into `folder`."""
    size, faults = wheel.stat().st_size, []
    if size > MAX_BYTES:
        faults.append(f"{size} bytes, more than {MAX_BYTES}")
    if "-cp310-abi3-" not in wheel.name:
        faults.append(f"not tagged cp310-abi3: {wheel.name}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(folder)
    strangers = {name.split("/")[0] for name in names} - {
        "rdkernels",
        "-".join(wheel.name.split("-")[:2]) + ".dist-info",
    }
    faults += [f"carries {name}" for name in sorted(strangers)]
    have = {name for name in names if name.endswith((".so", ".a", ".o", ".cpp", ".cu", ".h", ".cuh", ".pyc"))}
    want = {f"rdkernels/_C_{kind}.abi3.so" for kind in (*CPU, "cuda")}
    faults += [f"lacks {name}" for name in sorted(want - have)] + [f"carries {name}" for name in sorted(have - want)]
    return faults, [folder / name for name in sorted(have & want)]


def tool(name: str, *arguments: str | pathlib.Path) -> tuple[bool, str]:
    """Run an auditing tool of this environment: whether it exited 0, and what it printed."""
    program = pathlib.Path(sys.executable).with_name(name)
    done = subprocess.run([program, *arguments], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    return done.returncode == 0, done.stdout + done.stderr


def abi_faults(libraries: list[pathlib.Path]) -> list[str]:
    """Python's stable ABI (abi3audit) and torch's (torch-abi-audit), each with the oldest torch that may load it."""
    faults = []
    for library in libraries:
        passed, text = tool("abi3audit", "--strict", library)
        if not passed:
            faults.append(f"abi3audit: {' '.join(text.split())}")
        passed, text = tool("torch-abi-audit", "--json", "--check", "torch", library.resolve())
        try:
            report = json.loads(text[text.index("{") : text.rindex("}") + 1])
        except ValueError:
            faults.append(f"torch-abi-audit: {text}")
            continue
        for found in (*report["extensions"], *report["bundled_libs"]):
            torch = found["torch"]
            floor = tuple(int(part) for part in (torch["min_torch_version"] or "0").split("."))
            if torch["uses_torch"] and (not passed or not torch["stable"] or floor > FLOOR):
                faults.append(f"{library.name}: unstable in torch: {torch['unstable_symbols']}; torch >= {floor}")
    return faults


def audit(wheel: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
    """(check, what it found wrong) for a wheel as a file."""
    with tempfile.TemporaryDirectory() as name:
        faults, libraries = wheel_faults(wheel, pathlib.Path(name))
        yield f"contents: {wheel.name}, {wheel.stat().st_size:,} of at most {MAX_BYTES:,} bytes", faults
        for library in libraries:
            yield f"{library.name}, {library.stat().st_size:,} bytes", library_faults(library)
            if "cuda" in library.name:
                yield f"{library.name}: code for the GPUs it claims", target_faults(library)
        yield f"abi3 and torch >= {'.'.join(map(str, FLOOR))} stable ABI", abi_faults(libraries)
    passed, text = tool("auditwheel", "show", wheel)
    tag = re.search(r'platform tag to\s+"(\w+)"', text)
    yield f"auditwheel: {tag[1] if tag else 'no manylinux tag'}", [] if passed and tag else [" ".join(text.split())]


def environment(folder: pathlib.Path, *packages: str, index: str = "") -> tuple[str, pathlib.Path]:
    """An empty environment with `packages`: what it is in words, and its Python."""
    start = time.perf_counter()
    subprocess.check_call([sys.executable, "-m", "venv", folder])
    python, extra = folder / "bin" / "python", ["--extra-index-url", index] if index else []
    subprocess.check_call([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *extra, *packages])
    return f"{', '.join(packages)} installed in {time.perf_counter() - start:.0f} s", python


def call(python: pathlib.Path, folder: pathlib.Path, native: bool) -> tuple[str, list[str]]:
    """Import, and one forward and backward call against the reference: what ran in words, and what is wrong."""
    done = subprocess.run([python, "-W", "ignore", "-c", CALL], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        return "import and one call", [done.stderr]
    got = json.loads(done.stdout.splitlines()[-1])
    cuda = "_C_cuda.abi3.so" if native else "not built"
    checks = {
        "the wheel's own": got["file"].startswith(str(python.parents[1])),
        "native_cpu": got["native_cpu"].endswith(".so") == native,
        "native_cuda": got["native_cuda"].startswith(cuda) and not got["native_cuda"].startswith("not loaded"),
        "ran": all(names == ["native" if native else "reference"] for names in got["ran"].values()),
    }
    said = f"torch {got['torch']}, import {got['ms']} ms: {got['ran']}; {got['native_cpu']}; {got['native_cuda']}"
    return said, [f"{name}: {got}" for name, good in checks.items() if not good]


def pure(folder: pathlib.Path, name: str, isolated: bool) -> tuple[pathlib.Path | None, list[str]]:
    """Build a wheel from a copy of the sources where compilers (and torch, if isolated) are out of sight."""
    source, out, empty = folder / f"{name}-source", folder / name, folder / "nothing"
    empty.mkdir(exist_ok=True)
    source.mkdir()
    for part in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    for part in ("rdkernels", "csrc"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    hidden = {k: v for k, v in os.environ.items() if not k.startswith("RDK_") and k not in ("CUDA_HOME", "CXX")}
    if not isolated:
        hidden["PATH"] = str(empty)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", out, source]
    command += [] if isolated else ["--no-build-isolation"]
    done = subprocess.run(command, capture_output=True, text=True, env=hidden)
    wheels = sorted(out.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        return None, [done.stdout + done.stderr]
    names = zipfile.ZipFile(wheels[0]).namelist()
    faults = [f"carries {n}" for n in names if n.endswith(".so")]
    faults += [] if wheels[0].name.endswith("-py3-none-any.whl") else [f"is {wheels[0].name}"]
    said = "rdkernels: pure-Python build" in done.stdout + done.stderr
    return wheels[0], faults + ([] if said else ["does not say that it is pure Python"])


def installs(wheel: pathlib.Path, torch: str, index: str, cuda: str) -> Iterator[tuple[str, list[str]]]:
    """(check, what it found wrong) for the wheel in empty environments, and for wheels built without the tools."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        said, python = environment(folder / "cpu", torch, str(wheel), index=index)
        yield said, []
        yield call(python, folder, native=True)
        for name, isolated in (("no torch to the build", True), ("no compiler, no nvcc", False)):
            made, faults = pure(folder, name, isolated)
            yield f"{name}: pure wheel", faults
            if made:
                subprocess.check_call([python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", made])
                yield call(python, folder, native=False)
        if cuda:
            said, python = environment(folder / "cuda", cuda, str(wheel))
            yield said, []
            yield call(python, folder, native=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=pathlib.Path)
    parser.add_argument("--audit-only", action="store_true", help="no environments, no pure builds")
    parser.add_argument("--torch", default="torch==2.13.0", help="of the first environment (default: %(default)s)")
    parser.add_argument("--index", default="", help="one more package index, as for torch's CPU build")
    parser.add_argument("--cuda-torch", nargs="?", const="torch==2.14.1", default="", help="a CUDA build too: 5 GB")
    args = parser.parse_args()
    if not args.wheel.is_file():
        parser.error(f"{args.wheel}: no such wheel; `make wheel` builds it")
    failed = 0
    checks = [audit(args.wheel)] + (
        [] if args.audit_only else [installs(args.wheel.resolve(), args.torch, args.index, args.cuda_torch)]
    )
    for name, faults in (check for part in checks for check in part):
        print("FAIL" if faults else "ok  ", name, *(f"\n       {fault}" for fault in faults), flush=True)
        failed += bool(faults)
    print(f"\n{failed} checks of the wheel failed" if failed else "\nthe wheel is good")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
