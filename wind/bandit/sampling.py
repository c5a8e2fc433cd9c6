"""The sampled half of the bandit: drawing responses, judging them, and fitting a tabular softmax
policy to them.

The policy has one logit for every prompt and response: every law over the responses is in its
class, so that what is left after many iterations is the error of the samples and of the objective.
The objectives are the project's own, on the same `Batch` that training sees. Axis suffixes: _C
cells (prompts of all repeats, end to end), _G groups of one prompt in one iteration, _N the samples
of a group, _Y responses, _B rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from wind.bandit.instances import Instance
from wind.config.objectives import Rows
from wind.objectives import Batch

# weight of the hold on the logits, beside a loss that is a mean over the prompt's rows
RIDGE: Final = 1e-3
NEWTON_STEPS: Final = 8
TOLERANCE: Final = 1e-9  # of a Newton step, in nats
FURTHEST: Final = 2.0  # nats that a Newton step moves a logit at most
LBFGS_STEPS: Final = 80
SMALL_SLOPE: Final = 1e-5  # at which L-BFGS ends, in units of a prompt's mean loss per nat
ADAM_STEPS: Final = 8
# nats: what Adam's first step moves every logit by; it falls linearly to zero
ADAM_RATE: Final = 0.1
# objectives that compare all rows with all get blocks of whole groups of about this size
BLOCK_ROWS: Final = 256

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]


@dataclass(frozen=True)
class Draw:
    """The judged samples of one iteration, in blocks of whole groups."""

    # per block [B], where the row's response stands among all C x Y logits
    cells: Sequence[torch.Tensor]
    batches: Sequence[Batch]
    rows: int

    def loss(self, loss: Loss, logp_C_Y: torch.Tensor) -> torch.Tensor:
        """The mean of `loss` over all rows; blocks of whole groups combine by their numbers of
        rows.
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
    """`groups` groups of `samples` responses of the policy for each of its prompts, judged within
    their groups; of each, `rows`.

    Every two samples of a group are compared once. On a rewarded prompt the higher reward wins: its
    P is 0, 1/2 or 1. Elsewhere the outcome is a coin of P. Preferences of exactly one half, and so
    equal responses, tie. Without a reward the number of a sample's wins takes its place, as where a
    judge ranks responses.
    """
    prompts, responses = logp_C_Y.shape
    response_C_G_N = torch.multinomial(
        logp_C_Y.exp(), groups * samples, replacement=True, generator=generator
    )
    response_C_G_N = response_C_G_N.view(prompts, groups, samples)
    outcome = _duels(instance.matrix, response_C_G_N, generator)
    wins_C_G_N = outcome.sum(-1) - 0.5  # the comparison with itself is none
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
    """The minimiser of a `loss` that is quadratic in the log-probabilities, by Newton's method; [C,
    Y].

    Prompts do not share logits, so the Hessian is one [Y, Y] block per prompt. Only the normaliser
    is not quadratic: three or four steps. `ridge` is that of `_held`.
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
        # Where the normaliser bends the loss downwards the step still goes down.
        scaled_C_Y_1 = (
            vectors_C_Y_Y.mT @ slope_C_Y.detach()[..., None]
        ) / values_C_Y.abs().clamp_min(ridge)[..., None]
        step_C_Y = (vectors_C_Y_Y @ scaled_C_Y_1)[..., 0].clamp(-FURTHEST, FURTHEST)
        logits_C_Y = logits_C_Y - step_C_Y
        if step_C_Y.abs().max() < TOLERANCE:
            break
    return logits_C_Y.log_softmax(-1)


def minimized(loss: Loss, drawn: Draw, logp_C_Y: torch.Tensor) -> torch.Tensor:
    """The minimiser of any `loss` that has one, by L-BFGS with line search: risks with a kink are
    no case for Newton; [C, Y].
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
    """The policy after a fixed number of full-batch Adam steps from pi_t, the rate falling linearly
    to zero; [C, Y].

    For losses with no minimum to go to: likelihoods of the best, whose minimiser forbids every
    response that did not win, and policy gradients, whose returns are held fixed. How far they go
    is then part of the algorithm.
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
    """The loss of each prompt's rows plus ridge / 2 times the squared distance of its logits from
    those of pi_t, summed.

    The hold decides where the rows decide nothing (a response that was not drawn, the level that a
    centred loss leaves open). It is to pi_t, so that it moves no fixed point.
    """
    mean = drawn.loss(loss, logits_C_Y.log_softmax(-1))
    return mean * len(logits_C_Y) + ridge / 2 * (logits_C_Y - start_C_Y).square().sum()


def _duels(
    matrix_C_Y_Y: torch.Tensor, response_C_G_N: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """1, 0 or 1/2 at [prompt, group, sample, opponent]: each pair meets once, so that what one wins
    the other loses.
    """
    prompt = torch.arange(len(response_C_G_N))[:, None, None, None]
    chance = matrix_C_Y_Y[prompt, response_C_G_N[..., :, None], response_C_G_N[..., None, :]]
    coin = (torch.rand(chance.shape, dtype=chance.dtype, generator=generator) < chance).to(
        chance.dtype
    )
    above = torch.where(chance == 0.5, 0.5, coin).triu(1)
    samples = chance.shape[-1]
    return above + (1 - above.mT).tril(-1) + torch.eye(samples, dtype=chance.dtype) / 2
