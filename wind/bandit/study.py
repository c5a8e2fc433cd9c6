"""The runs of the bandit study, and what they measure.

Every algorithm runs on every instance.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import torch

from wind.bandit import FLOOR, FLOOR_ALGORITHMS
from wind.bandit.algorithms import Sampled, Update, exact_updates, sampled_algorithms
from wind.bandit.instances import INSTANCES, Instance, joined
from wind.bandit.sampling import draw
from wind.config.bandit import BanditSection
from wind.fingerprints import digest
from wind.games import duality_gap, kl, solve
from wind.stages import Progress

# updates of an exact algorithm, whose last iterate is then its own target
ROUNDS_TO_TARGET: Final = 400
# exact iterations per sampled iteration: they have no floor to stop at
ROUNDS_PER_ITERATION: Final = 3

Row = tuple[str, int, int, int, str, float]  # instance, prompts, seed, iteration, metric, value


def exact_rows(
    algorithm: str, instances: Mapping[str, Instance], section: BanditSection
) -> Iterator[Row]:
    """Yield the rows of an exact algorithm.

    Iteration 0 is the reference. There are rows for every one of `instances`, by name, that has
    what the algorithm needs.
    """
    for name, instance in instances.items():
        updates = exact_updates(instance, section.beta, section.eta)
        if algorithm not in updates:
            continue
        solution_P_Y = solve(instance.ref, instance.preferences, beta=section.beta)
        own_P_Y = own_target(algorithm, updates[algorithm], instance)
        for iteration, logp_P_Y in enumerate(
            iterates(updates[algorithm], instance.ref, exact_iterations(section))
        ):
            measured = measure(logp_P_Y, instance, solution_P_Y, section.beta)
            if own_P_Y is not None:
                measured["kl_own"] = kl(own_P_Y, logp_P_Y)
            for metric, values_P in measured.items():
                yield name, len(instance.ref), 0, iteration, metric, float(values_P.mean())


def exact_iterations(section: BanditSection) -> int:
    """Return the number of updates of an exact algorithm."""
    return ROUNDS_PER_ITERATION * section.iterations


def iterates(update: Update, ref_P_Y: torch.Tensor, iterations: int) -> Iterator[torch.Tensor]:
    """Yield the reference and the policies after it, [P, Y], nats."""
    logp_P_Y = ref_P_Y
    yield logp_P_Y
    for iteration in range(1, iterations + 1):
        logp_P_Y = update(logp_P_Y, iteration)
        yield logp_P_Y


def own_target(algorithm: str, update: Update, instance: Instance) -> torch.Tensor | None:
    """Return where an algorithm tends instead of the solution.

    The target is [P, Y], in nats, and None where it is unknown or the solution. An algorithm
    without a reference to hold it tends to the reference, conditioned on the highest reward. The
    others are followed until they rest.
    """
    if algorithm in ("sppo", "best_of_n"):
        if instance.order is None:
            return None
        is_best_P_Y = instance.order.upto == instance.order.upto.amax(-1, keepdim=True)
        return instance.ref.masked_fill(~is_best_P_Y, -torch.inf).log_softmax(-1)
    if algorithm in ("nash_md", "mixed_best_of_n", "log_win_rate"):
        *_, last_P_Y = iterates(update, instance.ref, ROUNDS_TO_TARGET)
        return last_P_Y
    return None


def sampled_rows(
    algorithm: Sampled,
    instances: Mapping[str, Instance],
    section: BanditSection,
    generator: torch.Generator,
    *,
    iterations: int,
    visits: int,
    samples: int,
    repeats: int,
    at_solution: bool,
) -> Iterator[Row]:
    """Yield the rows of a sampled algorithm on all instances.

    Instances and repetitions run at once. In each of `iterations` it draws, for every prompt,
    `visits` groups of `samples` responses with `generator`. `repeats` is the number of repetitions.
    It starts at the solution if `at_solution`, otherwise at the reference.
    """
    once = joined(list(instances.values()))
    solution_C_Y = solve(once.ref, once.preferences, beta=section.beta).repeat(repeats, 1)
    batch = once.repeated(repeats)
    shape = repeats, len(instances), section.prompts
    asked = section.prompts * visits
    calls = (
        torch.where(once.is_rewarded, samples, samples * (samples - 1) // 2)
        .repeat(repeats)
        .double()
    )
    logp_C_Y = solution_C_Y if at_solution else batch.ref
    for iteration in range(iterations + 1):
        if iteration:
            drawn = draw(
                logp_C_Y,
                batch,
                generator,
                groups=visits,
                samples=samples,
                rows=algorithm.selected,
                self_counting=algorithm.self_counting,
                in_blocks=algorithm.in_blocks,
            )
            logp_C_Y = algorithm.fit(drawn, logp_C_Y)
        measured = measure(logp_C_Y, batch, solution_C_Y, section.beta)
        measured["generations"] = torch.full_like(calls, iteration * asked * samples)
        measured["calls"] = iteration * asked * calls
        for metric, values_C in measured.items():
            for seed, of_seed in enumerate(values_C.view(shape).mean(-1).tolist()):
                for name, value in zip(instances, of_seed, strict=True):
                    yield name, asked, seed, iteration, metric, value


def measure(
    logp_C_Y: torch.Tensor, instance: Instance, solution_C_Y: torch.Tensor, beta: float
) -> dict[str, torch.Tensor]:
    """Return the metrics of a policy by name, [C] each.

    `logp_C_Y` is the policy and `solution_C_Y` the solution of the game at `beta`, both in nats.
    """
    policy_C_Y = logp_C_Y.exp()
    return {
        "kl": kl(solution_C_Y, logp_C_Y),
        "gap": duality_gap(logp_C_Y, instance.ref, instance.preferences, beta=beta),
        "win_rate": (policy_C_Y * instance.preferences.win_rates(instance.ref.exp())).sum(-1),
        "kl_reference": kl(logp_C_Y, instance.ref),
        "entropy": -torch.where(policy_C_Y > 0, policy_C_Y * logp_C_Y, 0.0).sum(-1),
    }


def instance_of(name: str, section: BanditSection, seed: int) -> Instance:
    """Return the instance `name` of the study with this `seed`.

    It is the same for every algorithm and every repetition.
    """
    make = INSTANCES["random" if name == FLOOR else name]
    responses = section.floor_responses if name == FLOOR else section.responses
    return make(_generator(seed, "instance", name), section.prompts, responses)


def parts(section: BanditSection) -> list[tuple[int, str]]:
    """Return the shards of the study in the order of the rows.

    A shard is (samples, algorithm); 0 samples stand for the exact algorithms.
    """
    sampled = sampled_algorithms(section.beta, section.eta)
    # the random instance has an order, so that all exact algorithms run on it
    exact = exact_updates(instance_of("random", section, 0), section.beta, section.eta)
    floor = {section.floor_at_samples, *section.floor_samples}
    return sorted(
        {(0, name) for name in exact}
        | {
            (n, name)
            for n in section.samples
            for name, each in sampled.items()
            if n >= each.objective.facts.least_samples
        }
        | {(n, name) for n in floor for name in FLOOR_ALGORITHMS}
    )


def part_rows(
    samples: int, algorithm: str, section: BanditSection, seed: int, progress: Progress
) -> Iterator[Row]:
    """Yield the rows of one shard, on all instances.

    A shard is one `algorithm` at one number of `samples` per prompt. `progress` counts its runs.
    """
    instances = {name: instance_of(name, section, seed) for name in INSTANCES}
    if samples == 0:
        yield from exact_rows(algorithm, instances, section)
        return
    floor = {FLOOR: instance_of(FLOOR, section, seed)}
    asked = set(section.floor_prompts if samples == section.floor_at_samples else ())
    asked |= {section.floor_at_prompts} if samples in section.floor_samples else set()
    runs = [
        (floor, section.floor_iterations, prompts // section.prompts, section.floor_repeats)
        for prompts in sorted(asked)
    ]
    if algorithm not in FLOOR_ALGORITHMS:
        runs = []
    if samples in section.samples:
        runs.append((instances, section.iterations, section.visits, section.repeats))
    sampled = sampled_algorithms(section.beta, section.eta)[algorithm]
    for done, (among, iterations, visits, repeats) in enumerate(runs, 1):
        generator = _generator(seed, algorithm, samples, visits, *among)
        yield from sampled_rows(
            sampled,
            among,
            section,
            generator,
            iterations=iterations,
            visits=visits,
            samples=samples,
            repeats=repeats,
            at_solution=among is floor,
        )
        progress(done, len(runs))


def _generator(*names: int | str) -> torch.Generator:
    """Return the random generator of one run.

    Each run has its own, so that adding an algorithm changes no other's draws.
    """
    return torch.Generator().manual_seed(int(digest(list(names))[:15], 16))
