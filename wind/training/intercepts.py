"""A learned intercept: a small head trained beside the policy.

See MATH 2.6 d. It is left behind when training ends.
"""

from typing import Any

import torch

from wind.models.sequence_logps import SequenceLogps, is_shared
from wind.models.shared_prompts import shared_states


class LogpsAndIntercept(SequenceLogps):
    """Wrap a causal language model to return log-probabilities and intercepts.

    The intercept of a row is c(x) = b + w h / H, with h the last hidden state of the prompt and H
    its width; it starts at 1/2 for every prompt. No gradient flows from it into the policy.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.head = torch.nn.Linear(self.model.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.constant_(self.head.bias, 0.5)

    def forward(self, *rows: Any) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        """Return the log-probabilities, as in `SequenceLogps`, and the intercepts.

        Both are float64 `[B]`; `rows` are as in `SequenceLogps`.
        """
        if is_shared(rows):
            states_T_H = shared_states(self.model, *rows)
            prompt_end_B_H = states_T_H[rows[0].prompt_end]
            logps_B = self.shared_response_logps(states_T_H, *rows)
        else:
            input_ids_B_T, attention_mask_B_T, response_mask_B_T = rows
            states_B_T_H = self.states(input_ids_B_T, attention_mask_B_T)
            # the last of the prompt: the token before the first of the response
            last_B = response_mask_B_T.long().argmax(dim=1) - 1
            prompt_end_B_H = states_B_T_H[torch.arange(len(last_B), device=last_B.device), last_B]
            logps_B = self.response_logps(states_B_T_H, input_ids_B_T, response_mask_B_T)
        width = prompt_end_B_H.shape[1]
        return logps_B, self.head(prompt_end_B_H.detach() / width).squeeze(1).double()
