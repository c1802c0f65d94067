"""All engines on the same shape, weights, prompts and machine, in turn, several times.

    .venv/bin/python bench/engine/run.py [--shapes 386m,1.2b,moe] [--peers llama,openvino,torch,vllm] [--rounds 3]
        [--points prefill,decode,mixed,start,long] [--isa avx2,avx512] [--json OUT] [--plot OUT.svg] [--resume]

Makes each peer's environment under the cache folder (--cache), writes the weights once, and then lets every engine in
a process of its own answer the same points: one round after the other, each engine once a round, the order turned by
one each time. In each round the machine's read bandwidth and int8 and bf16 rates are measured too. Points: prefill of
512 and 2048 tokens; decoding of 1, 8 and 32 sequences after 128 tokens and of 1 and 8 after 1024; `long`: of 32 after
1024, in the first round only; `mixed`: requests that arrive while others decode, in the first two rounds; `start`:
from the start of the process to its first token. `cold`: the same with a cold disk. --minutes bounds the whole: no
round is begun after it. --resume takes the turns that an earlier run with the same --json has finished.

Compare ratios within one run, never figures of different hours: a shared machine varies by 1.4 to 3 times.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cold import make_cold
from environments import ensure, environments
from machine import describe, limits
from plot import write_svg
from rich.console import Console
from rich.progress import Progress
from roster import FORCED, OURS, PEERS, XLA, Contender
from shapes import SHAPES, active_parameters, kv_bytes_per_token, write_hf
from tables import print_tables
from worker_start import first_byte_s

HERE = Path(__file__).parent
POINTS = ("prefill", "decode", "mixed", "start", "long", "cold")
DEFAULT_POINTS = "prefill,decode,mixed,start,long"


def arguments() -> argparse.Namespace:
    """What is asked for, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument("--shapes", default="386m", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--peers", default="llama,openvino,torch", help=f"of {', '.join(PEERS)}, or none")
    parser.add_argument("--schemes", default="w8a8,w4a8,bf16", help="ours; also xla: bf16 without native kernels")
    parser.add_argument(
        "--isa", default="", help="forced instruction sets beside a peer built for them: avx2, avx512"
    )
    parser.add_argument("--points", default=DEFAULT_POINTS, help=f"of {', '.join(POINTS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--minutes", type=float, default=60.0, help="no round begins after so long")
    parser.add_argument("--json", type=Path, help="all figures")
    parser.add_argument("--plot", type=Path, help="a picture, .svg")
    parser.add_argument("--cache", type=Path, default=home / "baseload-bench", help="environments and weights")
    parser.add_argument("--resume", action="store_true", help="go on with what an earlier run has finished")
    parser.add_argument("--prepare", action="store_true", help="make environments and weights, and end")
    found = parser.parse_args()
    for name, known in (("shapes", SHAPES), ("peers", (*PEERS, "none")), ("points", POINTS), ("isa", FORCED)):
        words = [word for word in getattr(found, name).split(",") if word]
        wrong = [word for word in words if word not in known]
        if wrong:
            parser.error(f"--{name} {wrong[0]}: choose of {', '.join(known)}")
        setattr(found, name, words)
    found.schemes = found.schemes.split(",")
    if found.plot and found.plot.suffix != ".svg":
        parser.error(f"--plot {found.plot}: only .svg is written")
    return found


def contenders(asked: argparse.Namespace) -> list[Contender]:
    """Who takes part, ours first."""
    ours = [one for one in OURS if one.name.split()[1] in asked.schemes] + [XLA] * ("xla" in asked.schemes)
    peers = [one for name in asked.peers if name != "none" for one in PEERS[name]]
    forced = [one for isa in asked.isa for one in FORCED[isa]]
    return [*ours, *peers, *(one for one in forced if one.is_ours or "llama" in asked.peers)]


def points_of(asked: argparse.Namespace, shape: str, number: int) -> list[dict[str, object]]:
    """What an engine is asked in this round. Arrivals are as fast as a 386 M model bears at 2 a second."""
    size = active_parameters(SHAPES[shape]) / 354e6
    points: list[dict[str, object]] = []
    if "prefill" in asked.points:
        points += [
            {"what": "prefill", "tokens": tokens, "repeats": 2 if tokens == 512 else 1} for tokens in (512, 2048)
        ]
    if "decode" in asked.points:
        sizes = ((1, 128, 24), (8, 128, 10), (32, 128, 8), (1, 1024, 16), (8, 1024, 8))
        points += [{"what": "decode", "batch": b, "context": c, "steps": s} for b, c, s in sizes]
    if "mixed" in asked.points and number < 2:
        points.append({"what": "mixed", "requests": 16, "per_s": round(2 / size, 2), "prompt": 256, "answer": 32})
    return points


LONG = {"what": "decode", "batch": 32, "context": 1024, "steps": 8}


def kv_tokens(points: list[dict[str, object]]) -> int:
    """Tokens that the caches must hold for these points."""
    needs = [2304]
    for point in points:
        match point["what"]:
            case "decode":
                needs.append(point["batch"] * (point["context"] + 48))
            case "mixed":
                needs.append(point["requests"] * (point["prompt"] + point["answer"] + 16))
    return max(needs)


class Bench:
    """One run: who can take part, and the turns that are done."""

    def __init__(self, asked: argparse.Namespace, console: Console) -> None:
        self.asked, self.console = asked, console
        self.pythons: dict[str, Path] = {}
        self.absent: dict[str, str] = {}  # contender (and shape) → why it does not run
        self.turns: list[dict[str, object]] = []
        self.limits: list[dict[str, object]] = []
        self.journal = (asked.json or asked.cache / "last.json").with_suffix(".turns.jsonl")
        self.began = time.monotonic()

    def prepare(self) -> None:
        """Environments and weights."""
        wanted = contenders(self.asked)
        for name in dict.fromkeys(one.environment for one in wanted if one.environment):
            found = ensure(name, self.asked.cache, self.console)
            if isinstance(found, Path):
                self.pythons[name] = found
                continue
            self.absent |= {one.name: found for one in wanted if one.environment == name}
        self.pythons[""] = Path(sys.executable)
        for shape in self.asked.shapes:
            self.write_weights(shape, wanted)

    def write_weights(self, shape: str, wanted: list[Contender]) -> None:
        """The same random weights in every form that is asked for."""
        folder = self.folder(shape)
        with self.console.status(f"weights of {shape}"):
            source = write_hf(shape, folder)
            python = next((self.pythons[name] for name in self.pythons if name.startswith("llama")), None)
            files = sorted({one.model for one in wanted if one.model.endswith(".gguf")})
            if files and python is None:
                why = "its weights are written by llama.cpp, which is not here"
                self.absent |= {f"{one.name} {shape}": why for one in wanted if one.model in files}
            elif files:
                kinds = [file.removesuffix(".gguf") for file in files if file != "f16.gguf"]
                self.call(shape, files, wanted, [python, HERE / "write_gguf.py", source, folder, *kinds])
            kinds = [one.model for one in wanted if one.model.startswith("ct-") and not self.reason(one, shape)]
            for kind in kinds:
                self.call(
                    shape, [kind], wanted, [self.pythons["vllm"], HERE / "write_compressed.py", source, folder, kind]
                )
            for scheme in dict.fromkeys(one.model for one in wanted if one.is_ours and one.model != "hf"):
                if not (folder / scheme / "written").exists():
                    shutil.rmtree(folder / scheme, ignore_errors=True)
                    command = [sys.executable, HERE / "pack_plainly.py", source, scheme, folder / scheme]
                    if self.call(shape, [scheme], wanted, command):
                        (folder / scheme / "written").touch()

    def call(self, shape: str, models: list[str], wanted: list[Contender], command: list[object]) -> bool:
        """Run what writes weights; who needs them is absent where it fails."""
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        if done.returncode:
            words = (done.stderr or done.stdout).strip().splitlines()
            why = f"its weights could not be written: {words[-1] if words else done.returncode}"
            self.absent |= {f"{one.name} {shape}": why for one in wanted if one.model in models}
        return not done.returncode

    def folder(self, shape: str) -> Path:
        """Where the shape's weights are."""
        return self.asked.cache / "weights" / shape

    # -- turns ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Round after round, every contender once; each turn is kept as soon as it is done."""
        done = self.read_journal()
        with Progress(console=self.console, transient=True) as progress:
            for shape in self.asked.shapes:
                able = [one for one in contenders(self.asked) if not self.reason(one, shape)]
                parts = 1 + ("long" in self.asked.points)
                task = progress.add_task(shape, total=len(able) * (self.asked.rounds + parts - 1))
                for number in range(self.asked.rounds):
                    if number and (time.monotonic() - self.began) / 60 > self.asked.minutes:
                        self.console.print(f"{shape}: the time is up after {number} rounds", highlight=False)
                        break
                    self.limits.append(
                        {"shape": shape, "round": number, **limits(self.asked.cache, self.asked.threads)}
                    )
                    turned = able[number % max(1, len(able)) :] + able[: number % max(1, len(able))]
                    for part in ("main", "long") if number == 0 and "long" in self.asked.points else ("main",):
                        for one in turned:
                            progress.update(task, advance=1, description=f"{shape}, round {number + 1}: {one.name}")
                            if (shape, number, part, one.name) not in done:
                                self.keep(self.turn(one, shape, number, part))

    def reason(self, one: Contender, shape: str) -> str:
        """Why a contender does not run; "" when it does."""
        return self.absent.get(one.name) or self.absent.get(f"{one.name} {shape}", "")

    def turn(self, one: Contender, shape: str, number: int, part: str) -> dict[str, object]:
        """One engine's process: what it answered, and what went wrong."""
        points = [LONG] if part == "long" else points_of(self.asked, shape, number)
        turn = {"shape": shape, "round": number, "part": part, "name": one.name, "points": [], "failed": ""}
        turn |= self.child(one, shape, points)
        model = self.folder(shape) / one.model
        if one.is_ours and part == "main" and "start" in self.asked.points and not turn["failed"]:
            turn["worker_start_s"] = first_byte_s(model, cache=self.asked.cache / "programs", options=one.options)
        if "cold" in self.asked.points and part == "main" and number == 0:
            turn["cold_by"] = make_cold(self.files(one, model))
            cold = self.child(one, shape, [])
            turn |= {"cold_start_s": cold.get("start_s"), "cold_failed": cold.get("failed", "")}
        return turn

    def files(self, one: Contender, model: Path) -> dict[str, list[Path]]:
        """What a process of this contender reads from disk before its first token."""
        ours = [Path(sys.prefix), HERE.parents[1] / "src" / "baseload"]
        program = ours if one.is_ours else [self.asked.cache / "env" / one.environment]
        return {"the model": [model], "the program": program, "compiled programs": [self.asked.cache / "programs"]}

    def child(self, one: Contender, shape: str, points: list[dict[str, object]]) -> dict[str, object]:
        """Run it; a turn that hangs is ended and what it has said is kept."""
        config = SHAPES[shape]
        tokens = kv_tokens(points)
        spec = {
            "model": str(self.folder(shape) / one.model),
            "cache": str(self.asked.cache / "programs"),
            "threads": self.asked.threads,
            "vocab": config.vocab_size,
            "kv_bytes": tokens * kv_bytes_per_token(config),
            "longest": 2304,
            "most": 16,
            "points": points,
            "options": one.options,
        }
        command = [self.pythons[one.environment], str(HERE / "child.py"), one.module, json.dumps(spec)]
        limit_s = 300 + 300 * active_parameters(config) / 354e6  # vLLM compiles for minutes where others work, too
        weights = self.folder(shape) / one.model
        files = [path for path in weights.rglob("*") if path.is_file()] if weights.is_dir() else [weights]
        found: dict[str, object] = {"points": [], "kv_bytes": spec["kv_bytes"]}
        found["weights_bytes"] = sum(path.stat().st_size for path in files if path.stat().st_size > 1 << 20)
        began = time.time()
        with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                found["failed"] = f"not done after {limit_s:.0f} s"
                code = 0
            out.seek(0)
            for line in out.read().splitlines():
                said = json.loads(line)
                if said.get("what") == "first":
                    found |= {"start_s": said["at"] - began, "about": said["about"]}
                elif said.get("what") == "end":
                    found["peak_bytes"] = said["peak_bytes"]
                else:
                    found["points"].append(said)
            if code:
                errors.seek(0)
                words = [word for word in errors.read().splitlines() if word.strip()]
                found["failed"] = words[-1] if words else f"ended with {code}"
        return found

    # -- results ----------------------------------------------------------------------------------------------------

    def read_journal(self) -> set[tuple[object, ...]]:
        """The turns of an earlier run, where it is to be resumed; else the journal begins anew."""
        self.journal.parent.mkdir(parents=True, exist_ok=True)
        if self.asked.resume and self.journal.exists():
            self.turns = [json.loads(line) for line in self.journal.read_text().splitlines()]
        else:
            self.journal.write_text("")
        return {(turn["shape"], turn["round"], turn["part"], turn["name"]) for turn in self.turns}

    def keep(self, turn: dict[str, object]) -> None:
        """Note a turn; it is not run again by --resume."""
        self.turns.append(turn)
        with self.journal.open("a") as file:
            file.write(json.dumps(turn) + "\n")

    def result(self) -> dict[str, object]:
        """Everything, for the JSON file."""
        return {
            "machine": describe(),
            "date": time.strftime("%Y-%m-%d"),
            "rounds": self.asked.rounds,
            "environments": {name: environments()[name].note for name in self.pythons if name},
            "absent": self.absent,
            "limits": self.limits,
            "turns": self.turns,
        }


def main() -> None:
    """Prepare, run, report."""
    asked = arguments()
    console = Console() if sys.stdout.isatty() else Console(width=320)  # a file or pipe has room for all columns
    asked.cache.mkdir(parents=True, exist_ok=True)
    bench = Bench(asked, console)
    bench.prepare()
    if asked.prepare:
        for name, why in bench.absent.items():
            console.print(f"{name}: not at hand: {why}", highlight=False)
        return
    bench.run()
    result = bench.result()
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=1) + "\n")
    print_tables(result, contenders(asked), console)
    if asked.plot:
        write_svg(asked.plot, result, contenders(asked))


if __name__ == "__main__":
    main()
