"""What the site's pages may say beyond Markdown; mkdocs calls the functions named on_... while it builds.

    $x^2$, $$x^2$$                    a formula, made MathML here, so that a page needs no script and no network
    {{ mojo: layernorm_backward }}    a function of train_gpt2_basic.mojo as it stands there now
    {{ figure: attention }}           a drawing of figures.py, in the page's own colours
    {{ help: train_gpt2 }}            what a program in build/ answers to --help
    {{ api: GPT2 }}                   a name of the Python package: signature, docstring, methods
    {{ table: story }}                the commits and their times as a table
    {{ story: 124m/8b8ff40 }}         a number of bench/story/story.json, within a line
    {{ run: good/val }}               a number of docs/tools/failures.json, within a line

Whatever is not found ends the build.
"""

import ast
import html
import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import figures  # noqa: E402
import story  # noqa: E402

CODE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
MACRO = re.compile(r"^\{\{ (\w+): (\w+) \}\}$", re.MULTILINE)


def mojo(name: str) -> str:
    """Returns the function `name` of train_gpt2_basic.mojo, without its docstring, as a fenced block."""
    source = (ROOT / "train_gpt2_basic.mojo").read_text()
    found = re.search(rf"^( *)def {name}\(.*?(?=^\1[^\s)]|^\S|\Z)", source, re.MULTILINE | re.DOTALL)
    if not found:
        raise PluginError(f"train_gpt2_basic.mojo has no function {name}, which a page quotes")
    body = textwrap.dedent(re.sub(r'\n +""".*?"""', "", found[0].rstrip(), count=1, flags=re.DOTALL))
    return f'```python title="train_gpt2_basic.mojo"\n{body}\n```'


def program_help(name: str) -> str:
    """Returns what build/NAME prints for --help, as a fenced block."""
    program = ROOT / "build" / name
    if not program.exists():
        raise PluginError(f"{program} is needed for a page; 'make docs' builds it")
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    return f"```text\n{text.rstrip()}\n```"


def docstring(thing: object) -> str:
    """Returns the docstring of `thing` as a fenced block, or nothing."""
    text = inspect.getdoc(thing)
    return f"\n```text\n{text}\n```\n" if text else ""


def api(name: str) -> str:
    """Returns signature and docstring of llm_mojo's `name`, and those of its public methods."""
    import llm_mojo

    thing = getattr(llm_mojo, name)
    parts = [f"## {name}", f"```python\n{name}{signature(thing)}\n```", docstring(thing)]
    if inspect.isclass(thing):
        for key, member in vars(thing).items():
            if not key.startswith("_") and (callable(member) or isinstance(member, (classmethod, property))):
                inner = getattr(member, "__func__", member)
                shown = "" if isinstance(member, property) else signature(inner)
                parts += [f"### {name}.{key}", f"```python\n{key}{shown}\n```", docstring(inner)]
    return "\n\n".join(parts)


def signature(thing: object) -> str:
    """Returns `thing`'s arguments as they are written, or nothing where there are none to see."""
    try:
        text = str(inspect.signature(thing))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    try:
        ast.parse(f"def f{text}: ...")
    except SyntaxError:
        return "(...)"
    return text


def figure(name: str) -> str:
    """Returns the drawing `name` as SVG inside the page."""
    drawing = getattr(figures, name, None)
    if drawing is None:
        raise PluginError(f"docs/tools/figures.py has no figure {name}, which a page shows")
    return f'<div class="figure">{drawing()}</div>'


def table(name: str) -> str:
    """Returns a table of measured numbers."""
    return {"story": story.table}[name]()


MACROS = {"mojo": mojo, "help": program_help, "api": api, "figure": figure, "table": table}
NUMBER = re.compile(r"\{\{ (story|run): (.+?) \}\}")
formulas: list[str] = []


def on_page_markdown(markdown: str, **_) -> str:
    """Puts in what the page asks for, and a mark where a formula goes, which Markdown would else take apart."""
    formulas.clear()
    markdown = MACRO.sub(lambda m: MACROS[m[1]](m[2]), markdown)
    markdown = NUMBER.sub(number, markdown)
    parts = CODE.split(markdown)
    return "".join(part if i % 2 else FORMULA.sub(mark, part) for i, part in enumerate(parts))


def number(found: re.Match) -> str:
    """Returns a number that was measured."""
    try:
        return {"story": story.value, "run": figures.of_run}[found[1]](found[2])
    except KeyError as error:
        raise PluginError(f"no {error} was measured, which {found[0]} asks for") from None


def mark(found: re.Match) -> str:
    """Keeps a formula as MathML and returns the mark for it."""
    latex, display = (found[1], "block") if found[1] else (found[2], "inline")
    # What is wide scrolls, and the keyboard reaches it.
    focus = ' tabindex="0"' if display == "block" else ""
    formulas.append(convert(latex, display=display).replace("<math", f"<math{focus}", 1))
    text = f"FORMULA{len(formulas) - 1}END"
    return f"\n\n{text}\n\n" if display == "block" else text


def on_page_content(content: str, **_) -> str:
    """Puts the formulas where their marks are."""
    return re.sub(r"FORMULA(\d+)END", lambda m: formulas[int(m[1])], content)


def on_post_page(output: str, page, **_) -> str:
    """Fails on a page that would load anything from elsewhere."""
    for found in re.finditer(r'<(?:script|img|link|iframe)\b[^>]*?(?:src|href)="((?:https?:)?//[^"]+)"', output):
        if 'rel="canonical"' not in found[0]:
            raise PluginError(f"{page.file.src_path} would load {html.unescape(found[1])}")
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
