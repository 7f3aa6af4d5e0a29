"""The contract that every method keeps, on tiny models of both families."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import methods
from benchmark import edits
from benchmark.backbones.base import Backbone
from benchmark.backbones.random_models import random_flux, random_unet
from benchmark.errors import BadInput
from benchmark.interface import Edit, Method, Request, Target
from methods.blocklist import Blocklist
from methods.grey import Grey
from methods.noise import Noise
from methods.uce import UCE

FILES = sorted(p.stem for p in Path(methods.__path__[0]).glob("[!_]*.py"))

CAT = Target(name="cat", kind="object", anchor="animal", synonyms=("kitty",))
DOG = Target(name="dog", kind="object", anchor="animal")
REQUEST = Request(erase=(CAT, DOG), keep=("horse", "dog"), seed=7)


def method_class(file: str) -> type[Method]:
    """The one adapter that a file of `methods/` defines."""
    module = importlib.import_module(f"methods.{file}")
    [cls] = [c for _, c in inspect.getmembers(module, inspect.isclass) if issubclass(c, Method) and c is not Method]
    return cls


CASES = [(f, variant) for f in FILES if f != "checkpoint" for variant in ("", *method_class(f).variants)]
"""`checkpoint` reads a file: the conformance kit makes it one."""


def instance(label: str) -> Method:
    """`name` or `name@variant`, with its quick fields."""
    name, _, variant = label.partition("@")
    cls = method_class(name)
    fields = {**(cls.variants[variant] if variant else {}), **cls.quick}
    return cls(**fields)


def supporting(label: str, backbone: Backbone) -> Method:
    """The instance, where it works on models of this family; else the test has nothing to show."""
    method = instance(label)
    if backbone.family not in method.families or method.refusal(backbone.family):
        pytest.skip(f"{label} does not work on {backbone.family}")
    return method


def made(method: Method, backbone: Backbone, request: Request) -> Edit:
    """The edit, after those that it needs."""
    given = {need: edits.make(instance(need), backbone, request) for need in method.needs}
    most = method.max_concepts
    strategy: edits.Strategy = "sequential" if most is not None and len(request.erase) > most else "joint"
    return edits.make(method, backbone, replace(request, given=given), strategy)


@pytest.fixture(scope="module", params=["unet", "flux"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return random_unet() if request.param == "unet" else random_flux()


@pytest.mark.parametrize("label", [f"{f}@{v}" if v else f for f, v in CASES])
class TestEveryMethod:
    @pytest.mark.quick(*(f"*-{file}" for file in FILES))
    def test_edit_fits_is_the_same_twice_and_leaves_the_model_alone(self, label: str, backbone: Backbone) -> None:
        """The same seed is the same edit, whatever the global one, which stays as it was."""
        method, before = instance(label), edits.fingerprints(backbone)
        if backbone.family not in method.families or method.refusal(backbone.family):
            with pytest.raises(BadInput, match="works on"):
                made(method, backbone, REQUEST)
            return
        torch.manual_seed(0)
        edit = made(method, backbone, REQUEST)
        torch.manual_seed(1)
        state = torch.get_rng_state()
        first, second = edits.serialise(edit), edits.serialise(made(method, backbone, REQUEST))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(first[k] == second[k] for k in ("edit.safetensors", "edit.json"))
        live = backbone.tensors()
        assert edits.fingerprints(backbone) == before
        assert all(v.shape == live[n].shape and v.dtype == live[n].dtype for n, v in edit.weights.items())
        assert all(not torch.equal(v, live[n]) for n, v in edit.weights.items())
        assert not any(v.requires_grad for v in edit.weights.values())
        assert json.loads(json.dumps(dict(edit.notes))) == dict(edit.notes)
        if method.role == "erasure":
            assert edit.weights or edit.deltas or edit.gates

    @pytest.mark.quick(*(f"*-{file}" for file in FILES))
    def test_nothing_to_erase_is_no_edit(self, label: str, backbone: Backbone) -> None:
        edit = made(supporting(label, backbone), backbone, replace(REQUEST, erase=()))
        assert edits.edit_hash(edit) == edits.edit_hash(Edit())

    def test_fields_survive_json(self, label: str, backbone: Backbone) -> None:
        method = instance(label)
        assert type(method)(**json.loads(json.dumps(asdict(method)))) == method


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"name": ""}, "expected the name of a concept to erase, such as 'cat'; got ''"),
        ({"name": " \t"}, "expected the name of a concept to erase"),
        ({"name": "cat", "kind": "sound"}, "cat: unknown kind 'sound' .known: explicit, fine-grained, identity"),
        ({"name": "cat", "kind": "styles"}, "did you mean 'style'"),
    ],
)
@pytest.mark.parametrize("file", [f for f in FILES if f != "checkpoint"])
def test_no_method_is_asked_to_erase_what_has_no_name_or_an_unknown_kind(
    file: str, target: dict[str, Any], message: str
) -> None:
    """Also where `edit` is called as it is, without `edits.make`."""
    method, backbone = instance(file), random_unet()
    with pytest.raises(BadInput, match=message):
        method.edit(backbone, replace(REQUEST, erase=(Target(**target),)))


@pytest.mark.parametrize("file", FILES)
def test_file_is_the_name(file: str) -> None:
    cls = method_class(file)
    assert cls.name == file
    assert cls.families and cls.version >= 1
    assert cls.paper.startswith("arXiv:") == (cls.role == "erasure" and cls.name != "checkpoint")


def test_adapters_load_no_torch() -> None:
    code = f"import sys; [__import__('methods.' + m) for m in {FILES}]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


# --- controls ---------------------------------------------------------------------------------------------------------
def test_noise_has_the_norm_of_the_other_change_in_every_tensor(backbone: Backbone) -> None:
    other = edits.make(UCE(), backbone, REQUEST)
    noise = Noise().edit(backbone, replace(REQUEST, given={"uce": other}))
    assert noise.weights.keys() == other.weights.keys()
    for name, base in backbone.tensors().items():
        if name in noise.weights:
            norm = (noise.weights[name] - base).norm()
            torch.testing.assert_close(norm, (other.weights[name] - base).norm(), rtol=1e-4, atol=0)
            assert (noise.weights[name] - other.weights[name]).norm() > norm


def test_noise_differs_by_seed_and_by_tensor(backbone: Backbone) -> None:
    other = edits.make(UCE(), backbone, REQUEST)
    one, two = (Noise().edit(backbone, replace(REQUEST, given={"uce": other}, seed=s)) for s in (1, 2))
    name = next(iter(one.weights))
    assert not torch.equal(one.weights[name], two.weights[name])


def test_noise_says_what_it_lacks(backbone: Backbone) -> None:
    with pytest.raises(BadInput, match="'uce'.*given no edit"):
        Noise().edit(backbone, REQUEST)
    with pytest.raises(BadInput, match="changes no weights"):
        Noise(like="grey").edit(backbone, replace(REQUEST, given={"grey": Edit(output="grey")}))


def test_noise_follows_low_rank_changes(backbone: Backbone) -> None:
    from benchmark.interface import LowRank

    p = backbone.projections()[0]
    up, down = torch.ones(p.weight.shape[0], 1), torch.ones(1, p.weight.shape[1])
    noise = Noise().edit(backbone, replace(REQUEST, given={"uce": Edit(deltas={p.name: LowRank(up, down)})}))
    torch.testing.assert_close((noise.weights[p.name] - p.weight).norm(), (up @ down).norm(), rtol=1e-4, atol=0)


def test_blocklist_and_grey(backbone: Backbone) -> None:
    rule = Blocklist().edit(backbone, REQUEST).prompts
    assert rule is not None and (rule.words, rule.replacement) == (("cat", "dog"), "")
    rule = Blocklist(synonyms=True, replacement="anchor").edit(backbone, REQUEST).prompts
    assert rule is not None and (rule.words, rule.replacement) == (("cat", "kitty", "dog"), "animal")
    assert Grey().edit(backbone, REQUEST).output == "grey"


def test_blocklist_refuses_two_anchors(backbone: Backbone) -> None:
    request = Request(erase=(CAT, Target(name="ship", anchor="vehicle")))
    with pytest.raises(BadInput, match="one anchor"):
        Blocklist(replacement="anchor").edit(backbone, request)


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("uce", {"guide": "anchr"}, "did you mean 'anchor'"),
        ("uce", {"ridge": 0}, "ridge must be a number above 0, got 0"),
        ("uce", {"preserve_scale": -1}, "preserve_scale"),
        ("esd", {"iterations": 2.5}, "iterations must be a whole number of at least 1"),
        ("esd", {"lr": float("nan")}, "lr"),
        ("esd", {"batch": True}, "batch"),
        ("esd", {"train": "y"}, "unknown train 'y'"),
        ("esd", {"template": "a photo"}, "template"),
        ("blocklist", {"replacement": "none"}, "unknown replacement 'none'"),
    ],
)
def test_bad_fields_are_named(file: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        method_class(file)(**fields)
