"""Hypothesis drives a manager and a naive model of it; `world.World` says what must hold."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from random_pools import Pick, random_pool
from world import World

DATA = st.data()


def picker(data: st.DataObject) -> Pick:
    return lambda low, high: data.draw(st.integers(low, high))


class ManagerMachine(RuleBasedStateMachine):
    """Any requests in any order on any pool."""

    world: World

    @initialize(data=DATA)
    def make_pool(self, data: st.DataObject) -> None:
        self.world = World(random_pool(picker(data)), picker(data))

    @rule(data=DATA)
    def start(self, data: st.DataObject) -> None:
        self.world.start(picker(data))

    @rule(data=DATA)
    def start_twins(self, data: st.DataObject) -> None:
        self.world.start_twins(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def grow(self, data: st.DataObject) -> None:
        self.world.grow(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def chunk(self, data: st.DataObject) -> None:
        self.world.chunk(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def overlap(self, data: st.DataObject) -> None:
        self.world.overlap(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def decode(self, data: st.DataObject) -> None:
        self.world.decode(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def answer(self, data: st.DataObject) -> None:
        self.world.answer(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def draft(self, data: st.DataObject) -> None:
        self.world.draft(picker(data))

    @rule(data=DATA)
    def crowd(self, data: st.DataObject) -> None:
        self.world.crowd(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def publish(self, data: st.DataObject) -> None:
        self.world.publish(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def slide(self, data: st.DataObject) -> None:
        self.world.slide(picker(data))

    @rule(data=DATA)
    def wait(self, data: st.DataObject) -> None:
        self.world.wait(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def finish(self, data: st.DataObject) -> None:
        self.world.finish(picker(data))

    @precondition(lambda self: self.world.live)
    @rule(data=DATA)
    def abort(self, data: st.DataObject) -> None:
        self.world.abort(picker(data))

    @rule(data=DATA)
    def evict(self, data: st.DataObject) -> None:
        self.world.evict(picker(data))

    @rule(data=DATA)
    def ask_for_room(self, data: st.DataObject) -> None:
        self.world.ask_for_room(picker(data))

    @rule(data=DATA)
    def ask_for_a_step(self, data: st.DataObject) -> None:
        self.world.ask_for_a_step(picker(data))

    @rule(data=DATA)
    def flush(self, data: st.DataObject) -> None:
        self.world.flush(picker(data))

    @invariant()
    def agrees_with_the_model(self) -> None:
        self.world.check()


TestManager = ManagerMachine.TestCase
TestManager.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
