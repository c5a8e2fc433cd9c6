"""MMLU as one task whose shots are of the question's own subject."""

from collections.abc import Mapping
from typing import Any

from lm_eval.api.task import ConfigurableTask


class Subjects(ConfigurableTask):  # type: ignore[misc, unused-ignore]
    """The questions of all subjects, each after the first shots of its subject."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config={name: config[name] for name in config if name != "class"})
        self._of_subject: dict[str, list[Any]] = {}
        for shot in self.fewshot_docs() or ():
            self._of_subject.setdefault(shot["subject"], []).append(shot)

    def fewshot_context(self, doc: Mapping[str, Any], *settings: Any, **named: Any) -> Any:
        """Return the prompt of a question, as the harness builds it."""
        self.sampler.replace_df(self._of_subject.get(doc["subject"], []))
        return super().fewshot_context(doc, *settings, **named)
