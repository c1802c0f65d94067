import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from baseload.core.batch import BatcherTotals
from baseload.domain.errors import Reason, Refusal
from baseload.domain.sampling import Sampling
from baseload.engine.structured import GrammarCompiler
from baseload.engine.tokenizer import TextTokenizer
from baseload.wire.openai import parse_chat, parse_completion
from baseload.wire.prometheus import Histogram
from baseload.worker import process, read_ahead
from baseload.worker.metrics import Metrics
from baseload.worker.prepare import Served, prepare


@pytest.fixture
def served(tiny_model: Path) -> Served:
    tokenizer = TextTokenizer.open(tiny_model)
    grammars = GrammarCompiler(tokenizer.to_json, vocab_size=tokenizer.vocab_size, eos_token_ids=(1,))
    return Served(
        "tiny",
        "r1",
        tokenizer,
        grammars,
        vocab_size=tokenizer.vocab_size,
        max_context=64,
        capacity=10,
        defaults=Sampling(),
    )


def test_text_parts_are_joined_and_the_template_has_the_last_word_on_special_tokens(served: Served) -> None:
    whole = parse_chat(b'{"model":"m","messages":[{"role":"user","content":"ab"}]}')
    parts = parse_chat(
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}'
    )
    job = prepare(whole, served=served, request_id="1", seed=4)
    assert job.prompts == prepare(parts, served=served, request_id="2", seed=4).prompts
    assert list(job.prompts[0]).count(0) == 1  # one begin token, from the template
    assert job.seed == 4


def test_without_a_template_only_completions_work(served: Served) -> None:
    served.tokenizer.chat = None
    with pytest.raises(Refusal, match="no chat template") as caught:
        prepare(
            parse_chat(b'{"model":"m","messages":[{"role":"user","content":"x"}]}'),
            served=served,
            request_id="1",
            seed=0,
        )
    assert caught.value.param == "messages"
    job = prepare(parse_completion(b'{"model":"m","prompt":"x","seed":9}'), served=served, request_id="1", seed=0)
    assert (len(job.prompts), job.seed) == (1, 9)


@pytest.mark.parametrize(("tokens", "fits"), [(63, True), (64, False)])
def test_a_prompt_must_leave_room_for_one_token(served: Served, tokens: int, fits: bool) -> None:
    request = parse_completion(b'{"model":"m","prompt":[' + b",".join([b"5"] * tokens) + b"]}")
    if fits:
        assert len(prepare(request, served=served, request_id="1", seed=0).prompts[0]) == 63
        return
    with pytest.raises(
        Refusal, match=r"maximum context length is 64 tokens, however you requested 80 tokens"
    ) as caught:
        prepare(request, served=served, request_id="1", seed=0)
    assert caught.value.reason is Reason.CONTEXT_TOO_LONG


def test_what_is_far_too_long_is_refused_before_it_is_encoded(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = parse_chat(b'{"model":"m","messages":[{"role":"user","content":"%s"}]}' % (b"word " * 100_000))
    completion = parse_completion(b'{"model":"m","max_tokens":7,"prompt":"%s"}' % (b"word " * 100_000))
    monkeypatch.setattr(TextTokenizer, "encode", lambda *_, **__: pytest.fail("it was encoded"))
    with pytest.raises(Refusal, match=r"resulted in \d{5} tokens or more") as caught:
        prepare(chat, served=served, request_id="1", seed=0)
    assert (caught.value.reason, caught.value.param) == (Reason.CONTEXT_TOO_LONG, "messages")
    with pytest.raises(Refusal, match=r"\(\d{5} or more in your prompt; 7 for the completion\)") as caught:
        prepare(completion, served=served, request_id="1", seed=0)
    assert (caught.value.reason, caught.value.param) == (Reason.CONTEXT_TOO_LONG, "prompt")


def test_histograms_count_up() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    assert list(histogram.lines("x", (("m", "a"),))) == [
        'x_bucket{m="a",le="0.1"} 2',
        'x_bucket{m="a",le="1.0"} 3',
        'x_bucket{m="a",le="+Inf"} 4',
        'x_sum{m="a"} 7.65',
        'x_count{m="a"} 4',
    ]


def test_the_metrics_page_is_well_formed() -> None:
    page = Metrics().render(
        model='a"b\n', running=1, waiting=2, kv_usage=0.5, totals=BatcherTotals(3, 1, 4, 0, 9), block_tokens=16
    )
    for line in page.decode().splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) [\w:]+ .+|[\w:]+\{[^{}]*\} \S+", line), line
    assert b'vllm:generation_tokens_total{model_name="a\\"b\\n"} 4\n' in page


@pytest.mark.parametrize(("renewals", "sleeps"), [(0, 13), (3, 16)])
async def test_a_worker_ends_a_minute_after_its_last_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renewals: int, sleeps: int
) -> None:
    lease, now, slept = tmp_path / "lease", [1000.0], []

    async def sleep(seconds: float) -> None:
        now[0] += seconds
        slept.append(seconds)
        if len(slept) <= renewals:
            lease.touch()
            os.utime(lease, (now[0], now[0]))

    monkeypatch.setattr(process, "time", SimpleNamespace(time=lambda: now[0]))
    monkeypatch.setattr(process, "asyncio", SimpleNamespace(sleep=sleep))
    codes: list[int] = []
    await process._watch_lease(lease, codes.append)
    assert codes == [0]
    assert len(slept) == sleeps


def test_reading_ahead_asks_for_large_files_within_what_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (
        ("a.safetensors", 3 << 20),
        ("b.safetensors", 2 << 20),
        ("small.safetensors", 10),
        ("x.txt", 0),
    ):
        (tmp_path / name).write_bytes(bytes(size))
    asked: list[str] = []

    def advise(descriptor: int, *_: int) -> None:
        asked.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(read_ahead.importlib.util, "find_spec", lambda _: None)
    read_ahead._ask(tmp_path)
    assert asked == ["a.safetensors", "b.safetensors"]
    asked.clear()
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": 9 << 20, "SC_PAGE_SIZE": 1}.get)
    read_ahead._ask(tmp_path)
    assert asked == ["a.safetensors"]
    asked.clear()
    read_ahead._ask(tmp_path / "b.safetensors")
    read_ahead._ask(tmp_path / "nothing")
    assert asked == ["b.safetensors"]
