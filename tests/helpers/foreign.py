"""GPT-2 directories as other programs leave them, made by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
import torch

transformers: Any = __import__("transformers")

CHARACTERS = list("今天好错气早上你在吗的了不房间很干净太吵，。？！abcxyz019")


WORDS = ["hello", "wor", "##ld", "##s", "##今", "##天", "##好"]


KINDS = ["characters", "words", "vocab.txt", "bytes", "vocab.json"]


def write_tokenizer(directory: Path, kind: str) -> int:
    """A tokenizer as other programs leave it; returns the size of the vocabulary."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: n for n, token in enumerate([*special, *CHARACTERS])}
    if kind in ("words", "vocab.txt"):
        vocabulary |= {word: len(vocabulary) + n for n, word in enumerate(WORDS)}
    if kind == "vocab.txt":
        (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n", "utf-8")
        return len(vocabulary)
    if kind in ("bytes", "vocab.json"):
        trainer = tokenizers.ByteLevelBPETokenizer()
        trainer.train_from_iterator(
            ["今天天气很好 hello world"] * 5, 300, special_tokens=["<|endoftext|>"]
        )
        if kind == "vocab.json":
            trainer.save_model(str(directory))
            return int(trainer.get_vocab_size())
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=trainer._tokenizer, eos_token="<|endoftext|>"
        )
        fast.save_pretrained(directory)
        return len(fast)
    if kind == "characters":
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    else:
        backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.normalizer = tokenizers.normalizers.BertNormalizer()
        backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        backend.decoder = tokenizers.decoders.WordPiece()
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(
        directory
    )
    return len(vocabulary)


def make_foreign(directory: Path, kind: str, spare: int = 0, **changes: Any) -> Any:
    """A directory with random weights, and transformers' model."""
    directory.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(directory, kind) + spare
    torch.manual_seed(5)
    shape = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    config = transformers.GPT2Config(
        **{"vocab_size": size, **shape, "bos_token_id": None, "eos_token_id": None, **changes}
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(directory)
    return model
