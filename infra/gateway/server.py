"""`penstock serve gateway`: HTTP on one event loop, and threads beside it.

    event loop        every request; owns the alert log, the subscription view, the seats
    follow <topic>    one thread each for alerts.feed.v1 and alerts.subscription.v1
    delivery reports  of what callers publish
    call              some, for what blocks: retrieval, the topic's history, schema registry

No trouble of the broker or of a role ends the process: what needs them says 503 until they are back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import structlog
import uvicorn

from penstock.infra.gateway.alert_log import KEPT, AlertLog
from penstock.infra.gateway.app import Opened, make_app
from penstock.infra.gateway.follower import Follower
from penstock.infra.gateway.history import KafkaHistory
from penstock.infra.gateway.parts import Parts
from penstock.infra.gateway.publisher import KafkaPublisher
from penstock.infra.gateway.seats import Seats
from penstock.infra.gateway.subscription_view import SubscriptionView
from penstock.infra.settings import GatewaySettings, Settings
from penstock.ranker.client import AsyncRankerClient
from penstock.retrieval.client import RetrievalClient, shard_addresses
from penstock.schemas.framing import topic_codec
from penstock.schemas.grpc_avro import PortInUse
from penstock.schemas.topics import ALERTS, SUBSCRIPTIONS

log = structlog.get_logger(role="gateway")

STOP_S = 5.0
CALLS = 40  # threads for calls that block: more than retrieval lets wait for a version (server.py, WAITERS)
STALLED_MS = 60_000  # the kernel gives up a connection whose other end takes nothing for so long


class _Server(uvicorn.Server):
    """Signals are the role's affair (`serve.py`), not the library's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings, stop: threading.Event) -> None:
    """Blocks until `stop` is set, then ends streams and requests. Raises PortInUse."""
    asyncio.run(serve_from(lambda: open_parts(settings), settings.gateway, stop))


async def serve_from(opened: Opened, settings: GatewaySettings, stop: threading.Event) -> None:
    """The same over any parts."""
    parts: list[Parts] = []
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CALLS, thread_name_prefix="call"))

    @contextlib.asynccontextmanager
    async def noted() -> AsyncIterator[Parts]:
        async with opened() as made:
            parts.append(made)
            yield made

    app = make_app(noted, settings.max_body_bytes)
    with listening(settings.listen) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(STOP_S),
            limit_concurrency=None,
            ws="none",
        )
        server = _Server(config)
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        stopping = asyncio.ensure_future(_stopped(stop))
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for made in parts:
            made.alert_log.close()  # streams end, their clients resume elsewhere
        server.should_exit = True
        await serving
        log.info("gateway stopped")


async def _stopped(stop: threading.Event) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def open_parts(settings: Settings) -> AsyncIterator[Parts]:
    """Every client and follower, for as long as the block lasts."""
    loop = asyncio.get_running_loop()

    def post(work: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it any more
            loop.call_soon_threadsafe(work)

    registry = settings.kafka.schema_registry
    alerts_codec = topic_codec(ALERTS, registry)
    feed = AlertLog(alerts_codec)
    view = SubscriptionView(topic_codec(SUBSCRIPTIONS, registry))
    readers = [
        Follower(settings.kafka, ALERTS.name, lambda low, high: high - KEPT, feed, post),
        Follower(settings.kafka, SUBSCRIPTIONS.name, lambda low, high: low, view, post),
    ]
    ranker = AsyncRankerClient(settings.ranker.dial)
    retrieval = RetrievalClient(shard_addresses(settings.retrieval))
    publisher = KafkaPublisher(settings.kafka, settings.gateway.timeout_ms / 1000)
    for reader in readers:
        reader.start()
    log.info("gateway ready", listen=settings.gateway.listen, keys=len(settings.gateway.api_keys))
    try:
        yield Parts(
            settings=settings,
            ranker=ranker,
            retrieval=retrieval,
            publisher=publisher,
            alert_log=feed,
            alert_reader=readers[0],
            history=KafkaHistory(settings.kafka, alerts_codec),
            subscriptions=view,
            subscription_reader=readers[1],
            seats=Seats(settings.gateway.max_streams),
        )
    finally:
        for reader in readers:
            await asyncio.to_thread(reader.close, STOP_S)
        await asyncio.to_thread(publisher.close, STOP_S)
        retrieval.close()
        await ranker.close()


@contextlib.contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """A bound socket for host:port. Raises PortInUse.

    Connections inherit a bound on how long the kernel keeps trying a client that does not read: a stream that was cut
    off must not hold its last bytes for ever.
    """
    host, _, port = address.rpartition(":")
    family, *_, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_MS)
        try:
            listener.bind(place)
        except OSError as error:
            raise PortInUse(
                f"cannot listen on {address}: {error.strerror}; choose another or stop what holds it"
            ) from error
        listener.setblocking(False)
        yield listener
