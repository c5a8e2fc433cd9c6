"""The sampled half of the study: draw responses, judge, and fit.

The tabular softmax policy has one logit for every prompt and response: every law over the responses
is in its class, so that what is left after many iterations is the error of the samples and of the
objective. The objectives are the project's own, on the same `Batch` that training sees.

Axis suffixes: _C cells (prompts of all repeats, end to end), _G groups of one prompt in one
iteration, _N the samples of a group, _Y responses, _B rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from wind.bandit.instances import Instance
from wind.config.objective_facts import Rows
from wind.objectives import Batch

# weight of the hold on the logits, relative to a loss that is a mean over the prompt's rows
RIDGE: Final = 1e-3
NEWTON_STEPS: Final = 8
# of a Newton step, in nats
TOLERANCE: Final = 1e-9
# nats that a Newton step moves a logit at most
FURTHEST: Final = 2.0
LBFGS_STEPS: Final = 80
# at which L-BFGS ends, in units of a prompt's mean loss per nat
SMALL_SLOPE: Final = 1e-5
ADAM_STEPS: Final = 8
# nats that Adam's first step moves every logit by; the rate falls linearly to zero
ADAM_RATE: Final = 0.1
# rows in a block of whole groups, for objectives that compare all rows with all
BLOCK_ROWS: Final = 256

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]


@dataclass(frozen=True)
class Draw:
    """The judged samples of one iteration, in blocks of whole groups."""

    # of each block [B], the place of the row's response among all C x Y logits
    cells: Sequence[torch.Tensor]
    batches: Sequence[Batch]
    rows: int

    def loss(self, loss: Loss, logp_C_Y: torch.Tensor) -> torch.Tensor:
        """Return the mean of `loss` over all rows under the policy `logp_C_Y`.

        Blocks of whole groups combine in proportion to their numbers of rows.
        """
        logps = logp_C_Y.flatten()
        parts = [
            loss(logps[cell_B], batch) * len(cell_B)
            for cell_B, batch in zip(self.cells, self.batches, strict=True)
        ]
        return torch.stack(parts).sum() / self.rows


def draw(
    logp_C_Y: torch.Tensor,
    instance: Instance,
    generator: torch.Generator,
    *,
    groups: int,
    samples: int,
    rows: Rows = "all",
    self_counting: bool = False,
    in_blocks: bool = False,
) -> Draw:
    """Draw groups of responses from a policy and judge them.

    For each prompt there are `groups` groups of `samples` responses of the policy `logp_C_Y`
    (nats); of each, the selection `rows` is returned. Every two samples of a group are compared
    once. On a rewarded prompt the higher reward wins: its P is 0, 1/2 or 1. Elsewhere the outcome
    is a coin of P. Preferences of exactly one half, and so equal responses, tie. Without a reward
    the number of a sample's wins takes its place, as where a judge ranks responses.

    Win rates are leave-one-out, or with `self_counting` count the comparison of a sample with
    itself as half a win. `in_blocks` splits the rows into blocks of about BLOCK_ROWS.
    """
    prompts, responses = logp_C_Y.shape
    response_C_G_N = torch.multinomial(
        logp_C_Y.exp(), groups * samples, replacement=True, generator=generator
    )
    response_C_G_N = response_C_G_N.view(prompts, groups, samples)
    outcome = _duels(instance.matrix, response_C_G_N, generator)
    wins_C_G_N = outcome.sum(-1) - 0.5  # without the comparison with itself
    score_C_G_N = instance.scores.gather(-1, response_C_G_N.flatten(1)).view(response_C_G_N.shape)
    reward_C_G_N = torch.where(instance.is_rewarded[:, None, None], score_C_G_N, wins_C_G_N)
    win_rate_C_G_N = (wins_C_G_N + 0.5) / samples if self_counting else wins_C_G_N / (samples - 1)
    rank_C_G_N = reward_C_G_N.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) + 1
    cell_B = (torch.arange(prompts)[:, None, None] * responses + response_C_G_N).flatten()
    whole = Batch(
        logp_policy=logp_C_Y.flatten()[cell_B],
        logp_reference=instance.ref.flatten()[cell_B],
        win_rate=win_rate_C_G_N.flatten(),
        reward=reward_C_G_N.flatten(),
        rank=rank_C_G_N.flatten(),
        samples=torch.full_like(cell_B, samples),
        group=torch.arange(prompts * groups).repeat_interleave(samples),
    )
    is_best, is_worst = whole.rank == 1, whole.rank == samples
    chosen = (
        {"all": is_best | True, "best": is_best, "best_worst": is_best | is_worst}[rows]
        .nonzero()
        .squeeze(1)
    )
    per_group = len(chosen) // (prompts * groups)
    size = per_group * max(1, BLOCK_ROWS // per_group) if in_blocks else len(chosen)
    blocks = [chosen[first : first + size] for first in range(0, len(chosen), size)]
    columns = {name: column for name, column in vars(whole).items() if column is not None}
    batches = [
        Batch(**{name: column[block] for name, column in columns.items()}) for block in blocks
    ]
    return Draw([cell_B[block] for block in blocks], batches, len(chosen))


def solved(
    loss: Loss, drawn: Draw, logp_C_Y: torch.Tensor, *, ridge: float = RIDGE
) -> torch.Tensor:
    """Return the minimizer of a `loss` quadratic in the log-probabilities, [C, Y].

    It is found by Newton's method, from the policy `logp_C_Y` that drew the samples, in nats.
    Prompts do not share logits, so the Hessian is one [Y, Y] block per prompt. Only the normalizer
    is not quadratic: three or four steps suffice. `ridge` is that of `_held`.
    """
    probes_Y_C_Y = torch.eye(logp_C_Y.shape[-1], dtype=logp_C_Y.dtype)[:, None].expand(
        -1, len(logp_C_Y), -1
    )
    logits_C_Y = logp_C_Y
    for _ in range(NEWTON_STEPS):
        free_C_Y = logits_C_Y.detach().requires_grad_()
        held = _held(loss, drawn, free_C_Y, logp_C_Y, ridge)
        (slope_C_Y,) = torch.autograd.grad(held, free_C_Y, create_graph=True)
        (hessian_Y_C_Y,) = torch.autograd.grad(
            slope_C_Y, free_C_Y, probes_Y_C_Y, is_grads_batched=True
        )
        values_C_Y, vectors_C_Y_Y = torch.linalg.eigh(hessian_Y_C_Y.transpose(0, 1))
        # Where the normalizer bends the loss downward the step still descends.
        scaled_C_Y_1 = (
            vectors_C_Y_Y.mT @ slope_C_Y.detach()[..., None]
        ) / values_C_Y.abs().clamp_min(ridge)[..., None]
        step_C_Y = (vectors_C_Y_Y @ scaled_C_Y_1)[..., 0].clamp(-FURTHEST, FURTHEST)
        logits_C_Y = logits_C_Y - step_C_Y
        if step_C_Y.abs().max() < TOLERANCE:
            break
    return logits_C_Y.log_softmax(-1)


def minimized(loss: Loss, drawn: Draw, logp_C_Y: torch.Tensor) -> torch.Tensor:
    """Return the minimizer of any `loss` that has one, [C, Y], nats.

    It is found by L-BFGS with line search: Newton's method does not suit risks with a kink.
    """
    logits_C_Y = logp_C_Y.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits_C_Y],
        max_iter=LBFGS_STEPS,
        tolerance_grad=SMALL_SLOPE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        held = _held(loss, drawn, logits_C_Y, logp_C_Y, RIDGE)
        held.backward()  # type: ignore[no-untyped-call]
        return held.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return logits_C_Y.detach().log_softmax(-1)


def descended(loss: Loss, drawn: Draw, logp_C_Y: torch.Tensor) -> torch.Tensor:
    """Return the policy after a few full-batch Adam steps, [C, Y].

    Their number is fixed. The policy is in nats. The steps start at pi_t, `logp_C_Y`, and their
    rate falls linearly to zero. This is for losses with no minimum to go to: likelihoods of the
    best, whose minimizer forbids every response that did not win, and policy gradients, whose
    returns are held fixed. How far they go is then part of the algorithm.
    """
    logits_C_Y = logp_C_Y.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits_C_Y], lr=ADAM_RATE)
    for done in range(ADAM_STEPS):
        optimizer.param_groups[0]["lr"] = ADAM_RATE * (1 - done / ADAM_STEPS)
        optimizer.zero_grad()
        drawn.loss(loss, logits_C_Y.log_softmax(-1)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return logits_C_Y.detach().log_softmax(-1)


def _held(
    loss: Loss, drawn: Draw, logits_C_Y: torch.Tensor, start_C_Y: torch.Tensor, ridge: float
) -> torch.Tensor:
    """Return the loss plus a hold on the logits.

    The loss is that of each prompt's rows, summed. The hold is ridge / 2 times the squared distance
    of the logits from those of pi_t. It decides where the rows decide nothing (a response that was
    not drawn, the level that a centered loss leaves open). It pulls to pi_t, so that it moves no
    fixed point.
    """
    mean = drawn.loss(loss, logits_C_Y.log_softmax(-1))
    return mean * len(logits_C_Y) + ridge / 2 * (logits_C_Y - start_C_Y).square().sum()


def _duels(
    matrix_C_Y_Y: torch.Tensor, response_C_G_N: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return the outcomes 1, 0 or 1/2 at [prompt, group, sample, opponent].

    Each pair meets once, so that what one wins the other loses.
    """
    prompt = torch.arange(len(response_C_G_N))[:, None, None, None]
    chance = matrix_C_Y_Y[prompt, response_C_G_N[..., :, None], response_C_G_N[..., None, :]]
    coin = (torch.rand(chance.shape, dtype=chance.dtype, generator=generator) < chance).to(
        chance.dtype
    )
    above = torch.where(chance == 0.5, 0.5, coin).triu(1)
    samples = chance.shape[-1]
    return above + (1 - above.mT).tril(-1) + torch.eye(samples, dtype=chance.dtype) / 2
