"""Commands that run recipes."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import show
from flows.options import (
    Config,
    From,
    Iterations,
    Json,
    Root,
    RunCode,
    Set,
    load,
    prefect,
    print_versions,
)
from flows.schedules import Schedule, serve_kept
from flows.server import QUIET
from wind.config.loading import evaluation_config
from wind.config.recipe import DistillConfig
from wind.errors import ConfigError, GateError
from wind.machine.environment import unset, variables
from wind.machine.terminal import say, say_json
from wind.store.datasets import Store
from wind.store.nouns import STAGES
from wind.store.references import find_version
from wind.store.versions import Version, Versions, runs

commands = typer.Typer()


@commands.command()
def run(
    config: Config,
    set_: Set = None,
    iterations: Iterations = None,
    base: From = None,
    as_json: Json = False,
) -> None:
    """Run a recipe, or continue it; cached datasets are not recomputed."""
    loaded = load(config, set_, iterations)
    _distill(loaded, as_json=as_json, base=find_version(Store(loaded.root), base) if base else None)


@commands.command()
def rerun(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The name of a run.")],
    stage: Annotated[str, typer.Option("--from", help=f"The stage, one of {', '.join(STAGES)}.")],
    run_code: RunCode = False,
    root: Root = "store",
    as_json: Json = False,
) -> None:
    """Recompute a stage and everything that depends on it.

    Nothing before it is recomputed. The config is the one in the store. If
    somebody else ran it, as in a copied store, code that it names needs
    `--run-code`.
    """
    from tasks.run import KeptConfig
    from wind.code.named_code import code_in, require_leave

    if stage not in STAGES:
        raise ConfigError(f"no stage is called {stage!r}: the stages are {', '.join(STAGES)}")
    store = Store(root)
    kept = KeptConfig.of(store, run_name)
    if kept is None:
        raise ConfigError(
            f"no run is called {run_name!r} in {root} (runs: {', '.join(runs(store)) or 'none'})"
        )
    if not kept.is_own:
        require_leave(
            f"the config of {run_name} in {root}", list(code_in(kept.config)), run_code=run_code
        )
    config = kept.config.model_copy(update={"root": root})
    _distill(config, as_json=as_json, refresh=stage, base=Versions(store, run_name).base())


@commands.command()
def plan(
    config: Config,
    set_: Set = None,
    iterations: Iterations = None,
    base: From = None,
    gpu: Annotated[
        str | None, typer.Option(help="Plan for this GPU, such as H100, instead of this machine.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many of them.")] = None,
    price: Annotated[
        float | None,
        typer.Option(min=0, metavar="PER_HOUR", help="Dollars per hour of all the hardware."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show planned beside actual for what is finished.")
    ] = False,
    policy_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --gpu: plan from this config.json alone, fetching nothing."
        ),
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=2, help="With --policy-config: how many prompts there are.")
    ] = 10000,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="With --policy-config: tokens of a prompt.")
    ] = 200,
    as_json: Json = False,
) -> None:
    """Show what a run would compute or take from the cache.

    With rows, tokens, seconds, memory and disk. Computes nothing.
    """
    from flows import show_plan
    from flows.estimates import Hardware, imagined, on_hardware
    from flows.plan import planned

    loaded, hardware = load(config, set_, iterations), Hardware(gpu, gpus)
    if (gpus or policy_config) and gpu is None:
        raise ConfigError("--gpus and --policy-config are for a plan with --gpu NAME")
    loaded = on_hardware(loaded, hardware)
    if policy_config is not None:
        from wind.planning.work import Prompts

        longest = max(prompt_tokens, loaded.prompts.max_prompt_tokens)
        given = Prompts(count=prompts, tokens=prompt_tokens, longest=longest)
        steps = imagined(loaded, hardware, policy_config, given)
    else:
        from_version = find_version(Store(loaded.root), base) if base else None
        steps = planned(loaded, from_version, hardware, compare=compare)
    if price is not None:
        steps = [step | {"dollars": show_plan.dollars(step["seconds"], price)} for step in steps]
    if as_json:
        say_json(steps)
    else:
        show_plan.plan(steps, price)
    if policy_config is None and not as_json:
        from tasks.run import disbelieved

        say(*disbelieved(Store(loaded.root)))


@commands.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A Hugging Face folder, a Hub id, or a version such as demo@3."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Whom to compare it with; by default the recipe's policy."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A recipe: its prompts, reward, sampling, and evaluation are used."),
    ] = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Evaluate a model on a recipe's held-out prompts, without training.

    The result is a version of the run evaluate-MODEL, or of the one that
    `--set run=NAME` names; cached datasets are not recomputed.
    """
    loaded = evaluation_config(model, config, set_ or ())
    with prefect(loaded.root):
        from flows.alone import evaluate_alone
        from flows.outages import finished
        from tasks.run import disbelieved, open_run

        with open_run(loaded) as here:
            made = finished(evaluate_alone)(here.config, model, against)
            outcomes = here.outcomes()
            here.terminal.line(
                f"{outcomes['computed']} datasets computed, {outcomes['cached']} from the cache"
            )
            for line in disbelieved(here.store):
                here.terminal.line(line)
            if as_json:
                say_json(made.model_dump(mode="json"))
            else:
                show.measured(made)


@commands.command()
def serve(
    config: Config,
    cron: Annotated[
        str | None, typer.Option(help='The times to run at, such as "0 2 * * *".')
    ] = None,
    interval: Annotated[
        float | None, typer.Option(min=1, help="The number of seconds between runs.")
    ] = None,
    set_: Set = None,
    port: Annotated[
        int, typer.Option(help="The port of the embedded Prefect server and its UI.")
    ] = 4200,
) -> None:
    """Serve a recipe on a schedule.

    The recipe becomes a Prefect deployment, and each due run continues it by one
    iteration.
    """
    if (cron is None) == (interval is None):
        raise ConfigError('say when to run: either --cron "0 2 * * *" or --interval SECONDS')
    with variables(unset(QUIET)):
        raise typer.Exit(
            serve_kept(
                Schedule(config=load(config, set_, None), cron=cron, interval=interval, port=port)
            )
        )


@commands.command(hidden=True)
def serve_forever() -> None:
    """Serve the schedule that `serve` passes as JSON on standard input."""
    from flows import deployments

    deployments.serve_forever(Schedule.model_validate_json(sys.stdin.buffer.read()))


@commands.command()
def bootstrap(
    out: Annotated[
        Path, typer.Argument(help="The folder for `base`, `reward` and the prompts.")
    ] = Path("models"),
    seed: Annotated[
        int, typer.Option(min=0, help="The seed that everything is a function of.")
    ] = 0,
) -> None:
    """Make the demo's base policy, reward model and prompts from nothing."""
    from wind.demo import make_demo

    say_json(make_demo(out, seed))


def _distill(
    config: DistillConfig, *, as_json: bool, refresh: str | None = None, base: Version | None = None
) -> None:
    with prefect(config.root):
        from flows.distill import distill
        from flows.outages import finished
        from tasks.run import disbelieved, keep_config, open_run

        with open_run(config, refresh=refresh) as here:
            keep_config(here.store, config)
            Versions(here.store, config.run).begin_from(base)
            try:
                finished(distill)(here.config, base)
            except GateError:
                print_versions(here.store, here.published, as_json=as_json)
                raise
            outcomes = here.outcomes()
            here.terminal.line(
                f"{outcomes['computed']} datasets computed, {outcomes['cached']} from the cache"
            )
            for line in disbelieved(here.store):
                here.terminal.line(line)
            print_versions(here.store, here.published, as_json=as_json)
