"""Peak memory of a stage on this system."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmark import memory


def test_a_peak_is_seen_and_the_whole_process_remembers_it():
    memory.reset()
    before = memory.peak()
    block = np.ones(60 << 17)  # 60 MiB, every page touched
    during = memory.peak()
    assert during >= block.nbytes and during >= before * 0.99  # the system counts in lumps
    del block
    memory.reset()
    assert memory.overall() >= during


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot forget a peak")
def test_without_proc_the_peak_is_the_process_so_far(monkeypatch: pytest.MonkeyPatch, tmp_path: object):
    from pathlib import Path

    monkeypatch.setattr(memory, "_STATUS", Path("/nowhere/status"))
    monkeypatch.setattr(memory, "_REFS", Path("/nowhere/refs"))
    memory.reset()
    assert memory.peak() > 1 << 20
