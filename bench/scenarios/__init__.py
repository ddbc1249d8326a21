"""The scenarios by name, quick ones first, and the profiles: loads on the whole system."""

from __future__ import annotations

from bench.harness import Scenario
from bench.profiles.load import Load
from bench.profiles.soak import Soak
from bench.profiles.stress import Stress
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
PROFILES: dict[str, Scenario] = {profile.name: profile for profile in (Load(), Stress(), Soak())}
