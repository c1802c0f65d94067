"""Golden journals: the same events under the same policy version cause the same actions, to the byte."""

import hashlib
from pathlib import Path

import msgspec
import pytest

from baseload.core.control import POLICY_VERSION, ControlMachine
from baseload.domain.events import Event

JOURNALS = sorted((Path(__file__).parent / "control").glob("*.msgpack"))
WHAT_TO_DO = (
    "The control machine answers a recorded journal differently. If the change of policy is meant, raise "
    "POLICY_VERSION in baseload/core/control.py and run tests/golden/control/make_journals.py."
)


def test_there_are_journals() -> None:
    assert len(JOURNALS) == 3


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.stem)
@pytest.mark.parametrize("saves_every", [0, 97], ids=["straight", "restored"])
def test_journal_causes_its_actions(path: Path, saves_every: int) -> None:
    header, journal = msgspec.msgpack.decode(
        path.read_bytes(), type=tuple[dict[str, str | int], list[tuple[int, Event]]]
    )
    assert header["policy_version"] == POLICY_VERSION, WHAT_TO_DO
    assert header["events"] == len(journal)
    machine = ControlMachine(seed=int(header["seed"]))
    digest, count = hashlib.sha256(), 0
    for number, (at_ns, event) in enumerate(journal):
        if saves_every and number % saves_every == 0:
            machine = ControlMachine.restore(machine.snapshot())
        for action in machine.step(at_ns, event):
            digest.update(msgspec.msgpack.encode(action))
            count += 1
        machine.check()
    assert count == header["actions"], WHAT_TO_DO
    assert digest.hexdigest() == header["actions_sha256"], WHAT_TO_DO
