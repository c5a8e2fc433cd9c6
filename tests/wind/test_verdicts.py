"""Kept answers of judges: shared, stamped, and read back after anything."""

import json
from pathlib import Path

import pytest

from wind.store.datasets import Store
from wind.store.stamps import refused
from wind.store.verdicts import Answer, Verdicts, verdicts_of


def answer(number: int) -> Answer:
    return Answer(
        question=f"{number:064x}",
        text="A\u2028\U0001f600\x1b[2J\n" if number % 2 else "",
        verdict=1.0 if number % 2 else None,
        is_cut=False,
        input_tokens=number,
        output_tokens=1,
    )


def test_many_answers_are_few_files(store: Store) -> None:
    with verdicts_of(store, "j" * 64, alone=True) as verdicts:
        for number in range(1000):
            verdicts.keep(answer(number))
    assert len(list((store.root / "verdicts").rglob("*.jsonl"))) == 1
    again = Verdicts(store, "j" * 64)
    assert len(again.answers()) == 1000
    assert all(again.find(f"{number:064x}") == answer(number) for number in range(1000))
    assert again.find("f" * 64) is None
    assert Verdicts(store, "k" * 64).answers() == []


def test_an_answer_is_there_at_once(store: Store) -> None:
    """As after a kill: nothing was closed."""
    verdicts = Verdicts(store, "j")
    verdicts.keep(answer(1))
    assert Verdicts(store, "j").find(answer(1).question) == answer(1)
    verdicts.close()


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b"null", b"\xff\xfe", b'{"question": 1}', b"{" * 10000, b'{"a": NaN}']
)
def test_a_damaged_line_is_skipped(
    store: Store, line: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with verdicts_of(store, "j", alone=False) as verdicts:
        verdicts.keep(answer(1))
    path = next((store.root / "verdicts").rglob("*.jsonl"))
    path.write_bytes(line + b"\n" + path.read_bytes())
    again = Verdicts(store, "j")
    assert again.answers() == [answer(1)]
    assert "not taken" in capsys.readouterr().err


def test_an_edited_answer_is_not_believed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with verdicts_of(store, "j", alone=False) as verdicts:
        verdicts.keep(answer(1))
    path = next((store.root / "verdicts").rglob("*.jsonl"))
    fields = json.loads(path.read_bytes())
    forged = json.dumps(fields | {"verdict": 0.0}) + "\n"
    path.write_text(forged)
    assert Verdicts(store, "j").answers() == []
    assert "an answer is not ours, and is not taken" in capsys.readouterr().err
    assert refused(store.address) == [path.relative_to(store.root).as_posix()]
    # nor does it hide ours
    path.write_text(forged + json.dumps(fields) + "\n")
    assert Verdicts(store, "j").answers() == [answer(1)]


def test_an_object_store_shares_answers(s3: str, tmp_path: Path) -> None:
    """Another machine, with a cache of its own, finds them once the process has ended its work."""
    store = Store(s3)
    with verdicts_of(store, "j", alone=True) as verdicts:
        verdicts.keep(answer(1))
        # a kill would leave it in the cache of this machine
        assert len(Verdicts(store, "j").answers()) == 1
        assert store.storage.names("verdicts/j") == []
    assert len(store.storage.names("verdicts/j")) == 1
    assert list((store.local / "verdicts").rglob("*.jsonl")) == []
    assert Verdicts(Store(s3), "j").find(answer(1).question) == answer(1)
