"""What an operator does to the log: `python -m services.conductor.admin`, or `conductor admin`.

Exit codes:
    0  done, and all is well
    1  check found something, or a migration is pending (migrate --check)
    2  it cannot be done, or the command line is wrong; one sentence on standard error says what to do
"""

import argparse
import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NoReturn

from services.common.config import ConductorSettings, ConfigError, load
from services.conductor import audit
from services.conductor.retention import Keep, sweep
from services.conductor.store.admin import AdminError, Administration, InUse, Reader
from services.conductor.store.admin_engine import administration
from services.conductor.store.base import StoreUnavailable

WELL, FINDINGS, IMPOSSIBLE, INTERRUPTED = 0, 1, 2, 130
SHOWN = 20  # findings written for each check; more are counted
_TIME = re.compile(r"(\d{1,9})([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


async def migrate(store: Administration, args: argparse.Namespace) -> int:
    """Applies the schema files that the store does not have yet, or tells whether there are any."""
    found = await store.schema()
    if found >= store.known:
        _say(f"{store.name} has schema {found}; nothing is pending.")
        return WELL
    if args.check:
        _say(f"{store.name} has schema {found}; pending: up to {store.known}.")
        return FINDINGS
    await (await store.open()).close()
    _say(f"{store.name}: schema {found} → {await store.schema()}.")
    return WELL


async def prune(store: Administration, args: argparse.Namespace) -> int:
    """Removes ended tasks with all their events."""
    await _refuse_other_schema(store)
    keep, now = Keep(args.older_than, args.keep), time.time_ns()
    if args.dry_run:
        async with store.reader() as reader:
            before = await keep.cutoff(_Ended(reader), now)
            count = await audit.one(reader, "SELECT count(*) FROM aggregates WHERE ended_at < $1", before)
        _say(f"{store.name}: ended tasks that would be removed: {count[0]}.")
        return WELL
    try:
        opened = await store.open()
    except InUse as error:
        how = "set CONDUCTOR_KEEP_FOR or CONDUCTOR_KEEP_TASKS, and it prunes by itself"
        raise AdminError(f"{str(error).removesuffix('.')}; or {how}.") from None
    removed = 0
    try:
        before = await keep.cutoff(opened, now)
        async for gone in sweep(opened, before):
            removed += gone
    finally:
        await opened.close()
        _say(f"{store.name}: ended tasks removed: {removed}.")
    return WELL


async def backup(store: Administration, args: argparse.Namespace) -> int:
    """Writes a backup: whole or not at all."""
    await store.backup(args.file.absolute(), args.force)
    _say(f"{store.name} is in {args.file}, {args.file.stat().st_size} bytes.")
    return WELL


async def restore(store: Administration, args: argparse.Namespace) -> int:
    """Makes the store what a backup holds."""
    await store.restore(args.file.absolute(), args.force)
    _say(f"{args.file} is in {store.name}, schema {await store.schema()}.")
    return WELL


async def check(store: Administration, args: argparse.Namespace) -> int:
    """Says what is wrong with the store."""
    await _refuse_other_schema(store)
    total = 0
    async with store.reader() as reader:
        size = await audit.extent(reader)
        _say(f"{store.name}: {size.tasks} tasks, {size.projects} projects, events behind {size.low} up to {size.head}.")
        total += await _report("files", store.damage(reader))
        for name, promise in audit.CHECKS.items():
            total += await _report(name, promise(reader))
        total += await _report("states", (audit.states if args.full else audit.sample)(reader))
    _say(f"Findings: {total}." if total else "No findings.")
    return FINDINGS if total else WELL


async def _report(name: str, findings: AsyncIterator[str]) -> int:
    """Writes the first findings of a check and how many there are; returns that."""
    count = 0
    async for finding in findings:
        count += 1
        if count <= SHOWN:
            _say(f"{name}: {finding}")
    if count > SHOWN:
        _say(f"{name}: {count - SHOWN} more")
    if not count:
        _say(f"{name}: ok")
    return count


class _Ended:
    """The part of a Store that Keep needs, on a snapshot."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def ended_before(self, newest: int) -> int:
        sql = (
            "SELECT ended_at FROM aggregates WHERE ended_at IS NOT NULL"
            " ORDER BY ended_at DESC, id DESC LIMIT 1 OFFSET $1"
        )
        return next(iter([at async for (at,) in self._reader.rows(sql, newest)]), 0)


async def _refuse_other_schema(store: Administration) -> None:
    found = await store.schema()
    if not found:
        raise AdminError(f"There is no store at {store.name}: name it with --store or CONDUCTOR_STORE.")
    if found < store.known:
        raise AdminError(
            f"{store.name} has schema {found}, older than {store.known}: run conductor admin migrate first."
        )


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(IMPOSSIBLE, f"{self.prog}: {message}; see {self.prog} --help.\n")


def _seconds(text: str) -> float:
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError("give a number with s, m, h or d, for example 30d")
    return float(match[1]) * _SECONDS[match[2]]


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError("give a whole number above 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="conductor admin", description="Look after Conductor's log, on SQLite or PostgreSQL.")
    parser.add_argument("--store", help="file or postgresql:// URL; CONDUCTOR_STORE when left out")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("migrate", help="bring the schema up to date")
    command.add_argument("--check", action="store_true", help="only tell; exit code 1 when something is pending")
    command.set_defaults(run=migrate)

    command = commands.add_parser("prune", help="remove tasks that have ended, with their events")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--older-than", type=_seconds, metavar="TIME", help="those that ended so long ago: 30d, 12h")
    what.add_argument("--keep", type=_count, metavar="COUNT", help="all but so many, the youngest")
    command.add_argument("--dry-run", action="store_true", help="only count them")
    command.set_defaults(run=prune)

    command = commands.add_parser("backup", help="write all there is into a file; Conductor may run")
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument("--force", action="store_true", help="replace the file if there is one")
    command.set_defaults(run=backup)

    command = commands.add_parser("restore", help="make the store what a backup holds; no Conductor may run on it")
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument("--force", action="store_true", help="SQLite: lose what is in the store now")
    command.set_defaults(run=restore)

    command = commands.add_parser("check", help="tell whether the log keeps its promises; exit code 1 when not")
    command.add_argument("--full", action="store_true", help=f"fold every stream, not a sample of {audit.SAMPLE}")
    command.set_defaults(run=check)
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        settings = load(ConductorSettings, {"CONDUCTOR_STORE": args.store} if args.store else None)
        return int(asyncio.run(args.run(administration(settings.store), args)))
    except (AdminError, ConfigError) as error:
        problem = str(error)
    except StoreUnavailable as error:
        problem = f"The log cannot be read or written now ({error.cause}): try again."
    except KeyboardInterrupt:
        return INTERRUPTED
    sys.stderr.write(f"conductor admin: {problem}\n")
    return IMPOSSIBLE


if __name__ == "__main__":
    sys.exit(main())
