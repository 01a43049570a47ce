"""The `callmesh` command."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from chassis.errors import StartError
from chassis.localstack import PortInUse, ProcessFailed
from cli import directory, planning, report_voc
from cli.backup import backup, drill, restore
from cli.calls import calls
from cli.canary import canary
from cli.configuration import config
from cli.crm_files import export_file, import_file
from cli.dead import dead
from cli.doctor import doctor
from cli.down import down
from cli.keys import keys
from cli.lifecycle import acts, migrate, retention
from cli.locate import locate
from cli.marketing_tools import marketing
from cli.menus import menus
from cli.outbound import outbound
from cli.plan import BadStackConfig
from cli.redeliver import redeliver
from cli.runbook import runbook
from cli.sandbox import sandbox
from cli.sections import Sections
from cli.simulate import simulate
from cli.stack import StackError
from cli.status import status
from cli.tickets_tools import tickets
from cli.up import up
from cli.view import print_error

#: The stack could not be started or stopped.
EXIT_FAILED = 1
#: A setting, a file or a port is wrong, or a server refuses or does not answer. Apart from 1, by which some
#: commands say what they found.
EXIT_USAGE = 2

app = typer.Typer(
    name="callmesh",
    cls=Sections,
    help="Run the callmesh contact-centre platform: on this machine, and wherever else it is.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # The long form prints local variables, which may hold secrets.
    pretty_exceptions_enable=False,
)
COMMANDS = (
    up,
    down,
    status,
    locate,
    simulate,
    keys,
    sandbox,
    backup,
    restore,
    drill,
    doctor,
    migrate,
    retention,
    acts,
    runbook,
    redeliver,
    canary,
)
GROUPS = (
    calls,
    directory.region,
    directory.shard,
    directory.directory,
    report_voc.report,
    tickets,
    menus,
    marketing,
    planning.plan,
    dead,
    outbound,
    config,
)
for command in COMMANDS:
    app.command()(command)
for group in GROUPS:
    app.add_typer(group)
app.command("import")(import_file)
app.command("export")(export_file)


def add_demo(arguments: list[str]) -> None:
    """Adds `demo` unless another command was asked for: it imports much, and `status` should be quick."""
    wanted = next((argument for argument in arguments if not argument.startswith("-")), "")
    quick = {command.__name__ for command in COMMANDS} | {str(group.info.name) for group in GROUPS}
    if wanted not in quick:
        from cli.demo.command import demo

        app.command("demo")(demo)


def _end_politely(number: int, _: FrameType | None) -> None:
    # Unwinds like Ctrl-C, so that what a command started is stopped.
    raise SystemExit(128 + number)


def main() -> None:
    """Entry point: expected failures become one clear line and an exit status, never a traceback."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_politely)
    add_demo(sys.argv[1:])
    try:
        app(prog_name="callmesh")
    except (BadStackConfig, PortInUse, StartError, directory.Refused) as error:
        print_error(error)
        sys.exit(EXIT_USAGE)
    except (StackError, ProcessFailed) as error:
        print_error(error)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
