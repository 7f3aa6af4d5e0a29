"""YAML under a strict schema: every mistake is one line with file, line, key and the nearest known name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from benchmark.declared import Strict, Tuple, load, read
from benchmark.errors import BadInput, did_you_mean, nearest


class Leaf(Strict):
    size: int = Field(ge=1)
    names: Tuple[str] = ()


class Tree(Strict):
    name: str
    leaves: Tuple[Leaf] = ()
    share: float = 1.0


def written(folder: Path, text: str) -> Path:
    path = folder / "tree.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_what_is_declared(tmp_path: Path):
    tree = read(written(tmp_path, "leaves:\n- {size: 2, names: [a, b]}\nshare: 1\n"), Tree, name="oak")
    assert tree == Tree(name="oak", leaves=(Leaf(size=2, names=("a", "b")),), share=1.0)


def test_nested_aliases_do_not_multiply_without_end(tmp_path: Path):
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(BadInput, match="aliases written out"):
        load(written(tmp_path, "\n".join(["a0: &a0 [1]", *levels])))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("leafs: []\n", "line 1: leafs: unknown key 'leafs'; did you mean 'leaves'? (known: leaves, name, share)"),
        ("share: 1.0\nleaves:\n- {size: 1}\n- {size: 1, nmes: [a]}\n", "line 4: leaves[1].nmes: unknown key 'nmes'"),
        ("leaves:\n- {size: '1'}\n", "line 2: leaves[0].size: input should be a valid integer, got '1'"),
        ("leaves:\n- size: 0\n", "line 2: leaves[0].size: input should be greater than or equal to 1, got 0"),
        ("leaves:\n- {}\n", "line 2: leaves[0].size: this key is required"),
        ("share: yes\n", "line 1: share: input should be a valid number, got True"),
        ("leaves: {size: 1}\n", "line 1: leaves: "),
        ("share: 1\nshare: 2\n", "line 2: share is given twice (first in line 1)"),
        ("name: elm\n", "line 1: unknown key 'name'"),
        ("share: [\n", "line 2: not valid YAML"),
        ("- 1\n", "expected keys and values, found [1]"),
        ("", "expected keys and values, found None"),
        ("leaves: &all [*all]\n", "contains itself"),
        ("1: 2\n", "line 1: 1: unknown key '1'"),
    ],
)
def test_mistakes_are_one_line_with_place_and_hint(tmp_path: Path, text: str, expected: str):
    path = written(tmp_path, text)
    with pytest.raises(BadInput) as caught:
        read(path, Tree, name="oak")
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_of_several_mistakes_is_told_and_the_rest_counted(tmp_path: Path):
    with pytest.raises(BadInput, match=r"line 2: leaves\[0\]\.size: .* \(and 1 more\)"):
        read(written(tmp_path, "name: oak\nleaves: [{size: a}]\nshare: b\n"), Tree)


def test_a_file_that_is_not_there_or_not_text_is_bad_input(tmp_path: Path):
    with pytest.raises(BadInput, match="cannot read"):
        load(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        load(tmp_path / "binary.yaml")


def test_did_you_mean_names_the_nearest_and_lists_the_known():
    known = ["smoke", "objects", "celebrity"]
    expected = "unknown suite 'objets'; did you mean 'objects'? (known: celebrity, objects, smoke)"
    assert did_you_mean("objets", known, "suite") == expected
    assert did_you_mean("zzz", known, "suite") == "unknown suite 'zzz' (known: celebrity, objects, smoke)"
    assert did_you_mean("x", [f"n{i}" for i in range(99)]).endswith("… 99 in all)")
    assert nearest("ESD", ["esd", "uce"]) == "esd"
