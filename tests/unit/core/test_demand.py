"""How many replicas the work that comes needs: counted in requests, or in tokens where their capacities are known."""

from collections import OrderedDict

from baseload.core.lanes import Lane
from baseload.core.lifecycle import Crew
from baseload.core.load import mean_answer, watch_demand
from baseload.domain.model import Admission, ModelSpec, Scaling
from baseload.domain.units import NS_PER_S


def lane() -> Lane:
    return Lane(model="m", admission=Admission(), queue=OrderedDict(), again={}, deadlines=[], prefixes=OrderedDict())


def needed(scaling: Scaling, *, prompt: int, answer: int, per_s: int = 4, seconds: int = 60) -> int:
    """Replicas wanted after so many seconds of a steady load whose answers end at once."""
    crew, queue = Crew(spec=ModelSpec(name="m", source="s", scaling=scaling)), lane()
    for second in range(seconds + 1):
        watch_demand(crew, queue, second * NS_PER_S)
        queue.requests_total += per_s
        queue.asked_tokens_total += per_s * prompt
        queue.completion_tokens_total += per_s * answer
    return crew.needs[-1][1]


def test_requests_are_all_alike_and_tokens_are_not() -> None:
    by_requests = Scaling(requests_per_s=2.0)
    assert needed(by_requests, prompt=500, answer=100) == needed(by_requests, prompt=4000, answer=100) == 2
    by_tokens = Scaling(prompt_tokens_per_s=1000.0, output_tokens_per_s=400.0)
    assert needed(by_tokens, prompt=500, answer=100) == 3  # 2 of prompts and 1 of answers
    assert needed(by_tokens, prompt=4000, answer=100) == 17
    assert needed(by_tokens, prompt=500, answer=1000) == 12


def test_answers_count_as_those_of_the_last_minute() -> None:
    assert mean_answer((0, 0, 0), (500, 0, 0)) == 0.0
    assert mean_answer((0, 1000, 10), (500, 1600, 12)) == 300.0
    assert mean_answer((500, 1600, 12), (900, 1600, 12)) == 1600 / 12  # none ended since: of all so far


def test_nothing_is_noted_where_no_capacity_is_known() -> None:
    crew, queue = Crew(spec=ModelSpec(name="m", source="s")), lane()
    watch_demand(crew, queue, NS_PER_S)
    assert (crew.arrived, crew.tokens, crew.needs) == ([], [], [])


def test_what_an_older_version_noted_is_kept() -> None:
    crew, queue = Crew(spec=ModelSpec(name="m", source="s", scaling=Scaling(requests_per_s=1.0))), lane()
    crew.arrived, queue.requests_total = [(0, 0), (10 * NS_PER_S, 20)], 30
    watch_demand(crew, queue, 20 * NS_PER_S)
    assert crew.arrived[0] == (0, 0)
    assert len(crew.tokens) == len(crew.arrived)
    assert crew.needs[-1][1] == 2  # 30 requests in 20 s
