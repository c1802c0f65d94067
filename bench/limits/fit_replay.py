"""What recorded runs teach of an accelerator and its engine: writes src/baseload/twin/replay_values.toml.

    python bench/limits/fit_replay.py DATA_DIR

DATA_DIR/vllm_replay/ACCELERATOR/MODEL/vllm holds requests.jsonl and meta.json; all runs of an accelerator calibrate
together, from the usual values.
"""

import argparse
from pathlib import Path

from baseload.limits.serving.predict import Predictor
from baseload.twin.recorded import parse_engine, parse_requests
from baseload.twin.replay_fit import Run, calibrated

TARGET = Path(__file__).parents[2] / "src/baseload/twin/replay_values.toml"


def main() -> None:
    """Calibrate and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    predictor, known, told = Predictor(), {}, []
    for chip, runs in runs_of(parser.parse_args().data / "vllm_replay", predictor).items():
        known = calibrated(runs, chip, predictor, known)
        told.append(f"{chip}: {', '.join(run.settings.model for run in runs)}")
    lines = [
        "# Written by bench/limits/fit_replay.py; see docs/limits.md, Replay. Natural logarithms, against USUAL."
    ]
    lines.append(f'basis = "{"; ".join(told)} (casys-kaist/LLMServingSim@5daddb2, MIT)"')
    for word, moved in sorted(known.items()):
        lines += ["", f'[moved."{word}"]', *(f"{name} = {value:.4f}" for name, value in moved.items())]
    TARGET.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def runs_of(folder, predictor):
    """Recorded runs by accelerator."""
    by_chip = {}
    for path in sorted(folder.glob("*/*/*/requests.jsonl")):
        chip = path.parents[2].name
        memory_gb = predictor.catalogue.find(chip).need("memory_gb")
        settings = parse_engine((path.parent / "meta.json").read_bytes(), name=str(path), memory_gb=memory_gb)
        shape = predictor.models.find(settings.model)[0]
        by_chip.setdefault(chip, []).append(Run(parse_requests(path.read_bytes(), name=str(path)), settings, shape))
    return by_chip


if __name__ == "__main__":
    main()
