"""`attune`: the service on this machine, and a client for it."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from cli import attempt, exits, files, jobs, keys, models, service

app = typer.Typer(
    name="attune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The OpenAI fine-tuning API on your own machines.",
    epilog=exits.HELP,
)
for command in (service.up, service.down, service.status, service.logs, service.env):
    app.command(epilog=exits.HELP)(command)
app.command("try", epilog=exits.HELP)(attempt.attempt)
app.add_typer(models.app, name="models")
app.add_typer(files.app, name="files")
app.add_typer(jobs.app, name="jobs")
app.add_typer(keys.app, name="keys")


def _version(asked: bool) -> None:
    if asked:
        try:
            print(version("attune"))
        except PackageNotFoundError:
            print("not installed")
        raise typer.Exit


@app.callback()
def attune(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """The console script: runs the command line and exits with its status."""
    sys.exit(exits.run(lambda: app(arguments)))
