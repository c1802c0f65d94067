"""A small trained model from data that every machine has: the sources of Python's standard library.

    .venv/bin/python bench/engine/stdlib_model.py [--out bench/out/stdlib] [--steps 1200]

Writes OUT/model (a Hugging Face directory), OUT/calibrate.txt, OUT/held-out.txt and OUT/fresh.txt. Every tenth file
is held out, some of them for choosing how to quantize and others to report: such a file
is in neither the training nor the calibration text. The calibration text is a part of what the model was trained on.
A few minutes on two cores; nothing is done where OUT/model is there already with the same settings.
"""

import argparse
import json
import sysconfig
from pathlib import Path

from baseload.train.config import ModelShape, OptimizerConfig, SourceConfig, TokenizerConfig, TrainConfig
from baseload.train.run import train

CALIBRATE_BYTES, HELD_OUT_BYTES = 400_000, 120_000
_SKIPPED = ("site-packages", "test", "idlelib", "lib2to3", "encodings", "pydoc_data")  # tests, and tables of codes
SHAPE = ModelShape(hidden_size=256, intermediate_size=768, layers=4, heads=4, kv_heads=2, max_context=1024)


def write_texts(out: Path) -> None:
    """OUT/train/*.txt, calibrate.txt, held-out.txt and fresh.txt, split by file."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py"))
    files = [path for path in files if path.parent.name not in _SKIPPED]
    (out / "train").mkdir(parents=True, exist_ok=True)
    held, calibrate, learnt = [], [], []
    for index, path in enumerate(files):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if index % 10 == 9:
            held.append(text[:6000])
        else:
            learnt.append(text)
            if index % 10 == 4:
                calibrate.append(text[:12000])
    for index in range(8):
        (out / "train" / f"{index}.txt").write_text("\n".join(learnt[index::8]), encoding="utf-8")
    (out / "calibrate.txt").write_text("\n".join(calibrate)[:CALIBRATE_BYTES], encoding="utf-8")
    (out / "held-out.txt").write_text("\n".join(held)[:HELD_OUT_BYTES], encoding="utf-8")
    (out / "fresh.txt").write_text("\n".join(held)[HELD_OUT_BYTES : 2 * HELD_OUT_BYTES], encoding="utf-8")


def ensure(out: Path, *, steps: int, progress: bool = True) -> Path:
    """The model's directory; trained now where it is not there, or resumed where training was interrupted."""
    note = out / "trained.json"
    about = {"steps": steps, "python": sysconfig.get_python_version(), "shape": str(SHAPE)}
    if note.exists() and json.loads(note.read_text()) == about and (out / "fresh.txt").exists():
        return out / "model"
    write_texts(out)
    config = TrainConfig(
        output_dir=str(out / "model"),
        checkpoint_dir=str(out / "checkpoints"),
        sources=(SourceConfig(kind="text", path=str(out / "train")),),
        steps=steps,
        seed=3,
        batch_rows=8,
        row_tokens=128,
        prompt_loss_weight=1.0,
        checkpoint_every=300,
        log_every=50,
        model=SHAPE,
        tokenizer=TokenizerConfig(vocab_size=4096),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=100),
    )
    if train(config, progress=progress).stopped:
        raise SystemExit("Stopped; call it again to go on.")
    note.write_text(json.dumps(about))
    return out / "model"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "out" / "stdlib")
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    print(ensure(arguments.out.absolute(), steps=arguments.steps))


if __name__ == "__main__":
    main()
