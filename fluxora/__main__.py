"""The command line: the only reader of argv and os.environ.

Exit codes: 0 done or stopped as asked, 1 failed while running, 2 wrong usage or configuration, 130 stopped at once by a
second signal.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import trio

from fluxora import __version__, logs
from fluxora.config import LOCALNET_PASSPHRASE, Config
from fluxora.errors import ConfigError, FluxoraError
from fluxora.protocol import api_keys
from fluxora.variables import VARIABLES

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Command:
    """One subcommand: `arguments` fills its parser, `run` is its life."""

    name: str
    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _parser: None
    epilog: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Errors that the operator can mend are one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser(argv[0] if argv else "").parse_args(argv)
    try:
        command: Command = arguments.command
        return command.run(arguments)
    except ConfigError as error:
        print(f"fluxora: {error}", file=sys.stderr)
        return 2
    except FluxoraError as error:
        print(f"fluxora: {type(error).__name__}: {_printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return 130


def _printable(text: str) -> str:
    """An error may repeat what a server said, and a terminal obeys what it is sent."""
    return "".join(one if one.isprintable() else " " for one in text)


def _parser(chosen: str) -> argparse.ArgumentParser:
    """The parser; only the chosen command adds its arguments, for which it may load modules that others do without."""
    parser = argparse.ArgumentParser(prog="fluxora", description="The backend of token streaming on Stellar.")
    parser.add_argument("--version", action="version", version=f"fluxora {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        subparser = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.help,
            epilog=command.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command.name == chosen:
            command.arguments(subparser)
        subparser.set_defaults(command=command)
    return parser


def _variables() -> str:
    width = max(len(variable.name) for variable in VARIABLES)
    return "environment:\n" + "\n".join(f"  {v.name:{width}}  {v.help}" for v in VARIABLES)


# serve and dev


def _serve(_arguments: argparse.Namespace) -> int:
    config = Config.from_env(os.environ)
    logs.configure(config.log_level)
    return trio.run(_run, config, None)


def _dev(arguments: argparse.Namespace) -> int:
    from fluxora.localnet.command import default_contracts  # noqa: PLC0415 (it brings stellar_sdk, 36 MB)

    port = {} if arguments.port is None else {"PORT": arguments.port}  # read and judged as the variable is
    config = Config.from_env({**os.environ, "FLUXORA_SOURCE": "local", **port})
    config = replace(
        config,
        contracts=config.contracts or default_contracts(),
        source=replace(
            config.source,
            network_passphrase=LOCALNET_PASSPHRASE,
            header_every=1,
            poll_interval_s=1.0,
            start_ledger=None,
        ),
    )
    logs.configure(config.log_level)
    return trio.run(_run, config, _print_examples)


def _dev_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", help="port for HTTP, 0 for a free one (default: PORT, else 3000)")


async def _run(config: Config, greet: Callable[[str], None] | None) -> int:
    """Serve until SIGINT or SIGTERM; a second one ends the process at once."""
    from fluxora.runtime import open_runtime  # noqa: PLC0415 (`--help` should not load the server)

    async with open_runtime(config) as runtime:
        if greet is not None:
            greet(runtime.url)
        with trio.open_signal_receiver(*_STOP_SIGNALS) as signals:
            async for number in signals:
                logs.get("main").info(
                    "main.stopping", signal=signal.Signals(number).name, hint="a second one ends it now"
                )
                break
        for number in _STOP_SIGNALS:
            signal.signal(number, lambda *_: os._exit(130))
    return 0


def _print_examples(url: str) -> None:
    print(
        f"\nFluxora serves live streams of a local network at {url}\n\n"
        f"  curl -s {url}/health\n"
        f"  curl -s '{url}/api/streams?limit=3'\n"
        f"  curl -s '{url}/api/streams?status=active&order=desc&limit=1'\n"
        f"  curl -s '{url}/api/events?limit=5'\n\n"
        "Ctrl-C stops it; its data stays.\n",
        flush=True,
    )


# migrate


def _migrate(_arguments: argparse.Namespace) -> int:
    config = Config.from_env(os.environ)
    logs.configure(config.log_level)
    applied = trio.run(_apply_migrations, config)
    print("applied: " + ", ".join(f"{number:04d}" for number in applied) if applied else "nothing to apply")
    return 0


async def _apply_migrations(config: Config) -> list[int]:
    from fluxora.storage.migrate import migrate  # noqa: PLC0415 (as in _run)
    from fluxora.storage.store import open_store  # noqa: PLC0415

    async with open_store(config.storage, decimals=config.decimals, wakeup=None) as store:
        return await migrate(store)


# replay


def _replay(arguments: argparse.Namespace) -> int:
    from fluxora.replay import replay  # noqa: PLC0415 (as in _run)

    config = Config.from_env(os.environ)
    if config.source.kind == "rpc":
        raise ConfigError("FLUXORA_SOURCE: set it to push or none to replay a file; now it follows an RPC")
    config = replace(config, source=replace(config.source, kind="push"), http=replace(config.http, port=0))
    logs.configure(config.log_level)
    summary = trio.run(replay, config, arguments.file)
    print(f"{summary.inserted} recorded, {summary.duplicates} known already, position {summary.position}")
    return 0


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, help="one event a line, as JSON in the form of the ingest endpoint; - for stdin"
    )


# localnet


def _localnet_arguments(parser: argparse.ArgumentParser) -> None:
    from fluxora.localnet.command import add_arguments  # noqa: PLC0415 (as in _dev)

    add_arguments(parser)


def _localnet(arguments: argparse.Namespace) -> int:
    from fluxora.localnet.command import main as run  # noqa: PLC0415 (as in _dev)

    logs.configure(os.environ.get("LOG_LEVEL", "info"))
    try:
        trio.run(run, arguments)
    except KeyboardInterrupt:
        return 0
    return 0


# status


def _status(arguments: argparse.Namespace) -> int:
    from fluxora.status_command import run  # noqa: PLC0415 (as in _run)

    return run(arguments)


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    from fluxora.status_command import EPILOG, add_arguments  # noqa: PLC0415 (as in _run)

    parser.epilog = EPILOG
    add_arguments(parser)


# doctor


def _doctor(arguments: argparse.Namespace) -> int:
    from fluxora import doctor  # noqa: PLC0415 (as in _run)

    logs.configure("critical")  # what is found is said in its own words
    return trio.run(partial(doctor.run, as_json=arguments.json))


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")


# backup and restore


def _backup(arguments: argparse.Namespace) -> int:
    from fluxora.backup_commands import run_backup  # noqa: PLC0415 (as in _run)

    logs.configure(os.environ.get("LOG_LEVEL", "warning"))
    return run_backup(arguments)


def _restore(arguments: argparse.Namespace) -> int:
    from fluxora.backup_commands import run_restore  # noqa: PLC0415 (as in _run)

    logs.configure(os.environ.get("LOG_LEVEL", "warning"))
    return run_restore(arguments)


def _backup_arguments(parser: argparse.ArgumentParser) -> None:
    from fluxora.backup_commands import EPILOG, add_backup_arguments  # noqa: PLC0415 (as in _run)

    parser.epilog = EPILOG
    add_backup_arguments(parser)


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    from fluxora.backup_commands import add_restore_arguments  # noqa: PLC0415 (as in _run)

    add_restore_arguments(parser)


# keys


def _keys_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    what = "make a key: print it, this once, and the entry that lets it in"
    new = actions.add_parser("new", help=what, description=what)
    new.add_argument("--name", type=_key_name, help="what to call it: a-z, 0-9 and - (default: a random name)")
    new.add_argument(
        "--scope",
        action="extend",
        nargs="+",
        choices=api_keys.SCOPES,
        metavar="SCOPE",
        help=f"what it may do, of {', '.join(api_keys.SCOPES)} (default: streams:read streams:write)",
    )
    new.add_argument("--json", action="store_true", help="print one JSON object")


def _key_name(text: str) -> str:
    if not api_keys.is_name(text):
        raise argparse.ArgumentTypeError("a name is 1 to 32 of a-z, 0-9 and -")
    return text


def _keys(arguments: argparse.Namespace) -> int:
    name = arguments.name or f"key-{secrets.token_hex(4)}"
    scopes = arguments.scope or ("streams:read", "streams:write")
    text, key = api_keys.make(name, scopes, entropy=secrets.token_bytes(api_keys.ENTROPY_BYTES))
    if arguments.json:
        held = [scope for scope in api_keys.SCOPES if scope in key.scopes]
        print(json.dumps({"name": name, "scopes": held, "key": text, "entry": key.entry}))
        return 0
    print(
        f"The key, for its holder. It is kept nowhere and cannot be shown again:\n\n  {text}\n\n"
        f"Its entry, for the server. Several are separated by commas:\n\n  FLUXORA_API_KEYS={key.entry}\n"
    )
    return 0


# webhooks


def _webhooks_arguments(parser: argparse.ArgumentParser) -> None:
    from fluxora.webhook_commands import add_arguments  # noqa: PLC0415 (as in _run)

    add_arguments(parser)


def _webhooks(arguments: argparse.Namespace) -> int:
    from fluxora import webhook_commands, webhook_listener  # noqa: PLC0415 (as in _run)

    if arguments.action is None:
        trio.run(webhook_listener.main, arguments, os.environ)
        return 0
    config = Config.from_env(os.environ)
    logs.configure(config.log_level if os.environ.get("LOG_LEVEL") else "warning")  # what is printed is the answer
    text, code = trio.run(webhook_commands.run, config, arguments)
    print(text)
    return code


# openapi


def _openapi(_arguments: argparse.Namespace) -> int:
    from fluxora.http.routes import document  # noqa: PLC0415 (as in _run)

    print(msgspec.json.format(document(__version__), indent=2).decode())
    return 0


# tail


def _tail_arguments(parser: argparse.ArgumentParser) -> None:
    from fluxora.client.command import add_arguments  # noqa: PLC0415 (as in _run)

    add_arguments(parser)


def _tail(arguments: argparse.Namespace) -> int:
    from fluxora.client.command import main as run  # noqa: PLC0415 (as in _run)
    from fluxora.client.settings import Settings  # noqa: PLC0415 (as in _run)

    return trio.run(run, arguments, Settings.from_env(os.environ))


COMMANDS = (
    Command("serve", "follow the ledger and serve the API", _serve, epilog=_variables()),
    Command(
        "dev",
        "serve with a local network that lives in this process; needs no configuration",
        _dev,
        _dev_arguments,
    ),
    Command("localnet", "run a local Stellar RPC with scripted streams", _localnet, _localnet_arguments),
    Command("migrate", "bring the database's schema up to date", _migrate, epilog=_variables()),
    Command(
        "replay", "record contract events from a file; what is known already is left alone", _replay, _replay_arguments
    ),
    Command("tail", "show the log as it grows, from a server", _tail, _tail_arguments),
    Command("status", "show the health of a running server", _status, _status_arguments),
    Command("doctor", "try everything that a start needs, and say what to mend", _doctor, _doctor_arguments),
    Command("backup", "write the whole database to an archive, while it is in use", _backup, _backup_arguments),
    Command("restore", "make the database what an archive holds", _restore, _restore_arguments),
    Command("keys", "make API keys", _keys, _keys_arguments),
    Command(
        "webhooks",
        "manage webhook endpoints and their deliveries, in the database of the configuration",
        _webhooks,
        _webhooks_arguments,
    ),
    Command("openapi", "print the OpenAPI document that the server serves", _openapi),
)

if __name__ == "__main__":
    sys.exit(main())
