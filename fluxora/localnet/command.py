"""`fluxora localnet`: a local Stellar RPC server with contracts and accounts at work, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys

import trio
from stellar_sdk import StrKey

from fluxora import config
from fluxora.localnet.accounts import Script, contract_address
from fluxora.localnet.network import Network, open_localnet


def _contract(text: str) -> str:
    if not StrKey.is_valid_contract(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a contract id (C...)")
    return text


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 10000")
    return value


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=_port, default=8000, help="port, 0 for a free one (default %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="what the accounts and hashes grow from (default %(default)s)"
    )
    parser.add_argument(
        "--ledger-every", type=_seconds, default=5.0, metavar="S", help="seconds per ledger (default %(default)s)"
    )
    parser.add_argument(
        "--streams-per-ledger",
        type=_rate,
        default=1.0,
        metavar="N",
        help="new streams per ledger; fractions are chances (default %(default)s)",
    )
    parser.add_argument(
        "--contract",
        type=_contract,
        action="append",
        metavar="C...",
        help="id of a simulated contract; may be repeated (default: one derived from the seed)",
    )


def default_contracts(seed: int = 0) -> tuple[config.Contract, ...]:
    """The contract that a local network has when none is asked for."""
    return (config.Contract(id=contract_address(seed, 0)),)


def describe(network: Network) -> str:
    """What a user needs to know to use the network."""
    contracts = "\n".join(f"  contract    {contract.contract_id}" for contract in network.contracts)
    return (
        f"Stellar RPC on a local network\n  url         {network.url}\n"
        f"  passphrase  {network.chain.passphrase}\n{contracts}\n\n"
        "Faults, for example:\n"
        f"  curl -d '{{\"fork\": 3}}' {network.url}/faults\n"
        f'  curl -d \'{{"status": 429, "retry_after": 2, "html": true, "times": 3}}\' {network.url}/faults\n'
        f"  curl -d '{{\"lag\": 10}}' {network.url}/faults\n"
        f"  curl -d '{{\"reset\": true}}' {network.url}/faults\n"
        f"  curl -d '{{\"clear\": true}}' {network.url}/faults\n"
    )


async def main(args: argparse.Namespace) -> None:
    """Run the network until SIGINT or SIGTERM.

    Raises:
        OSError: the address cannot be bound.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_localnet(
            seed=args.seed,
            host=args.host,
            port=args.port,
            ledger_every_s=args.ledger_every,
            script=Script(args.seed, streams_per_ledger=args.streams_per_ledger),
            contracts=args.contract or [contract.id for contract in default_contracts(args.seed)],
        ) as network:
            sys.stdout.write(describe(network))
            sys.stdout.flush()
            async for _ in signals:
                break
