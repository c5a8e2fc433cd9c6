"""How a server scores responses: in batches, several at a time."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wind.endpoints import connection_to
from wind.endpoints.client import Endpoint
from wind.errors import InputError, StageError, shown
from wind.rewards.functions import Floats, Responses, refuse_non_finite
from wind.rewards.kinds.remote import Remote, told_identity
from wind.stages import Progress


class RemoteReward:
    """A `RewardModel` that asks a server."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def rewards(self, rows: Responses, progress: Progress) -> dict[str, Floats]:
        """Return one finite number per row.

        Raises StageError if no replica answers, and InputError for anything but as many finite
        numbers as responses, naming the first of them.
        """
        connection = connection_to(self._remote.identity(), "the remote reward")
        size = connection.batch_size
        rewards_B = np.empty(len(rows))
        batches = [
            range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)
        ]
        done = 0
        vouch = self._vouch if self._remote.is_told else None
        with Endpoint(connection, "reward", vouch=vouch) as endpoint:

            def scored(batch: range) -> tuple[range, Floats]:
                return batch, self._scored(endpoint, rows, batch)

            for batch, rewards in endpoint.map(scored, batches):
                rewards_B[batch.start : batch.stop] = rewards
                done += len(batch)
                progress(done, len(rows))
        return {"reward": rewards_B}

    def _scored(self, endpoint: Endpoint, rows: Responses, batch: range) -> Floats:
        where = f"the {len(batch)} responses from {rows.where(batch[0])}"
        content = json.dumps(self._request(rows, batch)).encode()
        try:
            said = endpoint.post("", content)
        except InputError as error:
            raise InputError(f"{error}, on {where}") from None
        rewards = said.get("rewards") if isinstance(said, dict) else None
        if not isinstance(rewards, list) or len(rewards) != len(batch):
            raise InputError(
                f"reward.url answered {shown(said)} on {where}: "
                f'it must be {{"rewards": [...]}} with {len(batch)} numbers'
            )
        for row, reward in zip(batch, rewards, strict=True):
            if not isinstance(reward, int | float) or isinstance(reward, bool):
                raise InputError(
                    f"reward.url gave {shown(reward)} for {rows.where(row)}: it must be a number"
                )
        try:
            values = np.array(rewards, dtype=np.float64)
        except OverflowError:
            raise InputError(f"reward.url gave a number too large on {where}") from None
        refuse_non_finite("reward.url", values, lambda number: rows.where(batch[number]))
        return values

    def _request(self, rows: Responses, batch: Sequence[int]) -> dict[str, list[Any]]:
        responses = [rows.responses[row] for row in batch]
        if self._remote.protocol == "wind":
            prompts = [
                [{"role": turn["role"], "content": turn["content"]} for turn in rows.messages[row]]
                for row in batch
            ]
            return {"prompts": prompts, "responses": responses}
        texts = [rows.rendered[row] for row in batch]
        return {
            "query": [text + response for text, response in zip(texts, responses, strict=True)],
            "prompts": texts,
            "labels": [rows.answers[row] or "" for row in batch],
        }

    def _vouch(self, get: Callable[[str], Any]) -> None:
        if (found := told_identity(get)) != self._remote.computes:
            raise StageError(
                f"reward.url: the server computes {shown(found)} now, and computed "
                f"{shown(self._remote.computes)} when this stage was planned: start the run again"
            )
