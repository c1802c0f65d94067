"""Arrivals: Poisson as asked for, traces as written, bad rows refused by file and line."""

from itertools import pairwise
from pathlib import Path

import pytest

from baseload.domain.errors import DataError
from baseload.twin.spec import Workload
from baseload.twin.traces import read_trace
from baseload.twin.workload import arrivals


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_poisson_arrivals_have_the_rate_and_lengths_asked_for() -> None:
    made = arrivals(
        Workload(requests=4000, rate_per_s=8, prompt_tokens=300, output_tokens=50, spread=0.5), models=["a"], seed=3
    )
    gaps = [after.at_ns - before.at_ns for before, after in pairwise(made)]
    assert min(gaps) >= 0
    assert sum(gaps) / len(gaps) / 1e9 == pytest.approx(1 / 8, rel=0.08)
    medians = sorted(a.prompt_tokens for a in made)[2000], sorted(a.output_tokens for a in made)[2000]
    assert medians == (pytest.approx(300, rel=0.08), pytest.approx(50, rel=0.08))
    assert all(a.output_tokens <= a.max_tokens <= 2 * a.output_tokens for a in made)


def test_the_same_seed_makes_the_same_arrivals_and_another_seed_others() -> None:
    workload = Workload(requests=50, shared_prefix=0.5, keys=3)
    assert arrivals(workload, models=["a", "b"], seed=1) == arrivals(workload, models=["a", "b"], seed=1)
    assert arrivals(workload, models=["a", "b"], seed=1) != arrivals(workload, models=["a", "b"], seed=2)


def test_the_mix_weighs_models() -> None:
    made = arrivals(Workload(requests=2000, mix={"a": 3.0, "b": 1.0}), models=["a", "b", "c"], seed=5)
    share = sum(a.model == "a" for a in made) / len(made)
    assert share == pytest.approx(0.75, abs=0.04)
    assert not any(a.model == "c" for a in made)


def test_azure_headers_and_instants(tmp_path: Path) -> None:
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n"
        "2024-01-01 00:00:00.5+00:00,1,2\n"
    )
    rows = read_trace(write(tmp_path / "azure.csv", text))
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [(374, 44), (396, 109), (1, 2)]
    assert rows[0].at_ns == 0
    assert rows[1].at_ns == 4_314_579_000
    assert rows[2].at_ns == (45 * 86_400 + 5 * 3600 + 44 * 60 + 13) * 1_000_000_000 + 819_410_000


def test_plain_headers_models_and_rows_out_of_order(tmp_path: Path) -> None:
    text = "output_tokens,arrival_s,input_tokens,model\n7,2.5,10,b\n8,1.0,20,a\n\n9,1.25,30,a\n"
    rows = read_trace(write(tmp_path / "t.csv", text))
    assert [(r.at_ns, r.input_tokens, r.output_tokens, r.model) for r in rows] == [
        (0, 20, 8, "a"),
        (250_000_000, 30, 9, "a"),
        (1_500_000_000, 10, 7, "b"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Timestamp,Model,Request tokens,Response tokens,Log Type\n5,m,472,18,Chat\n7.5,m,10,2,Chat\n",
        "arrived_at;num_prefill_tokens;num_decode_tokens\r\n1;472;18\r\n3.5;10;2\r\n",
        "\ufefftimestamp\tinput_length\toutput_length\n0\t472\t18\n2.5\t10\t2\n",
    ],
)
def test_traces_are_read_as_others_publish_them(text: str, tmp_path: Path) -> None:
    rows = read_trace(write(tmp_path / "t.csv", text))
    assert [(row.at_ns, row.input_tokens, row.output_tokens) for row in rows] == [
        (0, 472, 18),
        (2_500_000_000, 10, 2),
    ]


def test_names_of_models_nobody_serves_here_say_nothing(tmp_path: Path) -> None:
    text = "arrival_s,model,input_tokens,output_tokens\n0,ChatGPT,10,2\n1,{},10,2\n"
    for other, asked in (("GPT-4", ["m", "m"]), ("m", ["ChatGPT", "m"])):
        write(tmp_path / "t.csv", text.format(other))
        made = arrivals(Workload(trace="t.csv", requests=0), models=["m"], seed=1, trace_base=tmp_path)
        assert [one.model for one in made] == asked


def test_a_trace_whose_columns_nobody_knows_is_told_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        read_trace(write(tmp_path / "t.csv", "when,in,out\n1,2,3\n"))
    assert "when, in, out" in refused.value.hint


def test_a_trace_is_replayed_at_the_speed_and_length_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "t.csv", "arrival_ms,input,output\n0,5,1\n1000,6,1\n3000,7,1\n")
    made = arrivals(Workload(trace="t.csv", trace_speed=2.0, requests=2), models=["m"], seed=1, trace_base=tmp_path)
    assert [(a.at_ns, a.prompt_tokens, a.model) for a in made] == [(0, 5, "m"), (500_000_000, 6, "m")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: no column named arrival_s"),
        ("arrival_s,input\n0,1\n", "line 1: no column named output_tokens"),
        ("arrival_s,input,output\n", "no rows"),
        ("arrival_s,input,output\n0,1,1\n1,x,1\n", "line 3: input is 'x'"),
        ("arrival_s,input,output\n0,1,1\n1,1\n", "line 3: 2 columns"),
        ("arrival_s,input,output\n0,1,1\n\n1,0,5\n", "line 4: input is 0"),
        ("arrival_s,input,output\n0,1,-3\n", "line 2: output is -3"),
        ("arrival_s,input,output\nnan,1,1\n", "line 2: the arrival 'nan'"),
        ("arrival_s,input,output\n-1,1,1\n", "line 2: the arrival '-1'"),
        ("timestamp,input,output\n2023-13-01 00:00:00,1,1\n", "line 2: the arrival"),
        ("arrival_ns,input,output\n1.5,1,1\n", "line 2: the arrival '1.5'"),
    ],
)
def test_bad_traces_are_refused_by_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "bad.csv", text)
    with pytest.raises(DataError, match=said) as caught:
        read_trace(path)
    assert "bad.csv" in str(caught.value)


def test_a_missing_trace_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        read_trace(tmp_path / "none.csv")


def test_a_mix_without_a_known_model_is_refused() -> None:
    with pytest.raises(DataError, match="mix"):
        arrivals(Workload(mix={"x": 1.0}), models=["a"], seed=1)
