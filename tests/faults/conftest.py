from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mqlab.errors import NoBrokerFound
from tests.conftest import PrivateBroker


@pytest.fixture(scope="session")
def own_node(
    tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], None]
) -> Iterator[PrivateBroker]:
    """A node for the tests that change a broker's settings: each puts back what it has changed."""
    try:
        broker = PrivateBroker(tmp_path_factory.mktemp("own-node"))
    except NoBrokerFound:
        missing("RabbitMQ")
        raise
    yield broker
    broker.kill()
