"""What machines write to besides their own state: decisions at a bounded rate, and timers by name."""

from msgspec import Struct

from baseload.domain.actions import Action, CancelTimer, Record, SetTimer
from baseload.domain.units import NS_PER_S
from baseload.domain.work import Decision

WINDOW_NS = 10 * NS_PER_S
PER_WINDOW = 5  # decisions of one kind about one model in a window; more are counted, not written


class Flood(Struct):
    """How many decisions of one kind fell into the current window."""

    from_ns: int
    written: int
    held_back: int


class OutboxState(Struct):
    """All of the outbox's state."""

    timers: dict[str, int] = {}
    floods: dict[str, Flood] = {}


class Outbox:
    """Collects the actions of one step."""

    def __init__(self, state: OutboxState) -> None:
        self.state = state
        self.actions: list[Action] = []

    def take(self) -> list[Action]:
        """The actions collected since the last call."""
        actions, self.actions = self.actions, []
        return actions

    def decide(self, now_ns: int, what: str, *, subject: str, model: str, why: str) -> None:
        """Record a decision with its reason."""
        self.actions.append(Record(Decision(at_ns=now_ns, what=what, subject=subject, model=model, why=why)))

    def decide_often(self, now_ns: int, what: str, *, kind: str, subject: str, model: str, why: str) -> None:
        """Record a decision about one of many requests; a flood of one `kind` is thinned, and the gap counted."""
        name = f"{what}|{kind}|{model}"
        flood = self.state.floods.get(name)
        if flood is None or now_ns >= flood.from_ns + WINDOW_NS:
            if flood is not None and flood.held_back:
                why = f"{why} ({flood.held_back} more like this since {PER_WINDOW} were written)"
            flood = self.state.floods[name] = Flood(from_ns=now_ns, written=0, held_back=0)
        if flood.written < PER_WINDOW:
            flood.written += 1
            self.decide(now_ns, what, subject=subject, model=model, why=why)
        else:
            flood.held_back += 1

    def forget_model(self, model: str) -> None:
        """Drop the counts kept for a model that is gone."""
        for name in [name for name in self.state.floods if name.endswith(f"|{model}")]:
            del self.state.floods[name]

    def set_timer(self, timer: str, at_ns: int) -> None:
        """Set or move a timer."""
        if self.state.timers.get(timer) != at_ns:
            self.state.timers[timer] = at_ns
            self.actions.append(SetTimer(timer, at_ns))

    def set_earlier(self, timer: str, at_ns: int) -> None:
        """Set a timer, or move it if it was due later."""
        due_ns = self.state.timers.get(timer)
        if due_ns is None or at_ns < due_ns:
            self.set_timer(timer, at_ns)

    def cancel_timer(self, timer: str) -> None:
        """Forget a timer, if it is set."""
        if self.state.timers.pop(timer, None) is not None:
            self.actions.append(CancelTimer(timer))

    def fired(self, timer: str, now_ns: int) -> bool:
        """Whether a timer that fired is one that is set and due; it is then no longer set."""
        due_ns = self.state.timers.get(timer)
        if due_ns is None or now_ns < due_ns:
            return False
        del self.state.timers[timer]
        return True

    def set_all_again(self, *, not_before_ns: int, held: tuple[str, ...]) -> None:
        """After a restart the driver has forgotten all timers: set them again, those with prefixes `held` later."""
        for timer, at_ns in self.state.timers.items():
            due_ns = max(at_ns, not_before_ns) if timer.startswith(held) else at_ns
            self.state.timers[timer] = due_ns
            self.actions.append(SetTimer(timer, due_ns))
