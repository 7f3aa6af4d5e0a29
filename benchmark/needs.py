"""What a suite needs on a model, and what of it is here: packages, weights, files, real images, room on the disk.

One list, of which doctor makes a table and `run` and `fetch` what is missing. No torch; nothing is downloaded.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmark import data_files, image_folders, models
from benchmark.data_files import Wanted
from benchmark.errors import BadInput, BenchError, Missing
from benchmark.metrics import accuracy, evaluators, weights
from benchmark.metrics.protocols import protocol
from benchmark.metrics.weights import Weights
from benchmark.suite import Form, requests
from benchmark.untrusted import parse_json, read_bytes

Kind = Literal["model", "package", "judge", "data", "real images"]
State = Literal["here", "missing", "damaged"]


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that a run cannot do without."""

    kind: Kind
    name: str
    """What it is: `sd14`, `nudenet==3.4.2`, `openai/clip-vit-base-patch32`, `i2p/prompts`."""
    used_by: str
    """The judge that needs it; "" for models and data."""
    state: State
    where: str
    """Where it is; if it is missing, where it was looked for; if it is damaged, what is wrong with it."""
    size: int | None = None
    """Bytes; None: not recorded."""
    licence: str | None = None
    revision: str = ""
    """Commit that it is taken at; "" for what is on no hub, and where none is pinned."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """File to its recorded hash, or the first digits of it."""
    get: str = ""
    """How to get it."""
    fetchable: bool = False
    """Whether `erasure-bench fetch` does."""

    @property
    def here(self) -> bool:
        return self.state == "here"

    @property
    def checksum(self) -> str:
        """What its bytes are checked against, in short."""
        parts = [f"commit {self.revision[:12]}"] if self.revision else []
        parts += [f"sha256 {digest[:12]}" for digest in dict.fromkeys(self.sha256.values())]
        return ", ".join(parts) or "not recorded"


# --- of a suite ---------------------------------------------------------------------------------------------------
def of(form: Form, model: str) -> tuple[Need, ...]:
    """All that a suite's form needs on a model, each once: the model, its judges with what they need, its files."""
    judges = dict.fromkeys(protocol(name).evaluator for name in form.protocols)
    found = [of_model(model), *(need for judge in judges for need in of_judge(judge, form))]
    files = [of_file(what) for what in data_files.named_in(form.model_dump(mode="json"))]
    return tuple({(n.kind, n.name, n.used_by): n for n in [*found, *files]}.values())


def lacking(needs: Iterable[Need]) -> list[Need]:
    """Those that are not here, or not what they should be."""
    return [need for need in needs if not need.here]


# --- one by one ---------------------------------------------------------------------------------------------------
def of_model(name: str) -> Need:
    """The weights of a model, by name or as a folder."""
    spec = models.describe(name)
    common: dict[str, Any] = {
        "kind": "model",
        "name": spec.name,
        "used_by": "",
        "size": spec.size,
        "licence": spec.licence,
        "revision": spec.revision,
        "fetchable": bool(spec.hub),
        "get": f"erasure-bench fetch SUITE --model {spec.name}, or a folder in ${models.ENVIRONMENT}"
        if spec.hub
        else models.TRAINING.get(spec.name, ""),
    }
    lack = models.missing(name)
    if lack is not None:
        return Need(state="missing", where=str(lack["where"]), **common)
    return Need(state="here", where="made in code" if spec.built_in else str(models.resolve(name)), **common)


def of_judge(judge: str, form: Form | None = None) -> tuple[Need, ...]:
    """Packages, weights and real images of an evaluator. Real images are the form's own, where it names them."""
    spec = evaluators.spec_of(judge)
    found = [_package(p, judge, spec.install) for p in spec.packages]
    found += [_weights(w, judge) for w in spec.sources] if spec.sources else [_shipped(judge)]
    if spec.compares and (form is None or form.reference is None):
        found.append(_real_images(judge))
    return tuple(found)


def _package(package: str, judge: str, install: str) -> Need:
    state: State = "here" if evaluators.installed(package) else "missing"
    where = ", ".join(f"{n} {v}" for n in package.split("|") if (v := _version(n.partition("==")[0])))
    return Need(
        kind="package", name=package, used_by=judge, state=state, where=where or "this environment", get=install
    )


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _weights(w: Weights, judge: str) -> Need:
    state, where = _found(w)
    return Need(
        kind="judge",
        name=w.hub or w.url or w.package or w.name,
        used_by=judge,
        state=state,
        where=where,
        size=w.size,
        licence=w.licence,
        revision=w.revision,
        sha256=dict(w.sha256),
        get=weights.how(w),
        fetchable=w.fetchable,
    )


def _found(w: Weights) -> tuple[State, str]:
    try:
        folder = weights.find(w)
        weights.digest(w, folder)
    except Missing:
        return "missing", weights.where(w)
    except BenchError as error:  # other bytes than promised
        return "damaged", str(error)
    return "here", str(folder)


def _shipped(judge: str) -> Need:
    spec = evaluators.spec_of(judge)
    text = evaluators.missing(judge)
    return Need(
        kind="judge",
        name=judge,
        used_by=judge,
        state="missing" if text else "here",
        where=str(spec.weights),
        licence="see its MODEL_CARD.md",
        get=spec.needs,
    )


def _real_images(judge: str) -> Need:
    common: dict[str, Any] = {"kind": "real images", "name": "real images to compare with", "used_by": judge}
    get = f"set {evaluators.REFERENCE} to their folder"
    try:
        return Need(state="here", where=str(evaluators.reference_folder(judge)), get=get, **common)
    except Missing:
        return Need(state="missing", where=f"${evaluators.REFERENCE}", get=get, **common)


def of_file(what: Wanted) -> Need:
    """One of a data set's files that are not shipped."""
    file = what.file
    own = f", or set {file.env} to where it is" if file.env else ""
    by_hand = file.by_hand or "erasure-bench fetch SUITE"
    common: dict[str, Any] = {
        "kind": "data",
        "name": what.name,
        "used_by": "",
        "size": file.size,
        "licence": file.licence,
        "revision": file.revision or "",
        "sha256": {file.file: file.sha256} if file.sha256 else {},
        "get": f"{by_hand}{own}",
        "fetchable": what.fetchable,
    }
    try:
        lack = data_files.missing(what)
    except BenchError as error:
        return Need(state="damaged", where=str(error), **common)
    if lack is None:
        return Need(state="here", where=str(data_files.find(what)), **common)
    return Need(state="missing", where=str(lack["where"]), **common)


def verified(need: Need) -> Need:
    """The need; damaged if it is a folder of images that are not those of the `SHA256SUMS` in it. All are read."""
    folder = Path(need.where)
    if need.kind != "data" or not need.here or not (folder / data_files.MANIFEST).is_file():
        return need
    try:
        image_folders.verify(folder)
    except BenchError as error:
        return replace(need, state="damaged", where=str(error))
    return need


# --- classes ------------------------------------------------------------------------------------------------------
def misfits(form: Form) -> list[str]:
    """Classifiers that are here and do not know a concept that they shall judge: found out before hours of images.

    One line each, with the nearest class and how to map the name.
    """
    asked = dict.fromkeys(c.name for r in requests(form) for c in (*r.erase, *r.keep, *r.adjacent))
    judges = dict.fromkeys(protocol(name).evaluator for name in form.protocols)
    return [text for judge in judges if (text := _misfit(judge, list(asked)))]


def _misfit(judge: str, concepts: Sequence[str]) -> str:
    spec = evaluators.spec_of(judge)
    if not spec.target.endswith(":FolderClassifier"):
        return ""
    try:
        folder = weights.find(spec.sources[-1])
    except Missing:
        return ""
    names = accuracy.class_names(_json(folder / "config.json"))
    given = _json(folder / "classes.json") if (folder / "classes.json").is_file() else {}
    try:
        if names:  # without names it is CIFAR-10's judge, or refused when it is loaded
            accuracy.matched(concepts, names, given)
    except BadInput as error:
        return f"{judge}: {error}; map it in {folder / 'classes.json'}: {{concept: class}}"
    return ""


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(read_bytes(path)))
    except (BenchError, ValueError, TypeError):
        return {}  # said when it is loaded


# --- room ---------------------------------------------------------------------------------------------------------
def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that the folder is on, or would be."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free
