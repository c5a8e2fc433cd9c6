"""The GPUs that CUDA gives: a driver written for the test, asked as the real one would be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wind.machine import devices

DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cuInit(unsigned flags) { const char *code = getenv("CU_INIT"); return code ? atoi(code) : 0; }

int cuDeviceGetCount(int *count) {  /* two are there; as many as CUDA_VISIBLE_DEVICES has names are seen */
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    *count = visible ? 1 : 2;
    for (; visible && *visible; visible++) *count += *visible == ',';
    if (getenv("CU_CRASH")) abort();
    return 0;
}

int cuDeviceGet(int *device, int number) { *device = 70 + number; return 0; }

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "%s", device == 71 ? "H200" : "H100 80GB HBM3");
    return 0;
}

int cuDeviceTotalMem_v2(size_t *size, int device) { *size = device == 71 ? 150UL << 30 : 80UL << 30; return 0; }

int cuDriverGetVersion(int *version) { *version = 12080; return 0; }

int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_SYSTEM_NOT_READY"; return 0; }
"""

ASKED = """
import json, os
from wind.machine import devices
answers = []
for changes in json.loads(os.environ["CASES"]):
    devices._answer.cache_clear()
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        answers.append(list(devices.gpus()))
    except Exception as error:
        answers.append(f"{type(error).__name__}: {error}")
    for name in changes:
        del os.environ[name]
first, driver = devices.gpus(), devices.driver()
os.environ["CUDA_VISIBLE_DEVICES"] = "1"  # what was said before is of another environment
print(json.dumps([*answers, driver.memory, driver.cuda, len(first), len(devices.gpus())]))
"""


def test_the_driver_is_asked_what_it_gives(tmp_path: Path) -> None:
    (tmp_path / "driver.c").write_text(DRIVER)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", tmp_path / devices.DRIVER, tmp_path / "driver.c"],
        check=True,
    )
    cases = [
        {},
        {"CUDA_VISIBLE_DEVICES": "GPU-a,1,MIG-b"},
        {"CU_INIT": "100"},
        {"CU_INIT": "34"},
        {"CU_INIT": "802"},
        {"CU_CRASH": "1"},
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "CASES": json.dumps(cases)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    asked = subprocess.run(
        [sys.executable, "-c", ASKED], env=environment, capture_output=True, text=True, check=True
    )
    two, three, without, stub, unready, crashed, memory, cuda, *counts = json.loads(asked.stdout)
    assert (memory, cuda) == ([80 * 2**30, 150 * 2**30], "12.8")
    assert two == ["H100 80GB HBM3", "H200"]
    assert three == ["H100 80GB HBM3", "H200", "H100 80GB HBM3"]
    assert (without, stub) == ([], [])
    say = "check that nvidia-smi works, or set workers.device to cpu"
    assert (
        unready
        == f"ConfigError: the CUDA driver does not start: CUDA_ERROR_SYSTEM_NOT_READY (802); {say}"
    )
    assert crashed.startswith("ConfigError: the CUDA driver does not start: no answer, ")
    assert "\n" not in crashed
    assert counts == [2, 1]


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DRIVER", "libcuda-that-is-not-there.so.1")
    assert devices._answer("of this test alone") == devices.Driver()


@pytest.mark.parametrize(
    ("version", "is_for_cpus"), [("2.13.0+cpu", True), ("2.13.0", False), ("2.13.0+cu130", False)]
)
def test_a_torch_for_cpus_is_known_by_its_version(
    monkeypatch: pytest.MonkeyPatch, version: str, is_for_cpus: bool
) -> None:
    monkeypatch.setattr(devices, "version", lambda name: version)
    assert devices.cpu_build() == ("torch 2.13.0+cpu" if is_for_cpus else None)


def test_gpus_are_listed_by_their_names() -> None:
    assert devices.listed(["A", "B", "A"]) == "2 x A, 1 x B"
