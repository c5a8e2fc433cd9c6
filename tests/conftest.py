"""Shared fixtures: a store in a temporary folder, and a tiny random policy with a real fast
tokenizer.
"""

import contextlib
import http.client
import os
import shutil
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flows.server import QUIET
from tests import leftovers
from tests.process_state import changes, process_state, restore
from wind.machine import devices, processes
from wind.store.datasets import Store
from wind.store.versions import Version, Versions

if leftovers.MARK not in os.environ:  # of the controller, where there are several processes
    leftovers.begin()
# a shell that runs the tests in the background has all that they start ignore them
for each in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(each) is signal.SIG_IGN:
        signal.signal(each, signal.default_int_handler if each is signal.SIGINT else signal.SIG_DFL)
# before Prefect is imported, as the command line does: it reads how loud to be once
os.environ.update(QUIET)

hypothesis.settings.register_profile("untimed", deadline=None)  # a property is no timing
hypothesis.settings.load_profile("untimed")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<' ~ message['role'][0] ~ '>' ~ "
    "message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
LONGEST = (  # whole files go to one process: the longest, in this order, begin
    *(
        "test_training_ranks",
        "test_deployments",
        "test_vllm_architectures",
        "test_vllm",
        "test_kill",
        "test_distill",
    ),
    *("test_compare", "test_chaos", "flows/", "test_training", "test_rollouts", "test_generations"),
)
WARM = {"wind.generations.vllm", "wind.rewards.hosts", "wind.training.processes"}
CHARACTERS = "0123456789+-=abcdefghijklmnopqrstuvwxyz .?"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest files, so that no worker is left alone with one at the end; what takes
    no time comes last.

    Beyond that the order is random: of files that are alike in this, and of the tests in each.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def turn(item: pytest.Item) -> tuple[bool, int]:
        first = next(
            (index for index, part in enumerate(LONGEST) if part in item.nodeid), len(LONGEST)
        )
        return item.path not in slow, first

    items.sort(key=turn)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs more GPUs than there are: `gpu` asks for one, `gpu(devices=2)` for two."""
    if marker := item.get_closest_marker("gpu"):
        needed = marker.kwargs.get("devices", 1)
        if len(devices.gpus()) < needed:
            pytest.skip(f"needs {needed} of CUDA's devices, and there are {len(devices.gpus())}")


class Leftovers:
    """Fails the session, with their names, if processes or files are left when its last test has
    ended.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._root = config.rootpath
        self._before = leftovers.names(config.rootpath)
        self._left: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take what a process of tests says when it ends."""
        self._left += getattr(node, "workeroutput", {}).get("left", [])

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Look around, after all fixtures were torn down and what is kept warm until its process
        ends was ended.
        """
        for name in WARM & sys.modules.keys():
            sys.modules[name].close()
        # one of several processes: what it says goes to the one that started it
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["left"] = leftovers.descendants()
            return
        self._left += [*leftovers.descendants(), *leftovers.marked(), *leftovers.files()]
        self._left += [
            f"{name} in {self._root}" for name in sorted(leftovers.names(self._root) - self._before)
        ]
        if self._left and exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        leftovers.end(
            is_good=not self._left
            and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name what is left."""
        if self._left:
            terminalreporter.section("left behind", red=True, bold=True)
            for name in dict.fromkeys(self._left):
                terminalreporter.line(name)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Leftovers(config))


@pytest.fixture(autouse=True)
def _leaves_the_process_as_it_was() -> Iterator[None]:
    """Fail a test that changes what the tests after it depend on, and change it back."""
    before = process_state()
    yield
    changed = changes(before, process_state())
    restore(before)
    assert changed == {}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real S3 server on loopback, with the bucket `wind`."""
    with serving_s3(tmp_path_factory.mktemp("s3")) as address:
        yield address


@contextlib.contextmanager
def serving_s3(folder: Path) -> Iterator[str]:
    """The address of such a server, which lives for the block and keeps its log in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        sys.executable,
        str(Path(__file__).with_name("s3_server.py")),
        address.rpartition(":")[2],
    ]
    log = folder / "server.log"
    with log.open("wb") as file:
        server = processes.start(command, env=os.environ, stdout=file, stderr=file)
    authorization = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
    deadline = time.monotonic() + 60
    while True:
        try:
            assert s3_request(address, "PUT", "/wind", {"Authorization": authorization}) == 200
            break
        except ConnectionRefusedError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    yield address
    server.end()


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of an empty store on that server."""
    for name, value in s3_environment(s3_server, tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    return f"s3://wind/{uuid.uuid4().hex}"


def s3_environment(address: str, cache: Path) -> dict[str, str]:
    """What a process needs to reach the server at `address`."""
    return {
        "AWS_ENDPOINT_URL": f"http://{address}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "the-secret",
        "AWS_REGION": "us-east-1",
        "WIND_CACHE": str(cache),
    }


def s3_request(address: str, method: str, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(address)
    connection.request(method, path, headers=headers | {"Content-Length": "0"})
    with connection.getresponse() as response:
        return response.status


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a random Llama of about 10 k parameters, character tokenizer, chat
    template, stops on </s>.
    """
    folder = tmp_path_factory.mktemp("tiny_model")
    save_tiny_model(folder)
    return folder


def save_tiny_model(folder: Path) -> None:
    """Make that model in `folder`."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        GenerationConfig,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<s>", "</s>", "<u>", "<a>"]
    vocabulary = {token: index for index, token in enumerate([*special, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="?",
        additional_special_tokens=["<u>", "<a>"],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    GenerationConfig(bos_token_id=1, eos_token_id=[2], pad_token_id=0).save_pretrained(folder)


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a store with the two versions of tests/wind/reading_case.py; tests work on
    copies.
    """
    from tests.wind.reading_case import make_versions

    folder = tmp_path_factory.mktemp("demo_store")
    make_versions(Store(folder / "store"), folder / "outside")
    return folder / "store"


@pytest.fixture
def demo_versions(demo_store: Path, store: Store) -> list[Version]:
    """The versions of `store`, which is a copy of `demo_store`."""
    shutil.copytree(demo_store, store.root)
    return list(Versions(store, "demo"))
