"""A small CLIP text encoder and its tokenizer, for use without a download.

Both are the classes that the ModelScope pipeline uses, only smaller, so that a pretrained CLIP
loads in their place.
"""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(corpus: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """Train a byte-pair tokenizer of CLIP's form on `corpus` (a list of instructions).

    All 256 bytes are in its alphabet, so any text can be encoded; frequent words are one token.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=_END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_START, _END],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(corpus)), trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    # Numbered here, because the trainer numbers some tokens differently from run to run, and
    # because a new word can end in a letter that no word of the corpus ends in.
    endings = [character + "</w>" for character in alphabet]
    tokens = [_START, _END, *alphabet, *endings, *("".join(merge) for merge in merges)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def build_text_encoder(
    tokenizer: CLIPTokenizer, hidden_size: int, num_layers: int, num_heads: int
) -> CLIPTextModel:
    """A randomly initialised CLIP text encoder that fits `tokenizer`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=hidden_size,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
