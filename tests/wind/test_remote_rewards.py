"""Rewards that a server computes, over real HTTP, in both protocols."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.wind.endpoint_case import Fake, Server
from wind.config.models import InferenceConfig
from wind.config.rewards import RemoteRewardConfig
from wind.endpoints import connect, connections
from wind.errors import InputError, StageError
from wind.rewards import resolve_reward
from wind.rewards.functions import Responses
from wind.rewards.kinds.remote import Remote
from wind.store.datasets import Store

TEXTS = ["a", "bb", "", "dddd", "eeeee"]


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def server(fake: Fake) -> Iterator[Server]:
    with Server(fake) as server:
        yield server


def rows(texts: Sequence[str] = TEXTS) -> Responses:
    number = len(texts)
    messages = [{"role": "user", "content": "why?"}]
    answers = ["because", *[None] * (number - 1)]
    rendered = ["<u>why?<a>"] * number
    return Responses(
        ["p"] * number, range(number), [messages] * number, texts, answers, (), rendered
    )


def resolved(store: Store, *urls: str, **fields: Any) -> Remote:
    given = {"timeout": 5.0, "retry_seconds": 20.0, "concurrency": 2, "batch_size": 2} | fields
    reward = resolve_reward(store, RemoteRewardConfig(kind="remote", url=urls, **given))
    assert isinstance(reward, Remote)
    return reward


def scored(store: Store, reward: Remote, texts: Sequence[str] = TEXTS) -> list[float]:
    judge = reward.judge(store, InferenceConfig(), "cpu", None)
    columns = judge(rows(texts), None, lambda done, total: None)
    assert [*columns] == ["reward"]
    return list(columns["reward"])


def test_the_protocol_has_two_fields(store: Store, server: Server, fake: Fake) -> None:
    reward = resolved(store, server.url)
    assert scored(store, reward) == [1.0, 2.0, 0.0, 4.0, 5.0]
    asked = sorted(fake.posts, key=lambda said: len(said["responses"][0]), reverse=True)
    assert asked[0] == {
        "prompts": [[{"role": "user", "content": "why?"}]],
        "responses": ["eeeee"],
    }
    assert [len(said["responses"]) for said in asked] == [1, 2, 2]
    assert reward == Remote(computes="lengths-1", is_told=True)
    assert not reward.gives_preferences


def test_the_protocol_of_openrlhf(store: Store, server: Server, fake: Fake) -> None:
    fake.rewards = lambda said: {
        "rewards": [len(text) - len("<u>why?<a>") for text in said["query"]],
        "scores": [0] * len(said["query"]),
        "extra_logs": {"dummy": [0] * len(said["query"])},
    }
    reward = resolved(store, server.url, protocol="openrlhf", identity="lengths", batch_size=5)
    assert scored(store, reward) == [1.0, 2.0, 0.0, 4.0, 5.0]
    assert fake.posts == [
        {
            "query": [f"<u>why?<a>{text}" for text in TEXTS],
            "prompts": ["<u>why?<a>"] * 5,
            "labels": ["because", "", "", "", ""],
        }
    ]
    assert fake.gets == []


def test_identity_is_content_and_the_address_is_not(store: Store, server: Server) -> None:
    with Server(Fake()) as other:
        assert resolved(store, server.url) == resolved(store, other.url, server.url)
    assert resolved(store, server.url, identity="x") != resolved(store, server.url)


@pytest.mark.parametrize("said", [None, {}, {"identity": " "}, ["x"], 3])
def test_a_server_that_does_not_say_what_it_computes(
    store: Store, server: Server, fake: Fake, said: Any
) -> None:
    fake.identity = said
    with pytest.raises(InputError, match=r"or set reward\.identity$"):
        resolved(store, server.url)


def test_servers_that_differ(store: Store, server: Server, fake: Fake) -> None:
    with (
        Server(Fake(identity="lengths-2")) as other,
        pytest.raises(InputError, match="name replicas of one server"),
    ):
        resolved(store, server.url, other.url)
    reward = resolved(store, server.url)
    fake.identity = "lengths-2"
    with pytest.raises(StageError, match="computes 'lengths-2' now, and computed 'lengths-1'"):
        scored(store, reward)


def test_failing_one_request_in_three_costs_only_time(
    store: Store, server: Server, fake: Fake
) -> None:
    reward = resolved(store, server.url, batch_size=1)
    fake.fails_every = 3
    assert scored(store, reward) == [1.0, 2.0, 0.0, 4.0, 5.0]


def test_replicas_share_the_work(store: Store, server: Server, fake: Fake) -> None:
    other = Fake()
    with Server(other) as second:
        reward = resolved(store, server.url, second.url, batch_size=1, concurrency=1)
        assert scored(store, reward, TEXTS[:4]) == [1.0, 2.0, 0.0, 4.0]
        assert len(fake.posts) == len(other.posts) == 2
        second.stop()
        assert scored(store, reward, TEXTS[:4]) == [1.0, 2.0, 0.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"rewards": [1.0]}, r"with 2 numbers$"),
        ({"rewards": [1.0] * 3}, r"with 2 numbers$"),
        ({"scores": [1.0] * 2}, r"with 2 numbers$"),
        ([1.0, 2.0], r"with 2 numbers$"),
        ({"rewards": ["1", 2.0]}, "gave '1' for prompt p, sample 0: it must be a number"),
        ({"rewards": [1.0, None]}, "gave empty for prompt p, sample 1: it must be a number"),
        ({"rewards": [1.0, True]}, "gave True for prompt p, sample 1"),
        (b'{"rewards": [1.0, NaN]}', "gave nan for prompt p, sample 1: every value must be finite"),
        (b'{"rewards": [1e400, 1]}', "gave inf for prompt p, sample 0"),
        (b'{"rewards": [' + b"9" * 400 + b", 1]}", "gave a number too large on the 2 responses"),
        (b"<html>", "answered with no JSON .* on the 2 responses from prompt p, sample 0"),
    ],
)
def test_what_is_no_reward(
    store: Store, server: Server, fake: Fake, answer: Any, message: str
) -> None:
    reward = resolved(store, server.url)
    fake.rewards = lambda said: answer
    with pytest.raises(InputError, match=message.replace("finite", "a finite")) as raised:
        scored(store, reward, TEXTS[:2])
    assert "\n" not in str(raised.value)


def test_a_refusal_names_the_rows(store: Store, server: Server, fake: Fake) -> None:
    reward = resolved(store, server.url)
    fake.fails_every, fake.status = 1, 422
    with pytest.raises(InputError) as raised:
        scored(store, reward, TEXTS[:1])
    assert str(raised.value).startswith(f"reward.url: {server.url} refuses the request (status 422")
    assert str(raised.value).endswith("on the 1 responses from prompt p, sample 0")


def test_a_worker_needs_the_connection(store: Store, server: Server) -> None:
    reward = resolved(store, server.url)
    known = connections()[reward.identity()]
    assert known.urls == (server.url,)
    connect({reward.identity(): known.model_copy(update={"urls": ("",)})})
    with pytest.raises(StageError, match="no address of the remote reward is known here"):
        scored(store, reward)
