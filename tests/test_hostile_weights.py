"""Weights of strangers: nothing in a pickle runs, no header makes room for what it claims, no link or list leads out.

Bytes of every format are changed as in `test_fuzz`; `--fuzz N` looks longer here too.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from benchmark import edits
from benchmark.backbones import load as loading
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_unet
from benchmark.errors import BadInput, BenchError, Damaged
from benchmark.evaluators import external, pickles
from benchmark.interface import Edit, Gates, LowRank, PromptRule, Request, Target
from methods._checkpoint_files import read_file
from methods.checkpoint import Checkpoint

REQUEST = Request(erase=(Target(name="cat"),))
LINEAR = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
hypothesis.configuration.set_hypothesis_home_dir("/tmp/hypothesis-of-erasure-bench")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_unet()


def made(backbone: Backbone, path: Path, **fields: Any) -> Edit:
    return edits.make(Checkpoint(path=str(path), **fields), backbone, REQUEST)


def a_name(backbone: Backbone) -> str:
    return next(n for n in sorted(backbone.tensors()) if n.endswith("attn2.to_k.weight"))


# --- pickles ----------------------------------------------------------------------------------------------------------
class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.made = call, arguments

    def __reduce__(self) -> Any:
        return self.made


def bombs(mark: Path) -> dict[str, Any]:
    return {
        "mkdir": Bomb(os.mkdir, str(mark)),
        "system": Bomb(os.system, f"mkdir {mark}"),
        "eval": Bomb(eval, f"__import__('os').mkdir({str(mark)!r})"),
        "exec": Bomb(exec, f"import os; os.mkdir({str(mark)!r})"),
        "nested": {"state_dict": {"w": torch.ones(1), "x": [Bomb(os.mkdir, str(mark))]}},
        "torch": Bomb(torch.load, str(mark), None),
        "attribute": Bomb(getattr, "text", "join"),
    }


@pytest.mark.parametrize("name", list(bombs(Path())))
@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
def test_a_malicious_pickle_does_not_execute(tmp_path: Path, name: str, suffix: str):
    mark = tmp_path / "pwned"
    path = tmp_path / f"bad{suffix}"
    for content in (bombs(mark)[name], {"weight": torch.ones(1), "more": bombs(mark)[name]}):
        for zipped in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(BadInput, match="is a pickle; set allow_pickle=true"):
                read_file(path, pickles=False)
            with pytest.raises(BadInput, match="code in it is never run"):
                read_file(path, pickles=True)
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(BadInput, match="code in it is never run"):
            read_file(path, pickles=True)
    assert not mark.exists()


def test_the_bombs_are_some(tmp_path: Path):
    """Else the test above could not fail."""
    for name in ("mkdir", "system", "eval", "exec"):
        mark = tmp_path / name
        pickle.loads(pickle.dumps(bombs(mark)[name]))
        assert mark.is_dir()


def test_a_pickle_of_a_judge_is_refused_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Or known by its hash, as CLIP's is; nothing in it runs in any case."""
    torch.save(Bomb(os.mkdir, str(tmp_path / "pwned")), tmp_path / pickles.PICKLE)
    monkeypatch.delenv(pickles.ALLOW, raising=False)
    with pytest.raises(BadInput, match=f"is a pickle; set {pickles.ALLOW}=1"):
        pickles.check("hub/who/animals", tmp_path)
    pickles.check("clip-vitb32", tmp_path)
    monkeypatch.setenv(pickles.ALLOW, "1")
    pickles.check("hub/who/animals", tmp_path)
    with pytest.raises(Damaged, match="code in it is never run"):
        pickles.tensors(tmp_path / pickles.PICKLE)
    assert not (tmp_path / "pwned").exists()


# --- archives and headers that claim more than they hold --------------------------------------------------------------
def zip_claiming(path: Path, size: int) -> None:
    """An archive of torch whose one record says it is `size` bytes long, in its own header and in the directory."""
    torch.save({"w": torch.ones(4)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entry = next(i for i in archive.infolist() if i.filename.endswith("/data/0"))
    local = entry.header_offset
    struct.pack_into("<II", content, local + 18, size, size)
    at = content.find(b"PK\x01\x02")
    while content[at + 46 : at + 46 + len(entry.filename)] != entry.filename.encode():
        at = content.find(b"PK\x01\x02", at + 1)
    struct.pack_into("<II", content, at + 20, size, size)
    path.write_bytes(bytes(content))


def test_a_zip_whose_header_claims_gigabytes(tmp_path: Path):
    zip_claiming(tmp_path / "claim.pt", 0xFFFFFF00)
    assert (tmp_path / "claim.pt").stat().st_size < 10_000
    tracemalloc.start()
    with pytest.raises(BadInput, match="an archive of .* members with 4,29.* bytes in a file of"):
        read_file(tmp_path / "claim.pt", pickles=True)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_a_zip_of_ten_gigabytes_of_zeros(tmp_path: Path):
    """Compressed, a real one: a few megabytes that unpack to ten gigabytes."""
    path = tmp_path / "bomb.pt"
    torch.save({"w": torch.ones(4)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {i.filename: archive.read(i) for i in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in records.items():
            archive.writestr(name, b"\0" * 2**27 if name.endswith("/data/0") else content)
    assert path.stat().st_size < 2**21
    with pytest.raises(BadInput, match="an archive of .* members with 134,2.* bytes in a file of"):
        read_file(path, pickles=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo("archive/data/0")
        info.file_size = 10 * 2**30
        for name, content in records.items():
            archive.writestr(name, content)
        with archive.open(info, "w", force_zip64=True) as member:
            member.write(b"")
        archive.getinfo("archive/data/0").file_size = 10 * 2**30
    with pytest.raises(BadInput, match="10,737,4.* bytes in a file of"):
        read_file(path, pickles=True)


def test_a_tensor_stretched_over_more_than_the_file_holds(tmp_path: Path):
    torch.save({"w": torch.ones(1).expand(2**20, 2**10)}, tmp_path / "wide.pt")
    with pytest.raises(BadInput, match="4,294,967,296 bytes of tensors in a file of"):
        read_file(tmp_path / "wide.pt", pickles=True)
    torch.save({"w": torch.ones(4, 4).to_sparse()}, tmp_path / "sparse.pt")
    with pytest.raises(BadInput, match="sparse, quantised or empty|cannot be read as tensors alone"):
        read_file(tmp_path / "sparse.pt", pickles=True)


def header(value: object, length: int | None = None, rest: bytes = b"\0" * 16) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + rest


ONE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 4,
        header({}, 10 * 2**30),
        header({}, 2**63),
        header({}, 2**64 - 1),
        header({"w": {**ONE, "shape": [2**40, 2**40]}}),
        header({"w": {**ONE, "shape": [-1]}}),
        header({"w": {**ONE, "data_offsets": [0, 10 * 2**30]}}),
        header({"w": {**ONE, "data_offsets": [16, 0]}}),
        header({"w": ONE, "v": ONE}),
        header({"w": {**ONE, "dtype": "X99"}}),
        header({"w": ONE, "__metadata__": {"a": 1}}),
        header(b"[" * 100_000),
        header(b'{"w": ' * 10_000),
        header(b"\xff\xfe"),
    ],
    ids=range(15),
)
def test_headers_of_safetensors(tmp_path: Path, content: bytes):
    (tmp_path / "x.safetensors").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(BadInput, match="cannot be read as safetensors"):
        read_file(tmp_path / "x.safetensors", pickles=False)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


# --- folders ----------------------------------------------------------------------------------------------------------
def test_links_stay_in_a_checkpoint_s_folder(backbone: Backbone, tmp_path: Path):
    name = a_name(backbone)
    save_file({name: backbone.tensors()[name] * 2}, tmp_path / "secret.safetensors")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "model.safetensors").symlink_to(tmp_path / "secret.safetensors")
    with pytest.raises(BadInput, match="leads out of .*; copy the file into it"):
        made(backbone, mine)
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "c0").mkdir(parents=True)
    shutil.copyfile(tmp_path / "secret.safetensors", cache / "blobs" / "x")
    (cache / "snapshots" / "c0" / "model.safetensors").symlink_to("../../blobs/x")
    assert list(made(backbone, cache / "snapshots" / "c0").weights) == [name], "as the hub's client lays files out"


def test_a_list_of_shards_leads_to_no_file_elsewhere(tmp_path: Path):
    part = tmp_path / "model" / "unet"
    part.mkdir(parents=True)
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    save_file({"w": torch.ones(1)}, part / "diffusion_pytorch_model-00001-of-00001.safetensors")
    listed = {"weight_map": {"w": "../../model.safetensors"}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(listed))
    (part / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="expected a weight_map of files beside it"):
        loading._part(tmp_path / "model", "unet", torch.float32)


# --- the search -------------------------------------------------------------------------------------------------------
def searching(config: pytest.Config, examples: int) -> settings:
    longer = int(config.getoption("--fuzz"))
    return settings(
        max_examples=longer or examples,
        derandomize=not longer,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def changed(draw: st.DrawFn, start: bytes) -> bytes:
    content = bytearray(start)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        what = draw(
            st.sampled_from((b"", b"\0", b"\xff" * 8, b"(", b"R", b".", b"{", b"9999", b"\x80\x02", b"PK\x05\x06"))
        )
        content[at : at + draw(st.sampled_from((0, 1, 1, 8, 500)))] = what
    return bytes(content)


def ends_well(read: Callable[[], object]) -> None:
    try:
        read()
    except BenchError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 3000, str(error)[:300]


@pytest.mark.parametrize("kind", ["safetensors", "pt", "ckpt"])
def test_bytes_of_checkpoints(backbone: Backbone, tmp_path: Path, kind: str, request: pytest.FixtureRequest):
    name = a_name(backbone)
    state = {name: backbone.tensors()[name] * 2}
    path = tmp_path / f"x.{kind}"
    if kind == "safetensors":
        whole = save(state, {"prompts": "cat"})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
        whole = path.read_bytes()

    @searching(request.config, 30)
    @given(changed(whole))
    def search(content: bytes) -> None:
        path.write_bytes(content)
        ends_well(lambda: made(backbone, path, allow_pickle=True))

    search()


WRONG = st.sampled_from(
    (*(None, True, 0, -1, 1e308, "", "x", "../x", [], [None], {}, [1, "a"], {"words": 3}, [[]], "a" * 5000),)
)


def test_edits_of_ours(backbone: Backbone, tmp_path: Path, request: pytest.FixtureRequest):
    """`edit.json` changed in a place, `edit.safetensors` left as it is."""
    name = a_name(backbone)
    out, dim = backbone.tensors()[name].shape
    vectors = torch.randn(1, dim)
    gates = Gates(
        query=torch.randn(1, dim, 2),
        key=torch.randn(1, dim, 2),
        vector=vectors,
        changes={name: LowRank(torch.randn(1, out, 1), torch.randn(1, 1, dim))},
    )
    edit = Edit(
        weights={name: backbone.tensors()[name] * 2},
        deltas={name: LowRank(torch.randn(out, 1), torch.randn(1, dim))},
        gates=gates,
        prompts=PromptRule(words=("cat",), replacement="x"),
    )
    for file, content in edits.serialise(edit).items():
        (tmp_path / file).write_bytes(content)
    whole = json.loads((tmp_path / "edit.json").read_bytes())

    @searching(request.config, 40)
    @given(st.sampled_from(sorted(whole)), WRONG, st.booleans())
    def search(key: str, value: Any, absent: bool) -> None:
        document = {k: v for k, v in whole.items() if not (absent and k == key)} | ({} if absent else {key: value})
        (tmp_path / "edit.json").write_text(json.dumps(document))
        ends_well(lambda: made(backbone, tmp_path))

    search()


SHAPES = st.sampled_from(((), (0,), (1,), (2, 0), (3, 5), (1, 2, 3), (32, 128), (2, 128), (32, 2), (1, 1, 1, 1)))
NAMES = ("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_unet_x.alpha")


def test_shapes_of_low_rank_files(backbone: Backbone, tmp_path: Path, request: pytest.FixtureRequest):
    """Factors, α and gates of any shapes and values under the names of a layer that is there."""
    layer = "lora_" + a_name(backbone).removesuffix(".weight").replace(".", "_")
    gate = "attention_gate.encoder_layer.slf_attn."

    @searching(request.config, 40)
    @given(SHAPES, SHAPES, SHAPES, st.booleans(), st.sampled_from(("auto", "lora", "spm", "cpe", "partial", "compvis")))
    def search(down: Any, up: Any, alpha: Any, gated: bool, kind: str) -> None:
        state = {f"{layer}.lora_down.weight": torch.zeros(down), f"{layer}.lora_up.weight": torch.ones(up)}
        state |= {f"{layer}.alpha": torch.ones(alpha)}
        if gated:
            state |= {
                f"{gate}attention_module1.w_qs.weight": torch.ones(up),
                f"{gate}gate.scaler.weight": torch.ones(down),
            }
        save_file(state, tmp_path / "l.safetensors", {"lora_adapter_metadata": '{"lora_alpha": "x"}'})
        ends_well(lambda: made(backbone, tmp_path / "l.safetensors", format=kind))

    search()


# --- answers of commands ----------------------------------------------------------------------------------------------
@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.sampled_from(
            ('{"label": ["red"]}', '{"label": {"a": 1}}', '{"label": 1e999, "score": 1}', "[" * 5000, "9" * 5000)
        ),
        st.dictionaries(
            st.sampled_from(("label", "score", "error")),
            st.sampled_from((None, True, 1, 1e308, "red", "x", [], {}, "\x1b[31m", "a" * 5000)),
        ).map(json.dumps),
    )
)
def test_answers_of_external_judges(line: str):
    answer = external.parse(line, ("red", "blue"))
    assert answer.label in (-1, 0, 1) and (answer.failure is None or answer.reason)
