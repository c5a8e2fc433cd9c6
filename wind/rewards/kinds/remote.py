"""Remote rewards: a server that scores responses over HTTP.

Protocol `wind`: a POST to the address with `prompts`, each a list of messages with `role` and
`content`, and `responses`, one text for each; the answer has `rewards`, one number for each.

Protocol `openrlhf`: what OpenRLHF sends to its `--remote_rm_url` (openrlhf/utils/remote_rm_utils.py,
`remote_rm_fn`): `query`, the prompt as the policy sees it with the response behind it, `prompts`,
without it, and `labels`, the gold answers; the answer has `rewards`. It may have `scores` and
`extra_logs`, which OpenRLHF filters by and logs; neither is read here.
"""

from collections.abc import Callable
from typing import Any, Literal, Self

from wind.config.models import InferenceConfig
from wind.config.rewards import RemoteRewardConfig
from wind.endpoints import connect
from wind.errors import InputError, shown
from wind.fingerprints import digest
from wind.rewards.kinds.base import Judge, RewardKind, scalar_judge
from wind.store.datasets import Store

IDENTITY_PATH = "/identity"


class Remote(RewardKind):
    """A server, by what it computes."""

    kind: Literal["remote"] = "remote"
    protocol: Literal["wind", "openrlhf"] = "wind"
    # what it computes, as the recipe or the server itself says
    computes: str
    # whether the server says so, and can be asked again
    is_told: bool = False

    @classmethod
    def resolve(cls, store: Store, config: RemoteRewardConfig) -> Self:
        """Ask the server what it computes, unless the recipe says so.

        Raises StageError if no replica answers, and InputError if the server does not say it or
        replicas differ.
        """
        told = config.identity is None
        computes = _told(config) if config.identity is None else config.identity
        remote = cls(protocol=config.protocol, computes=computes, is_told=told)
        connect({remote.identity(): config.connection()})
        return remote

    def judge(
        self, store: Store, inference: InferenceConfig, device: str, function_seconds: float | None
    ) -> Judge:
        """Return a judge that asks the server."""
        from wind.rewards.remote import RemoteReward

        return scalar_judge(RemoteReward(self), None)

    def identity(self) -> str:
        """Return the digest of everything that determines its rewards."""
        return digest(self.model_dump(mode="json"))


def told_identity(get: Callable[[str], Any]) -> str:
    """Return what a server says it computes, at `/identity`.

    It is a text, or an object with the text `identity`. Raises InputError for anything else.
    """
    try:
        said = get(IDENTITY_PATH)
    except InputError as error:
        raise InputError(
            f"{error}: let the server say what it computes there, or set reward.identity"
        ) from None
    text = said.get("identity") if isinstance(said, dict) else said
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"reward.url: the server says {shown(said)} at {IDENTITY_PATH}: let it say "
            '{"identity": "..."}, which changes whenever its rewards do, or set reward.identity'
        )
    return text


def _told(config: RemoteRewardConfig) -> str:
    """Ask every replica what it computes; one that does not answer now is asked before it scores."""
    from wind.endpoints.client import Endpoint  # httpx takes a while to import

    with Endpoint(config.connection().for_identity(), "reward") as endpoint:
        found = endpoint.each(told_identity)
    first, *others = found
    for other in others:
        if found[other] != found[first]:
            raise InputError(
                f"reward.url: {first} computes {shown(found[first])} and {other} "
                f"{shown(found[other])}: name replicas of one server"
            )
    return found[first]
