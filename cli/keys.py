"""`attune keys`: who may use the service."""

from typing import Annotated
from urllib.parse import quote

import typer

from cli import connection, exits, options, output

app = typer.Typer(no_args_is_help=True, help="API keys (needs an admin key).", epilog=exits.HELP)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[
        list[str] | None, typer.Option("--scope", help="read, train or admin; may be repeated. Default: read, train.")
    ] = None,
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Make a key. It is shown this once."""
    body = {"name": name, "scopes": scope or ["read", "train"]}
    key = connection.post(connection.admin(home), "/admin/keys", body)
    if json:
        output.as_json(key)
        return
    # The key alone on standard output: KEY=$(attune keys create ci)
    print(key["key"])
    output.note(f"{key['id']} ({', '.join(key['scopes'])}): keep it now, it is not shown again")


@app.command("list")
def list_keys(home: options.Home = None, json: options.Json = False) -> None:
    """All keys, without their secrets."""
    keys = connection.get(connection.admin(home), "/admin/keys")["data"]
    if json:
        output.as_json(keys)
        return
    output.table(
        ["ID", "NAME", "SCOPES", "BEGINS", "CREATED", "LAST USED", "REVOKED"],
        [
            (
                key["id"],
                key["name"],
                ", ".join(key["scopes"]),
                key["prefix"],
                output.moment(key["created_at"]),
                output.moment(key["last_used_at"]),
                output.moment(key["revoked_at"]),
            )
            for key in keys
        ],
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="key_…, from `attune keys list`.")],
    home: options.Home = None,
    json: options.Json = False,
) -> None:
    """Make a key useless at once."""
    answer = connection.delete(connection.admin(home), f"/admin/keys/{quote(key_id, safe='')}")
    if json:
        output.as_json(answer)
    else:
        output.line(f"{key_id} is revoked")
