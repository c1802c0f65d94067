"""Whatever a table says, every row is answered: finite, positive, told apart, and in the order physics has."""

from itertools import pairwise
from math import isfinite

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baseload.limits.catalogue.accelerators import Catalogue, read_catalogue
from baseload.limits.serving.points import Point, parse_point
from baseload.limits.serving.predict import Predictor

PREDICTOR = Predictor()
MODELS = (
    "meta-llama/Llama-3.1-8B",
    "deepseek-ai/DeepSeek-R1",
    "openai/gpt-oss-120b",
    "Qwen/Qwen3.5-397B-A17B",
    "someone/Never-Seen-13B",
    "someone/Unheard-480B-A35B-FP8",
    "no size in this name",
)
SYSTEMS = ("h100_sxm", "gb200", "b300", "mi355x", "h20", "l40s", "tpu_v6e", "gaudi3", "rtx_pro_6000", "frobnicator-9")


def point(**cells: object) -> Point:
    row = {"backend": "vllm", "model_path": MODELS[0], "system": "h200_sxm", "isl": "1024", "osl": "1024"}
    return parse_point({**row, **{key: str(value) for key, value in cells.items()}}, line=2, name="t.csv")


def layouts() -> st.SearchStrategy[dict[str, object]]:
    size = st.sampled_from(["", 1, 2, 4, 8, 16, 20, 64, 512])
    return st.fixed_dictionaries(
        {
            "mode": st.sampled_from(["", "agg", "disagg"]),
            "tp_size": size,
            "decode_tp_size": size,
            "prefill_tp_size": size,
            "moe_ep_size": size,
            "decode_moe_ep_size": size,
            "attention_dp_size": size,
            "pp_size": st.sampled_from(["", 1, 4]),
            "decode_num_workers": st.sampled_from(["", 1, 7]),
            "prefill_num_workers": st.sampled_from(["", 1, 3]),
        }
    )


@given(
    model=st.sampled_from(MODELS),
    system=st.sampled_from(SYSTEMS),
    engine=st.sampled_from(["vllm", "sglang", "trtllm", "an-engine-of-tomorrow", ""]),
    precision=st.sampled_from(["", "bf16", "fp8", "nvfp4", "mxfp4", "int4", "int8", "a format nobody has"]),
    layout=layouts(),
    concurrency=st.sampled_from(["", 1, 3, 64, 4096, 100_000]),
    isl=st.sampled_from(["", 1, 1024, 131_072, 4_000_000]),
    osl=st.sampled_from(["", 1, 1024, 65_536]),
)
@settings(max_examples=150, deadline=None)
def test_every_row_is_answered(
    model: str, system: str, engine: str, precision: str, layout: dict[str, object], **load: object
) -> None:
    row = point(model_path=model, system=system, backend=engine, precision=precision, **layout, **load)
    said = PREDICTOR.predict([row])[0]
    figures = (said.tpot_ms, said.ttft_ms, said.tpot_expected_error, said.ttft_expected_error)
    assert all(isfinite(figure) and figure > 0 for figure in figures), said
    assert isfinite(said.tpot_if_speculating_ms)
    assert said.tpot_if_speculating_ms >= 0
    assert said.basis


@given(
    model=st.sampled_from(MODELS[:4]),
    system=st.sampled_from(SYSTEMS),
    engine=st.sampled_from(["vllm", "sglang", "trtllm", "an-engine-of-tomorrow"]),
    tp=st.sampled_from([1, 2, 4, 8]),
    ep=st.booleans(),
    isl=st.sampled_from([16, 128, 1024, 8192]),
    osl=st.sampled_from([16, 128, 1024, 8192]),
)
@settings(max_examples=80, deadline=None)
def test_more_users_never_see_faster_tokens(
    model: str, system: str, engine: str, tp: int, ep: bool, isl: int, osl: int
) -> None:
    cells = {"model_path": model, "system": system, "backend": engine, "tp_size": tp, "moe_ep_size": tp if ep else 1}
    rows = [point(**cells, isl=isl, osl=osl, concurrency=c) for c in (1, 4, 16, 64, 256, 1024, 4096)]
    said = PREDICTOR.predict(rows)
    for fewer, more in pairwise(said):
        assert more.tpot_ms >= fewer.tpot_ms * (1 - 1e-9)
        assert more.ttft_ms >= fewer.ttft_ms * (1 - 1e-9)


@pytest.mark.parametrize("figure", ["memory_gb_per_s", "bf16_tflops", "fp8_tflops", "scale_up_gb_per_s"])
@pytest.mark.parametrize("model", MODELS[:4])
def test_better_silicon_is_never_slower(figure: str, model: str) -> None:
    catalogue = read_catalogue()
    chip = catalogue.find("h200_sxm")
    better = msgspec.structs.replace(chip, **{figure: 1.5 * chip.need(figure)})
    entries = {**catalogue.entries, "h200_sxm": better}
    faster = Predictor(catalogue=Catalogue(entries))
    rows = [point(model_path=model, tp_size=8, concurrency=c, isl=isl) for c in (1, 32, 512) for isl in (128, 8192)]
    for before, after in zip(PREDICTOR.predict(rows), faster.predict(rows), strict=True):
        assert after.tpot_ms <= before.tpot_ms * (1 + 1e-9)
        assert after.ttft_ms <= before.ttft_ms * (1 + 1e-9)
