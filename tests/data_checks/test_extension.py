"""The user's own expectations, in the config and in files, and the messages about mistakes."""

import os
import py_compile
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from data_checks.results import key
from data_checks.validation import refuse_wrong_checks, validate
from wind.config.checks import ChecksConfig
from wind.config.loading import checks_config
from wind.errors import ConfigError, DataCheckError, InputError

if TYPE_CHECKING:
    from tests.data_checks.conftest import Chain

LENGTH = {"expectation": "ExpectColumnMeanToBeBetween", "column": "response_tokens", "max_value": 1}
FILE = """
import great_expectations.expectations as gxe
import polars as pl

from data_checks.base import Frame


def _prompts(subject):
    return subject.rows("prompt_id", "reward").group_by("prompt_id", maintain_order=True).agg(best=pl.col("reward").max())


def rewards(subject):
    best = lambda subject, checks: [gxe.ExpectColumnValuesToBeBetween(column="best", min_value=4, description="one is good")]
    return [
        gxe.ExpectColumnMaxToBeBetween(column="length", max_value=1, severity="warning"),
        Frame("prompts", ("prompt_id",), _prompts, best),
    ]
"""


def extra(noun: str, **fields: Any) -> ChecksConfig:
    return ChecksConfig.model_validate({"extra": {noun: [fields]}})


def in_file(folder: Path, text: str) -> ChecksConfig:
    path = folder / "my_checks.py"
    path.write_text(text)
    return ChecksConfig(files=(str(path),))


def test_the_config_adds_an_expectation(chain: "Chain") -> None:
    handle = chain.dataset("generations")
    checks = extra("generations", **LENGTH)
    refuse_wrong_checks(checks)
    with pytest.raises(
        DataCheckError,
        match=r"expect_column_mean_to_be_between\(response_tokens\), checks.extra.generations\[0\]",
    ):
        validate(handle, chain.store, checks)
    result = validate(
        handle,
        chain.store,
        extra("generations", **LENGTH, severity="warning", description="short answers"),
    )
    assert result.warnings == (
        "expect_column_mean_to_be_between(response_tokens), short answers: the value is 2.0",
    )
    assert "short answers (a warning)" in chain.store.storage.read(result.path).decode()
    assert validate(chain.dataset("rewards"), chain.store, checks).warnings == ()


def test_an_override_adds_an_expectation() -> None:
    given = (
        "checks.extra={rewards: [{expectation: ExpectColumnMaxToBeBetween, column: reward, "
        "max_value: 9}]}"
    )
    (each,) = checks_config({}, [given]).extra["rewards"]
    assert each.arguments() == {"column": "reward", "max_value": 9, "severity": "critical"}


@pytest.mark.parametrize("imported", ["at its top", "within a function"])
def test_no_bytecode_beside_a_helper_is_run(
    chain: "Chain", tmp_path: Path, imported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edit may leave a file's length and time as they were."""
    monkeypatch.chdir(tmp_path)
    helper = tmp_path / f"checks_limit_{len(imported)}.py"
    for limit in (5, 1):
        helper.write_text(f"LIMIT = {limit}\n")
        os.utime(helper, (1e9, 1e9))
        if limit == 5:
            py_compile.compile(str(helper))
    statement = f"from {helper.stem} import LIMIT"
    top, within = (statement, "") if imported == "at its top" else ("", statement)
    text = (
        f"import great_expectations.expectations as gxe\n{top}\ndef rewards(subject):\n    "
        f"{within}\n"
    )
    checks = in_file(
        tmp_path,
        f"{text}    return [gxe.ExpectColumnMaxToBeBetween(column='length', max_value=LIMIT)]\n",
    )
    with pytest.raises(DataCheckError, match="length"):
        validate(chain.dataset("rewards"), chain.store, checks)
    sys.modules.pop(helper.stem)


@pytest.mark.parametrize(
    ("checks", "says"),
    [
        (
            extra("generation", **LENGTH),
            r"checks.extra.generation: no dataset .* did you mean generations\?",
        ),
        (
            extra("rewards", expectation="ExpectColumnMean"),
            r"rewards\[0\]: .* did you mean ExpectColumnMeanToBeBetween\?",
        ),
        (
            extra("rewards", expectation="UnexpectedRowsExpectation"),
            "Great Expectations has no UnexpectedRowsExpectation for rows",
        ),
        (
            extra("generations", **LENGTH | {"column": "response_token"}),
            r"'response_token'; did you mean response_tokens\?",
        ),
        (
            extra("generations", **LENGTH | {"column": "response_token_ids"}),
            "no column 'response_token_ids'",
        ),
        (extra("generations", **LENGTH | {"maximum": 1}), "takes no argument maximum"),
        (extra("generations", expectation=LENGTH["expectation"]), "needs the argument column"),
        (
            extra("generations", **LENGTH | {"max_value": "long"}),
            "max_value is 'long': value is not a valid float",
        ),
        (
            extra("rewards", **LENGTH | {"column": "clarity"}),
            "no column 'clarity'; there are prompt_id, sample_index, reward",
        ),
        (ChecksConfig(files=("nowhere.py",)), "checks.files nowhere.py is no Python file"),
    ],
)
def test_a_mistake_is_said_before_a_run_starts(checks: ChecksConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        refuse_wrong_checks(checks)
    assert "\n" not in str(caught.value)


def test_components_of_the_reward_are_columns(chain: "Chain") -> None:
    checks = extra(
        "rewards", expectation="ExpectColumnMaxToBeBetween", column="length", max_value=2
    )
    refuse_wrong_checks(checks, ("length",))
    assert validate(chain.dataset("rewards"), chain.store, checks).success
    with pytest.raises(
        ConfigError, match=r"the checks extra of rewards/.*: there is no column 'depth'"
    ):
        validate(
            chain.dataset("rewards"),
            chain.store,
            extra("rewards", expectation="ExpectColumnMaxToBeBetween", column="depth"),
        )


def test_a_file_adds_expectations_and_frames(chain: "Chain", tmp_path: Path) -> None:
    handle, checks = chain.dataset("rewards"), in_file(tmp_path, FILE)
    refuse_wrong_checks(checks)
    with pytest.raises(
        DataCheckError,
        match=r"\(best\), one is good: 4 of 4 my_checks\.py: prompts fail: 000000000000, ",
    ):
        validate(handle, chain.store, checks)
    loose = in_file(tmp_path, FILE.replace("min_value=4", "min_value=3"))
    (warning,) = validate(handle, chain.store, loose).warnings
    assert "(length)" in warning
    assert warning.endswith("my_checks.py: rewards, number 1: the value is 2.0")


def test_an_edited_file_is_another_check(chain: "Chain", tmp_path: Path) -> None:
    handle = chain.dataset("rewards")
    first = key(chain.store, handle, in_file(tmp_path, FILE))
    assert key(chain.store, handle, in_file(tmp_path, FILE)) == first
    assert key(chain.store, handle, in_file(tmp_path, FILE + "\n# edited\n")) != first


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def rewards(subject)\n    return []\n", r"my_checks\.py:1 does not parse"),
        ("limit = 1 / 0\n", r"my_checks\.py:1: it failed, ZeroDivisionError: division by zero"),
        (
            "def reward(subject):\n    return []\n",
            r"my_checks\.py:1: reward is the name of no dataset .* did you mean rewards\?",
        ),
        ("def _rewards(subject):\n    return []\n", "has no function named for a dataset"),
    ],
)
def test_a_wrong_file_is_said_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        refuse_wrong_checks(in_file(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "def rewards(subject):\n    return subject.rows('clarity')\n",
            r"my_checks\.py:2: rewards failed, ",
        ),
        (
            "def rewards(subject):\n    return [1]\n",
            "rewards returned a int: return expectations and frames",
        ),
    ],
)
def test_a_function_that_fails_is_named(
    chain: "Chain", tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        validate(chain.dataset("rewards"), chain.store, in_file(tmp_path, text))
    assert "\n" not in str(caught.value)
