"""The scenarios by name, quick ones first."""

from __future__ import annotations

from bench.harness import Scenario
from bench.scenarios.decode import Decode
from bench.scenarios.ingest import Ingest

SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in (Decode(), Ingest())}
