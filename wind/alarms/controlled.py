"""The win rate at equal length, as an estimate that can be compared with the plain one."""

import numpy as np
import polars as pl

from wind.alarms.paired import Estimate
from wind.statistics.length_control import scaled
from wind.statistics.logistic import chance, fit


def controlled_win_rate(evaluation: pl.DataFrame, prompts: pl.Series) -> Estimate:
    """Estimate the length-controlled win rate over `prompts`, see `wind.statistics`.

    Prompt i contributes what one Newton step from the optimum says: P [H^-1 s_i]_theta times the
    derivative of the chance, with s_i the prompt's score, H the curvature and P prompts (the
    sandwich of a clustered sample; the unit of length counts as known).
    """
    difference = pl.col("response_tokens_policy") - pl.col("response_tokens_reference").mean().over(
        "prompt_id"
    )
    rows = pl.DataFrame({"prompt_id": prompts, "place": range(len(prompts))}).join(
        evaluation.select("prompt_id", "win_rate", difference=difference), on="prompt_id"
    )
    wins_R, place_R = rows["win_rate"].to_numpy(), rows["place"].to_numpy()
    design_R_2 = np.column_stack([np.ones(len(rows)), scaled(rows["difference"].to_numpy())])
    (best_2,) = fit(design_R_2, wins_R[None], 1 - wins_R[None])
    chances_R = 1 / (1 + np.exp(-design_R_2 @ best_2))
    scores_P_2 = np.zeros((len(prompts), 2))
    np.add.at(scores_P_2, place_R, (wins_R - chances_R)[:, None] * design_R_2)
    curvature_2_2 = (design_R_2.T * (chances_R * (1 - chances_R))) @ design_R_2
    steps_P_2 = len(prompts) * scores_P_2 @ np.linalg.pinv(curvature_2_2)
    value = chance(best_2[0])
    return Estimate(value, value * (1 - value) * steps_P_2[:, 0])
