"""Secrets in the environment, in a config and in what a failing worker says: none of them is ever
written below the root.
"""

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "finished_recipe")]

Wind = Callable[..., tuple[int, str, str]]

SECRETS = {
    "HF_TOKEN": "hf_QwErTyUiOpAsDfGhJkLz",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "session-0123456789",
    "WANDB_API_KEY": "wandb0123456789abcdef",
    "SMTP_PASS": "battery-of-smtp",
    "MY_API_AUTH_STRING": "ann:string-of-ann",
    "MULTILINE_SECRET": "first-line-of-it\nsecond-line-of-it",
    "MY_DB_PASSWORD": "correct-horse-battery",
}
IN_URL = (
    "https://ann:pa55-of-ann@host/prompts.jsonl?X-Amz-Signature=5ignature0123&token=t0ken-of-ann"
)
PARTS_OF_URL = ("pa55-of-ann", "5ignature0123", "t0ken-of-ann")
PRIVATE_KEY = [
    "-----BEGIN ENCRYPTED PRIVATE KEY-----",
    *["MIIFHDBOBgkqhkiG9w0BBQ0wQTApBgkqhkiG9w0BBQwwHAQI"] * 3,
    "-----END ENCRYPTED PRIVATE KEY-----",
]
SAID = [
    "Cookie: session=c00kie-of-ann; a=b",
    "authorization: token t0ken-of-header",
    "login --password passw0rd-of-argument --user ann",
]
PARTS_OF_SAID = (
    "MIIFHDBOBgkqhkiG9w0BBQ0wQTApBgkqhkiG9w0BBQwwHAQI",
    "c00kie-of-ann",
    "t0ken-of-header",
    "passw0rd-of-argument",
)
LEAKS = f'''
import base64, logging, os, sys


def leak(prompts, responses, answers):
    for line in {PRIVATE_KEY + SAID!r}:
        print(line)
        logging.getLogger("somebody").warning(line)
        sys.stderr.write(line[:20])
        sys.stderr.flush()
        sys.stderr.write(line[20:] + "\\n")
    print(base64.b64encode(b"ann:" + os.environ["SMTP_PASS"].encode()).decode())
    for name in {tuple(SECRETS)!r}:
        print(name, os.environ[name], file=sys.stderr)
        logging.getLogger("somebody").error("the login of %s is %s", name, os.environ[name])
    try:
        raise OSError("GET {IN_URL} said 403")
    except OSError as error:
        raise RuntimeError("{IN_URL} refused " + " ".join(os.environ[name] for name in {tuple(SECRETS)!r})) from error
'''
DIES = (
    LEAKS
    + """

def die(prompts, responses, answers):
    try:
        leak(prompts, responses, answers)
    finally:
        sys.stderr.flush()
        os._exit(3)
"""
)


def found_below(*roots: Path) -> list[str]:
    """Every file with a secret in it, and which."""
    in_base64 = base64.b64encode(b"ann:" + SECRETS["SMTP_PASS"].encode()).decode()[8:24]
    values = [line for value in SECRETS.values() for line in value.splitlines()]
    wanted = [*values, *PARTS_OF_URL, *PARTS_OF_SAID, in_base64]
    files = [path for root in roots for path in root.rglob("*") if path.is_file()]
    assert any(path.suffix in (".db", ".db-wal") for path in files)
    return [
        f"{path}: {secret}"
        for path in files
        for secret in wanted
        if secret.encode() in path.read_bytes()
    ]


def test_no_secret_is_written_below_the_root(
    wind: Wind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    Path("leaky.py").write_text(DIES)
    Path("leaky_checks.py").write_text(
        "import os\ndef rewards(subject):\n    raise ValueError(os.environ['MY_DB_PASSWORD'])\n"
    )
    prefect_home = Path(os.environ["PREFECT_HOME"])

    code, _, line = wind("run", "tiny.yaml", "--set", "reward.function=leaky:leak")
    assert code == 1
    assert (
        "leaky:leak failed: RuntimeError: https://[redacted]@host/prompts.jsonl?X-Amz-Signature=[redacted]"
        in line
    )
    code, _, line = wind("run", "tiny.yaml", "--set", "reward.function=leaky:die")
    assert code == 1
    assert "ended its process with exit code 3" in line
    assert "the login of MY_DB_PASSWORD is [redacted]" in line
    log = Path("store/runs/tiny/logs/transformers-0.log").read_text()
    assert "MY_DB_PASSWORD [redacted]" in log
    assert "END ENCRYPTED PRIVATE KEY" in log

    code, _, line = wind("run", "tiny.yaml", "--set", f"prompts.source={json.dumps(IN_URL)}")
    assert code == 2
    assert "prompts.source holds a credential: leave it out" in line
    code, _, line = wind("run", "tiny.yaml", "--set", f"policy.path={SECRETS['MY_DB_PASSWORD']}")
    assert code == 2
    assert "policy.path holds a credential" in line
    code, _, line = wind("check", "tiny", "--set", "checks.files=[leaky_checks.py]")
    assert code == 1
    assert line.endswith("leaky_checks.py:3: rewards failed, ValueError: [redacted]: fix the file")

    assert found_below(tmp_path / "store", prefect_home) == []
