"""Oxford Flowers' label files, in MATLAB's format as they are published, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from benchmark import label_files
from benchmark.errors import BadInput


def test_labels_are_one_row_of_bytes(tmp_path: Path):
    """imagelabels.mat: MATLAB 5, packed, `labels` of type uint8 and shape (1, 8189)."""
    classes = (np.arange(8189) % 102 + 1).astype(np.uint8)[None]
    savemat(tmp_path / "imagelabels.mat", {"labels": classes}, do_compression=True)
    assert label_files.labels(tmp_path / "imagelabels.mat") == tuple(i % 102 + 1 for i in range(8189))


@pytest.mark.parametrize("dtype", [np.uint16, np.float64])
def test_splits_are_three_rows(tmp_path: Path, dtype: type[np.generic]):
    """setid.mat: 1,020 for training, as many for validation, 6,149 for the test."""
    order = np.random.default_rng(0).permutation(np.arange(1, 8190)).astype(dtype)[None]
    content = {"trnid": order[:, :1020], "valid": order[:, 1020:2040], "tstid": order[:, 2040:]}
    savemat(tmp_path / "setid.mat", content, do_compression=True)
    found = label_files.splits(tmp_path / "setid.mat")
    assert {name: len(numbers) for name, numbers in found.items()} == {"trnid": 1020, "valid": 1020, "tstid": 6149}
    assert found["valid"] == tuple(int(i) for i in order[0, 1020:2040])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"label": [[1, 2]]}, "expected variables labels, found no labels"),
        ({"labels": [[1], [2]]}, r"expected one row of whole numbers from 1, found int\d+ of shape \(2, 1\)"),
        ({"labels": [[0, 1]]}, "whole numbers from 1"),
        ({"labels": [[1.5, 1]]}, "whole numbers from 1"),
        ({"labels": [[np.nan, 1]]}, "whole numbers from 1"),
        ({"labels": "daisy"}, "whole numbers from 1, found <U5"),
        ({"labels": {"a": 1}}, "whole numbers from 1"),
        ({"labels": np.zeros((1, 0))}, "whole numbers from 1"),
    ],
)
def test_other_variables_are_refused(tmp_path: Path, content: dict[str, Any], said: str):
    savemat(tmp_path / "x.mat", content)
    with pytest.raises(BadInput, match=said):
        label_files.labels(tmp_path / "x.mat")


def test_an_image_in_two_splits_is_refused(tmp_path: Path):
    savemat(tmp_path / "setid.mat", {"trnid": [[1, 2]], "valid": [[2]], "tstid": [[3]]})
    with pytest.raises(BadInput, match="an image is there twice in trnid, valid, tstid"):
        label_files.splits(tmp_path / "setid.mat")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_what_is_no_matlab_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(BadInput, match="cannot be read as a MATLAB file"):
        label_files.labels(tmp_path / "x.mat")


def test_files_that_are_cut_short_or_far_too_large_are_refused(tmp_path: Path):
    path = tmp_path / "x.mat"
    savemat(path, {"labels": np.ones((1, 200), np.uint8)}, do_compression=True)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(BadInput):
            label_files.labels(path)
    path.write_bytes(whole + bytes(label_files.MOST))
    with pytest.raises(BadInput, match="more than 65,536 bytes"):
        label_files.labels(path)
