"""A control process to be killed: `recovery_child.py DIR FIRST SNAPSHOT_EVERY`. Prints what it acknowledged at once.

First `begin`, before it recovers. `key N`: a key created and acknowledged. `req N`: a request finished and settled.
It goes on until it is killed.
"""

import asyncio
import os
import sys
from pathlib import Path

from baseload.domain.actions import Dispatch, Refuse
from baseload.domain.events import FirstByteSent, KeyCreated, ModelPut, RequestFinished
from baseload.domain.model import ModelSpec
from baseload.domain.tenant import Key
from baseload.domain.work import Endpoint, Outcome, Request, TokenCounts
from baseload.live.launcher import LauncherOptions
from baseload.live.run import ControlOptions, start_control
from baseload.live.writer import JournalOptions


class Sink:
    """Takes what comes."""

    def dispatch(self, action: Dispatch) -> None:
        """Forward: nothing to do here."""

    def refuse(self, action: Refuse) -> None:
        """Refuse: not expected."""
        raise AssertionError(action)


async def main() -> None:
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    journal = JournalOptions(group_s=0.002 if number % 2 else 0.05)
    options = ControlOptions(
        launcher=LauncherOptions(cache_dir=folder), journal=journal, snapshot_every=int(sys.argv[3]), metered=False
    )
    os.write(1, b"begin\n")
    control = await start_control(folder, options=options)
    await control.acknowledge(ModelPut(ModelSpec(name="m", source="http://127.0.0.1:9")))
    await control.acknowledge(KeyCreated(Key(key_id="key_0", name="first", secret_sha256=f"{0:064x}", created_ns=1)))
    sink = Sink()
    while True:
        number += 1
        if number % 50 == 0:
            key = Key(key_id=f"key_{number}", name="k", secret_sha256=f"{number:064x}", created_ns=1)
            await control.acknowledge(KeyCreated(key))
            os.write(1, b"key %d\n" % number)
            continue
        request = Request(f"req_{number}", "key_0", "m", Endpoint.CHAT, 3, 4, 0)
        control.open(request, sink)
        control.tell(FirstByteSent(request.request_id))
        control.tell(RequestFinished(request.request_id, Outcome.OK, None, TokenCounts(3, 0, 4)))
        control.settle()
        os.write(1, b"req %d\n" % number)
        if number % 7 == 0:
            await asyncio.sleep(0)


asyncio.run(main())
