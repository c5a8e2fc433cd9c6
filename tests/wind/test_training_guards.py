"""Numbers that are not finite: who is told what, and that the weights stay as they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from tests.wind.objective_case import config_of
from tests.wind.rollouts_case import roll, rollouts_spec, write_reward
from tests.wind.training_case import (
    DEEPSPEED_WARNINGS,
    GROUPS,
    Inputs,
    make_inputs,
    make_spec,
    publish,
    train,
)
from wind.config.training import TrainingConfig
from wind.errors import TrainingError
from wind.machine.environment import variables
from wind.objectives import objective_for
from wind.store.datasets import Store
from wind.store.imports import import_model
from wind.training.assignments import World
from wind.training.batches import COLUMNS, Plan, as_rows, load_rows
from wind.training.guards import marks, refuse_marked, refuse_norm

slow = pytest.mark.slow
pytestmark = DEEPSPEED_WARNINGS


@pytest.fixture
def inputs(store: Store, tiny_model: Path) -> Inputs:
    return make_inputs(store, tiny_model)


@pytest.fixture(scope="module")
def loop() -> Any:
    """The loop, imported for a CPU."""
    with variables({"DS_ACCELERATOR": "cpu"}):
        import wind.training.loop as module

    return module


def rewarded(store: Store, inputs: Inputs, prompt_id: str, reward: float) -> Inputs:
    """`inputs` with another reward of the best response to one prompt."""
    best = store.frame(inputs["win_rates"]).filter(
        pl.col("rank") == 1, pl.col("prompt_id") == prompt_id
    )["sample_index"][0]
    is_best = (pl.col("prompt_id") == prompt_id) & (pl.col("sample_index") == best)
    rewards = store.frame(inputs["rewards"]).with_columns(
        reward=pl.when(is_best).then(reward).otherwise("reward")
    )
    return inputs | {
        "rewards": publish(
            store,
            "rewards",
            rewards.to_dict(as_series=False) | {"sample_index": rewards["sample_index"]},
        )
    }


def prompts_of_step(store: Store, inputs: Inputs, step: int) -> list[str]:
    spec = make_spec(inputs)
    groups = Plan(training=spec.training, seed=3, iteration=1, groups=GROUPS).step_groups(step)
    return sorted(load_rows(spec, store).prompt_ids[group] for group in groups)


# ----------------------------------------------------------------------------------- marks, by hand


def test_marks_are_of_the_rows_whose_slope_or_value_is_not_finite() -> None:
    group_B = torch.tensor([0, 0, 1, 1, 2])
    logps_B = torch.tensor([-1.0, -2.0, -torch.inf, -3.0, -4.0], requires_grad=True)
    logps_B.grad = torch.tensor([0.5, torch.nan, 1.0, 2.0, torch.inf])
    assert marks(logps_B, torch.tensor(torch.nan), group_B, 3).tolist() == [[0, 1, 0], [1, 0, 1]]
    # A loss that is not finite, and no slope of it that tells where: all rows.
    logps_B.grad = torch.zeros(5)
    assert marks(logps_B, torch.tensor(torch.inf), group_B, 3).tolist() == [[0, 1, 0], [2, 2, 1]]
    assert marks(logps_B, torch.tensor(0.0), group_B, 3)[1].tolist() == [0, 0, 0]


def test_the_learning_rate_is_blamed_where_it_moved_the_policy() -> None:
    lost = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 3.0]])
    for step, end in (
        (7, "lower training.lr"),
        (1, "no step has moved the model yet, so its weights or training.precision are at fault"),
    ):
        with pytest.raises(TrainingError) as error:
            refuse_marked(lost, ["a", "c", "b"], step)
        assert str(error.value) == (
            f"step {step} was not taken: responses to prompts b, c have a log-probability that "
            f"is not finite: {end}"
        )
    with pytest.raises(TrainingError) as error:
        refuse_marked(lost.flip(0).clamp(max=1) * torch.tensor([[0.0], [1.0]]), ["a", "c", "b"], 7)
    assert "training.lr" not in str(error.value)
    assert str(error.value).startswith(
        "step 7 was not taken: the loss of prompts b, c or its slope is not finite"
    )
    refuse_marked(torch.zeros(2, 3), ["a", "c", "b"], 7)


def test_eight_prompts_are_named_and_the_rest_counted() -> None:
    refuse_norm(1e38, ["a"], 3)
    for norm in (float("inf"), float("nan")):
        with pytest.raises(
            TrainingError,
            match=r"^step 3 was not taken: the norm .*prompts 00, 01, 02, 03, 04, 05, 06, 07 and "
            r"4 more$",
        ):
            refuse_norm(norm, [f"{number:02}" for number in reversed(range(12))], 3)


# ---------------------------------------------------------------------------------- all ranks alike


class Recorder:
    """An engine on one of two ranks: a table of log-probabilities."""

    def __init__(self, logps: dict[int, torch.Tensor]) -> None:
        self.logps = logps  # by the first token of the prompt

    def __call__(self, input_ids_B_T: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.logps[int(first)][:1] for first in input_ids_B_T[:, 0]]).clone()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        return


@slow
def test_both_ranks_refuse_what_one_of_them_saw(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pl.DataFrame(
        {
            "prompt_id": ["a", "a", "b", "b"],
            "prompt_token_ids": [[1], [1], [2], [2]],
            "response_token_ids": [[5], [6], [5], [6]],
            **{name: [-1.0] * 4 for name in ("logp_policy", "logp_reference")},
            "win_rate": [0.0, 1.0, 0.0, 1.0],
            "reward": [0.0, 1.0, 0.0, 1.0],
            "rank": [2, 1, 2, 1],
            "samples": [2] * 4,
        }
    )
    rows = as_rows(frame, "prompt_id", COLUMNS)
    training = TrainingConfig(batch_prompts=2, micro_prompts=1, ranks=2, zero_stage=0)
    plan = Plan(training=training, seed=0, iteration=1, groups=2)
    logps = {
        1: torch.full((1,), -1.0, requires_grad=True),
        2: torch.full((1,), -torch.inf, requires_grad=True),
    }

    def outcome(rank: int, all_reduce: Callable[[torch.Tensor], object]) -> str:
        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
        world = World(rank=rank, ranks=2, device="cpu")
        objective = objective_for(config_of(name="sppo"))
        with pytest.raises(TrainingError) as error:
            loop.accumulate(Recorder(logps), rows, plan.step_groups(0), plan, objective, world, 4)
        return str(error.value)

    seen: list[torch.Tensor] = []

    def record(values: torch.Tensor) -> None:
        seen.append(values.clone())
        raise TrainingError("recorded")

    assert [outcome(rank, record) for rank in (0, 1)] == ["recorded", "recorded"]
    total = seen[0] + seen[1]
    told = {outcome(rank, lambda values: values.copy_(total)) for rank in (0, 1)}
    assert told == {
        "step 4 was not taken: responses to prompt b have a log-probability that is not finite: "
        "lower training.lr"
    }


# ----------------------------------------------------------------------------------- real trainings


@slow
@pytest.mark.parametrize(
    ("stage", "precision"),
    [(0, "float32"), (0, "bfloat16"), (1, "float32"), (2, "float32"), (2, "bfloat16")],
)
def test_a_gradient_that_overflows_stays_out_of_the_weights(
    store: Store,
    inputs: Inputs,
    loop: Any,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
    precision: str,
) -> None:
    optimizer_step, gathered_weights = loop.optimizer_step, loop.gathered_weights
    seen: list[tuple[bool, bool]] = []

    def watched(engine: Any, lr: float) -> float:
        before = gathered_weights(engine)
        norm: float = optimizer_step(engine, lr)
        after = gathered_weights(engine)
        seen.append(
            (
                norm < float("inf"),
                all(torch.equal(weight, after[name]) for name, weight in before.items()),
            )
        )
        return norm

    monkeypatch.setattr(loop, "optimizer_step", watched)
    ours = prompts_of_step(store, inputs, 1)
    # Slopes of 1e22 nats are float32 numbers, and their squares are not.
    changed = rewarded(store, inputs, ours[0], 1e22)
    with pytest.raises(TrainingError) as error:
        train(
            make_spec(
                changed,
                {"name": "rebel"},
                zero_stage=stage,
                precision=precision,
                warmup_fraction=0.0,
            ),
            store,
        )
    assert str(error.value) == (
        "step 2 was not taken: the norm of its gradient is not finite, although its losses are: "
        "check the size of the rewards and of the objective's settings, "
        f"and prompts {', '.join(ours)}"
    )
    assert seen == [(True, False), (False, True)]  # the first step was finite and moved the weights


@slow
def test_the_prompt_whose_loss_is_not_finite_is_named(store: Store, inputs: Inputs) -> None:
    ours = prompts_of_step(store, inputs, 1)
    with pytest.raises(TrainingError) as error:
        train(make_spec(rewarded(store, inputs, ours[2], 1e60), {"name": "rebel"}), store)
    assert str(error.value) == (
        f"step 2 was not taken: the loss of prompt {ours[2]} or its slope is not finite, "
        "although the log-probabilities are: check the rewards there and the settings of the "
        "objective"
    )


@slow
def test_a_policy_that_diverged_says_so(store: Store, inputs: Inputs) -> None:
    with pytest.raises(TrainingError) as error:
        train(make_spec(inputs, lr=1e30), store)
    named = ", ".join(prompts_of_step(store, inputs, 1))
    assert str(error.value) == (
        f"step 2 was not taken: responses to prompts {named} have a log-probability that is not "
        "finite: lower training.lr"
    )
    with pytest.raises(
        TrainingError,
        match=r"^after the last step, 1, responses to prompts .* not finite: lower training\.lr$",
    ):
        train(make_spec(inputs, lr=1e30, epochs=1, batch_prompts=8), store)


@slow
def test_a_policy_that_was_never_finite_is_not_blamed_on_the_learning_rate(
    store: Store, inputs: Inputs, tiny_model: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.get_input_embeddings().weight.data[5:] = torch.nan
    folder = tmp_path / "broken"
    model.save_pretrained(folder)
    for path in tiny_model.iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(
        TrainingError,
        match=r"^step 1 was not taken: .* so its weights or training\.precision are at fault$",
    ):
        train(make_spec(inputs | {"policy": import_model(store, folder)}), store)


@slow
def test_an_on_policy_training_names_step_and_prompt_too(
    store: Store, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_reward(tmp_path, monkeypatch)
    reward = (tmp_path / "counted_digits.py").read_text().replace("float(sum(", "1e60 * float(sum(")
    (tmp_path / "counted_digits.py").write_text(reward)
    policy = import_model(store, tiny_model)
    with pytest.raises(
        TrainingError,
        match=r"^step 1 was not taken: the loss of prompts? [0-9a-f]{32}.* or its slope is not "
        r"finite",
    ):
        roll(rollouts_spec(store, policy, {"name": "rloo"}), store)
    with pytest.raises(
        TrainingError,
        match=r"^no samples of the policy for step 2: .*not finite on prompt [0-9a-f]{32}: it "
        r"diverged",
    ):
        roll(rollouts_spec(store, policy, {"name": "grpo"}, lr=1e30), store)


@slow
def test_ranks_end_with_the_error_of_the_step(store: Store, inputs: Inputs) -> None:
    ours = prompts_of_step(store, inputs, 1)
    # A float32 holds the slopes, and not what they become in the model; under ZeRO-3 the norm
    # itself is summed in float64.
    with pytest.raises(
        TrainingError,
        match=rf"^step 2 was not taken: the norm .* and prompts {', '.join(ours)}$",
    ):
        train(
            make_spec(
                rewarded(store, inputs, ours[0], 5e37), {"name": "rebel"}, ranks=2, zero_stage=3
            ),
            store,
        )
