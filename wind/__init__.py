"""WIND: win-rate dominance, iterative best-of-N distillation of language models.

Every iteration t the policy answers each prompt N times, the responses are rewarded, each gets its
empirical win rate against its siblings, and the policy is fitted to the regularized
win-rate-dominance update (arXiv 2410.20727; MATH (2.4a)):

    pi_{t+1}(y)  ~  pi_t(y)^lam * pi_ref(y)^(1-lam) * exp(eta * lam * P_t(y)),
    lam = 1 / (1 + beta * eta)

Glossary. *prompt*: what is asked. *generation*: one sampled row; its text is the *response*.
*reward*: a scalar for one response. *win rate*: the probability that a response beats one drawn
from the same policy, ties one half. *policy*: the model being trained; *reference*: the frozen
model it is held to. *logp*: log-probability of a whole response, the sum over its tokens including
the end-of-sequence token. *iteration*: one round of sample, reward, train; *step*: one optimizer
update. *judge*: a reward that an evaluation uses, whether it trains or not; *opponent*: whom the
policy is matched with on held-out prompts, another policy or stored responses. Axis suffixes: _P
prompts, _N samples of one prompt, _B batch rows, _T tokens, _Y responses of a finite set.
"""

from typing import TYPE_CHECKING

from wind.code import loading

__all__ = ["open"]

# before any other module of this project is imported
loading.install()

if TYPE_CHECKING:
    from wind.exchange.reading import open as open
else:

    def __getattr__(name):
        """Import `wind.open` on first access, since every module imports this package."""
        if name == "open":
            from wind.exchange.reading import open

            return open
        raise AttributeError(f"module 'wind' has no attribute {name!r}")
