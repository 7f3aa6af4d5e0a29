"""Work in turns: each piece done once however many go through them, the blocked ones put off, the dead replaced."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmark import owner
from benchmark.leases import Busy, Leases
from benchmark.turns import patiently, take_turns


class Shop:
    """Pieces with parts in a folder of results, as cells have in a store; counts what is made."""

    def __init__(self, root: Path, needs: dict[str, list[str]]) -> None:
        self.root, self.needs, self.made = root, needs, list[str]()
        self.records: set[str] = set()
        root.mkdir(exist_ok=True)

    def part(self, leases: Leases, name: str) -> None:
        if not (self.root / name).exists():
            with leases.hold("part", name):
                if not (self.root / name).exists():
                    time.sleep(random.random() / 500)
                    self.made.append(name)
                    (self.root / name).touch()

    def piece(self, leases: Leases, name: str) -> None:
        busy = []
        for part in self.needs[name]:
            try:
                self.part(leases, part)
            except Busy as error:
                busy.append(error)
        if busy:
            raise busy[0]
        self.records.add(name)


def go(shop: Shop, folder: Path, **kwargs: Any) -> None:
    leases = Leases(folder)
    pieces = {name: (lambda name=name: shop.piece(leases, name)) for name in shop.needs}
    take_turns(pieces, leases, done=lambda name: name in shop.records, **kwargs)


def test_alone_all_is_done_in_order(tmp_path: Path):
    shop = Shop(tmp_path / "shop", {"b": ["b1", "b2"], "a": ["a1", "b1"]})
    go(shop, tmp_path / "leases")
    assert shop.made == ["b1", "b2", "a1"] and not (tmp_path / "leases").exists()


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_together_each_part_is_made_once(workers: int, tmp_path: Path):
    needs = {f"p{i}": ["base", *(f"p{i}.{k}" for k in range(4)), f"p{max(i - 1, 0)}.0"] for i in range(6)}
    for round_ in range(5):
        shop = Shop(tmp_path / f"shop{round_}", needs)
        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(go, shop, tmp_path / f"leases{round_}") for _ in range(workers)]:
                future.result(60)
        assert sorted(shop.made) == sorted({part for parts in needs.values() for part in parts})
        assert shop.records == set(needs)


def test_others_are_helped_once_all_is_begun(tmp_path: Path):
    """One piece of six parts and two workers: both make some."""
    shop, who = Shop(tmp_path / "shop", {"p": [f"p.{k}" for k in range(6)]}), set()
    real = shop.part

    def part(leases: Leases, name: str) -> None:
        before = len(shop.made)
        time.sleep(0.01)
        real(leases, name)
        if len(shop.made) > before:
            who.add(threading.get_ident())

    shop.part = part  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(go, shop, tmp_path / "leases") for _ in range(2)]:
            future.result(60)
    assert len(who) == 2 and len(shop.made) == 6


def test_what_nobody_has_begun_comes_first(tmp_path: Path):
    leases, shop = Leases(tmp_path / "leases"), Shop(tmp_path / "shop", {"a": ["a1"], "b": ["b1"]})
    other = Leases(tmp_path / "leases")
    from benchmark.turns import _begun

    with other.hold(_begun("a")):
        take_turns({n: (lambda n=n: shop.piece(leases, n)) for n in shop.needs}, leases, done=lambda _: False)
    assert shop.made == ["b1", "a1"]


def test_what_another_has_done_is_not_done_again(tmp_path: Path):
    leases, other = Leases(tmp_path), Leases(tmp_path)
    other.acquire("part.x")
    done: set[str] = set()
    waits = []

    def work() -> None:
        raise Busy("part.x")

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 8:
            done.add("piece")
            other.release("part.x")

    take_turns({"piece": work}, leases, done=done.__contains__, sleep=sleep)
    assert len(waits) == 8 and waits[0] < waits[4] <= max(waits) == 1.0


def test_a_dead_owners_part_is_taken_over(tmp_path: Path):
    """Its claim is from this machine, of a process that is no more."""
    import json

    folder = tmp_path / "leases"
    folder.mkdir()
    told = {"token": "t", "host": "", "place": owner.place(), "pid": 2**22 + 1, "born": "1"}
    (folder / "part.a1").write_text(json.dumps(told))
    shop = Shop(tmp_path / "shop", {"a": ["a1"]})
    go(shop, folder)
    assert shop.made == ["a1"]


def test_an_error_ends_it_and_leaves_no_claim(tmp_path: Path):
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        take_turns({"piece": work}, Leases(tmp_path / "leases"), done=lambda _: False)
    assert not (tmp_path / "leases").exists()


def test_a_claim_that_was_forgotten_is_not_waited_for(tmp_path: Path):
    leases, tries = Leases(tmp_path / "leases"), list[int]()

    def forgets() -> None:
        tries.append(1)
        if not leases.acquire("part"):
            raise Busy("part")
        if len(tries) == 1:
            raise Busy("part")  # as if what is behind had failed: the claim is still ours

    take_turns({"piece": forgets}, leases, done=lambda _: False, sleep=lambda _: pytest.fail("waits for itself"))
    assert len(tries) == 2 and not (tmp_path / "leases").exists()


def test_patience_waits_for_the_claim_and_asks_again(tmp_path: Path):
    leases, other, asked = Leases(tmp_path), Leases(tmp_path), []
    other.acquire("x")

    def work() -> int:
        asked.append(1)
        with leases.hold("x"):
            return 7

    assert patiently(work, leases, sleep=lambda _: other.release("x")) == 7 and len(asked) == 2
