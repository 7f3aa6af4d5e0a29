"""Edits: on and off to the bit, refused when they do not fit, the same bytes for the same edit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import pytest
import torch

from benchmark import edits
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_unet
from benchmark.errors import BadInput, BenchError, Damaged
from benchmark.interface import Cost, Edit, Family, LowRank, Method, PromptRule, Request, Target
from methods.noise import Noise
from methods.uce import UCE

CAT, DOG = Target(name="cat"), Target(name="dog")
REQUEST = Request(erase=(CAT, DOG), keep=("horse",))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_unet()


@pytest.fixture
def edit(backbone: Backbone) -> Edit:
    """One new value, one low-rank change of another tensor, and all the rest."""
    a, b = backbone.projections()[:2]
    return Edit(
        weights={a.name: a.weight.detach() + 1},
        deltas={b.name: LowRank(torch.ones(b.weight.shape[0], 2), torch.ones(2, b.weight.shape[1]))},
        prompts=PromptRule(words=("cat",), replacement="animal"),
        output="grey",
        notes={"why": "a test"},
        cost=Cost(seconds=1.5, denoiser_forwards=3),
    )


# --- applying ---------------------------------------------------------------------------------------------------------
def test_weights_are_on_inside_and_off_outside(backbone: Backbone, edit: Edit) -> None:
    before = {n: t.clone() for n, t in backbone.tensors().items()}
    first, second = backbone.projections()[:2]
    with edits.apply(backbone, edit) as edited:
        assert torch.equal(edited.tensors()[first.name], before[first.name] + 1)
        torch.testing.assert_close(edited.tensors()[second.name], before[second.name] + 2)
        changed = [n for n, t in edited.tensors().items() if not torch.equal(t, before[n])]
        assert sorted(changed) == sorted([first.name, second.name])
    assert all(torch.equal(t, before[n]) for n, t in backbone.tensors().items())


def test_weights_come_off_when_an_exception_flies(backbone: Backbone, edit: Edit) -> None:
    before = edits.fingerprints(backbone)
    with pytest.raises(KeyboardInterrupt), edits.apply(backbone, edit):
        raise KeyboardInterrupt
    assert edits.fingerprints(backbone) == before


def test_bits_that_compare_equal_or_never_equal_come_back(backbone: Backbone, edit: Edit) -> None:
    name = next(iter(edit.weights))
    tensor = backbone.tensors()[name]
    old = tensor.clone()
    try:
        tensor[0, 0], tensor[0, 1] = -0.0, float("nan")
        before = edits.fingerprints(backbone)
        with edits.apply(backbone, replace(edit, deltas={})):
            pass
        assert edits.fingerprints(backbone) == before
    finally:
        tensor.copy_(old)


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_fingerprint_sees_one_bit_and_order(value: float) -> None:
    a = torch.tensor([1.0, 0.0, 2.0])
    b = a.clone()
    b[1] = value
    assert (edits._fingerprint(a) == edits._fingerprint(b)) == (not torch.signbit(torch.tensor(value)))
    assert edits._fingerprint(a) != edits._fingerprint(a.flip(0))
    assert edits._fingerprint(torch.ones(3).bool()) != edits._fingerprint(torch.zeros(3).bool())


def test_what_does_not_fit_is_refused(backbone: Backbone) -> None:
    p = backbone.projections()[0]
    w = p.weight.detach()
    wrong = LowRank(torch.ones(w.shape[0], 2), torch.ones(3, w.shape[1]))
    for bad, message in (
        (Edit(weights={p.name.replace("to_k", "to_x"): w + 1}), r"unknown tensor .*; did you mean"),
        (Edit(weights={p.name: w[:1] + 1}), r"should be \(32, 128\) torch.float32, got \(1, 128\)"),
        (Edit(weights={p.name: w.double() + 1}), "got .* torch.float64"),
        (Edit(weights={p.name: w / 0}), "not finite"),
        (Edit(deltas={p.name: wrong}), r"should be \(32, rank\) and \(rank, 128\), got \(32, 2\) and \(3, 128\)"),
        (Edit(weights={p.name: w.clone()}), "nothing is erased"),
        (Edit(deltas={p.name: LowRank(torch.ones(w.shape[0], 1), torch.zeros(1, w.shape[1]))}), "nothing is erased"),
    ):
        before = edits.fingerprints(backbone)
        with pytest.raises(BenchError, match=message), edits.apply(backbone, bad):
            pass
        assert edits.fingerprints(backbone) == before


def test_delta_of_a_convolution(backbone: Backbone) -> None:
    name = "unet.conv_in.weight"
    w = backbone.tensors()[name]
    delta = LowRank(torch.ones(w.shape[0], 1), torch.ones(1, w[0].numel()))
    old = w.clone()
    with edits.apply(backbone, Edit(deltas={name: delta})):
        torch.testing.assert_close(w, old + 1)


def test_a_mount_goes_from_one_edit_to_the_next_in_place(backbone: Backbone, edit: Edit) -> None:
    """Each edit is on as if it alone had been put on the unedited model, in the memory that the model has."""
    p, q = backbone.projections()[1:3]
    other = Edit(weights={q.name: q.weight.detach() * 2}, deltas={p.name: LowRank(*edit.deltas[p.name])})
    before, places = edits.fingerprints(backbone), {n: t.data_ptr() for n, t in backbone.tensors().items()}
    alone = {}
    for name, one in (("edit", edit), ("other", other)):
        with edits.apply(backbone, one):
            alone[name] = edits.fingerprints(backbone)
    mount = edits.Mount(backbone)
    ready = {"edit": mount.ready(edit)}
    mount.put(ready["edit"])
    ready["other"] = mount.ready(other)  # also while another edit is on
    for name in ("other", "edit", "other"):
        mount.put(ready[name])
        assert edits.fingerprints(backbone) == alone[name]
        assert not mount.strange()
    mount.put({})
    assert edits.fingerprints(backbone) == before
    assert {n: t.data_ptr() for n, t in backbone.tensors().items()} == places


def test_a_mount_tells_what_was_changed_behind_its_back(backbone: Backbone, edit: Edit) -> None:
    mount = edits.Mount(backbone)
    mount.put(mount.ready(edit))
    mount.put({})
    name = next(iter(edit.weights))
    backbone.tensors()[name][0, 0] += 1
    assert mount.strange() == [name]
    mount.put(mount.ready(edit))
    mount.put({})
    assert not mount.strange()


def test_empty_edit_is_the_model(backbone: Backbone) -> None:
    with edits.apply(backbone, Edit()):
        pass


# --- bytes ------------------------------------------------------------------------------------------------------------
def test_round_trip(edit: Edit) -> None:
    files = edits.serialise(edit)
    again = edits.deserialise(files)
    assert edits.serialise(again) == files
    assert (again.prompts, again.output, again.notes, again.cost) == (edit.prompts, edit.output, edit.notes, edit.cost)
    assert edits.edit_hash(again) == edits.edit_hash(edit)
    assert all(torch.equal(again.weights[n], v) for n, v in edit.weights.items())
    assert set(files) == {"edit.safetensors", "edit.json", "cost.json"}


def test_hash_is_of_what_changes_images(edit: Edit) -> None:
    same = replace(edit, notes={}, cost=Cost(), weights=dict(reversed(list(edit.weights.items()))))
    others = [
        replace(edit, output=None),
        replace(edit, prompts=None),
        replace(edit, deltas={}),
        replace(edit, weights={n: v + 1 for n, v in edit.weights.items()}),
    ]
    assert edits.edit_hash(same) == edits.edit_hash(edit)
    assert len({edits.edit_hash(e) for e in (edit, *others)}) == 5


def test_damaged_bytes_are_said(edit: Edit) -> None:
    files = edits.serialise(edit)
    for bad in ({**files, "edit.safetensors": b"x"}, {"edit.json": files["edit.json"]}, {**files, "edit.json": b"{}"}):
        with pytest.raises(Damaged, match="expected an edit's files"):
            edits.deserialise(bad)


# --- composing --------------------------------------------------------------------------------------------------------
def test_composition_is_one_after_another(backbone: Backbone) -> None:
    p = backbone.projections()[0]
    w = p.weight.detach().clone()
    up, down = torch.ones(w.shape[0], 1), torch.ones(1, w.shape[1])
    plus = Edit(deltas={p.name: LowRank(up, down)}, cost=Cost(seconds=1, peak_bytes=5))
    value = Edit(weights={p.name: w * 2}, cost=Cost(seconds=2, peak_bytes=3))
    for parts, wanted in (
        ([plus, plus], w + 2),
        ([value, plus], w * 2 + 1),
        ([plus, value], w * 2),
        ([Edit(), plus], w + 1),
    ):
        with edits.apply(backbone, edits.compose(parts)):
            torch.testing.assert_close(p.weight, wanted)
    assert edits.compose([plus, value]).cost == Cost(seconds=3, peak_bytes=5)


def test_composition_of_rules() -> None:
    def rule(word: str, replacement: str = "") -> Edit:
        return Edit(prompts=PromptRule(words=(word,), replacement=replacement))

    joined = edits.compose([rule("cat"), rule("dog"), rule("cat")]).prompts
    assert joined is not None and joined.words == ("cat", "dog")
    with pytest.raises(BenchError, match="one replacement"):
        edits.compose([rule("cat", "animal"), rule("car", "vehicle")])


# --- making -----------------------------------------------------------------------------------------------------------
def test_sequential_is_each_on_the_last(backbone: Backbone) -> None:
    whole = edits.make(UCE(), backbone, REQUEST, "sequential")
    first = UCE().edit(backbone, replace(REQUEST, erase=(CAT,)))
    with edits.apply(backbone, first):
        second = UCE().edit(backbone, replace(REQUEST, erase=(DOG,)))
    assert whole.weights.keys() == second.weights.keys()
    assert all(torch.equal(whole.weights[n], v) for n, v in second.weights.items())
    assert edits.edit_hash(whole) != edits.edit_hash(edits.make(UCE(), backbone, REQUEST))
    assert [n["pairs"][0]["erased"] for n in whole.notes["sequence"]] == ["cat", "dog"]
    assert whole.cost.text_encodes == 2 * (1 + 1 + 2)  # for each concept: it, its guide, and two kept prompts


def test_one_concept_in_sequence_is_the_joint_edit(backbone: Backbone) -> None:
    one = replace(REQUEST, erase=(CAT,))
    joint, sequential = (edits.make(UCE(), backbone, one, s) for s in ("joint", "sequential"))
    assert edits.serialise(joint)["edit.json"] == edits.serialise(sequential)["edit.json"]
    assert edits.edit_hash(joint) == edits.edit_hash(sequential)


def test_a_control_copies_the_whole_sequential_edit(backbone: Backbone) -> None:
    uce = edits.make(UCE(), backbone, REQUEST, "sequential")
    noise = edits.make(Noise(), backbone, replace(REQUEST, given={"uce": uce}), "sequential")
    name = next(iter(uce.weights))
    base = backbone.tensors()[name]
    norm = (uce.weights[name] - base).norm()
    torch.testing.assert_close((noise.weights[name] - base).norm(), norm, rtol=1e-4, atol=0)


def test_cost_is_measured(backbone: Backbone) -> None:
    cost = edits.make(UCE(), backbone, REQUEST).cost
    assert cost.seconds > 0 and cost.peak_bytes > 0 and cost.text_encodes > 0
    assert cost.denoiser_forwards == cost.denoiser_backwards == 0


@dataclass(frozen=True, kw_only=True)
class _Base(Method):
    name: ClassVar[str] = "stub"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon"})

    def edit(self, backbone: Backbone, request: Request) -> Edit:
        name = backbone.projections()[0].name
        return Edit(weights={name: backbone.tensors()[name] + 1})


@final
@dataclass(frozen=True, kw_only=True)
class _Spoiler(_Base):
    def edit(self, backbone: Backbone, request: Request) -> Edit:
        backbone.tensors()["unet.conv_in.bias"][3] += 1e-3
        return Edit()


@final
@dataclass(frozen=True, kw_only=True)
class _Single(_Base):
    max_concepts: ClassVar[int | None] = 1


@final
@dataclass(frozen=True, kw_only=True)
class _FlowOnly(_Base):
    families: ClassVar[frozenset[Family]] = frozenset({"transformer-flow"})


def test_a_method_that_spoils_the_model_is_named() -> None:
    with pytest.raises(BenchError, match=r"stub must leave the model.* changed unet\.conv_in\.bias;"):
        edits.make(_Spoiler(), random_unet(), REQUEST)


def test_what_a_method_does_not_support_is_refused(backbone: Backbone) -> None:
    with pytest.raises(BadInput, match="at most 1 concept.*got 2; use strategy: sequential"):
        edits.make(_Single(), backbone, REQUEST)
    p = backbone.projections()[0]
    torch.testing.assert_close(edits.make(_Single(), backbone, REQUEST, "sequential").weights[p.name], p.weight + 2)
    with pytest.raises(BadInput, match="random-unet is unet-epsilon"):
        edits.make(_FlowOnly(), backbone, REQUEST)


def test_json_is_plain(edit: Edit) -> None:
    document = json.loads(edits.serialise(edit)["edit.json"])
    assert document["schema"] == 1 and document["prompts"] == {"replacement": "animal", "words": ["cat"]}
