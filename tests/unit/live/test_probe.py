"""Which samples are read and which are told."""

import msgspec

from baseload.domain.fleet import WorkerSample
from baseload.live.probe import Telling, read_sample


def test_a_sample_is_read_from_an_object_or_an_array():
    sample = WorkerSample(1, 2, 0.5, 30, 40)
    assert read_sample(msgspec.json.encode(sample)) == sample
    named = {"running": 1, "waiting": 2, "kv_usage": 0.5, "prompt_tokens": 30, "completion_tokens": 40, "more": 1}
    assert read_sample(msgspec.json.encode(named)) == sample
    for wrong in (b"", b"<html>", b'{"running": "many"}', b"[1, 2, {}]", b"7"):
        assert read_sample(wrong) is None


def test_samples_that_may_change_a_decision_are_told_and_others_now_and_then():
    telling = Telling()
    base = WorkerSample(running=1, kv_usage=0.5)
    assert telling.wants(base, 100.0)
    assert not telling.wants(base, 101.0)
    assert telling.wants(WorkerSample(running=2, kv_usage=0.5), 101.1)
    assert telling.wants(WorkerSample(running=2, waiting=1, kv_usage=0.5), 101.2)
    assert not telling.wants(WorkerSample(running=2, waiting=1, kv_usage=0.51), 101.3)
    assert telling.wants(WorkerSample(running=2, waiting=1, kv_usage=0.53), 101.4)
    counted = WorkerSample(running=2, waiting=1, kv_usage=0.53, completion_tokens=9)
    assert not telling.wants(counted, 102.0)
    assert telling.wants(counted, 103.5)
    assert not telling.wants(counted, 105.0)
    assert telling.wants(counted, 118.6)  # nothing new, but a sign of life
    telling.is_due = True
    assert telling.wants(counted, 118.7)
    assert not telling.wants(counted, 118.8)
