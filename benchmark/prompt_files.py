"""Prompts from files in the forms that the field passes around: CSV tables of prompts and seeds, and COCO's captions.

A table is known by its columns, and no column is passed over in silence: one that is not known here is refused. Papers
share, with or without a first column that has no name (an index):

- I2P: `prompt,categories,hard,…,lexica_url,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height,sd_model`, or with
  `evaluation_seed,evaluation_guidance` for the seed and the guidance and `case_number` at the end;
- COCO-30k: `case_number,source,prompt,evaluation_seed,coco_id` or `image_id,source,prompt,evaluation_seed`;
- people: `type,prompt,evaluation_seed`, type `erased` or `others`;
- artists: `type,artist,prompt,evaluation_seed`, type `0` (erased) or `1` (kept);
- classes: `case_number,prompt,evaluation_seed,class`.

Prompts are kept to the letter: blanks and line breaks at their ends belong to them, and one may be empty.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmark import data_files
from benchmark.errors import BadInput
from benchmark.untrusted import parse_json, read_bytes

FileRole = Literal["erased", "kept"]

_ROLES: Mapping[str, FileRole] = {"erased": "erased", "0": "erased", "others": "kept", "1": "kept"}
_MEANING = {
    "prompt": "prompt",
    "evaluation_seed": "seed",
    "sd_seed": "seed",
    "evaluation_guidance": "guidance",
    "sd_guidance_scale": "guidance",
    "sd_image_width": "width",
    "sd_image_height": "height",
    "case_number": "case",
    "coco_id": "image",
    "image_id": "image",
    "type": "role",
    "artist": "concept",
    "class": "concept",
    "categories": "categories",
    "nudity_percentage": "nudity",
}
"""Column to what it says of a prompt; two that say the same are never in one file."""
_UNUSED = (
    "hard",
    "inappropriate_percentage",
    "q16_percentage",
    "sd_safety_percentage",
    "prompt_toxicity",
    "lexica_url",
    "sd_model",
    "source",
)
_INDEX = ("", "Unnamed: 0")
COLUMNS = (*_MEANING, *_UNUSED)
"""The columns that may be there, apart from an index at the front."""
_MOST_SEED = 2**63


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """A prompt with the seed that its file gives it, and what else the file says."""

    prompt: str
    seed: int
    role: FileRole | None = None
    """None where the file names no type: the suite says what its prompts are for."""
    concept: str = ""
    guidance: float | None = None
    """Scale of classifier-free guidance of the row's own."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, of the row's own."""
    case: int
    """`case_number`, or else the row's position, from 0; once in a file."""
    image: int | None = None
    """COCO's id of the image that the prompt describes."""
    categories: tuple[str, ...] = ()
    """I2P's: hate, harassment, violence, self-harm, sexual, shocking, illegal activity."""
    nudity: float | None = None
    """I2P's share of ten images of Stable Diffusion 1.4 with nudity, in percent."""


def load(dataset: str, file: str = "prompts", path: Path | None = None) -> tuple[PromptRow, ...]:
    """The prompts of a dataset's file, from `path` or where `data_files.find` finds it, whose errors it raises too.

    Of captions, one of every image: see `from_captions`.
    """
    what = data_files.wanted(dataset, file)
    if what.file.kind not in ("prompts", "captions"):
        raise BadInput(f"{what.name}: expected prompts or captions, its card says {what.file.kind}")
    found = data_files.find(what, path)
    return read(found) if what.file.kind == "prompts" else from_captions(read_captions(found))


def read(path: Path) -> tuple[PromptRow, ...]:
    """Read a CSV of prompts; `BadInput` names the file and the line of what cannot be used."""
    found = tuple(_rows(path))
    if not found:
        raise BadInput(f"{path}: no prompt in it")
    cases: set[int] = set()
    for row in found:
        if row.case in cases:
            raise BadInput(f"{path}: case_number {row.case} is there twice")
        cases.add(row.case)
    return found


def _rows(path: Path) -> Iterator[PromptRow]:
    try:
        lines = csv.reader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""), strict=True)
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        columns = _columns(path, next(lines, []))
        for position, fields in enumerate(line for line in lines if line):
            where = f"{path}, line {lines.line_num}"
            if len(fields) != len(columns):
                raise BadInput(f"{where}: expected {len(columns)} fields, got {len(fields)}")
            yield _row(where, position, dict(zip(columns, fields, strict=True)))
    except csv.Error as error:
        raise BadInput(f"{path}, line {lines.line_num}: not a CSV: {error}") from None


def _columns(path: Path, names: Sequence[str]) -> list[str]:
    """What each column says: `seed` for `sd_seed`, and so on."""
    named = list(names[1:] if names and names[0] in _INDEX else names)
    unknown = [name for name in named if name not in COLUMNS]
    if unknown:
        raise BadInput(f"{path}, line 1: unknown column {unknown[0]!r}; known are {', '.join(COLUMNS)}")
    meanings = [_MEANING.get(name, name) for name in named]
    for needed, called in (("prompt", "prompt"), ("seed", "evaluation_seed or sd_seed")):
        if needed not in meanings:
            raise BadInput(f"{path}, line 1: expected a column {called}, found {','.join(names) or 'nothing'}")
    twice = [meaning for meaning in meanings if meanings.count(meaning) > 1]
    if twice:
        both = [name for name in named if _MEANING.get(name, name) == twice[0]]
        raise BadInput(f"{path}, line 1: {' and '.join(both)} say the same ({twice[0]}); keep one")
    if ("width" in meanings) != ("height" in meanings):
        raise BadInput(f"{path}, line 1: expected sd_image_width and sd_image_height, or neither")
    return ["index"] * (len(names) - len(named)) + meanings


def _row(where: str, position: int, fields: Mapping[str, str]) -> PromptRow:
    def whole(name: str, below: int) -> int | None:
        return None if name not in fields else _whole(where, name, fields[name], below)

    seed, case = whole("seed", _MOST_SEED), whole("case", _MOST_SEED)
    width, height = whole("width", 10_000), whole("height", 10_000)
    assert seed is not None  # the header was checked for it
    if "\0" in fields["prompt"]:
        raise BadInput(f"{where}: prompt: a null character; get the file again")
    return PromptRow(
        prompt=fields["prompt"],
        seed=seed,
        role=_role(where, fields["role"]) if "role" in fields else None,
        concept=fields.get("concept", ""),
        guidance=_number(where, "guidance", fields.get("guidance"), 1000),
        size=(width, height) if width is not None and height is not None else None,
        case=position if case is None else case,
        image=whole("image", _MOST_SEED),
        categories=tuple(part.strip() for part in fields.get("categories", "").split(",") if part.strip()),
        nudity=_number(where, "nudity", fields.get("nudity"), 100),
    )


def _whole(where: str, name: str, text: str, below: int) -> int:
    # pandas writes a column of whole numbers as 512.0 once one of them was missing.
    if not re.fullmatch(r"[0-9]{1,19}(\.0)?", text) or int(text.partition(".")[0]) >= below:
        raise BadInput(f"{where}: {name}: expected a whole number from 0 to {below - 1}, got {text!r}")
    return int(text.partition(".")[0])


def _number(where: str, name: str, text: str | None, most: float) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text) or float(text) > most:
        raise BadInput(f"{where}: {name}: expected a number from 0 to {most:g}, got {text!r}")
    return float(text)


def _role(where: str, text: str) -> FileRole:
    if text not in _ROLES:
        raise BadInput(f"{where}: type: expected one of {', '.join(_ROLES)}, got {text!r}")
    return _ROLES[text]


def with_concepts(rows: Iterable[PromptRow], names: Iterable[str]) -> tuple[PromptRow, ...]:
    """The rows with the one of `names` that each prompt holds as whole words, case ignored: tables of people have none.

    Of names inside one another the longest counts. `BadInput` if a prompt holds none or several.
    """
    known = sorted(set(names), key=lambda name: (-len(name), name))
    folded = {name.casefold(): name for name in known}
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in folded))
    found = []
    for row in rows:
        there = sorted(set(pattern.findall(row.prompt.casefold()))) if folded else []
        if len(there) != 1:
            several = f"several of them ({', '.join(folded[n] for n in there)})" if there else "none of them"
            raise BadInput(f"case {row.case}: expected one of {len(known)} names in {row.prompt!r}, found {several}")
        found.append(replace(row, concept=folded[there[0]]))
    return tuple(found)


# --- captions -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Caption:
    """One caption of one image of COCO."""

    image: int
    id: int
    text: str
    file_name: str


def read_captions(path: Path) -> tuple[Caption, ...]:
    """Read COCO's JSON of captions (`captions_val2014.json`), in the file's order; `BadInput` for another form."""
    try:
        content = parse_json(read_bytes(path))
        files = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        found = tuple(_caption(path, a, files) for a in content["annotations"])
    except ValueError as error:
        raise BadInput(f"{path}: cannot be read as JSON: {error}") from None
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        expected = "images with id and file_name, annotations with id, image_id and caption"
        raise BadInput(f"{path}: expected COCO's {expected}; {type(error).__name__}: {error}") from None
    if len({caption.id for caption in found}) < len(found) or not found:
        raise BadInput(f"{path}: " + ("an annotation's id is there twice" if found else "no caption in it"))
    return found


def _caption(path: Path, annotation: Mapping[str, Any], files: Mapping[int, str]) -> Caption:
    if "caption" not in annotation:
        raise BadInput(f"{path}: its annotations have no caption; expected captions_*.json, not instances_*.json")
    image = int(annotation["image_id"])
    if image not in files:
        raise BadInput(f"{path}: annotation {annotation['id']} is of image {image}, which is not in the file")
    return Caption(image, int(annotation["id"]), str(annotation["caption"]), files[image])


def from_captions(captions: Iterable[Caption], count: int | None = None, seed: int = 0) -> tuple[PromptRow, ...]:
    """`count` prompts, each the caption of lowest id of another image; one of every image if it is left out.

    Images come in the order of SHA-256 of `<seed>|<image id>`, so that a smaller draw is the start of a larger one; its
    first four bytes are the prompt's seed. Harness default, for where a published selection is not at hand.
    """
    first: dict[int, Caption] = {}
    for caption in captions:
        known = first.setdefault(caption.image, caption)
        if caption.id < known.id:
            first[caption.image] = caption
    if count is not None and not 0 < count <= len(first):
        raise BadInput(f"expected 1 to {len(first)} prompts, one an image; got {count}")
    drawn = sorted((hashlib.sha256(f"{seed}|{image}".encode()).digest(), image) for image in first)
    return tuple(
        PromptRow(prompt=first[image].text, seed=int.from_bytes(digest[:4], "big"), case=position, image=image)
        for position, (digest, image) in enumerate(drawn[:count])
    )
