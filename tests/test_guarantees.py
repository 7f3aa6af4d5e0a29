"""The table of promises names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "guarantees.md"
HEAD = "| promise | how | test |"


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line.startswith("|") and line != HEAD and not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in listed]


def named(cell: str) -> list[tuple[str, str]]:
    """File and test of each name in a cell; `…::name` is of the file before it, a file alone stands for all in it."""
    found: list[tuple[str, str]] = []
    for name in re.findall(r"`([^`]+)`", cell):
        file, _, test = name.partition("::")
        if file == "…":
            assert found, f"{name}: expected a file before it"
            file = found[-1][0]
        if file.startswith("tests/"):
            found.append((file, test))
        else:
            assert file.startswith("make "), f"{name} is neither a test nor a target"
    return found


def known_tests(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test")}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:60])
def test_every_promise_has_a_mechanism_and_tests_that_exist(row: list[str]):
    assert len(row) == 3 and all(row), "expected promise, how and test"
    promised = named(row[2])
    assert promised, "expected a test"
    for file, test in promised:
        assert (ROOT / file).is_file(), f"there is no {file}"
        known = known_tests(file)
        assert test in known if test else known, f"there is no {test} in {file}"


def test_targets_that_the_table_names_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for row in rows():
        assert set(re.findall(r"`make ([a-z-]+)", row[2])) <= targets
