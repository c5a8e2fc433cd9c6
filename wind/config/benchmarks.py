"""Which benchmarks a policy is measured by, and how."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from wind.config.base import CodeFolder, Label, Section


class HarnessSettings(Section):
    """How lm-evaluation-harness asks the questions of one task."""

    # answered questions before each question; by default as many as the task file says
    shots: int | None = Field(None, ge=0)
    # the first so many questions; by default all
    limit: int | None = Field(None, ge=1)
    # questions in one forward batch, whose shape changes floats
    batch_size: int = Field(16, ge=1)
    # auto: whether the policy's tokenizer has one
    chat_template: bool | Literal["auto"] = "auto"
    # with a chat template: whether each answered question is a turn of its own
    fewshot_as_multiturn: bool = True
    # what computes the policy: transformers or vLLM
    backend: Literal["hf", "vllm"] = "hf"
    # of an answer that is generated; by default as many as the task file says
    max_new_tokens: int | None = Field(None, ge=1)
    # of the choice of shots and whatever else a task draws; by default the harness's own seeds
    seed: int | None = Field(None, ge=0, lt=2**31)


class BenchmarkSection(Section):
    """What every benchmark has."""

    # measured after every so many iterations, and after the last one
    every: int = Field(1, ge=1)


class HarnessBenchmarkConfig(BenchmarkSection, HarnessSettings):
    """One task of lm-evaluation-harness."""

    beside_content: ClassVar = frozenset({"tasks_folder", "data"})

    kind: Literal["harness"]
    # by default the benchmark's own name
    task: str | None = None
    # the folder of the task's files, YAML and Python; by default this project's own
    tasks_folder: CodeFolder | None = None
    # the questions: a file, or a folder with a file for each split
    data: str | None = None


class ChatBenchmarkConfig(BenchmarkSection):
    """Questions that the policy answers in chat, by the run's way of sampling."""

    beside_content: ClassVar = frozenset({"data"})

    # the file of the questions
    data: str
    # the name of one of `evaluation.judges`; by default answers are kept and nobody judges them
    judge: Label | None = None
    # the first so many questions; by default all
    limit: int | None = Field(None, ge=1)
    # of an answer
    max_new_tokens: int = Field(1024, ge=1)


class MtBenchConfig(ChatBenchmarkConfig):
    """MT-Bench: two turns, the second about the answer to the first, each given a score."""

    kind: Literal["mt_bench"]


class AlpacaEvalConfig(ChatBenchmarkConfig):
    """AlpacaEval: one answer, compared with the output of a reference in the same file."""

    kind: Literal["alpaca_eval"]


# `kind: harness` may be left out.
BenchmarkConfig = Annotated[
    HarnessBenchmarkConfig | MtBenchConfig | AlpacaEvalConfig, Field(discriminator="kind")
]
