"""Running gateways that tests share, and a way to have one of one's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dandolo.sim import Script, SimProvider, SimThread

# Modules beside the tests are imported by name; the importlib mode leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent.parent / "cache" / "redis"))

from harness import KEY, PROVIDER_KEY, Gateway

Launch = Callable[..., Gateway]


@pytest.fixture(scope="session")
def shared_sim() -> Iterator[SimProvider]:
    """The provider behind the shared gateways, as it was left; tests take `sim`."""
    provider = SimProvider("sim", key=PROVIDER_KEY)
    with SimThread(provider):
        yield provider


@pytest.fixture
def sim(shared_sim: SimProvider) -> SimProvider:
    """The provider behind the shared gateways: without a script, and with no memory of earlier requests."""
    shared_sim.script = Script()
    shared_sim.forget()
    return shared_sim


@pytest.fixture(scope="session")
def shared_gateway(shared_sim: SimProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without keys and without a breaker, one for all; tests take `gateway`."""
    with Gateway(tmp_path_factory.mktemp("open"), [shared_sim], routing={"breaker": False}) as running:
        yield running


@pytest.fixture
def gateway(shared_gateway: Gateway, sim: SimProvider) -> Iterator[Gateway]:
    """The shared gateway without keys. It must outlive every test."""
    yield shared_gateway
    assert shared_gateway.alive


@pytest.fixture(scope="session")
def shared_keyed(shared_sim: SimProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The same with `KEY` demanded; tests take `keyed`."""
    with Gateway(tmp_path_factory.mktemp("keyed"), [shared_sim], keys=[KEY], routing={"breaker": False}) as running:
        yield running


@pytest.fixture
def keyed(shared_keyed: Gateway, sim: SimProvider) -> Iterator[Gateway]:
    """The shared gateway that demands `KEY`. It must outlive every test."""
    yield shared_keyed
    assert shared_keyed.alive


@pytest.fixture(scope="module")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Start a gateway of one's own, with `Gateway`'s arguments; it is stopped, and judged, after the module."""
    with ExitStack() as stack:

        def started(*args: object, **more: object) -> Gateway:
            return stack.enter_context(Gateway(tmp_path_factory.mktemp("own"), *args, **more))  # type: ignore[arg-type]

        yield started
