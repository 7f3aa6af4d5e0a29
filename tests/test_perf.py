"""Benches: what each side does is counted exactly; what is written holds what was timed. Times are never asserted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import pytest

from benchmark.errors import BadInput
from benchmark.perf import bench as benches
from benchmark.perf import clock, session, stage, table
from benchmark.perf.bench import Bench, Did, NotMeasured, Target, Trial, rounded
from benchmark.perf.clock import Time
from benchmark.perf.rig import Rig, tiny


# --- times ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("time", "noisy"),
    [
        (Time(1.0, 1.0), False),
        (Time(1.0, 2.0), False),  # two threads
        (Time(1.6, 1.0), True),  # waited
        (Time(1.0, 1.0, others=0.1), False),
        (Time(1.0, 1.0, others=0.2), True),
        (Time(0.0, 0.0), False),
    ],
)
def test_a_time_is_noisy_where_the_machine_was_busy(time: Time, noisy: bool) -> None:
    assert time.noisy is noisy


def test_processor_time_is_of_work_not_of_waiting() -> None:
    import time

    with clock.watched() as watch:
        time.sleep(0.2)
    assert watch.time.wall >= 0.2 and watch.time.cpu < 0.1
    with clock.watched() as watch:
        sum(i * i for i in range(200_000))
    assert watch.time.cpu > 0


# --- entries ----------------------------------------------------------------------------------------------------------
@final
class Turns(Trial):
    """Sides that say how long they took."""

    amount = 8.0

    def __init__(self) -> None:
        self.log: list[str] = []

    def ours(self) -> Did:
        self.log.append("ours")
        return Did({"forwards": 4}, startup=0.5, seconds=[2.0, 1.0, 9.0][self.log.count("ours") % 3])

    def peer(self) -> Did | None:
        self.log.append("peer")
        return Did({"forwards": 8}, startup=2.5, seconds=6.5)

    def checks(self) -> dict[str, Any]:
        return {"apart": 0}


@final
class Sample(Bench):
    name, title, unit, peer_way = "sample", "a sample", "images/s", "slowly (nowhere)"
    targets = {"cpu": Target("≥ 3×", 3.0)}

    def __init__(self, trial: Trial | None = None) -> None:
        self.trial = trial or Turns()

    @contextmanager
    def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
        yield self.trial


def run(bench: Bench, folder: Path, runs: int = 3) -> dict[str, Any]:
    return benches.run(bench, tiny(), folder, runs)


def test_an_entry_holds_medians_ratios_and_all_that_they_rest_on(tmp_path: Path) -> None:
    """Ours took 9, 2, 1 s after a warm-up of 1 s: the median is 2 s; the peer's way 6.5 s each time."""
    trial = Turns()
    made = run(Sample(trial), tmp_path)
    assert trial.log == ["ours", "peer"] * 4, "the sides take turns, after one that is not counted"
    assert (made["ours"], made["peer"], made["unit"]) == (4.0, 1.231, "images/s")
    assert (made["ratio"], made["ratio_without_startup"]) == (3.25, 2.667)
    assert made["counts"] == {"ours": {"forwards": 4}, "peer": {"forwards": 8}}
    assert (made["runs"], made["met"], made["target"], made["checks"]) == (3, True, "≥ 3×", {"apart": 0})
    assert sorted(made["times"]["ours"]["wall"]) == [1.0, 2.0, 9.0] and len(made["times"]["peer"]["cpu"]) == 3
    assert {"name", "unit", "ours", "peer", "ratio", "ratio_without_startup", "counts", "runs"} <= made.keys()


def test_a_peer_s_way_may_take_a_single_turn(tmp_path: Path) -> None:
    bench, turns = Sample(), Turns()
    bench.trial, bench.peer_once, bench.warm_up = turns, True, False
    made = run(bench, tmp_path)
    assert turns.log == ["ours", "peer", "ours", "ours"]
    assert (made["runs"], made["peer_runs"], made["peer"]) == (3, 1, rounded(8 / 6.5))


def test_a_peer_s_way_that_takes_long_takes_fewer_turns_and_ours_all(tmp_path: Path) -> None:
    bench, turns = Sample(), Turns()
    bench.trial, bench.patience, bench.warm_up = turns, 0.0, False
    made = run(bench, tmp_path, runs=5)
    assert turns.log == ["ours", "peer"] * 3 + ["ours", "ours"] and (made["runs"], made["peer_runs"]) == (5, 3)
    again = run(bench, tmp_path, runs=2)
    assert (again["runs"], again["peer_runs"]) == (2, 2)


def test_a_target_may_be_more_than_a_ratio() -> None:
    entry = {"ratio": 60.0, "checks": {"error": 1e-3}}
    target = Target("", 50.0, lambda e: e["checks"]["error"] < 1e-5)
    assert not target.met(entry) and target.met({**entry, "checks": {"error": 1e-7}})
    assert not target.met({"ratio": 40.0, "checks": {"error": 1e-7}}) and not target.met({"ratio": None})


@final
class Shares(Trial):
    def ours(self) -> Did:
        return Did(value=2.0)

    def peer(self) -> Did | None:
        return Did(value=30.0)


def test_what_is_no_time_has_no_ratio(tmp_path: Path) -> None:
    made = run(Sample(Shares()), tmp_path)
    assert (made["ours"], made["peer"], made["ratio"], made["met"]) == (2.0, 30.0, None, False)


def test_what_cannot_be_measured_says_so(tmp_path: Path) -> None:
    @final
    class Absent(Bench):
        name, title, unit, peer_way, targets = "absent", "", "s", "", Sample.targets

        @contextmanager
        def ready(self, rig: Rig, folder: Path) -> Iterator[Trial]:
            raise NotMeasured("no such device")
            yield

    made = run(Absent(), tmp_path)
    assert made["not_measured"] == "no such device" and made["runs"] == 0
    assert made["ours"] is made["ratio"] is made["met"] is None


# --- the table --------------------------------------------------------------------------------------------------------
CONDITIONS = {"cpu": "A", "threads": 2, "torch": "2", "diffusers": "0", "load": 0.1, "date": "2026-01-01"}


def device_file(*entries: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": 1, "device": "cpu", "kind": "cpu", "conditions": CONDITIONS, "benches": list(entries)}


def test_one_bench_made_again_leaves_the_others(tmp_path: Path) -> None:
    first = run(Sample(), tmp_path)
    other = {**first, "name": "other", "ratio": 7.0}
    path = table.write(tmp_path, device_file(first, other), ["other", "sample"])
    table.write(tmp_path, device_file({**first, "ratio": 5.0}), ["other", "sample"])
    found = json.loads(path.read_text())
    assert path.name == "cpu.json" and [(e["name"], e["ratio"]) for e in found["benches"]] == [
        ("other", 7.0),
        ("sample", 5.0),
    ]


def test_the_page_shows_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    made = {**run(Sample(), tmp_path), "noisy": True}
    absent = benches.absent(Sample(), "no judge there", "cpu") | {"name": "second"}
    table.write(tmp_path, device_file(made, absent), ["sample", "second"])
    page = (tmp_path / "README.md").read_text()
    assert "| sample | 4 images/s | 1.231 images/s | 3.25× | 2.67× | 3 | ≥ 3× | yes (noisy) |" in page
    assert "| second | not measured |" in page and "no judge there" in page
    assert "counts: ours: forwards 4; peer: forwards 8" in page
    assert page.index("One GPU") < page.index("Not measured: no such device.")
    assert "profile" not in page, "there is none"


def test_the_page_names_the_profile_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.perf import profile

    monkeypatch.setattr(profile, "device_name", lambda: "cpu")
    monkeypatch.setattr(profile, "report", lambda rig: ["Profile of a run", "told"])
    written = profile.write(tmp_path, tiny())
    assert written.read_text() == "Profile of a run\ntold\n"
    table.write(tmp_path, device_file(run(Sample(), tmp_path)), ["sample"])
    assert f"[{written.name}]({written.name})" in (tmp_path / "README.md").read_text()


def test_all_of_it_is_a_profile_and_benches_and_one_bench_is_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `make perf` leaves is ready to be committed: the profile first, for the table names it."""
    from typer.testing import CliRunner

    from benchmark import cli
    from benchmark.perf import profile

    done: list[str] = []

    def note(what: str, path: Path) -> Path:
        done.append(what)
        return path

    monkeypatch.setattr(profile, "write", lambda out, rig: note("profile", out / "cpu-profile.txt"))
    monkeypatch.setattr(
        session, "measure", lambda only, **options: note(f"benches {only}", options["out"] / "cpu.json")
    )
    for arguments in ([], ["--only", "edit_swap"], ["--profile"]):
        assert CliRunner().invoke(cli.app, ["perf", *arguments]).exit_code == 0
    assert done == ["profile", "benches None", "benches edit_swap", "profile"]


def test_a_spoilt_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "cpu.json").write_text("[]")
    with pytest.raises(BadInput, match="remove it"):
        table.write(tmp_path, device_file(), [])


def test_benches_are_chosen_by_name_or_family() -> None:
    assert [b.name for b in session.chosen("closed_form_edit")] == [
        "closed_form_edit_10_100",
        "closed_form_edit_100_1000",
    ]
    assert [b.name for b in session.chosen("edit_swap")] == ["edit_swap"]
    with pytest.raises(BadInput, match="did you mean 'edit_swap'"):
        session.chosen("edit_swop")


def test_every_bench_says_what_it_is_beside_and_what_is_asked_of_it() -> None:
    for bench in session.known():
        module = __import__(type(bench).__module__, fromlist=["_"])
        assert "peer's way" in module.__doc__ and bench.peer_way and set(bench.targets) == {"cpu", "cuda"}


# --- what the sides do ------------------------------------------------------------------------------------------------
def entry(name: str, tmp_path: Path) -> dict[str, Any]:
    (bench,) = session.chosen(name)
    made = benches.run(bench, tiny(), tmp_path, 1)
    assert "not_measured" not in made, made
    return made


def test_gen_throughput_counts(tmp_path: Path) -> None:
    """Four images of four prompts, two steps, guidance: 16 forwards, none more on either side."""
    made = entry("gen_throughput", tmp_path)
    assert made["counts"]["ours"] == {"denoiser_forwards": 16, "text_encodes": 16, "decodes": 4}  # two text batches
    assert made["counts"]["peer"] == {"denoiser_forwards": 16, "text_encodes": 8, "decodes": 4, "png_writes": 4}
    assert made["checks"]["executed_over_needed"] == 1.0
    assert made["checks"]["levels_apart"] <= 1 and made["checks"]["values_apart"] < 1e-2


def test_esd_precompute_counts(tmp_path: Path) -> None:
    """The same walks, predictions and gradients; what is made beforehand is what is made one by one."""
    made = entry("esd_precompute", tmp_path)
    ours, peer = (made["counts"][side] for side in ("ours", "peer"))
    assert ours == peer and ours["denoiser_backwards"] == 4
    assert ours["denoiser_forwards"] == made["checks"]["forwards_needed"]
    assert made["checks"]["apart_over_moved"] < 0.1


def test_closed_form_counts(tmp_path: Path) -> None:
    """Two concepts and three kept on four projections: ten outer products each, of two kinds."""
    made = entry("closed_form_edit_10_100", tmp_path)
    assert made["counts"]["ours"] == {"factorisations": 1, "inverses": 0, "outer_products": 0}
    assert made["counts"]["peer"] == {"factorisations": 0, "inverses": 4, "outer_products": 40}
    assert made["checks"]["error_ours"] < 1e-5 and made["checks"]["error_peer"] < 1e-1


def test_edit_swap_counts(tmp_path: Path) -> None:
    made = entry("edit_swap", tmp_path)
    assert made["counts"]["ours"]["model_loads"] == 0 and made["counts"]["peer"]["model_loads"] == 1
    assert made["counts"]["ours"]["tensors_written"] == made["counts"]["peer"]["tensors_written"] > 0
    assert made["checks"]["tensors_not_restored"] == 0


def test_score_throughput_counts(tmp_path: Path) -> None:
    """Eight images of eight prompts: the peer's way encodes one text an image for the score, ten for the accuracy."""
    made = entry("score_throughput", tmp_path)
    assert made["counts"]["ours"] == {"image_passes": 16, "text_encodes": 18, "png_reads": 0}
    assert made["counts"]["peer"] == {"image_passes": 24, "text_encodes": 88, "png_reads": 24}
    assert made["checks"]["clip_score_apart"] < 1e-3 and made["checks"]["accuracy_apart"] == 0
    assert made["checks"]["features_apart"] < 1e-3


def test_frechet_counts(tmp_path: Path) -> None:
    made = entry("frechet_2048", tmp_path)
    assert made["counts"]["ours"]["matrix_roots"] == 0 and made["counts"]["peer"]["matrix_roots"] == 1
    assert made["checks"]["relative_difference"] < 1e-9


def test_io_overlap_counts(tmp_path: Path) -> None:
    made = entry("io_overlap", tmp_path)
    assert made["counts"]["ours"]["png_writes"] == 0 and made["counts"]["ours"]["denoiser_forwards"] == 16
    assert made["counts"]["peer"] == {"png_writes": 4, "png_reads": 4}
    assert 0 <= made["ours"] <= 100 and 0 <= made["peer"] <= 100


def test_spans_that_overlap_count_once() -> None:
    from benchmark.perf.io_overlap import union

    assert union([(0, 2), (1, 3), (1.5, 2.5), (5, 6)]) == 4


def test_one_process_and_two_shards_leave_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmark.perf import shard_invariance

    monkeypatch.setattr(shard_invariance, "_has_ray", lambda: False)  # it has tests of its own
    made = entry("shard_invariance", tmp_path)
    assert made["ours"] == made["checks"]["shards"] == 0 and made["counts"]["ours"]["files"] == 5
    assert made["peer"] == made["counts"]["peer"]["images"] / 2, "of the second shard every image is another"
    for shape in made["checks"]["batch_shapes"].values():
        assert shape["levels_apart"] <= 1 and shape["values_apart"] < 1e-3


def test_suite_end_to_end_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods of eight images and two steps: one load against one a script, the same forwards and numbers."""

    def here(name: str, rig: Rig, folder: Path, **told: Any) -> Did:
        """A stage in this process: starting one takes seconds."""
        return Did(stage.STAGES[name](told, rig, lambda: None))

    monkeypatch.setattr(stage, "call", here)
    made = entry("suite_e2e", tmp_path)
    ours, peer = made["counts"]["ours"], made["counts"]["peer"]
    assert ours["processes"] == 1 and ours["model_loads"] == 1
    assert peer["processes"] == 7 and peer["model_loads"] == 3  # one edit, two samplings, four scorings
    assert ours["denoiser_forwards"] == peer["denoiser_forwards"] == made["checks"]["forwards_needed"] == 64
    assert made["checks"]["accuracy_apart"] <= 1 / 8 and made["checks"]["clip_apart"] < 0.1


@pytest.mark.slow
def test_a_profile_says_where_the_time_goes() -> None:
    from benchmark.perf import profile

    lines = profile.report(tiny())
    text = "\n".join(lines)
    assert "A whole run: none, uce, 16 images" in text and "Images of one method: 4 of 2 steps" in text
    assert "  1.00 forwards executed for each that is needed" in lines
    shares = [float(line.split()[-2]) for line in lines if line.endswith(" %")]
    assert len(shares) >= 8 and all(share <= 100.1 for share in shares)


@pytest.mark.slow
def test_a_complete_suite_is_not_made_again(tmp_path: Path) -> None:
    made = entry("resume_noop", tmp_path)
    assert made["counts"]["ours"]["images_made"] == made["counts"]["ours"]["model_loads"] == 0
    assert made["counts"]["peer"]["images_made"] == 0 and made["counts"]["peer"]["model_loads"] == 1
    assert made["checks"]["made_again_after_kill"] == 0 and made["checks"]["lost_with_kill_at_most"] == 2
