"""The reward of `mine.yaml`: similarity to the answer; ties favor shorter responses."""

from difflib import SequenceMatcher


def closeness(prompts: list[str], responses: list[str], answers: list[str | None]) -> list[float]:
    return [
        SequenceMatcher(None, response, answer or "").ratio() - len(response) / 1000
        for response, answer in zip(responses, answers, strict=True)
    ]
