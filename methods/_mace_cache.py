"""Sums over prompts that a solve shall leave alone: MACE's prior and domain caches, built once and kept in a file.

    python -m methods._mace_cache MODEL PROMPTS.txt CACHE.safetensors

writes the cache of one prompt a line. MACE's second kind of sum, C₁ = Σ W e eᵀ for every projection W, is W times the
first, so that one `(d, d)` matrix serves all projections, and all models with the same text encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmark.backbones.base import Backbone, Embedding
from benchmark.errors import BadInput, BenchError, Missing

_CHUNK = 32  # prompts encoded at once
_SCHEMA = "mace-cache-1"


@dataclass(frozen=True)
class Cache:
    """Σ e eᵀ over all positions, padding included, of a number of prompts."""

    gram: Tensor
    """C₂: `(d, d)`, float64."""
    prompts: int
    """How many prompts it sums over."""

    def scaled(self, prompts: float) -> Tensor:
        """The gram `(d, d)` as if it summed over so many prompts of the same kind; zero prompts give zero."""
        return self.gram * (prompts / self.prompts if self.prompts else 0.0)


def sums(backbone: Backbone, prompts: Iterable[str]) -> Cache:
    """The cache of the prompts' token embeddings, encoded chunk by chunk."""
    width = next(p.weight.shape[1] for p in backbone.projections() if p.role != "pooled")
    total, count = torch.zeros(width, width, dtype=torch.float64, device=backbone.device), 0
    source = iter(prompts)
    while chunk := list(islice(source, _CHUNK)):
        total += gram_of(backbone.embed(chunk))
        count += len(chunk)
    return Cache(total, count)


def gram_of(text: Embedding) -> Tensor:
    """Σ e eᵀ `(d, d)` float64 over all positions of all rows."""
    rows = text.tokens.double().flatten(0, 1)
    return rows.T @ rows


def build(backbone: Backbone, prompts: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """(C₁, C₂) by projection name, float64: `(out, d)` and `(d, d)`, as the paper's caches hold them."""
    gram = sums(backbone, prompts).gram
    return {p.name: (p.weight.double() @ gram, gram) for p in backbone.projections() if p.role != "pooled"}


# --- files ------------------------------------------------------------------------------------------------------------
def save(path: Path, backbone: Backbone, cache: Cache) -> None:
    """Write the cache with a probe of the text encoder that it belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"gram": cache.gram.cpu().contiguous(), "probe": probe(backbone).cpu().contiguous()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file(tensors, temporary, {"schema": _SCHEMA, "model": backbone.name, "prompts": json.dumps(cache.prompts)})
    os.replace(temporary, path)


def load(path: Path, backbone: Backbone) -> Cache:
    """Read a cache. Missing if there is no such file; BadInput if it is no cache, or another text encoder's."""
    if not path.is_file():
        raise Missing(
            f"expected a cache of prompts at {path}, but there is no such file; "
            f"write one with: python -m methods._mace_cache {backbone.name} PROMPTS.txt {path}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise BadInput(f"expected a cache of prompts in {path}: {error}") from None
    if about.get("schema") != _SCHEMA or not {"gram", "probe"} <= tensors.keys():
        raise BadInput(f"expected a cache of prompts ({_SCHEMA}) in {path}, got tensors {sorted(tensors)}")
    here = probe(backbone)
    there = tensors["probe"].to(here)
    if here.shape != there.shape or (here - there).norm() > 1e-2 * here.norm():
        raise BadInput(
            f"the cache {path} was made with {about.get('model')}'s text encoder, and {backbone.name} has another; "
            "build it with this model"
        )
    return Cache(tensors["gram"].to(here), int(json.loads(about["prompts"])))


def probe(backbone: Backbone) -> Tensor:
    """The empty prompt's second position (its end), `(d,)` float64: tells text encoders apart."""
    return backbone.embed([""]).tokens[0, 1].double()


# --- command ----------------------------------------------------------------------------------------------------------
def main(arguments: Sequence[str] | None = None) -> None:
    """Build a cache from a text file."""
    parser = argparse.ArgumentParser(prog="python -m methods._mace_cache", description="Build a cache of prompts.")
    parser.add_argument("model", help="a model's name or folder")
    parser.add_argument("prompts", type=Path, help="a text file, one prompt a line")
    parser.add_argument("out", type=Path, help="the file to write, .safetensors")
    given = parser.parse_args(arguments)
    try:
        cache = _made(given.model, given.prompts, given.out)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    print(f"{given.out}: the sums of {cache.prompts} prompts")


def _made(model: str, prompts: Path, out: Path) -> Cache:
    from benchmark.backbones.load import load as load_model

    lines = _lines(prompts)
    backbone = load_model(model)
    with torch.no_grad():
        cache = sums(backbone, lines)
    save(out, backbone, cache)
    return cache


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(f"expected a text file of prompts at {path}: {error.strerror}") from None
    if not any(line.strip() for line in lines):
        raise BadInput(f"expected one prompt a line in {path}, got none")
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    main()
