"""``python -m tests.chaos``: so many trials from a seed, on one stack. Status 1 when anything was not as it must be."""

import argparse
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from tests.chaos import checker, generator, kills, redis, zombies
from tests.chaos.checker import Fault
from tests.chaos.site import Site, Watch
from tests.tiny import build_tiny


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--trials", type=int, default=10, help="jobs with blows")
    parser.add_argument("--zombies", type=int, default=0, help="jobs whose owners are stopped and wake up late")
    parser.add_argument("--redis", type=int, default=0, help="jobs while Redis is emptied, killed or cut off")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", type=int, default=None, help="run this trial of the seed alone")
    parser.add_argument("--named", nargs="*", default=[], choices=sorted(generator.NAMED), metavar="NAME")
    parser.add_argument("--defaults", action="store_true", help="leases of a minute, as the service has by itself")
    parser.add_argument("--stuck", type=float, default=90.0, help="seconds without owner or place that are too many")
    parser.add_argument("--keep", action="store_true", help="leave the stack's folder where it is")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    seed = secrets.randbelow(10**6) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="attune-chaos-"))
    if os.geteuid() == 0:
        folder.chmod(0o711)
    bad = True
    try:
        bad = run(asked, seed, folder)
    finally:
        if asked.keep:
            print(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return int(bad)


def run(asked: argparse.Namespace, seed: int, folder: Path) -> bool:
    found: Counter[str] = Counter()
    done = 0
    site = Site(folder, build_tiny(folder / "attune-tiny"), defaults=asked.defaults)
    with site.running(), Watch(site.home) as watch:
        judged = kills.Kills(site, seed, stuck=asked.stuck, leases=10.0 if asked.defaults else 1.0)
        began = time.monotonic()
        for trial, faults, seconds in trials(asked, judged, watch):
            done += 1
            print(f"{'FAIL' if faults else 'ok  '} {seconds:5.1f} s  {trial}", flush=True)
            for fault in faults:
                print(f"     {fault}", flush=True)
            if faults and asked.keep:
                (folder / f"trial-{done}.log").write_text(site.logs(20000))
            # A trial counts once for each sort of fault.
            found.update({fault.sort for fault in faults})
        faults = [] if asked.defaults else left_over(site)
        for fault in faults[:10]:
            print(f"     {fault}")
        found.update({fault.sort for fault in faults})
        if asked.zombies and not judged.times.refused:
            print("     doubled: no write of a zombie was refused: none was tried, or all were let in")
            found["doubled"] += 1
        say_times(judged.times, time.monotonic() - began)
    rest = "".join(f", {sort} {found[sort]}" for sort in ("litter", "leak") if found[sort])
    counts = ", ".join(f"{sort} {found[sort]}" for sort in ("lost", "stuck", "doubled", "unequal"))
    print(f"trials {done}, {counts}{rest}", flush=True)
    return bool(found.total())


def trials(asked: argparse.Namespace, judged: kills.Kills, watch: Watch) -> Iterable[tuple[object, list[Fault], float]]:
    if asked.only is not None:
        return ((t, judged.run(t, watch), 0.0) for t in [generator.trial(judged.seed, asked.only)])
    if asked.named:
        return ((t, judged.run(t, watch), 0.0) for t in map(generator.NAMED.__getitem__, asked.named))
    return chain(
        kills.loop(judged, asked.trials, watch),
        zombies.loop(judged, asked.zombies, watch),
        redis.loop(judged, asked.redis, watch),
    )


def left_over(site: Site) -> list[Fault]:
    """After the grace period nothing is left that no row names."""
    settings = site.settings
    found: list[Fault] = []

    def clean() -> bool:
        found[:] = checker.litter(site)
        return not found

    site.until(clean, 4 * (settings.litter_grace_seconds + settings.litter_sweep_seconds) + 10, every=1)
    return found


def say_times(times: kills.Times, seconds: float) -> None:
    print(f"took {seconds:.0f} s")
    for name, values in vars(times).items():
        if isinstance(values, int):
            print(f"{name}: {values} late writes")
        elif values:
            ordered = sorted(values)
            p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
            middle = ordered[len(ordered) // 2]
            print(f"{name.replace('_', ' ')}: {len(ordered)} times, median {middle:.2f} s, p99 {p99:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
