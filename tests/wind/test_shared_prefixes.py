"""Log-probabilities and rewards with prompts computed once, against rows that run alone; batches,
and memory that runs out.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.wind.architecture_case import ARCHITECTURES, ATTENTION
from wind.errors import StageError
from wind.logps import response_logps
from wind.models import memory, shared_prefixes
from wind.models.shared_prefixes import Batch, Group, SharedPrefixes, batches, passes

VOCABULARY = 64
PROMPTS = {"a": 40, "b": 41, "c": 25, "d": 3}
RESPONSES = {"a": [9, 1, 30], "b": [4, 4, 12], "c": [7, 2], "d": [5, 6]}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefixes, "_said", set())
    monkeypatch.setattr(shared_prefixes, "_fitting", {})


def rows() -> tuple[list[str], list[list[int]], list[list[int]]]:
    """Prompt ids, prompts and responses of random tokens, the rows of a prompt not in a row."""
    generator = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [generator.randrange(VOCABULARY) for _ in range(length)]

    prompts = {name: tokens(length) for name, length in PROMPTS.items()}
    made = [(name, prompts[name], tokens(n)) for name in PROMPTS for n in RESPONSES[name]]
    generator.shuffle(made)
    prompt_ids, prompt_rows, responses = zip(*made, strict=True)
    return list(prompt_ids), list(prompt_rows), list(responses)


def policy_of(architecture: str) -> Any:
    torch.manual_seed(0)
    fields = {
        "vocab_size": VOCABULARY,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **ARCHITECTURES[architecture],
    }
    implementation = ATTENTION.get(architecture, "eager" if architecture == "gemma2" else None)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, **fields), attn_implementation=implementation
    )
    return model.eval().requires_grad_(False)


def llama() -> Any:
    return policy_of("llama")


def alone(model: Any, prompt: list[int], response: list[int]) -> float:
    """The log-probability of one response, by the model's own forward pass."""
    with torch.no_grad():
        logits_T_V = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    logps_T_V = logits_T_V.log_softmax(-1)[len(prompt) - 1 : -1]
    return float(logps_T_V.gather(1, torch.tensor(response)[:, None]).sum())


def noted(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that run, in order."""
    ran: list[Batch] = []
    run = SharedPrefixes._run

    def noting(self: SharedPrefixes, *arguments: Any) -> Any:
        ran.append(arguments[2])
        return run(self, *arguments)

    monkeypatch.setattr(SharedPrefixes, "_run", noting)
    return ran


def assert_alone(model: Any, ours: list[float]) -> None:
    _, prompts, responses = rows()
    theirs = [alone(model, *row) for row in zip(prompts, responses, strict=True)]
    assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_response_has_the_logp_of_a_row_alone(
    architecture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over families; those with a state of another kind compute every row as a whole, and say so."""
    monkeypatch.setattr(shared_prefixes, "PASS_TOKENS", {"cpu": 12})
    ran = noted(monkeypatch)
    model = policy_of(architecture)
    assert_alone(model, response_logps("models/x", model, *rows(), 1000, lambda done: None))
    said = capsys.readouterr().err
    if architecture == "mamba":
        assert {batch.shared for batch in ran} == {0}
        assert said == (
            "models/x computes a prompt anew for each of its responses: "
            "MambaForCausalLM takes no cache of keys and values\n"
        )
        return
    # The prompts of 40 and 41 tokens are cut to one length, a token each is left to responses.
    assert sorted(batch.shared for batch in ran) == [0, 24, 39]
    assert said == ""


@pytest.mark.parametrize("batch_tokens", [1, 60, 150, 400])
def test_the_batch_does_not_matter(batch_tokens: int) -> None:
    model = llama()
    assert_alone(model, response_logps("x", model, *rows(), batch_tokens, lambda done: None))


def test_a_model_that_sees_what_follows_shares_nothing() -> None:
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    why_not = SharedPrefixes("x", model, model.model).why_not
    assert why_not is not None
    assert why_not.startswith("states of a probe differ by ")


def test_a_model_of_one_layer_that_sees_what_follows_shares_nothing() -> None:
    """A cache changes nothing for it, and yet padding behind a row would."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).eval()
    assert SharedPrefixes("x", model, model.model).why_not is None
    model.model.layers[0].self_attn.is_causal = False
    assert SharedPrefixes("x", model, model.model).why_not is not None


def test_batches_hold_every_row_once_within_the_limit() -> None:
    def numbers(*arguments: Any) -> list[list[int]]:
        return [batch.rows for batch in batches([3, 9, 4, 9], *arguments)]

    apart = [Group((row,), 0) for row in range(4)]
    assert numbers(apart, 18) == [[1, 3], [2, 0]]
    assert numbers(apart, 17) == [[1], [3], [2, 0]]
    assert numbers(apart, 1) == [[1], [3], [2], [0]]
    assert numbers(apart, 1000) == [[1, 3, 2, 0]]
    assert numbers(apart, 1000, 18) == [[1, 3], [2, 0]]


def test_prefixes_are_cut_to_one_length_where_little_is_computed_twice() -> None:
    """100, 98 and 50 tokens in common: cutting 100 to 98 computes 2 tokens of 2 rows twice."""
    lengths = [110, 120, 108, 118, 60, 160]
    groups = [Group((0, 1), 100), Group((4, 5), 50), Group((2, 3), 98)]
    assert batches(lengths, groups, 1000) == [
        Batch(((1, 0), (3, 2)), 98),  # 4 x 120 tokens
        Batch(((5, 4),), 50),  # 2 x 160
    ]
    # no room for two groups, the second larger than a batch and cut
    assert batches(lengths, groups, 300) == [
        Batch(((1, 0),), 100),
        Batch(((3, 2),), 98),
        Batch(((5,),), 0),
        Batch(((4,),), 0),
    ]


def test_few_tokens_in_common_are_computed_again() -> None:
    assert batches([20, 30], [Group((0, 1), 15)], 1000) == [Batch(((1,), (0,)), 0)]
    assert batches([20, 30], [Group((0, 1), 16)], 1000) == [Batch(((1, 0),), 16)]


def test_passes_hold_rows_of_similar_lengths() -> None:
    """Of 100, 90, 79, 20 and 10 tokens after the prefix: 79 is less than 0.8 of 100."""
    lengths = [60, 140, 129, 70, 150]
    batch = Batch(((4, 0), (1, 2, 3)), 50)
    assert list(passes(batch, lengths, 200)) == [[(4, 0), (1, 1)], [(2, 1), (3, 1), (0, 0)]]
    assert list(passes(batch, lengths, 1)) == [[(4, 0), (1, 1)], [(2, 1)], [(3, 1)], [(0, 0)]]
    assert len(list(passes(batch, lengths, 1000))) == 1


def exhausted(error: Callable[[], BaseException], limit: int) -> Any:
    """A batch of more than `limit` padded tokens ends in `error`."""
    run = SharedPrefixes._run

    def failing(self: SharedPrefixes, rows: Any, lengths: Any, batch: Batch, forward: Any) -> Any:
        if batch.padded(lengths) > limit:
            raise error()
        return run(self, rows, lengths, batch, forward)

    return failing


def of_the_allocator() -> BaseException:
    try:
        torch.empty(10**15)
    except RuntimeError as error:
        return error
    raise AssertionError("a petabyte was allocated")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, of_the_allocator])
def test_without_memory_batches_are_halved(
    error: Callable[[], BaseException],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(SharedPrefixes, "_run", exhausted(error, 150))
    ran = noted(monkeypatch)
    model = llama()
    told: list[int] = []
    assert_alone(model, response_logps("models/x", model, *rows(), 1000, told.append))
    # 40 + 30 tokens are the longest row of a and b; 35 tokens fit no two rows of them
    assert capsys.readouterr().err == (
        "models/x ran out of memory on 6 rows of up to 70 tokens: "
        "going on with batches of at most 210 tokens\n"
        "models/x ran out of memory on 3 rows of up to 70 tokens: "
        "going on with batches of at most 105 tokens\n"
    )
    assert told == sorted(told)
    assert told[-1] == 10
    # the next shard begins with what fits
    tried = len(ran)
    response_logps("models/x", model, *rows(), 1000, lambda done: None)
    assert capsys.readouterr().err == ""
    assert len(ran) == 2 * tried - 2


def test_a_single_row_without_memory_ends_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedPrefixes, "_run", exhausted(torch.OutOfMemoryError, 69))
    with pytest.raises(
        StageError,
        match="models/x runs out of memory on a single row of 70 tokens: lower",
    ):
        response_logps("models/x", llama(), *rows(), 1000, lambda done: None)


def test_another_error_is_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        SharedPrefixes, "_run", exhausted(lambda: RuntimeError("shapes do not fit"), 0)
    )
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        response_logps("x", llama(), *rows(), 1000, lambda done: None)


@pytest.mark.parametrize(("free", "fits"), [(60, True), (59, False)])
def test_weights_leave_a_quarter_of_a_gpu(
    free: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 bytes of 100 fit beside 25 to work in if 65 are free; 5 that torch holds unused count."""
    facts: Mapping[str, Any] = {
        "mem_get_info": (free, 100),
        "memory_reserved": 8,
        "memory_allocated": 3,
    }
    for name, value in facts.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory.has_room("cuda", 40) == fits
