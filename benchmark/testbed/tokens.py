"""The tokenizer: byte-pair encoding of the captions' vocabulary, in CLIP's format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def learn_merges(words: Iterable[str], vocabulary: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair merges (Sennrich et al. 2016, arXiv:1508.07909) until every word is one token or the table is full.

    Every word counts once; the most frequent pair is merged first and ties go to the alphabetically first, so the
    table depends on the set of words alone. All letters, digits and some marks stay tokens, so unknown words split.
    """
    pieces = {word: (*word[:-1], word[-1] + WORD_END) for word in sorted(set(words))}
    symbols = [*"abcdefghijklmnopqrstuvwxyz0123456789", *".,;:!?'\"()-&/"]
    table = [*symbols, *(s + WORD_END for s in symbols)]
    merges: list[tuple[str, str]] = []
    while len(table) < vocabulary - 2:
        counts: dict[tuple[str, str], int] = {}
        for parts in pieces.values():
            for pair in zip(parts, parts[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        if "".join(best) not in table:
            table.append("".join(best))
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}
    return {token: i for i, token in enumerate([*table, START, END])}, merges


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] = out[-1] + part
        else:
            out.append(part)
    return tuple(out)


def build_tokenizer(words: Iterable[str], vocabulary: int, length: int) -> CLIPTokenizer:
    """A CLIPTokenizer whose padding is the end token, as Stable Diffusion 1.x has it."""
    table, merges = learn_merges(words, vocabulary)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    pairs: Any = merges  # the annotation wants "a b" strings; pairs are what the class builds on
    tokenizer = CLIPTokenizer(vocab=table, merges=pairs, model_max_length=length, **special)
    if len(tokenizer) != len(table):
        raise AssertionError(f"tokenizer holds {len(tokenizer)} tokens, built from {len(table)}")
    return tokenizer


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The saved tokenizer."""
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
