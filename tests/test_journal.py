"""Training that was killed goes on to the same bytes: every trained method, at any point, on tiny models; and what a
journal does with damage, full disks and time."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmark import atomic, edits, journal, keys, registry, run, states
from benchmark.backbones.base import Backbone, Counts
from benchmark.backbones.journal import NONE, Journal, Resumable
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.interface import Edit, Request, Target
from benchmark.journal import StoreJournal, Unfit
from benchmark.plan import make_plan
from benchmark.store import Store
from benchmark.torture import kills
from benchmark.torture.faults import KINDS, FaultyDisk, Killed, Kind
from benchmark.worker import Spent, Worker

CAT = Target(name="cat", anchor="animal", synonyms=("kitten",))
DOG = Target(name="dog", anchor="animal", adjacent=("wolf", "fox"))
ONE = Request(erase=(CAT,), keep=("frog", "horse"), general=("a tree", "a house"), seed=3)
TWO = replace(ONE, erase=(CAT, DOG))

CASES: list[tuple[str, dict[str, Any], Request, edits.Strategy]] = [
    ("esd", {"iterations": 5}, ONE, "joint"),
    ("esd", {"latents_from": "frozen", "batch": 2, "train": "x-strict"}, TWO, "sequential"),
    ("mace", {"templates": "short", "iterations": 2}, TWO, "joint"),
    ("ant", {"templates": "short"}, ONE, "joint"),
    ("ant", {"mode": "official_code", "templates": "short", "map_iterations": 2}, TWO, "sequential"),
    ("ant", {"path": "multi", "templates": "short", "iterations": 2}, TWO, "joint"),
    ("fade_fg", {"batch": 8, "iterations": 5}, TWO, "sequential"),
    ("fade_adv", {"stop_every": 2}, ONE, "joint"),
    ("fade_adv", {"grad_mode": "off_policy"}, TWO, "joint"),
    ("fade_adv", {"refresh": 3, "d_steps": 2, "saliency": 1.0}, ONE, "joint"),
    ("fade_adv", {"removal": "match"}, TWO, "sequential"),
    ("cpe", {}, TWO, "joint"),
    ("esd", {"iterations": 4, "rank": 2}, ONE, "joint"),
    ("erase_anything", {"iterations": 4}, ONE, "joint"),
]
QUICK = (
    *("unet-esd-joint0", "unet-mace-joint", "unet-cpe-joint"),
    *("flux-fade_fg-sequential", "flux-fade_adv-sequential", "flux-ant-joint0", "flux-erase_anything-joint"),
)
"""Every method once, on one model or the other."""
TRAINED = {"esd", "mace", "ant", "fade_fg", "fade_adv", "cpe", "erase_anything"}


class Stop(BaseException):
    """A kill, as far as one process can play it."""


@pytest.fixture(scope="module", params=["unet", "flux"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return random_unet() if request.param == "unet" else random_flux()


def opened(store: Store, say: Callable[[str], None] = pytest.fail, code: str = "a", key: str = "key") -> StoreJournal:
    return StoreJournal(store, key, code=code, say=say)


def stopping(made: StoreJournal, at: int, every: int) -> StoreJournal:
    """The same, which writes at every so many-th thing done, and is killed after the one numbered `at`."""
    points = itertools.count(1)
    done, once = made.done, made.once

    def point(act: Callable[[], Any]) -> Any:
        n = next(points)
        made._next = 0.0 if n % every == 0 else float("inf")
        value = act()
        if n == at:
            raise Stop
        return value

    def counted(name: str, make: Callable[[], Any]) -> Any:
        fresh = []

        def noted() -> Any:
            fresh.append(True)
            return make()

        value = once(name, noted)
        return point(lambda: value) if fresh else value

    made.done = lambda name, steps, held, hold=False: point(lambda: done(name, steps, held, hold=hold))  # type: ignore
    made.once = counted  # type: ignore[method-assign]
    return made


def bytes_of(edit: Edit) -> dict[str, Any]:
    """All of an edit whose bytes are promised, the counts of its work included."""
    counts = {k: v for k, v in asdict(edit.cost).items() if k not in ("seconds", "peak_bytes")}
    return {**{k: v for k, v in edits.serialise(edit).items() if k != "cost.json"}, "counts": counts}


# --- every trained method ---------------------------------------------------------------------------------------------
@pytest.mark.quick(*QUICK)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[3]}")
def test_an_edit_killed_again_and_again_comes_to_the_same_bytes(
    backbone: Backbone, case: tuple[str, dict[str, Any], Request, edits.Strategy], often: None, tmp_path: Path
):
    """Right after checkpoints, and between two of them."""
    name, fields, request_, strategy = case
    cls = registry.method_class(name)
    if backbone.family not in cls.families:
        pytest.skip(f"{name} does not work on {backbone.family}")
    own = cls.variants.get("flux", {}) if backbone.family == "transformer-flow" else {}
    method = cls(**{**own, **cls.quick, **fields})
    if why := method.refusal(backbone.family):
        pytest.skip(f"{name} on {backbone.family}: {why}")
    expected = bytes_of(edits.make(method, backbone, request_, strategy))
    for at, every, most in ((1, 1, 4), (3, 2, 2)):
        store = Store(tmp_path / str(at))
        edit, kills = None, 0
        while edit is None:
            kept = opened(store)
            try:
                stop = at if kills < most else 0  # then it may come to its end
                edit = edits.make(method, backbone, request_, strategy, stopping(kept, stop, every))
            except Stop:
                kills += 1
                assert backbone.journal is NONE
                assert store.children(keys.JOURNALS, "key"), "a kill without a checkpoint shows nothing"
        assert kills >= (2 if at == 1 else 1), "it was not killed often enough to show anything"
        assert bytes_of(edit) == expected
        assert kept.earlier.seconds > 0


def test_every_trained_method_is_among_them():
    """A method that trains and does not say so would be begun anew after each kill."""
    files = (Path(p).stem for p in Path("methods").glob("[!_]*.py"))
    uses = {f for f in files if any(w in _sources(f) for w in ("minimise", "backward", ".step()"))}
    assert uses == TRAINED == {name for name, *_ in CASES}


def _sources(method: str) -> str:
    from_method = [*Path("methods").glob(f"{method}.py"), *Path("methods").glob(f"_{method}*.py")]
    text = "".join(p.read_text(encoding="utf-8") for p in from_method)
    return text + (Path("methods/_distill.py").read_text(encoding="utf-8") if "_distill" in text else "")


# --- a training in milliseconds ---------------------------------------------------------------------------------------
class Toy:
    """Two loops, of which the second goes on where the first ended, between things that are made once."""

    def __init__(self, kept: Journal) -> None:
        self.journal, self.counts, self.made = kept, Counts(), 0

    def run(self, width: int = 3) -> list[Any]:
        backbone: Any = SimpleNamespace(device="cpu")
        around = self.journal.of(backbone, self.counts) if isinstance(self.journal, StoreJournal) else None
        if around is None:
            return self._run(width)
        with around:
            return self._run(width)

    def _run(self, width: int) -> list[Any]:
        rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(2)
        leaf = torch.zeros(width, requires_grad=True)
        data = self.journal.once("data", self._data)
        for name, rate in (("first", 0.1), ("second", 0.01)):
            adam, losses = torch.optim.Adam([leaf], lr=rate), list[float]()
            held = {"leaf": [leaf], "adam": adam, "rng": rng, "generator": generator, "losses": losses}
            for i in range(self.journal.resume(name, held) or 0, 5):
                self.counts.denoiser_forwards += 1
                noise = torch.randn(width, generator=generator) + float(rng.normal())
                loss = ((leaf - data["x"][:width] - noise) ** 2).sum()
                adam.zero_grad()
                torch.autograd.backward(loss)
                adam.step()
                losses.append(float(loss.detach()))
                self.made += 1
                self.journal.done(name, i + 1, held, hold=i == 4)
        return [leaf.tolist(), losses, asdict(self.counts)]

    def _data(self) -> dict[str, Any]:
        self.counts.text_encodes += 1
        return {"x": torch.arange(8.0), "note": ["é", None, 2**70, 0.1]}


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written at every chance."""
    monkeypatch.setattr(journal, "EVERY_S", 0.0)
    monkeypatch.setattr(journal, "SHARE", float("inf"))


@pytest.fixture
def half(tmp_path: Path, often: None) -> Store:
    """A store in which the toy was killed in its second loop."""
    store = Store(tmp_path / "store")
    with pytest.raises(Stop):
        Toy(stopping(opened(store), 8, 1)).run()
    assert store.children(keys.JOURNALS, "key") == ["data@1", "first@5", "second@2"]
    return store


EXPECTED = Toy(NONE).run()


def test_what_is_done_is_not_done_again(half: Store):
    toy = Toy(opened(half))
    assert toy.run() == EXPECTED and toy.made == 3


@pytest.mark.parametrize("file", ["state.json", "000.safetensors", "manifest.json"])
@pytest.mark.parametrize("part", ["data@1", "first@5", "second@2"])
def test_a_damaged_part_is_named_set_aside_and_its_work_done_again(half: Store, part: str, file: str):
    path = half.root / keys.JOURNALS / "key" / part / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    said: list[str] = []
    toy = Toy(opened(half, said.append))
    assert toy.run() == EXPECTED
    assert len(said) == 1 and part in said[0] and "set aside" in said[0] and "done again" in said[0]
    assert toy.made == {"data@1": 3, "first@5": 8, "second@2": 5}[part]


@pytest.mark.parametrize("other", ["code", "key"])
def test_a_part_of_another_edit_or_of_other_code_is_not_gone_on_from(half: Store, other: str):
    code, key = ("b", "key") if other == "code" else ("a", "other")
    (half.root / keys.JOURNALS / "key").rename(half.root / keys.JOURNALS / key)
    said: list[str] = []
    toy = Toy(opened(half, said.append, code, key))
    assert toy.run() == EXPECTED and toy.made == 10
    assert len(said) == 3 and all("of another edit, or of other code" in line for line in said)
    assert len(list((half.root / "damaged").iterdir())) == 3


def test_a_part_that_does_not_fit_is_set_aside_and_the_edit_made_again(half: Store):
    with pytest.raises(Unfit, match=r"first@5: it does not fit: expected \(4,\).*got \(3,\)"):
        Toy(opened(half)).run(width=4)
    with pytest.raises(Unfit, match="second@2"):
        Toy(opened(half)).run(width=4)
    assert Toy(opened(half)).run(width=4) == Toy(NONE).run(width=4)


def test_names_are_unique(tmp_path: Path):
    kept = opened(Store(tmp_path))
    kept.once("a", lambda: kept.once("a", lambda: 1))
    with pytest.raises(ValueError, match="unique"):
        kept.resume("a", [])


def test_what_is_inside_is_forgotten_with_what_it_was_for(tmp_path: Path, often: None):
    store = Store(tmp_path)
    kept, leaf = opened(store), torch.zeros(2)

    def make() -> int:
        kept.once("inner", lambda: 1)
        kept.done("loop", 1, [leaf])
        assert store.children(keys.JOURNALS, "key") == ["a.inner@1", "a.loop@1"]
        return 5

    assert kept.once("a", make) == 5
    assert store.children(keys.JOURNALS, "key") == ["a@1"]
    assert opened(store).once("a", make) == 5
    store.remove_all(keys.JOURNALS, "key")
    assert not (store.root / keys.JOURNALS / "key").exists()


# --- disks that fail --------------------------------------------------------------------------------------------------
def tried(store: Path, disk: FaultyDisk, said: list[str]) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "disk", disk)
        patch.setattr(atomic, "lives", lambda pid: False)
        try:
            return Toy(opened(Store(store), said.append)).run()
        except Killed as error:
            return error


@pytest.mark.quick("no space", "short write")
@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_at_any_call_ends_no_training(kind: Kind, often: None, tmp_path: Path):
    """Errors are said, once, and the training goes on; after a kill or a power cut it goes on from what is there."""
    count = FaultyDisk()
    assert tried(tmp_path / "fine", count, []) == EXPECTED
    opening = next(i for i, call in enumerate(count.calls) if call.startswith("create"))  # before: that of the store
    assert len(count.calls) > 150
    for at in range(opening + KINDS.index(kind) % 5, len(count.calls), 5):
        said: list[str] = []
        ended = tried(tmp_path / str(at), FaultyDisk(kind, at), said)
        if kind in ("no space", "input/output"):
            assert ended == EXPECTED and len(said) <= 1, count.calls[at]
            assert all("cannot be kept" in line and "cannot write to the store" in line for line in said)
        elif kind == "short write":
            assert ended == EXPECTED and not said
        else:
            assert isinstance(ended, Killed)
            assert tried(tmp_path / str(at), FaultyDisk(), []) == EXPECTED, count.calls[at]


class Full(FaultyDisk):
    """From the first write on."""

    def write(self, handle: int, content: memoryview) -> int:
        self.at = len(self.calls)
        return super().write(handle, content)


def test_a_full_disk_stays_full_and_is_said_once(often: None, tmp_path: Path):
    said: list[str] = []
    assert tried(tmp_path, Full("no space"), said) == EXPECTED
    assert len(said) == 1 and "No space left on device" in said[0]
    assert not list(tmp_path.glob("journals/*/*"))


# --- time -------------------------------------------------------------------------------------------------------------
class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class SlowStore:
    """Of which each write takes so many seconds."""

    clock: Clock
    seconds: float
    writes: list[float]

    def put(self, *_: str, files: Any) -> None:
        self.writes.append(self.clock.now)
        self.clock.now += self.seconds

    def children(self, *_: str) -> list[str]:
        return []


@pytest.mark.parametrize(("seconds", "gap"), [(0.1, 20.0), (3.0, 150.0)])
def test_writes_take_no_more_than_their_share_of_the_time(seconds: float, gap: float):
    clock = Clock()
    store: Any = SlowStore(clock, seconds, [])
    kept = StoreJournal(store, "key", code="", say=pytest.fail, clock=clock)
    leaf = torch.zeros(3)
    for step in range(1000):
        clock.now += 1.0
        kept.done("loop", step + 1, [leaf])
    assert store.writes[0] == 20.0 and len(store.writes) > 4
    assert all(b - a == pytest.approx(gap + seconds, abs=1.01) for a, b in itertools.pairwise(store.writes))


def test_a_large_state_waits_before_its_first_write():
    """What it will take is not known yet; it is told from its size."""
    clock = Clock()
    store: Any = SlowStore(clock, 1.0, [])
    kept = StoreJournal(store, "key", code="", say=pytest.fail, clock=clock)
    large = torch.empty(10**9, device="meta", dtype=torch.float32)
    for step in range(1200):
        clock.now += 1.0
        kept.done("loop", step + 1, [large])
    assert store.writes[0] == pytest.approx(4e9 / journal._RATE / journal.SHARE, abs=1)


def test_seconds_and_memory_add_up_over_processes(tmp_path: Path, often: None):
    first, second = Clock(), Clock()
    store, leaf, backbone = Store(tmp_path), torch.zeros(2), SimpleNamespace(device="cpu")
    one = StoreJournal(store, "key", code="", say=pytest.fail, clock=first)
    with one.of(backbone, Counts(denoiser_forwards=7)):  # type: ignore[arg-type]
        first.now = 30.0
        one.done("loop", 1, [leaf])
        first.now = 55.0
    two, counts = StoreJournal(store, "key", code="", say=pytest.fail, clock=second), Counts(text_encodes=3)
    with two.of(backbone, counts):  # type: ignore[arg-type]
        assert two.resume("loop", [leaf]) == 1
        assert counts == Counts(denoiser_forwards=7), "as they were there, whatever was done to come here again"
        second.now = 5.0
        two.done("loop", 2, [leaf])
    three = opened(store, code="")
    three.resume("loop", [leaf])
    assert (two.earlier.seconds, three.earlier.seconds) == (30.0, 35.0) and three.earlier.peak_bytes > 0


# --- states -----------------------------------------------------------------------------------------------------------
class Own(Resumable):
    def __init__(self) -> None:
        self.value: Any = (1, torch.zeros(2, dtype=torch.int64))

    def state(self) -> Any:
        return self.value

    def load(self, state: Any) -> None:
        self.value = tuple(state)


def things(seed: int) -> dict[str, Any]:
    """Something of each kind, in a state of its own."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    module = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(3, 2))
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    image = torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last).requires_grad_()
    adam = torch.optim.AdamW([*module.parameters(), image], lr=0.1 * seed)
    for _ in range(seed):
        torch.autograd.backward(module(torch.ones(1, 3)).sum() + image.square().sum())
        adam.step()
        rng.normal()
    own = Own()
    own.value = (seed, torch.arange(seed))
    half = torch.randn(3, generator=generator).bfloat16()
    kept = {"generator": generator, "rng": rng, "module": module, "adam": adam, "own": own, "image": [image, half]}
    return {**kept, "losses": [0.1 * seed, (seed, 1e-300)][:seed], "none": None}


def test_states_come_back_to_the_bit_through_bytes():
    from_, to = things(2), things(1)
    document, tensors = states.pack(states.state_of(from_))
    document = json.loads(keys.canonical(document))
    loaded = states.unpack(document, states.tensors_of(dict(states.TensorFiles(tensors))))
    states.restore(to, loaded)
    same(states.state_of(to), states.state_of(from_))
    for a, b in zip(from_["adam"].state.values(), to["adam"].state.values(), strict=True):
        assert a["exp_avg"].stride() == b["exp_avg"].stride()
    assert torch.randn(3, generator=to["generator"]).equal(torch.randn(3, generator=from_["generator"]))
    assert to["rng"].normal() == from_["rng"].normal()


def same(a: Any, b: Any) -> None:
    if isinstance(b, Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(b, dict):
        assert list(a) == list(b)
        for key in b:
            same(a[key], b[key])
    elif isinstance(b, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b and type(a) is type(b)


def test_large_states_lie_in_files_of_bounded_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(states, "_FILE", 100)
    tensors = [torch.arange(float(n)) for n in (10, 10, 10, 100, 1, 0)]
    files = states.TensorFiles(tensors)
    assert list(files) == ["000.safetensors", "001.safetensors", "002.safetensors", "003.safetensors"]
    same(states.tensors_of(dict(files)), tensors)
    assert states.tensors_of({}) == []


@pytest.mark.parametrize(
    ("held", "state"),
    [
        (torch.zeros(2), torch.zeros(1)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        ({"a": []}, {"b": []}),
        ([torch.zeros(1)], []),
        (None, 3),
        (torch.Generator(), torch.zeros(3, dtype=torch.uint8)),
    ],
)
def test_a_state_of_something_else_is_refused(held: Any, state: Any):
    with pytest.raises((ValueError, RuntimeError, TypeError)):
        states.restore(held, state)


def test_what_has_no_state_is_refused():
    with pytest.raises(TypeError, match="make it a Resumable"):
        states.state_of({"a": object()})
    with pytest.raises(TypeError, match="got object"):
        states.pack([object()])


# --- code -------------------------------------------------------------------------------------------------------------
def test_code_is_that_of_the_method_with_all_beside_it(tmp_path: Path):
    esd, cpe = registry.method_class("esd"), registry.method_class("cpe")
    assert journal.code_of(esd) == journal.code_of(cpe) != journal.code_of(Toy) != ""
    assert journal.code_of(type("Made", (), {"__module__": "nowhere"})) == ""


# --- a real process, really killed ------------------------------------------------------------------------------------
SUITE = """\
title: A test
version: 1
source: ours
methods: [esd]
forms:
  embedded:
    dataset: testbed
    requests: [{each: [cat], keep: [dog]}]
    prompts:
      erased: {templates: ["a photo of the {concept}"], images: 1}
      kept: {templates: ["a photo of the {concept}"], images: 1}
    sampler: {scheduler: ddim, steps: 2, guidance: 3.0, size: 64}
    batch: 2
    primary: testbed/top1
    protocols: [testbed/top1]
"""
PROCESS = """
import sys
from pathlib import Path
from benchmark import journal, run
journal.EVERY_S, journal.SHARE = 0.0, float("inf")
fields = {"esd": {"iterations": 12, "steps": 3, "train": "x-strict"}}
run.execute(run.RunOptions(suite=sys.argv[1], methods=("esd",), out=Path(sys.argv[2]), quiet=True, fields=fields))
"""


@pytest.mark.slow
def test_a_process_killed_within_a_training_is_gone_on_from_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The next takes over the claim of the dead one, and its checkpoint: with SIGKILL nobody says good-bye."""
    suite, out = tmp_path / "tiny.yaml", tmp_path / "out"
    suite.write_text(SUITE)
    fields = {"esd": {"iterations": 12, "steps": 3, "train": "x-strict"}}
    options = run.RunOptions(suite=str(suite), methods=("esd",), out=tmp_path / "whole", quiet=True, fields=fields)
    assert run.execute(options) == 0
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(suite), str(out)])
    try:
        while not any(int(p.name.partition("@")[2]) >= 5 for p in out.glob("store/journals/*/training@*")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not list(out.glob("store/edits/*")) and list(out.glob("store/leases/*"))
    resumed: list[int | None] = []
    resume = StoreJournal.resume

    def noted(self: StoreJournal, name: str, held: Any) -> int | None:
        resumed.append(resume(self, name, held))
        return resumed[-1]

    monkeypatch.setattr(StoreJournal, "resume", noted)
    assert run.execute(replace(options, out=out)) == 0
    assert len(resumed) == 1 and resumed[0] is not None and resumed[0] >= 4
    assert kills.snapshot(out) == kills.snapshot(tmp_path / "whole")
    assert not list(out.glob("store/journals/*"))


def test_what_was_left_of_a_journal_goes_with_the_next_run(tmp_path: Path):
    """Killed between the edit and its journal's end."""
    plan = make_plan("smoke", methods=("uce",))
    spec = next(e for e in plan.edits if not e.empty)
    store = Store(tmp_path)
    store.put(keys.EDITS, spec.key, files={"about.json": b"{}"})
    store.put(keys.JOURNALS, spec.key, "training@3", files={"state.json": b"{}"})
    Worker(plan, store, threads=1, say=pytest.fail).edit(spec, Spent())
    assert not list(tmp_path.glob("journals/*"))
