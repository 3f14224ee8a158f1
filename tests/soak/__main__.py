"""A soak: a queue under load and faults, and the verdicts on it.

    python -m soak --store pg --minutes 10 --seed 42
    python -m soak --check FOLDER           the verdicts again, on the history that is there

docs/reliability.md says what is promised, what is done to a store, and what each verdict means.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Final, get_args

from soak import report
from soak.case import build
from soak.checker import Judgement, check
from soak.history import FaultName, History, Sabotage, read
from soak.run import Options, run

ROOT: Final = Path(__file__).parents[2]
# Jobs for each second: what leaves the workers idle for half of the time, so that each fault finds work and the queue
# still gets empty. Two cores carry server, workers, recorders and proxies.
RATES: Final = {"memory": 1_000, "redis": 400, "pg": 200, "sqs": 40}
# The load of a short run; what comes after it takes some seconds more.
SHORT_SECONDS: Final = 30.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=sorted(RATES), help="which one")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the load and the faults last (10)")
    parser.add_argument("--short", action="store_true", help="half a minute, with a fault each second")
    parser.add_argument("--seed", type=int, default=1, help="of the workload and the faults (1)")
    parser.add_argument("--jobs", type=int, help="how many, about; default: as many as fit")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two faults, on average (2)")
    parser.add_argument("--faults", help="which ones, with commas between; '' for none; default: all of the store")
    parser.add_argument("--workers", type=int, default=4, help="processes (4)")
    parser.add_argument("--slots", type=int, default=2, help="handlers at once in each, of each kind (2)")
    parser.add_argument("--enqueuers", type=int, default=2, help="processes (2)")
    parser.add_argument("--poisons", type=int, default=0, help="jobs that kill their workers (0)")
    parser.add_argument("--sabotage", choices=get_args(Sabotage), default="", help="what goes wrong on purpose")
    parser.add_argument("--folder", type=Path, help="for history and report; default: target/soak/STORE-SEED")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="only judge the history there")
    given = parser.parse_args()
    if given.check:
        history = read(given.check)
        return tell(given.check, history, check(history))
    if given.store is None:
        parser.error("--store is missing: memory, pg, redis or sqs")
    faults = None if given.faults is None else tuple(name for name in given.faults.split(",") if name)
    if unknown := set(faults or ()) - set(get_args(FaultName)):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(get_args(FaultName))}")
    seconds = SHORT_SECONDS if given.short else given.minutes * 60
    options = Options(
        store=given.store,
        seed=given.seed,
        jobs=given.jobs or round(RATES[given.store] * seconds),
        seconds=seconds,
        folder=given.folder or ROOT / "target" / "soak" / f"{given.store}-{given.seed}",
        every=1.0 if given.short else given.every,
        faults=faults,
        workers=given.workers,
        slots=given.slots,
        enqueuers=given.enqueuers,
        poisons=given.poisons,
        sabotage=given.sabotage,
        command=f"python -m soak {shlex.join(sys.argv[1:])}",
    )
    return tell(options.folder, *run(options))


def tell(folder: Path, history: History, judgement: Judgement) -> int:
    report.write(folder, history, judgement)
    print(report.summary(build(history), judgement))
    for finding in judgement.findings[:20]:
        print(f"{finding.verdict}: {finding.text}" + (f" (job {finding.job})" if finding.job is not None else ""))
    print(f"report: {folder / 'report.md'}")
    print(report.verdict(judgement))
    return 1 if judgement.failed else 0


if __name__ == "__main__":
    sys.exit(main())
