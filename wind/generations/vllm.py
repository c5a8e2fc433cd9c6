"""Sampling with vLLM, with one engine per process.

The engine loads new weights in place if that is exact. Child i of a request samples with the
request's seed plus i, so that rows record the same seeds as with transformers; the random numbers
behind a seed are vLLM's own. Nothing that could change a result is left to defaults: sampling
parameters of the model's generation config are ignored, only the given stop tokens stop, and no call
finds prefixes that another cached. Requests of later calls may begin in an earlier one, so that the
engine stays full while the last responses of a call are finished: on a CPU that changes no bit of
them. Where vLLM leaves the choice, nothing is compiled with nvcc at
the first start; what no setting prevents (on some GPUs FlashInfer is the only attention) fails with
the name of the missing tool.
"""

import gc
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, Final

from wind.config.sampling import SamplingConfig
from wind.errors import ConfigError, InputError, StageError, WindError, first_line
from wind.fingerprints import digest
from wind.generations import GenerationsSpec, Request, Sample, not_finite
from wind.models import stop_token_ids
from wind.models.pretrained import load_config
from wind.nesting import json_value
from wind.stages import Progress

# vLLM's own default differs by GPU, and batch shapes change floats
CONCURRENT_SEQUENCES: Final = 256
# below it vLLM silently samples at 0.01
LOWEST_TEMPERATURE: Final = 0.01
ENVIRONMENT: Final = {
    # the engine lives in this process and dies with it
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # its warnings are about a tokenizer and libraries that are left out on purpose
    "VLLM_LOGGING_LEVEL": "ERROR",
    # it would be compiled at the first start and never used: every request has a seed
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    # GiB, CPU only; by default vLLM takes most of the machine's memory
    "VLLM_CPU_KVCACHE_SPACE": "2",
}
# tools with which FlashInfer and Triton compile kernels, and how to get them
BUILD_TOOLS: Final[Mapping[str, str]] = {
    "nvcc": "install the CUDA toolkit and set CUDA_HOME to its folder",
    "ninja": "install ninja beside the interpreter of the worker",
    "C compiler": "install gcc, or set CC",
}
MISSING_TOOL: Final = re.compile(
    rf"(?:find|directory: ').*?({'|'.join(BUILD_TOOLS)})|/(nvcc|ninja): not found"
)
# Classes that sample with new weights as a new engine would; vLLM's experts keep some old ones.
EXACT_IN_PLACE: Final = frozenset(
    f"{name}ForCausalLM"
    for name in (
        "Llama",
        "Qwen2",
        "Qwen3",
        "Mistral",
        "Phi3",
        "Granite",
        "Olmo2",
        "GPTNeoX",
        "GPTJ",
    )
)
# config fields that no engine depends on here
SHAPELESS: Final = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")

_warm: "_Engine | None" = None


@dataclass
class _Engine:
    llm: Any
    # a digest: weights can be replaced in place if it is equal
    shape: str
    folder: Path
    # the calls that have begun and not ended, by their digest
    calls: "dict[str, _Call]" = field(default_factory=dict)

    def abort(self, calls: Iterable[str]) -> None:
        """Abandon calls that have begun."""
        for name in calls:
            self.llm.llm_engine.abort_request([*self.calls.pop(name).waiting])


@dataclass
class _Call:
    # of the requests that are not finished: their places, by vLLM's ids
    waiting: dict[str, int]
    # of those that are
    outputs: dict[int, Any] = field(default_factory=dict)


class VllmSampler:
    """A policy loaded in a vLLM engine."""

    def __init__(self, engine: _Engine, stop_token_ids: Sequence[int]) -> None:
        self._engine = engine
        self._stop = list(stop_token_ids)

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingConfig,
        progress: Progress,
        ahead: Sequence[Sequence[Request]] = (),
    ) -> list[list[Sample]]:
        """Return N samples of each request, in the order of `requests`.

        The unit of progress is one prompt with all its samples. What `ahead` says of later calls is
        begun, and their responses are kept until they are asked for.
        """
        if sampling.temperature < LOWEST_TEMPERATURE:
            raise ConfigError(
                f"sampling.temperature {sampling.temperature} is below {LOWEST_TEMPERATURE}, "
                "vLLM's lowest: raise it"
            )
        calls = {_name(each, sampling): each for each in (requests, *ahead)}
        self._engine.abort([name for name in self._engine.calls if name not in calls])
        # Leftovers of earlier calls would change where prompts are split, and so the last digits.
        if not self._engine.calls and not self._engine.llm.reset_prefix_cache():
            raise StageError("vLLM could not empty its prefix cache: restart the worker")
        try:
            for name, each in calls.items():
                if name not in self._engine.calls:
                    self._engine.calls[name] = self._begin(name, each, sampling)
            outputs = self._finish(next(iter(calls)), progress)
        except Exception as error:
            # anything that a kernel, or the lack of one, raises
            _forget()
            raise StageError(
                f"vLLM failed: {first_line(error)}; try sampling.backend: transformers"
            ) from error
        return [
            self._samples(request, output)
            for request, output in zip(requests, outputs, strict=True)
        ]

    def _begin(self, name: str, requests: Sequence[Request], sampling: SamplingConfig) -> _Call:
        """Queue the requests of a call. They share cached prefixes with each other alone."""
        prompts = [
            {"prompt_token_ids": list(request.prompt_token_ids), "cache_salt": name}
            for request in requests
        ]
        parameters = [self._parameters(request, sampling) for request in requests]
        ids = self._engine.llm.enqueue(prompts, parameters, use_tqdm=False)
        # of "7-3f9c0d1e", outputs have the 7
        return _Call({each.partition("-")[0]: place for place, each in enumerate(ids)})

    def _finish(self, name: str, progress: Progress) -> list[Any]:
        """Run the engine until all requests of a call are finished.

        Returns the outputs in the order of the requests.
        """
        call = self._engine.calls[name]
        total = len(call.waiting) + len(call.outputs)
        while call.waiting:
            for output in self._engine.llm.llm_engine.step():
                if output.finished:
                    self._take(output)
            progress(len(call.outputs), total)
        del self._engine.calls[name]
        return [call.outputs[place] for place in range(total)]

    def _take(self, output: Any) -> None:
        for call in self._engine.calls.values():
            if output.request_id in call.waiting:
                call.outputs[call.waiting.pop(output.request_id)] = output
                return

    def _parameters(self, request: Request, sampling: SamplingConfig) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            n=sampling.samples_per_prompt,
            seed=request.seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=self._stop,
            # the tokenizer's eos stops only if it is among stop_token_ids
            ignore_eos=True,
            # only that of the sampled token
            logprobs=0,
            detokenize=False,
        )

    def _samples(self, request: Request, output: Any) -> list[Sample]:
        children = sorted(output.outputs, key=lambda child: child.index)
        samples = []
        for child in children:
            tokens = [int(token) for token in child.token_ids]
            logp = float(child.cumulative_logprob)
            if not logp <= 0 or logp == -float("inf"):
                raise not_finite(request)
            samples.append(Sample(tokens, logp, "stop" if tokens[-1] in self._stop else "length"))
        return samples


def load(folder: Path, spec: GenerationsSpec, max_model_len: int, device: str) -> VllmSampler:
    """Load the policy in `folder`.

    It samples sequences of up to `max_model_len` tokens. A warm engine of the same shape loads the
    new weights in place, in milliseconds, if its class is in `EXACT_IN_PLACE`; otherwise a new
    engine starts, in seconds on a warm worker. Raises ConfigError if vLLM is not installed and
    InputError for a model it cannot load.
    """
    global _warm
    config = {
        key: value
        for key, value in json_value((folder / "config.json").read_bytes()).items()
        if key not in SHAPELESS
    }
    fixed = None if _is_exact_in_place(folder) else os.fspath(folder)
    shape = digest([config, spec.inference.model_dump(), max_model_len, device, fixed])
    # nothing stays warm if the following fails half way
    engine, _warm = _warm, None
    if engine is None or engine.shape != shape:
        if engine is not None:
            _shut_down(engine)
        engine = _Engine(_start(folder, spec, max_model_len, device), shape, folder)
    elif engine.folder != folder:
        engine.abort([*engine.calls])
        engine.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        engine.folder = folder
    _warm = engine
    return VllmSampler(engine, stop_token_ids(folder))


def close() -> None:
    """Shut down the warm engine, if there is one."""
    global _warm
    engine, _warm = _warm, None
    if engine is not None:
        _shut_down(engine)


def _is_exact_in_place(folder: Path) -> bool:
    """Return whether a warm engine may load new weights.

    It may not if the head is the embedding table: a CPU keeps the old one.
    """
    config = load_config(folder)
    return (
        not config.get_text_config().tie_word_embeddings
        and {*(config.architectures or [""])} <= EXACT_IN_PLACE
    )


def _start(folder: Path, spec: GenerationsSpec, max_model_len: int, device: str) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError(
            f"sampling.backend is vllm, which does not import here ({error}): "
            "install it or use transformers"
        ) from error
    set_num_threads = torch.set_num_threads
    try:
        _import_model(folder)
        llm = LLM(
            model=str(folder),
            trust_remote_code=False,
            load_format="safetensors",
            skip_tokenizer_init=True,
            # no sampling defaults from the model's folder
            generation_config="vllm",
            dtype=spec.inference.dtype,
            # of the engine; every request has its own
            seed=0,
            max_model_len=max_model_len,
            max_num_seqs=CONCURRENT_SEQUENCES,
            # at least a prompt, or a token of each sequence; no more than there may be
            max_num_batched_tokens=min(
                max(spec.inference.batch_tokens, max_model_len, CONCURRENT_SEQUENCES),
                CONCURRENT_SEQUENCES * max_model_len,
            ),
            # a prompt is prefilled once for its N samples
            enable_prefix_caching=True,
            # of the policy at temperature 1, before top-k and top-p
            logprobs_mode="raw_logprobs",
            enforce_eager=device == "cpu",
            # vLLM cannot go on with a seed after a part of a prompt on a CPU
            enable_chunked_prefill=device != "cpu",
            # it would choose kernels by timing them, and compile them for that
            enable_flashinfer_autotune=False,
            disable_log_stats=True,
        )
    except Exception as error:
        raise _not_started(folder, error) from error
    finally:
        # vLLM's CPU worker replaces this with a function that only warns.
        torch.set_num_threads = set_num_threads
    # The file through which an engine's processes, here one, find each other is no longer needed; a
    # killed worker would leave it behind.
    for address in llm.collective_rpc(lambda worker: worker.distributed_init_method):
        Path(address.removeprefix("file://")).unlink(missing_ok=True)
    return llm


def _import_model(folder: Path) -> None:
    """Import the class of the model in `folder`.

    The engine in this process will need it. vLLM would otherwise inspect it in a separate process
    first; importing vLLM there takes most of the time of a first start.
    """
    from vllm import ModelRegistry

    for name in load_config(folder).architectures or ():
        # vLLM itself reports a class that it does not know
        if name in ModelRegistry.models:
            ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def _not_started(folder: Path, error: Exception) -> WindError:
    """Return the error for an engine that failed to start.

    A kernel that could not be compiled is not the model's fault.
    """
    if missing := MISSING_TOOL.search(str(error)):
        tool = missing[1] or missing[2]
        return StageError(
            f"vLLM compiles a kernel for this GPU, and there is no {tool}: {BUILD_TOOLS[tool]}"
        )
    if isinstance(error, CalledProcessError):
        return StageError(
            f"vLLM could not compile a kernel: {first_line(error)}; "
            "the worker's log has the compiler's words"
        )
    return InputError(
        f"{folder} does not load in vLLM: {first_line(error)}; try sampling.backend: transformers"
    )


def _name(requests: Sequence[Request], sampling: SamplingConfig) -> str:
    """Return a digest of everything that determines the samples of a call."""
    asked = [[request.prompt_id, request.seed, *request.prompt_token_ids] for request in requests]
    return digest([sampling.model_dump(mode="json"), asked])


def _forget() -> None:
    """Abandon the warm engine: after a failure its state is unknown."""
    global _warm
    _warm = None


def _shut_down(engine: _Engine) -> None:
    """Free the memory of an engine, as far as vLLM can."""
    from vllm.distributed import cleanup_dist_env_and_memory

    engine.llm.llm_engine.engine_core.shutdown()
    engine.llm = None
    gc.collect()
    cleanup_dist_env_and_memory()
