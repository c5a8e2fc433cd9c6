"""The contextual-bandit study: all algorithms on problems with known solutions.

Its results are datasets, figures and tables.
"""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from tasks.bandit import play_bandits
from tasks.checks import checked
from tasks.rates import fit_rates
from tasks.run import current_run
from wind.bandit import BanditSpec
from wind.config.bandit import BanditConfig
from wind.rates import RatesSpec
from wind.store.handles import Dataset


@flow(name="bandit", flow_run_name="{config.run}", persist_result=False)
def bandit(config: BanditConfig, out: Path) -> dict[str, Dataset]:
    """Play, fit and draw; return the two datasets.

    What is drawn into `out` is a function of them.
    """
    played = checked(play_bandits(BanditSpec.of(config, {})))
    fitted = checked(fit_rates(RatesSpec(bandit=played, section=config.bandit)))
    draw(played, fitted, config, out)
    return {"bandit": played, "rates": fitted}


@task(cache_policy=NO_CACHE, persist_result=False)
def draw(bandit: Dataset, rates: Dataset, config: BanditConfig, out: Path) -> None:
    """Write the figures, as SVG and PNG, and the tables to `out`."""
    # imports Matplotlib, which takes a second
    from wind.bandit.figures import write

    store = current_run().store
    write(store.frame(bandit), store.frame(rates), config, out)
