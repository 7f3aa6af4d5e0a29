"""The conformance kit: shipped methods keep every rule, and each rule catches what it is for, and that alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmark import cli, conformance, registry
from benchmark.errors import BadInput

GOOD = """
from __future__ import annotations
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final
from benchmark.interface import Edit, Family, LowRank, Method, Request

@final
@dataclass(frozen=True, kw_only=True)
class Mine(Method):
    name: ClassVar[str] = "mine"
    version: ClassVar[int] = 1
    role: ClassVar[Literal["baseline", "erasure", "control"]] = "erasure"
    paper: ClassVar[str] = ""
    families: ClassVar[frozenset[Family]] = frozenset({"unet-epsilon"})
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"strong": {"by": 0.5}}
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2}
    by: float = 0.1
    steps: int = 10

    def edit(self, backbone, request: Request) -> Edit:
        if not request.erase:
            return Edit()
        targets = request.erase
        p = backbone.projections()[0]
        w = p.weight.detach().clone()
        for target in targets:
            text = backbone.embed([target.name])
            w = w - self.by * text.tokens[0, text.last[0]]
        backbone.predict(backbone.noise([0]), backbone.timesteps(4)[0], backbone.embed([""]))
        notes = {"steps": self.steps}
        return Edit(weights={p.name: w}, notes=notes)
"""
"""A method that keeps every rule, on U-Nets."""

W = "weights={p.name: w}"
BAD: dict[str, tuple[tuple[str, str], ...]] = {
    "fields": (("@dataclass(frozen=True, kw_only=True)", "@dataclass(frozen=True)"),),
    "no-torch-at-import": (
        ("from dataclasses import dataclass\n", "from dataclasses import dataclass\nimport torch\n"),
    ),
    "declared-support": (
        ('frozenset({"unet-epsilon"})', 'frozenset({"unet-epsilon", "transformer-flow"})'),
        ("backbone.predict(", "assert backbone.family == 'unet-epsilon'\n        backbone.predict("),
    ),
    "refuses-family-with-reason": (('frozenset({"unet-epsilon"})', '"unet-epsilon"'),),
    "leaves-model": (("p = backbone", "backbone.tensors()['unet.conv_in.bias'].add_(1)\n        p = backbone"),),
    "deterministic": (("w = p.weight.detach().clone()", "import torch\n        w = p.weight + torch.randn(1)"),),
    "empty-request": (
        ("if not request.erase:\n            return Edit()\n        ", ""),
        ("targets = request.erase", "targets = request.erase or [backbone.projections()[0]]"),
    ),
    "batch-of-concepts": (("targets = request.erase", "targets = request.erase[:1]"),),
    "changes-something": ((W, "deltas={p.name: LowRank(w[:, :1] * 0, w[:1])}"),),
    "fits": ((W, "weights={p.name: w.double()}"),),
    "finite": (("notes = ", "w[0, 0] = float('nan')\n        notes = "),),
    "saves-and-loads": (('{"steps": self.steps}', '{"steps": (self.steps, 1)}'),),
    "cost-recorded": (("backbone.predict(", "import copy\n        copy.deepcopy(backbone).predict("),),
}
"""Rule to the changes of the good method that break it."""


def written(folder: Path, changes: tuple[tuple[str, str], ...]) -> str:
    """The method with the changes, as `check-method` is given it."""
    text = GOOD
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "mine.py").write_text(text)
    return f"{folder / 'mine.py'}:Mine"


def broken(report: conformance.Report) -> dict[str, str]:
    return {name: finding.detail for name, finding in report.rules.items() if not finding.ok}


def test_a_good_method_keeps_every_rule(tmp_path: Path):
    assert broken(conformance.check(written(tmp_path, ()))) == {}


def test_every_rule_has_a_bad_method():
    assert BAD.keys() == conformance.RULES.keys()


@pytest.mark.parametrize("rule", BAD)
def test_a_bad_method_fails_its_rule_and_no_other(tmp_path: Path, rule: str):
    assert list(broken(conformance.check(written(tmp_path, BAD[rule])))) == [rule]


MORE_BAD = {
    "leaves-model": (
        ("p = backbone", "backbone._unet.conv_in.register_forward_hook(lambda m, i, o: o * 2)\n        p = backbone"),
    ),
    "deterministic": (
        ("w = p.weight.detach().clone()", "import torch; torch.manual_seed(0)\n        w = p.weight + torch.randn(1)"),
    ),
    "declared-support": (("targets = request.erase", "targets = request.erase\n        assert len(targets) < 3"),),
    "fits": (("w = p.weight.detach().clone()", "w = p.weight.detach().clone().requires_grad_()"),),
    "fields": (('{"by": 0.5}', '{"bye": 0.5}'),),
    "batch-of-concepts": (("targets = request.erase", "targets = request.erase[-1:]"),),
}


@pytest.mark.quick("fits")
@pytest.mark.parametrize("rule", MORE_BAD)
def test_other_ways_to_fail(tmp_path: Path, rule: str):
    """A hook left behind, a global seed, a hidden limit, a gradient, a variant of no field, the last concept alone."""
    assert list(broken(conformance.check(written(tmp_path, MORE_BAD[rule])))) == [rule]


def test_a_method_for_one_concept_is_asked_one_after_another(tmp_path: Path):
    one = ("version: ClassVar[int] = 1", "version: ClassVar[int] = 1\n    max_concepts: ClassVar[int | None] = 1")
    strict = ("targets = request.erase", "[target] = request.erase\n        targets = request.erase")
    report = conformance.check(written(tmp_path, (one, strict)))
    assert broken(report) == {}
    assert "one after another" in report.rules["batch-of-concepts"].detail


def test_a_method_that_always_fails_passes_nothing_by_default(tmp_path: Path):
    """No edit to look at is a failure of every rule about edits, not a pass."""
    report = conformance.check(written(tmp_path, (("targets = request.erase", "raise RuntimeError('broken')"),)))
    about_edits = {"deterministic", "empty-request", "changes-something", "fits", "finite", "saves-and-loads"}
    assert about_edits | {"declared-support"} <= broken(report).keys()


# --- shipped methods --------------------------------------------------------------------------------------------------
@pytest.mark.quick("uce", "noise", "blocklist")
@pytest.mark.parametrize("name", registry.method_names())
def test_shipped_methods_keep_every_rule(name: str):
    assert broken(conformance.check(name)) == {}


# --- the command ------------------------------------------------------------------------------------------------------
def test_the_command_says_what_was_measured(tmp_path: Path):
    good, runner = written(tmp_path, ()), CliRunner()
    shown = runner.invoke(cli.app, ["check-method", good, "--json"])
    found = json.loads(shown.stdout)
    assert shown.exit_code == 0
    assert found.keys() == {"method", "rules", "ok"} and found["method"] == good and found["ok"] is True
    assert found["rules"].keys() == conformance.RULES.keys()
    assert all(f.keys() == {"ok", "detail"} and f["ok"] is True and f["detail"] for f in found["rules"].values())


def test_the_command_exits_with_1_where_a_rule_is_broken(tmp_path: Path):
    (tmp_path / "sub").mkdir()
    shown = CliRunner().invoke(cli.app, ["check-method", written(tmp_path / "sub", BAD["finite"])])
    assert shown.exit_code == 1
    assert "FAIL  finite" in shown.stdout and "keeps 12 of 13 rules" in shown.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ucee", "did you mean 'uce'"),
        ("uce@2024", "unknown variant of uce '2024'"),
        ("no_such_module:Class", "cannot be loaded"),
        ("benchmark.interface:Request", "expected a subclass"),
        ("benchmark.interface:Gone", "expected a subclass"),
    ],
)
def test_what_is_no_method_is_told(name: str, message: str):
    with pytest.raises(BadInput, match=message):
        conformance.check(name)


def test_a_module_beside_the_user_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "their_module_here.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert registry_name(tmp_path) == "mine"


def registry_name(folder: Path) -> str:
    with registry.importable():
        return registry.find("their_module_here:Mine").name
