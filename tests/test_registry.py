"""Methods by name: files, registered packages, variants, presets; what is unknown or malformed is named."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark import registry
from benchmark.errors import BadInput

METHOD = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar, Literal, final
from benchmark.interface import Edit, Family, Method, Request

Mode = Literal["soft", "hard"]

@final
@dataclass(frozen=True, kw_only=True)
class Fake(Method):
    """A fake."""
    name: ClassVar[str] = "{name}"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({{"unet-epsilon"}})
    variants = {{"hard": {{"mode": "hard"}}, "typo": {{"mod": "hard"}}}}
    lr: float = 0.1
    steps: int = 10
    mode: Mode = "soft"
    words: tuple[str, ...] = ()
    limit: int | None = None

    def edit(self, backbone, request: Request) -> Edit:
        return Edit()
'''


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of fake methods in the place of `methods`."""
    folder = tmp_path / "fakemethods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "fake.py").write_text(METHOD.format(name="fake"))
    (folder / "_shared.py").write_text("raise RuntimeError('not a method')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "PACKAGE", "fakemethods")
    forget()
    yield folder
    for name in [m for m in sys.modules if m.partition(".")[0] == "fakemethods"]:
        del sys.modules[name]
    forget()


def forget() -> None:
    registry.method_class.cache_clear()
    registry.presets.cache_clear()


def test_all_shipped_methods_resolve_with_all_variants():
    assert {"none", "uce", "esd", "noise", "grey", "blocklist"} <= set(registry.method_names())
    for name in registry.method_names():
        for label in [name, *(f"{name}@{v}" for v in registry.method_class(name).variants)]:
            spec = registry.resolve(label)
            assert spec.label == label and spec.name == name and spec.preset is None


def test_every_preset_is_of_a_known_model_method_and_field():
    from benchmark import models

    for model, by_method in registry.presets().items():
        assert model in models.MODELS
        for label, by_kind in by_method.items():
            for kind in by_kind:
                assert registry.resolve(label, model=model, kind=kind).preset == f"{model}/{label}/{kind}"


def test_files_are_methods_by_their_names(fakes: Path):
    assert registry.method_names() == ["fake"]
    spec = registry.resolve("fake")
    assert dict(spec.fields) == {"lr": 0.1, "steps": 10, "mode": "soft", "words": [], "limit": None}
    assert spec.variant is None and spec.passed == {}


def test_fields_come_from_defaults_then_variant_then_preset_then_those_passed(fakes: Path):
    (fakes / "presets.yaml").write_text(
        "testbed:\n  fake: {object: {lr: 1, steps: 20}, '*': {lr: 2}}\n  fake@hard: {style: {lr: 3}}\n"
    )
    assert registry.resolve("fake@hard").fields["mode"] == "hard"
    of_object = registry.resolve("fake", model="testbed", kind="object", passed={"steps": 30, "words": ["a"]})
    assert dict(of_object.fields) == {"lr": 1.0, "steps": 30, "mode": "soft", "words": ["a"], "limit": None}
    assert of_object.preset == "testbed/fake/object" and of_object.passed == {"steps": 30, "words": ["a"]}
    assert of_object.instance.words == ("a",)  # type: ignore[attr-defined]
    assert registry.resolve("fake", model="testbed", kind="identity").preset == "testbed/fake/*"
    assert registry.resolve("fake@hard", model="testbed", kind="style").preset == "testbed/fake@hard/style"
    assert registry.resolve("fake", model="sd14", kind="object").preset is None
    # A variant stays what it is called: the plain method's preset does not reach it.
    assert registry.resolve("fake@hard", model="testbed", kind="object").preset is None


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("identity", "identity"),
        ("object", "*"),
        ("identity+", "*+"),
        ("style+", "style+"),
        ("*+", "*+"),
        ("*", "*"),
    ],
)
def test_presets_of_several_concepts_stand_before_those_of_one(fakes: Path, kind: str, found: str):
    presets = {"identity": 1, "*": 2, "style+": 3, "*+": 4}
    (fakes / "presets.yaml").write_text(json.dumps({"testbed": {"fake": {k: {"lr": v} for k, v in presets.items()}}}))
    spec = registry.resolve("fake", model="testbed", kind=kind)
    assert (spec.preset, spec.fields["lr"]) == (f"testbed/fake/{found}", presets[found])


def test_without_presets_of_several_those_of_one_serve(fakes: Path):
    (fakes / "presets.yaml").write_text("testbed: {fake: {identity: {lr: 1}, '*': {lr: 2}}}")
    assert registry.resolve("fake", model="testbed", kind="identity+").preset == "testbed/fake/identity"
    assert registry.resolve("fake", model="testbed", kind="object+").preset == "testbed/fake/*"


@pytest.mark.parametrize(
    ("label", "passed", "expected"),
    [
        ("fak", {}, "unknown method 'fak'; did you mean 'fake'? (known: fake)"),
        ("fake@hart", {}, "unknown variant of fake 'hart'; did you mean 'hard'?"),
        ("fake@", {}, "unknown variant of fake ''"),
        ("fake@typo", {}, "unknown field of fake@typo 'mod'; did you mean 'mode'?"),
        ("fake", {"stepz": 1}, "unknown field of fake 'stepz'; did you mean 'steps'?"),
        ("fake", {"steps": 1.5}, "fake: steps: "),
        ("fake", {"steps": "1"}, "fake: steps: "),
        ("fake", {"steps": True}, "fake: steps: "),
        ("fake", {"mode": "medium"}, "fake: mode: "),
        ("fake", {"words": "abc"}, "fake: words: "),
        ("fake", {"words": {1}}, "fake: words: expected a JSON value"),
    ],
)
def test_what_is_unknown_or_of_the_wrong_type_is_named(
    fakes: Path, label: str, passed: dict[str, object], expected: str
):
    with pytest.raises(BadInput) as caught:
        registry.resolve(label, passed=passed)
    assert expected in str(caught.value)


def test_a_file_without_its_method_is_named(fakes: Path):
    (fakes / "other.py").write_text(METHOD.format(name="another"))
    with pytest.raises(BadInput, match=r"fakemethods.other: expected one subclass of Method with name = 'other'"):
        registry.resolve("other")


def test_a_file_that_does_not_load_is_named(fakes: Path):
    (fakes / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(
        BadInput, match="fakemethods.broken cannot be loaded: ModuleNotFoundError: .*nothing_of_that_name"
    ):
        registry.resolve("broken")
    (fakes / "half.py").write_text("class Half(:\n")
    with pytest.raises(BadInput, match="fakemethods.half cannot be loaded: SyntaxError"):
        registry.resolve("half")
    assert registry.resolve("fake"), "the others stay usable"


def test_malformed_presets_are_named(fakes: Path):
    (fakes / "presets.yaml").write_text("testbed: {fake: {object: [1]}}\n")
    with pytest.raises(BadInput, match=r"presets.yaml: testbed.fake.object: "):
        registry.resolve("fake", model="testbed")
    forget()
    (fakes / "presets.yaml").write_text("testbed: {fake: {object: {lrr: 1}}}\n")
    with pytest.raises(BadInput, match=r"unknown field of fake 'lrr'; did you mean 'lr'\?"):
        registry.resolve("fake", model="testbed", kind="object")


def registered(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = importlib.metadata.EntryPoint(name, value, registry.GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: {name: point})


def test_other_packages_register_methods(fakes: Path, monkeypatch: pytest.MonkeyPatch):
    (fakes.parent / "elsewhere.py").write_text(METHOD.format(name="foreign"))
    registered(monkeypatch, "foreign", "elsewhere:Fake")
    assert registry.method_names() == ["fake", "foreign"]
    assert registry.resolve("foreign@hard").fields["mode"] == "hard"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("fake", "json:JSONDecoder", "method 'fake' is built in, and registered as json:JSONDecoder"),
        ("foreign", "json:JSONDecoder", "json:JSONDecoder: expected a subclass of"),
        ("foreign", "fakemethods.fake:Fake", "fakemethods.fake:Fake: expected name = 'foreign', found 'fake'"),
        ("foreign", "benchmark.interface:Method", "expected a subclass of benchmark.interface.Method with `edit`"),
    ],
)
def test_what_is_registered_wrongly_is_named(
    fakes: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
):
    registered(monkeypatch, name, value)
    with pytest.raises(BadInput) as caught:
        registry.resolve(name)
    assert expected in str(caught.value)


def test_a_full_plan_of_all_methods_and_variants_loads_no_torch():
    code = """
import sys
from benchmark import models, record, registry, store, suite
from benchmark.plan import make_plan, plan_json
labels = [n for n in registry.method_names()]
labels += [f"{n}@{v}" for n in labels for v in registry.method_class(n).variants]
for name in suite.names():
    for model in ("random-unet", "random-flux", "sd14") if name in ("smoke", "fade_adv") else ("sd14",):
        plan_json(make_plan(name, model=model, methods=labels, scale=0.01))
assert not [m for m in ("torch", "diffusers", "transformers", "scipy", "matplotlib") if m in sys.modules]
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
