"""Prompts. The tiny tokenizer maps characters to ids: <s> 1, <u> 3, <a> 4, digits 5-14, + 15, - 16,
= 17, letters from 18.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wind.config.prompts import PromptsConfig
from wind.errors import ConfigError, InputError
from wind.prompts import import_prompts, prompts_spec, read_by, split_of
from wind.stages import Job, Place, compute_shard, missing_shards, run
from wind.store.datasets import Store
from wind.store.handles import Dataset
from wind.store.imports import import_model

SUMS: list[dict[str, Any]] = [
    {"prompt": f"{number}+{number}=", "answer": 2 * number, "level": number % 3}
    for number in range(40)
]


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts_of(
    store: Store, tokenizer: Path, source: Path, seed: int = 0, **fields: Any
) -> Dataset:
    config = PromptsConfig(source=str(source), **fields)
    handle = import_prompts(store, config)
    spec = prompts_spec(store, config, handle, import_model(store, tokenizer), seed)
    return run(
        Job(stage="prompts", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root))),
        lambda done, total: None,
    )


def rows_of(store: Store, handle: Dataset) -> dict[str, dict[str, Any]]:
    """Rows by the text of their first message."""
    return {row["messages"][0]["content"]: row for row in store.read(handle).to_pylist()}


def dropped_of(store: Store, handle: Dataset) -> list[dict[str, Any]]:
    dropped = store.manifest(handle).outputs["dropped"]
    assert isinstance(dropped, Dataset)
    return list(store.read(dropped).to_pylist())


def message_of(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---------------------------------------------------------------------------------------- rendering


def test_another_model_reads_the_same_prompts_in_its_own_tokens(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    """Names, splits, and what was dropped are those of the policy; text and tokens are not."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    (other / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ 'a+' ~ m.content ~ '=11111' }}{% endfor %}"
    )
    rows = [*SUMS, SUMS[0], {"prompt": "1" * 20}]
    source = write_jsonl(tmp_path / "p.jsonl", rows)
    config = PromptsConfig(source=str(source), max_prompt_tokens=16)
    policy = import_model(store, tiny_model)
    asked = prompts_spec(store, config, import_prompts(store, config), policy, 0)
    assert read_by(asked, policy) == asked
    reading = read_by(asked, import_model(store, other))
    assert read_by(reading, policy).named_by == policy
    named, read = (
        run(
            Job(
                stage="prompts",
                spec=each.model_dump(mode="json"),
                place=Place(root=str(store.root)),
            ),
            lambda done, total: None,
        )
        for each in (asked, reading)
    )
    ours, theirs = rows_of(store, named), rows_of(store, read)
    assert ours.keys() == theirs.keys()
    own = ("prompt", "prompt_token_ids")
    for text, row in ours.items():
        assert row | {name: theirs[text][name] for name in own} == theirs[text]
    assert theirs["1+1="]["prompt"] == "a+1+1==11111"
    assert dropped_of(store, read) == dropped_of(store, named)
    assert {row["reason"] for row in dropped_of(store, read)} == {"duplicate", "too_long"}
    assert store.manifest(read).parents["named_by"] == policy

    plain = read_by(asked, policy, "none")
    assert (plain.template, plain.naming_template, plain.named_by) == ("none", "chat", policy)
    with pytest.raises(ConfigError, match=r"^evaluation\.opponents\.x\.template no\.jinja cannot"):
        read_by(asked, policy, "no.jinja", "evaluation.opponents.x.template")


def test_a_plain_string_becomes_one_user_message_with_one_bos(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    row = rows_of(store, prompts_of(store, tiny_model, write_jsonl(tmp_path / "p.jsonl", SUMS)))[
        "1+1="
    ]
    assert row["prompt"] == "<s><u>1+1=<a>"
    assert row["prompt_token_ids"] == [1, 3, 6, 15, 6, 17, 4]
    assert row["messages"] == [{"role": "user", "content": "1+1="}]
    assert row["prompt_id"] == hashlib.sha256(b"<s><u>1+1=<a>").hexdigest()[:32]
    assert row["answer"] == "2"
    assert row["meta"] == '{"level": 1}'


def test_template_none_is_what_the_tokenizer_gives(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [*SUMS, {"prompt": "<s>7="}]  # a text that brings its own BOS keeps it
    handle = prompts_of(store, tiny_model, write_jsonl(tmp_path / "p.jsonl", rows), template="none")
    assert rows_of(store, handle)["1+1="]["prompt_token_ids"] == [6, 15, 6, 17]
    assert rows_of(store, handle)["1+1="]["prompt"] == "1+1="
    assert rows_of(store, handle)["<s>7="]["prompt_token_ids"] == [1, 12, 17]
    assert rows_of(store, handle)["<s>7="]["prompt"] == "<s>7="


def test_messages_are_rendered_turn_by_turn(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    turns = [("user", "1="), ("assistant", "1"), ("user", "2=")]
    rows = [
        *SUMS,
        {"prompt": [{"role": role, "content": content, "name": None} for role, content in turns]},
    ]
    row = rows_of(store, prompts_of(store, tiny_model, write_jsonl(tmp_path / "p.jsonl", rows)))[
        "1="
    ]
    assert row["prompt"] == "<s><u>1=<a>1<u>2=<a>"
    assert row["prompt_token_ids"] == [1, 3, 6, 17, 4, 6, 3, 7, 17, 4]
    assert [(message["role"], message["content"]) for message in row["messages"]] == turns


def test_a_jinja_file_counts_by_its_content(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "p.jsonl", SUMS)
    handles = []
    for name in ("a.jinja", "b.jinja"):
        (tmp_path / name).write_text(
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} {% "
            "endif %}"
        )
        handles.append(prompts_of(store, tiny_model, source, template=str(tmp_path / name)))
    assert handles[0] == handles[1]
    # " " is 18 + 26
    assert rows_of(store, handles[0])["1+1="]["prompt_token_ids"] == [6, 15, 6, 17, 44]
    recorded = store.manifest(handles[0]).computed_by["spec"]["template"]
    assert recorded.startswith("{% for m in messages %}")


def test_a_template_that_asks_for_the_date_always_gets_the_same(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.jinja").write_text("{{ strftime_now('%Y-%m-%d') }}{{ messages[0].content }}")
    handle = prompts_of(
        store,
        tiny_model,
        write_jsonl(tmp_path / "p.jsonl", SUMS),
        template=str(tmp_path / "t.jinja"),
    )
    assert rows_of(store, handle)["1+1="]["prompt"] == "2024-07-261+1="


def tokenizer_without(attribute: str, tiny_model: Path, folder: Path) -> Path:
    """The tiny model's tokenizer without its `bos_token` or `chat_template`."""
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop(attribute, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if attribute == "chat_template":
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def test_a_tokenizer_without_bos_gets_none(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_without("bos_token", tiny_model, tmp_path / "model")
    row = rows_of(
        store,
        prompts_of(store, tokenizer, write_jsonl(tmp_path / "p.jsonl", SUMS), template="none"),
    )["1+1="]
    assert row["prompt"] == "1+1="
    assert row["prompt_token_ids"] == [6, 15, 6, 17]


@pytest.mark.parametrize(
    ("template", "ids"),
    [
        # the mark of a turn, as in ChatML
        ("<s>{{ messages[0].content }}<s>", [1, 6, 15, 6, 17, 1]),
        ("</s>{{ messages[0].content }}<s>", [2, 6, 15, 6, 17, 1]),
        ("{{ messages[0].content }}{{ bos_token * 2 }}", [6, 15, 6, 17, 1, 1]),
        # no BOS at all, as in Zephyr
        ("<u>{{ messages[0].content }}{{ eos_token }}<a>", [3, 6, 15, 6, 17, 2, 4]),
    ],
)
def test_a_template_says_where_bos_goes(
    store: Store, tiny_model: Path, tmp_path: Path, template: str, ids: list[int]
) -> None:
    (tmp_path / "t.jinja").write_text(template)
    source = write_jsonl(tmp_path / "p.jsonl", SUMS)
    row = rows_of(store, prompts_of(store, tiny_model, source, template=str(tmp_path / "t.jinja")))[
        "1+1="
    ]
    assert row["prompt_token_ids"] == ids


def test_plain_text_gets_the_special_tokens_that_its_tokenizer_adds(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            special,
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    plain = prompts_of(store, folder, write_jsonl(tmp_path / "p.jsonl", SUMS), template="none")
    assert rows_of(store, plain)["1+1="]["prompt_token_ids"] == [1, 6, 15, 6, 17]
    assert rows_of(store, plain)["1+1="]["prompt"] == "1+1="
    chat = prompts_of(store, folder, write_jsonl(tmp_path / "p.jsonl", SUMS))
    assert rows_of(store, chat)["1+1="]["prompt_token_ids"] == [1, 3, 6, 15, 6, 17, 4]
    with pytest.raises(InputError, match=r"line 41 begins with two BOS tokens \(<s>\)"):
        prompts_of(
            store,
            folder,
            write_jsonl(tmp_path / "q.jsonl", [*SUMS, {"prompt": "<s>7="}]),
            template="none",
        )


def test_a_missing_chat_template_is_said(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_without("chat_template", tiny_model, tmp_path / "model")
    with pytest.raises(ConfigError, match=r"no chat template: set prompts.template"):
        prompts_of(store, tokenizer, write_jsonl(tmp_path / "p.jsonl", SUMS))
    assert (
        prompts_of(store, tokenizer, write_jsonl(tmp_path / "p.jsonl", SUMS), template="none").rows
        == 40
    )


@pytest.mark.parametrize(
    ("template", "kind", "message"),
    [
        (
            "{{ bos_token }}{{ bos_token }}{{ messages[0].content }}",
            InputError,
            "p.jsonl line 1 begins with two BOS tokens (<s>)",
        ),
        ("{% if %}", ConfigError, "prompts.template is not a Jinja template (line 1"),
        (
            "{% if '3+3' in messages[0].content %}{{ raise_exception('no threes') }}{% endif %}-",
            InputError,
            "p.jsonl line 4 does not fit prompts.template: no threes; change the row or the "
            "template",
        ),
        ("{# nothing #}", InputError, "p.jsonl line 1 renders to no token at all"),
    ],
)
def test_templates_that_do_not_work(
    store: Store,
    tiny_model: Path,
    tmp_path: Path,
    template: str,
    kind: type[Exception],
    message: str,
) -> None:
    (tmp_path / "t.jinja").write_text(template)
    with pytest.raises(kind) as error:
        prompts_of(
            store,
            tiny_model,
            write_jsonl(tmp_path / "p.jsonl", SUMS),
            template=str(tmp_path / "t.jinja"),
        )
    assert message in message_of(error)


def test_a_missing_template_file_is_a_config_error(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r'prompts.template no.jinja cannot be read .*: give "chat", "none" or'
    ):
        prompts_of(store, tiny_model, write_jsonl(tmp_path / "p.jsonl", SUMS), template="no.jinja")


CALLS = (
    "{% for m in messages %}<u>{{ m.name }}{{ m.content if m.content is string else "
    "m.content[0].text }}{% endfor %}"
)


def test_settings_of_the_template_reach_it(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(CALLS + "{{ strftime_now('%d') }}{% if not thinking %}<a>{% endif %}")
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "b"}], "name": "x"},
        {"role": "assistant", "content": "no"},
    ]
    source = write_jsonl(tmp_path / "p.jsonl", [*SUMS, {"prompt": parts}])
    settings: dict[str, Any] = {
        "system": "s",
        "until": "last_user",
        "date": "2026-01-31",
        "template": str(template),
    }
    rows = store.read(
        prompts_of(store, tiny_model, source, **settings, template_arguments={"thinking": True})
    ).to_pylist()
    row = next(row for row in rows if row["messages"][-1]["content"] == "b")
    assert row["prompt"] == "<u>s<u>xb31"
    assert row["messages"] == [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]
    assert json.loads(row["meta"]) == {"prompt": [{"role": "system", "content": "s"}, parts[0]]}
    assert json.loads(next(row for row in rows if row["answer"] == "2")["meta"]) == {"level": 1}
    other = store.read(
        prompts_of(store, tiny_model, source, **settings, template_arguments={"thinking": False})
    ).to_pylist()
    assert "<u>s<u>xb31<a>" in [row["prompt"] for row in other]


# ------------------------------------------------------------------------------- in = out + dropped


def test_the_first_of_equal_prompts_is_kept_with_its_answer(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [
        *SUMS,
        {"prompt": "1+1=", "answer": 2},  # 40: the same answer again
        {"prompt": "1+1=", "answer": 3},  # 41: another answer
        # 42: renders like row 2, without its answer
        {"prompt": [{"role": "user", "content": "2+2="}]},
    ]
    handle = prompts_of(store, tiny_model, write_jsonl(tmp_path / "p.jsonl", rows))
    kept = rows_of(store, handle)
    assert kept["1+1="]["answer"] == "2"
    assert dropped_of(store, handle) == [
        {
            "row": row,
            "prompt_id": kept[text]["prompt_id"],
            "reason": "duplicate",
            "prompt_tokens": 7,
        }
        for row, text in [(40, "1+1="), (41, "1+1="), (42, "2+2=")]
    ]
    numbers = store.manifest(handle).numbers
    assert set(store.manifest(handle).parents) == {"source", "tokenizer"}
    assert (numbers["source_rows"], numbers["dropped"], handle.rows) == (43, 3, 40)
    assert (
        numbers["dropped_duplicate"],
        numbers["dropped_too_long"],
        numbers["conflicting_answers"],
    ) == (3, 0, 2)


def test_the_limit_of_tokens_is_the_last_length_that_stays(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    # 7, 8 and 8 tokens; sums have 7 or 9
    rows = [*SUMS, {"prompt": "1234"}, {"prompt": "12345"}, {"prompt": "12345"}]
    handle = prompts_of(
        store, tiny_model, write_jsonl(tmp_path / "p.jsonl", rows), max_prompt_tokens=7
    )
    assert set(rows_of(store, handle)) == {f"{number}+{number}=" for number in range(10)} | {"1234"}
    assert [
        (row["row"], row["reason"], row["prompt_tokens"]) for row in dropped_of(store, handle)
    ] == [
        *((row, "too_long", 9) for row in range(10, 40)),
        (41, "too_long", 8),
        # too long comes first: it would be no duplicate of a prompt that is there
        (42, "too_long", 8),
    ]
    numbers = store.manifest(handle).numbers
    assert (numbers["source_rows"], numbers["dropped_too_long"], numbers["max_prompt_tokens"]) == (
        43,
        32,
        7,
    )


def test_limit_takes_the_first_rows(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "p.jsonl", SUMS)
    source.write_text(source.read_text() + "not read any more\n")
    handle = prompts_of(store, tiny_model, source, limit=40)
    assert store.manifest(handle).numbers["source_rows"] == 40


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(texts=st.lists(st.text("0123+=ab", min_size=1, max_size=6), max_size=30))
def test_every_row_is_a_prompt_or_dropped(
    tiny_model: Path, tmp_path: Path, texts: list[str]
) -> None:
    # the manifest of equal prompts would be that of an earlier example
    store = Store(tempfile.mkdtemp(dir=tmp_path))
    rows = [*SUMS, *({"prompt": text} for text in texts)]
    handle = prompts_of(
        store, tiny_model, write_jsonl(tmp_path / "p.jsonl", rows), max_prompt_tokens=9, seed=3
    )
    kept, dropped = store.read(handle).to_pylist(), dropped_of(store, handle)
    assert len(rows) == len(kept) + len(dropped)
    assert len({row["prompt_id"] for row in kept}) == len(kept)
    expected = {row["prompt"] for row in rows if len(row["prompt"]) <= 6}
    assert {row["messages"][0]["content"] for row in kept} == expected
    for row in kept:
        assert row["prompt_token_ids"].count(1) == 1
        assert row["prompt_token_ids"][0] == 1


# ---------------------------------------------------------------------------------------- the split


def test_the_draw_is_the_leading_digits_of_a_hash() -> None:
    draw = int(hashlib.sha256(b"7/abc").hexdigest()[:16], 16) / 16**16
    # eval where the draw is smaller than the fraction, strictly
    assert split_of("abc", 7, draw) == "train"
    assert split_of("abc", 7, draw + 1e-9) == "eval"


def test_the_eval_share_is_the_one_asked_for() -> None:
    splits = [split_of(str(number), 0, 0.1) for number in range(20_000)]
    # 2000 expected, standard deviation sqrt(20000 * 0.1 * 0.9) = 42: five of them either way.
    assert 1790 < splits.count("eval") < 2210


def test_splits_depend_on_nothing_but_prompt_and_seed(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    first = prompts_of(
        store, tiny_model, write_jsonl(tmp_path / "p.jsonl", SUMS), eval_fraction=0.3
    )
    turned = prompts_of(
        store, tiny_model, write_jsonl(tmp_path / "q.jsonl", SUMS[::-1]), eval_fraction=0.3
    )
    more = prompts_of(
        store,
        tiny_model,
        write_jsonl(tmp_path / "r.jsonl", [{"prompt": "0"}, *SUMS]),
        eval_fraction=0.3,
    )
    other = prompts_of(
        store, tiny_model, write_jsonl(tmp_path / "p.jsonl", SUMS), eval_fraction=0.3, seed=1
    )
    assert first == turned
    splits = {text: row["split"] for text, row in rows_of(store, first).items()}
    assert (
        splits.items() < {text: row["split"] for text, row in rows_of(store, more).items()}.items()
    )
    assert splits != {text: row["split"] for text, row in rows_of(store, other).items()}
    ids = store.read(first).column("prompt_id").to_pylist()
    assert ids == sorted(ids)
    numbers = store.manifest(first).numbers
    assert numbers["train"] == list(splits.values()).count("train")
    assert numbers["eval"] == list(splits.values()).count("eval") == 40 - numbers["train"]


@pytest.mark.parametrize(("fraction", "split"), [(1e-6, "eval"), (1 - 1e-6, "train")])
def test_an_empty_split_is_an_error(
    store: Store, tiny_model: Path, tmp_path: Path, fraction: float, split: str
) -> None:
    with pytest.raises(
        InputError, match=f"none of 40 prompts fell into the {split} split: give more prompts"
    ):
        prompts_of(
            store, tiny_model, write_jsonl(tmp_path / "p.jsonl", SUMS), eval_fraction=fraction
        )


def test_nothing_but_long_prompts_is_an_error(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"every prompt is longer than 3 tokens, the shortest has 7: raise "
        r"prompts.max_prompt_tokens",
    ):
        prompts_of(store, tiny_model, write_jsonl(tmp_path / "p.jsonl", SUMS), max_prompt_tokens=3)


# ------------------------------------------------------------------------- answers and other fields


@pytest.mark.parametrize(
    ("answer", "expected", "meta"),
    [
        ("4", "4", {}),
        (4, "4", {}),
        (0.5, "0.5", {}),
        (None, None, {}),
        (72.0, "72", {}),
        (True, "true", {}),
        (["4", 4.0], '["4", 4]', {}),
    ],
)
def test_answers(
    store: Store,
    tiny_model: Path,
    tmp_path: Path,
    answer: Any,
    expected: str | None,
    meta: dict[str, Any],
) -> None:
    rows = [*SUMS, {"prompt": "a", "answer": answer, "z": 1, "b": "é"}]
    handle = prompts_of(store, tiny_model, write_jsonl(tmp_path / "p.jsonl", rows))
    row = rows_of(store, handle)["a"]
    assert row["answer"] == expected
    assert row["meta"] == json.dumps(meta | {"b": "é", "z": 1}, ensure_ascii=False)
    assert store.manifest(handle).numbers["with_answer"] == 40 + (expected is not None)


def test_what_only_parquet_can_hold_becomes_json(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    table = pa.Table.from_pylist(SUMS)
    days = pa.array([date(2026, 1, 2)] * 40)
    scores = pa.array([float("nan")] * 40)
    pq.write_table(
        table.append_column("day", days).append_column("score", scores), tmp_path / "p.parquet"
    )
    row = rows_of(store, prompts_of(store, tiny_model, tmp_path / "p.parquet"))["1+1="]
    assert json.loads(row["meta"]) == {"day": "2026-01-02", "level": 1, "score": None}
    pq.write_table(table.append_column("image", pa.array([b"x"] * 40)), tmp_path / "q.parquet")
    with pytest.raises(
        InputError,
        match=r"q.parquet row 1 has a field that JSON cannot hold \(bytes is no JSON value\)",
    ):
        prompts_of(store, tiny_model, tmp_path / "q.parquet")


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2 * number for number in range(40)]), "2"),
        (pa.array([0, 2, None, *range(37)]), "2"),
        # as pandas writes integers of which one is missing
        (pa.array([0.0, 2.0, float("nan"), *[1.0] * 37]), "2"),
        (pa.array([0.1] * 40, pa.float32()), "0.1"),
        (pa.array(["2.50"] * 40).cast(pa.decimal128(5, 2)), "2.5"),
        (pa.array([date(2026, 1, 2)] * 40), "2026-01-02"),
        (pa.array([date(2026, 1, 2)] * 40).cast(pa.timestamp("ns")), "2026-01-02T00:00:00"),
        (pa.array([True] * 40), "true"),
        (pa.array([[2, 3]] * 40), "[2, 3]"),
        (pa.array([[0.1, 2.0]] * 40, pa.list_(pa.float32(), 2)), "[0.1, 2]"),
        (
            pa.array([{"x": [0.1, None]}] * 40, pa.struct([("x", pa.large_list(pa.float32()))])),
            '{"x": [0.1, null]}',
        ),
        (pa.array([{"x": 2.0, "y": None}] * 40), '{"x": 2, "y": null}'),
        (pa.array(["2"] * 40).dictionary_encode(), "2"),
    ],
)
def test_answers_of_every_type_of_column(
    store: Store, tiny_model: Path, tmp_path: Path, column: pa.Array, expected: str
) -> None:
    table = pa.table({"prompt": [row["prompt"] for row in SUMS], "answer": column})
    pq.write_table(table, tmp_path / "p.parquet")
    handle = prompts_of(store, tiny_model, tmp_path / "p.parquet")
    row = rows_of(store, handle)["1+1="]
    assert (row["answer"], row["meta"]) == (expected, "{}")
    numbers = store.manifest(handle).numbers
    missing = [answer is None or answer != answer for answer in column.to_pylist()]
    assert numbers["with_answer"] == 40 - sum(missing)
    assert numbers["nan_answers"] == sum(answer != answer for answer in column.to_pylist())


def test_an_answer_without_a_text_is_named(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"prompt": ["1=", "2="], "answer": [None, b"1"]}), tmp_path / "p.parquet"
    )
    with pytest.raises(
        InputError,
        match=r"p.parquet row 2 has a 'answer' that cannot be written as text \(bytes is no "
        r"answer\): convert that",
    ):
        prompts_of(store, tiny_model, tmp_path / "p.parquet")


# ------------------------------------------------------------------------------------------- groups


def test_a_group_is_on_one_side(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{number}=", "topic": number % 20 if number % 2 else float(number % 20)}
        for number in range(120)
    ]
    source = write_jsonl(tmp_path / "p.jsonl", rows)
    handle = prompts_of(store, tiny_model, source, group_field="topic", eval_fraction=0.4)
    for text, row in rows_of(store, handle).items():
        topic = str(int(text.removesuffix("=")) % 20)
        assert row["split"] == split_of(topic, 0, 0.4), "drawn from the value, 4 and 4.0 alike"
        assert json.loads(row["meta"])["topic"] == int(topic)
    # Without it some group is on both sides.
    alone = rows_of(store, prompts_of(store, tiny_model, source, eval_fraction=0.4))
    assert {
        row["split"] for text, row in alone.items() if int(text.removesuffix("=")) % 20 == 3
    } == {"train", "eval"}


def test_the_answer_may_be_the_group(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    handle = prompts_of(
        store,
        tiny_model,
        write_jsonl(tmp_path / "p.jsonl", SUMS),
        group_field="answer",
        eval_fraction=0.4,
    )
    row = rows_of(store, handle)["1+1="]
    assert (row["answer"], row["meta"], row["split"]) == (
        "2",
        '{"answer": 2, "level": 1}',
        split_of("2", 0, 0.4),
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "1="},
            "p.jsonl line 1 has no field 'topic': name one of its fields with "
            "prompts.group_field (prompt)",
        ),
        (
            {"prompt": "1=", "topic": None},
            "p.jsonl line 1 has no value as 'topic', the prompts.group_field",
        ),
    ],
)
def test_a_row_without_a_group_is_named(
    store: Store, tiny_model: Path, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        prompts_of(
            store, tiny_model, write_jsonl(tmp_path / "p.jsonl", [row, row]), group_field="topic"
        )
    assert message_of(error).startswith(message)


def test_the_prompt_is_no_group() -> None:
    with pytest.raises(
        ValidationError,
        match="group_field is the prompt itself, 'prompt': name a field that several prompts",
    ):
        PromptsConfig(source="p.jsonl", group_field="prompt")


# ----------------------------------------------------------------------------------------- bad rows

TEXT = b'{"prompt": "1="}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            TEXT + b'{"prompt": \n',
            "p.jsonl line 2 is not JSON (Expecting value at character 12): one object per line "
            "is needed",
        ),
        (TEXT + b"\n\n[1]\n", "p.jsonl line 4 is not a JSON object"),
        (TEXT + b'"1="\n', "p.jsonl line 2 is not a JSON object"),
        (
            TEXT + b'{"prompt": "1", "x": NaN}\n',
            "p.jsonl line 2 is not JSON (NaN is not a JSON number)",
        ),
        (
            TEXT + b'{"prompt": "\xff"}\n',
            "p.jsonl line 2 is not UTF-8 (byte 13 of the line): convert the file",
        ),
        (TEXT + b'{"prompt": "\\ud800"}\n', "p.jsonl line 2 escapes half of a surrogate pair"),
        (
            b'{"text": "1=", "id": 3}\n',
            "line 1 has no field 'prompt': name one of its fields with prompts.field (text, id)",
        ),
        (
            b"{}\n",
            "p.jsonl line 1 has no field 'prompt': name one of its fields with prompts.field (none)",
        ),
        (TEXT + b'{"prompt": ""}\n', "p.jsonl line 2 has a blank 'prompt'"),
        (TEXT + b'{"prompt": " \\n\\t"}\n', "p.jsonl line 2 has a blank 'prompt'"),
        (
            TEXT + b'{"prompt": null}\n',
            "p.jsonl line 2 has null as 'prompt': a text or a list of messages is needed",
        ),
        (TEXT + b'{"prompt": 7}\n', "p.jsonl line 2 has a number as 'prompt'"),
        (TEXT + b'{"prompt": []}\n', "p.jsonl line 2 has an empty list of messages as 'prompt'"),
        (
            TEXT + b'{"prompt": ["1="]}\n',
            "p.jsonl line 2 message 1 is a text: an object with role and content is needed",
        ),
        (
            TEXT + b'{"prompt": [{"content": "1"}]}\n',
            "p.jsonl line 2 message 1 has no 'role' but 'content'",
        ),
        (
            TEXT + b'{"prompt": [{"role": "user"}]}\n',
            "p.jsonl line 2 message 1 has no 'content' but 'role'",
        ),
        (
            TEXT + b'{"prompt": [{"role": "user", "content": 1}]}\n',
            "p.jsonl line 2 message 1 has a number as 'content'",
        ),
        (
            TEXT + b'{"prompt": [{"role": "user", "content": " "}]}\n',
            "p.jsonl line 2 message 1 has a blank 'content'",
        ),
        (
            TEXT
            + b'{"prompt": [{"role": "user", "content": "1"}, {"role": "assistant", "content": '
            b'"1"}]}\n',
            "p.jsonl line 2 ends with the assistant's turn",
        ),
        (b"", "p.jsonl holds no rows"),
        (b"\n \n", "p.jsonl holds no rows"),
    ],
)
def test_a_bad_row_is_named(
    store: Store, tiny_model: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(InputError) as error:
        prompts_of(store, tiny_model, tmp_path / "p.jsonl")
    assert message in message_of(error)
    assert list(store.handles("prompts")) == []


def test_messages_need_a_template(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", [{"prompt": [{"role": "user", "content": "1"}]}])
    with pytest.raises(
        InputError, match=r"p.jsonl line 1 has messages, which prompts.template none cannot render"
    ):
        prompts_of(store, tiny_model, tmp_path / "p.jsonl", template="none")


def test_windows_files_read_as_others(store: Store, tiny_model: Path, tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "p.jsonl", SUMS)
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n"))
    assert prompts_of(store, tiny_model, tmp_path / "q.jsonl") == prompts_of(
        store, tiny_model, plain
    )


# ---------------------------------------------------------------------------------------- the stage


def test_the_flow_can_import_the_spec_without_an_engine() -> None:
    program = (
        "import sys, wind.prompts; print(sorted({'torch', 'transformers', 'datasets', "
        "'vllm'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_manifest_alone_computes_the_same_prompts_again(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    handle = prompts_of(store, tiny_model, write_jsonl(tmp_path / "p.jsonl", SUMS))
    manifest = store.path(handle) / "manifest.json"
    copy = tmp_path / "spec.json"
    copy.write_bytes(manifest.read_bytes())
    manifest.unlink()
    command = [sys.executable, "-m", "wind.stages", str(copy), "--root", str(store.root)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert Dataset.model_validate_json(result.stdout) == handle
    assert store.verify(handle).rows == 40


def test_a_shard_without_what_came_with_it_is_computed_again(
    store: Store, tiny_model: Path, tmp_path: Path
) -> None:
    config = PromptsConfig(source=str(write_jsonl(tmp_path / "p.jsonl", [*SUMS, SUMS[0]])))
    spec = prompts_spec(
        store, config, import_prompts(store, config), import_model(store, tiny_model), 0
    )
    job = Job(stage="prompts", spec=spec.model_dump(mode="json"), place=Place(root=str(store.root)))
    with store.partial("prompts", job.key()) as partial:
        compute_shard(job, 0, lambda done, total: None)
        assert missing_shards(job, partial) == []
        # as a kill in the middle of publishing leaves it
        (store.root / partial.folder / "outputs-00000.json").unlink()
        assert missing_shards(job, partial) == [0]
    handle = run(job, lambda done, total: None)
    assert store.manifest(handle).numbers["dropped_duplicate"] == 1
    assert len(dropped_of(store, handle)) == 1
