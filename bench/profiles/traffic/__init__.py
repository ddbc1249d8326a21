"""The scenarios of the mixed load, one file each: requests that arrive, followers that stay, and receivers.

To add one, write its class in a file of its own, as `Requests`, `Followers` or `Receivers` says, and name it in the
list below.
"""

from __future__ import annotations

from bench.profiles.traffic.forms import Followers, Receivers, Requests
from bench.profiles.traffic.ingest import Ingest
from bench.profiles.traffic.rest_reads import RestReads
from bench.profiles.traffic.rest_writes import RestWrites
from bench.profiles.traffic.sse_followers import SseFollowers
from bench.profiles.traffic.webhooks import Webhooks
from bench.profiles.traffic.ws_followers import WsFollowers

REQUESTS: dict[str, type[Requests]] = {one.name: one for one in (RestReads, RestWrites, Ingest)}
FOLLOWERS: dict[str, type[Followers]] = {one.name: one for one in (WsFollowers, SseFollowers)}
RECEIVERS: dict[str, type[Receivers]] = {one.name: one for one in (Webhooks,)}
TOLD: dict[str, type[Followers | Receivers]] = {**FOLLOWERS, **RECEIVERS}
ALL: dict[str, type[Requests | Followers | Receivers]] = {**REQUESTS, **TOLD}
WEIGHTS: dict[str, float] = {name: one.weight for name, one in ALL.items()}
