"""What the build decides and says, that a CUDA library never breaks the import, and that the wheel's auditors see."""

import os
import pathlib
import shutil
import subprocess
import sys
import types
import zipfile

import pytest
import torch
import wheels

from rdkernels import native, registry

ROOT = pathlib.Path(__file__).resolve().parents[1]
TORCH = pathlib.Path(torch.__file__).parent
TOOL = """#!/bin/sh
# Stands for a compiler: notes its arguments, makes its output.
echo "${0##*/} $*" >> "$RDK_TEST_LOG"
while [ $# -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done
exit 0
"""


def executable(path: pathlib.Path, text: str) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def tree(tmp_path):
    """A copy of what setup.py reads, with two CUDA sources; `setup(arguments, **environment)` runs it without PATH."""
    for part in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc", ignore=shutil.ignore_patterns("cuda*.cu"))
    (tmp_path / "rdkernels").mkdir()
    for name in ("cuda.cu", "cuda_more.cu"):
        (tmp_path / "csrc" / "hashed_linear" / name).touch()

    def setup(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        env = {"PATH": str(tmp_path / "bin"), "RDK_TEST_LOG": str(tmp_path / "log"), **environment}
        command = [sys.executable, "setup.py", *(arguments or ["--name"])]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)

    setup.root = tmp_path
    return setup


@pytest.fixture
def cxx(tree):
    executable(tree.root / "bin" / "c++", "#!/bin/bash\n" + TOOL.partition("\n")[2])


@pytest.fixture
def toolkit(tree):
    """A stand-in for the CUDA toolkit."""
    executable(tree.root / "cuda" / "bin" / "nvcc", TOOL)
    for name in ("include/cuda.h", "lib64/libcudart_static.a"):
        path = tree.root / "cuda" / name
        path.parent.mkdir()
        path.touch()
    return str(tree.root / "cuda")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RDK_BUILD": "fast"}, "RDK_BUILD must be auto, pure, cpu or cuda, got 'fast'"),
        ({"RDK_BUILD": "cpu"}, "RDK_BUILD=cpu needs a C++ compiler (c++)"),
        ({"RDK_BUILD": "cpu", "CXX": "no-c++"}, "RDK_BUILD=cpu needs a C++ compiler (no-c++)"),
        ({"RDK_BUILD": "cuda", "CUDA_HOME": "/none"}, "needs a C++ compiler (c++), nvcc (CUDA_HOME=/none has none)"),
    ],
)
def test_a_demanded_build_names_what_is_missing(tree, environment, reason) -> None:
    done = tree(**environment)
    assert done.returncode and reason in done.stderr and "Traceback" not in done.stderr


def test_without_a_compiler_the_build_is_pure_and_says_so(tree) -> None:
    done = tree()
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "rdkernels: pure-Python build, a C++ compiler (c++) not visible to it",
    )


def test_without_torch_the_build_is_pure_and_says_so(tree, cxx) -> None:
    setuptools = pathlib.Path(wheels.importlib.util.find_spec("setuptools").origin).parents[1]
    link = tree.root / "site"
    link.mkdir()
    for part in ("setuptools", "_distutils_hack", "packaging"):
        if (setuptools / part).exists():
            (link / part).symlink_to(setuptools / part)
    done = subprocess.run(
        [sys.executable, "-S", "setup.py", "--name"],
        cwd=tree.root,
        capture_output=True,
        text=True,
        env={"PATH": str(tree.root / "bin"), "PYTHONPATH": str(link)},
    )
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        "rdkernels: pure-Python build, torch not visible to it",
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "CUDA for 80;90;100+PTX"),
        ({"RDK_BUILD": "cuda", "RDK_CUDA_ARCHS": "90a"}, "CUDA for 90a"),
        ({"RDK_BUILD": "cpu"}, "not CUDA, which needs RDK_BUILD=cuda, not cpu"),
        ({"CUDA_HOME": "/none"}, "not CUDA, which needs nvcc (CUDA_HOME=/none has none)"),
    ],
)
def test_the_build_says_what_it_builds(tree, cxx, toolkit, environment, said) -> None:
    done = tree(**{"CUDA_HOME": toolkit, **environment})
    isas = "base, avx2, avx512" if "avx2" in wheels.CPU else "base"
    assert done.stdout.splitlines()[0] == f"rdkernels: builds for the CPU ({isas}); {said}", done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda home: (home / "lib64/libcudart_static.a").unlink(), "libcudart_static.a of the toolkit"),
        (
            lambda home: executable(home / "bin/nvcc", "#!/bin/sh\necho too old >&2\nexit 1"),
            "an nvcc that compiles for 80;90;100+PTX here (too old)",
        ),
        (
            lambda home: [path.unlink() for path in home.parent.glob("csrc/*/cuda*.cu")],
            "a CUDA source (csrc/*/cuda*.cu)",
        ),
    ],
)
def test_cuda_is_decided_before_compiling(tree, cxx, toolkit, change, said) -> None:
    change(pathlib.Path(toolkit))
    auto, demanded = (tree(CUDA_HOME=toolkit, RDK_BUILD=mode) for mode in ("auto", "cuda"))
    assert auto.returncode == 0 and f"not CUDA, which needs {said}" in auto.stdout
    assert demanded.returncode and f"RDK_BUILD=cuda needs {said}" in demanded.stderr


def test_wrong_architectures_are_refused(tree, cxx, toolkit) -> None:
    done = tree(CUDA_HOME=toolkit, RDK_CUDA_ARCHS="sm_90")
    assert done.returncode and "RDK_CUDA_ARCHS must be like '80;90;100+PTX', got 'sm_90'" in done.stderr


def test_the_toolkit_of_an_nvcc_that_is_a_wrapper(tree, cxx, toolkit) -> None:
    """nvcc on PATH may be a script elsewhere: it is asked for its TOP."""
    nvcc = executable(tree.root / "bin" / "nvcc", f"#!/bin/sh\necho '#$ TOP={toolkit}/bin/..' >&2\n")
    assert "CUDA for 80" in tree().stdout
    nvcc.unlink()
    assert "not CUDA, which needs nvcc" in tree().stdout or wheels.importlib.util.find_spec("nvidia")


def test_how_cuda_is_compiled_and_linked(tree, cxx, toolkit) -> None:
    """Each source apart, by nvcc; the runtime inside and hidden; no path of this machine kept."""
    done = tree("build_ext", CUDA_HOME=toolkit, RDK_BUILD="cuda", RDK_ISA="base", RDK_CUDA_ARCHS="90;100+PTX")
    assert done.returncode == 0, done.stderr
    lines = (tree.root / "log").read_text().splitlines()
    compiled = [line for line in lines if line.startswith("nvcc") and "/dev/null" not in line]
    assert sorted(line.split(" -c ")[1].split()[0] for line in compiled) == [
        "csrc/hashed_linear/cuda.cu",
        "csrc/hashed_linear/cuda_more.cu",
    ]
    for line in compiled:
        assert "-gencode=arch=compute_90,code=sm_90 -gencode=arch=compute_100,code=[sm_100,compute_100]" in line
        assert f"-Xcompiler=-ffile-prefix-map={tree.root}=." in line and "-lineinfo" not in line
    (link,) = [line for line in lines if "-shared" in line and "_C_cuda" in line]
    assert f"{toolkit}/lib64/libcudart_static.a" in link and "-Wl,--exclude-libs,ALL" in link
    assert "-lcudart" not in link and "torch_cuda" not in link and "rpath" not in link


@pytest.mark.parametrize(
    ("archs", "runs", "does_not"),
    [
        ("80;90;100+PTX", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (13, 0)], [(7, 0), (7, 5)]),
        ("80;90", [(8, 0), (9, 0)], [(7, 5), (10, 0), (12, 0)]),
        ("86", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("90a+PTX", [(9, 0)], [(8, 9), (10, 0)]),
        ("100f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
    ],
)
def test_gpus_that_a_build_serves(archs, runs, does_not) -> None:
    assert [gpu for gpu in runs if not native.serves_arch(archs, *gpu)] == []
    assert [gpu for gpu in does_not if native.serves_arch(archs, *gpu)] == []


def compile_library(folder: pathlib.Path, source: str, *flags: str, name: str = "_C_cuda.abi3.so") -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "source.cpp").write_text(source)
    command = ["c++", "-shared", "-fPIC", "-fvisibility=hidden", "source.cpp", "-o", name, *flags]
    subprocess.run(command, cwd=folder, check=True)
    return folder / name


@pytest.fixture
def target(tmp_path, monkeypatch, need) -> None:
    """A CUDA library for sm_90, made for CUDA 13, that is nothing else; a GPU, an H100 with a driver for 13, for it."""
    need("c++", bool(shutil.which("c++")), "no C++ compiler")
    (tmp_path / "cuda_runtime_api.h").write_text("#define CUDART_VERSION 13000")
    source = (ROOT / "csrc/common/cuda_target.cpp").read_text()
    compile_library(tmp_path, source, '-DRDK_CUDA_ARCHS="90"', f"-I{tmp_path}")
    monkeypatch.setattr(native, "_HERE", tmp_path)
    monkeypatch.setattr(native, "status", {"cpu": "_C_base.abi3.so", "cuda": "_C_cuda.abi3.so"})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 13010, raising=False)
    native.cuda_unused.cache_clear()
    yield
    native.cuda_unused.cache_clear()


def test_a_gpu_that_the_library_serves(target) -> None:
    assert native.cuda_unused(0) == "" and native.runs_on(torch.device("cuda:0"))
    assert native.info()["cuda"] == "_C_cuda.abi3.so"


@pytest.mark.parametrize(
    ("where", "name", "value", "reason"),
    [
        (torch.version, "cuda", None, "torch without CUDA"),
        (torch.cuda, "is_available", lambda: False, "no GPU"),
        (torch.cuda, "get_device_capability", lambda index: (7, 5), "built for 90, this GPU is 75"),
        (torch._C, "_cuda_getDriverVersion", lambda: 12080, "the driver is for CUDA 12, this library for 13"),
    ],
)
def test_why_a_gpu_does_not_use_the_library(target, monkeypatch, where, name, value, reason) -> None:
    monkeypatch.setattr(where, name, value, raising=False)
    assert native.cuda_unused(0).startswith(reason) and not native.runs_on(torch.device("cuda:0"))
    assert native.info()["cuda"].startswith(f"_C_cuda.abi3.so, {reason}") and native.info()["cuda"].endswith("not used")
    assert native.runs_on(torch.device("cpu"))


def test_a_gpu_is_asked_for_at_a_call_only(monkeypatch) -> None:
    """Native on a GPU where its kernel is registered and the library runs there; else the next backend is tried."""
    name, asked = "hashed_linear_fwd", []
    monkeypatch.setattr(registry, "_PASSES", {name: {}})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda twin, key: True)
    registry.attach_native((torch.float32,), lambda device: asked.append(device) or device.index == 1)
    serves = registry._PASSES[name]["native"].serves
    call = [types.SimpleNamespace(device=torch.device(d), dtype=torch.float32) for d in ("cpu", "cuda:0", "cuda:1")]
    assert asked == [] and [serves(x) for x in call] == [True, False, True]
    assert asked == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert not serves(types.SimpleNamespace(device=torch.device("cpu"), dtype=torch.float64))


@pytest.mark.parametrize("broken", ["empty", "text", "symbol"])
def test_a_broken_cuda_library_never_breaks_the_import(tmp_path, broken, need) -> None:
    shutil.copytree(ROOT / "rdkernels", tmp_path / "rdkernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = tmp_path / "rdkernels" / "_C_cuda.abi3.so"
    if broken == "symbol":
        need("c++", bool(shutil.which("c++")), "no C++ compiler")
        made = compile_library(tmp_path / "made", "void absent(); __attribute__((constructor)) void f() { absent(); }")
        shutil.move(made, library)
    else:
        library.write_text("" if broken == "empty" else "not a library")
    code = """
import rdkernels as rd, torch
print(rd.__file__, rd.build_info()["native_cuda"], rd.nn.HashedLinear(16, 8, compression=4)(torch.ones(2, 16)).shape)
"""
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    file, _, said = done.stdout.partition(" ")
    assert file == str(tmp_path / "rdkernels" / "__init__.py") and said.startswith("not loaded: ")


@pytest.fixture
def doctored(tmp_path, need):
    """`doctored(source, flags)` compiles a library for the auditors."""
    need("wheel", wheels.importlib.util.find_spec("elftools") is not None, "pip install 'rdkernels[wheel]'")
    need("c++", bool(shutil.which("c++")), "no C++ compiler")
    return lambda source="", *flags: compile_library(tmp_path / "doctored", source, *flags)


def test_audit_passes_a_clean_library(doctored) -> None:
    clean = doctored('extern "C" const char* f() { return __FILE__; }')
    assert wheels.library_faults(clean) == [] and wheels.abi_faults([clean]) == []


def test_audit_sees_a_dynamic_cuda_runtime(doctored, tmp_path) -> None:
    """Negative control."""
    runtime = compile_library(
        tmp_path,
        'extern "C" __attribute__((visibility("default"))) int cudaFree() { return 0; }',
        "-Wl,-soname,libcudart.so.13",
        name="libcudart.so",
    )
    library = doctored('extern "C" int cudaFree(); int f() { return cudaFree(); }', "-Wl,--no-as-needed", str(runtime))
    assert wheels.library_faults(library) == ["needs libcudart.so.13"]


@pytest.mark.parametrize(
    ("source", "flags", "fault"),
    [
        ('const char* f() { return "/builds/rdkernels/csrc/hashed_linear/cuda.cu"; }', [], "names /builds/rdkernels"),
        (f'const char* f() {{ return "{ROOT}/build"; }}', [], f"names {ROOT}"),
        (f'const char* f() {{ return "{TORCH}/include"; }}', [], f"names {TORCH}"),
        ("", ["-Wl,-rpath,/opt/cuda/lib64"], "carries a search path"),
        ('extern "C" __attribute__((visibility("default"))) int cudaMalloc() { return 0; }', [], "exports cudaMalloc"),
        ('extern "C" int PyErr_Occurred(); int f() { return PyErr_Occurred(); }', [], "uses Python's PyErr_Occurred"),
        ("", ["-Wl,--no-as-needed", f"-L{TORCH}/lib", "-ltorch"], "needs libtorch.so"),
    ],
)
def test_audit_sees_a_doctored_library(doctored, source, flags, fault) -> None:
    """Negative controls."""
    keep = 'extern "C" __attribute__((used)) '
    faults = wheels.library_faults(doctored(source.replace("const char* f", keep + "const char* f"), *flags))
    assert len(faults) >= 1 and all(found.startswith(fault) for found in faults), faults


def test_audit_sees_an_unstable_abi(doctored) -> None:
    """Negative controls: a function of Python outside its stable ABI, one of torch's C++ outside its own."""
    (fault,) = wheels.abi_faults(
        [doctored('extern "C" int PyFrame_GetLasti(); int f() { return PyFrame_GetLasti(); }')]
    )
    assert fault.startswith("abi3audit") and "1 ABI violations" in fault
    source = "namespace at { int get_num_threads(); } int f() { return at::get_num_threads(); }"
    (fault,) = wheels.abi_faults([doctored(source, f"-L{TORCH}/lib", "-ltorch_cpu", "-lc10")])
    assert "get_num_threads" in fault


def test_audit_sees_a_library_that_claims_no_gpu(doctored) -> None:
    """Negative controls."""
    assert wheels.target_faults(doctored()) == ["does not say what it was built for (rdk_cuda_archs)"]
    claim = 'extern "C" { __attribute__((visibility("default"))) extern const char rdk_cuda_archs[] = "90+PTX"; }'
    (fault,) = wheels.target_faults(doctored(claim))
    assert fault == "holds code for [], PTX []; claims 90+PTX" or fault.startswith("cuobjdump is not here")


@pytest.fixture
def archive(tmp_path):
    """`archive(change)` packs a wheel of empty files, as `change(names -> content)` left them."""

    def pack(change=lambda files: None, name: str = "rdkernels-0.1.0-cp310-abi3-linux_x86_64.whl") -> list[str]:
        files = {f"rdkernels/_C_{kind}.abi3.so": b"" for kind in (*wheels.CPU, "cuda")}
        files |= {"rdkernels/__init__.py": b"", "rdkernels-0.1.0.dist-info/WHEEL": b""}
        change(files)
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for inside, content in files.items():
                file.writestr(inside, content)
        return wheels.wheel_faults(tmp_path / name, tmp_path / "unpacked")[0]

    return pack


def test_audit_passes_a_clean_wheel(archive) -> None:
    assert archive() == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda files: files.update({"rdkernels/big.py": bytes(wheels.MAX_BYTES)}), "more than 5000000"),
        (lambda files: files.pop("rdkernels/_C_cuda.abi3.so"), "lacks rdkernels/_C_cuda.abi3.so"),
        (lambda files: files.update({"rdkernels/_C_old.abi3.so": b""}), "carries rdkernels/_C_old.abi3.so"),
        (lambda files: files.update({"tests/contract.py": b""}), "carries tests"),
    ],
)
def test_audit_sees_a_doctored_wheel(archive, change, fault) -> None:
    """Negative controls."""
    (found,) = archive(change)
    assert fault in found


def test_audit_sees_a_wheel_for_one_python(archive) -> None:
    """Negative control."""
    (found,) = archive(name="rdkernels-0.1.0-cp311-cp311-linux_x86_64.whl")
    assert found.startswith("not tagged cp310-abi3")
