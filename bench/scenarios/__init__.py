"""The scenarios by name, quick ones first."""

from __future__ import annotations

from bench.harness import Scenario
from bench.scenarios.contract import ContractScenario
from bench.scenarios.decode import Decode
from bench.scenarios.ingest import Ingest
from bench.scenarios.rest import Rest
from bench.scenarios.slow_clients import SlowClients
from bench.scenarios.sse import Sse
from bench.scenarios.webhooks import Webhooks
from bench.scenarios.ws_connections import WsConnections
from bench.scenarios.ws_fanout import WsFanout

_ALL = (
    Decode(),
    Ingest(),
    ContractScenario(),
    SlowClients(),
    Rest(),
    WsConnections(),
    WsFanout(),
    Sse(),
    Webhooks(),
)
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
