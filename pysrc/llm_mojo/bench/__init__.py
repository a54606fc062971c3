"""`python -m llm_mojo bench`: honest comparisons that anyone can rerun, and the charts made of them."""

import shlex
from pathlib import Path

from llm_mojo import Error

PARTS = {"generation": 170, "kernels": 125, "operations": 85, "scaling": 55, "tokens": 40, "loss": 600}
"""What there is besides the sizes, and the seconds it takes, builds included, where the published results come from."""
QUICK = {"124m": 75, "characters": 10, "kernels": 45, "operations": 25}
"""The same for the parts of `--quick`."""
ROUNDS = 3


def add_arguments(parser):
    """Declares the options of `python -m llm_mojo bench`."""
    from llm_mojo.bench.contestants import CONTESTANTS
    from llm_mojo.bench.sizes import SIZES

    parser.add_argument(
        "action",
        nargs="?",
        default="run",
        choices=["run", "compare", "report"],
        help="run (default); compare OLD.json NEW.json; report [FILE.json ..]: tables and charts, by default from the"
        " newest file of each kind of machine in bench/results",
    )
    parser.add_argument("files", nargs="*", metavar="FILE.json", help="for compare and report")
    run = parser.add_argument_group("run")
    parts = [size.name for size in SIZES] + list(PARTS)
    run.add_argument("--size", action="append", choices=parts, help="only this part (repeat for several)")
    run.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[contestant.name for contestant in CONTESTANTS],
        help=f"only this contestant (repeat for several): {', '.join(c.name for c in CONTESTANTS)}",
    )
    run.add_argument("--quick", action="store_true", help="about two minutes: one round, without the slowest parts")
    run.add_argument("--rounds", type=int, metavar="N", help=f"rounds of all contestants (default {ROUNDS})")
    run.add_argument("--llmc", type=Path, metavar="DIR", help="llm.c's folder with its train_gpt2 built")
    run.add_argument("--prefix", default="", metavar="COMMAND", help='what to time under, as in "chrt -f 10"')
    run.add_argument("--out", type=Path, metavar="FILE.json", help="default: bench/results/MACHINE-DATE.json")
    run.add_argument("--append", action="store_true", help="add to --out's file, of the same commit and machine")
    compare = parser.add_argument_group("compare")
    compare.add_argument(
        "--threshold", type=float, default=5.0, metavar="PERCENT", help="what counts as a regression (default 5)"
    )


def run(args):
    """Runs `python -m llm_mojo bench`."""
    if args.action == "compare":
        if len(args.files) != 2:
            raise Error("bench compare: expected two files of results, the older first")
        from llm_mojo.bench.compare import compare

        old, new = args.files
        compare(old, new, args.threshold)
    elif args.action == "report":
        from llm_mojo.bench.report import newest, report
        from llm_mojo.bench.workshop import ROOT

        report(args.files or newest(ROOT / "bench" / "results"))
    elif args.files:
        raise Error(f"bench run: expected no files, found {' '.join(args.files)}")
    else:
        _measure(args)


def _measure(args):
    from llm_mojo.bench import machine
    from llm_mojo.bench.generation import time_generation
    from llm_mojo.bench.kernels import time_kernels, time_operations
    from llm_mojo.bench.loss import time_loss
    from llm_mojo.bench.measure import Bench, Progress
    from llm_mojo.bench.report import newest, report
    from llm_mojo.bench.sizes import SIZES
    from llm_mojo.bench.steps import time_scaling, time_steps
    from llm_mojo.bench.tokens import time_tokens
    from llm_mojo.bench.workshop import ROOT, Workshop

    whole = not (args.size or args.only or args.quick)
    rounds = args.rounds or (1 if args.quick else ROUNDS)
    workshop = Workshop(llmc=args.llmc.resolve() if args.llmc else None)
    parts = _parts(args)
    sizes = {size.name: size for size in SIZES}
    progress = Progress({part: _expected_s(part, sizes.get(part), rounds, args) for part in parts})
    out = args.out or workshop.folder / "quick.json"
    bench = Bench(workshop, out, rounds, progress, shlex.split(args.prefix), args.quick, args.append)
    if whole and not args.out:
        name = f"{machine.short_name(bench.results['machine'])}-{bench.results['date'][:10]}.json"
        bench.path = ROOT / "bench" / "results" / name
    other = {"generation": time_generation, "kernels": time_kernels, "operations": time_operations}
    other |= {"scaling": time_scaling, "tokens": time_tokens, "loss": time_loss}
    for part in parts:
        if part in sizes:
            time_steps(bench, sizes[part], args.only)
        else:
            other[part](bench)
    bench.save()
    print(f"\nwrote {bench.path} after {bench.progress.elapsed()} minutes")
    if whole and not args.out:
        report(newest(bench.path.parent))


def _expected_s(part, size, rounds, args):
    """Seconds that a part takes with so many rounds, of the named contestants only if there are names."""
    from llm_mojo.bench.contestants import CONTESTANTS

    if args.quick and part in QUICK:
        return QUICK[part]
    if not size:
        return PARTS[part]
    share = len(args.only) / len(CONTESTANTS) if args.only else 1
    return share * size.expected_s * size.rounds(rounds) / size.rounds(ROUNDS)


def _parts(args):
    """The parts to run, in order."""
    from llm_mojo.bench.sizes import SIZES

    if args.size:
        return [name for name in [*(size.name for size in SIZES), *PARTS] if name in args.size]
    sizes = [size.name for size in SIZES if not (args.quick and size.T > 64)]
    if args.only:
        return sizes
    return sizes + [part for part in PARTS if not (args.quick and part in ("scaling", "generation", "tokens", "loss"))]
