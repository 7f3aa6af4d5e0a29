"""Suites: the shipped ones are the protocols they claim, and a mistake in one's own is one line with a hint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmark import data, paths, suite
from benchmark.errors import BadInput
from benchmark.metrics.protocols import protocol
from benchmark.registry import split

FORMS: tuple[suite.FormName, ...] = ("paper", "embedded")


def shipped() -> list[tuple[str, suite.FormName]]:
    return [(name, form) for name in suite.names() for form in FORMS]


def resolved(name: str, form: suite.FormName) -> tuple[suite.RequestSpec, ...]:
    return suite.requests(suite.load(name).form(form))


@pytest.mark.parametrize(("name", "form"), shipped())
def test_shipped_suites_resolve_to_known_concepts_methods_and_protocols(name: str, form: suite.FormName):
    declared = suite.load(name)
    for known in declared.form(form).protocols:
        assert protocol(known).id == known
    for label in declared.methods:
        split(label)
    for request in resolved(name, form):
        assert request.erase and request.general
        asked = [{c.name for c in part} for part in (request.erase, request.keep, request.adjacent)]
        assert not asked[0] & (asked[1] | asked[2]), "what is erased is neither kept nor a neighbour"
        assert ("kept" in request.prompts) <= bool(request.keep)


def test_objects_erases_three_test_classes_by_the_published_draw():
    names = [r.name for r in resolved("objects", "embedded")]
    assert names == ["erase:truck", "erase:horse", "erase:bird"]
    for request in resolved("objects", "embedded"):
        assert request.erase[0].split == "test"
        assert len(request.keep) == 9
        assert {role: p.images for role, p in request.prompts.items()} == {"erased": 60, "synonym": 20, "kept": 20}


def test_paper_objects_erases_each_of_ten():
    assert len(resolved("objects", "paper")) == 10


def test_embedded_celebrity_erases_one_and_five_test_identities():
    one, five = resolved("celebrity", "embedded")
    assert (one.name, five.name) == ("erase:identity_1", "erase:identity_5")
    assert five.erase[:1] == one.erase and len(five.erase) == 5
    assert {c.split for c in five.erase} == {"test"} and {c.kind for c in five.erase} == {"identity"}
    assert one.keep == five.keep and len(one.keep) == 15, "the same others, as in the paper's settings"
    assert not {c.name for c in five.erase} & {c.name for c in five.keep}


def test_smoke_erases_an_object_and_an_identity_of_the_validation_split():
    kinds = [(r.kind, r.erase[0].split) for r in resolved("smoke", "embedded")]
    assert kinds == [("object", "validation"), ("identity", "validation")]


# --- a suite of one's own ---------------------------------------------------------------------------------------
OWN = """
title: Mine
version: 1
source: ours
methods: [none]
headline: H_c
forms:
  embedded:
    dataset: cifar10
    requests:
    - {name: "erase:pair", erase: [cat, dog], keep: {group: cifar}, strategy: sequential}
    prompts:
      erased: {templates: ["a {concept}"], images: 2}
      kept: {templates: ["a {concept}"], images: 1}
    sampler: {steps: 4, guidance: 4.0, size: 64}
    batch: 4
    primary: testbed/top1
    protocols: [testbed/top1]
"""


def own(folder: Path, text: str = OWN) -> suite.Suite:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return suite.load(str(path))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("erase:a", "erase:a"), "'erase:a' comes 2 times; "),
        (("erase:a", "erase_A"), "'erase:a' comes 2 times, as files are named (erase:a, erase_A)"),
        (("mean",), "'mean' cannot be a request's name"),
        (("a\nb",), "cannot be a request's name"),
    ],
)
def test_requests_have_names_and_files_of_their_own(tmp_path: Path, names: tuple[str, ...], expected: str):
    """Two of one file name would overwrite each other's records and grids; `mean` is the board's own row."""
    (line,) = [line for line in OWN.splitlines() if "erase:pair" in line]
    lines = [line.replace('"erase:pair"', json.dumps(name)) for name in names]
    mine = own(tmp_path, OWN.replace(line, "\n".join(lines)))
    with pytest.raises(BadInput) as caught:
        suite.requests(mine.form("embedded"), data.load("cifar10"))
    assert expected in str(caught.value)


def test_a_file_of_ones_own_is_a_suite_by_its_path(tmp_path: Path):
    mine = own(tmp_path)
    assert mine.name == "mine"
    (request,) = suite.requests(mine.form("embedded"), data.load("cifar10"))
    assert [c.name for c in request.erase] == ["cat", "dog"] and request.strategy == "sequential"
    assert len(request.keep) == 8


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("images: 2", "imagez: 2", "line 13: forms.embedded.prompts.erased.imagez: unknown key 'imagez'; did you mean"),
        ("images: 2", "images: two", "line 13: forms.embedded.prompts.erased.images: input should be a valid integer"),
        ("images: 2", "images: true", "forms.embedded.prompts.erased.images"),
        ("images: 2", "images: 0", "greater than or equal to 1"),
        ("    batch: 4\n", "", "forms.embedded.batch: this key is required"),
        ("a {concept}", "a cat", "with {concept} in it once"),
        ("version: 1", "version: 1.5", "line 3: version: "),
        ("headline: H_c", "headline: H_x", "line 6: headline: "),
        ("headline: H_c", "headline: H_o", "headline H_o needs forms.embedded.prompts.synonym"),
        ("primary: testbed/top1", "primary: testbed/top5", "primary 'testbed/top5' is not among protocols"),
        ("strategy: sequential", "strategy: both", "strategy: "),
        ("size: 64", "size: 60", "multiple of 8"),
        ("guidance: 4.0", "guidance: .nan", "guidance"),
        ("erase: [cat, dog], ", "", "expected one of erase, each, draw; found none"),
        ("erase: [cat, dog]", "erase: [cat], each: {group: cifar}", "found erase and each"),
        ('name: "erase:pair", ', "", "name goes with erase"),
        ("erase: [cat, dog]", "erase: {from: [cat, dog], count: 1}", "count and seed go together"),
        ("  embedded:", "  embeded:", "unknown key 'embeded'; did you mean 'embedded'?"),
        ("methods: [none]", "methods: []", "methods"),
    ],
)
def test_mistakes_are_one_line_with_file_line_and_key(tmp_path: Path, old: str, new: str, expected: str):
    assert old in OWN
    with pytest.raises(BadInput) as caught:
        own(tmp_path, OWN.replace(old, new, 1))
    assert expected in str(caught.value)
    assert f"{tmp_path}/mine.yaml, line " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("images: 1}", "images: 1, dataset: coco30k}", "dataset and file go together"),
        ('{templates: ["a {concept}"], images: 1}', "{dataset: i2p, file: prompts, images: 3}", "images goes with"),
        (
            '{templates: ["a {concept}"], images: 1}',
            "{prompts: [a cat], images: 3}",
            "kept: expected templates or a file",
        ),
        ("images: 1}", "images: 1, honour_row_settings: true}", "honour_row_settings goes with a file"),
        (
            "images: 2}",
            "images: 2}\n      general: {templates: ['a {concept}'], images: 1}",
            "general: expected prompts",
        ),
        ("images: 2}", "images: 2}\n      adjacent: {templates: ['a {concept}'], images: 1}", "needs neighbours"),
        ("images: 2}", "images: 2}\n      general: {prompts: [a, a], images: 1}", "a prompt is given twice"),
        ("images: 2}", "images: 2}\n      general: {prompts: contrl, images: 1}", "did you mean 'control'?"),
        ("batch: 4", "batch: 4\n    general_prompts: embeded", "did you mean 'embedded'?"),
        ("batch: 4", "batch: 4\n    gate: {erased: [0.9, 0.1]}", "0 ≤ low ≤ high ≤ 1"),
        ("batch: 4", "batch: 4\n    gate: {synonym: [0.1, 0.9]}", "the form has no synonym prompts"),
        (
            "batch: 4",
            "batch: 4\n    reference: {dataset: coco30k, file: images}",
            "reference goes with prompts.general",
        ),
        ("guidance: 4.0,", "guidance: 1.0, negative_prompt: blurry,", "no effect at guidance 1"),
        ("headline: H_c", "headline: ERB", "headline ERB needs forms.embedded.prompts.adjacent"),
    ],
)
def test_mistakes_in_roles_gates_and_lists_are_told(tmp_path: Path, old: str, new: str, expected: str):
    assert old in OWN
    with pytest.raises(BadInput) as caught:
        own(tmp_path, OWN.replace(old, new, 1))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


NEAR = OWN.replace("headline: H_c", "headline: ERB").replace("kept: {templates", "adjacent: {templates")


def near(folder: Path, neighbours: str) -> suite.RequestSpec:
    mine = own(folder, NEAR.replace("    batch: 4\n", f"    batch: 4\n    neighbours: {neighbours}\n"))
    (request,) = suite.requests(mine.form("embedded"))
    return request


def test_neighbours_that_are_listed_hold_until_they_are_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    listed = "{top: 2, listed: {cat: [dog, deer, horse], dog: [cat, deer]}}"
    request = near(tmp_path, listed)
    assert [c.name for c in request.adjacent] == ["deer"], "what is erased beside it is no neighbour to keep"
    assert [c.adjacent for c in request.erase] == [("dog", "deer"), ("cat", "deer")], "methods are told all"
    known = data.load

    def frozen(name: str) -> data.Dataset:
        found = known(name)
        return replace(found, concepts=tuple(replace(c, adjacent=("ship", "truck", "frog")) for c in found.concepts))

    monkeypatch.setattr(data, "load", frozen)
    assert [c.name for c in near(tmp_path, listed).adjacent] == ["ship", "truck"]


def test_a_target_without_enough_neighbours_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"requests\[0\]: expected 3 neighbours of 'dog', found 2; freeze them with"):
        near(tmp_path, "{top: 3, listed: {cat: [dog, deer, horse], dog: [cat, deer]}}")
    with pytest.raises(BadInput, match="unknown concept of dataset cifar10 'deeer'; did you mean 'deer'"):
        near(tmp_path, "{top: 1, listed: {cat: [deeer], dog: [cat]}}")


def test_concepts_are_put_together_from_several_datasets_and_draws(tmp_path: Path):
    text = OWN.replace("dataset: cifar10", "dataset: [cifar10, celebrities, artists]").replace(
        "erase: [cat, dog]",
        "erase: [{names: [cat]}, {from: {group: erase_10, kind: identity}, count: 2, seed: 1}, "
        "{group: erase_1, kind: style}]",
    )
    (request,) = suite.requests(own(tmp_path, text).form("embedded"))
    assert [c.kind for c in request.erase] == ["object", "identity", "identity", "style"] and request.kind == "*"
    assert request.classes[:4] == tuple(c.name for c in request.erase) and len(request.classes) == 4 + 9


def test_datasets_that_share_a_name_are_not_put_together(tmp_path: Path):
    mine = own(tmp_path, OWN.replace("dataset: cifar10", "dataset: [cifar10, testbed]"))
    with pytest.raises(BadInput, match="'airplane' is a concept of several of cifar10, testbed"):
        mine.form("embedded").concepts()


def test_templates_by_kind(tmp_path: Path):
    text = OWN.replace('["a {concept}"], images: 2', '{identity: ["portrait of {concept}"]}, images: 2')
    prompts = own(tmp_path, text).form("embedded").prompts.erased
    assert prompts.of_kind("identity") == ("portrait of {concept}",)
    with pytest.raises(BadInput, match="no templates for concepts of kind object"):
        prompts.of_kind("object")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("[cat, dog]", "[cta]", r"requests\[0\]: unknown concept of dataset cifar10 'cta'; did you mean 'cat'\?"),
        ("{group: cifar}", "{group: cifr}", r"unknown group of dataset cifar10 'cifr'; did you mean 'cifar'\?"),
        ("- {name", '- {name: "erase:pair", erase: [cat], keep: [dog]}\n    - {name', "'erase:pair' comes 2 times"),
    ],
)
def test_unknown_concepts_are_refused_with_the_nearest(tmp_path: Path, old: str, new: str, expected: str):
    mine = own(tmp_path, OWN.replace(old, new, 1))
    with pytest.raises(BadInput, match=expected):
        suite.requests(mine.form("embedded"), data.load("cifar10"))


def test_unknown_suites_and_absent_files_are_refused():
    with pytest.raises(BadInput, match=r"unknown suite 'objets'; did you mean 'objects'\?"):
        suite.load("objets")
    with pytest.raises(BadInput, match="no suite file nowhere.yaml"):
        suite.load("nowhere.yaml")


def test_a_form_that_is_not_declared_is_refused_with_what_to_do(tmp_path: Path):
    with pytest.raises(BadInput, match="suite mine has no paper form; use --model testbed"):
        own(tmp_path).form("paper")


def test_one_concept_is_never_sequential_so_that_its_edit_has_one_key(tmp_path: Path):
    mine = own(tmp_path, OWN.replace("[cat, dog]", "[cat]"))
    (request,) = suite.requests(mine.form("embedded"), data.load("cifar10"))
    assert request.strategy == "joint"


def test_data_folders_hold_no_code():
    found = [p for folder in (paths.suites(), paths.datasets()) for p in folder.rglob("*.py*")]
    assert not found


def test_shipped_suites_are_plain_yaml():
    for name in suite.names():
        assert isinstance(yaml.safe_load((paths.suites() / f"{name}.yaml").read_text()), dict)
