"""From a file of results to the tables of README.md and bench/README.md and the charts in imgs/."""

import math
from pathlib import Path
from statistics import median

from llm_mojo import Error, charts
from llm_mojo.bench import results as R
from llm_mojo.bench.contestants import CONTESTANTS
from llm_mojo.bench.loss import TARGET, seconds_to
from llm_mojo.bench.readme_section import milliseconds, section
from llm_mojo.bench.workshop import ROOT
from llm_mojo.files import atomic_file

BEGIN = "<!-- bench: written by `python -m llm_mojo bench`, do not edit -->"
END = "<!-- end of bench -->"


def report(paths, root=ROOT):
    """Rewrites the charts, and what stands between the markers of README.md and bench/README.md.

    The files are of different kinds of machine (see `results.kind`), each a column of its own.
    """
    from llm_mojo.bench.charts import draw_all

    machines = read_machines(paths)
    drawn = draw_all(machines, root / "imgs")
    _replace(root / "README.md", section(machines))
    _replace(root / "bench" / "README.md", bench_section(machines))
    print(f"wrote README.md, bench/README.md and {', '.join(image.name for image in drawn)}")


def read_machines(paths):
    """Files of results by where they are in the project, those of machines with AVX-512 first."""
    machines = {}
    for path in map(Path.resolve, map(Path, paths)):
        machines[str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name)] = R.read(path)
    kinds = [R.kind(results) for results in machines.values()]
    if len(set(kinds)) < len(kinds):
        raise Error(
            f"bench report: expected a file for each kind of machine, found two of {max(kinds, key=kinds.count)}"
        )
    order = [*R.KINDS.values(), R.OTHER_KIND]
    return dict(sorted(machines.items(), key=lambda item: order.index(R.kind(item[1]))))


def newest(folder):
    """The newest file of results for each kind of machine in a folder."""
    found: dict[str, list] = {}
    for path in Path(folder).glob("*.json"):
        results = R.read(path)
        found.setdefault(R.kind(results), []).append((results["date"], path))
    return [max(files)[1] for files in found.values()]


def _replace(readme, text):
    content = readme.read_text()
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Error(f"{readme}: expected the lines {BEGIN} and {END}, between which the tables go")
    with atomic_file(readme) as file:
        file.write(f"{before}{BEGIN}\n{text}{END}{after}".encode())


def machine_section(results, source):
    """All that was measured on one machine, without the charts, for bench/README.md."""
    machine, versions = results["machine"], results["versions"]
    best = R.limits(results)
    text = (
        f"{machine['cpu']} (family/model {machine['family']}), {machine['cores']} cores, {R.kind(results)}, "
        f"{machine['memory_gb']:.0f} GB; {best['gflops']:.0f} GFLOP/s of multiply-adds "
        f"({best['bf16_gflops']:.0f} in bf16) and {best['adamw_gbs']:.0f} GB/s of AdamW's traffic measured in the same "
        f"run; Mojo {versions['mojo-compiler']}, PyTorch {versions['torch']}, {versions['gcc']}. Medians (least to "
        f"most) of [every timing](../{source}), {results['date']}, commit `{results['commit']}`. The floor of a step is "
        "its arithmetic and AdamW's bytes at these speeds."
    )
    text += disturbance(results) + default_malloc(results) + "\n"
    for size, title in R.sizes(results).items():
        text += f"\n**{title}**\n\n{table(results, size)}"
    text += generation(results) + tokens(results) + loss(results)
    left_out = missing(results)
    return text + (f"\nNot measured: {left_out}.\n" if left_out else "")


def table(results, size):
    """The contestants of a size as Markdown, the fastest first."""
    lines = ["| | ms a step | tokens/s | of the floor | memory | first step after |", "| --- " + "| ---: " * 5 + "|"]
    for entry in R.steps_of(results, size):
        s = R.summary(entry)
        share = f"{100 * R.floor_ms(entry, results) / s.median:.0f}%"
        label = f"`{entry['label']}`" if entry["label"].endswith(".mojo") else entry["label"]
        cells = [
            f"**{label}**" if entry["contestant"].startswith("mojo") else label,
            f"{milliseconds(s.median)} ({milliseconds(s.low)} to {milliseconds(s.high)})",
            f"{R.tokens_per_second(entry):,.0f}",
            share,
            f"{R.peak_mb(entry) / 1000:.2f} GB",
            first_step(R.first_steps_s(entry)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def first_step(seconds):
    """Starts of a program in a cell: the middle one and, if there are several, the least and the most."""
    if len(seconds) < 2:
        return "".join(f"{each:.1f} s" for each in seconds)
    return f"{median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


def generation(results):
    """Reading and writing text as Markdown."""
    tasks = {entry["task"]: entry["title"] for entry in results["generation"]}
    if not tasks:
        return ""
    heads = {**tasks, "continue": f"{tasks['continue']} | GB/s of weights for that | of a plain sum over them"}
    text = f"\n**Generation, GPT-2 124M, tokens/s**\n\n| | {' | '.join(heads.values())} |\n"
    text += f"| --- {'| ---: ' * (len(tasks) + 2)}|\n"
    for label in dict.fromkeys(entry["label"] for entry in results["generation"]):
        cells = []
        for task in tasks:
            entry = next(e for e in results["generation"] if (e["task"], e["label"]) == (task, label))
            s = R.Summary.of(entry["tokens_per_second"])
            cells.append(f"{speed(s.median)} ({speed(s.low)} to {speed(s.high)})")
            if task == "continue":
                # Every token reads all weights once.
                gbs = [each * entry["weights_mb"] / 1000 for each in entry["tokens_per_second"]]
                cells += [f"{median(gbs):.1f}", share_beside(gbs, entry.get("sum_gbs"))]
        text += f"| {label} | {' | '.join(cells)} |\n"
    return text


def tokens(results):
    """Encoding text as Markdown."""
    entries = results["tokens"]
    if not entries:
        return ""
    texts = list(dict.fromkeys(entry["text"] for entry in entries))
    text = f"\n**Text to GPT-2's tokens, MB/s**\n\n| | {' | '.join(texts)} |\n| --- {'| ---: ' * len(texts)}|\n"
    for label in dict.fromkeys(entry["label"] for entry in entries):
        of_label = {entry["text"]: R.Summary.of(entry["mb_per_second"]) for entry in entries if entry["label"] == label}
        cells = [f"{speed(s.median)} ({speed(s.low)} to {speed(s.high)})" for s in (of_label[each] for each in texts)]
        text += f"| {label} | {' | '.join(cells)} |\n"
    return text


def loss(results):
    """Seconds to a loss as Markdown."""
    entries = results["loss"]
    if not entries:
        return ""
    seeds = len({entry["seed"] for entry in entries})
    text = f"\n**Seconds of training to a loss of {TARGET}: nanoGPT's character model, its whole validation set, "
    text += f"{seeds} seed{'s' * (seeds != 1)}**\n\n| | seconds to {TARGET} | steps | seconds in all | loss at the end |\n| --- {'| ---: ' * 4}|\n"
    for label in dict.fromkeys(entry["label"] for entry in entries):
        curves = [entry["curve"] for entry in entries if entry["label"] == label]
        ours = next(entry["ours"] for entry in entries if entry["label"] == label)
        reached = [seconds for curve in curves if math.isfinite(seconds := seconds_to(curve, TARGET))]
        cells = [
            f"**{label}**" if ours else label,
            _range(reached, ".1f") + (f" (in {len(reached)} of {len(curves)})" if len(reached) < len(curves) else ""),
            f"{curves[0][-1]['step']:,}",
            _range([curve[-1]["seconds"] for curve in curves], ".1f"),
            _range([curve[-1]["val_loss"] for curve in curves], ".3f"),
        ]
        text += f"| {' | '.join(cells)} |\n"
    return text


def _range(values, form):
    """The middle one and, of several, the least and the most."""
    if not values:
        return "not reached"
    middle = f"{median(values):{form}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def share_beside(gbs, limits_gbs):
    """The share of what plain passes over memory gave beside each run, where that was measured."""
    return f"{100 * median(found / limit for found, limit in zip(gbs, limits_gbs)):.0f}%" if limits_gbs else ""


def disturbance(results):
    """How quiet the machine was, as a sentence, if anything was noted."""
    shares = [each["others"] for entry in results["steps"] for each in entry["rounds"] if each["others"] is not None]
    if not shares:
        return ""
    text = f" Others took {100 * median(shares):.1f}% of the processors in the middle one of all turns, "
    text += f"{100 * max(shares):.0f}% in the worst."
    waited = sum(wait["seconds"] for wait in results["waits"])
    return text + (f" The bench waited {waited:.0f} s for other programs." if waited else "")


def default_malloc(results):
    """What PyTorch gains from memory that the C library keeps, as a sentence, if that was measured."""
    medians = {entry["contestant"]: R.summary(entry).median for entry in R.steps_of(results, "124m")}
    if not {"torch", "torch-bf16", "torch-malloc", "torch-malloc-bf16"} <= medians.keys():
        return ""
    fp32, bf16 = medians["torch-malloc"] / medians["torch"], medians["torch-malloc-bf16"] / medians["torch-bf16"]
    return (
        " PyTorch and transformers run with a C library that keeps freed memory (`GLIBC_TUNABLES`): with its default "
        f"PyTorch takes {fp32:.1f} times as long for a step of T=64, {bf16:.1f} times in bf16."
    )


def bench_section(machines):
    """What stands between the markers of bench/README.md."""
    text = ""
    for source, results in machines.items():
        text += f"\n### {R.kind(results)}\n\n{machine_section(results, source)}" + kernels_section(results)
    return text


def kernels_section(results):
    """Charts of one machine, and what was measured of its kernels."""
    from llm_mojo.bench.charts import CHARTS

    shown = {R.chart_name(name, results): chart for name, chart in CHARTS.items() if chart.data(results)}
    pictures = [charts.picture(f"../imgs/{name}.png", chart.shows) for name, chart in shown.items()]
    text = "\n" + "\n\n".join(pictures) + "\n" if pictures else ""
    return text + gemm_table(results) + attention_table(results) + memory_table(results) + operations_table(results)


def gemm_table(results):
    """The matrix products of a step as Markdown, a table for each number of rows."""
    text = ""
    for rows in dict.fromkeys(entry["rows"] for entry in results["gemm"]):
        entries = [entry for entry in results["gemm"] if entry["rows"] == rows]
        timed = [(entry["dtype"], key) for entry in entries for key in ("ms", "max_ms") if entry[key]]
        columns = list(dict.fromkeys(timed))
        heads = "".join(f" {dtype} | of the peak |" if key == "ms" else f" MAX, {dtype} | |" for dtype, key in columns)
        text += f"\n**Matrix products on {rows:,} rows: GFLOP/s**\n\n"
        text += f"| | M, N, K |{heads}\n| --- | ---: |{' ---: | ---: |' * len(columns)}\n"
        for name in dict.fromkeys(entry["name"] for entry in entries):
            of_name = [entry for entry in entries if entry["name"] == name]
            shape = ", ".join(f"{of_name[0][key]:,}" for key in "MNK")
            text += f"| {name} | {shape} |{_speeds(of_name, columns)}\n"
        text += f"| **all of a step** | |{_speeds(entries, columns)}\n"
    return text


def _speeds(entries, columns):
    """Cells with GFLOP/s and the share of the peak of some products together, as often as a step has each."""
    text = ""
    for dtype, key in columns:
        of_type = [entry for entry in entries if entry["dtype"] == dtype]
        gflop = sum(entry["count"] * entry["gflop"] for entry in of_type)
        ms = sum(entry["count"] * median(entry[key]) for entry in of_type)
        at_peak_ms = sum(entry["count"] * 1000 * entry["gflop"] / entry["peak_gflops"] for entry in of_type)
        text += f" {1000 * gflop / ms:.0f} | {100 * at_peak_ms / ms:.0f}% |"
    return text


def attention_table(results):
    """Attention over the context length as Markdown."""
    if not results["attention"]:
        return ""
    text = "\n**Attention, 12 heads of 64, 4,096 positions: GFLOP/s below the diagonal**\n\n"
    text += "| T | forward | of the peak | backward | of the peak |\n" + "| ---: " * 5 + "|\n"
    for entry in results["attention"]:
        cells = [f"{entry['T']:,}"]
        for gflop, ms in (("gflop", "ms"), ("backward_gflop", "backward_ms")):
            speed = 1000 * entry[gflop] / median(entry[ms])
            cells += [f"{speed:.0f}", f"{100 * speed / entry['peak_gflops']:.0f}%"]
        text += f"| {' | '.join(cells)} |\n"
    return text


def memory_table(results):
    """What only moves memory as Markdown."""
    if not results["memory"]:
        return ""
    text = "\n**What only moves memory**\n\n| | GB/s | of a plain pass beside it |\n| --- | ---: | ---: |\n"
    for entry in results["memory"]:
        gbs = [1000 * entry["gigabytes"] / ms for ms in entry["ms"]]
        text += f"| {entry['name']} | {median(gbs):.0f} | {share_beside(gbs, entry.get('limits_gbs'))} |\n"
    return text


def operations_table(results):
    """The operations of a step, in its order, as Markdown."""
    if not results["operations"]:
        return ""
    entry = results["operations"][0]
    text = f"\n**The operations of a step of GPT-2 124M, B={entry['B']}, T={entry['T']}, {entry['dtype']}**\n\n"
    text += "| | calls | ms | speed | of the limit | of which threads wait |\n| --- " + "| ---: " * 5 + "|\n"
    for row in entry["rows"]:
        rate, share = "", ""
        if row["gflop"]:
            gflops = 1000 * row["gflop"] / row["ms"]
            rate, share = f"{gflops:,.0f} GFLOP/s", f"{100 * gflops / entry['peak_gflops']:.0f}%"
        elif row["mb"]:
            gbs = row["mb"] / row["ms"]
            rate, share = f"{gbs:,.1f} GB/s", f"{100 * gbs / entry['adamw_gbs']:.0f}%"
        waiting = f"{100 * row['waiting_ms'] / row['ms']:.0f}%"
        each = f", {row['gflop'] / row['calls']:.2f} GFLOP each" if row["gflop"] else ""
        text += f"| {row['operation']}{each} | {row['calls']} | {row['ms']:.2f} | {rate} | {share} | {waiting} |\n"
    return text


def speed(value):
    """Tokens a second with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def missing(results):
    """Who did not take part, where and why, in one sentence."""
    titles = R.sizes(results)
    absent = [(e["label"], titles.get(e["size"], e["size"]), e["reason"]) for e in results["missing"]]
    seen = {(entry["label"], entry["size"]) for key in ("steps", "missing") for entry in results[key]}
    for size, title in titles.items():
        absent += [(c.label, title, "not run") for c in CONTESTANTS if (c.label, size) not in seen]
    absent += [(part, "whole", "not run") for part in R.PARTS if not results[part]]
    reasons = dict.fromkeys(reason for _, _, reason in absent)
    return "; ".join(
        ", ".join(f"{label} ({where})" for label, where, why in absent if why == reason) + f": {reason}"
        for reason in reasons
    )
