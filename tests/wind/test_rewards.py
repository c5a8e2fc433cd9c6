"""Rewards: rules, and everything a user's function can do wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from wind.code.functions import source_digest
from wind.config.models import InferenceConfig
from wind.config.rewards import RuleRewardConfig
from wind.errors import ConfigError, InputError
from wind.fingerprints import file_digest
from wind.rewards import RewardsSpec, resolve_reward
from wind.rewards.functions import Responses
from wind.rewards.kinds.rule import Rule
from wind.stages import Job, Place, run
from wind.store.datasets import Store
from wind.store.handles import Dataset

QUESTIONS = {"a": "1+1=?", "b": "a much longer question about nothing", "c": "hi"}
RESPONSES = {"a": ["2", "three or so"], "b": ["no", "yes yes yes yes"], "c": ["", "12"]}


def published(store: Store, name: str, shards: list[pl.DataFrame]) -> Dataset:
    with store.partial(name, "made") as partial:
        for index, shard in enumerate(shards):
            partial.write(index, shard.to_arrow())
        return partial.publish(len(shards), parents={}, computed_by={}, numbers={}, provenance={})


def prompts(store: Store) -> Dataset:
    rows = [
        {
            "prompt_id": prompt_id,
            "prompt": f"<u>{question}<a>",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": question},
            ],
            "prompt_token_ids": [1],
            "split": "train",
            "answer": "2" if prompt_id == "a" else None,
            "meta": "{}",
        }
        for prompt_id, question in QUESTIONS.items()
    ]
    return published(store, "prompts", [pl.DataFrame(rows, schema_overrides={"answer": pl.String})])


def generations(store: Store) -> Dataset:
    """Prompt a in the first shard, b and c in the second."""
    rows = [
        {
            "prompt_id": prompt_id,
            "sample_index": index,
            "policy": "f",
            "response": response,
            "response_token_ids": [1],
            "logp_sampler": -1.0,
            "finish_reason": "stop",
            "seed": index,
        }
        for prompt_id, texts in RESPONSES.items()
        for index, response in enumerate(texts)
    ]
    return published(store, "generations", [pl.DataFrame(rows[:2]), pl.DataFrame(rows[2:])])


def rewarded(store: Store, reward: Rule) -> pl.DataFrame:
    return store.frame(run(job(store, reward), lambda done, total: None))


def job(store: Store, reward: Rule) -> Job:
    spec = RewardsSpec(
        prompts=prompts(store),
        generations=generations(store),
        reward=reward,
        inference=InferenceConfig(),
    )
    return Job(
        stage="rewards", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))
    )


@pytest.fixture
def rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> Callable[..., Rule]:
    """Makes a rule from source text, in a module of its own in the current folder."""
    monkeypatch.chdir(tmp_path)

    def make(source: str, *, name: str, components: tuple[str, ...] = ()) -> Rule:
        (tmp_path / f"{name}.py").write_text(source)
        config = RuleRewardConfig(kind="rule", function=f"{name}:reward", components=components)
        resolved = resolve_reward(store, config)
        assert name not in sys.modules, "resolving a rule must not run it"
        assert isinstance(resolved, Rule)
        return resolved

    return make


def test_a_rule_sees_the_users_own_words_and_the_gold_answers(
    store: Store, rule: Callable[..., Rule]
) -> None:
    source = """
def reward(prompts, responses, answers):
    assert all(type(texts) is list for texts in (prompts, responses, answers))
    return [100.0 * len(p) + len(r) + (1000.0 if a == "2" else 0.0) for p, r, a in zip(prompts, responses, answers)]
"""
    rows = rewarded(store, rule(source, name="lengths"))
    assert rows["prompt_id"].to_list() == ["a", "a", "b", "b", "c", "c"]
    assert rows["sample_index"].to_list() == [0, 1, 0, 1, 0, 1]
    assert rows["reward"].to_list() == [1501.0, 1511.0, 3602.0, 3615.0, 200.0, 202.0]


def test_the_prompt_of_a_conversation_is_its_last_user_message() -> None:
    chat = [
        {"role": role, "content": f"{role} {turn}"}
        for turn in (1, 2)
        for role in ("user", "assistant")
    ]
    rows = Responses(["a", "b"], [0, 0], [chat, chat[1:2]], ["x", "y"], [None, None])
    assert rows.prompts() == ["user 2", "assistant 1"]


def test_components_become_columns(store: Store, rule: Callable[..., Rule]) -> None:
    source = """
import numpy as np
def reward(prompts, responses, answers):
    length = np.array([len(response) for response in responses])
    return {"length": length, "has_gold": [a is not None for a in answers], "reward": -length.astype(np.float32)}
"""
    rows = rewarded(store, rule(source, name="parts", components=("has_gold", "length")))
    assert rows.columns == ["prompt_id", "sample_index", "reward", "has_gold", "length"]
    assert rows["length"].to_list() == [1.0, 11.0, 2.0, 15.0, 0.0, 2.0]
    assert rows["has_gold"].to_list() == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert rows["reward"].to_list() == [-1.0, -11.0, -2.0, -15.0, -0.0, -2.0]


def test_numbers_and_parents_of_the_dataset(store: Store, rule: Callable[..., Rule]) -> None:
    source = (
        "def reward(prompts, responses, answers):\n    return [float(p == 'hi') for p in prompts]\n"
    )
    handle = run(job(store, rule(source, name="constant_in_a_prompt")), lambda done, total: None)
    manifest = store.manifest(handle)
    assert manifest.numbers["mean_reward"] == pytest.approx(2 / 6)
    assert manifest.numbers["std_reward"] == pytest.approx((1 / 3 * 2 / 3) ** 0.5)
    assert manifest.numbers["distinct_share"] == 0.5  # one distinct reward in each prompt of two
    assert set(manifest.parents) == {"prompts", "generations"}
    assert [file.rows for file in manifest.files] == [2, 4]


def test_tensors_are_numbers_too(store: Store, rule: Callable[..., Rule]) -> None:
    source = (
        "import torch\ndef reward(prompts, responses, answers):\n    return "
        "torch.arange(len(prompts))\n"
    )
    assert rewarded(store, rule(source, name="tensors"))["reward"].to_list() == [
        0.0,
        1.0,
        0.0,
        1.0,
        2.0,
        3.0,
    ]


HEADER = "def reward(prompts, responses, answers):\n"
MISTAKES = {
    "raises": (
        HEADER + "    return [1 / len(r) for r in responses]\n",
        r"^reward.function raises:reward failed: ZeroDivisionError: division by zero "
        r"\(raises.py:2\) "
        r"on the 4 responses from prompt b, sample 0, 'a much longer question about nothing': "
        r"fix the function$",
    ),
    "raises_below": (
        "import json\n"
        + HEADER
        + "    return [score(r) for r in responses]\n\ndef score(r):\n    return json.loads('{')\n",
        r"JSONDecodeError: .* \(raises_below.py:6\) on the 2 responses from prompt a",
    ),
    "raises_many_lines": (
        HEADER + "    raise ValueError('first\\nsecond')\n",
        r"ValueError: first \(raises_many_lines.py:2\) on",
    ),
    "exits": (HEADER + "    exit(3)\n", r"SystemExit: 3 \(exits.py:2\)"),
    "takes_two": (
        "def reward(prompts, responses):\n    return [0.0]\n",
        r"TypeError: reward\(\) takes 2 positional arguments",
    ),
    "breaks_on_import": (
        "import no_such_package\ndef reward(prompts, responses, answers):\n    return []\n",
        r"cannot be imported: ModuleNotFoundError: No module named 'no_such_package' "
        r"\(breaks_on_import.py:1\): fix",
    ),
    "nan": (
        HEADER + "    return [float('nan') if r == 'no' else 1.0 for r in responses]\n",
        r"column reward, gave nan for prompt b, sample 0: every value must be a finite number of "
        r"at most 1e\+100$",
    ),
    "infinite": (
        HEADER + "    return [float('inf')] * len(responses)\n",
        r"gave inf for prompt a, sample 0 \(and 1 more rows\)",
    ),
    "huge": (
        HEADER + "    return [-1e308 if r == 'no' else 1e100 for r in responses]\n",
        r"gave -1e\+308 for prompt b, sample 0: every",
    ),
    "too_few": (
        HEADER + "    return [0.0]\n",
        r"column reward, returned 1 values for 2 responses: return one per response",
    ),
    "one_number": (
        HEADER + "    return 1.0\n",
        r"returned a float: return one number per response",
    ),
    "nothing": (HEADER + "    pass\n", r"returned a NoneType: return one number per response"),
    "late_generator": (
        HEADER + "    return (1 / len(r) for r in responses)\n",
        r"ZeroDivisionError: .* \(late_generator.py:2\) on the",
    ),
    "set": (HEADER + "    return {1.0, 2.0}\n", r"returned a set: return one number per response$"),
    "late_text": (
        HEADER + "    return ['1'] * 9\n",
        r"returned 9 values for 2 responses: return one per response, in order$",
    ),
    "text": (
        HEADER + "    return ['1'] * len(responses)\n",
        r"returned '1' for prompt a, sample 0: return numbers only",
    ),
    "mixed": (
        HEADER + "    return [1.0, 'x', 1.0, 1.0][:len(responses)]\n",
        r"returned 'x' for prompt a, sample 1: return numbers",
    ),
    "nulls": (
        HEADER + "    return [1.0, None, 1.0, 1.0][:len(responses)]\n",
        r"returned None for prompt a, sample 1",
    ),
    "columns": (
        HEADER + "    return [[1.0]] * len(responses)\n",
        r"returned \[1.0\] for prompt a, sample 0: return numbers only$",
    ),
    "ragged": (
        HEADER + "    return [[1.0], [1.0, 2.0]]\n",
        r"returned \[1.0\] for prompt a, sample 0: return numbers",
    ),
    "undeclared": (
        HEADER + "    return {'reward': [0.0] * len(responses), 'style': [0.0] * len(responses)}\n",
        r"returned style too: list it under reward.components, or drop it$",
    ),
    "no_reward": (
        HEADER + "    return {}\n",
        r"returned no reward: return a dict with reward, as configured$",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_users_mistake_is_one_line(store: Store, rule: Callable[..., Rule], mistake: str) -> None:
    source, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as caught:
        rewarded(store, rule(source, name=mistake))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_missing_component_is_named(store: Store, rule: Callable[..., Rule]) -> None:
    made = rule(HEADER + "    return [0.0] * len(responses)\n", name="bare", components=("style",))
    with pytest.raises(
        InputError,
        match="bare:reward returned no style: return a dict with reward, style, as configured",
    ):
        rewarded(store, made)


@pytest.mark.parametrize(
    ("source", "function", "message"),
    [
        (
            None,
            "no_such:reward",
            "there is no module no_such in .* or among the installed packages",
        ),
        (None, "there.is.none:reward", "there is no module there.is.none"),
        ("def other(): pass\n", "found:reward", "found.py defines no reward$"),
        (
            "def reward(:\n",
            "found:reward",
            "reward.function: found.py:1 does not parse: invalid syntax",
        ),
        ("x = 'reward'\n", "found:reward", "defines no reward"),
        ("if True:\n    from math import fsum as reward\n", "found:reward", None),
        ("from json import *\n", "found:reward", None),
        ("reward = lambda prompts, responses, answers: []\n", "found:reward", None),
        (None, "math:fsum", None),
    ],
)
def test_a_rule_is_looked_up_without_running_it(
    store: Store,
    rule: object,
    tmp_path: Path,
    source: str | None,
    function: str,
    message: str | None,
) -> None:
    if source is not None:
        (tmp_path / "found.py").write_text(source)
    config = RuleRewardConfig(kind="rule", function=function)
    if message is None:
        assert isinstance(resolve_reward(store, config), Rule)
        return
    with pytest.raises(ConfigError, match=message) as caught:
        resolve_reward(store, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("components", [("reward",), ("prompt_id",), ("x", "x")])
def test_a_component_may_not_take_a_columns_name(
    store: Store, rule: object, tmp_path: Path, components: tuple[str, ...]
) -> None:
    config = RuleRewardConfig(kind="rule", function="math:fsum", components=components)
    with pytest.raises(
        ConfigError, match=f"reward.components lists {components[0]} twice or beside"
    ):
        resolve_reward(store, config)


def test_the_digest_follows_the_module_and_what_it_imports_from_its_folder(
    store: Store, rule: object, tmp_path: Path
) -> None:
    def digest() -> str:
        return source_digest("reward.function", "kit.rules:reward")

    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "__init__.py").write_text("")
    (tmp_path / "kit" / "rules.py").write_text(
        "from . import words\nimport helper\ndef reward(p, r, a): ...\n"
    )
    (tmp_path / "kit" / "words.py").write_text("import json, helper.missing\n")
    (tmp_path / "helper.py").write_text("A = 1\n")
    (tmp_path / "unrelated.py").write_text("A = 1\n")
    seen = [digest()]
    (tmp_path / "unrelated.py").write_text("A = 2\n")
    assert digest() == seen[0]
    for changed in ("kit/__init__.py", "kit/rules.py", "kit/words.py", "helper.py"):
        (tmp_path / changed).write_text((tmp_path / changed).read_text() + "# edited\n")
        seen.append(digest())
    assert len(set(seen)) == 5
    read = {
        name: file_digest(tmp_path / path)
        for name, path in {"helper": "helper.py", "kit.words": "kit/words.py"}.items()
    }
    made = resolve_reward(store, RuleRewardConfig(kind="rule", function="kit.rules:reward"))
    assert isinstance(made, Rule)
    assert made.sources.items() >= read.items()
    assert set(made.sources) == {"kit", "kit.rules", "kit.words", "helper"}


def test_a_rule_edited_after_planning_is_refused(
    store: Store, rule: Callable[..., Rule], tmp_path: Path
) -> None:
    made = rule(HEADER + "    return [0.0] * len(responses)\n", name="edited_early")
    (tmp_path / "edited_early.py").write_text(HEADER + "    return [1.0] * len(responses)  # now\n")
    with pytest.raises(
        InputError,
        match="edited_early:reward was edited since this stage was planned: start the run again",
    ):
        rewarded(store, made)


def test_a_rule_edited_after_it_was_loaded_is_loaded_anew(
    store: Store, rule: Callable[..., Rule]
) -> None:
    rewarded(store, rule(HEADER + "    return [0.0] * len(responses)\n", name="edited_late"))
    # of the same size, in the same second
    edited = rule(HEADER + "    return [1.0] * len(responses)\n", name="edited_late")
    assert rewarded(store, edited)["reward"].to_list() == [1.0] * 6


@pytest.mark.slow
def test_rewards_run_by_hand(store: Store, rule: Callable[..., Rule], tmp_path: Path) -> None:
    made = job(
        store, rule(HEADER + "    return [float(len(r)) for r in responses]\n", name="by_hand")
    )
    (tmp_path / "spec.json").write_text(json.dumps({"stage": "rewards", "spec": made.spec}))
    repository = str(Path(__file__).resolve().parents[2])
    command = [
        sys.executable,
        "-m",
        "wind.stages",
        "spec.json",
        "--root",
        str(store.root),
        "--run-code",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": repository, "HOME": os.environ["HOME"]},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    handle = Dataset.model_validate_json(done.stdout)
    assert handle == run(made, lambda done, total: None)


@pytest.mark.slow
def test_the_stage_imports_no_engine() -> None:
    repository = Path(__file__).resolve().parents[2]
    code = (
        "import sys, wind.rewards, wind.win_rates, wind.evaluation, wind.metrics\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == "[]"
