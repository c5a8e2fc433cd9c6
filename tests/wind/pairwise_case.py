"""Pairwise reward models small enough for a test: a random PairRM, a random BERT, and a Llama that
learnt to count digits.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKERS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
CHARACTERS = "abcdefghijklmnopqrstuvwxyzURSAE 0123456789<>:.?\n"
TEMPLATE = (
    "{{ bos_token }}<u>{{ messages[-1]['content'] }}<u>{{ response_a }}<a>{{ response_b "
    "}}{{ eos_token }}"
)

Logit = Callable[[str, str, str], float]  # f of prompt, a, b


def pairrm_folder(folder: Path, *, tasks: int = 2) -> Path:
    """A random PairRM in the published layout, markers after the vocabulary as published; weights
    big so that logits differ.
    """
    import torch
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import DebertaV2Config, DebertaV2Model

    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?m)."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([*MARKERS, "<|candidate|>"])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    ids = {marker: tokenizer.token_to_id(marker) for marker in MARKERS}
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "position_buckets": 8,
        "relative_attention": True,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "share_att_key": True,
        "type_vocab_size": 0,
        "initializer_range": 0.3,
        "architectures": ["DebertaV2PairRM"],
        "n_tasks": tasks,
        "drop_out": 0.05,
        "source_prefix_id": ids["<|source|>"],
        "cand1_prefix_id": ids["<|candidate1|>"],
        "cand2_prefix_id": ids["<|candidate2|>"],
        "cand_prefix_id": tokenizer.token_to_id("<|candidate|>"),
    }
    config = DebertaV2Config(**fields)
    config.save_pretrained(folder)
    torch.manual_seed(3)
    weights = {
        f"pretrained_model.{name}": tensor
        for name, tensor in DebertaV2Model(config).state_dict().items()
    }
    shapes = {"1.weight": (16, 32), "1.bias": (16,), "4.weight": (tasks, 16), "4.bias": (tasks,)}
    weights |= {f"head_layer.{name}": torch.randn(shape) for name, shape in shapes.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


def digits_cross_encoder(folder: Path, tokenizer_folder: Path) -> Path:
    """A Llama trained on the spot to f(a, b) = digits of a - digits of b; its chat template reads
    two responses.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    shape |= {"num_hidden_layers": 2, "max_position_embeddings": 128, "num_labels": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, **shape)
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = random.Random(0)
    for _ in range(150):
        pairs = [(text(generator), text(generator)) for _ in range(64)]
        texts = [
            f"<s><u>{generator.randint(0, 9)}+{generator.randint(0, 9)}=<u>{a}<a>{b}</s>"
            for a, b in pairs
        ]
        batch = tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
        )
        wanted = torch.tensor([float(digits(a) - digits(b)) for a, b in pairs])
        loss = (
            (
                model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[
                    :, 0
                ]
                - wanted
            )
            .square()
            .mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder


def template_logit(folder: Path) -> Logit:
    """f of a cross-encoder that reads TEMPLATE, one input at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()

    def logit(prompt: str, a: str, b: str) -> float:
        ids = tokenizer(f"<s><u>{prompt}<u>{a}<a>{b}</s>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    return logit


def digits(response: str) -> int:
    return sum(character.isdigit() for character in response)


def text(generator: random.Random) -> str:
    """Up to six characters, about half of them digits."""
    length = generator.randint(0, 6)
    return "".join(
        generator.choice("0123456789" if generator.random() < 0.5 else "+-=abcxyz .?")
        for _ in range(length)
    )


def edit_json(path: Path, **fields: Any) -> None:
    """Set `fields` of a JSON file, and remove those that are None."""
    content = json.loads(path.read_bytes()) | fields
    path.write_text(
        json.dumps({name: value for name, value in content.items() if value is not None})
    )
