"""Each planted fault of the generations fires exactly the expectation that names it."""

from typing import TYPE_CHECKING

import pytest

from data_checks.validation import validate
from wind.config.checks import ChecksConfig

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain, Fault, Rows

STRANGER = "f" * 32


def test_good_generations_pass(chain: "Chain") -> None:
    assert chain.check("generations").success
    assert chain.check("generations", split="eval").success


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "fires"),
    [
        (
            lambda rows: rows.append(rows[-1] | {"seed": 999}),
            "rows.prompt_id, sample_index: no two rows share prompt_id, sample_index",
        ),
        (
            lambda rows: rows.extend(
                rows[i] | {"prompt_id": STRANGER, "seed": 900 + i} for i in range(4)
            ),
            "rows.is_known: every row belongs to one of the prompts of its split",
        ),
        (lambda rows: rows[3].update(sample_index=4), "rows.sample_index: sample_index is 0 .. 3"),
        (lambda rows: rows[3].update(sample_index=-1), "rows.sample_index: sample_index is 0 .. 3"),
        (lambda rows: rows[3].update(policy="0" * 64), "rows.policy: sampled by the parent policy"),
        (
            lambda rows: rows[3].update(finish_reason="abort"),
            "rows.finish_reason: finish_reason is stop or length",
        ),
        (lambda rows: rows[3].update(seed=rows[9]["seed"]), "rows.seed: no two rows share seed"),
        (
            lambda rows: rows[3].update(response_token_ids=[]),
            "rows.response_tokens: every response has a token",
        ),
        (
            lambda rows: rows[3].update(response_token_ids=[5, 5, 5, 2]),
            "rows.response_tokens: no response is longer than max_new_tokens",
        ),
        (
            lambda rows: rows[3].update(logp_sampler=0.25),
            "rows.logp_sampler: logp_sampler is at most 0",
        ),
        (
            lambda rows: rows[3].update(logp_sampler=float("-inf")),
            "rows.logp_sampler: logp_sampler is a finite number",
        ),
        (
            lambda rows: rows[3].update(logp_sampler=float("nan")),
            "rows.logp_sampler: logp_sampler is a finite number",
        ),
        (
            lambda rows: rows[3].update(response=" \n"),
            "rows.is_empty: at most 5.0% of responses are empty",
        ),
        (
            lambda rows: [row.update(response_token_ids=[2]) for row in rows],
            "rows.response_tokens: responses have at least 1.5 tokens on average",
        ),
        (lambda rows: rows.pop(3), "prompts.samples: every prompt has 4 samples"),
        (
            lambda rows: rows.append(rows[3] | {"sample_index": 4, "seed": 999}) or rows.pop(3),
            "rows.sample_index: sample_index is 0 .. 3",
        ),
        (
            lambda rows: [rows.pop() for _ in range(4)],
            "prompts.is_present: no row of the prompts of its split was lost",
        ),
    ],
)
def test_a_fault_fires_its_expectation_alone(chain: "Chain", fault: "Fault", fires: str) -> None:
    assert chain.failures("generations", fault) == [fires]


def test_with_parts_the_prompts_of_the_iterations_part_are_due(chain: "Chain") -> None:
    # by hand from the sha256: of the train prompts 0 .. 3 only prompt 2 is in part 1, that of
    # iteration 2
    chain.parts = 2

    def third_prompt(rows: "Rows") -> None:
        rows[:] = rows[8:12]

    assert chain.check("generations", third_prompt).success
    assert "rows.is_known: every row belongs to one of the prompts of its split" in chain.failures(
        "generations", lambda rows: None
    )
    assert chain.failures(
        "generations", lambda rows: rows.__setitem__(slice(None), rows[8:11])
    ) == ["prompts.samples: every prompt has 4 samples"]
    assert chain.check("generations", split="eval").success


def test_no_generations_at_all_are_a_failed_check(chain: "Chain") -> None:
    fires = "prompts.is_present: no row of the prompts of its split was lost"
    assert fires in chain.failures("generations", lambda rows: rows.clear())


def test_thresholds_are_inclusive(chain: "Chain") -> None:
    def two_of_sixteen(rows: list[dict[str, object]]) -> None:
        for row in rows[:2]:
            row.update(finish_reason="length")

    handle = chain.dataset("generations", two_of_sixteen)
    assert validate(handle, chain.store, ChecksConfig(max_truncated_share=0.125)).success
    fires = ["rows.is_truncated: at most 12.0% of responses are truncated"]
    assert (
        chain.failures("generations", two_of_sixteen, ChecksConfig(max_truncated_share=0.12))
        == fires
    )
