"""Every option is frozen here by name and default, and documented in docs/settings.md and the printed example."""

import re
import tomllib
from pathlib import Path

from baseload.cli.settings import OTHER_VARIABLES, variable
from baseload.wire.settings import GLOBAL_OPTIONS, MODEL_DOCS, MODEL_OPTIONS, OPTIONS
from baseload.wire.settings_text import example_toml, markdown_rows

PAGE = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()

# Adding, renaming or changing the default of an option is a decision: it is made here too, and in the changelog.
FROZEN = {
    "host": "127.0.0.1",
    "port": 8080,
    "data_dir": "baseload-data",
    "cache_dir": "",
    "log_level": "info",
    "guide": True,
    "drain_s": 30.0,
    "spares": 1,
    "gateway.max_body_bytes": 16777216,
    "journal.max_events": 5_000_000,
    "journal.max_age_days": 90,
    "limits.catalogue": "",
    "scaling.min_replicas": 0,
    "scaling.max_replicas": 1,
    "scaling.idle_s": 300.0,
    "scaling.target_queue_delay_s": 0.5,
    "scaling.target_kv_usage": 0.85,
    "scaling.scale_up_cooldown_s": 10.0,
    "scaling.start_timeout_s": 600.0,
    "scaling.drain_timeout_s": 600.0,
    "scaling.requests_per_s": 0.0,
    "scaling.scale_down_s": 30.0,
    "scaling.prompt_tokens_per_s": 0.0,
    "scaling.output_tokens_per_s": 0.0,
    "admission.max_queue": 1024,
    "admission.max_wait_s": 120.0,
    "admission.max_concurrency_per_replica": 64,
    "admission.max_attempts": 3,
    "engine.dtype": "auto",
    "engine.deterministic": False,
    "engine.max_seqs": 32,
    "engine.max_step_tokens": 512,
    "engine.kv_cache_bytes": 0,
    "engine.block_tokens": 16,
    "engine.max_context": 0,
    "engine.max_waiting": 256,
    "engine.prefix_cache": True,
    "engine.threads": 0,
    "engine.kernels": "auto",
    "engine.kv_dtype": "auto",
    "engine.ttft_target_s": 0.0,
    "engine.tpot_target_s": 0.0,
    "engine.priority_ttft_target_s": 0.0,
    "engine.priority_tpot_target_s": 0.0,
    "engine.flex_ttft_target_s": 0.0,
    "engine.flex_tpot_target_s": 0.0,
    "engine.guess": "off",
    "engine.guess_tokens": 4,
    "price.usd_per_hour": 0.1,
    "price.busy_w": 30.0,
    "price.idle_w": 5.0,
    "remote.secret": "",
    "remote.ca_file": "",
}


def test_no_option_appears_or_changes_unnoticed() -> None:
    now = {option.path: option.default for option in (*GLOBAL_OPTIONS, *MODEL_OPTIONS)}
    assert now == FROZEN


def test_every_option_is_documented_as_it_is() -> None:
    rows = markdown_rows([*GLOBAL_OPTIONS, *MODEL_OPTIONS])
    missing = [row for row in rows if row not in PAGE]
    assert not missing, "docs/settings.md lacks these rows:\n" + "\n".join(missing)


def test_nothing_is_documented_that_is_not_there() -> None:
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE, re.M))
    assert documented == set(FROZEN)
    assert set(re.findall(r"^\| `(BASELOAD_[A-Z_]+)` \|", PAGE, re.M)) == set(OTHER_VARIABLES)


def test_every_option_says_what_it_means() -> None:
    assert [option.path for option in (*GLOBAL_OPTIONS, *MODEL_OPTIONS) if not option.doc] == []
    assert set(MODEL_DOCS) == {option.path for option in MODEL_OPTIONS}, (
        "MODEL_DOCS names an option that is not there"
    )


def test_environment_names_are_distinct() -> None:
    names = [variable(path) for path in OPTIONS]
    assert len(names) == len(set(names))
    assert not set(names) & set(OTHER_VARIABLES)


def test_the_printed_example_names_every_option_with_its_default() -> None:
    written = tomllib.loads(re.sub(r"(?m)^#(?=[a-z_.]+ = |\[)", "", example_toml()))

    def at(path: str) -> object:
        value: object = written
        for part in path.split("."):
            assert isinstance(value, dict)
            value = value[part]
        return value

    assert {path: at(path) for path in OPTIONS} == {path: option.default for path, option in OPTIONS.items()}
