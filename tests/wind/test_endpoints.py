"""The client of HTTP endpoints: retries, replicas, limits, keys, and what users are told."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.wind.endpoint_case import Fake, Server
from wind.config.endpoints import Connection
from wind.config.rewards import JudgeRewardConfig
from wind.endpoints import connection_to, take_counts
from wind.endpoints.client import Endpoint, is_loopback
from wind.endpoints.limits import Budget, Pace, SpentError
from wind.errors import ConfigError, InputError, StageError

SECRET = "sk-verysecret-0123456789"


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def server(fake: Fake) -> Iterator[Server]:
    with Server(fake) as server:
        yield server


def connection(*urls: str, **given: Any) -> Connection:
    fields: dict[str, Any] = {"timeout": 5.0, "retry_seconds": 20.0, "concurrency": 4}
    fields |= {"requests_per_minute": None, "api_key_variable": None}
    return Connection(urls=urls, **{**fields, **given})


def scores(endpoint: Endpoint, number: int) -> list[Any]:
    def ask(index: int) -> Any:
        return endpoint.post("", b'{"responses": ["%s"]}' % (b"x" * index))["rewards"][0]

    return sorted(endpoint.map(ask, range(number)))


def test_one_request_in_three_fails_and_costs_only_time(server: Server, fake: Fake) -> None:
    fake.fails_every = 3
    take_counts()
    with Endpoint(connection(server.url), "reward") as endpoint:
        assert scores(endpoint, 20) == list(range(20))
    counts = take_counts()
    assert counts["requests"] == len(fake.posts)
    assert counts["retries"] == len(fake.posts) - 20 > 0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_status_that_may_pass_is_tried_again(server: Server, fake: Fake, status: int) -> None:
    fake.fails_every, fake.status = 2, status
    with Endpoint(connection(server.url), "reward") as endpoint:
        assert [endpoint.post("", b'{"responses": ["ab"]}')["rewards"] for _ in range(2)] == [
            [2.0]
        ] * 2
    assert len(fake.posts) == 3


def test_the_server_says_when_to_come_back(server: Server, fake: Fake) -> None:
    fake.fails_every, fake.status, fake.headers = 1, 429, {"Retry-After": "0.3"}
    timer = threading.Timer(0.1, lambda: setattr(fake, "fails_every", 0))
    with Endpoint(connection(server.url), "reward") as endpoint:
        begun = time.monotonic()
        timer.start()
        endpoint.post("", b'{"responses": []}')
    timer.join()
    assert len(fake.posts) == 2
    assert 0.3 <= time.monotonic() - begun < 3


def test_no_more_are_under_way_than_allowed(server: Server, fake: Fake) -> None:
    fake.seconds = 0.02
    with Endpoint(connection(server.url, concurrency=3), "reward") as endpoint:
        scores(endpoint, 30)
    assert 2 <= fake.most_under_way <= 3


def test_requests_keep_their_pace() -> None:
    pace, begun = Pace(1200), time.monotonic()
    for _ in range(5):
        pace.wait()
    assert 0.2 <= time.monotonic() - begun < 2


def test_replicas_take_turns_and_a_dead_one_is_left_alone(server: Server, fake: Fake) -> None:
    other = Fake()
    with Server(other) as second:
        urls = server.url, second.url
        with Endpoint(connection(*urls), "reward") as endpoint:
            scores(endpoint, 20)
            assert len(fake.posts) == len(other.posts) == 10
            second.stop()
            assert scores(endpoint, 20) == list(range(20))
            assert len(fake.posts) == 30
            second.start()
            endpoint._replicas[1].rests_until = 0.0
            scores(endpoint, 20)
            assert len(other.posts) == 20


def test_a_server_that_is_restarted_in_the_middle(server: Server, fake: Fake) -> None:
    fake.seconds = 0.02
    results: list[Any] = []
    with Endpoint(connection(server.url, concurrency=2), "reward") as endpoint:
        thread = threading.Thread(target=lambda: results.extend(scores(endpoint, 40)))
        thread.start()
        while fake.answered < 10:
            time.sleep(0.01)
        server.stop()
        time.sleep(0.3)
        server.start()
        thread.join(30)
    assert results == list(range(40))


def test_nobody_answers(server: Server) -> None:
    server.stop()
    with (
        Endpoint(connection(server.url, retry_seconds=0.5), "reward") as endpoint,
        pytest.raises(StageError) as raised,
    ):
        endpoint.post("/x", b"{}")
    said = str(raised.value)
    assert said.startswith(f"reward.url: {server.url}/x gave no answer in 0.5 seconds (ConnectErr")
    assert said.endswith("start it, correct the address, or raise reward.retry_seconds")
    assert "\n" not in said


def test_an_endpoint_that_never_answers(server: Server, fake: Fake) -> None:
    fake.seconds = 1.0
    with (
        Endpoint(connection(server.url, timeout=0.1, retry_seconds=0.3), "reward") as endpoint,
        pytest.raises(StageError, match=r"gave no answer in 0.3 seconds \(ReadTimeout"),
    ):
        endpoint.post("", b"{}")


def test_refusals_are_one_line(server: Server, fake: Fake) -> None:
    fake.fails_every = 1
    with Endpoint(connection(server.url), "reward") as endpoint:
        for status, message in {
            400: "refuses the request (status 400, {",
            404: "refuses the request (status 404",
            302: "sends requests elsewhere (status 302",
            401: "reward.api_key_variable: ",
        }.items():
            fake.status = status
            with pytest.raises((InputError, ConfigError)) as raised:
                endpoint.post("", b'{"responses": []}')
            assert message in str(raised.value)
            assert "\n" not in str(raised.value)
    assert len(fake.posts) == 4


@pytest.mark.parametrize("content", [b"<html>no</html>", b"", b"\xff", b"[" * 1000])
def test_an_answer_that_is_no_json(server: Server, fake: Fake, content: bytes) -> None:
    fake.rewards = lambda said: content
    with (
        Endpoint(connection(server.url), "reward") as endpoint,
        pytest.raises(InputError, match="answered with no JSON"),
    ):
        endpoint.post("", b"{}")


def test_a_key_is_read_from_the_environment_and_never_said(
    server: Server, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.key = SECRET
    keyed = connection(server.url, api_key_variable="JUDGE_API_KEY")
    with pytest.raises(ConfigError, match="names JUDGE_API_KEY, which is not set: export it"):
        Endpoint(keyed, "reward")
    monkeypatch.setenv("JUDGE_API_KEY", "sk-another-0123456789")
    with Endpoint(keyed, "reward") as endpoint, pytest.raises(ConfigError, match="refuses the key"):
        endpoint.post("", b'{"responses": []}')
    monkeypatch.setenv("JUDGE_API_KEY", SECRET)
    with Endpoint(keyed, "reward") as endpoint:
        endpoint.post("", b'{"responses": []}')
    assert SECRET not in repr(keyed)
    fake.rewards = lambda said: f"no json: {SECRET}".encode()
    with Endpoint(keyed, "reward") as endpoint, pytest.raises(InputError) as raised:
        endpoint.post("", b"{}")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.0.0.1", True),
        ("http://[::1]:80", True),
        ("http://judge.localhost", True),
        ("https://api.example.com/v1", False),
        ("http://localhost.example.com", False),
    ],
)
def test_loopback(url: str, is_here: bool) -> None:
    assert is_loopback(url) == is_here


def test_a_proxy_of_the_environment_is_not_used_for_loopback(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with Endpoint(connection(server.url), "reward") as endpoint:
        assert endpoint.post("", b'{"responses": ["a"]}') == {"rewards": [1.0]}


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host/v1",
        "http://user:word@host/v1",
        "http://host/v1?key=1",
        "http://host /v1",
        ["http://host/v1", "file:///etc/passwd"],
    ],
)
def test_an_address_that_is_none(url: Any) -> None:
    with pytest.raises(ValueError, match="it must be an address such as"):
        JudgeRewardConfig(kind="judge", url=url)


def test_a_variable_whose_value_would_be_logged() -> None:
    with pytest.raises(ValueError, match="such as JUDGE_API_KEY"):
        JudgeRewardConfig(kind="judge", url="http://host", api_key_variable="JUDGE")


def test_a_budget_holds_under_any_threads() -> None:
    """Of requests that may cost 2 and cost 1, those fit for which 2 are left: 1 + ... + 2 <= 10."""
    budget, sent = Budget(10.0), []

    def ask() -> None:
        while True:
            try:
                budget.reserve(2.0)
            except SpentError:
                return
            sent.append(1)
            time.sleep(0.001)
            budget.settle(2.0, 1.0)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sent) == 9
    with pytest.raises(SpentError, match="9 of 10 are spent, and the next request may cost 2"):
        budget.reserve(2.0)


def test_an_answer_that_is_lost_may_have_its_price(server: Server, fake: Fake) -> None:
    fake.seconds, budget = 0.5, Budget(5.0)
    with (
        Endpoint(connection(server.url, timeout=0.1), "reward", budget=budget) as endpoint,
        pytest.raises(SpentError),
    ):
        endpoint.post("", b'{"responses": []}', most=2.0, cost=lambda answer: 1.0)
    assert len(fake.posts) == 2


def test_a_reward_without_an_address() -> None:
    with pytest.raises(StageError, match="no address of the judge x is known here: run the recipe"):
        connection_to("0" * 64, "the judge x")
