"""Matches of a real run: two iterations, a held-out judge, and opponents of every kind."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from flows.distill import distill
from tasks.run import open_run
from tasks.stages import _function_seconds
from tests.flows.conftest import Recipe, Wind
from tests.wind.versions_case import verify
from wind.audit.diff import difference
from wind.audit.ratings import ratings
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.references import find_version
from wind.store.versions import Versions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "warm_workers")]

JUDGE = """
def letters(prompts, responses, answers):
    return [float(sum(character.isalpha() for character in response)) for response in responses]
"""
KEY = ["prompt_id", "sample_index"]
OPPONENTS = ("before", "gpt", "initial", "other", "sft")


def run(config: DistillConfig) -> list[str]:
    """The datasets that were computed, in order."""
    with open_run(config, quiet=True) as here:
        distill(here.config)
        return [event.name for event in here.events if event.outcome == "computed"]


@pytest.fixture
def other_model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with another chat template, so that it reads other prompts."""
    folder = tmp_path / "other_model"
    shutil.copytree(tiny_model, folder)
    template = folder / "chat_template.jinja"
    text = template.read_text()
    assert "'>'" in text
    template.write_text(text.replace("'>'", "'>1'"))
    return folder


@pytest.fixture
def contest(finished_recipe: Recipe, other_model: Path, tmp_path: Path) -> DistillConfig:
    """A recipe of two iterations with a judge and an opponent of every kind."""
    (tmp_path / "held_out.py").write_text(JUDGE)
    store = Store(tmp_path / "store")
    prompts = store.frame(find_version(store, "tiny").content.datasets["prompts"])
    asked = [messages[0]["content"] for messages in prompts.filter(split="eval")["messages"]]
    rows = [{"instruction": text, "output": "1"} for text in asked]
    # of the first prompt there are two, and an answer to a prompt that nobody asked
    rows += [rows[0] | {"output": "ab"}, {"instruction": "nobody asks", "output": "2"}]
    (tmp_path / "gpt.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return finished_recipe(
        "run=matched",
        "iterations=2",
        "evaluation.judges.held_out={kind: rule, function: 'held_out:letters'}",
        "evaluation.opponents.before={kind: policy, policy: previous}",
        "evaluation.opponents.other={kind: version, version: tiny@1}",
        f"evaluation.opponents.sft={{kind: model, path: {other_model}}}",
        "evaluation.opponents.gpt={kind: responses, path: gpt.jsonl}",
    )


def test_two_iterations_against_opponents_of_every_kind(
    contest: DistillConfig, command: Wind, tmp_path: Path
) -> None:
    computed = run(contest)
    assert run(contest) == []
    # what the first iteration samples was sampled by tiny; the previous policy never is
    assert [name for name in computed if "generations" in name] == [
        "reference_generations.other",
        "reference_generations.sft",
        "generations",
        "eval_generations",
    ]
    store = Store(tmp_path / "store")
    first, second = Versions(store, "matched")
    assert verify(store, second) > 0
    assert second.checks["matches"] > 0

    matches = store.frame(second.content.datasets["matches"])
    assert set(matches["judge"]) == {"gold", "held_out", "training"}
    assert tuple(sorted(set(matches["opponent"]))) == OPPONENTS
    evaluation = store.frame(second.content.datasets["evaluation"])
    training = matches.filter(judge="training", opponent="initial")
    for ours, theirs in (
        ("win_rate", "win_rate"),
        ("reward_opponent", "reward_reference"),
        ("response_tokens_opponent", "response_tokens_reference"),
    ):
        assert training[ours].to_list() == evaluation[theirs].to_list()
    assert second.metrics["win_rate.training.initial"]["value"] == pytest.approx(
        second.metrics["win_rate"]["value"]
    )
    # by hand: the judge counts letters, and the stored responses have none but the second "ab"
    texts = store.frame(second.content.datasets["eval_generations"], [*KEY, "response"])
    held_out = matches.filter(judge="held_out", opponent="gpt").join(texts, on=KEY)
    several = held_out.group_by("prompt_id").agg(pl.col("mean_tokens_opponent").first())
    assert sorted(several["mean_tokens_opponent"])[-1] == 2.5  # "1" and "ab", and their ends
    assert held_out["response_tokens_opponent"].null_count() == len(several) - 1
    for row in held_out.iter_rows(named=True):
        letters = sum(character.isalpha() for character in row["response"])
        others = [0, 2] if row["mean_tokens_opponent"] == 2.5 else [0]
        points = [(letters > other) + (letters == other) / 2 for other in others]
        assert row["win_rate"] == sum(points) / len(points)
        assert row["reward_policy"] == letters

    # the previous policy of the second iteration is what the first one ended with
    before = matches.filter(judge="held_out", opponent="before").select(*KEY, "reward_opponent")
    then = store.frame(first.content.datasets["matches"]).filter(
        judge="held_out", opponent="initial"
    )
    assert before["reward_opponent"].to_list() == then["reward_policy"].to_list()
    for judge in ("held_out", "training", "gold"):
        rated = ratings(store, [first, second], judge)
        assert [rating.iteration for rating in rated] == [0, 1, 2]
        assert rated[0].rating == 0
    names = {name.partition(".")[0] for name in second.metrics if "." in name}
    assert names == {"win_rate", "tie_share", "lc_win_rate"}
    assert "lc_win_rate.gold.gpt" not in second.metrics

    # the model that reads other prompts was asked the same ones, under the same names
    parents = store.manifest(second.content.datasets["matches"]).parents
    asked = store.manifest(parents["generations.sft"]).parents["prompts"]
    assert asked != second.content.datasets["prompts"]
    assert isinstance(asked, Dataset)
    columns = ["prompt_id", "split", "prompt"]
    named = store.frame(second.content.datasets["prompts"], columns)
    read = store.frame(asked, columns)
    assert named.drop("prompt").equals(read.drop("prompt"))
    assert [text.replace("<u>1", "<u>", 1) for text in read["prompt"]] == named["prompt"].to_list()
    found = difference(store, first, second)
    assert next(each for each in found.datasets if each.name == "matches").changed > 0
    assert any(each.name == "lc_win_rate.held_out.gpt" for each in found.metrics)

    code, out, _ = command("ratings", "matched", "--judge", "held_out", "--json")
    assert code == 0
    assert json.loads(out)["held_out"][1]["elo"] == pytest.approx(
        ratings(store, [first, second], "held_out")[1].elo
    )
    assert command("ratings", "matched")[0] == 0
    assert command("ratings", "matched", "--judge", "nobody")[0] == 2
    for arguments in (
        ("lineage", "matched"),
        ("verify", "matched"),
        ("show", "matched"),
        ("versions", "matched"),
        ("diff", "matched@1", "matched@2"),
        ("export", "matched", "exported", "--format", "hf"),
        ("export", "matched", "matched.tar", "--format", "archive"),
        ("import", "matched.tar", "--as", "again"),
        ("verify", "again"),
    ):
        code, _, err = command(*arguments)
        assert code == 0, (arguments, err)


def test_a_model_is_evaluated_without_a_training(
    finished_recipe: Recipe, other_model: Path, tiny_model: Path, command: Wind, tmp_path: Path
) -> None:
    finished_recipe()
    # a version of the store, against the recipe's policy: what its own run measured
    code, out, _ = command("evaluate", "tiny@1", "--config", "tiny.yaml", "--json")
    assert code == 0
    made = json.loads(out)
    store = Store(tmp_path / "store")
    tiny = find_version(store, "tiny")
    assert (made["run"], made["content"]["iteration"]) == ("evaluate-tiny-1", 0)
    names = ("win_rate", "kl_k1", "mean_reward", "accuracy")
    assert {name: made["metrics"][name]["value"] for name in names} == {
        name: tiny.metrics[name]["value"] for name in names
    }
    version = find_version(store, "evaluate-tiny-1")
    assert verify(store, version) > 0
    assert version.content.model_in == version.content.model_out == tiny.content.model_out
    code, _, err = command("evaluate", "tiny@1", "--config", "tiny.yaml")
    assert "0 datasets computed" in err

    # the recipe's own policy has nobody to be compared with
    code, out, _ = command("evaluate", str(tiny_model), "--config", "tiny.yaml", "--json")
    assert code == 0
    metrics = json.loads(out)["metrics"]
    assert "mean_reward" in metrics
    assert not {"win_rate", "kl_k1", "accuracy_gain"} & {*metrics}

    # a model that reads other tokens is one more opponent
    code, out, _ = command(
        "evaluate", str(other_model), "--config", "tiny.yaml", "--set", "run=other", "--json"
    )
    assert code == 0
    metrics = json.loads(out)["metrics"]
    assert "win_rate" not in metrics
    assert 0 <= metrics["win_rate.training.against"]["value"] <= 1
    assert command("verify")[0] == 0
    code, _, err = command("run", "tiny.yaml", "--from", "other@1")
    assert code == 2
    assert "other@1 is an evaluation, which trained nothing that could be continued" in err


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (
            "evaluation.opponents.gpt={kind: responses, path: none.jsonl}",
            r"^evaluation\.opponents\.gpt\.path .*/none\.jsonl does not exist: give a file of",
        ),
        (
            "evaluation.opponents.best={kind: version, version: other@3}",
            r"^evaluation\.opponents\.best\.version: no version is called 'other@3'",
        ),
        (
            "evaluation.opponents.sft={kind: model, path: ./none}",
            r"^evaluation\.opponents\.sft\.path \./none does not exist: name a model folder",
        ),
        (
            "evaluation.opponents.sft={kind: model, path: ., revision: main}",
            r"^evaluation\.opponents\.sft\.revision is for Hub ids",
        ),
        (
            "evaluation.judges.held_out={kind: rule, function: 'none:f'}",
            r"^evaluation\.judges\.held_out\.function none:f: there is no module none",
        ),
    ],
)
def test_whom_nobody_knows_is_named_before_anything_is_computed(
    recipe: Recipe, setting: str, says: str
) -> None:
    with (
        pytest.raises(ConfigError, match=says),
        open_run(recipe(setting), planning=True, quiet=True) as here,
    ):
        distill.fn(here.config)


def test_a_plan_names_what_matches_need_and_a_judge_has_its_own_time(
    recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "held_out.py").write_text(JUDGE)
    judge = "{kind: rule, function: 'held_out:letters', timeout: 7}"
    config = recipe(
        f"evaluation.judges.held_out={judge}",
        "evaluation.opponents.before={kind: policy, policy: previous}",
    )
    with open_run(config, planning=True, quiet=True) as here:
        distill.fn(here.config)
        planned = [event.name for event in here.events if event.outcome == "planned"]
        assert _function_seconds(here.config, "rewards") == 3600
        with here.beside("held_out", "held_out"):
            assert _function_seconds(here.config, "rewards") == 7
    assert planned[-5:] == [
        "evaluation",
        "eval_rewards.held_out",
        "reference_rewards.initial.held_out",
        "matches",
        "metrics",
    ]
