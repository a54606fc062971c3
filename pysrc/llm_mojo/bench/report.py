"""From a file of results to the README's tables and the charts in imgs/."""

from pathlib import Path

from llm_mojo import Error
from llm_mojo.bench import results as R
from llm_mojo.bench.contestants import CONTESTANTS
from llm_mojo.bench.workshop import ROOT
from llm_mojo.formats import atomic_file

BEGIN = "<!-- bench: written by `python -m llm_mojo bench`, do not edit -->"
END = "<!-- end of bench -->"
PARTS = ("gemm", "attention", "memory", "scaling", "generation")


def report(path, readme=ROOT / "README.md", images=ROOT / "imgs"):
    """Rewrites what stands between the README's markers, and the charts."""
    from llm_mojo.bench.charts import draw_all

    path = Path(path).resolve()
    results = R.read(path)
    drawn = draw_all(results, images)
    source = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Error(f"{readme}: expected the lines {BEGIN} and {END}, between which the tables go")
    with atomic_file(readme) as file:
        file.write(f"{before}{BEGIN}\n{section(results, source)}{END}{after}".encode())
    print(f"wrote {readme.name} and {', '.join(image.name for image in drawn)}")


def section(results, source):
    """What stands between the markers."""
    machine, versions = results["machine"], results["versions"]
    best = R.limits(results)
    vectors = "AVX-512" if "avx512f" in machine["vectors"] else "AVX2"
    text = (
        f"{machine['cpu']} (family/model {machine['family']}), {machine['cores']} cores, {vectors}, "
        f"{machine['memory_gb']:.0f} GB; {best['gflops']:.0f} GFLOP/s of multiply-adds "
        f"({best['bf16_gflops']:.0f} in bf16) and {best['adamw_gbs']:.0f} GB/s of AdamW's traffic measured in the same run; Mojo {versions['mojo-compiler']}, PyTorch {versions['torch']}, {versions['gcc']}. "
        f"Medians (least to most) of [every timing]({source}), {results['date']}, commit `{results['commit']}`. The floor "
        "of a step is its arithmetic and AdamW's bytes at these speeds.\n"
    )
    for size, title in R.sizes(results).items():
        text += f"\n**{title}**\n\n{table(results, size)}"
    text += generation(results)
    left_out = missing(results)
    return text + (f"\nNot measured: {left_out}.\n" if left_out else "")


def table(results, size):
    """The contestants of a size as Markdown, the fastest first."""
    lines = ["| | ms a step | tokens/s | of the floor | memory | first step after |", "| --- " + "| ---: " * 5 + "|"]
    for entry in R.steps_of(results, size):
        s = R.summary(entry)
        share = f"{100 * R.floor_ms(entry, results) / s.median:.0f}%"
        first = R.first_step_s(entry)
        label = f"`{entry['label']}`" if entry["label"].endswith(".mojo") else entry["label"]
        cells = [
            f"**{label}**" if entry["contestant"].startswith("mojo") else label,
            f"{milliseconds(s.median)} ({milliseconds(s.low)} to {milliseconds(s.high)})",
            f"{R.tokens_per_second(entry):,.0f}",
            share,
            f"{R.peak_mb(entry) / 1000:.2f} GB",
            f"{first:.1f} s" if first else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def generation(results):
    """Reading and writing text as Markdown."""
    tasks = {entry["task"]: entry["title"] for entry in results["generation"]}
    if not tasks:
        return ""
    labels = list(dict.fromkeys(entry["label"] for entry in results["generation"]))
    text = f"\n**Generation, GPT-2 124M, tokens/s**\n\n| | {' | '.join(tasks.values())} | of the read bandwidth |\n"
    text += f"| --- {'| ---: ' * (len(tasks) + 1)}|\n"
    for label in labels:
        cells = []
        for task in tasks:
            entries = [e for e in results["generation"] if (e["task"], e["label"]) == (task, label)]
            s = R.Summary.of(entries[0]["tokens_per_second"])
            cells.append(f"{speed(s.median)} ({speed(s.low)} to {speed(s.high)})")
            if task == "continue":
                share = s.median * entries[0]["weights_mb"] / 1000 / R.limits(results)["read_gbs"]
        cells.append(f"{100 * share:.0f}%")
        text += f"| {label} | {' | '.join(cells)} |\n"
    return text


def speed(value):
    """Tokens a second with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def milliseconds(value):
    """A time with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def missing(results):
    """Who did not take part, where and why, in one sentence."""
    titles = R.sizes(results)
    absent = [(entry["label"], titles.get(entry["size"], entry["size"]), entry["reason"]) for entry in results["missing"]]
    seen = {(entry["label"], entry["size"]) for key in ("steps", "missing") for entry in results[key]}
    for size, title in titles.items():
        absent += [(c.label, title, "not run") for c in CONTESTANTS if (c.label, size) not in seen]
    absent += [(part, "kernels and generation", "not run") for part in PARTS if not results[part]]
    return "; ".join(f"{label} ({where}): {reason}" for label, where, reason in absent)
