"""`baseload plan` and `baseload compare` as people run them: answers, pages, exit codes and plain errors."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from baseload.cli.main import app
from baseload.cli.plan import answer
from baseload.domain.errors import BaseloadError, SettingsError

ROOT = Path(__file__).parents[3]
PLAN = """
name = "small"
[[models]]
name = "chat"
model = "meta-llama/Meta-Llama-3.1-8B"
[models.traffic]
requests_per_s = 10
prompt_tokens = 500
output_tokens = 100
[models.levels]
ttft_ms = 1500
tpot_ms = 50
[[sites]]
name = "cloud"
accelerators = ["h100_sxm", "a100_sxm", "rubin"]
"""
cli = CliRunner()


def test_a_plan_in_words_json_and_a_page(tmp_path: Path) -> None:
    spec, page = tmp_path / "plan.toml", tmp_path / "plan.html"
    spec.write_text(PLAN)
    shown = cli.invoke(app, ["plan", str(spec), "--report", str(page)])
    assert shown.exit_code == 0, shown.output
    for words in ("Binds:", "Twin (", "Basis:", "If it is otherwise:", "rank", "$/Mtok", "rubin"):
        assert words in shown.output
    text = page.read_text()
    assert "<svg" in text
    assert "http" not in text.replace("http-equiv", "")
    result = json.loads(cli.invoke(app, ["plan", str(spec), "--json", "--no-check"]).stdout)
    assert result["feasible"]
    assert result["answers"][0]["chosen"][0]["replicas"] >= 1
    assert result["answers"][0]["checks"] == []
    fast = json.loads(cli.invoke(app, ["plan", str(spec), "--json", "--no-check", "--objective", "latency"]).stdout)
    assert fast["answers"][0]["chosen"][0]["answer_ms"] < result["answers"][0]["chosen"][0]["answer_ms"]


def test_no_plan_is_exit_code_three_with_the_conflict(tmp_path: Path) -> None:
    spec, page = tmp_path / "plan.toml", tmp_path / "plan.html"
    spec.write_text(PLAN + "[limits]\nusd_per_month = 10\n")
    result = cli.invoke(app, ["plan", str(spec), "--report", str(page)])
    assert result.exit_code == 3
    assert "These conflict" in result.output
    assert "budget" in result.output
    assert "conflict" in page.read_text()


def test_a_trace_fills_the_traffic_and_a_config_the_shape(tmp_path: Path) -> None:
    rows = "".join(f"{i / 10},{400 + i % 200},{50 + i % 50}\n" for i in range(1200))
    (tmp_path / "trace.csv").write_text("arrival_s,input_tokens,output_tokens\n" + rows)
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "num_hidden_layers": 16, "vocab_size": 128_256,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 8192,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = PLAN.replace("meta-llama/Meta-Llama-3.1-8B", "config.json")
    text = text.replace("requests_per_s = 10\nprompt_tokens = 500\noutput_tokens = 100", 'trace = "trace.csv"')
    (tmp_path / "plan.toml").write_text(text)
    report = answer(tmp_path / "plan.toml", check=False)
    assert report.feasible
    assert report.answers[0].shape.startswith("chat (config): 1.2 B")
    tokens = report.totals.tokens_per_s if report.totals else 0.0
    assert tokens == pytest.approx(10 * (499.5 + 74.5), rel=0.03)


def test_a_job_is_paid_for_once_and_a_deadline_is_a_limit(tmp_path: Path) -> None:
    spec = tmp_path / "tune.toml"
    job = """
[[training]]
name = "tune"
model = "meta-llama/Meta-Llama-3.1-8B"
tokens = 2e9
batch_tokens = 262144
sequence_tokens = 4096
method = "lora"
deadline_days = 2
[[sites]]
name = "cloud"
accelerators = ["h100_sxm", "a100_sxm"]
"""
    spec.write_text(job)
    report = answer(spec)
    assert report.totals is not None
    assert report.totals.usd_per_month == 0
    job_answer = report.training[0]
    assert report.totals.training_usd == job_answer.usd > 0
    assert job_answer.days <= 2
    assert job_answer.usd == pytest.approx(job_answer.usd_per_hour * 24 * job_answer.days)
    assert 0 < job_answer.goodput <= 1
    assert job_answer.checkpoint_interval_s > 0
    assert [a.usd for a in job_answer.ranked] == sorted(a.usd for a in job_answer.ranked)
    spec.write_text(job.replace("deadline_days = 2", "deadline_days = 1e-6"))
    late = answer(spec)
    assert late.conflict is not None
    assert late.conflict.limits[0].startswith("deadline of tune")


def test_a_place_is_told_by_its_zone_and_a_job_by_its_hour(tmp_path: Path) -> None:
    spec, page = tmp_path / "plan.toml", tmp_path / "plan.html"
    rows = ["zone,hour_utc,carbon_gco2_per_kwh_direct,price_usd_per_mwh"]
    rows += [f"home,2025-06-01 {hour:02d}:00,{100 if 9 <= hour < 13 else 400},50" for hour in range(24)]
    (tmp_path / "hours.csv").write_text("\n".join(rows))
    tune = """
[[training]]
name = "tune"
model = "meta-llama/Meta-Llama-3.1-8B"
tokens = 3e8
batch_tokens = 1_048_576
method = "lora"
"""
    where = 'zone = "home"\nplant = "liquid"\ntransfer = "aws_internet"\n'
    spec.write_text('zones_file = "hours.csv"\n' + PLAN.replace("[[sites]]", tune + "[[sites]]") + where)
    shown = cli.invoke(app, ["plan", str(spec), "--no-check", "--report", str(page)])
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.split())
    for text in (said, page.read_text()):
        for words in (
            "answers that leave cloud:",
            "means of hours.csv",
            "g CO2 a kWh",
            "begun at 0",
            "spare",
        ):
            assert words in text
    result = json.loads(cli.invoke(app, ["plan", str(spec), "--no-check", "--json"]).stdout)
    assert result["leaving"][0]["usd_per_month"] > 0
    assert result["training"][0]["kg_co2"] > 0
    spec.write_text(spec.read_text().replace('zone = "home"', 'zone = "nowhere"'))
    wrong = cli.invoke(app, ["plan", str(spec)])
    assert wrong.exit_code != 0
    assert isinstance(wrong.exception, SettingsError)
    assert "unknown zone 'nowhere'" in str(wrong.exception)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("model = ", "modle = "), "unknown key"),
        (("meta-llama/Meta-Llama-3.1-8B", "nobody/knows-7B"), "no shape is known"),
        (("meta-llama/Meta-Llama-3.1-8B", "missing.json"), "cannot be read"),
        (("h100_sxm", "h1000"), "h1000"),
        (("requests_per_s = 10", "requests_per_s = 0"), "above 0"),
        (("requests_per_s = 10", "requests_per_s = -10"), "models.traffic.requests_per_s"),
        (("ttft_ms = 1500", "ttft_ms = nan"), "models.levels.ttft_ms"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    spec = tmp_path / "plan.toml"
    spec.write_text(PLAN.replace(*change))
    with pytest.raises(BaseloadError, match=said):
        answer(spec, check=False)


def test_a_file_at_fault_is_exit_code_two(tmp_path: Path) -> None:
    spec = tmp_path / "plan.toml"
    spec.write_text(PLAN.replace("h100_sxm", "h1000"))
    result = cli.invoke(app, ["plan", str(spec)])
    assert isinstance(result.exception, SettingsError)
    ours = str(ROOT / "configs" / "compare" / "ours.toml")
    result = cli.invoke(app, ["compare", ours, ours, "--trace", str(tmp_path / "no.csv")])
    assert isinstance(result.exception, SettingsError)


def test_objectives_are_a_closed_set(tmp_path: Path) -> None:
    spec = tmp_path / "plan.toml"
    spec.write_text(PLAN)
    with pytest.raises(SettingsError, match="unknown 'beauty'"):
        answer(spec, objective="beauty")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "plan").glob("*.toml")), ids=lambda path: path.stem)
def test_the_examples_have_plans(path: Path) -> None:
    report = answer(path, check=False)
    assert report.feasible
    assert report.totals is not None
    assert all(one.chosen for one in report.answers)


def test_a_comparison_of_no_request_is_refused() -> None:
    ours, fixed = (str(ROOT / "configs" / "compare" / f"{name}.toml") for name in ("ours", "fixed"))
    refused = cli.invoke(app, ["compare", fixed, ours, "--seeds", "1", "--requests", "20", "--warmup", "9999"])
    assert isinstance(refused.exception, SettingsError)
    assert "No request is left after the first 9999 s" in refused.exception.message


def test_two_settings_compared(tmp_path: Path) -> None:
    page = tmp_path / "c.html"
    ours, fixed = (str(ROOT / "configs" / "compare" / f"{name}.toml") for name in ("ours", "fixed"))
    options = ["--seeds", "2", "--requests", "120"]
    shown = cli.invoke(app, ["compare", fixed, ours, *options, "--report", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "95 % interval" in shown.output
    assert "<svg" in page.read_text()
    result = json.loads(cli.invoke(app, ["compare", fixed, ours, *options, "--json"]).stdout)
    assert (result["a"], result["b"], result["seeds"]) == ("fixed", "ours", 2)
    assert result["differences"][0]["name"].startswith("$ per 1,000")
