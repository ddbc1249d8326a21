"""The scenarios by name, quick ones first."""

from __future__ import annotations

from bench.harness import Scenario
from bench.scenarios.contract import ContractScenario
from bench.scenarios.decode import Decode
from bench.scenarios.ingest import Ingest
from bench.scenarios.rest import Rest
from bench.scenarios.slow_clients import SlowClients
from bench.scenarios.webhooks import Webhooks

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario for scenario in (Decode(), Ingest(), Webhooks(), ContractScenario(), SlowClients(), Rest())
}
