"""The registry, each entry from files in the source's own format served by a local web server; the user's own text."""

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiktoken

from llm_mojo import Error, datasets, formats, native, own_text, prepare, pydocs, readers, tokenize, train
from llm_mojo.__main__ import main
from llm_mojo.manifest import Inputs
from mojo_programs import ROOT, wait_for
from prepared import EOT, error_of, run, shards
from stories_archive import STORIES, archive, stories


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        content = self.server.files.get(self.path.lstrip("/"))
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")


@pytest.fixture
def server(monkeypatch):
    """A web server that stands for GitHub and the Hugging Face Hub: `files` has path -> content."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files = {}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(datasets, "GITHUB", server.url)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    # Files of our own have other hashes than the published ones.
    remote = datasets.remote
    monkeypatch.setattr(datasets, "remote", lambda *args, sha256=None, **options: remote(*args, **options))
    yield server
    server.shutdown()
    server.server_close()


# ---------------------------------------------------------------------------------------------------------------------
# own text


def test_own_file(capsys):
    Path("my text.txt").write_text("0123456789" * 10)
    run("my text.txt")
    train, val = shards("data/my_text", "my_text")
    assert train == [EOT, *("0123456789" * 9).encode()][:90]
    assert train + val == [EOT, *("0123456789" * 10).encode()]
    tokens, eot = formats.read_tokenizer("data/my_text/tokenizer.bin")
    assert len(tokens) == 257 and eot == EOT
    files = [".lock", "manifest.json", "my_text_train.bin", "my_text_val.bin", "tokenizer.bin"]
    assert sorted(os.listdir("data/my_text")) == files
    assert "wrote data/my_text/my_text_train.bin: 90 tokens (1,204 bytes)" in capsys.readouterr().out


def test_files_are_documents(tmp_path):
    Path("a").write_text("AA")
    Path("b").write_bytes(b"\xffB")
    run("b", "a", "--name", "both", "--out", "here", "--val-fraction", "0.4")
    train, val = shards("here", "both")
    assert train + val == [EOT, 0xFF, ord("B"), EOT, ord("A"), ord("A")]
    assert len(val) == 3


def test_folder(capsys):
    for name in ("z.txt", "b/x.md", "b/a.PY", "a.bin", ".hidden.txt", ".git/c.txt", "empty.txt"):
        path = Path("folder", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty.txt" else f"<{name}>")
    assert [str(file) for file in own_text.text_files(["folder"])] == ["folder/b/a.PY", "folder/b/x.md", "folder/z.txt"]
    run("folder")
    assert sum(map(len, shards("data/folder", "folder"))) == 3 + len("<b/a.PY><b/x.md><z.txt>")


def test_folder_and_files_without_text(capsys):
    Path("folder").mkdir()
    Path("folder/x.bin").write_text("x")
    Path("empty").touch()
    assert "folder: expected text files (.txt" in error_of(capsys, "folder")
    assert "empty: the file is empty" in error_of(capsys, "empty")
    assert "nothing: no such file or folder, and no data set of that name" in error_of(capsys, "nothing")
    assert "expected a file or a folder" in error_of(capsys, "/dev/null")
    Path("short.txt").write_text("ab")
    assert "too little text: expected 2 tokens or more" in error_of(capsys, "short.txt")
    assert not list(Path("data").glob("*/*.bin"))


def test_names(capsys):
    Path("pydocs.txt").write_text("x" * 100)
    assert "'pydocs' cannot be the name of your text" in error_of(capsys, "pydocs.txt")
    assert "'a/b' cannot be the name" in error_of(capsys, "pydocs.txt", "--name", "a/b")
    assert "--name is for text of your own" in error_of(capsys, "pydocs", "--name", "x")
    assert "pydocs is a data set and is prepared by itself" in error_of(capsys, "pydocs", "pydocs.txt")
    run("pydocs.txt", "--name", "mine")
    assert sum(map(len, shards("data/mine", "mine"))) == 101


def test_char_is_nanogpts(capsys):
    Path("t.txt").write_text("hello wörld " * 11)
    run("t.txt", "--tokenizer", "char")
    text, (train, val) = "hello wörld " * 11, shards("data/t", "t")
    tokens, eot = formats.read_tokenizer("data/t/tokenizer.bin")
    assert eot is None and b"".join(tokens).decode() == "".join(sorted(set(text)))
    assert len(train) == int(0.9 * len(text))
    assert b"".join(tokens[id] for id in train + val).decode() == text


def test_invalid_utf8_is_named_with_its_offset(capsys, monkeypatch, toy):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 7)
    Path("t.txt").write_bytes("é".encode() * 10 + b"ab \xff cd" + b"x" * 100)
    for tokenizer in ("char", "gpt2"):
        message = error_of(capsys, "t.txt", "--tokenizer", tokenizer)
        assert "t.txt: expected UTF-8 text, found byte 0xff at offset 23;" in message
        assert "--tokenizer byte" in message
    Path("t.txt").write_bytes(b"x" * 100 + "東".encode()[:2])
    assert "found byte 0xe6 at offset 100" in error_of(capsys, "t.txt", "--tokenizer", "char")
    run("t.txt")


def test_tokens_do_not_depend_on_blocks(toy, monkeypatch):
    text = "hello,  well\n\n he told the hell 東京 a\u3000b " * 50
    Path("t.txt").write_text(text)
    run("t.txt", "--tokenizer", "gpt2", "--out", "a")
    monkeypatch.setattr(readers, "BLOCK_BYTES", 13)
    run("t.txt", "--tokenizer", "gpt2", "--out", "b")
    assert shards("a", "t") == shards("b", "t")
    train, val = shards("a", "t")
    assert train + val == toy.encode([(text, True)]).tolist()


def test_nothing_is_done_twice(capsys):
    text = Path("t.txt")
    text.write_text("x" * 100)
    shard = Path("data/t/t_train.bin")

    def prepares(*arguments):
        """Whether the command writes, not only says that all is up to date."""
        capsys.readouterr()
        run("t.txt", *arguments)
        output = capsys.readouterr().out
        assert ("data/t is up to date: t_train.bin" in output) != ("wrote data/t/t_train.bin" in output)
        return "wrote" in output

    assert prepares() and not prepares()
    assert prepares("--force") and not prepares()
    text.touch()
    assert not prepares()
    text.write_text("y" * 100)
    assert prepares() and not prepares()
    assert formats.read_tokens(shard)[5] == ord("y")
    assert "with the tokenizer byte, not char" in error_of(capsys, "t.txt", "--tokenizer", "char")
    assert prepares("--tokenizer", "char", "--force") and prepares("--force") and not prepares()
    assert prepares("--val-fraction", "0.2") and prepares()
    shard.write_bytes(shard.read_bytes()[:-1])
    assert prepares()
    shard.unlink()
    assert prepares()
    Path("data/t/manifest.json").write_text('{"recipe"')
    assert "found something that is not ours or is damaged" in error_of(capsys, "t.txt")
    Path("data/t/manifest.json").unlink()
    assert "t_train.bin is there, and no manifest says that it is of this data" in error_of(capsys, "t.txt")
    assert prepares("--force") and not prepares()


def test_interrupted_run_leaves_the_old_data(monkeypatch, capsys):
    Path("t.txt").write_text("x" * 100)
    run("t.txt")
    before = shards("data/t", "t")
    Path("t.txt").write_text("y" * 100)

    def interrupted(self, pieces):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tokenize.ByteTokenizer, "encode", interrupted)
        run("t.txt", status=130)
    assert shards("data/t", "t") == before
    run("t.txt")
    assert shards("data/t", "t") != before
    assert sorted(os.listdir("data/t")) == [".lock", "manifest.json", "t_train.bin", "t_val.bin", "tokenizer.bin"]


# ---------------------------------------------------------------------------------------------------------------------
# named data sets


def test_tinyshakespeare_by_llm_cs_rules(server, toy, capsys):
    sections = [f"hello {i}" for i in range(9000)]
    text = "\n\n".join(sections)
    server.files["karpathy/char-rnn/master/data/tinyshakespeare/input.txt"] = text.encode()
    run("tinyshakespeare")
    train, val = shards("data/tinyshakespeare", "tiny_shakespeare")
    expected = []
    for i, section in enumerate(sections):
        expected += [toy.eot, *toy.encode([(section + "\n\n" * (i < 8999), False)]).tolist()]
    assert (val, train) == (expected[:32768], expected[32768:])
    assert "comes with its own split" in error_of(capsys, "tinyshakespeare", "--val-fraction", "0.2")
    run("tinyshakespeare", "--tokenizer", "char", "--val-fraction", "0.25", "--force")
    train, val = shards("data/tinyshakespeare", "tiny_shakespeare")
    assert len(train) == int(0.75 * len(text)) and len(train) + len(val) == len(text)


def test_characters_are_split_as_nanogpt_does_by_prepare_and_by_train(server, monkeypatch):
    text = "".join(f"line {i}\n" for i in range(9000))
    server.files["karpathy/char-rnn/master/data/tinyshakespeare/input.txt"] = text.encode()
    monkeypatch.setattr(native, "program", lambda name: None)
    monkeypatch.setattr(train, "check_names", lambda command, flags: None)
    monkeypatch.delenv("LLM_MOJO_CACHE", raising=False)
    run("tinyshakespeare", "--tokenizer", "char", "--out", "by_prepare")
    train.task(
        "train", ["tinyshakespeare"], {"tokenizer": "char", "preset": f"{ROOT}/presets/shakespeare-char.toml"}, []
    )
    for folder in "by_prepare", "data/tinyshakespeare":
        assert [len(part) for part in shards(folder, "tiny_shakespeare")] == [len(text) * 9 // 10, -(-len(text) // 10)]


ARCHIVE = "datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz"


def test_tinystories(monkeypatch, server, toy):
    server.files[ARCHIVE] = archive(STORIES)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 50)
    run("tinystories")
    train, val = shards("data/tinystories", "TinyStories")
    assert val == toy.encode([("hell", True), ('a "quoted" 東 é', True)]).tolist()
    assert train == toy.encode([("he", True), ("ll", True), *((f"story {i}", True) for i in range(500))]).tolist()
    run("tinystories", "--tokenizer", "char", "--force")
    tokens, _ = formats.read_tokenizer("data/tinystories/tokenizer.bin")
    train, val = shards("data/tinystories", "TinyStories")
    assert b"".join(tokens[id] for id in train[:9]) == b"he\n\nll\n\ns"


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda: archive(STORIES)[:-40], "not a whole .tar.gz"),
        (lambda: b"<html>", "not a whole .tar.gz"),
        (lambda: archive({"data01.json": stories("a")}), "expected data00.json in the archive"),
        (lambda: archive({"data00.json": stories("a")[:-3]}), "found its end in an item"),
        (lambda: archive({"data00.json": b"{}"}), "expected a JSON list"),
        (lambda: archive({"data00.json": b"[3]"}), 'objects with a "story"'),
        (lambda: archive({"data00.json": b'[{"story": "\xff"}]'}), "found byte 0xff; the archive is damaged"),
    ],
)
def test_damaged_archive(server, toy, capsys, content, message):
    server.files[ARCHIVE] = content()
    assert message in error_of(capsys, "tinystories")
    assert not list(Path("data/tinystories").glob("*.bin"))


HUB_FOLDERS = {
    "openwebtext": ("Skylion007/openwebtext", "plain_text", "openwebtext"),
    "fineweb10B": ("HuggingFaceFW/fineweb", "sample/10BT", "fineweb"),
    "fineweb100B": ("HuggingFaceFW/fineweb", "sample/100BT", "fineweb"),
    "edu_fineweb10B": ("HuggingFaceFW/fineweb-edu", "sample/10BT", "edu_fineweb"),
    "edu_fineweb100B": ("HuggingFaceFW/fineweb-edu", "sample/100BT", "edu_fineweb"),
}


def on_the_hub(server, name, tables):
    """Puts parquet files and the Hub's list of them on the server."""
    repository, folder, _ = HUB_FOLDERS[name]
    listing = [{"type": "directory", "path": f"{folder}/more", "size": 0}]
    for file, texts in tables.items():
        sink = pyarrow.BufferOutputStream()
        table = {"text": texts, "id": [str(i) for i in range(len(texts))], "token_count": [1] * len(texts)}
        pyarrow.parquet.write_table(pyarrow.table(table), sink, row_group_size=10)
        content = sink.getvalue().to_pybytes()
        oid = hashlib.sha256(content).hexdigest()
        path = f"{folder}/{file}"
        listing.append({"type": "file", "path": path, "size": len(content), "lfs": {"oid": oid, "size": len(content)}})
        server.files[f"datasets/{repository}/resolve/main/{path}"] = content
    server.files[f"api/datasets/{repository}/tree/main/{folder}"] = json.dumps(listing).encode()


@pytest.mark.parametrize("name", HUB_FOLDERS)
def test_data_sets_of_the_hub(name, server, toy):
    texts = [f"hello {i} " * (i % 9 + 1) for i in range(120)]
    on_the_hub(server, name, {"001_00000.parquet": texts[50:], "000_00000.parquet": texts[:50]})
    run(name, "--shard-tokens", "1000")
    expected = toy.encode([(text, True) for text in texts]).tolist()
    stem, folder = HUB_FOLDERS[name][2], Path("data", name)
    files = sorted(folder.glob("*_0*.bin"), key=lambda path: path.name[-10:])
    assert [file.name for file in files] == [f"{stem}_val_000000.bin"] + [
        f"{stem}_train_{i:06}.bin" for i in range(1, len(files))
    ]
    tokens = [formats.read_tokens(file).tolist() for file in files]
    assert sum(tokens, []) == expected and {len(each) for each in tokens[:-1]} == {1000}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["name"] for entry in manifest["inputs"]] == ["000_00000.parquet", "001_00000.parquet"]
    assert datasets.DATASETS[name].shard_tokens == 100_000_000


def test_files_of_the_hub_have_its_hashes(server, toy, capsys):
    on_the_hub(server, "fineweb10B", {"000_00000.parquet": ["hello"] * 50})
    path = next(path for path in server.files if path.endswith(".parquet"))
    server.files[path] = server.files[path][:-1] + b"x"
    assert "expected SHA-256" in error_of(capsys, "fineweb10B", "--val-tokens", "20")
    server.files["api/datasets/HuggingFaceFW/fineweb/tree/main/sample/10BT"] = b"[]"
    Path("data/.cache/fineweb10B/listing.json").unlink()
    Path("data/.cache/fineweb10B/listing.json.lock.json").unlink()
    assert "expected the Hub's list of the parquet files in sample/10BT" in error_of(capsys, "fineweb10B")


def test_the_next_file_is_downloaded_meanwhile(server, tmp_path):
    on_the_hub(server, "fineweb10B", {f"00{i}_00000.parquet": ["hello"] * 50 for i in range(3)})
    inputs = Inputs(datasets.DATASETS["fineweb10B"].files())
    second = Path("data/.cache/fineweb10B/001_00000.parquet")
    inputs.opener(0)()
    wait_for(second.exists)
    assert not second.with_name("002_00000.parquet").exists()
    for path in [path for path in server.files if path.endswith("002_00000.parquet")]:
        server.files[path] = b"another file"
    assert inputs.opener(1)() == second
    with pytest.raises(Error, match="expected SHA-256"):
        inputs.opener(2)()


HELLASWAG = "rowanz/hellaswag/master/data/hellaswag_val.jsonl"


def test_hellaswag(server, toy, capsys):
    items = [
        {"ind": 24, "ctx": "A man. he", "label": 3, "endings": ["hell", "he", "sits.", "ll"], "split": "val"},
        {"ind": 29, "ctx": "hello", "label": 0, "endings": ["world", "we", "he", "é"], "split": "val"},
    ]
    server.files[HELLASWAG] = "".join(json.dumps(item) + "\n" for item in items).encode()
    run("hellaswag")

    def ids(text):
        return toy.encode([(text, False)]).tolist()

    expected = [
        formats.Choice(ids(item["ctx"]), [ids(" " + ending) for ending in item["endings"]], item["label"])
        for item in items
    ]
    assert formats.read_hellaswag("data/hellaswag/hellaswag_val.bin") == expected
    manifest = json.loads(Path("data/hellaswag/manifest.json").read_text())
    assert manifest["questions"] == 2
    capsys.readouterr()
    run("hellaswag")
    assert "up to date" in capsys.readouterr().out
    run("hellaswag", "--tokenizer", "byte")
    questions = formats.read_hellaswag("data/hellaswag/hellaswag_val.bin")
    assert questions[1] == formats.Choice(
        list(b"hello"), [list(f" {each}".encode()) for each in items[1]["endings"]], 0
    )
    assert "only --tokenizer, --out and --force apply" in error_of(capsys, "hellaswag", "--clean", "strip")
    server.files[HELLASWAG] = b'{"ctx": "a"}'
    for path in Path("data/.cache/hellaswag").iterdir():
        path.unlink()
    assert 'line 1 after byte 0: expected a question with "ctx"' in error_of(capsys, "hellaswag", "--force")


def test_the_entry_in_the_guide(server, monkeypatch):
    """An entry is all that a new data set takes."""
    entry = re.search(r"```python\n(Dataset\(\n.*?\n\))\n```", (ROOT / "docs/guides/data.md").read_text(), re.S)[1]
    remote = datasets.remote
    monkeypatch.setattr(
        datasets, "remote", lambda set_name, name, reader, url: remote(set_name, name, reader, server.url)
    )
    server.files[""] = b"It is a truth universally acknowledged"
    dataset = eval(entry, vars(datasets))
    monkeypatch.setitem(datasets.DATASETS, dataset.name, dataset)
    run(dataset.name, "--tokenizer", "byte")
    train, val = shards(f"data/{dataset.name}", dataset.stem)
    assert train + val == [EOT, *server.files[""]] and len(val) == 4


def test_list_of_data_sets(server, toy, capsys):
    on_the_hub(server, "fineweb10B", {"000_00000.parquet": ["hello"] * 50})
    run("fineweb10B", "--val-tokens", "20")
    Path("data/fineweb10B/manifest.json").rename("elsewhere")
    Path("t").write_text("0123456789" * 10)
    run("t", "--out", "data/tinystories")
    capsys.readouterr()
    assert main(["datasets"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(datasets.DATASETS) < set(lines)
    assert "0.0 MB downloaded" in lines["fineweb10B"] and "ODC-By-1.0" in lines["fineweb10B"]
    assert "prepared: 101 tokens" in lines["tinystories"] and "1.6 GB" in lines["tinystories"]
    assert " - " in lines["openwebtext"]


def test_pydocs(documents):
    assert sum(map(len, documents)) > 1_000_000
    assert len(set(documents)) == len(documents)
    text = "".join(documents)
    assert text.isascii() and all(character == "\n" or character.isprintable() for character in text)
    assert ">>>" not in text
    assert any(document.startswith('The "with" statement\n\n') for document in documents)
    assert any(document.startswith("textwrap.dedent(text)\n\n") for document in documents)
    prose = sum(character.isalpha() or character in " ,.\n" for character in text)
    assert prose > 0.9 * len(text)


def test_pydocs_without_the_language_reference(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert sum(map(len, pydocs.documents())) > 1_000_000


def test_pydocs_of_a_python_without_documentation(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setattr(pydocs.sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "good.py").write_text(f'"""{"A word. " * 20}"""')
    message = error_of(capsys, "pydocs")
    assert (
        "expected at least 1,000,000 bytes of documentation" in message and "python -m llm_mojo prepare FILE" in message
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("See :class:`~json.Decoder` and ``x`` or `y`.", ['See json.Decoder and "x" or "y".']),
        ("Words.\n\n  It’s “so” – ok…", ["Words.", 'It\'s "so" - ok...']),
        ("the `old' quotes and `new' ones", ["the `old' quotes and `new' ones"]),
        ("A title here\n************\n\nSome words.", ["A title here", "Some words."]),
        ("Before.\n\n>>> f(3)\n3\n\nwith ::= this\n\n1 2 3 4 5 6\n\nAfter.", ["Before.", "After."]),
    ],
)
def test_pydocs_markup(text, expected):
    assert list(pydocs._paragraphs(text)) == expected


def test_pydocs_command(documents):
    run("pydocs")
    train, val = shards("data/pydocs", "pydocs")
    assert len(train) == int(0.9 * (len(train) + len(val)))
    assert len(train) + len(val) == sum(map(len, documents)) + len(documents)
    text = "".join("\0" + document for document in documents).encode()
    assert bytes(token % EOT for token in train + val) == text


# ---------------------------------------------------------------------------------------------------------------------
# the published text, where it is at hand, and the command line


def environment(**changes):
    return os.environ | {"PYTHONPATH": str(ROOT / "pysrc")} | changes


SHAKESPEARE = Path(os.environ.get("LLM_MOJO_CACHE", "none")).resolve() / "tinyshakespeare/input.txt"


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="LLM_MOJO_CACHE has no tinyshakespeare/input.txt")
def test_tinyshakespeare_has_llm_cs_bytes(gpt2_files, monkeypatch):
    """Counts as llm.c's script prints them; bytes by that script's steps, with ranks that tiktoken itself has read."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    command = [sys.executable, ROOT / "prepro_tinyshakespeare.py"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert result.returncode == 0, result.stderr
    assert "tiny_shakespeare_train.bin: 305,260 tokens (611,544 bytes)" in result.stdout
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    ranks = data_gym_to_mergeable_bpe_ranks(*map(str, gpt2_files))
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    gpt2 = tiktoken.Encoding("referee", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    sections, ids = SHAKESPEARE.read_text().split("\n\n"), []
    for i, section in enumerate(sections):
        ids += [50256, *gpt2.encode_ordinary(section if i == len(sections) - 1 else section + "\n\n")]
    for split, expected in (("val", ids[:32768]), ("train", ids[32768:])):
        header = np.zeros(256, dtype="<i4")
        header[:3] = 20240520, 1, len(expected)
        content = header.tobytes() + np.array(expected, dtype="<u2").tobytes()
        assert Path(f"data/tinyshakespeare/tiny_shakespeare_{split}.bin").read_bytes() == content
    run("tinyshakespeare", "--tokenizer", "char", "--force")
    train, val = shards("data/tinyshakespeare", "tiny_shakespeare")
    assert (len(train), len(val)) == (1_003_854, 111_540)
    assert len(formats.read_tokenizer("data/tinyshakespeare/tokenizer.bin")[0]) == 65


def test_scripts_explain_themselves():
    for script, name in [("prepro_tinyshakespeare.py", "tinyshakespeare"), ("prepro_tinystory.py", "tinystories")]:
        command = [sys.executable, ROOT / script, "--name", "x"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment())
        assert result.returncode == 1
        assert result.stderr.startswith(f"error: prepare: --name is for text of your own; {name} has its name")


@pytest.mark.parametrize(
    "arguments, status, said",
    [
        (["--help"], 0, "turn a data set or a text of your own into token shards"),
        (["prepare", "--help"], 0, "--val-fraction"),
        ([], 2, "required: COMMAND"),
        (["fly"], 2, "invalid choice: 'fly'"),
        (["prepare"], 2, "required: NAME|FILE|FOLDER"),
        (["prepare", "pydocs", "--val-fraction", "2"], 2, "expected a fraction between 0 and 1, got 2"),
        (["prepare", "pydocs", "--val-fraction", "x"], 2, "expected a fraction between 0 and 1, got x"),
        (["prepare", "pydocs", "--shard-tokens", "0"], 2, "expected a number of 1 or more, got 0"),
        (["tokenizer", "pydocs", "--out", "x"], 2, "required: --vocab-size"),
    ],
)
def test_command_line(capsys, arguments, status, said):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    captured = capsys.readouterr()
    assert exit.value.code == status
    assert said in captured.out + captured.err


def test_start_up_imports_no_heavy_packages():
    code = "import sys, llm_mojo.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('numpy', 'torch', 'tiktoken', 'requests') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stdout.endswith("[]\n")


def test_version():
    """That of the package, and of pyproject.toml where none is installed."""

    def shown():
        command = [sys.executable, "-S", "-m", "llm_mojo", "--version"]
        result = subprocess.run(command, capture_output=True, text=True, env=environment(PYTHONPATH="pysrc"))
        assert result.returncode == 0, result.stderr
        return result.stdout

    shutil.copytree(ROOT / "pysrc/llm_mojo", "pysrc/llm_mojo")
    project = (ROOT / "pyproject.toml").read_text()
    Path("pyproject.toml").write_text(re.sub('(?m)^version = ".*"$', 'version = "12.3.4"', project))
    assert shown() == "llm.mojo 12.3.4\n"
    Path("pysrc/llm_mojo-7.8.9.dist-info").mkdir()
    Path("pysrc/llm_mojo-7.8.9.dist-info/METADATA").write_text("Name: llm-mojo\nVersion: 7.8.9\n")
    assert shown() == "llm.mojo 7.8.9\n"


@pytest.mark.parametrize("package, extra", [("pyarrow", "data"), ("torch", "test")])
def test_missing_package_is_named(package, extra, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    Path("t.txt").write_text("x" * 100)
    monkeypatch.setattr(prepare, "open_tokenizer", lambda name: __import__(package))
    message = error_of(capsys, "t.txt", "--tokenizer", "gpt2")
    assert f"needs the Python package {package}; install it with: pip install -e '.[{extra}]'" in message
