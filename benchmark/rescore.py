"""Further protocols for a run that is done: from stored raw outputs, or stored images where a judge is new.

Nothing is generated. The run's own folder stays as it is: records and boards with the new columns come beside it, all
or nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmark import atomic, data_files, image_folders, keeping, keys, prompt_files, record, scoring
from benchmark.errors import BadInput, Damaged, Missing
from benchmark.metrics import evaluators, protocols, rules, summary
from benchmark.metrics.balance import headline
from benchmark.metrics.evaluators import Array, Evaluator
from benchmark.store import Store
from benchmark.tables import board
from benchmark.untrusted import arrays
from benchmark.verify import seal

Record = dict[str, Any]
Place = tuple[str, str, int]
"""Images key, shard and row of an image in the store."""
RAW = "raw.safetensors"


def rescore(
    run: Path,
    names: Sequence[str],
    *,
    primary: str | None = None,
    out: Path | None = None,
    store: Path | None = None,
    say: Callable[[str], object] = print,
) -> Path:
    """Records and boards of `run` with the protocols in `names` added, written to `out` (by default beside it).

    `primary` makes one of them, or one that is there already, fill `acc_*` and the headline. Columns of other protocols
    stay as they are. Returns the folder. BadInput for an unknown protocol, two that one column would have to hold, and
    an `out` that exists; Missing if images, raw outputs or a judge are not here.
    """
    out = out or run.with_name(f"{run.name}-rescored")
    if out.exists():
        raise BadInput(f"{out} exists; name another folder with --out, or remove it")
    if not (run / "records").is_dir():
        raise BadInput(f"{run} is not the folder of a run: it has no records/; give the --out of `erasure-bench run`")
    records = [dict(r) for r in board.read_records(run)]
    _check(records, names, primary)
    found = Stored(Store(store or run / "store"), say)
    made = [rescored(r, records, names, primary, found) for r in records]
    _write([record.parse(r) for r in made], run, out)
    return out


def _check(records: Sequence[Record], names: Sequence[str], primary: str | None) -> None:
    """BadInput unless the protocols are known, differ, and can stand in one table with what is there."""
    if not names and primary is None:
        raise BadInput("expected at least one protocol; `erasure-bench list` names them")
    for name in names:
        protocols.protocol(name)
    if len(set(names)) < len(names):
        raise BadInput(f"--protocol: {next(n for n in names if names.count(n) > 1)} is given twice")
    kept = primary or protocols.unmixed([r["primary"] for r in records], "acc_*")
    known = {p for r in records for p in r["protocols"]} | set(names)
    if any(r["status"] == "ok" for r in records) and kept not in known:
        raise BadInput(f"--primary: {kept} is not among the run's protocols or those given")
    for r in records if primary is None else ():
        _same_headline(r, names)
    if protocols.protocol(kept).scope != "image":
        raise BadInput(f"--primary: {kept} gives no value for single images, so that no accuracy follows from it")


def _same_headline(r: Record, names: Sequence[str]) -> None:
    """BadInput that names both protocols if the headline would be of another one than it was."""
    if r["status"] != "ok" or r["headline"] is None:
        return
    h, values = headline(r["headline"]), r["rows"]["values"]
    before = summary.source(r["rows"], r["primary"], h)
    after = summary.source({**r["rows"], "values": {**values, **{n: [] for n in names}}}, r["primary"], h)
    if before is not None and after is not None:
        protocols.unmixed([before, after], f"the headline {h.id}")


# --- one record -------------------------------------------------------------------------------------------------------
def rescored(r: Record, records: Sequence[Record], names: Sequence[str], primary: str | None, found: Stored) -> Record:
    """The record with the protocols in `names` scored from stored raw outputs, those that it has already included."""
    primary = primary or r["primary"]
    if r["status"] != "ok":
        return {**r, "primary": primary}
    base = next((b for b in records if _is_base(b) and b["request"]["name"] == r["request"]["name"]), None)
    own = _scored(r, base, names, primary, found)
    if base is not None:
        theirs = own if base is r else _scored(base, base, names, primary, found)
        own = {**own, "summary": summary.with_unedited(own["summary"], theirs["summary"])}
    by = {name: _part(name, r, found) for name in names}
    told = {name: rules.rule(protocols.protocol(name)) for name in names}
    made = {**r, **own, "primary": primary, "protocols": {**r["protocols"], **by}}
    return {**made, "rules": {**r["rules"], **told}}


def _is_base(r: Record) -> bool:
    return bool(r["status"] == "ok" and r["method"]["role"] == "baseline")


def _scored(r: Record, base: Record | None, names: Sequence[str], primary: str, found: Stored) -> dict[str, Any]:
    """The record's rows and summary with the new protocols; distances that it has already keep their numbers."""
    source = _RecordSource(r, base, found)
    told = [p for p in r["protocols"] if p not in names and protocols.protocol(p).scope != "set"]
    rows = {k: list(v) if k != "values" else {p: list(c) for p, c in v.items()} for k, v in r["rows"].items()}
    if primary in told:  # what its images could not be scored by
        rows["valid"] = _valid(r, primary, source)
    made = scoring.scored(rows, names=names, primary=primary, headline=r["headline"], source=source, told=told)
    # keys in the order in which a run's store gives them back, so that the same scores are the same bytes
    return dict(json.loads(keys.canonical({**made, "summary": _with_distances(made["summary"], r, names)})))


def _valid(r: Record, primary: str, source: _RecordSource) -> list[bool]:
    if primary == r["primary"]:
        return list(r["rows"]["valid"])
    judge = source.judge(protocols.protocol(primary).evaluator)
    valid = protocols.score(
        primary, source.raw(judge.id), r["rows"]["concept"], r["rows"]["prompt"], judge, source.given(judge)
    ).valid
    return [bool(v) for v in valid]


def _with_distances(made: dict[str, Any], r: Record, names: Sequence[str]) -> dict[str, Any]:
    """The summary with the distances that the record has, which do not follow from rows."""
    before, out = r["summary"], {k: dict(v) if isinstance(v, dict) else v for k, v in made.items()}
    for column in before["metrics"]:
        p = protocols.protocol(column)
        if p.scope == "set" and p.id not in names:
            out["metrics"][column] = before["metrics"][column]
            out["metrics_ci"][column] = before["metrics_ci"][column]
            if column in before["reasons"]:
                out["reasons"][column] = before["reasons"][column]
    return out


def _part(name: str, r: Record, found: Stored) -> dict[str, Any]:
    """What the record says of a protocol."""
    p = protocols.protocol(name)
    return {"version": p.version, "evaluator": p.evaluator, "evaluator_hash": found.weights(p.evaluator, r)}


class _RecordSource:
    """Raw outputs of one record's images."""

    def __init__(self, r: Record, base: Record | None, found: Stored) -> None:
        self.record, self.base, self.found = r, base, found
        self._raws: dict[str, Mapping[str, Array]] = {}

    def judge(self, evaluator: str) -> Evaluator:
        return self.found.judge(evaluator)

    def raw(self, evaluator: str) -> Mapping[str, Array]:
        if evaluator not in self._raws:
            self._raws[evaluator] = self.found.raw(self.record, self.judge(evaluator))
        return self._raws[evaluator]

    def pairs(self, evaluator: str) -> Mapping[str, Array]:
        judge = scoring.load_pair_or_refuse(evaluator, self.base is not None)
        assert self.base is not None
        pairs = zip(self.base["rows"]["prompt"], self.base["rows"]["seed"], strict=True)
        theirs = dict(zip(pairs, self.base["rows"]["image"], strict=True))
        mine = self.record["rows"]
        rows = [
            judge.pairs(self.found.image(digest), self.found.image(theirs[prompt, seed]))
            for digest, prompt, seed in zip(mine["image"], mine["prompt"], mine["seed"], strict=True)
        ]
        return {k: np.concatenate([row[k] for row in rows]) for k in rows[0]} if rows else {}

    def reference(self, evaluator: str, role: str) -> Array:
        judge = self.judge(evaluator)
        if role == "general" and self.record["reference"] is not None:
            return self.found.reference(judge, self.record["reference"])
        return judge.reference(self.record["request"]["keep"] if role == "kept" else [])

    def given(self, judge: Evaluator) -> protocols.Given:
        request, known = self.record["request"], None
        names = [*(c["name"] for c in request["erase"]), *request["keep"], *request["adjacent"]]
        if self.base is not None and scoring.needs_gallery(judge):
            known = protocols.Unedited(self.found.raw(self.base, judge), self.base["rows"]["concept"])
        return protocols.Given(tuple(dict.fromkeys(names)), known)


# --- what is stored ---------------------------------------------------------------------------------------------------
class Stored:
    """Images and raw outputs of a store, found by the hashes of the images' pixels.

    With a store that is read only, raw outputs that are not there are Missing; else they are made and stored.
    """

    def __init__(self, store: Store, say: Callable[[str], object]) -> None:
        self.store, self.say = store, say
        self._judges: dict[str, Evaluator] = {}
        self._places = dict(self._listed())
        self._features: dict[tuple[str, str], Array] = {}
        self._hashes: dict[tuple[str, str], str] = {}  # of judges' weights: megabytes, asked for in every record

    def _listed(self) -> list[tuple[str, Place]]:
        found: list[tuple[str, Place]] = []
        folder = self.store.root / keys.IMAGES
        for key in sorted(p.name for p in folder.iterdir()) if folder.is_dir() else ():
            for shard in self.store.children(keys.IMAGES, key):
                try:
                    entries = keys.parse_items(self.store.read(keys.IMAGES, key, shard, file="items.json"))
                except Damaged as error:
                    self.say(str(error))
                    continue
                found += [(e["sha256"], (key, shard, row)) for row, e in enumerate(entries)]
        return found

    def judge(self, evaluator: str) -> Evaluator:
        if evaluator not in self._judges:
            self._judges[evaluator] = evaluators.load(evaluator)
        return self._judges[evaluator]

    def raw(self, r: Record, judge: Evaluator) -> dict[str, Array]:
        """A judge's raw outputs of a record's images, one row each."""
        wanted: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for at, digest in enumerate(r["rows"]["image"]):
            key, shard, row = self._place(digest)
            wanted.setdefault((key, shard), []).append((at, row))
        rows: dict[str, Array] = {}
        for (key, shard), pairs in wanted.items():
            raw = _loaded(self._raw(key, shard, judge), f"{judge.id} for {key}/{shard}")
            for name, values in raw.items():
                if name not in rows:
                    rows[name] = np.zeros((len(r["rows"]["image"]), *values.shape[1:]), values.dtype)
                rows[name][[at for at, _ in pairs]] = values[[row for _, row in pairs]]
        return rows

    def _place(self, digest: str) -> Place:
        if digest not in self._places:
            raise Missing(
                f"image {digest} of the records is not in {self.store.root}; name the run's store with --store"
            )
        return self._places[digest]

    def _raw(self, key: str, shard: str, judge: Evaluator) -> bytes:
        """Stored raw outputs of a shard; made from its images, and stored, where the judge is new."""
        from safetensors.numpy import save

        address = (keys.RAW, keys.raw_key(key, shard, evaluator=judge.id, weights=judge.hash))
        if not self.store.has(*address):
            if self.store.readonly:
                raise Missing(f"{self.store.root} has no raw outputs of {judge.id} for the images of {key}/{shard}")
            self.store.put(*address, files={RAW: save(scoring.judged(judge, self._images(key, shard)))})
        return self.store.read(*address, file=RAW)

    def _images(self, key: str, shard: str) -> NDArray[np.uint8]:
        found = keeping.shard(self.store, key, shard)
        if found is None:
            raise keeping.not_kept(f"images {key}/{shard} in {self.store.root}")
        return found

    def image(self, digest: str) -> NDArray[np.uint8]:
        """One image by its hash, `(1, h, w, 3)`."""
        key, shard, row = self._place(digest)
        found = keeping.found(self.store, key, shard, row, digest)
        if found is None:
            raise keeping.not_kept(f"image {digest} in {self.store.root}")
        return found[None]

    def weights(self, evaluator: str, r: Record) -> str:
        """Of an evaluator's weights and the real images that it compares with, as a run has them in its records."""
        asked = (evaluator, json.dumps(r["reference"], sort_keys=True))
        if asked not in self._hashes:
            self._hashes[asked] = self._hashed(evaluator, r)
        return self._hashes[asked]

    def _hashed(self, evaluator: str, r: Record) -> str:
        named = r["reference"] is not None and evaluators.spec_of(evaluator).compares
        found = evaluators.weights_hash(evaluator, reference=not named)
        both = f"{found}\n{image_folders.digest(_reference_images(r['reference']))}" if named else ""
        return hashlib.sha256(both.encode()).hexdigest() if named else found

    def reference(self, judge: Evaluator, named: Mapping[str, str]) -> Array:
        """The judge's features of the real images that a record names."""
        where = (judge.id, json.dumps(named, sort_keys=True))
        if where not in self._features:
            rows = [judge.raw(image_folders.pixels(i)[None])["features"] for i in _reference_images(named)]
            self._features[where] = np.concatenate(rows).astype(np.float64)
        return self._features[where]


def _loaded(content: bytes, what: str) -> dict[str, Array]:
    try:
        return arrays(content)
    except ValueError as error:
        raise Damaged(f"stored raw outputs of {what} cannot be read: {error}; run again") from None


def _reference_images(named: Mapping[str, str]) -> tuple[image_folders.ImageFile, ...]:
    """The images of a folder of real ones that a file of prompts names, both as `<dataset>/<file>`."""
    (images, folder), (prompts, file) = (named[what].split("/") for what in ("images", "prompts"))
    ids = [row.image for row in prompt_files.load(prompts, file) if row.image is not None]
    return image_folders.of_coco(image_folders.listed(data_files.find(data_files.wanted(images, folder))), ids)


# --- written ----------------------------------------------------------------------------------------------------------
def _write(records: Sequence[record.Record], run: Path, out: Path) -> None:
    """Records, boards and checksums in a folder that appears whole, or not at all."""
    names = [path.name.removesuffix(record.PACKED) for path in record.listed(run / "records")]
    try:
        with atomic.folder(out) as temporary:
            for name, one in zip(names, records, strict=True):
                record.write(temporary / "records" / name, one)
            board.write(board.read_records(temporary), temporary)
            seal(temporary)
    except OSError as error:
        raise BadInput(f"cannot write {out}: {error.strerror or error}; name another folder with --out") from error
