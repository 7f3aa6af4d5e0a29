"""The models that can be erased from: what they are, where their weights are looked for, and their hash. No torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import atomic, keys, paths
from benchmark.errors import BadInput, Missing, did_you_mean
from benchmark.interface import Family
from benchmark.suite import FormName
from benchmark.untrusted import TEXT, parse_json, plain_name, read_bytes

ENVIRONMENT = "ERASURE_BENCH_MODELS"
"""Names a folder with one folder per model."""

_GB = 10**9
_UNET: Family = "unet-epsilon"
_FLOW: Family = "transformer-flow"
_PIPELINES: dict[str, Family] = {"StableDiffusionPipeline": _UNET, "FluxPipeline": _FLOW}
# Parts of a pipeline that neither edits nor images depend on here.
_UNUSED = frozenset({"safety_checker", "feature_extractor", "image_encoder"})
_WEIGHTED = frozenset({"unet", "transformer", "vae", "text_encoder", "text_encoder_2"})
_PLAIN = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
_LARGE = 16 * 2**20  # hashes of files from this size on are remembered


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model by name."""

    name: str
    """As in records: never a path."""
    family: Family
    form: FormName
    """In which size it runs the suites."""
    size: int
    """Bytes of its weights, roughly."""
    licence: str
    hub: str = ""
    """Hub id, for models that have one."""
    revision: str = ""
    """Commit of that repository: what `fetch` gets, and what is taken first where the cache holds several."""
    folder: Path | None = None
    """Given folder, for models that are one."""
    distilled: bool = False
    """Whether guidance was distilled into it: its makers sample it without classifier-free guidance."""
    steps: int | None = None
    """Sampling steps of its makers, for a model that was distilled to few."""

    @property
    def built_in(self) -> bool:
        """Whether it is made in code and has no files."""
        return self.folder is None and self.name.startswith("random-")


_OPENRAIL = "CreativeML OpenRAIL-M"
MODELS: dict[str, ModelSpec] = {
    m.name: m
    for m in (
        ModelSpec(name="testbed", family=_UNET, form="embedded", size=30 * 10**6, licence="see its MODEL_CARD.md"),
        ModelSpec(name="testbed-flux", family=_FLOW, form="embedded", size=13 * 10**6, licence="see its MODEL_CARD.md"),
        ModelSpec(name="random-unet", family=_UNET, form="embedded", size=0, licence="Apache-2.0"),
        ModelSpec(name="random-flux", family=_FLOW, form="embedded", size=0, licence="Apache-2.0"),
        ModelSpec(
            name="sd14",
            family=_UNET,
            form="paper",
            size=int(4.3 * _GB),
            licence=_OPENRAIL,
            hub="CompVis/stable-diffusion-v1-4",
            revision="133a221b8aa7292a167afc5127cb63fb5005638b",
        ),
        ModelSpec(
            name="sd15",
            family=_UNET,
            form="paper",
            size=int(4.3 * _GB),
            licence=_OPENRAIL,
            hub="stable-diffusion-v1-5/stable-diffusion-v1-5",
            revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        ),
        ModelSpec(
            name="sd21",
            family=_UNET,
            form="paper",
            size=int(5.2 * _GB),
            licence="CreativeML Open RAIL++-M",
            hub="stabilityai/stable-diffusion-2-1",
            revision="5cae40e6a2745ae2b01ad92ae5043f95f23644d6",
        ),
        ModelSpec(
            name="flux-dev",
            family=_FLOW,
            form="paper",
            size=34 * _GB,
            licence="FLUX.1 [dev] Non-Commercial License",
            hub="black-forest-labs/FLUX.1-dev",
            revision="3de623fc3c33e44ffbe2bad470d0f45bccf2eb21",
            distilled=True,
        ),
        ModelSpec(
            name="flux-schnell",
            family=_FLOW,
            form="paper",
            size=34 * _GB,
            licence="Apache-2.0",
            hub="black-forest-labs/FLUX.1-schnell",
            revision="741f7c3ce8b383c54771c7003378a50191e9efe9",
            distilled=True,
            steps=4,
        ),
    )
}


def names() -> list[str]:
    """The models that have a name."""
    return sorted(MODELS)


def describe(name: str) -> ModelSpec:
    """A model by name, or a local diffusers folder by its path; `BadInput` for anything else."""
    if name in MODELS:
        return MODELS[name]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _describe_folder(folder.resolve())
    hint = "; or give the path of a diffusers folder"
    if os.sep in name or name.startswith((".", "~")):
        raise BadInput(f"no folder {name}; expected a diffusers folder with model_index.json, or one of {names()}")
    raise BadInput(did_you_mean(name, names(), "model") + hint)


def _describe_folder(folder: Path) -> ModelSpec:
    pipeline = str(index(folder).get("_class_name"))
    try:
        plain_name(folder.name)
    except ValueError as error:
        raise BadInput(f"{folder}: {error}; rename the folder, for records name it") from None
    if pipeline not in _PIPELINES:
        raise BadInput(f"{folder} holds a {pipeline}; expected one of {', '.join(sorted(_PIPELINES))}")
    size = sum(p.stat().st_size for p in _files(folder))
    return ModelSpec(
        # A folder named like a model of the table is not that model: it has neither its presets nor its label.
        name=f"{folder.name}-folder" if folder.name in MODELS else folder.name,
        family=_PIPELINES[pipeline],
        form="paper",
        size=size,
        licence="as given with it",
        folder=folder,
        distilled=_takes_guidance(folder / "transformer" / "config.json"),
    )


def _takes_guidance(config: Path) -> bool:
    """Whether a transformer has guidance as an input, as FLUX.1-dev; what is wrong with the file is told on loading."""
    if not config.is_file():
        return False
    try:
        found = parse_json(read_bytes(config, TEXT))
    except (BadInput, ValueError):
        return False
    return isinstance(found, dict) and found.get("guidance_embeds") is True


def index(folder: Path) -> dict[str, Any]:
    """`model_index.json`: its keys are the folder's parts, which are names and never paths."""
    path = folder / "model_index.json"
    try:
        found = parse_json(read_bytes(path, TEXT))
    except (BadInput, ValueError) as error:
        raise BadInput(f"{folder} is not a diffusers folder: {path.name}: {error}") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path}: expected the parts of a pipeline, found {type(found).__name__}")
    for part in found:
        try:
            plain_name(part)
        except ValueError as error:
            raise BadInput(f"{path}: {error}") from None
    return found


def check_shards(part: Path) -> None:
    """BadInput if a list of shards of this part names a file outside of it: the libraries would follow."""
    for path in sorted(part.glob("*.safetensors.index.json")) if part.is_dir() else ():
        try:
            named = set(parse_json(read_bytes(path))["weight_map"].values())
            for name in named:
                plain_name(name)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: expected a weight_map of files beside it: {error}") from None


# --- where weights are ----------------------------------------------------------------------------------------------
def resolve(name: str) -> Path | None:
    """The diffusers folder of a model, None if it is built in code; `Missing` says where it was looked for."""
    spec = describe(name)
    if spec.built_in:
        return None
    for folder in candidates(spec):
        if (folder / "model_index.json").is_file() and not _absent_parts(folder):
            return folder
    raise Missing(_missing_text(spec))


def candidates(spec: ModelSpec) -> list[Path]:
    """Folders where the model's weights are looked for, in order."""
    if spec.folder is not None:
        return [spec.folder]
    if spec.built_in:
        return []
    base = os.environ.get(ENVIRONMENT)
    if spec.name in paths.EMBEDDED:  # what ships comes first: a name means one model wherever it is there
        return [paths.testbed_weights(spec.name), *([Path(base) / spec.name] if base else [])]
    own = [Path(base) / spec.name, Path(base) / spec.hub.split("/")[-1]] if base else []
    return own + _snapshots(paths.hub_cache() / f"models--{spec.hub.replace('/', '--')}", spec.revision)


def _snapshots(repository: Path, revision: str = "") -> list[Path]:
    """The pinned revision first, then the one that `main` points to, then the others in order of name.

    Any will do: a record holds the hash of the files that were loaded.
    """
    main = repository / "refs" / "main"
    named = [revision, main.read_text().strip() if main.is_file() else ""]
    first = [repository / "snapshots" / name for name in dict.fromkeys(named) if name]
    others = sorted(p for p in (repository / "snapshots").glob("*") if p not in first)
    return first + others


def missing(name: str) -> dict[str, Any] | None:
    """What to get for a model that is not there: `what`, `where`, `size` in bytes, `licence`; None if it is there."""
    try:
        resolve(name)
    except Missing:
        spec = describe(name)
        return {"what": f"weights of {_what(spec)}", "where": _where(spec), "size": spec.size, "licence": spec.licence}
    return None


def _what(spec: ModelSpec) -> str:
    return f"{spec.name} ({spec.hub})" if spec.hub else spec.name


def _where(spec: ModelSpec) -> str:
    if spec.folder is not None:
        return str(spec.folder)
    base = os.environ.get(ENVIRONMENT)
    own = f"{base}/{spec.name}" if base else f"${ENVIRONMENT}/{spec.name} (not set)"
    if spec.name in paths.EMBEDDED:
        return f"{paths.testbed_weights(spec.name)} or {own}"
    return f"{own}, or the hub cache {paths.hub_cache() / ('models--' + spec.hub.replace('/', '--'))}"


TRAINING = {
    "testbed": "`make testbed` trains them anew",
    "testbed-flux": "train them, hours on a CPU, with `make testbed ARGS='borrow t5 flow flow_assemble'`; "
    f"then link or move runs/testbed/weights-flux to ${ENVIRONMENT}/testbed-flux",
}
"""How weights of ours are made that are on no hub."""


def _missing_text(spec: ModelSpec) -> str:
    halves = [f"{c} lacks {', '.join(parts)}" for c in candidates(spec) if c.is_dir() and (parts := _absent_parts(c))]
    get = f"`--model PATH` of a diffusers folder, or download {spec.hub} into the hub cache"
    if not spec.hub:
        get = TRAINING.get(spec.name, "complete the folder")
    return (
        f"no weights of {_what(spec)}: looked in {_where(spec)}"
        + (f"; incomplete: {'; '.join(halves)}" if halves else "")
        + f". About {_size(spec.size)}, licence {spec.licence}. To get them: {get}."
    )


def _size(size: int) -> str:
    return f"{size / _GB:.1f} GB" if size >= _GB / 10 else f"{size / 10**6:.0f} MB"


def _absent_parts(folder: Path) -> list[str]:
    """Parts that the pipeline names but that have no configuration or no weights: a download that stopped."""
    if not (folder / "model_index.json").is_file():
        return ["model_index.json"]
    absent = [p for p in _parts(folder) if not any((folder / p).glob("*.json"))]
    return absent + [p for p in _parts(folder) if p in _WEIGHTED and p not in absent and not _weights(folder / p)]


# --- hash -----------------------------------------------------------------------------------------------------------
def model_hash(name: str) -> str:
    """SHA-256 over the files that are loaded (configurations, vocabularies, weights); `Missing` if they are not there.

    Of a model built in code, it covers the source file that builds it. Hashes of large files are remembered by size
    and modification time in the user's cache folder.
    """
    folder = resolve(name)
    if folder is None:
        source = Path(__file__).with_name("backbones") / "random_models.py"
        return keys.digest({"built": name, "source": hashlib.sha256(source.read_bytes()).hexdigest()})
    return keys.digest({str(p.relative_to(folder).as_posix()): _file_hash(p) for p in _files(folder)})


def _parts(folder: Path) -> list[str]:
    named = (k for k, v in index(folder).items() if isinstance(v, list) and v and v[0] is not None)
    return sorted(k for k in named if k not in _UNUSED)


def _files(folder: Path) -> Iterator[Path]:
    yield folder / "model_index.json"
    for part in _parts(folder):
        if not (folder / part).is_dir():  # `resolve` tells what is absent
            continue
        texts = (p for p in (folder / part).iterdir() if p.suffix in (".json", ".txt", ".model"))
        yield from sorted([*texts, *_weights(folder / part)])


def _weights(part: Path) -> list[Path]:
    """The weight files of a part: those without a variant such as fp16, if there are any."""
    every = sorted(part.glob("*.safetensors"))
    return [p for p in every if _PLAIN.fullmatch(p.name)] or every


def _file_hash(path: Path) -> str:
    """Hex SHA-256 of a file."""
    status = path.stat()
    if status.st_size < _LARGE:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    memory = _memory_folder() / f"{keys.digest([str(path.resolve()), status.st_size, status.st_mtime_ns])}.sha256"
    try:
        known = memory.read_text()
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    except (OSError, UnicodeDecodeError):
        pass
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _remember(memory, found)
    return found


def _memory_folder() -> Path:
    return paths.user_cache() / "hashes"


def _remember(memory: Path, found: str) -> None:
    with suppress(BadInput):  # a home that cannot be written costs time, nothing else
        atomic.write(memory, found)
