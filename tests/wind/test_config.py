"""Config: recipes load from YAML with overrides, and every mistake is one line that names the
setting.
"""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import ValidationError

from wind.config.loading import load_config
from wind.config.objectives import AnyObjectiveConfig, WindObjectiveConfig
from wind.config.recipe import DistillConfig
from wind.config.rewards import ClassifierRewardConfig, RuleRewardConfig
from wind.errors import ConfigError

RECIPE = """\
run: demo
policy: {path: models/base}
prompts:
  source: prompts.jsonl
reward: {kind: rule, function: "rewards:length"}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "demo.yaml"
    path.write_text(RECIPE)
    return path


def message_of(path: Path | str, *overrides: str) -> str:
    """What is wrong with a recipe, without the path that every message begins with."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text.removeprefix(f"{path}").removeprefix(": ")


def test_a_recipe_is_its_values_and_the_defaults(recipe: Path) -> None:
    config = load_config(recipe)
    assert config == DistillConfig.model_validate(yaml.safe_load(RECIPE))
    assert (config.run, config.seed, config.iterations) == ("demo", 0, 3)
    # relative to where the run starts, not to the recipe
    assert config.prompts.source == "prompts.jsonl"
    assert config.reward == RuleRewardConfig(kind="rule", function="rewards:length")


def test_a_credential_is_refused_and_not_repeated(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_PASSWORD", "correct-horse")
    for override in (
        "prompts.source=https://ann:pa55@host/x",
        "root=s3://AKIAIOSFODNN7EXAMPLE:x@bucket",
        "policy.path=correct-horse",
    ):
        name = override.partition("=")[0]
        assert (
            message_of(recipe, override)
            == f"{name} holds a credential: leave it out, and set it in the environment, such as "
            "HF_TOKEN"
        )


def test_one_bound_of_a_drift_can_be_set(recipe: Path) -> None:
    drift = load_config(
        recipe, ["checks.drift.kl.fail=20", "checks.drift.tie_share={warn: null}"]
    ).checks.drift
    assert (drift.kl.warn, drift.kl.fail) == (10, 20)
    assert (drift.tie_share.warn, drift.tie_share.fail) == (None, None)
    assert message_of(recipe, "checks.drift.kl.warm=1").startswith(
        "checks.drift.kl.warm is not a setting; did you mean"
    )
    assert message_of(recipe, "checks.drift.kl.warn=-1").startswith(
        "checks.drift.kl.warn is -1; it must be greater than or equal"
    )
    assert (
        message_of(recipe, "checks.drift=3")
        == "checks.drift is 3; it must be a mapping of settings"
    )


def test_overrides_are_yaml_and_the_last_one_counts(recipe: Path) -> None:
    config = load_config(
        recipe,
        [
            "training.lr=1e-6",  # YAML 1.1 reads 1e-6 as text; a learning rate it is
            "training.lr=1e-7",
            "training.gradient_checkpointing=true",
            "prompts.limit=10",
            "reward={kind: classifier, path: models/reward}",
            "workers.python.vllm=/opt/vllm/bin/python",
            "policy.revision=null",
            "root= s3=ish ",
        ],
    )
    assert config.training.lr == 1e-7
    assert config.training.gradient_checkpointing is True
    assert config.prompts.limit == 10
    assert config.prompts.source == "prompts.jsonl"  # the rest of the section stays
    assert config.reward == ClassifierRewardConfig(kind="classifier", path="models/reward")
    assert config.workers.python == {"vllm": "/opt/vllm/bin/python"}
    assert config.policy.revision is None
    assert config.root == "s3=ish"


def test_an_empty_section_is_made_where_an_override_needs_it(recipe: Path) -> None:
    recipe.write_text(RECIPE + "training:\n")
    assert load_config(recipe, ["training.epochs=2"]).training.epochs == 2
    assert message_of(recipe) == "training is empty; it must be a mapping of settings"


@pytest.mark.parametrize("written", ["1e-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_a_learning_rate_in_any_notation(recipe: Path, written: str) -> None:
    recipe.write_text(f"{RECIPE}training: {{lr: {written}}}\n")
    assert load_config(recipe).training.lr == 1e-5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # misspelt: the nearest neighbor, in the same section first
        (
            "training.learning_rate=1",
            "training.learning_rate is not a setting; did you mean training.lr?",
        ),
        ("training.epoch=1", "training.epoch is not a setting; did you mean training.epochs?"),
        (
            "training.batch_size=1",
            "training.batch_size is not a setting; did you mean training.batch_prompts?",
        ),
        (
            "sampling.max-new-tokens=1",
            "sampling.max-new-tokens is not a setting; did you mean sampling.max_new_tokens?",
        ),
        ("trainig.lr=1", "trainig is not a setting; did you mean training?"),
        ("temperature=1", "temperature is not a setting; did you mean sampling.temperature?"),
        ("training.beta=1", "training.beta is not a setting; did you mean objective.beta?"),
        ("reward.fuction=x:y", "reward.fuction is not a setting; did you mean reward.function?"),
        (
            "reference.xyzzy=1",
            "reference.xyzzy is not a setting; the settings of reference are kind, rate",
        ),
        # impossible: the value and what is allowed
        ("training.lr=-1", "training.lr is -1; it must be greater than 0"),
        (
            "training.lr=fast",
            "training.lr is 'fast'; it must be a valid number, unable to parse string as a number",
        ),
        ("training.lr=.nan", "training.lr is nan; it must be a finite number"),
        (
            "training.lora.rnk=4",
            "training.lora.rnk is not a setting; did you mean training.lora.rank?",
        ),
        ("training.lora.rank=0", "training.lora.rank is 0; it must be greater than or equal to 1"),
        ("training.zero_stage=4", "training.zero_stage is 4; it must be 0, 1, 2 or 3"),
        (
            "objective.shift=whole",
            "objective.shift is 'whole'; it must be 'half', 'strict', 'centred', 'learned' or "
            "'plug_in'",
        ),
        (
            "objective={name: dpo, beat: 1}",
            "objective.beat is not a setting; did you mean objective.beta?",
        ),
        (
            "objective={name: raft, xyzzy: 1}",
            "objective.xyzzy is not a setting; the settings of objective are name",
        ),
        (
            "selection.rows=some",
            "selection.rows is 'some'; it must be 'auto', 'all', 'best', 'best_worst' or "
            "'best_random'",
        ),
        ("objective={name: bond, n: 1}", "objective.n is 1; it must be greater than or equal to 2"),
        ("objective=3", "objective is 3; it must be a mapping of settings"),
        ("prompts.eval_fraction=1", "prompts.eval_fraction is 1; it must be less than 1"),
        ("prompts.limit=1", "prompts.limit is 1; it must be greater than or equal to 2"),
        (
            "seed=0.5",
            "seed is 0.5; it must be a valid integer, got a number with a fractional part",
        ),
        ("training.lr=", "training.lr is empty; it must be a valid number"),
        ("run=7", "run is 7; it must be a valid string"),
        ("training=3", "training is 3; it must be a mapping of settings"),
        (
            "workers.python.ray=x",
            "workers.python.ray is 'ray'; it must be 'transformers', 'vllm', 'training' "
            "or 'benchmarks'",
        ),
        (
            "reward.kind=clasifier",
            "reward.kind is 'clasifier'; it must be 'rule' or 'classifier' or 'pairwise' "
            "or 'judge' or 'remote' or 'overlong' or 'repetition' or 'math' or 'mix'",
        ),
        (
            "reward={path: x}",
            "reward.kind is required and missing; it must be 'rule' or 'classifier' or 'pairwise' "
            "or 'judge' or 'remote' or 'overlong' or 'repetition' or 'math' or 'mix'",
        ),
        ("reward={kind: classifier}", "reward.path is required and missing"),
        (
            "reward={kind: overlong, max_tokens: 4, cache_tokens: 5}",
            "reward: cache_tokens is 5 of 4 max_tokens: the penalty would set in before a response "
            "begins",
        ),
        (
            "reward={kind: mix, rewards: {a: {kind: mix, rewards: {}}}}",
            "reward.rewards.a.kind is 'mix'; it must be 'rule' or 'classifier' or 'pairwise' "
            "or 'judge' or 'remote' or 'overlong' or 'repetition' or 'math'",
        ),
        (
            "reward={kind: mix, rewards: {a: {kind: pairwise, path: x}}}",
            "reward.rewards: a is pairwise and gives preferences, which do not add up: only "
            "rewards that give each response a number can be mixed",
        ),
        (
            "reward={kind: mix, rewards: {a: {kind: classifier, pth: x, path: y}}}",
            "reward.rewards.a.pth is not a setting; did you mean reward.rewards.a.path?",
        ),
        (
            "reward={kind: mix, rewards: {a: {kind: math}}, weights: {b: 1}}",
            "reward.weights: there is no reward b: the rewards are a",
        ),
        (
            "reward={kind: mix, combine: min, rewards: {a: {kind: math}}, weights: {a: 0}}",
            "reward.weights: a has the weight 0, and the least of several rewards needs weights "
            "above 0",
        ),
        (
            "evaluation.judges={held_out: {kind: clasifier}}",
            "evaluation.judges.held_out.kind is 'clasifier'; it must be 'rule' or 'classifier' "
            "or 'pairwise' or 'judge' or 'remote' or 'overlong' or 'repetition' or 'math' or "
            "'mix'",
        ),
        (
            "evaluation.judges={both: {kind: mix, rewards: {a: {kind: classifier}}}}",
            "evaluation.judges.both.rewards.a.path is required and missing",
        ),
        ("policy={}", "policy.path is required and missing"),
        # rules over several settings
        (
            "training={zero_stage: 2, offload: optimizer_and_parameters}",
            "training: offload optimizer_and_parameters needs zero_stage 3 or more: what is not "
            "sharded cannot be offloaded",
        ),
        (
            "training.micro_prompts=3",
            "training: batch_prompts must be a multiple of micro_prompts * ranks",
        ),
        (
            "sampling.samples_per_prompt=1",
            "sampling.samples_per_prompt must be at least 2: a win rate needs a sibling to win "
            "against",
        ),
        (
            "selection.rows=best",
            "selection.rows is 'best', and the objective wind can train on 'all' or 'best_worst' "
            "or 'best_random'",
        ),
        (
            "objective={name: bond, n: 9}",
            "sampling.samples_per_prompt must be at least 9: the objective bond needs as many",
        ),
        (
            "objective={name: jbond, anchor_samples: 2}",
            "objective: anchor_samples are drawn afresh, and stored samples are the policy's "
            "alone: set refresh_steps",
        ),
        (
            "objective={name: bond, n: 4, refresh_steps: 1, anchor_samples: 3}",
            "objective: anchor_samples must be at least n, which is 4: the best of n is one of them",
        ),
        (
            "objective={name: jbond, refresh_steps: 1, anchor_samples: 1}",
            "objective.anchor_samples is 1; it must be greater than or equal to 2",
        ),
        (
            "reference.kind=ema",
            "reference: kind ema needs a rate: J-BOND's authors take 0.02, and try 0.01 to 0.1",
        ),
        (
            "reference.rate=0.1",
            "reference: rate is for kind ema, and the kind is initial: remove the rate",
        ),
        (
            "reference={kind: ema, rate: 2}",
            "reference.rate is 2; it must be less than or equal to 1",
        ),
        (
            "reference={kind: ema, rate: 0.02}",
            "reference.kind ema moves during training, and the objective wind compares with "
            "stored log-probabilities: "
            "set objective.refresh_steps (bond, jbond, grpo, rloo), or reference.kind previous",
        ),
        (
            "objective={name: jbond, refresh_steps: 0}",
            "objective.refresh_steps is 0; it must be greater than or equal to 1",
        ),
        (
            "objective={name: raft, refresh_steps: 1}",
            "objective.refresh_steps is not a setting; the settings of objective are name",
        ),
        (
            "objective={name: inpo, eta: 0.001}",
            "objective: tau must not be larger than eta: the current policy's weight is 1 - tau/eta",
        ),
        # the override itself
        (
            "training.lr",
            "'training.lr' is not an override: write section.key=value, for example "
            "training.lr=1e-6",
        ),
        ("=1", "'=1' is not an override: write section.key=value, for example training.lr=1e-6"),
        (
            "training..lr=1",
            "'training..lr=1' is not an override: write section.key=value, for example "
            "training.lr=1e-6",
        ),
        (
            "policy.path.x=1",
            "'policy.path.x=1': policy.path is 'models/base' and has no settings of its own",
        ),
    ],
)
def test_a_mistake_is_one_line(recipe: Path, override: str, message: str) -> None:
    assert message_of(recipe, override) == message


def test_every_objective_has_defaults_and_wind_is_the_one_unless_named(recipe: Path) -> None:
    assert load_config(recipe, ["objective.beta=2"]).objective == WindObjectiveConfig(beta=2)
    sections = {
        get_args(section.model_fields["name"].annotation)[0]: section
        for section in get_args(AnyObjectiveConfig)
    }
    for name, section in sections.items():
        objective = load_config(recipe, [f"objective={{name: {name}}}"]).objective
        assert objective == section(name=name)
        assert (
            load_config(recipe, [f"objective={objective.model_dump_json()}"]).objective == objective
        )
    assert message_of(recipe, "objective.name=dop") == (
        f"objective.name is 'dop'; it must be {' or '.join(repr(name) for name in sections)}"
    )


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (
            "{name: grpo, refresh_steps: 1}",
            "sampling.samples_per_prompt must be at least 2: a win rate needs a sibling to win "
            "against",
        ),
        (
            "{name: jbond, refresh_steps: 1}",
            "sampling.samples_per_prompt must be at least 2: the objective jbond draws as many "
            "samples of its anchor as of the "
            "policy, and needs 2 of it; or set objective.anchor_samples",
        ),
    ],
)
def test_one_sample_is_enough_only_beside_those_of_an_anchor(
    recipe: Path, objective: str, message: str
) -> None:
    assert message_of(recipe, f"objective={objective}", "sampling.samples_per_prompt=1") == message


def test_samples_of_policy_and_anchor_are_counted_apart(recipe: Path) -> None:
    alone = ["sampling.samples_per_prompt=1", "training.epochs=2"]
    drawn = {
        objective: load_config(recipe, [f"objective={objective}", *alone]).responses_per_prompt()
        for objective in (
            "{name: jbond, refresh_steps: 1, anchor_samples: 2}",
            "{name: bond, n: 4, refresh_steps: 1, anchor_samples: 16}",
        )
    }
    assert list(drawn.values()) == [2 * (1 + 2), 2 * (1 + 16)]
    assert load_config(
        recipe, ["objective={name: jbond, refresh_steps: 1}", *alone[1:]]
    ).responses_per_prompt() == 2 * (8 + 8)


def test_the_recipe_of_jbond_is_algorithm_2() -> None:
    recipe = load_config(Path(__file__).parents[2] / "configs" / "llama3-ultrafeedback-jbond.yaml")
    assert (recipe.sampling.samples_per_prompt, recipe.objective.anchor_samples_for(1)) == (1, 2)
    assert (recipe.training.epochs, recipe.responses_per_prompt()) == (1, 3)


def test_an_override_that_is_no_yaml(recipe: Path) -> None:
    assert message_of(recipe, "training={lr: 1").startswith(
        "'training={lr: 1' line 1: expected ',' or '}'"
    )


def test_several_mistakes_are_counted_and_misspelt_keys_come_first(recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("policy:", "polcy:"))
    assert message_of(recipe) == "polcy is not a setting; did you mean policy? (and 1 more)"
    assert message_of(recipe, "seed=-1").endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must be a mapping of settings such as `run: demo`, not empty"),
        (
            "- run: demo\n",
            "must be a mapping of settings such as `run: demo`, not [{'run': 'demo'}]",
        ),
        ("run: demo\npolicy: {path: x\nseed: 1\n", "line 3: "),
        ("run: demo\n\tseed: 1\n", "line 2: "),
        (RECIPE + "run: again\n", "line 6: run is set twice"),
        (RECIPE + "training:\n  lr: 1\n  epochs: 2\n  lr: 2\n", "line 9: lr is set twice"),
        (
            "run: !!python/object/apply:os.system [ls]\n",
            "line 1: could not determine a constructor",
        ),
        ("run: \x00\n", "is not YAML: "),
    ],
)
def test_a_file_that_is_no_recipe(recipe: Path, content: str, message: str) -> None:
    recipe.write_text(content)
    assert message in message_of(recipe)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    assert message_of("no.yaml") == " does not exist: give the path of a recipe, a YAML file"
    assert (
        message_of(tmp_path)
        == " is a folder, not a plain file: give the path of a recipe, a YAML file"
    )
    (tmp_path / "bytes.yaml").write_bytes(b"run: \xff\n")
    assert "cannot be read: " in message_of(tmp_path / "bytes.yaml")


def test_yaml_anchors_and_merges_still_work(recipe: Path) -> None:
    recipe.write_text(
        RECIPE + "sampling: &s {top_k: 3, top_p: 0.5}\nevaluation: {samples_per_prompt: 2}\n"
    )
    assert load_config(recipe).sampling.top_k == 3
    recipe.write_text("base: &b {top_k: 3}\n" + RECIPE + "sampling: {<<: *b, top_p: 0.5}\n")
    # merged, and only the extra key is wrong
    assert message_of(recipe).startswith("base is not a setting")
    recipe.write_text(
        RECIPE + "workers: {python: &p {vllm: a}}\nsampling: {top_k: 2, top_p: 0.5}\n"
    )
    assert load_config(recipe).workers.python == {"vllm": "a"}


def test_every_key_is_known_and_frozen(recipe: Path) -> None:
    config = load_config(recipe)
    with pytest.raises(ValidationError):
        config.training.lr = 1.0  # type: ignore[misc]
    for name in type(config).model_fields:
        value: Any = getattr(config, name)
        if hasattr(value, "model_config"):
            assert value.model_config["extra"] == "forbid", name
            assert value.model_config["frozen"] is True, name
