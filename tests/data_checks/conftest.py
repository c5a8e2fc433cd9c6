"""A chain of small matching datasets, and a way to plant a fault in the last of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_checks.results import CheckResult, contents
from data_checks.validation import validate
from wind.config.checks import ChecksConfig
from wind.errors import DataCheckError
from wind.store.datasets import Store
from wind.store.handles import AnyHandle, Dataset, Model
from wind.store.imports import import_model, import_source
from wind.store.schemas import declared

Rows = list[dict[str, Any]]
Fault = Callable[[Rows], object]  # changes the rows in place

N = 4
HELD_OUT = ("evaluation", "responses", "matches", "health")
REWARDS = (0.0, 1.0, 1.0, 3.0)  # of the N samples of every prompt
WIN_RATES = (0.0, 0.5, 0.5, 1.0)  # (wins + ties / 2) / 3
COUNTS = ((0, 0, 3), (1, 1, 1), (1, 1, 1), (3, 0, 0))  # wins, ties, losses
RANKS = (4, 2, 3, 1)
ROLES = ("worst", "unused", "unused", "best")
# Of the same samples by a pairwise reward: 1, 2, 3 beat each other in a circle, and all of them
# beat 0.
PREFERENCES = (
    (0.5, 0.25, 0.25, 0.25),
    (0.75, 0.5, 1.0, 0.0),
    (0.75, 0.0, 0.5, 1.0),
    (0.75, 1.0, 0.0, 0.5),
)
PREFERRED = tuple((sum(row) - 0.5) / 3 for row in PREFERENCES)  # 1/4 and three times 7/12


def key(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("prompt_id", "sample_index")}


class Chain:
    """Six prompts, four of them for training, with N responses each; `rows` holds the good rows of
    every dataset.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store = store
        self.policy, self.reference = (
            self._model(folder, "policy"),
            self._model(folder, "reference"),
        )
        self.source = import_source(store, [self._file(folder / "prompts.jsonl", "{}")])
        self.published = 0
        self.parts = 1
        self.template = "chat"
        self.objective: dict[str, Any] = {"name": "jbond", "refresh_steps": 1}
        self.group_field: str | None = "pair"

    def rows(self, name: str, split: str = "train") -> Rows:
        """The good rows of a dataset."""
        prompts = [self._prompt(index) for index in range(6)]
        responses = [
            {"prompt_id": prompt["prompt_id"], "sample_index": sample, "seed": 100 * index + sample}
            for index, prompt in enumerate(prompts)
            for sample in range(N)
            if prompt["split"] == split
        ]
        made: dict[str, Callable[[], Rows]] = {
            "prompts": lambda: prompts,
            "generations": lambda: [self._generation(row) for row in responses],
            "rewards": lambda: [
                key(row) | {"reward": REWARDS[row["sample_index"]], "length": 2.0}
                for row in responses
            ],
            "win_rates": lambda: [
                key(row) | self._win_rate(row["sample_index"]) for row in responses
            ],
            "selections": lambda: [
                key(row) | self._selection(row["sample_index"]) for row in responses
            ],
            "logps": lambda: [
                key(row) | {"logp_policy": -0.5, "logp_reference": -2.0, "response_tokens": 2}
                for row in responses
            ],
            "training": lambda: [
                {"step": step, "metric": metric, "value": 1.0 / step}
                for step in (1, 2, 3)
                for metric in ("grad_norm", "loss")
            ],
            "rollouts": lambda: self._rollouts(
                [prompt["prompt_id"] for prompt in prompts if prompt["split"] == split]
            ),
            "evaluation": lambda: [
                key(row) | self._evaluation(row["sample_index"]) for row in responses
            ],
            "health": lambda: [
                key(row)
                | {"is_empty": False, "is_refusal": False, "is_eos": True, "repetition": 0.0}
                | {"self_bleu": 1.0, "logp_previous": -1.0, "logp_reference": -2.0, "logp_gap": 0.0}
                for row in responses
            ],
            "responses": lambda: [key(row) | {"response": "12"} for row in responses],
            "matches": lambda: [
                {"judge": judge, "opponent": opponent, **key(row)}
                | self._match(row["sample_index"])
                for judge in ("gold", "training")
                for opponent in ("gpt", "initial")
                for row in (responses[:N] if judge == "gold" else responses)
            ],
            "metrics": lambda: [
                {"iteration": 2, "metric": "loss", "value": 0.5, "low": None, "high": None, "n": 3},
                {
                    "iteration": 2,
                    "metric": "win_rate",
                    "value": 0.5,
                    "low": 0.4,
                    "high": 0.6,
                    "n": 8,
                },
            ],
            "alarms": lambda: [
                ALARM | {"alarm": "length.initial", "p_value": 0.5, "is_raised": False},
                ALARM | {"alarm": "reward_hacking.gold.initial"},
            ],
            "comparison": lambda: [
                {
                    "recipe": "dpo",
                    "setting": "",
                    "seed": 0,
                    "iteration": iteration,
                    "metric": metric,
                }
                | numbers
                for iteration in (0, 1)
                for metric, numbers in (
                    (
                        "samples",
                        {"value": 8.0 * iteration, "low": None, "high": None, "n": 8 * iteration},
                    ),
                    ("win_rate", {"value": 0.5, "low": 0.4, "high": 0.6, "n": 8}),
                )
            ],
            "bandit": lambda: [
                BANDIT | {"iteration": iteration, "metric": metric, "value": value}
                for metric, values in (("kl", (0.8, 0.6, 0.4)), ("win_rate", (0.5, 0.6, 0.7)))
                for iteration, value in enumerate(values)
            ],
            "benchmarks": lambda: [
                {
                    "benchmark": benchmark,
                    "item": f"{item:05d}",
                    "metric": metric,
                    "value": 1.0,
                    "question": "1 + 1?",
                    "response": "2",
                    "target": "2",
                }
                for benchmark, metrics in (("hellaswag", ("acc", "acc_norm")), ("mmlu", ("acc",)))
                for item in range(2)
                for metric in metrics
            ],
            "rates": lambda: [
                RATES | {"quantity": "contraction", "value": 0.7, "error": None},
                RATES | {"quantity": "floor", "value": 0.4, "error": 0.1},
            ],
        }
        return made[name]()

    def dataset(self, name: str, fault: Fault | None = None, split: str | None = None) -> Dataset:
        """The dataset, published after its parents; `fault` changes its own rows only."""
        split = split or ("eval" if name in HELD_OUT else "train")
        rows = self.rows(name, split)
        if fault is not None:
            fault(rows)
        schema = self.rewards_schema() if name == "rewards" else declared(name).schema
        outputs = (
            {"dropped": self._publish("prompts.dropped", [DROPPED], {}, {}, {})}
            if name == "prompts"
            else {}
        )
        spec = {
            "split": split,
            "sampling": {"samples_per_prompt": N, "max_new_tokens": 3},
            "evaluation": {"samples_per_prompt": N},
            "opponents": {"gpt": {}, "initial": {}},
            "verdicts": {"training": {}},
            "selection": {"rows": "best_worst"},
            "training": {"epochs": 2},
            "objective": self.objective,
            "max_prompt_tokens": 4,
            "template": self.template,
            "group_field": self.group_field,
            "seed": 0,
            "iteration": 2,
            "parts": self.parts,
            "bandit": {"beta": 0.25, "eta": 1.0},
            "alarms": {"level": 0.05},
        }
        return self._publish(name, rows, self._parents(name, split), spec, outputs, schema)

    def rewards_schema(self) -> pa.Schema:
        """That of a rule with one component."""
        return declared("rewards").with_components(("length",))

    def check(self, name: str, fault: Fault | None = None, split: str | None = None) -> CheckResult:
        """Check the dataset under the default thresholds."""
        return validate(self.dataset(name, fault, split), self.store, ChecksConfig())

    def failures(self, name: str, fault: Fault, checks: ChecksConfig | None = None) -> list[str]:
        """List the failures, as "frame.column: description"."""
        handle = self.dataset(name, fault)
        with pytest.raises(DataCheckError):
            validate(handle, self.store, checks or ChecksConfig())
        content = contents(self.store, handle)
        assert content is not None
        return [
            f"{frame}.{_column(each['expectation_config']['kwargs'])}: "
            f"{each['expectation_config']['description']}"
            for frame, result in content["frames"].items()
            for each in result["results"]
            if not each["success"]
        ]

    def _parents(self, name: str, split: str) -> dict[str, AnyHandle]:
        if name == "prompts":
            return {"source": self.source, "tokenizer": self.policy}
        if name in ("training", "benchmarks", "metrics", "alarms", "comparison", "bandit"):
            return {}
        if name == "rates":
            return {"bandit": self.dataset("bandit")}
        if name == "win_rates":
            return {"rewards": self.dataset("rewards", split=split)}
        if name == "selections":
            return {"win_rates": self.dataset("win_rates", split=split)}
        parents: dict[str, AnyHandle] = {"prompts": self.dataset("prompts")}
        if name in ("generations", "logps"):
            parents["policy"] = self.policy
        if name == "matches":
            parents["generations_policy"] = self.dataset("generations", split=split)
        if name in ("rewards", "logps", "health"):
            parents["generations"] = self.dataset("generations", split=split)
        if name == "health":
            parents["logps"] = self.dataset("logps", split=split)
        return parents | ({"reference": self.reference} if name == "logps" else {})

    def _publish(
        self,
        name: str,
        rows: Rows,
        parents: dict[str, AnyHandle],
        spec: dict[str, Any],
        outputs: Any,
        schema: Any = None,
    ) -> Dataset:
        self.published += 1
        with self.store.partial(name, f"{self.published:064x}") as partial:
            known = declared(name)
            columns = schema or known.schema
            in_order = sorted(rows, key=lambda row: tuple(row[column] for column in known.key))
            partial.write(0, pa.Table.from_pylist(in_order, columns), columns)
            numbers = {"source_rows": 7.0}
            computed_by = {"spec": spec}
            return partial.publish(
                1,
                parents=parents,
                outputs=outputs,
                computed_by=computed_by,
                numbers=numbers,
                provenance={},
            )

    def _prompt(self, index: int) -> dict[str, Any]:
        return {
            "prompt_id": f"{index:012x}" + "0" * 20,
            "prompt": f"<s>{index} + 1",
            "messages": [{"role": "user", "content": f"{index} + 1"}],
            "prompt_token_ids": [1, 10 + index, 3],
            "split": "train" if index < 4 else "eval",
            "answer": None,
            "meta": json.dumps({"pair": index // 2}),
        }

    def _generation(self, row: dict[str, Any]) -> dict[str, Any]:
        return row | {
            "policy": self.policy.fingerprint,
            "response": "12",
            "response_token_ids": [12, 2],
            "logp_sampler": -0.5,
            "finish_reason": "stop",
        }

    def _win_rate(self, sample: int) -> dict[str, Any]:
        counts = dict(zip(("wins", "ties", "losses"), COUNTS[sample], strict=True))
        return {"win_rate": WIN_RATES[sample], "rank": RANKS[sample], **counts}

    def _selection(self, sample: int) -> dict[str, Any]:
        return {"role": ROLES[sample], "label": WIN_RATES[sample]}

    def _rollouts(self, prompt_ids: list[str]) -> Rows:
        """Two epochs of one step each: N samples of the policy, then N of the anchor."""
        return [
            {
                "step": step,
                "prompt_id": prompt_id,
                "sample_index": index,
                "drawn_from": "policy" if index < N else "anchor",
                "response": "12",
                "response_token_ids": [12, 2],
                "finish_reason": "stop",
                "seed": 1000 * step + 100 * number + index,
                "reward": REWARDS[index % N],
                "win_rate": WIN_RATES[index % N],
                "rank": RANKS[index % N],
                "logp_policy": -1.0,
                "logp_reference": -2.0,
            }
            for step in (1, 2)
            for number, prompt_id in enumerate(prompt_ids)
            for index in range(2 * N)
        ]

    def _evaluation(self, sample: int) -> dict[str, Any]:
        return {
            "reward_policy": REWARDS[sample],
            "reward_reference": REWARDS[sample],
            "win_rate": WIN_RATES[sample],
            "tie_share": 0.5,
            "response_tokens_policy": 2,
            "response_tokens_reference": 2,
            "is_truncated_policy": False,
            "is_truncated_reference": False,
            "logp_policy": -1.0,
            "logp_reference": -2.0,
            "accuracy_policy": 1.0,
            "accuracy_reference": None,
        }

    def _match(self, sample: int) -> dict[str, Any]:
        return {
            "reward_policy": REWARDS[sample],
            "reward_opponent": REWARDS[sample] if sample else None,
            "win_rate": WIN_RATES[sample],
            "tie_share": 0.5,
            "response_tokens_policy": 2,
            "response_tokens_opponent": 2 if sample else None,
            "mean_tokens_opponent": 2.5,
            "repeat_difference": None,
        }

    def _model(self, folder: Path, name: str) -> Model:
        """A model folder without weights: what the checks read of it is its tokenizer."""
        home = folder / name
        home.mkdir()
        self._file(home / "config.json", json.dumps({"name": name}))
        self._file(home / "tokenizer_config.json", json.dumps({"bos_token": "<s>"}))
        self._file(
            home / "tokenizer.json",
            json.dumps({"added_tokens": [{"id": 1, "content": "<s>"}], "model": {"vocab": {}}}),
        )
        return import_model(self.store, home)

    def _file(self, path: Path, text: str) -> Path:
        path.write_text(text)
        return path


class PairwiseChain(Chain):
    """The same with a pairwise reward."""

    def rows(self, name: str, split: str = "train") -> Rows:
        """The good rows of a dataset."""
        rows = super().rows(name, split)
        for row in rows:
            sample = row.get("sample_index", 0)
            if name == "rewards":
                del row["length"]
                row.update(
                    reward=PREFERRED[sample], preferences=list(PREFERENCES[sample]), cut_share=0.0
                )
            if name == "win_rates":
                wins = sum(preference > 0.5 for preference in PREFERENCES[sample])
                row.update(
                    win_rate=PREFERRED[sample],
                    wins=wins,
                    ties=0,
                    losses=3 - wins,
                    rank=(4, 1, 2, 3)[sample],
                )
        return rows

    def rewards_schema(self) -> pa.Schema:
        """That of a pairwise reward."""
        return declared("rewards").with_optional_columns()


class JudgeChain(PairwiseChain):
    """The same with a judge, all of whose answers could be parsed."""

    def rows(self, name: str, split: str = "train") -> Rows:
        """The good rows of a dataset."""
        rows = super().rows(name, split)
        for row in rows if name == "rewards" else ():
            row.update(unparsed_share=0.0)
        return rows

    def rewards_schema(self) -> pa.Schema:
        """That of a judge."""
        further = pa.field("unparsed_share", pa.float64(), nullable=False)
        return super().rewards_schema().append(further)


class OpponentsChain(PairwiseChain):
    """The same rows, compared with another policy's four responses to each prompt."""

    def rows(self, name: str, split: str = "train") -> Rows:
        """The good rows of a dataset."""
        rows = super().rows(name, split)
        for row in rows if name == "rewards" else ():
            row.update(reward=sum(row["preferences"]) / 4)
        return rows

    def _parents(self, name: str, split: str) -> dict[str, AnyHandle]:
        parents = super()._parents(name, split)
        return parents | ({"opponents": parents["generations"]} if name == "rewards" else {})


ALARM = {
    "statistic": 2.5,
    "p_value": 0.01,
    "threshold": 0.05,
    "is_raised": True,
    "message": "the win rate rose",
}
BANDIT = {"samples": 0, "algorithm": "wind", "instance": "random", "prompts": 4, "seed": 0}
RATES = {"samples": 0, "algorithm": "wind", "instance": "random", "prompts": 4, "n": 1}
DROPPED = {"row": 6, "prompt_id": "0" * 32, "reason": "duplicate", "prompt_tokens": 3}


def _column(kwargs: dict[str, Any]) -> str:
    pair = "column_A" in kwargs and f"{kwargs['column_A']}, {kwargs['column_B']}"
    return kwargs.get("column") or pair or ", ".join(kwargs["column_list"])


@pytest.fixture
def chain(store: Store, tmp_path: Path) -> Chain:
    return Chain(store, tmp_path)


@pytest.fixture
def judge_chain(store: Store, tmp_path: Path) -> JudgeChain:
    return JudgeChain(store, tmp_path)


@pytest.fixture
def pairwise_chain(store: Store, tmp_path: Path) -> PairwiseChain:
    return PairwiseChain(store, tmp_path)


@pytest.fixture
def opponents_chain(store: Store, tmp_path: Path) -> OpponentsChain:
    return OpponentsChain(store, tmp_path)
