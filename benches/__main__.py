"""`python -m benches`: measures, and writes results.json and results.md into the directory given."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import comparison, guests, product, report, sides


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs of each side (default %(default)s)")
    parser.add_argument("--only", default="", help="cases of the comparison whose name contains this")
    parser.add_argument("--vcpus", type=int, nargs="+", default=[1], help="of the comparison's guests (default 1)")
    parser.add_argument("--newer", metavar="SUITE", help="compare with QEMU of this suite of Debian's as well")
    parser.add_argument("--skip-product", action="store_true", help="the software CPU alone")
    parser.add_argument("--place", type=Path, default=guests.ROOT / "target" / "bench", help="for guests and results")
    args = parser.parse_args()

    # The user's own cache is not touched.
    os.environ["SUPERMACHINE_CACHE"] = str(args.place / "cache")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    sides.build_soft(guests.ROOT)
    guest = guests.build(args.place)
    results: report.Results = {"environment": report.environment(args.repeats, args.place, args.newer)}
    results["comparison"] = [
        row
        for vcpus in args.vcpus
        for row in comparison.compare(args.place, guest, args.repeats, args.only, say, vcpus, args.newer)
    ]
    if not args.only:
        results["start_and_end"] = comparison.start_and_end(args.place, guest, args.repeats)
        results["instruction_rates"] = comparison.instruction_rates(args.place, guest, args.repeats)
    if not args.skip_product and not args.only:
        results["product"] = product.measure(args.repeats, say)
    (args.place / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    text = report.markdown(results)
    (args.place / "results.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
