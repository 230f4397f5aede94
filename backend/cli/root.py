"""The command tree, and what every failure looks like: one line on stderr, an exit code not 0."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

import click
import msgspec

from backend.cli.audits import audit, parked, projection, replay
from backend.cli.channels import channel
from backend.cli.codes import code
from backend.cli.correcting import correct
from backend.cli.explorer import ledger
from backend.cli.exporting import export
from backend.cli.forgetting import data_keys
from backend.cli.groups import group
from backend.cli.keys import key
from backend.cli.limits import limit
from backend.cli.people import balance, grant, invitation, user
from backend.cli.plans import plan, subscribe
from backend.cli.prices import price
from backend.cli.reconciling import reconcile
from backend.cli.records import requests, statement
from backend.cli.repricing import reprice
from backend.cli.restoring import recover, restore
from backend.cli.roles import ROLE_COMMANDS, health, migrate
from backend.cli.seals import seal
from backend.kit.postgres import DatabaseError
from schemas.errors import SuanpanError
from schemas.registry import UndecodableEvent

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="suanpan")
def suanpan() -> None:
    """Suanpan: a chat site and relay whose every point is accounted for.

    Commands find the site through SUANPAN_DATA_DIR (else ./.data).
    """


for _command in (
    *ROLE_COMMANDS, migrate, health, user, invitation, key, data_keys, grant, balance, channel,
    price, plan, subscribe, code, group, limit, statement, requests, ledger, export, audit, seal,
    replay, projection, parked, recover, restore, reprice, reconcile, correct,
):  # fmt: skip
    suanpan.add_command(_command)


def main() -> NoReturn:
    """Runs the command line and exits: 0, or not."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command line; the exit code."""
    try:
        code = suanpan.main(arguments, prog_name="suanpan", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted", EXIT_INTERRUPTED)
    except SuanpanError as error:
        return _failed(error.sentence)
    except DatabaseError as error:
        return _failed(f"PostgreSQL answered with an error: {_first_line(error)}")
    except (msgspec.DecodeError, UndecodableEvent) as error:
        return _failed(f"something stored cannot be read ({error}): run `suanpan audit`")
    except BrokenPipeError:
        # Whoever read our output has enough; nothing more may be written, not even at exit.
        sys.stdout = None  # pyright: ignore[reportAttributeAccessIssue]
        return EXIT_FAILED
    except (OSError, TimeoutError) as error:
        return _failed(f"{type(error).__name__}: {_first_line(error)}")
    return code if isinstance(code, int) else 0


def _failed(sentence: str, code: int = EXIT_FAILED) -> int:
    click.echo(f"suanpan: {sentence}", err=True)
    return code


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
