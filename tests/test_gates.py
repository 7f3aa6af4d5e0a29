"""Gates: the forward computation written out a second time, and what attaching, checking and stacking promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmark import edits, gates
from benchmark.backbones.base import Backbone, Embedding
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BenchError
from benchmark.interface import Edit, Gates, LowRank
from benchmark.items import Item
from benchmark.sample import Sampler, sample

Array = NDArray[np.float64]
PROMPTS = ["a photo of the cat", "", "a dog in an official photo"]
SAMPLER = Sampler(steps=3, guidance=4.0)
ITEMS = [Item(role="erased", concept="cat", prompt=p, replicate=0, seed=n) for n, p in enumerate(PROMPTS)]


@pytest.fixture(scope="module", params=["unet", "flux"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return random_unet() if request.param == "unet" else random_flux()


@pytest.fixture(scope="module")
def unet() -> Backbone:
    return random_unet()


def random_gates(backbone: Backbone, *, concepts: int = 1, width: int = 4, rank: int = 2, seed: int = 0) -> Gates:
    """Gates that act on every projection of tokens, by about as much as its output."""
    g = torch.Generator().manual_seed(seed)
    readers = [p for p in backbone.projections() if p.role != "pooled"]
    dim = readers[0].weight.shape[1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    return Gates(
        query=0.1 * draw(concepts, dim, width),
        key=0.1 * draw(concepts, dim, width),
        vector=0.1 * draw(concepts, dim),
        changes={
            p.name: LowRank(draw(concepts, p.weight.shape[0], rank), 0.1 * draw(concepts, rank, dim)) for p in readers
        },
    )


def explicit(tokens: Tensor, found: Gates, name: str) -> Array:
    """The paper's steps in float64, token by token and concept by concept."""
    texts = tokens.double().numpy()
    change = found.changes[name]
    out = np.zeros((*texts.shape[:2], change.up.shape[1]))
    for b, text in enumerate(texts):
        attended, opened = [], []
        for query, key, vector in zip(found.query, found.key, found.vector, strict=True):
            scores = (text @ query.double().numpy()) @ (text @ key.double().numpy()).T
            shares = np.exp(scores - scores.max(1, keepdims=True))
            attended.append(shares / shares.sum(1, keepdims=True) @ text)
            opened.append(1 / (1 + np.exp(-attended[-1] @ vector.double().numpy())))
        for t in range(len(text)):
            n = int(np.argmax([gate[t] for gate in opened]))
            down, up = (part[n].double().numpy() for part in (change.down, change.up))
            out[b, t] = up @ (down @ (opened[n][t] * attended[n][t]))
    return out


@torch.no_grad()
def outputs(backbone: Backbone, text: Embedding) -> dict[str, Tensor]:
    """What every projection of tokens puts out in one prediction."""
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Any:
        def change(_: Tensor, output: Tensor) -> Tensor:
            seen[name] = output.clone()
            return output

        return change

    names = [p.name for p in backbone.projections() if p.role != "pooled"]
    with backbone.attached({name: look(name) for name in names}):
        predict(backbone, text)
    return seen


@torch.no_grad()
def predict(backbone: Backbone, text: Embedding) -> Tensor:
    return backbone.predict(backbone.noise(range(len(text))), backbone.timesteps(4)[1], text)


def images(backbone: Backbone) -> bytes:
    return b"".join(image.tobytes() for _, batch in sample(backbone, ITEMS, SAMPLER, 2) for image in batch)


# --- the forward computation ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("concepts", [1, 3])
def test_residual_is_the_formula_on_every_projection(backbone: Backbone, concepts: int) -> None:
    found, text = random_gates(backbone, concepts=concepts), backbone.embed(PROMPTS)
    plain = outputs(backbone, text)
    with gates.attached(backbone, found):
        changed = outputs(backbone, text)
    for name, base in plain.items():
        wanted = explicit(text.tokens, found, name)
        assert np.abs(wanted).max() > 0.1
        error = np.abs((changed[name] - base).double().numpy() - wanted).max()
        assert error < 1e-5 * (np.abs(wanted).max() + float(base.abs().max()))


def test_formula_holds_to_rounding_in_float64(unet: Backbone) -> None:
    found, tokens = random_gates(unet, concepts=3), unet.embed(PROMPTS).tokens.double()
    wide = Gates(
        query=found.query.double(),
        key=found.key.double(),
        vector=found.vector.double(),
        changes={n: LowRank(c.up.double(), c.down.double()) for n, c in found.changes.items()},
    )
    for name, change in wide.changes.items():
        wanted = explicit(tokens, found, name)
        mine = gates.residual(gates.gated(tokens, wide), change).numpy()
        assert np.abs(mine - wanted).max() < 1e-12 * np.abs(wanted).max()


def test_each_token_goes_to_the_highest_gate() -> None:
    """Two concepts whose gates look at one coordinate each, and attention so sharp that every token sees itself."""
    tokens = torch.tensor([[[5.0, 0.0, 0.0, 1.0], [0.0, 5.0, 0.0, 1.0], [0.0, 0.0, 5.0, 1.0]]])
    sharp = 20 * torch.eye(4)[None].expand(2, 4, 4)
    vector = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    found = gates.gated(tokens, Gates(query=sharp, key=sharp, vector=vector, changes={}))
    assert found.winner.tolist() == [[0, 1, 0]]  # the third is at σ(0) for both: the first of equals
    gate = torch.sigmoid(torch.tensor(5.0))
    torch.testing.assert_close(found.tokens[0, :2], gate * tokens[0, :2])
    torch.testing.assert_close(found.tokens[0, 2], 0.5 * tokens[0, 2])


def test_gates_are_differentiable_in_the_text(unet: Backbone) -> None:
    found, text = random_gates(unet), unet.embed(PROMPTS[:1])
    with torch.enable_grad(), gates.attached(unet, found):
        for _ in range(2):  # a graph kept from the first would have been freed
            leaf = text.tokens.clone().requires_grad_()
            out = unet.predict(unet.noise([0]), unet.timesteps(4)[1], replace(text, tokens=leaf)).sum()
            [gradient] = torch.autograd.grad(out, leaf)
            assert gradient.abs().max() > 0


# --- on a model -------------------------------------------------------------------------------------------------------
def test_gates_come_off_without_a_trace(backbone: Backbone) -> None:
    text, before = backbone.embed(PROMPTS), edits.fingerprints(backbone)
    base = predict(backbone, text)
    with edits.apply(backbone, Edit(gates=random_gates(backbone))):
        assert edits.fingerprints(backbone) == before
        assert not torch.equal(predict(backbone, text), base)
    assert torch.equal(predict(backbone, text), base)
    with pytest.raises(KeyboardInterrupt), edits.apply(backbone, Edit(gates=random_gates(backbone))):
        raise KeyboardInterrupt
    assert torch.equal(predict(backbone, text), base)


@pytest.mark.parametrize("side", ["up", "down"])
def test_gates_at_zero_are_the_model_bit_for_bit(unet: Backbone, side: str) -> None:
    some = random_gates(unet, concepts=2)
    zero = {n: c._replace(**{side: torch.zeros_like(getattr(c, side))}) for n, c in some.changes.items()}
    base = images(unet)
    with gates.attached(unet, replace(some, changes=zero)):
        assert images(unet) == base
    with gates.attached(unet, some):
        assert images(unet) != base


def test_projections_at_zero_keep_their_signed_zeros(unet: Backbone) -> None:
    some, name = random_gates(unet), unet.projections()[0].name
    zero = replace(some, changes={**some.changes, name: LowRank(*(torch.zeros_like(t) for t in some.changes[name]))})
    weight = unet.tensors()[name]
    old = weight.clone()
    try:
        weight.zero_()
        text = unet.embed(PROMPTS)
        base = outputs(unet, replace(text, tokens=-text.tokens.abs()))[name]
        with gates.attached(unet, zero):
            found = outputs(unet, replace(text, tokens=-text.tokens.abs()))[name]
        assert torch.equal(found.signbit(), base.signbit())
    finally:
        weight.copy_(old)


def test_kept_residuals_follow_the_text(unet: Backbone) -> None:
    """Residuals are kept between predictions; another text, or the same tensor with other values, must not get them."""
    found, first, second = random_gates(unet), unet.embed(["a cat"]), unet.embed(["a dog"])
    alone = []
    for text in (first, second):
        with gates.attached(unet, found):
            alone.append(predict(unet, text))
    held = Embedding(first.tokens.clone(), None, first.ids, first.last)
    with gates.attached(unet, found):
        assert torch.equal(predict(unet, first), alone[0])
        assert torch.equal(predict(unet, second), alone[1])
        assert torch.equal(predict(unet, held), alone[0])
        held.tokens.copy_(second.tokens)
        assert torch.equal(predict(unet, held), alone[1])


def test_residuals_are_computed_once_a_text(unet: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = gates.gated
    monkeypatch.setattr(gates, "gated", lambda *a: calls.append(1) or real(*a))
    with gates.attached(unet, random_gates(unet)):
        images(unet)
    assert len(calls) == 2  # batches: three images, two at a time; not steps, not projections


def test_half_precision_models_keep_their_dtype() -> None:
    half = random_unet(dtype=torch.bfloat16)
    text = half.embed(PROMPTS)
    base = predict(half, text)
    with gates.attached(half, random_gates(half)):
        changed = predict(half, text)
    assert changed.dtype == torch.bfloat16 and not torch.equal(changed, base)


# --- checking ---------------------------------------------------------------------------------------------------------
def bad_gates(backbone: Backbone) -> list[tuple[Gates, str]]:
    good = random_gates(backbone, concepts=2)
    name = next(iter(good.changes))
    up, down = good.changes[name]

    def change(value: LowRank) -> Gates:
        return replace(good, changes={**good.changes, name: value})

    return [
        (
            replace(good, changes={name.replace("to_k", "to_x"): good.changes[name]}),
            "unknown projection .*; did you mean",
        ),
        (replace(good, changes={"unet.conv_in.weight": good.changes[name]}), "unknown projection"),
        (replace(good, changes={}), "at least one concept and one projection"),
        (replace(good, vector=good.vector[:0]), "at least one concept and one projection"),
        (replace(good, vector=good.vector[0]), "at least one concept and one projection"),
        (replace(good, vector=good.vector[:, :3]), r"vector should be \(2, 128\).*got \(2, 3\)"),
        (replace(good, query=good.query[:1]), r"query should be \(2, 128, 4\).*got \(1, 128, 4\)"),
        (replace(good, query=good.query.long()), "floating point"),
        (replace(good, key=good.key[..., :2]), r"key should be \(2, 128, 4\)"),
        (replace(good, key=torch.tensor(1.0)), "key should be"),
        (change(LowRank(up[:, :3], down)), r"up of unet.* should be \(2, 32, 2\)"),
        (change(LowRank(up, down[:, :1])), r"down of unet.* should be \(2, 2, 128\)"),
        (change(LowRank(up / 0, down)), "up of .* not finite"),
        (replace(good, query=good.query * float("nan")), "query .*not finite"),
        (replace(good, changes={n: LowRank(0 * c.up, c.down) for n, c in good.changes.items()}), "nothing is erased"),
    ]


@pytest.mark.parametrize("case", range(15))
def test_what_does_not_fit_is_refused(unet: Backbone, case: int) -> None:
    bad, message = bad_gates(unet)[case]
    with pytest.raises(BenchError, match=message), edits.apply(unet, Edit(gates=bad)):
        pass


def test_pooled_text_has_no_gates() -> None:
    flux = random_flux()
    pooled = next(p for p in flux.projections() if p.role == "pooled")
    good = random_gates(flux)
    change = LowRank(torch.ones(1, pooled.weight.shape[0], 2), torch.ones(1, 2, pooled.weight.shape[1]))
    with pytest.raises(BenchError, match="unknown projection"):
        edits.check(flux, Edit(gates=replace(good, changes={pooled.name: change})))


def test_gates_at_zero_pass_beside_weights_that_change(unet: Backbone) -> None:
    some = random_gates(unet)
    zero = replace(some, changes={n: LowRank(0 * c.up, c.down) for n, c in some.changes.items()})
    p = unet.projections()[0]
    edits.check(unet, Edit(weights={p.name: p.weight + 1}, gates=zero))
    with pytest.raises(BenchError, match="nothing is erased"):
        edits.check(unet, Edit(weights={p.name: p.weight.clone()}, gates=zero))
    edits.check(unet, Edit(weights={p.name: p.weight.clone()}, gates=some))


# --- stacking ---------------------------------------------------------------------------------------------------------
def test_stacked_concepts_act_as_each_alone_where_they_do_not_compete(unet: Backbone) -> None:
    """Attention without preference sees the mean of all tokens; one gate opens to one prompt's mean, one to the
    other's, and the third to neither."""
    text = unet.embed(["a photo of the cat", "a dog in an official photo"])
    # rows of the pseudo-inverse: 1 on their own prompt's mean, 0 on the other's
    own = torch.linalg.pinv(text.tokens.mean(1)).T
    vectors = [5 * own[0] - 5 * own[1], 5 * own[1] - 5 * own[0], 0 * own[0]]
    parts = [random_gates(unet, seed=n) for n in range(3)]
    parts = [replace(p, query=0 * p.query, vector=v[None]) for p, v in zip(parts, vectors, strict=True)]
    whole = gates.stacked(parts)
    assert [set(row.tolist()) for row in gates.gated(text.tokens, whole).winner] == [{0}, {1}]
    for row in (0, 1):
        with gates.attached(unet, whole):
            together = outputs(unet, text[[row]])
        with gates.attached(unet, parts[row]):
            alone = outputs(unet, text[[row]])
        assert all(torch.equal(together[n], alone[n]) for n in alone)


def test_stacking_fills_what_differs_with_zeros(unet: Backbone) -> None:
    narrow, wide = random_gates(unet, width=2, rank=1), random_gates(unet, width=5, rank=3, concepts=2, seed=1)
    name, *_, gone = narrow.changes
    narrow = replace(narrow, changes={n: c for n, c in narrow.changes.items() if n != gone})
    whole = gates.stacked([narrow, wide])
    gates.check(unet, whole)
    assert whole.query.shape == (3, 128, 5) and whole.changes[name].up.shape[2] == 3
    text = unet.embed(PROMPTS).tokens
    for n, part in ((0, narrow), (1, wide)):
        mine = Gates(
            query=whole.query[n : n + len(part.vector)],
            key=whole.key[n : n + len(part.vector)],
            vector=whole.vector[n : n + len(part.vector)],
            changes={m: LowRank(*(t[n : n + len(part.vector)] for t in c)) for m, c in whole.changes.items()},
        )
        for m, change in part.changes.items():
            alone = gates.residual(gates.gated(text, part), change)
            torch.testing.assert_close(gates.residual(gates.gated(text, mine), mine.changes[m]), alone)
    assert not whole.changes[gone].up[0].any() and not whole.changes[gone].down[0].any()


def test_composition_stacks_gates_and_keeps_weights(unet: Backbone) -> None:
    p = unet.projections()[0]
    one, two = random_gates(unet, seed=1), random_gates(unet, seed=2)
    whole = edits.compose([Edit(gates=one), Edit(weights={p.name: p.weight + 1}), Edit(gates=two)])
    assert whole.gates is not None and torch.equal(whole.gates.vector, torch.cat([one.vector, two.vector]))
    assert list(whole.weights) == [p.name]
    assert edits.compose([Edit(gates=one)]).gates is one
    assert edits.compose([Edit(), Edit()]).gates is None


# --- bytes ------------------------------------------------------------------------------------------------------------
def test_saved_and_loaded_gates_act_bit_for_bit(unet: Backbone) -> None:
    p = unet.projections()[1]
    edit = Edit(
        gates=random_gates(unet, concepts=2),
        weights={p.name: p.weight.detach() + 0.1},
        deltas={p.name: LowRank(torch.ones(p.weight.shape[0], 1), torch.ones(1, p.weight.shape[1]))},
    )
    files = edits.serialise(edit)
    again = edits.deserialise(files)
    assert edits.serialise(again) == files and edits.edit_hash(again) == edits.edit_hash(edit)
    base = images(unet)
    with edits.apply(unet, edit):
        first = images(unet)
    with edits.apply(unet, again):
        assert images(unet) == first
    assert images(unet) == base != first


def test_hash_sees_every_part_of_the_gates(unet: Backbone) -> None:
    good = random_gates(unet)
    name = next(iter(good.changes))
    up, down = good.changes[name]
    others = [
        replace(good, query=good.query + 1),
        replace(good, key=good.key + 1),
        replace(good, vector=good.vector + 1),
        replace(good, changes={**good.changes, name: LowRank(up + 1, down)}),
        replace(good, changes={**good.changes, name: LowRank(up, down + 1)}),
        replace(good, changes={n: c for n, c in good.changes.items() if n != name}),
    ]
    hashes = {edits.edit_hash(Edit(gates=g)) for g in (good, *others)}
    assert len(hashes | {edits.edit_hash(Edit())}) == 8
    assert edits.edit_hash(Edit(gates=replace(good, changes=dict(reversed(good.changes.items()))))) in hashes


def test_edits_without_gates_keep_their_bytes() -> None:
    """Of version 0.1.0, so that what was stored and recorded then is found again."""
    assert b"gates" not in edits.serialise(Edit(output="grey"))["edit.json"]
    assert edits.edit_hash(Edit()) == EMPTY


EMPTY = "378d2eca8f20e8004d7a0d9849459e8bd05c3d0efa611367e193436e368b0c94"
