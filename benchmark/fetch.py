"""Getting weights and data files from where they lie: only when asked for, only formats that run no code.

What comes from a hub is taken at the commit that the table pins, and its bytes are compared with that commit's own
hashes; what has an address of its own is compared with its recorded SHA-256, or, where there is none, its hash is
written down beside it, so that a later change is seen. A pickle is fetched only where its SHA-256 is recorded.
"""

from __future__ import annotations

import hashlib
import shutil
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from benchmark import atomic, data_files, models, paths
from benchmark.data_files import Wanted
from benchmark.errors import BadInput, BenchError, Damaged, Missing
from benchmark.inert import redacted
from benchmark.metrics import evaluators, weights
from benchmark.metrics.protocols import protocol
from benchmark.metrics.weights import Weights
from benchmark.plan import Plan, lacks, missing

PATTERNS = ("model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
"""What a diffusers folder needs; pickles (.bin, .ckpt, .pt) stay away, and so do whole checkpoints beside its parts."""
LEFT_OUT = ("safety_checker/*", "feature_extractor/*", "*.fp16.*", "*.non_ema.*", "*.ema.*")
"""What of it is not loaded: other variants of the weights, and parts that no image depends on here."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

Download = Callable[[str, Sequence[str], str], str]
"""Hub id, patterns and commit to the local folder."""
Get = Callable[[Wanted], Path]
"""A data file to where it now is."""
GetWeights = Callable[[Weights], Path]
"""A judge's weights to the folder that they now are in."""


class Published(NamedTuple):
    """What a hub says of a repository at a revision."""

    commit: str
    files: tuple[str, ...]


def fetch(
    plan: Plan, *, download: Download | None = None, get: Get | None = None, judge: GetWeights | None = None
) -> list[str]:
    """Get what the plan lacks and can be had; returns the folders and files. Missing, with the list, of what is left.

    Data files and judges come first: they are small, and where one cannot be had, gigabytes of weights would be of no
    use.
    """
    files = [str((get or data_file)(what)) for what in _lacks_files(plan) if what.fetchable]
    judges = [str((judge or judge_weights)(w)) for _, w in _lacks_judges(plan)]
    folders = [_model(plan, download or snapshot)] if _lacks_model(plan) else []
    if left := _lacks(plan):
        raise Missing("this takes hands, no address gives it: " + "; ".join(map(_left, left)))
    return folders + judges + files


def enough(plan: Plan) -> bool:
    """Whether all that the plan lacks can be had: else gigabytes would arrive and nothing could run."""
    can = [_lacks_model(plan), *(data_files.missing(what) for what in _lacks_files(plan) if what.fetchable)]
    can += [_plain(gone) for judge, w in _lacks_judges(plan) if (gone := evaluators.lack_of(judge, w))]
    wanted = _lacks(plan)
    return bool(wanted) and all(one in can for one in wanted)


def _plain(lack: dict[str, Any]) -> dict[str, Any]:
    """As a plan tells of it."""
    return {name: lack[name] for name in ("what", "where", "size", "licence")}


def _lacks_judges(plan: Plan) -> list[tuple[str, Weights]]:
    """Judges and those of their weights that are not here and can be fetched."""
    judges = dict.fromkeys(protocol(name).evaluator for name in plan.form.protocols)
    sources = [(judge, w) for judge in judges if lacks(judge, plan.form) for w in evaluators.spec_of(judge).sources]
    return [(judge, w) for judge, w in sources if w.fetchable and weights.lack(w)]


def _lacks(plan: Plan) -> list[dict[str, Any]]:
    """What the plan needs and this machine lacks, data files too, each once."""
    found = missing(plan)
    files = [one for what in _lacks_files(plan) if (one := data_files.missing(what))]
    return found + [one for one in files if one not in found]


def _lacks_files(plan: Plan) -> list[Wanted]:
    return [what for what in data_files.named_in(plan.form.model_dump()) if data_files.missing(what)]


def _left(lack: dict[str, Any]) -> str:
    return f"{lack['what']} ({lack['where']})"


def _lacks_model(plan: Plan) -> dict[str, Any] | None:
    return models.missing(str(plan.model.folder or plan.model.name))


def _model(plan: Plan, download: Download) -> str:
    if not plan.model.hub:
        raise BadInput(f"{plan.model.name} is on no hub; {_lacks_model(plan)}")
    return download(plan.model.hub, PATTERNS, plan.model.revision)


def snapshot(hub: str, patterns: Sequence[str], revision: str = "") -> str:
    """Download into the hub's own cache, at a commit if one is named, and check what came.

    Missing, in one line, if the hub cannot be reached or refuses; Damaged if other bytes came than it promised.
    """
    from huggingface_hub import snapshot_download

    try:
        place = snapshot_download(
            hub,
            allow_patterns=list(patterns),
            ignore_patterns=list(LEFT_OUT),
            revision=revision or None,
            cache_dir=paths.hub_cache(),
        )
    except Exception as error:  # the library raises many kinds: network, gated, not found
        raise _refused(hub, error) from None
    folder = Path(str(place))
    check_blobs(p for p in folder.rglob("*") if p.is_file())
    return str(folder)


def _refused(hub: str, error: Exception) -> Missing:
    hint = "accept its licence there, log in, or give a local folder"
    return Missing(f"cannot download {hub}: {_first_line(error)}; {hint}")


def _first_line(error: Exception) -> str:
    """What went wrong, without tokens."""
    return redacted(str(error).splitlines()[0] if str(error) else type(error).__name__)


def check_blobs(files: Iterable[Path]) -> None:
    """Damaged, with the file's name, unless files of the hub's cache hold the bytes whose hash they are kept under.

    There a file is a link to one named by its content: SHA-256 of large ones, git's SHA-1 of the others. So this is
    what the commit promises. Files that are no such links (copies, on systems without links) are passed over.
    """
    for file in files:
        name = file.resolve().name
        if file.is_symlink() and name != _hash_like(file, name):
            raise Damaged(f"{file}: other bytes came than its hub promises; remove {file.resolve()} and fetch again")


def _hash_like(path: Path, name: str) -> str:
    """The file's hash in the form that the name has; the name itself where it is no hash."""
    if len(name) == 64:
        return data_files.sha256(path)
    if len(name) == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return name


# --- judges -----------------------------------------------------------------------------------------------------------
def judge_weights(w: Weights) -> Path:
    """Download a judge's weights, pinned and checked; the folder that they are then found in.

    Missing, in one line, if they cannot be reached, or are a pickle of which no SHA-256 is recorded; Damaged if other
    bytes came than the table promises.
    """
    folder = _judge_from_hub(w) if w.hub else _judge_from_url(w)
    weights.digest(w, folder)  # Damaged, if it is not what it should be
    return folder


def _judge_from_hub(w: Weights) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        there = published(w.hub, w.revision)
        names = [_choice(w, file, there.files) for file in w.files]
        names += [file for file in w.optional if file in there.files]
        cache = paths.hub_cache()
        files = [Path(hf_hub_download(w.hub, n, revision=there.commit, cache_dir=cache)) for n in names]
    except BenchError:
        raise
    except Exception as error:  # as above: many kinds
        raise _refused(w.hub, error) from None
    check_blobs(files)
    return files[0].parents[len(PurePosixPath(names[0]).parts) - 1]


def published(hub: str, revision: str = "") -> Published:
    """The commit and the files of a repository; of `main` where no revision is named."""
    from huggingface_hub import HfApi

    told = HfApi().model_info(hub, revision=revision or None)
    return Published(str(told.sha), tuple(s.rfilename for s in told.siblings or ()))


def _choice(w: Weights, file: str, there: Sequence[str]) -> str:
    """Which of `a|b` is taken; Missing if none is there, or only a pickle of which no hash is recorded."""
    named = [name for name in file.split("|") if name in there]
    safe = [n for n in named if PurePosixPath(n).suffix not in PICKLES or n in w.sha256]
    if not safe:
        why = f"only as a pickle without a recorded SHA-256 ({named[0]})" if named else "not there"
        raise Missing(f"{w.hub} has {file} {why}; convert it, and put it into {weights.home(w)}")
    return safe[0]


def _judge_from_url(w: Weights) -> Path:
    folder = weights.home(w)
    place = folder / PurePosixPath(w.url).name
    expected = w.sha256.get(place.name, "")
    if not expected and place.suffix in PICKLES:
        raise Missing(f"{w.url} is a pickle, and no SHA-256 of it is recorded; put it into {folder} if you trust it")
    try:
        with atomic.file(place) as temporary:
            _download(w.url, temporary)
            if not (found := data_files.sha256(temporary)).startswith(expected):
                raise Damaged(f"{w.url}: expected SHA-256 {expected}, got {found}; nothing of it is kept")
    except OSError as error:
        raise Missing(f"cannot download {w.url}: {_first_line(error)}; put it into {folder}") from None
    data_files.promise(place)
    return folder


# --- data files -------------------------------------------------------------------------------------------------------


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
    try:
        with atomic.file(place) as temporary:
            _download(what.file.url, temporary)
            if what.file.sha256:
                data_files.check(temporary, what.file.sha256)
    except OSError as error:
        raise _unreachable(what, error) from None
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
    own = f", or set {what.file.env}" if what.file.env else ""
    why = f"cannot download {what.name} from {what.source}: {_first_line(error)}"
    return Missing(f"{why}; put it into {data_files.home(what)}{own}")
