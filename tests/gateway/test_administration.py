"""Administration over HTTP: keys, models, status, usage, events, shutdown; and who may do it."""

import json
import re

import pytest

from baseload.domain.events import ShutdownAsked


async def call(house, method: str, path: str, body: object = None, *, secret: str | None = None):
    data = b"" if body is None else json.dumps(body).encode()
    headers = [("authorization", f"Bearer {house.admin_secret if secret is None else secret}")]
    reply = await house.client.request(method, house.url + path, body=data, headers=headers)
    return reply.status, json.loads(reply.body)


async def test_keys_are_shown_once(house):
    status, made = await call(house, "POST", "/admin/v1/keys", {"name": "new", "limits": {"max_in_flight": 3}})
    assert status == 201
    secret = made["secret"]
    assert secret.startswith(made["key"]["prefix"])
    _, listed = await call(house, "GET", "/admin/v1/keys")
    assert [key["name"] for key in listed["keys"]] == ["admin", "user", "new"]
    assert "secret" not in json.dumps(listed)
    assert secret not in repr(house.control.journal)
    answer = await house.openai.with_options(api_key=secret).models.list()
    assert answer.data
    status, _ = await call(house, "DELETE", f"/admin/v1/keys/{made['key']['key_id']}")
    assert status == 200
    status, error = await call(house, "GET", "/v1/models", secret=secret)
    assert (status, error["error"]["code"]) == (401, "invalid_api_key")


async def test_the_last_admin_key_stays(house):
    _, listed = await call(house, "GET", "/admin/v1/keys")
    admin = listed["keys"][0]["key_id"]
    status, error = await call(house, "DELETE", f"/admin/v1/keys/{admin}")
    assert status == 400
    assert "last admin key" in error["error"]["message"]
    await call(house, "POST", "/admin/v1/keys", {"name": "second", "is_admin": True})
    assert (await call(house, "DELETE", f"/admin/v1/keys/{admin}"))[0] == 200


async def test_models(house):
    spec = {"name": "org/new", "source": house.worker.url, "admission": {"max_queue": 5}}
    status, made = await call(house, "POST", "/admin/v1/models", spec)
    assert (status, made["admission"]["max_queue"]) == (201, 5)
    answer = await house.openai.chat.completions.create(
        model="org/new", messages=[{"role": "user", "content": "hello"}]
    )
    assert answer.choices[0].message.content == "hello"
    assert (await house.openai.models.retrieve("org/new")).id == "org/new"
    status, _ = await call(house, "PUT", "/admin/v1/models/org%2Fnew", spec)
    assert status == 200
    status, error = await call(house, "PUT", "/admin/v1/models/other", spec)
    assert (status, error["error"]["param"]) == (400, "name")
    assert (await call(house, "DELETE", "/admin/v1/models/org/new"))[0] == 200
    assert (await call(house, "DELETE", "/admin/v1/models/org/new"))[0] == 404
    _, listed = await call(house, "GET", "/admin/v1/models")
    assert [model["name"] for model in listed["models"]] == ["m", "sleepy"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"name": "bad name"}, "name"),
        ({"source": ""}, "source"),
        ({"scaling": {"min_replicas": 2, "max_replicas": 1}}, "scaling.min_replicas"),
        ({"scaling": {"target_kv_usage": 0}}, "scaling.target_kv_usage"),
        ({"admission": {"max_attempts": 0}}, "admission.max_attempts"),
        ({"engine": {"dtype": "int3"}}, "engine.dtype"),
        ({"scaling": {"idle_ns": 2**63}}, "scaling.idle_ns"),
        ({"engine": {"max_waiting": 10**30}}, "engine.max_waiting"),
        ({"price": {"usd_per_hour": 1e300}}, "price.usd_per_hour"),
        ({"unknown": 1}, None),
    ],
)
async def test_wrong_model(house, change, param):
    status, error = await call(house, "POST", "/admin/v1/models", {"name": "x", "source": "/x", **change})
    assert (status, error["error"]["param"]) == (400, param)
    assert house.control.model("x") is None


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"limits": {"requests_per_minute": 10**24}}, "limits"),  # beyond what the journal can write
        ({"limits": {"tokens_per_minute": -1}}, "limits"),
        ({"name": " "}, "name"),
        ({"name": "\x1b[31mred"}, "name"),  # would reach the terminal of who lists the keys
    ],
)
async def test_wrong_key(house, change, param):
    before = len(house.control.keys())
    status, error = await call(house, "POST", "/admin/v1/keys", {"name": "x", **change})
    assert (status, error["error"]["param"]) == (400, param)
    assert len(house.control.keys()) == before


async def test_status_usage_events(house):
    await house.openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "a b"}])
    _, status = await call(house, "GET", "/admin/v1/status")
    assert [model["name"] for model in status["models"]] == ["m", "sleepy"]
    assert status["requests_total"] == 1
    _, usage = await call(house, "GET", "/admin/v1/usage?from_day=2026-11-01")
    assert usage["usage"][0]["requests"] == 1
    _, events = await call(house, "GET", "/admin/v1/events?limit=2&kind=RequestFinished")
    assert [row["kind"] for row in events["events"]] == ["RequestFinished"]
    for query in ("limit=0", "limit=x", "after_seq=-1", "wrong=1"):
        assert (await call(house, "GET", f"/admin/v1/events?{query}"))[0] == 400
    assert (await call(house, "GET", "/admin/v1/usage?from_day=today"))[0] == 400


async def test_who_may(house):
    for method, path in [
        ("GET", "/admin/v1/status"),
        ("POST", "/admin/v1/keys"),
        ("DELETE", "/admin/v1/models/m"),
        ("POST", "/admin/v1/shutdown"),
        ("GET", "/admin/v1/nothing"),
    ]:
        status, error = await call(house, method, path, secret=house.secret)
        assert (status, error["error"]["code"]) == (403, "forbidden")
        status, error = await call(house, method, path, secret="bl-wrong")
        assert (status, error["error"]["code"]) == (401, "invalid_api_key")
    assert house.control.model("m") is not None
    assert (await call(house, "GET", "/admin/v1/nothing"))[0] == 404
    status, error = await call(house, "DELETE", "/admin/v1/status")
    assert (status, error["error"]["code"]) == (405, "method_not_allowed")


async def test_shutdown(house):
    status, answer = await call(house, "POST", "/admin/v1/shutdown", {"grace_s": 1.5})
    assert (status, answer["grace_s"]) == (202, 1.5)
    assert [event for _, event, _ in house.control.journal if isinstance(event, ShutdownAsked)] == [
        ShutdownAsked(1_500_000_000)
    ]


async def test_health_and_metrics(house):
    assert (await house.client.request("GET", f"{house.url}/health")).status == 200
    await house.openai.chat.completions.create(model="m", messages=[{"role": "user", "content": "a b"}])
    url, narrow = f"{house.url}/metrics", [("authorization", f"Bearer {house.key('narrow')}")]
    assert (await house.client.request("GET", url)).status == 401
    assert (await house.client.request("GET", url, headers=narrow)).status == 403
    admin = [("authorization", f"Bearer {house.admin_secret}")]
    text = (await house.client.request("GET", url, headers=admin)).body.decode()
    sample = re.compile(r'[a-z0-9_:]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? [0-9.e+-]+')
    assert all(sample.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
    for line in (
        'vllm:prompt_tokens_total{model_name="m"} 7',
        'vllm:generation_tokens_total{model_name="m"} 2',
        'vllm:num_requests_running{model_name="m"} 0',
        'vllm:e2e_request_latency_seconds_count{model_name="m"} 1',
        'vllm:time_to_first_token_seconds_bucket{model_name="m",le="+Inf"} 1',
        'baseload_requests_total{model_name="m",outcome="ok",reason=""} 1',
        "baseload_gateway_requests_in_flight 0",
    ):
        assert line in text.splitlines()


async def test_extra_routes(house):
    class Page:
        def takes(self, path):
            return path == "/"

        def handle(self, exchange):
            exchange.respond(200, b"<p>hello", content_type="text/html")

    house.gateway._extra_routes = (Page(),)
    reply = await house.client.request("GET", f"{house.url}/")
    assert (reply.status, reply.body) == (200, b"<p>hello")
    assert (await house.client.request("GET", f"{house.url}/other")).status == 404
