"""CPE: every loss and the Lipschitz weights against float64 written out a second time, and what training promises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from numpy.typing import NDArray

from benchmark import edits, gates
from benchmark.backbones.base import Backbone
from benchmark.backbones.load import load
from benchmark.backbones.random_models import random_unet
from benchmark.errors import BadInput, BenchError
from benchmark.interface import Gates, Request, Target
from methods import _cpe
from methods.cpe import CPE, RELEASED

Array = NDArray[np.float64]
MIRA = Target(name="mira talvane", kind="identity", anchor="person")
OSKAR = Target(name="oskar brindle", kind="identity", anchor="person")
CAT = Target(name="cat", kind="object", anchor="animal")
OIL = Target(name="oil", kind="style", anchor="plain")
REQUEST = Request(
    erase=(MIRA, OSKAR), keep=("juno pellarin", "tobias krell", "lena varkas"), general=("a truck",), seed=3
)
SMALL: dict[str, Any] = {
    "templates": "short",
    "stages": 2,
    "iterations": 8,
    "adversaries": 2,
    "anchors": 4,
    "first_lr": 1e-2,
    "lr": 1e-3,
}


@pytest.fixture(scope="module")
def unet() -> Backbone:
    return random_unet()


# --- the formulas -----------------------------------------------------------------------------------------------------
def omega(backbone: Backbone) -> dict[str, float]:
    """The Lipschitz weights by numpy's SVD."""
    live, found = {n: t.double().numpy() for n, t in backbone.tensors().items() if t.ndim == 2}, {}

    def sigma(matrix: Array) -> float:
        return float(np.linalg.svd(matrix, compute_uv=False)[0])

    for p in backbone.projections():
        block = p.name.removesuffix(".to_k.weight").removesuffix(".to_v.weight")
        q, v, o = (live[f"{block}.{part}.weight"] for part in ("to_q", "to_v", "to_out.0"))
        found[p.name] = sigma(o @ v) * sigma(q) / 24 if p.role == "key" else sigma(o)
    return found


def test_lipschitz_weights_are_the_largest_singular_values(unet: Backbone) -> None:
    wanted = omega(unet)
    found = _cpe.lipschitz(unet)
    assert found.keys() == wanted.keys() and len(found) == 14
    assert all(float(found[n]) == pytest.approx(w, rel=1e-9) for n, w in wanted.items())


def random_module(model: _cpe.Model, *, tied: bool, width: int = 4, rank: int = 2) -> _cpe.Module:
    g = torch.Generator().manual_seed(5)
    settings = replace(RELEASED["celebrity"], width=width, rank=rank)
    module = _cpe.initial(model, settings, tied=tied, generator=g)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module


def random_example(backbone: Backbone, dtype: torch.dtype, deltas: int = 3) -> _cpe.Example:
    tokens = backbone.embed(["mira talvane", "a person", "", "a cat", "a dog"]).tokens.to(dtype)
    g = torch.Generator().manual_seed(9)
    drawn = 0.3 * torch.randn(deltas, *tokens.shape[1:], generator=g, dtype=dtype)
    return _cpe.Example(tokens[:1], tokens[1:2], drawn, tokens[2:])


class Explicit:
    """The losses as the paper has them, projection by projection and as wide as their outputs, in float64."""

    def __init__(self, backbone: Backbone, model: _cpe.Model, module: _cpe.Module) -> None:
        self.weights = {p.name: p.weight.double().numpy() for p in backbone.projections()}
        self.omega = omega(backbone)
        self.query, self.key, self.vector = (_numpy(t) for t in (module.query, module.key, module.vector))
        self.up: dict[str, Array] = {}
        self.down: dict[str, Array] = {}
        for group, up, down in zip(model.groups, module.up, module.down, strict=True):
            self.up |= {n: _numpy(up[i]) / up.shape[2] for i, n in enumerate(group.names)}
            self.down |= {n: _numpy(down[i]) for i, n in enumerate(group.names)}

    def base(self, name: str, text: Array) -> Array:
        """F: `(length, out)`."""
        return text @ self.weights[name].T

    def gated(self, text: Array) -> Array:
        scores = (text @ self.query) @ (text @ self.key).T
        shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        attended = shares @ text
        return attended / (1 + np.exp(-attended @ self.vector))[:, None]

    def edited(self, name: str, text: Array) -> Array:
        """G: `(length, out)`."""
        return self.base(name, text) + self.gated(text) @ self.down[name].T @ self.up[name].T

    def mean(self, difference: Any) -> float:
        parts = [self.omega[n] * np.mean(difference(n) ** 2) for n in self.weights]
        return float(sum(parts) / len(parts))

    def erasing(self, e: Array, n: Array, delta: Array | float, eta: float) -> float:
        def difference(name: str) -> Array:
            target = self.base(name, n) + eta * (self.base(name, n) - self.base(name, e))
            return target - self.edited(name, e + delta)

        return self.mean(difference)

    def anchoring(self, a: Array) -> float:
        return self.mean(lambda name: self.base(name, a) - self.edited(name, a))

    def adversary(self, e: Array, delta: Array) -> float:
        return self.mean(lambda name: self.edited(name, e + delta) - self.base(name, e))


def _numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("weights", [(0.3, 0.0, 0.0), (3.0, 1.0, 0.0), (0.3, 0.0, 1e5), (0.5, 0.7, 1e4)])
def test_losses_are_the_formulas(
    unet: Backbone, tied: bool, dtype: torch.dtype, tolerance: float, weights: tuple[float, float, float]
) -> None:
    model = _cpe.read(unet, dtype)
    module, example = random_module(model, tied=tied), random_example(unet, dtype)
    explicit, (e, n, deltas, anchors) = Explicit(unet, model, module), (_numpy(part) for part in example)
    eta, adversarial, keep = weights
    wanted = explicit.erasing(e[0], n[0], 0.0, eta)
    wanted += adversarial * float(np.mean([explicit.erasing(e[0], n[0], d, eta) for d in deltas]))
    wanted += keep * float(np.mean([explicit.anchoring(a) for a in anchors]))
    found = _cpe.module_loss(model, module, example, _cpe.Weights(*weights)).detach()
    assert float(found) == pytest.approx(wanted, rel=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
def test_adversary_s_loss_is_the_formula(unet: Backbone, dtype: torch.dtype, tolerance: float) -> None:
    model = _cpe.read(unet, dtype)
    module, example = random_module(model, tied=True), random_example(unet, dtype)
    explicit = Explicit(unet, model, module)
    wanted = np.mean([explicit.adversary(_numpy(example.concept)[0], d) for d in _numpy(example.adversaries)])
    found = _cpe.adversary_loss(model, module, _cpe.residuals(model, module), example.concept, example.adversaries)
    found = found.detach()
    assert float(found) == pytest.approx(float(wanted), rel=tolerance)


def test_gradients_are_those_of_the_formula(unet: Backbone) -> None:
    """The multiplied-out loss, by its central difference, along every kind of parameter."""
    model = _cpe.read(unet, torch.float64)
    module, example = random_module(model, tied=False), random_example(unet, torch.float64)
    explicit_at = lambda: Explicit(unet, model, module)  # noqa: E731
    e, n, deltas, anchors = (_numpy(part) for part in example)

    def total() -> float:
        x = explicit_at()
        adversarial = np.mean([x.erasing(e[0], n[0], d, 0.3) for d in deltas])
        return float(x.erasing(e[0], n[0], 0.0, 0.3) + adversarial + 10 * np.mean([x.anchoring(a) for a in anchors]))

    with torch.enable_grad():
        loss = _cpe.module_loss(model, module, example, _cpe.Weights(0.3, 1.0, 10.0))
        gradients = torch.autograd.grad(loss, module.parameters())
    g = torch.Generator().manual_seed(2)
    for parameter, gradient in zip(module.parameters(), gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=g, dtype=parameter.dtype)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-5 * direction)
                ends.append(total())
                parameter.add_(-sign * 1e-5 * direction)
        assert float((gradient * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_training_and_inference_gate_alike(unet: Backbone) -> None:
    model = _cpe.read(unet)
    module, text = random_module(model, tied=True, rank=3), unet.embed(["a photo of the cat", ""]).tokens
    found = _cpe.stacked([module], model)
    with torch.no_grad():
        mine = _cpe.gated(module, text)
        torch.testing.assert_close(gates.gated(text, found).tokens, mine)
        for group, up, down in zip(model.groups, module.up, module.down, strict=True):
            for i, name in enumerate(group.names):
                wanted = mine @ down[i].mT @ up[i].mT / 3
                torch.testing.assert_close(gates.residual(gates.gated(text, found), found.changes[name]), wanted)


def test_a_new_module_is_the_identity_with_open_gates(unet: Backbone) -> None:
    model = _cpe.read(unet)
    module = _cpe.initial(model, RELEASED["explicit"], tied=False, generator=torch.Generator().manual_seed(0))
    found = _cpe.stacked([module], model)
    gates.check(unet, found)
    assert not gates.acts(found)
    assert all(c.down.abs().max() > 0 for c in found.changes.values())
    tokens = unet.embed(["a photo of the cat"]).tokens
    mean = tokens.mean(1, keepdim=True).expand_as(tokens)
    torch.testing.assert_close(gates.gated(tokens, found).tokens, mean / 2, rtol=1e-3, atol=1e-4)  # σ(0) of the mean
    bound = 1 / math.sqrt(128 * 64) / 128**2
    assert 0.9 * bound < float(module.key.detach().abs().max()) <= bound


SD14 = [(320, 5), (640, 5), (1280, 6)]
"""Widths of SD 1.4's cross-attentions, and how many blocks of each."""


@pytest.mark.parametrize(("setting", "released"), [("celebrity", 74_912), ("artist", 74_912), ("explicit", 297_248)])
def test_parameters_are_as_many_as_in_a_released_module(setting: str, released: int) -> None:
    """The released file of SD 1.4 also holds α, one number for each of its 32 layers."""
    groups = tuple(
        _cpe.Group(tuple(f"{out}.{i}" for i in range(2 * n)), torch.zeros(2 * n, out, 768), torch.ones(2 * n))
        for out, n in SD14
    )
    model = _cpe.Model(groups, torch.zeros(768, 768))
    module = _cpe.initial(model, RELEASED[setting], tied=False, generator=torch.Generator())
    layers = sum(len(g.names) for g in groups)
    assert layers == 32
    assert sum(p.numel() for p in module.parameters()) + layers == released
    tied = _cpe.initial(model, RELEASED[setting], tied=True, generator=torch.Generator())
    stored = _cpe.stacked([tied], model)
    assert sum(t.numel() for t in edits._gate_tensors(stored).values()) + layers == released


# --- the schedule, anchors --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("warmup", "steps", "cycles"), [(5, 60, 2), (0, 7, 1), (10, 12, 1)])
def test_rates_are_those_of_diffusers(warmup: int, steps: int, cycles: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = get_scheduler(
        "cosine_with_restarts", optimizer, num_warmup_steps=warmup, num_training_steps=steps, num_cycles=cycles
    )
    for i in range(steps):
        mine = _cpe.cosine(i, warmup=warmup, steps=steps, cycles=cycles)
        assert mine == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_mixtures_lie_between_two_prompts_with_noise_as_wide_as_said() -> None:
    pool = torch.stack([torch.full((8, 16), 2.0), torch.full((8, 16), -2.0)])
    plain = _cpe.mixtures(pool, 500, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(plain.amin((1, 2)), plain.amax((1, 2))) and plain.abs().max() <= 2
    both = plain[plain.abs().amax((1, 2)) < 1.999]
    assert 150 < len(both) < 350  # half of the pairs are of two different prompts
    assert float(both[:, 0, 0].std()) == pytest.approx(4 / math.sqrt(12), rel=0.1)  # a uniform share
    # of one prompt with itself: shares s and 1 − s, so the variance is (0.01 ‖e‖)² times E[s² + (1 − s)²] = 2/3
    one = _cpe.mixtures(pool[:1], 500, 0.01, torch.Generator().manual_seed(0)) - 2
    assert float(one.std()) == pytest.approx(0.01 * float(pool[0].norm()) * math.sqrt(2 / 3), rel=0.02)
    assert len(_cpe.mixtures(pool[:0], 5, 0.1, torch.Generator())) == 0


def test_nearest_names_come_first() -> None:
    names = torch.tensor([[[0.0, 1.0]], [[2.0, 0.1]], [[-1.0, 0.0]], [[1.0, 1.0]]])
    assert _cpe.nearest(torch.tensor([[[3.0, 0.0]]]), names, 3) == [1, 3, 0]


# --- prompts and settings ---------------------------------------------------------------------------------------------
def test_settings_by_kind() -> None:
    for kind, setting, neutral in (
        ("identity", "celebrity", "a person"),
        ("style", "artist", "real photograph"),
        ("explicit", "explicit", "a person in modest clothing"),
        ("object", "celebrity", "thing"),
        ("fine-grained", "celebrity", "thing"),
    ):
        target = Target(name="x", kind=kind, anchor="thing")  # type: ignore[arg-type]
        assert CPE().settings(target) == replace(RELEASED[setting], neutral=neutral)
        assert CPE(neutral="anchor").settings(target).neutral == "thing"
        assert CPE(setting="artist").settings(target) == RELEASED["artist"]
    assert CPE(eta=2.0, rank=3).settings(MIRA) == replace(RELEASED["celebrity"], eta=2.0, rank=3)


@pytest.mark.parametrize(("setting", "steps"), [("celebrity", 3600), ("artist", 5850), ("explicit", 25200)])
def test_steps_in_all(setting: str, steps: int) -> None:
    s = RELEASED[setting]
    assert s.iterations * (s.first + s.stages - 1) == steps


def test_prompts_of_a_task() -> None:
    request = replace(
        REQUEST, keep=("Juno Pellarin", "Mira Talvane II", "OSKAR BRINDLE"), general=("a cat", "mira talvane")
    )
    task = CPE(templates=("a sketch of {}",)).task(MIRA, request)
    assert task.pairs == (("a sketch of mira talvane", "a sketch of a person"),)
    assert task.templates == ("{}", "a sketch of {}")
    assert task.names == ("Juno Pellarin",) and task.prompts == ("a cat",)
    empty = CPE(neutral="anchor", templates=("a sketch of {}",)).task(replace(MIRA, anchor=""), request)
    assert empty.pairs == (("a sketch of mira talvane", ""),)
    bare = CPE(templates=("a sketch of {}",)).task(MIRA, Request(erase=(MIRA,)))
    assert {"tree", "a sketch of tree"} <= set(bare.prompts) and not bare.names


# --- training ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def embedded() -> Backbone:
    """The shipped model: a gate tells texts apart only where the text encoder does."""
    return load("testbed")


NAME = Target(name="tobias krell", kind="identity", anchor="person")
HELD = Request(erase=(NAME,), keep=("hugo fenwright", "amara nyston", "yuki lorman", "greta umbarrow"))
FIRST = CPE(templates="short", neutral="anchor", stages=1, iterations=100, first_lr=3e-3)


def share_left(backbone: Backbone, found: Gates, prompt: str, wanted: str | None) -> float:
    """Weighted square distance of the prompt's keys and values to what is wanted, against that of NAME's at the start.

    None wants the prompt's own. `wanted` is the neutral prompt, and NAME's goal η beyond it.
    """
    e, n, start, end = backbone.embed(
        [prompt, wanted or prompt, "a portrait of tobias krell", "a portrait of person"]
    ).tokens
    text, eta, omega = gates.gated(e[None], found), RELEASED["celebrity"].eta, _cpe.lipschitz(backbone)
    left = total = 0.0
    for p in backbone.projections():
        change = gates.residual(text, found.changes[p.name])[0]
        left += float(omega[p.name] * ((1 + eta) * (n - e) @ p.weight.T - change).square().mean())
        total += float(omega[p.name] * ((1 + eta) * (end - start) @ p.weight.T).square().mean())
    return left / total


@pytest.mark.slow
def test_training_erases_the_concept_and_holds_the_anchors(embedded: Backbone) -> None:
    edit = edits.make(FIRST, embedded, HELD)
    assert edit.gates is not None
    assert share_left(embedded, edit.gates, "a portrait of tobias krell", "a portrait of person") < 0.3
    for prompt in ("", *(f"a portrait of {name}" for name in HELD.keep)):
        assert share_left(embedded, edit.gates, prompt, None) < 0.01
    [note] = edit.notes["concepts"]
    assert (note["name"], note["neutral"]) == ("tobias krell", "person")
    assert note["loss_last"] < 0.5 * note["loss_first"]


@pytest.mark.slow
def test_adversaries_bring_the_concept_back(embedded: Backbone) -> None:
    task, model, text = FIRST.task(NAME, HELD), _cpe.read(embedded), _cpe._text(embedded, FIRST.task(NAME, HELD), 50)
    module, _ = _cpe._train(embedded, model, task, FIRST, _cpe._generator(0, NAME.name))
    frozen = module.frozen()
    assert not any(p.requires_grad for p in frozen.parameters())
    deltas = _cpe._adversaries(model, frozen, text, task, FIRST, _cpe._generator(1, NAME.name))
    found = _cpe.residuals(model, frozen)
    far, near = (float(_cpe.adversary_loss(model, frozen, found, text.concept[:1], d)) for d in (0 * deltas, deltas))
    assert near < 0.7 * far
    assert not deltas.requires_grad and deltas.shape == (16, 24, 128)


def test_stages_and_adversarial_weight_change_the_edit(unet: Backbone) -> None:
    request = replace(REQUEST, erase=(MIRA,))
    made = [
        CPE(**{**SMALL, **fields}).edit(unet, request)
        for fields in (
            {},
            {"stages": 1},
            {"adversarial_weight": 0.0},
            {"keep_weight": 0.0},
            {"noise": 0.1},
            {"eta": 1.0},
        )
    ]
    assert len({edits.edit_hash(e) for e in made}) == len(made)


def test_tied_modules_share_one_matrix(unet: Backbone) -> None:
    request = replace(REQUEST, erase=(MIRA,))
    tied, free = (CPE(**SMALL, tied_qk=t).edit(unet, request).gates for t in (True, False))
    assert tied is not None and free is not None
    assert torch.equal(tied.query, tied.key) and not torch.equal(free.query, free.key)
    settings = CPE(**SMALL).settings(MIRA)
    start = _cpe.initial(_cpe.read(unet), settings, tied=False, generator=_cpe._generator(3, MIRA.name))
    assert not torch.equal(free.key[0], start.key) and not torch.equal(free.query[0], start.query)


def rows(found: Gates, n: int) -> list[torch.Tensor]:
    return [t[n] for t in edits._gate_tensors(found).values()]


def test_concepts_are_trained_apart_and_stacked(unet: Backbone) -> None:
    both = CPE(**SMALL).edit(unet, REQUEST).gates
    assert both is not None
    for n, target in enumerate(REQUEST.erase):
        alone = CPE(**SMALL).edit(unet, replace(REQUEST, erase=(target,))).gates
        assert alone is not None
        assert all(torch.equal(a, b) for a, b in zip(rows(both, n), rows(alone, 0), strict=True))


def test_sequential_is_joint(unet: Backbone) -> None:
    joint, sequential = (edits.make(CPE(**SMALL), unet, REQUEST, s) for s in ("joint", "sequential"))
    assert edits.edit_hash(joint) == edits.edit_hash(sequential)
    assert joint.cost.denoiser_forwards == 0 and joint.cost.text_encodes > 0


def test_kinds_of_different_width_are_stacked(unet: Backbone) -> None:
    erase = (MIRA, Target(name="dog", kind="explicit", anchor="animal"), OIL)
    edit = CPE(**SMALL).edit(unet, replace(REQUEST, erase=erase))
    assert edit.gates is not None and edit.gates.query.shape == (3, 128, 64)
    gates.check(unet, edit.gates)
    assert (
        not edit.gates.query[0, :, 16:].any() and not edit.gates.changes[unet.projections()[0].name].up[0, :, 1:].any()
    )
    assert [n["neutral"] for n in edit.notes["concepts"]] == [
        "a person",
        "a person in modest clothing",
        "real photograph",
    ]


def test_seed_and_only_the_seed_decides(unet: Backbone) -> None:
    first, second, other = (edits.edit_hash(CPE(**SMALL).edit(unet, replace(REQUEST, seed=seed))) for seed in (1, 1, 2))
    assert first == second != other


def test_gates_are_data(unet: Backbone) -> None:
    edit = CPE(**SMALL).edit(random_unet(dtype=torch.bfloat16), REQUEST)
    assert edit.gates is not None
    tensors = edits._gate_tensors(edit.gates)
    assert len(tensors) == 3 + 2 * 14
    assert all(t.dtype == torch.float32 and not t.requires_grad and t.is_leaf for t in tensors.values())
    with pytest.raises(AttributeError):
        edit.gates.query = edit.gates.key  # type: ignore[misc]


def test_without_names_or_prompts_words_are_anchors(unet: Backbone) -> None:
    edit = CPE(**SMALL).edit(unet, Request(erase=(CAT,)))
    assert edit.notes["concepts"][0]["anchors"] > 100
    only = CPE(**SMALL).edit(unet, Request(erase=(CAT,), general=("a cat",)))
    assert only.notes["concepts"][0]["anchors"] == 0  # the empty prompt alone is held


# --- bad input --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"setting": "celebrities"}, "unknown setting 'celebrities'; did you mean 'celebrity'"),
        ({"neutral": "person"}, "unknown neutral"),
        ({"templates": "papre"}, "unknown set of templates 'papre'; did you mean 'paper'"),
        ({"templates": ("a photo",)}, "templates must hold {} once"),
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"width": 1.5}, "width must be a whole number"),
        ({"iterations": 1}, "iterations must be a whole number of at least 2"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0"),
        ({"eta": -1.0}, "eta must be a number of at least 0"),
        ({"keep_weight": float("inf")}, "keep_weight"),
        ({"lr": 0.0}, "lr must be a number above 0"),
        ({"nearest": True}, "nearest"),
    ],
)
def test_bad_fields_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        CPE(**fields)


def test_a_concept_that_is_its_own_neutral_word_is_no_edit(unet: Backbone) -> None:
    with pytest.raises(BenchError, match="nothing is erased"):
        edits.make(CPE(**{**SMALL, "stages": 1}), unet, Request(erase=(replace(CAT, anchor="cat"),)))


def test_a_rate_too_high_is_said(unet: Backbone) -> None:
    with pytest.raises(BenchError, match="cpe: the loss is .* lower the rate"):
        CPE(**{**SMALL, "first_lr": 1e30}).edit(unet, REQUEST)
