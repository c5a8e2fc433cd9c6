"""What is a secret, and what is left of a text without it."""

import base64
import html
import json
import os
import pickle
import re
import threading
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

from wind.errors import ConfigError, InputError
from wind.redaction import MARK, Redactor, redacted, redacted_lines, without_home

ROOT = Path(__file__).resolve().parents[2]


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
        (
            '{"password": "correct-horse", "user": "ann"}',
            f'{{"password": "{MARK}", "user": "ann"}}',
        ),
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


SECRETS = [  # each tells its secret as SECRET-0123x or as a word that begins with SECRET
    "DB_PASS=SECRET-0123x",
    "SMTP_PASS='SECRET with spaces'",
    "PREFECT_SERVER_API_AUTH_STRING=ann:SECRET-0123x",
    "MYSQL_PWD=SECRETshort",
    "SENTRY_DSN=SECRET-0123x",
    "PGPASSWORD=SECRETabc psql",
    "export API_KEY=SECRET0123",
    "GET / HTTP/1.1\r\nCookie: session=SECRET-0123x; id=SECRETabc\r\nHost: x",
    "set-cookie: id=SECRETabc; Path=/",
    "{'Cookie': 'a=SECRETabc; b=SECRET-0123x'}",
    "requests.get(url, cookies={'session': 'SECRETabc'})",
    "Authorization: token SECRETabc",
    "authorization: bearer SECRET0123",
    "curl -H 'Authorization: SECRET-0123x' https://host",
    "'Authorization': 'Basic SECRETabc='",
    'Authorization: Digest username="ann", response="SECRET-0123x"',
    "Authorization: AWS4-HMAC-SHA256 Credential=SECRET/x/s3, Signature=SECRET",
    "the bearer SECRET0123456789 was refused",
    "X-Api-Key: SECRET0123",
    '"x-auth-token": "SECRET0123"',
    "PRIVATE-TOKEN: SECRET0123",
    "machine host login ann password SECRETabc",
    "machine host\n  login ann\n  password SECRET-0123x\n",
    'json: {"password": "SECRETx"}',
    "{'passwd': 'SECRET\"x'}",
    '{\\"db\\": {\\"password\\": \\"SECRET 0123\\"}}',
    '{"password":"SECRET\\"x\\""}',
    'password = b"SECRET"',
    'password: str = "SECRET"',
    "password: SECRETvalue",
    "+  db_password: SECRETvalue  # of the database",
    "2026-01-01 INFO connecting with password: SECRETvalue",
    "user: ann password: SECRET-0123x host: x",
    "aws_secret_access_key = SECRET0123/abc+def",
    "host=db user=ann password=SECRET-0123x dbname=x",
    "Server=db;User Id=sa;Password=SECRETabc;Encrypt=yes",
    "Server=db;Uid=sa;Pwd=SECRETabc;",
    "DefaultEndpointsProtocol=https;AccountName=x;AccountKey=SECRET0123abc==;EndpointSuffix=y",
    "run --password SECRETvalue --user ann",
    "run --token=SECRETvalue",
    "run --api-key SECRETvalue",
    "['run', '--db-password', 'SECRETvalue']",
    "curl -s -u ann:SECRETvalue https://host",
    "<password>SECRETvalue</password>",
    "postgresql://ann:SECRET@x@host/db",
    "redis://:SECRET@host:6379",
    "https://host/x?max_tokens=5&api_key=SECRET&x=1",
    "of a session: IQoJb3JpZ2luX2VjSECRET" + "Abc0" * 20,
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\nSECRETabc\nSECRETdef==\n-----END ENCRYPTED PRIVATE "
    "KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----\r\nSECRETabc\r\n-----END OPENSSH PRIVATE KEY-----",
    "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: x\n\nSECRETabc\n-----END PGP PRIVATE KEY "
    "BLOCK-----",
    "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nSECRETabc\n---- END SSH2 ENCRYPTED PRIVATE KEY "
    "----",
    '{"private_key": "-----BEGIN PRIVATE KEY-----\\nSECRETabc\\n-----END PRIVATE KEY-----\\n"}',
    "-----BEGIN EC PRIVATE KEY-----\nSECRETabcdefghijk\nSECRETz=\n",
    "SECRETabcdefghijk\nSECRETabcdefghijk\n-----END EC PRIVATE KEY-----",
]


@pytest.mark.parametrize("text", SECRETS)
def test_no_part_of_a_secret_is_left(text: str) -> None:
    left = redacted(text)
    assert "SECRET" not in left
    assert "0123" not in left
    assert MARK in left
    assert redacted(left) == left


@pytest.mark.parametrize("text", SECRETS)
def test_what_surrounds_a_secret_is_left(text: str) -> None:
    for word in (
        "password",
        "host",
        "curl",
        "Encrypt=yes",
        "EndpointSuffix=y",
        "max_tokens=5",
        "END",
        "2026-01-01",
        "--user ann",
    ):
        assert redacted(text).count(word) == text.count(word)


@pytest.mark.parametrize("size", [1, 7, 10**6])
@pytest.mark.parametrize("text", SECRETS)
def test_no_part_of_a_secret_comes_through_a_stream(text: str, size: int) -> None:
    """In whatever pieces the text comes, line by line: but a key's beginning cannot be known until
    its end comes.
    """
    if text.startswith("SECRET"):
        return
    redactor = Redactor()
    left = (
        "".join(redactor.feed(text[start : start + size]) for start in range(0, len(text), size))
        + redactor.end()
    )
    assert "SECRET" not in left
    assert "0123" not in left
    assert MARK in left


def test_a_key_in_a_log_is_taken_out_and_the_lines_between_are_not() -> None:
    key = ["MII" + "Ab+/0123" * 7] * 3 + ["QUJDRA=="]
    lines = [
        "begin",
        "-----BEGIN RSA PRIVATE KEY-----",
        *key[:2],
        "step 3 of 8, loss 0.5",
        *key[2:],
        "-----END RSA PRIVATE KEY-----",
    ]
    for prefix in ("", "2026-01-01 12:00:00 INFO "):
        redactor = Redactor()
        left = [redactor.feed(f"{prefix}{line}\n") for line in [*lines, "Ab+/0123" * 7]]
        assert left == [
            f"{prefix}{line}\n"
            for line in [*lines[:2], MARK, MARK, lines[4], MARK, MARK, lines[-1], "Ab+/0123" * 7]
        ]


def test_a_line_without_an_end_is_passed_on_and_cut_at_no_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-value-1")
    redactor = Redactor()
    piece = "word plain-value-1 password=hunter2; " * 10
    passed = "".join(redactor.feed(piece[:100]) + redactor.feed(piece[100:]) for _ in range(500))
    assert len(passed) > 50_000
    whole = passed + redactor.end()
    assert whole == f"word {MARK} password={MARK}; " * 5000
    redactor = Redactor()
    endless = "".join(redactor.feed("plain-value-1" * 500) for _ in range(40)) + redactor.end()
    assert "plain" not in endless


def test_the_lines_of_a_process_come_as_they_are_printed() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as printed:
        lines = redacted_lines(stream)
        printed.write("ü password: hunter2\nhalf \xff of it".encode("utf-8", "surrogateescape"))
        assert next(lines) == f"ü password: {MARK}\n"
        printed.write(b"\n\xff\x00\n")
        assert next(lines) == "half ÿ of it\n"
        assert next(lines) == "\ufffd\x00\n"
        printed.write(b"last")
        printed.close()
        assert list(lines) == ["last"]


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 128",
        "max_new_tokens=512",
        "max_new_tokens: 512",
        "tokens per second: 1234.5",
        "token = tokenizer.eos_token_id",
        '"eos_token": "<|im_end|>", "pad_token": "[PAD]", "token_type": "bearer"',
        "key: value\nprompt_id: 3f2a4b5c6d7e8f90\nsecret: none\npasses: 14",
        "  token_ids: 0b3c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "def login(user: str, password: str | None = None, token: bytes = b'') -> None:",
        "    password=password,\n    token=self._token,\n    secrets=job_secrets,\n",
        'parser.add_argument("--password", help="what to log in with")',
        "use --token to log in, or --password FILE; --max-tokens 512",
        "Basic arithmetic and the bearer of good news",
        "if password == other: raise ValueError('wrong password: denied')",
        "error: the password: required",
        "PWD=/home/ann/project OLDPWD=/tmp SSH_AUTH_SOCK=/tmp/ssh-x/agent.1",
        "PRIMARY_KEY=prompt_id",
        "the cookie: a recipe = flour and water",
        "-----BEGIN CERTIFICATE-----\nMIIabcdefghijklmnopqrstuvwxyz\n-----END CERTIFICATE-----",
        "abc.py:12: DeprecationWarning: key= is no argument of sort; machine learning; account "
        "of it",
        "docker run -u 1000:1000 image",
        "def key(store, handle, checks): return digest([key])",
        "https://host/path?page=2&max_tokens=5 and a@b.c",
        "--set training.lr=1e-6; KEYS = {'rewards': ('prompt_id',)}",
        "7 of 16 rows fail: 000000000000/2; see store/checks/rewards/x.html",
        "hf_model",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert redacted(text) == text


def test_this_projects_own_texts_stay() -> None:
    """What is stored as a patch applies: nothing in these files reads as a secret."""
    files = [
        path
        for folder in ("wind", "tasks", "flows", "data_checks", "docs", "configs")
        for path in (ROOT / folder).rglob("*.*")
    ]
    texts = {
        path: path.read_text(encoding="utf-8", errors="replace")
        for path in [*files, ROOT / "CHANGELOG.md"]
        if path.is_file() and path.suffix != ".pyc"
    }
    users = {path: re.sub(r"abfs://container@", "", text) for path, text in texts.items()}
    assert [path for path, text in users.items() if redacted(text) != text] == []


def test_values_of_secret_variables_go_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HF_TOKEN": "plain-value-1",
        "AWS_SECRET_ACCESS_KEY": "plain/value+2",
        "MY_SERVICE_PASSWORD": "plain-value-1-and-more",
        "TOKENIZERS_PARALLELISM": "no-secret-at-all",
        "SHORT_KEY": "prompts",
        "TLS_KEY_FILE": "where-it-lies",
    }.items():
        monkeypatch.setenv(name, value)
    assert redacted("x plain-value-1-and-more y") == f"x {MARK} y"
    assert redacted(["plain-value-1", {"at": "plain%2Fvalue%2B2", "n": 1}]) == [
        MARK,
        {"at": MARK, "n": 1},
    ]
    assert (
        redacted("no-secret-at-all in prompts, where-it-lies")
        == "no-secret-at-all in prompts, where-it-lies"
    )


def test_a_value_goes_however_it_is_spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    value = 'k&<"é/+ 1\nsecond line of it'
    monkeypatch.setenv("SERVICE_PASS", value)
    monkeypatch.setenv("DATABASE_URL", "postgres://ann:pa55%2Bword@host/db")
    encoded = value.encode()
    spelt = {
        value,
        quote(value),
        quote(value, safe=""),
        quote(value, safe="").lower(),
        quote_plus(value),
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        json.dumps(json.dumps(value)),
        html.escape(value),
        html.escape(json.dumps(value)),
        repr(value),
        "the second line of it came alone",
        "log in with pa55+word",
        *(
            base64.b64encode(before + encoded + b" and more").decode()
            for before in (b"", b"a", b"ab", b"abc")
        ),
        base64.urlsafe_b64encode(b"ann:" + encoded).decode(),
    }
    for text in spelt:
        left = redacted(f"before {text} behind")
        assert MARK in left, text
        assert len(left) <= len("before  behind") + 2 * len(MARK) + 24, left


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
