"""Gates between iterations: on from the new version, back to the best one, or not at all."""

from collections import Counter
from dataclasses import dataclass, field

from tasks.alarms import tested_alarms
from tasks.run import current_run
from tasks.versions import Beginning, go_back
from wind.config.recipe import DistillConfig
from wind.errors import GateError
from wind.gates import best, lowered, refusals, shown_by
from wind.store.versions import Version, history


@dataclass
class Gatekeeper:
    """The gates of a run, and how often each has sent it back."""

    begin: Beginning
    rollbacks: Counter[str] = field(default_factory=Counter)

    def judge(
        self, config: DistillConfig, version: Version | None
    ) -> tuple[DistillConfig, Beginning] | None:
        """Return where the run goes on instead of after `version`, or None if that passes.

        The config is the one to go on with. A version that a plan does not know passes. Raises
        GateError if the run ends here.
        """
        if version is None or not config.gates:
            return None
        here = current_run()
        *before, _ = history(here.store, version, is_whole=False)
        alarms = tested_alarms(version.content.datasets.get("alarms"))
        refused = refusals(config.gates, version.metrics, alarms, before)
        if not refused:
            return None
        refusal = refused[0]
        metric = refusal.gate.best_by()
        found = best(before, metric)
        times, most = self.rollbacks[refusal.name], refusal.gate.max_rollbacks
        name = f"{version.run}@{version.number}"
        if refusal.gate.action == "stop" or times == most:
            spent = f" after {times} rollback{'s' * (times > 1)}" if times else ""
            raise GateError(
                f"{name} is the last version{spent}: {refusal.says()}; {_advice(found, metric)}"
            )
        self.rollbacks[refusal.name] += 1
        where = shown_by(found, metric) if found else "where the run began"
        after = lowered(config, refusal)
        here.terminal.line(
            f"{name}: {refusal.says()}; going back to {where} with training.lr "
            f"{after.training.lr:g} (was {config.training.lr:g}), rollback {times + 1} of {most}"
        )
        return after, go_back(self.begin, after, found)


def _advice(found: Version | None, metric: str) -> str:
    if found is None:
        return "no version is before it: change the recipe, or the gate"
    return f"the best is {shown_by(found, metric)}: go on from it with --from, or change the gate"
