"""The preference losses against TRL's own, on random pairs.

The loss of TRL's trainer is called with scores in place of a model.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.wind.objective_case import chosen, loss_of, random_batch
from wind.objectives import Batch

pytestmark = pytest.mark.slow  # importing TRL takes seconds


def trl_loss(
    loss_type: str, beta: float, logps_M_2: torch.Tensor, reference_M_2: torch.Tensor
) -> float:
    """Return TRL's mean loss over pairs (chosen, rejected).

    Responses are one token long: there, means over tokens are sums.
    """
    from trl.trainer.dpo_trainer import DPOTrainer

    def stacked(values_M_2: torch.Tensor) -> torch.Tensor:
        return values_M_2.T.reshape(-1)  # TRL batches all chosen, then all rejected

    rows = logps_M_2.numel()
    mask_B_T = torch.tensor([[0, 1]]).repeat(rows, 1)
    nothing_B_T = torch.zeros(rows, 1)
    outputs = SimpleNamespace(
        log_probs=stacked(logps_M_2)[:, None],
        entropy=nothing_B_T,
        mean_logits=nothing_B_T,
        is_top1=nothing_B_T.bool(),
    )
    reference_B = stacked(reference_M_2)
    trainer: Any = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda values: values, gather_for_metrics=lambda values: values
        ),
        precompute_ref_logps=True,
        aux_loss_enabled=False,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        label_smoothing=0.0,
        beta=beta,
        use_weighting=False,
        _total_train_tokens=0,
        _metrics={"eval": defaultdict(list)},
    )
    inputs = {
        "input_ids": mask_B_T,
        "attention_mask": torch.ones_like(mask_B_T),
        "completion_mask": mask_B_T,
        "ref_chosen_logps": reference_B[: rows // 2],
        "ref_rejected_logps": reference_B[rows // 2 :],
    }
    return float(DPOTrainer._compute_loss(trainer, lambda **model_inputs: outputs, inputs, False))


def pairs_of_two(seed: int) -> tuple[torch.Tensor, Batch, torch.Tensor]:
    """Return a batch of 16 groups of two, and their rows.

    The rows of each group are listed with the better first.
    """
    logps_B, batch = random_batch(seed, sizes=[2] * 16)
    order_M_2 = torch.stack(
        [rows[batch.rank[rows].argsort()] for rows in torch.arange(32).view(16, 2)]
    )
    return logps_B, batch, order_M_2


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [0.05, 0.5, 3.0])
def test_dpo_and_ipo_are_those_of_trl(seed: int, beta: float) -> None:
    logps_B, batch, order_M_2 = pairs_of_two(seed)
    scores = (logps_B[order_M_2], batch.logp_reference[order_M_2])
    assert loss_of(logps_B, batch, name="dpo", beta=beta) == pytest.approx(
        trl_loss("sigmoid", beta, *scores), rel=1e-5
    )
    assert loss_of(logps_B, batch, name="ipo", tau=beta) == pytest.approx(
        trl_loss("ipo", beta, *scores), rel=1e-5
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("eta", [0.3, 20.0, 1000.0])
def test_sppo_with_hard_labels_is_that_of_trl(seed: int, eta: float) -> None:
    # TRL sums over the pair where SPPO's own code halves; its reference is ours at the start of the
    # iteration.
    logps_B, batch, order_M_2 = pairs_of_two(seed)
    hard = chosen(batch, slice(None), win_rate=(batch.rank == 1).double())
    theirs = trl_loss("sppo_hard", 1 / eta, logps_B[order_M_2], batch.logp_policy[order_M_2])
    assert loss_of(logps_B, hard, name="sppo_pair", eta=eta) == pytest.approx(theirs / 2, rel=1e-5)
