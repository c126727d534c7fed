"""Fairness: who may work and who waits."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.conductor.slots import Flow, Slots
from services.conductor.store.base import Key
from tests.properties import examples

MANY = 10_000
BIG, SMALL = ("big", ""), ("small", "")


def key(number: object) -> Key:
    return "task", str(number)


class Turns:
    """Slots, with the order in which they were given."""

    def __init__(self, max_in_flight: int, max_queued: int = MANY) -> None:
        self.given: list[Key] = []
        self.slots = Slots(max_in_flight, max_queued, self.given.append)

    def finish(self) -> None:
        """Ends the work of whoever has had a slot for longest."""
        self.slots.leave(self.given[self.finished])
        self.finished += 1

    finished = 0


# ---- turns ----


def test_no_more_work_at_once_than_allowed_and_no_slot_stays_empty() -> None:
    turns = Turns(3)
    for number in range(10):
        turns.slots.queue(key(number), BIG)
    assert turns.given == [key(number) for number in range(3)]
    for ended in range(10):
        turns.finish()
        assert len(turns.given) == min(10, ended + 4)
    assert turns.given == [key(number) for number in range(10)]  # and in the order they came


def test_a_slot_taken_at_once_counts_like_any_other() -> None:
    turns = Turns(2)
    assert turns.slots.take(key(1)) and turns.slots.take(key(2)) and not turns.slots.take(key(3))
    assert turns.slots.take(key(1))  # who has one may ask again
    turns.slots.queue(key(3), BIG)
    assert turns.given == [] and turns.slots.waits(key(3))
    turns.slots.leave(key(1))
    assert turns.given == [key(3)] and not turns.slots.waits(key(3))
    turns.slots.queue(key(4), BIG)
    turns.slots.leave(key(2))
    assert turns.given == [key(3), key(4)] and not turns.slots.take(key(5))


def test_nobody_takes_a_slot_past_those_who_wait() -> None:
    turns = Turns(1)
    turns.slots.queue(key(1), BIG)
    turns.slots.queue(key(2), BIG)
    assert not turns.slots.take(key(3))
    turns.slots.leave(key(1))
    assert turns.given == [key(1), key(2)] and not turns.slots.take(key(3))


@pytest.mark.parametrize("at_once", [1, 4])
def test_ten_thousand_tasks_of_one_delay_the_single_task_of_another_by_one_turn(at_once: int) -> None:
    turns = Turns(at_once)
    for number in range(MANY):
        turns.slots.queue(key(number), BIG)
    turns.slots.queue(key("single"), SMALL)
    while key("single") not in turns.given:
        turns.finish()
        assert turns.finished <= 2
    turns.slots.queue(key("another"), SMALL)
    before = turns.finished
    while key("another") not in turns.given:
        turns.finish()
    assert turns.finished - before <= 2


def test_projects_of_one_desktop_have_turns_too() -> None:
    turns = Turns(1)
    for number in range(100):
        turns.slots.queue(key(number), ("d", "big"))
    for number in range(3):
        turns.slots.queue(key(f"s{number}"), ("d", "small"))
    for _ in range(7):
        turns.finish()
    assert [name for _, name in turns.given if name.startswith("s")] == ["s0", "s1", "s2"]


def test_every_flow_gets_the_same_however_much_it_asks_for() -> None:
    turns = Turns(1)
    flows: dict[Key, Flow] = {}
    for flow, count in (("a", 300), ("b", 30), ("c", 30)):
        for number in range(count):
            flows[key(f"{flow}{number}")] = (flow, "")
            turns.slots.queue(key(f"{flow}{number}"), (flow, ""))
    for _ in range(90):
        turns.finish()
    got = Counter(flows[name][0] for name in turns.given[1:91])  # the first came before there was a choice
    assert max(got.values()) - min(got.values()) <= 1


def test_whoever_leaves_the_queue_costs_nobody_a_turn() -> None:
    turns = Turns(1)
    for name in ("working", "gone", "next"):
        turns.slots.queue(key(name), BIG)
    turns.slots.leave(key("gone"))
    turns.slots.leave(key("never seen"))
    assert turns.given == [key("working")] and not turns.slots.waits(key("gone"))
    turns.finish()
    turns.slots.leave(key("working"))  # a second time frees no second slot
    turns.slots.queue(key("later"), BIG)
    assert turns.given == [key("working"), key("next")]


def test_a_task_that_asks_twice_has_one_place_and_one_slot() -> None:
    turns = Turns(1)
    for name in ("working", "twice", "twice", "last"):
        turns.slots.queue(key(name), BIG)
    assert turns.slots.room == 1 + MANY - 3
    turns.slots.queue(key("working"), BIG)
    assert turns.given == [key("working")] * 2  # told again that it may go on
    turns.slots.leave(key("working"))
    assert turns.given[2:] == [key("twice")]


# ---- who may wait ----


def test_a_desktop_gets_no_more_by_using_more_projects() -> None:
    given: list[Key] = []
    slots = Slots(1, 1000, given.append)
    for number in range(100):
        slots.queue(key(f"many{number}"), ("many", f"project-{number % 50}"))
    for number in range(3):
        slots.queue(key(f"one{number}"), ("one", ""))
    while len(given) < 103:
        slots.leave(given[-1])
    assert [given.index(key(f"one{number}")) for number in range(3)] == [2, 4, 6]
    # Within the desktop its projects take turns.
    projects = [int(name[1].removeprefix("many")) % 50 for name in given if name[1].startswith("many")]
    assert sorted(projects[1:51]) == list(range(50))


def submits(slots: Slots, flow: Flow, name: Key) -> bool:
    """Lets a task come in as the actor does: it arrives, is made durable, waits."""
    if not slots.arrive(flow):
        return False
    slots.queue(name, flow)
    slots.arrived(flow)
    return True


def fill(slots: Slots, flow: Flow) -> int:
    """Lets a flow submit as long as it may; returns how many then wait of it."""
    count = 0
    while submits(slots, flow, key(f"{flow}{count}")):
        count += 1
    return count


def burst(slots: Slots, flow: Flow) -> int:
    """Lets a flow submit as long as it may, all at the same time; returns how many are on their way."""
    count = 0
    while slots.arrive(flow):
        count += 1
    return count


@pytest.mark.parametrize("size", [1, 9, 10, 100, MANY])
@pytest.mark.parametrize("come", [fill, burst])
def test_a_lone_flow_gets_eight_ninths_and_newcomers_still_find_room(
    size: int, come: Callable[[Slots, Flow], int]
) -> None:
    slots = Turns(1, size).slots
    slots.take(key("working"))
    assert abs(come(slots, BIG) - size * 8 / 9) <= 1
    if size >= 9:
        assert come(slots, SMALL) >= 1
    flows = 0
    while submits(slots, (f"newcomer {flows}", ""), key(f"n{flows}")):
        flows += 1
    assert slots.room == 0  # together they may have it all, and no more
    assert not slots.arrive(BIG) and not slots.arrive(("one", "more"))


def test_those_still_arriving_count_and_who_does_not_come_gives_the_place_back() -> None:
    turns = Turns(1, 10)
    assert turns.slots.take(key("working"))
    before = turns.slots.room
    assert burst(turns.slots, BIG) >= 8 and turns.slots.room < before
    assert not turns.slots.take(key("overtakes"))
    for _ in range(8):
        turns.slots.arrived(BIG)
    while turns.slots.room < before:
        turns.slots.arrived(BIG)
    turns.slots.leave(key("working"))
    assert turns.slots.take(key("next")) and turns.given == []


def test_nobody_takes_a_slot_past_those_who_arrive() -> None:
    turns = Turns(1)
    assert turns.slots.arrive(BIG)
    assert not turns.slots.take(key("overtakes"))  # it would be durable later and work earlier
    turns.slots.queue(key("first"), BIG)
    turns.slots.arrived(BIG)
    assert turns.given == [key("first")]


def test_clear_forgets_everybody() -> None:
    turns = Turns(2, 10)
    for number in range(8):
        turns.slots.queue(key(number), BIG)
    turns.slots.clear()
    assert turns.slots.room == 12 and not turns.slots.waits(key(5))
    turns.slots.leave(key(0))  # late
    turns.slots.leave(key(5))
    assert turns.slots.take(key("a")) and turns.slots.take(key("b")) and not turns.slots.take(key("c"))
    assert turns.given == [key(0), key(1)]


# ---- any order of events, against a model one can see through ----


class SlotsModel(RuleBasedStateMachine):
    """Lists only: who works, who waits in which order they came, and whose turn is next."""

    @initialize(at_once=st.integers(1, 4), queued=st.integers(1, 12))
    def begin(self, at_once: int, queued: int) -> None:
        self.at_once, self.queued = at_once, queued
        self.told: list[Key] = []
        self.slots = Slots(at_once, queued, self.told.append)
        self.working: list[Key] = []
        self.waiting: list[tuple[Key, Flow]] = []
        self.turns: list[Flow] = []
        self.expected: list[Key] = []
        self.arriving: list[Flow] = []
        self.resting: dict[Key, Flow] = {}

    def serve(self) -> None:
        while self.waiting and len(self.working) < self.at_once:
            flow = self.turns.pop(0)
            place = next(item for item in self.waiting if item[1] == flow)
            self.waiting.remove(place)
            if any(other == flow for _, other in self.waiting):
                self.turns.append(flow)
            self.working.append(place[0])
            self.expected.append(place[0])

    keys = st.integers(0, 15).map(key)
    flows = st.sampled_from("abc").map(lambda name: (name, ""))

    @rule(name=keys, flow=flows)
    def queue(self, name: Key, flow: Flow) -> None:
        self.resting.pop(name, None)
        if name in self.working:
            self.expected.append(name)
        elif all(name != waiting for waiting, _ in self.waiting):
            self.waiting.append((name, flow))
            if flow not in self.turns:
                self.turns.append(flow)
        self.serve()
        self.slots.queue(name, flow)

    @rule(name=keys)
    def take(self, name: Key) -> None:
        idle = not self.waiting and not self.arriving
        may = name in self.working or (idle and len(self.working) < self.at_once)
        if may and name not in self.working:
            self.working.append(name)
            self.resting.pop(name, None)
        assert self.slots.take(name) == may

    @rule(name=keys)
    def leave(self, name: Key) -> None:
        self.working = [other for other in self.working if other != name]
        self.waiting = [item for item in self.waiting if item[0] != name]
        self.resting.pop(name, None)
        self.turns = [flow for flow in self.turns if any(flow == other for _, other in self.waiting)]
        self.serve()
        self.slots.leave(name)

    @precondition(lambda self: self.working)
    @rule(flow=flows, data=st.data())
    def rest(self, flow: Flow, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.working))
        self.working.remove(name)
        self.resting[name] = flow
        self.serve()
        self.slots.rest(name, flow)

    @precondition(lambda self: len(self.waiting) > 5)
    @rule()
    def clear(self) -> None:
        self.working, self.waiting, self.turns, self.resting = [], [], [], {}
        self.slots.clear()

    @rule(flow=flows)
    def arrive(self, flow: Flow) -> None:
        free = self.queued - len(self.waiting) - len(self.arriving) - len(self.resting)
        kept = [*self.arriving, *self.resting.values()]
        own = sum(other == flow for _, other in self.waiting) + kept.count(flow)
        may = free > 0 and own < 8 * free
        if may:
            self.arriving.append(flow)
        assert self.slots.arrive(flow) == may

    @precondition(lambda self: self.arriving)
    @rule(name=keys, comes=st.booleans(), data=st.data())
    def arrived(self, name: Key, comes: bool, data: st.DataObject) -> None:
        flow = data.draw(st.sampled_from(self.arriving))
        if comes:
            self.queue(name, flow)
        self.arriving.remove(flow)
        self.slots.arrived(flow)

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "slots"):
            assert self.told == self.expected
            assert len(self.working) <= self.at_once
            waiting = {name for name, _ in self.waiting} | self.resting.keys()
            assert all(self.slots.waits(key(number)) == (key(number) in waiting) for number in range(16))
            held = len(self.working) + len(self.waiting) + len(self.arriving) + len(self.resting)
            assert self.slots.room == max(0, self.at_once + self.queued - held)


TestSlotsModel = SlotsModel.TestCase
TestSlotsModel.settings = examples(60, stateful_step_count=40, suppress_health_check=list(HealthCheck))
