"""Turns HellaSwag's questions into llm.c's evaluation file."""

from pathlib import Path

from llm_mojo import Error
from llm_mojo.datasets import MANIFEST
from llm_mojo.download import locked, sha256_of, write_json
from llm_mojo.formats import Choice, write_hellaswag, write_tokenizer
from llm_mojo.manifest import Inputs, describe, inputs_are
from llm_mojo.prepared import check_job, check_names, check_tokenizer, read_journal, read_manifest
from llm_mojo.readers import well_formed
from llm_mojo.tokenize import open_tokenizer, tokenizer_identity


def prepare(dataset, tokenizer_name, out, force=False, argv=()):
    """Writes <stem>_val.bin, tokenizer.bin and manifest.json to the folder `out`, unless they are there."""
    out, name = Path(out), f"{dataset.stem}_val.bin"
    with locked(out):
        files = dataset.files()
        recipe = {"dataset": dataset.name, "tokenizer": tokenizer_identity(tokenizer_name)}
        manifest = read_manifest(out / MANIFEST)
        check_job(out, dataset.name, [file.name for file in files], manifest, read_journal(out), force)
        check_names(out, dataset.stem, manifest, force)
        if not force and manifest and manifest.get("recipe") == recipe and inputs_are(files, manifest["inputs"]):
            if all((out / each).is_file() for each in manifest["outputs"]):
                print(f"{out} is up to date: {name} {manifest['questions']:,} questions; --force makes it again")
                return
        if tokenizer_name == "char":
            raise Error(
                f"prepare: {dataset.name}: characters are those of another text; give its meta.pkl (--tokenizer)"
            )
        print(f"preparing {dataset.name} ({dataset.title}) with the tokenizer {tokenizer_name}", flush=True)
        tokenizer, inputs = open_tokenizer(tokenizer_name), Inputs(files)
        check_tokenizer(out, tokenizer, manifest, force)
        questions = [
            question
            for number, file in enumerate(files)
            for block in file.reader.blocks(inputs.opener(number)())
            for question in read_questions(file.reader, block, tokenizer)
        ]
        write_hellaswag(out / name, questions)
        write_tokenizer(out / "tokenizer.bin", tokenizer.tokens, tokenizer.eot, tokenizer.added)
        outputs = {
            each: {"bytes": (out / each).stat().st_size, "sha256": sha256_of(out / each)}
            for each in (name, "tokenizer.bin")
        }
        about = {
            "name": tokenizer.name,
            "vocab_size": len(tokenizer.tokens),
            "sha256": outputs["tokenizer.bin"]["sha256"],
        }
        counts = {"questions": len(questions)}
        write_json(out / MANIFEST, describe(recipe, argv, about, inputs.entries(), outputs, **counts))
        print(f"wrote {out / name}: {len(questions):,} questions ({outputs[name]['bytes']:,} bytes)")


def read_questions(reader, block, tokenizer):
    """Yields a Choice for each line of HellaSwag's file: an ending is encoded with the space before it."""
    for number, item in reader.objects(block):
        try:
            context, endings, label = item["ctx"], item["endings"], int(item["label"])
            texts = (context, *(f" {each}" for each in endings))
            ids = [tokenizer.encode([(well_formed(text), False)]).tolist() for text in texts]
        except (TypeError, LookupError, ValueError, AttributeError):
            raise Error(
                f'{block.name}: line {number} after byte {block.offset}: expected a question with "ctx", "endings" and'
                f' "label", found {str(item)[:60]!r}; get the right file'
            ) from None
        yield Choice(ids[0], ids[1:], label)
