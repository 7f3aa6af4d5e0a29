"""Real processes, really killed, with a model that is played; and that the harness sees what it is there to see."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.errors import Damaged
from benchmark.torture import __main__ as torture
from benchmark.torture import kills, played
from benchmark.torture.kills import Event, Measure


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = tmp_path / "tiny.yaml"
    path.write_text(played.SUITE)
    monkeypatch.setattr(kills, "load_ahead", lambda: None)
    with played.playing(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks of several threads: the others only wait here
        yield


def call(work: Path, *arguments: str) -> int:
    return torture.main(["--suite", "tiny", "--methods", "none,uce", "--work", str(work), *arguments])


def test_killed_processes_come_to_the_same_bytes_and_the_campaign_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    work = tmp_path / "work"
    assert call(work, "--kills", "2", "--round", "3") == 0
    first = json.loads((work / "torture.json").read_bytes())
    assert call(work, "--kills", "4", "--round", "3") == 0
    found = json.loads((work / "torture.json").read_bytes())
    assert found["events"][: len(first["events"])] == first["events"]
    shown = found["figures"]
    assert shown["kills"] >= 4 and sum(shown["by_stage"].values()) == shown["kills"]
    assert shown["rounds_byte_equal"] >= 2 and found["events"][-1]["code"] == 0 and not (work / "round").exists()
    killed = [e for e in found["events"] if e["harm"].startswith("SIG") and e["struck"]]
    # by the signal itself, or interrupted in good order: in the command, or before it had begun
    assert all(e["code"] < 0 or e["code"] in (1, 130, 143) for e in killed)
    assert json.loads("{" + capsys.readouterr().out.rpartition("\n{")[2]) == shown
    assert call(work, "--seed", "1") == 2, "another campaign"


@pytest.mark.slow
def test_a_long_campaign_strikes_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torture, "FOR_ALL_STAGES", 12)
    assert call(tmp_path / "work", "--kills", "12", "--round", "3") == 0
    shown = json.loads((tmp_path / "work" / "torture.json").read_bytes())["figures"]
    assert list(shown["by_stage"]) == list(kills.STAGES) and shown["by_signal"]["SIGKILL at a stage"] >= 7


def test_a_byte_that_differs_and_a_thing_left_behind_are_found(tmp_path: Path):
    (tmp_path / "out" / "store" / "tmp").mkdir(parents=True)
    (tmp_path / "out" / "board.json").write_bytes(b"{}")
    expected = kills.snapshot(tmp_path / "out")
    kills.same(tmp_path / "out", expected)
    for other in ({"board.json": b"[]"}, {}, {**expected, "board.md": b""}):
        with pytest.raises(Damaged, match="board"):
            kills.same(tmp_path / "out", other)
    (tmp_path / "out" / "store" / "tmp" / "x").mkdir()
    with pytest.raises(Damaged, match="left behind"):
        kills.same(tmp_path / "out", expected)
    (tmp_path / "out" / "board.json").write_bytes(b"{")
    with pytest.raises(Damaged, match="torn"):
        kills.sound(tmp_path / "out")


def test_harms_are_drawn_from_seed_and_number_alone():
    measure = Measure(100.0, 5000)
    drawn = [kills.drawn(0, n, measure, 0.25) for n in range(300)]
    assert drawn == [kills.drawn(0, n, measure, 0.25) for n in range(300)]
    assert {harm for harm, _ in drawn} == {harm for harm, _ in kills._DRAWN} | {"SIGKILL at a stage"}
    aimed = {at for harm, at in drawn if harm == "SIGKILL at a stage"}
    assert aimed == {place / 2 for place in range(2, 2 * len(kills.STAGES))}, "each begin and end, but of the start"
    assert all(at <= 25 for harm, at in drawn if harm in ("SIGKILL", "SIGTERM"))
    assert max(at for harm, at in drawn if harm == "SIGKILL in a write") > 1000


def test_figures_count_kills_apart_from_faults():
    def event(harm: kills.Harm, struck: bool, lost: float, stage: str = "images") -> Event:
        return Event(0, harm, 1.0, struck, stage, False, 9.0, lost, -9)

    events = [event("SIGKILL", True, 1.0, "edit"), event("SIGTERM", True, 3.0), event("SIGKILL", False, 9.0)]
    shown = kills.figures([*events, event("no space", True, 2.0)], Measure(9.0, 99), 1)
    assert (shown["kills"], shown["recoveries"], shown["lost_s_all"], shown["lost_s_most"]) == (2, 3, 4.0, 3.0)
    assert shown["lost_s_most_in_edits"] == 1.0
    assert shown["by_stage"] == {"edit": 1, "images": 1} and shown["faults"]["no space"] == 1
