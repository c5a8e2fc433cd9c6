"""The config of a run: one YAML file, one frozen record of small closed sections.

A section holds exactly the values that determine a stage's content, because a section is part of that stage's cache key.
What cannot change content (where the store is, how many worker processes, which interpreter) lives in `WorkersConfig` and
in `root`, which no key sees.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Function = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Share = Annotated[float, Field(ge=0, le=1)]
DType = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """A frozen, closed part of the config."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PolicyConfig(Section):
    """The base policy."""

    path: str  # local Hugging Face folder, or Hub id
    revision: str | None = None  # Hub revision; a commit is the reproducible choice


class InferenceConfig(Section):
    """How frozen models are run while they sample and score; in every key, since dtype and batch shape move floats."""

    dtype: DType = "float32"
    batch_tokens: int = Field(16384, ge=1)  # padded tokens of one forward batch, at most


class ReferenceConfig(Section):
    """The frozen policy that the update is held to."""

    kind: Literal["initial", "previous"] = (
        "initial"  # the base policy (the paper's pi_ref), or the iteration's own start
    )


class PromptsConfig(Section):
    """Where prompts come from and how they become token ids."""

    source: str  # .jsonl, .parquet, .arrow, a `datasets` folder on disk, or a Hub dataset id
    revision: str | None = None  # of a Hub dataset
    subset: str | None = None  # configuration name of a Hub dataset
    source_split: str | None = None  # split of a `datasets` source
    field: str = "prompt"  # a string, or a list of {role, content}
    answer_field: str = "answer"  # gold answer; rows without it have none
    template: str = "chat"  # "chat": the tokenizer's own; "none": raw text after BOS; or the path of a Jinja file
    eval_fraction: float = Field(0.1, gt=0, lt=1)  # share of prompts held out, chosen by hash of the prompt
    max_prompt_tokens: int = Field(1024, ge=1)  # longer prompts are dropped, with that reason
    limit: int | None = Field(None, ge=2)  # first rows of the source only


class SamplingConfig(Section):
    """How responses are drawn from a policy."""

    backend: Literal["auto", "transformers", "vllm"] = "auto"  # auto: vllm on a GPU where it is installed
    samples_per_prompt: int = Field(8, ge=1)  # N
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)  # 0: the whole vocabulary
    max_new_tokens: int = Field(64, ge=1)
    shard_prompts: int = Field(64, ge=1)  # prompts of one shard: what a restart loses at most


class RuleRewardConfig(Section):
    """A Python function over a batch of prompts, responses and gold answers."""

    kind: Literal["rule"]
    function: (
        Function  # module:function (prompts, responses, answers) -> rewards, or a dict with `reward` and the components
    )
    components: tuple[Name, ...] = ()  # further columns the function returns beside `reward`


class ClassifierRewardConfig(Section):
    """A sequence-classification reward model with one output."""

    kind: Literal["classifier"]
    path: str
    revision: str | None = None
    template: str = (
        "chat"  # "chat": the reward model's own; "none": prompt and response as a text pair; or a Jinja file
    )


RewardConfig = Annotated[RuleRewardConfig | ClassifierRewardConfig, Field(discriminator="kind")]


class WinRateConfig(Section):
    """Which estimator turns N rewards into N win rates; ties count one half in both."""

    estimator: Literal["unbiased", "self_counting"] = "unbiased"  # leave-one-out, or SPPO's with the self-comparison


class WindObjectiveConfig(Section):
    """WIND's regression towards the regularised update (MATH 2.6)."""

    name: Literal["wind"] = "wind"
    risk: Literal["squared"] = "squared"
    beta: float = Field(0.1, ge=0)  # KL weight towards the reference
    eta: float = Field(1.0, gt=0)  # mirror-descent step size
    shift: Literal["half", "strict", "centred"] = (
        "half"  # intercept: 1/2 (a), strict-order constant (b), per-prompt centring (c)
    )


class TrainingConfig(Section):
    """One DeepSpeed run over the iteration's generations."""

    epochs: int = Field(1, ge=1)
    batch_prompts: int = Field(16, ge=1)  # prompt groups of one optimiser step, over all ranks
    micro_prompts: int = Field(4, ge=1)  # prompt groups of one forward pass on one rank
    lr: float = Field(1e-5, gt=0)
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_fraction: Share = 0.1
    max_grad_norm: float = Field(1.0, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["float32", "bfloat16"] = "float32"
    ranks: int = Field(1, ge=1)  # processes; in the key, because the order of a sum moves floats
    gradient_checkpointing: bool = False
    checkpoint_steps: int = Field(100, ge=1)  # optimiser steps between checkpoints

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_prompts % (self.micro_prompts * self.ranks):
            raise ValueError("batch_prompts must be a multiple of micro_prompts * ranks")
        return self


class EvaluationConfig(Section):
    """Held-out prompts, the new policy against a reference."""

    samples_per_prompt: int = Field(4, ge=1)
    against: Literal["reference", "initial"] = "initial"
    bootstrap_samples: int = Field(2000, ge=100)  # resamples of prompts behind each 95% interval
    match: Function | None = (
        None  # module:function(prompts, responses, answers) -> 0/1; by default equal text after strip
    )


class ChecksConfig(Section):
    """Thresholds of the data checks; changing one re-checks, and recomputes nothing."""

    max_empty_share: Share = 0.05
    max_truncated_share: Share = 1.0
    min_mean_response_tokens: float = Field(1.5, ge=0)
    max_tie_share: Share = 0.999


class WorkersConfig(Section):
    """Where stages run. Nothing here can change content."""

    executor: Literal["local"] = "local"
    processes: int = Field(1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    keep_warm: Literal["auto", "always", "never"] = "auto"  # auto: on CPU; a GPU's memory is given back before training
    python: dict[Literal["transformers", "vllm", "training"], str] = Field(
        default_factory=dict
    )  # interpreter of each worker


class DistillConfig(Section):
    """One recipe: the whole of a YAML file under `configs/`."""

    run: Name
    policy: PolicyConfig
    prompts: PromptsConfig
    reward: RewardConfig
    root: str = "./store"
    seed: int = Field(0, ge=0, lt=2**31)
    iterations: int = Field(3, ge=1)
    reference: ReferenceConfig = ReferenceConfig()
    inference: InferenceConfig = InferenceConfig()
    sampling: SamplingConfig = SamplingConfig()
    win_rate: WinRateConfig = WinRateConfig()
    objective: WindObjectiveConfig = WindObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checks: ChecksConfig = ChecksConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _has_siblings(self) -> Self:
        if self.sampling.samples_per_prompt < 2:
            raise ValueError(
                "sampling.samples_per_prompt must be at least 2: a win rate needs a sibling to win against"
            )
        return self
