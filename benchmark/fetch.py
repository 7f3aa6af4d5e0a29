"""Getting weights and data files from where they lie: only when asked for, only formats that run no code."""

from __future__ import annotations

import shutil
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark import data_files, models, paths
from benchmark.data_files import Wanted
from benchmark.errors import BadInput, Missing
from benchmark.plan import Plan, missing

PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
"""What a diffusers folder needs; pickles (.bin, .ckpt, .pt) stay away."""

Download = Callable[[str, Sequence[str]], str]
"""Hub id and patterns to the local folder."""
Get = Callable[[Wanted], Path]
"""A data file to where it now is."""


def fetch(plan: Plan, *, download: Download | None = None, get: Get | None = None) -> list[str]:
    """Get what the plan lacks and can be had; returns the folders and files. Missing, with the list, of what is left.

    Data files come first: they are small, and where one cannot be had, gigabytes of weights would be of no use.
    """
    files = [str((get or data_file)(what)) for what in _lacks_files(plan) if what.fetchable]
    folders = [_model(plan, download or snapshot)] if _lacks_model(plan) else []
    if left := _lacks(plan):
        raise Missing("not on a hub that is known here: " + "; ".join(map(_left, left)))
    return folders + files


def enough(plan: Plan) -> bool:
    """Whether all that the plan lacks can be had: else gigabytes would arrive and nothing could run."""
    can = [_lacks_model(plan), *(data_files.missing(what) for what in _lacks_files(plan) if what.fetchable)]
    lacks = _lacks(plan)
    return bool(lacks) and all(one in can for one in lacks)


def _lacks(plan: Plan) -> list[dict[str, Any]]:
    """What the plan needs and this machine lacks, data files too, each once."""
    lacks = missing(plan)
    files = [one for what in _lacks_files(plan) if (one := data_files.missing(what))]
    return lacks + [one for one in files if one not in lacks]


def _lacks_files(plan: Plan) -> list[Wanted]:
    return [what for what in data_files.named_in(plan.form.model_dump()) if data_files.missing(what)]


def _left(lack: dict[str, Any]) -> str:
    return f"{lack['what']} ({lack['where']})"


def _lacks_model(plan: Plan) -> dict[str, Any] | None:
    return models.missing(str(plan.model.folder or plan.model.name))


def _model(plan: Plan, download: Download) -> str:
    if not plan.model.hub:
        raise BadInput(f"{plan.model.name} is on no hub; {_lacks_model(plan)}")
    return download(plan.model.hub, PATTERNS)


def snapshot(hub: str, patterns: Sequence[str]) -> str:
    """Download into the hub's own cache. Missing, in one line, if the hub cannot be reached or refuses."""
    from huggingface_hub import snapshot_download

    try:
        return str(Path(snapshot_download(hub, allow_patterns=list(patterns))))
    except Exception as error:  # the library raises many kinds: network, gated, not found
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "accept its licence there, log in, or give a local folder"
        raise Missing(f"cannot download {hub}: {first}; {hint}") from None


def data_file(what: Wanted) -> Path:
    """Download one data file; its SHA-256 is checked where the card has one, and written down beside it where not.

    Missing, in one line, if it cannot be reached; Damaged if other bytes came than the card promises.
    """
    if what.file.by_hand:
        raise BadInput(f"{what.name}: {what.file.by_hand}")
    found = _from_hub(what) if what.file.hub else _from_url(what)
    return data_files.find(what, found)


def _from_hub(what: Wanted) -> Path:
    from huggingface_hub import hf_hub_download

    file = what.file
    try:
        cache = paths.hub_cache()
        place = hf_hub_download(file.hub, file.file, repo_type="dataset", revision=file.revision, cache_dir=cache)
    except Exception as error:  # as above: many kinds
        raise _unreachable(what, error) from None
    return Path(place)


def _from_url(what: Wanted) -> Path:
    place = data_files.home(what)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{uuid.uuid4().hex}")
    try:
        _download(what.file.url, temporary)
        if what.file.sha256:
            data_files.check(temporary, what.file.sha256)
        temporary.replace(place)
    except OSError as error:
        raise _unreachable(what, error) from None
    finally:
        temporary.unlink(missing_ok=True)
    if not what.file.sha256:
        data_files.promise(place)
    return place


def _download(url: str, place: Path) -> None:
    with urllib.request.urlopen(url, timeout=60) as answer, place.open("xb") as file:
        shutil.copyfileobj(answer, file)
        expected = answer.headers.get("Content-Length")
    if expected is not None and int(expected) != place.stat().st_size:
        raise OSError(f"{place.stat().st_size} of {expected} bytes arrived")


def _unreachable(what: Wanted, error: Exception) -> Missing:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    own = f", or set {what.file.env}" if what.file.env else ""
    return Missing(f"cannot download {what.name} from {what.source}: {first}; put it into {data_files.home(what)}{own}")
