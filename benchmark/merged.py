"""An edited model as a diffusers folder that loads without this harness: weights merged, all else as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmark import edits, models
from benchmark.backbones import random_models
from benchmark.errors import BenchError
from benchmark.interface import Edit

_TEXTS = frozenset({".json", ".txt", ".model"})
_VARIANT = re.compile(r"\.(?!safetensors|index|json)\w+")  # of a weight file's name, such as .fp16
_LINKED = 2**20  # smaller files are copied: people edit configurations in place
_HALF = frozenset({torch.float16, torch.bfloat16})


def write(edit: Edit, model: str, out: Path) -> bool:
    """Write the model with the edit's weights into the new folder `out`; whether half precision was widened.

    Files of parts that are not edited are linked where the file system can, else copied. If an edited part is stored
    in half precision, all weights are written as float32, in which edits are made: rounding could take small ones back.
    Gates, prompt rules and outputs are no weights and stay outside. BenchError for weights that found no place.
    """
    with _folder(model) as source:
        index = models.index(source)
        parts = [name for name, value in index.items() if isinstance(value, list) and _loads(source / name)]
        touched = {*edit.weights, *edit.deltas}
        wide = any(_half(source / part) for part in parts if any(n.startswith(f"{part}.") for n in touched))
        out.mkdir(parents=True, exist_ok=True)
        left = set(touched)
        for part in parts:
            left -= _part(source / part, out / part, edit, wide=wide)
        if left:
            raise BenchError(f"no weight file of {model} holds {sorted(left)[0]}, which the edit changes")
        (out / "model_index.json").write_text(json.dumps(_index(index, parts), indent=2) + "\n", encoding="utf-8")
    return wide


def _loads(part: Path) -> bool:
    """Whether a part is there, and not as pickles alone, which are not taken along."""
    return part.is_dir() and (any(part.glob("*.safetensors")) or not any(part.glob("*.bin")))


def _index(index: Mapping[str, Any], parts: list[str]) -> dict[str, Any]:
    """The pipeline's parts, those that are not in the folder left empty, as a safety checker may be."""
    absent = {name: [None, None] for name, value in index.items() if isinstance(value, list) and name not in parts}
    checker = {"requires_safety_checker": False} if "safety_checker" in absent else {}
    return {**index, **absent, **checker}


@contextmanager
def _folder(model: str) -> Iterator[Path]:
    """The model's diffusers folder; of a model built in code, one that is there for the time of the block."""
    if (folder := models.resolve(model)) is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="erasure-bench-") as made:
        _built(model).save_pretrained(made)
        yield Path(made)


def _built(model: str) -> Any:
    untyped: Any = diffusers
    if model == "random-flux":
        return untyped.FluxPipeline(**random_models.flux_components())
    empty = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return untyped.StableDiffusionPipeline(**random_models.unet_components(), **empty)


# --- one part ---------------------------------------------------------------------------------------------------------
def _part(source: Path, out: Path, edit: Edit, *, wide: bool) -> set[str]:
    """Write one part of the pipeline; returns the names of the tensors that were edited."""
    out.mkdir()
    for text in sorted(p for p in source.iterdir() if p.suffix in _TEXTS):
        (out / _plain(text.name)).write_text(_text(text, wide=wide), encoding="utf-8")
    done: set[str] = set()
    for file in _weights(source):
        with safe_open(file, framework="pt") as opened:
            names = {key: _name(source.name, key, edit) for key in opened.keys()}
        found = {name for name in names.values() if name}
        if found or wide:
            _merge(file, out / _plain(file.name), names, edit, wide=wide)
        else:
            _link(file, out / _plain(file.name))
        done |= found
    return done


def _merge(file: Path, out: Path, names: Mapping[str, str | None], edit: Edit, *, wide: bool) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() or {"format": "pt"}
        tensors = {key: _widened(opened.get_tensor(key), wide) for key in opened.keys()}
    for key, name in names.items():
        if name:
            tensors[key] = edits.edited(tensors[key], name, edit).contiguous()
    save_file(tensors, out, metadata)
    out.chmod(0o644)  # safetensors leaves files that the owner alone can read


def _widened(tensor: Tensor, wide: bool) -> Tensor:
    return tensor.float() if wide and tensor.dtype in _HALF else tensor


def _name(part: str, key: str, edit: Edit) -> str | None:
    """The edit's name of a stored tensor, if it is edited; text encoders are stored with one more level of names."""
    for name in (f"{part}.{key}", f"{part}.{key.removeprefix('text_model.')}"):
        if name in edit.weights or name in edit.deltas:
            return name
    return None


def _weights(part: Path) -> list[Path]:
    """Weight files without a variant such as fp16, if there are any."""
    every = sorted(part.glob("*.safetensors"))
    return [p for p in every if p.name == _plain(p.name)] or every


def _plain(name: str) -> str:
    """The file's name without a variant, so that it loads by itself."""
    return _VARIANT.sub("", name) if ".safetensors" in name else name


def _half(part: Path) -> bool:
    for file in _weights(part):
        with safe_open(file, framework="pt") as opened:
            if any(opened.get_slice(key).get_dtype() in ("F16", "BF16") for key in opened.keys()):
                return True
    return False


def _text(path: Path, *, wide: bool) -> str:
    """A configuration or vocabulary; a stated dtype, and names in a list of shards, follow the weights."""
    text = path.read_text(encoding="utf-8")
    if path.name == "config.json" and wide:
        config = json.loads(text)
        stated = {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
        return json.dumps({**config, **stated}, indent=2) + "\n" if stated else text
    if path.name.endswith(".safetensors.index.json"):
        shards = json.loads(text)
        shards["weight_map"] = {key: _plain(name) for key, name in shards["weight_map"].items()}
        return json.dumps(shards, indent=2) + "\n"
    return text


def _link(file: Path, out: Path) -> None:
    real = file.resolve()  # hub caches hold links
    if real.stat().st_size >= _LINKED:
        try:
            os.link(real, out)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(real, out)
