"""Which Prefect API a command talks to, and what the environment may say about it."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flows.api import prefect_api, refuse_strange_proxies, require_url
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError
from wind.store.datasets import Store
from wind.store.references import find_version

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "http://127.0.0.1:9"
# What decides how floats are computed, or how many threads do it. All of it would give other ids.
OTHER_FLOATS = {
    "ATEN_CPU_CAPABILITY": "default",
    "BLIS_NUM_THREADS": "3",
    "CUBLAS_WORKSPACE_CONFIG": ":16:8",
    "DNNL_DEFAULT_FPMATH_MODE": "BF16",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "GOTO_NUM_THREADS": "3",
    "KMP_DETERMINISTIC_REDUCTION": "0",
    "MALLOC_ARENA_MAX": "1",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_DEBUG_CPU_TYPE": "5",
    "MKL_DYNAMIC": "TRUE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "MKL_NUM_THREADS": "3",
    "NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3",
    "NUMBA_NUM_THREADS": "3",
    "NUMEXPR_NUM_THREADS": "3",
    "NVIDIA_TF32_OVERRIDE": "1",
    "OMP_DYNAMIC": "TRUE",
    "OMP_NUM_THREADS": "3",
    "OMP_SCHEDULE": "dynamic,1",
    "ONEDNN_DEFAULT_FPMATH_MODE": "BF16",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Prescott",
    "OPENBLAS_NUM_THREADS": "3",
    "POLARS_MAX_THREADS": "1",
    "PYTHONHASHSEED": "7",
    "RAYON_NUM_THREADS": "3",
    "TOKENIZERS_PARALLELISM": "true",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "VECLIB_MAXIMUM_THREADS": "3",
}
# What a user may have for other servers and other programs. Ours must not care.
HOSTILE = OTHER_FLOATS | {
    "http_proxy": NOBODY,
    "HTTPS_PROXY": NOBODY,
    "ALL_PROXY": NOBODY,
    "PREFECT_API_AUTH_STRING": "somebody:else",
    "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://nobody/nothing",
    "PREFECT_API_KEY": "pnu_0123456789abcdef",
    "PREFECT_PROFILE": "cloud",
    "PREFECT_SERVER_API_AUTH_STRING": "somebody:else",
    "PREFECT_SERVER_API_BASE_PATH": "/elsewhere",
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "TZ": "Asia/Kolkata",
}


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:4200",
        "localhost",
        "http://",
        "http://127.0.0.1:port/api",
        "http://[::1/api",
        "ftp://a/api",
    ],
)
def test_what_is_no_url_is_refused_by_the_name_of_its_variable(url: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^PREFECT_API_URL is .* no URL such as http://127.0.0.1:4200/api: start .* or "
        r"unset it",
    ):
        require_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:4200/api",
        "https://api.prefect.cloud/api/accounts/a/workspaces/b",
        "http://[::1]:42/api",
    ],
)
def test_a_url_is_one(url: str) -> None:
    require_url(url)


def test_a_proxy_of_an_unknown_kind_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name.upper(), "HTTP://127.0.0.1:9")
    refuse_strange_proxies()
    monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:9")
    with (
        pytest.raises(ConfigError, match=r"^ALL_PROXY names a socks proxy"),
        prefect_api(Path("never")),
    ):
        raise AssertionError


@pytest.mark.slow
def test_a_stale_url_is_one_line(recipe: Callable[..., DistillConfig]) -> None:
    recipe()
    started = time.monotonic()
    ended = wind("run", "tiny.yaml", variables={"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert time.monotonic() - started < 60
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(
        r"error: PREFECT_API_URL is http://127.0.0.1:9/api .*Connection refused.*\n", ended.stderr
    )
    assert not Path("store").exists()


@pytest.mark.slow
def test_a_setting_that_prefect_refuses_is_named(recipe: Callable[..., DistillConfig]) -> None:
    recipe()
    ended = wind("plan", "tiny.yaml", variables={"PREFECT_LOGGING_LEVEL": "loud"})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    assert re.search(
        r"^error: Prefect's LoggingSettings refuse level 'LOUD' .*PREFECT_.*$",
        ended.stderr.splitlines()[-1],
    )


@pytest.mark.slow
def test_a_run_is_the_same_whatever_the_environment_and_the_name_of_its_root(
    recipe: Callable[..., DistillConfig], finished: Path, tmp_path: Path
) -> None:
    """Its database lies in its root; afterwards every command reads the store under that name."""
    recipe()
    root = "x?y=1#a%20b [c] ü'*\""
    there = set(os.listdir(tmp_path))
    ended = wind("run", "tiny.yaml", "--set", f"root='{root.replace(chr(39), chr(39) * 2)}'")
    assert ended.returncode == 0, ended.stderr
    assert set(os.listdir(tmp_path)) - there == {root}
    assert (tmp_path / root / "prefect" / "prefect.db").stat().st_size > 0
    assert (
        find_version(Store(tmp_path / root), "tiny").id == find_version(Store(finished), "tiny").id
    )
    for arguments in (
        ["versions"],
        ["show", "tiny"],
        ["rows", "tiny:rewards"],
        ["sql", "SELECT count(*) FROM generations"],
        ["verify"],
        ["docs", "tiny"],
        ["lineage", "tiny"],
        ["export", "tiny:rewards", "parquet", "--format", "parquet"],
        ["export", "tiny", "hf", "--format", "hf"],
        ["export", "tiny", "all.tar", "--format", "archive"],
        ["gc"],
    ):
        ended = wind(*arguments, "--root", root)
        assert ended.returncode == 0, (arguments, ended.stderr)
    assert len(Store(root).read(find_version(Store(root), "tiny").content.datasets["rewards"])) > 0
    shutil.rmtree(root)
    assert not (home() / ".cache").exists()  # nothing was compiled, or fetched


def home() -> Path:
    """A home that is not there."""
    return Path(f"{Path.cwd()}-home")


def wind(
    *arguments: str, variables: Mapping[str, str] = HOSTILE
) -> "subprocess.CompletedProcess[str]":
    """The command line with these variables in its environment, and a home that is not there."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    }
    environment |= {**variables, "HOME": str(home()), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
        umask=0o077,
    )
