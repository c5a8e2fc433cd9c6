"""What is a secret, and what is left of a text without it."""

import os
import pickle
import threading

import pytest

from wind.errors import ConfigError, InputError
from wind.redaction import MARK, redacted, without_home


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("clone https://ann:pa55word@host/x?a=1", f"clone https://{MARK}@host/x?a=1"),
        ("s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI@bucket/a", f"s3://{MARK}@bucket/a"),
        (
            "GET https://h/x?X-Amz-Signature=0a1b&part=2&token=abc#top failed",
            f"GET https://h/x?X-Amz-Signature={MARK}&part=2&token={MARK}#top failed",
        ),
        ("401 for hf_abcdefghijklmnopqrst: log in", f"401 for {MARK}: log in"),
        ("key AKIAIOSFODNN7EXAMPLE.", f"key {MARK}."),
        ("Authorization: Bearer abcdefgh.ijkl==", f"Authorization: Bearer {MARK}"),
        ("WANDB_API_KEY=0123456789abcdef wandb", f"WANDB_API_KEY={MARK} wandb"),
        ('{"password": "correct-horse", "user": "ann"}', f'{{"password": "{MARK}", "user": "ann"}}'),
        ('{\\"client_secret\\": \\"correct-horse\\"}', f'{{\\"client_secret\\": \\"{MARK}\\"}}'),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----[redacted]-----END RSA PRIVATE KEY-----",
        ),
    ],
)
def test_a_secret_is_told_by_its_form(text: str, left: str) -> None:
    assert redacted(text) == left
    assert redacted(left) == left


@pytest.mark.parametrize(
    "text",
    [
        "token = tokenizer.eos_token_id",
        "def key(store, handle, checks): return digest([key])",
        "https://host/path?page=2 and a@b.c",
        "--set training.lr=1e-6; KEYS = {'rewards': ('prompt_id',)}",
        "7 of 16 rows fail: 000000000000/2; see store/checks/rewards/x.html",
        "hf_model",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redacted(text) == text


def test_values_of_secret_variables_go_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HF_TOKEN": "plain-value-1",
        "AWS_SECRET_ACCESS_KEY": "plain/value+2",
        "MY_SERVICE_PASSWORD": "plain-value-1-and-more",
        "TOKENIZERS_PARALLELISM": "no-secret-at-all",
        "SHORT_KEY": "prompts",
    }.items():
        monkeypatch.setenv(name, value)
    assert redacted("x plain-value-1-and-more y") == f"x {MARK} y"
    assert redacted(["plain-value-1", {"at": "plain%2Fvalue%2B2", "n": 1}]) == [MARK, {"at": MARK, "n": 1}]
    assert redacted("no-secret-at-all in prompts") == "no-secret-at-all in prompts"


def test_an_error_is_made_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-value-1")
    error = InputError("the rule raised plain-value-1")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == f"the rule raised {MARK}"
    assert str(ConfigError("https://u:p@h is no folder")) == f"https://{MARK}@h is no folder"


def test_the_home_folder_is_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert without_home("/home/ann/models/base") == "~/models/base"
    assert without_home("/home/anna") == "/home/anna"
    monkeypatch.setenv("HOME", "/")
    assert without_home("/models") == "/models"


def test_another_thread_may_change_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            os.environ["SOME_TOKEN"] = "for-a-moment-only"
            os.environ.pop("SOME_TOKEN", None)

    monkeypatch.setenv("SOME_TOKEN", "for-a-moment-only")
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3000):
            assert redacted("nothing secret") == "nothing secret"
    finally:
        done.set()
        thread.join()
