"""The demo's models, made from nothing.

A small policy slips at sums, and a reward model has learned what people prefer. `sums` is the task,
`tokenizer` the two vocabularies, and `policy` and `reward` train and write one Hugging Face folder
each. Everything is a function of a seed; the demo prompts appear neither in the policy's corpus nor
among the preferences.
"""

from pathlib import Path


def make_demo(out: Path, seed: int) -> dict[str, float]:
    """Write the demo's base policy, reward model and prompts.

    They become `out`/base, `out`/reward and `out`/prompts.jsonl. Returns both models' number of
    parameters, last loss, and accuracy on held-out sums, as base_accuracy and so on.
    """
    from wind.demo.policy import pretrain_policy
    from wind.demo.reward import train_reward_model
    from wind.demo.sums import write_prompts

    base = pretrain_policy(out / "base", seed=seed)
    reward = train_reward_model(out / "reward", seed=seed)
    write_prompts(out / "prompts.jsonl", seed=seed)
    return {f"base_{name}": value for name, value in base.items()} | {
        f"reward_{name}": value for name, value in reward.items()
    }
