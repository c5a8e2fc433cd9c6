"""A learned intercept: a small head trained beside the policy.

See MATH 2.6 d. It is left behind when training ends.
"""

import torch

from wind.models.sequence_logps import SequenceLogps


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

    def forward(  # type: ignore[override]
        self,
        input_ids_B_T: torch.Tensor,
        attention_mask_B_T: torch.Tensor,
        response_mask_B_T: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities, as in `SequenceLogps`, and the intercepts.

        Both are float64 `[B]`.
        """
        states_B_T_H = self.states(input_ids_B_T, attention_mask_B_T)
        # the last of the prompt: the token before the first of the response
        last_B = response_mask_B_T.long().argmax(dim=1) - 1
        states_B_H = states_B_T_H[torch.arange(len(last_B), device=last_B.device), last_B].detach()
        intercept_B = self.head(states_B_H / states_B_H.shape[1]).squeeze(1).double()
        return self.response_logps(states_B_T_H, input_ids_B_T, response_mask_B_T), intercept_B
