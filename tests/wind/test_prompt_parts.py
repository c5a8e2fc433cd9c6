import hashlib

import polars as pl

from wind.prompt_parts import part_of, sampled_prompts


def test_parts_share_the_train_split_out_and_take_turns() -> None:
    ids = [f"{row:032x}" for row in range(300)]
    assert (
        part_of(ids[3], 7, 2)
        == int(hashlib.sha256(f"7/part/{ids[3]}".encode()).hexdigest()[:16], 16) % 2
    )
    frame = pl.DataFrame({"prompt_id": ids, "split": ["eval", "train", "train"] * 100})
    turns = [
        set(sampled_prompts(frame, "train", 7, iteration, 3)["prompt_id"])
        for iteration in (1, 2, 3, 4)
    ]
    assert turns[0] | turns[1] | turns[2] == {ids[row] for row in range(300) if row % 3}
    assert sum(len(turn) for turn in turns[:3]) == 200  # disjoint
    assert turns[3] == turns[0]
    # 200/3, four standard deviations of 6.7 either way
    assert all(40 <= len(turn) <= 94 for turn in turns)
    assert {part_of(name, 8, 3) == part_of(name, 7, 3) for name in ids} == {True, False}
    for iteration in (1, 2):
        assert sampled_prompts(frame, "eval", 7, iteration, 3).height == 100
        assert sampled_prompts(frame, "train", 7, iteration, 1).height == 200
