"""Replicas of the control plane: their parts are real; that they are stopped, killed and cut off is modelled. And the
streams between them and the agents.

A stream keeps order and loses nothing but its end, as TCP does. Across streams there is no order: what was sent on one
that the agent has given up may arrive at any time, or never.
"""

import asyncio
import contextlib
import contextvars
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

from adjourn import errors
from adjourn.objects import STORAGE_ERRORS, S3Settings
from adjourn.v1.agent_service_pb2 import SynchronizeRequest, SynchronizeResponse
from adjourn_control_plane.fleet.collector import Collector
from adjourn_control_plane.fleet.lease_monitor import LeaseMonitor
from adjourn_control_plane.fleet.scheduler import Scheduler
from adjourn_control_plane.fleet.session import AgentSession
from adjourn_control_plane.job.updater import JobUpdater
from adjourn_control_plane.settings import Settings
from adjourn_control_plane.store.notifier import Notifier
from tests.harness.checked_store import GATE, CheckedStore, Gate
from tests.harness.damaged_objects import DamagedObjects
from tests.harness.fake_clock import FakeLoop
from tests.harness.worker_model import AgentModel, Host

SETTINGS: Final = Settings(
    redis_url="redis://none", s3=S3Settings(endpoint="http://none", bucket="b", access_key="k", secret_key="s")
)
PASSING: Final = (errors.StoreUnavailableError, errors.ContentionError, *STORAGE_ERRORS)
"""What a round, or a call, may end with: it comes again."""


class ReplicaModel:
    """One life of a replica."""

    def __init__(self, store: CheckedStore, objects: DamagedObjects, loop: FakeLoop) -> None:
        self.store = store
        self.loop = loop
        self.gate = Gate()
        self.context = contextvars.copy_context()
        self.context.run(GATE.set, self.gate)
        self.notifier = Notifier(store)
        self.updater = JobUpdater(store)
        self.scheduler = Scheduler(store, self.updater, self.notifier, SETTINGS)
        self.monitor = LeaseMonitor(store, self.updater, SETTINGS)
        self.collector = Collector(store, objects, SETTINGS)
        self.streams: list[StreamModel] = []
        self.rounds: dict[str, asyncio.Task[None]] = {}
        self.tasks: list[asyncio.Task[Any]] = [self.spawn(self.notifier.run())]

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs work as a part of this process."""
        return self.loop.create_task(work, context=self.context.copy())

    @property
    def stopped(self) -> bool:
        return not self.gate.open.is_set()

    @property
    def serves(self) -> bool:
        return not self.stopped and self.gate.reaches_store and self.store.available

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begins a round, unless the one before it is still under way, or the process is stopped."""
        known = self.rounds.get(name)
        if self.stopped or (known is not None and not known.done()):
            work.close()
            return
        self.rounds[name] = self.spawn(passing(work))

    def pulse(self) -> None:
        self.begin("pulse", self.monitor.pulse())

    def look(self) -> None:
        """Begins a round of everything that is done again and again."""
        self.begin("expire", self.monitor.expire())
        self.begin("place", self.scheduler.place())
        self.begin("purge", self.collector.purge())

    def kill(self, *, silently: bool = False) -> None:
        """Ends it as SIGKILL does: nothing of it goes on, and its streams break; `silently`: with its machine."""
        self.gate.open.clear()
        if not silently:
            for stream in self.streams:
                stream.down.append(ConnectionResetError())

    def failures(self) -> None:
        """Raises what has ended a task and must not."""
        for task in [*self.tasks, *self.rounds.values(), *(each.task for each in self.streams if each.task)]:
            if task.done() and not task.cancelled():
                task.result()


async def passing(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(*PASSING):
        await work


class StreamModel:
    """A stream of an agent, from its opening to its end at both ends."""

    def __init__(self, host: Host, agent: AgentModel, replica: ReplicaModel) -> None:
        self.host = host
        self.agent = agent
        self.replica = replica
        self.up: deque[SynchronizeRequest | None] = deque()
        """Sent, and not arrived. None: the agent has closed its end."""
        self.down: deque[SynchronizeResponse | Exception] = deque()
        self.arrived: asyncio.Queue[SynchronizeRequest | None] = asyncio.Queue()
        self.session: AgentSession | None = None
        self.task: asyncio.Task[None] | None = None
        host.opened += 1
        self.number = host.opened
        self.opened_at = host.clock.monotonic
        self.hangs = False
        """Nothing arrives, neither way, and neither end knows."""
        replica.streams.append(self)
        agent.link = self
        agent.silence = agent.waits = agent.acted_upon = 0
        agent.inbox.clear()

    def speak(self) -> None:
        """The agent sends what it has."""
        request = self.agent.build_request()
        request.acknowledged_response = self.agent.acted_upon
        request.stream = self.number
        self.up.append(request)

    def broken_by_agent(self) -> None:
        """The agent has gone, or gives the stream up. The control plane hears of it if it can."""
        self.up.append(None)
        self.host.given_up.append(self)
        if self.agent.link is self:
            self.agent.link = None

    def arrive(self, most: int = 99) -> None:
        """Lets messages of the agent arrive, in their order."""
        while self.up and most and not self.host.cut_up and not self.hangs:
            most -= 1
            message = self.up.popleft()
            if message is not None and self.task is None:
                self.session = self.replica.context.run(self.open, message)
                self.task = self.replica.spawn(self.serve(self.session, message))
            else:
                self.arrived.put_nowait(message)

    def open(self, first: SynchronizeRequest) -> AgentSession:
        replica = self.replica
        return AgentSession(first, replica.store, replica.updater, replica.notifier, SETTINGS)

    async def serve(self, session: AgentSession, first: SynchronizeRequest) -> None:
        end: Exception = ConnectionResetError()
        try:
            async with contextlib.aclosing(session.run(first, self.requests())) as responses:
                async for response in responses:
                    await self.replica.gate.passed()
                    self.down.append(response)
        except (
            *PASSING,
            errors.ShuttingDownError,
            errors.SessionSupersededError,
            errors.WorkerNameTakenError,
        ) as error:
            end = error
        self.down.append(end)

    async def requests(self) -> AsyncIterator[SynchronizeRequest]:
        while (message := await self.arrived.get()) is not None:
            yield message

    def deliver(self) -> None:
        """Lets responses arrive; the agent handles the newest."""
        agent = self.agent
        current = self.host.agent is agent and agent.link is self and not agent.stopped
        if self.host.cut_down or self.hangs or not current:
            return
        while self.down:
            message = self.down.popleft()
            if isinstance(message, SynchronizeResponse):
                agent.inbox.append((message, self.opened_at))
                agent.silence = agent.failures = 0
                continue
            agent.link = None
            if isinstance(message, errors.SessionSupersededError):
                agent.refused = True
            else:
                agent.try_failed()
            if isinstance(message, errors.WorkerNameTakenError):
                agent.does(agent.hear_name_taken(message.message))
            return
