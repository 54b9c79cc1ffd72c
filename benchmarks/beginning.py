"""What the beginning-of-text token is worth to a dense model on a text (`calibration.bos`).

The first sequences of the text, of the same length with the token and without: figures are
`with_ppl` and `without_ppl`, the dense model's perplexities; `tokenizer_adds` is 1 where the
tokenizer puts the token before a text, so that calibration does as well.

    python benchmarks/beginning.py --model gemma-3-270m-q4_k_m.gguf --text wikitext2-test.txt
    python benchmarks/beginning.py --quick
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from common import Figure, emit

from evocompress.core.config import CalibrationConfig
from evocompress.evaluation.calibration.calibration import load_calibration
from evocompress.evaluation.calibration.special import special_tokens
from evocompress.evaluation.heldout import heldout_quality
from evocompress.models.loading import LoadedModel, load
from evocompress.testing.tiny import tiny_loaded, tiny_tokenizer


def main() -> None:
    """Measure, print and write."""
    arguments = parse()
    if not arguments.quick:
        emit("beginning", figures(arguments, load(arguments.model)), arguments.json)
        return
    with tempfile.TemporaryDirectory() as scratch:
        arguments.text = Path(scratch) / "text.txt"
        arguments.text.write_text("".join(f"Line {number} of it.\n" for number in range(200)))
        loaded = replace(tiny_loaded(), tokenizer=tiny_tokenizer(opens=True))
        emit("beginning", figures(arguments, loaded), arguments.json)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file for the figures")
    parser.add_argument("--quick", action="store_true", help="a tiny random model and text")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--text", type=Path, help="text file")
    parser.add_argument("--sequences", type=int, default=6)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.length = 64
    elif arguments.text is None:
        parser.error("--text is needed")
    return arguments


def figures(arguments: argparse.Namespace, loaded: LoadedModel) -> dict[str, Figure]:
    """The perplexities, and what the tokenizer does by itself."""
    assert loaded.tokenizer is not None
    return {
        "with_ppl": perplexity(arguments, loaded, bos=True),
        "without_ppl": perplexity(arguments, loaded, bos=False),
        "tokenizer_adds": int(bool(special_tokens(loaded.tokenizer)[0])),
    }


def perplexity(arguments: argparse.Namespace, loaded: LoadedModel, *, bos: bool) -> float:
    """Of the dense model on the first sequences of the text."""
    config = CalibrationConfig(
        source=str(arguments.text),
        library_sequences=arguments.sequences,
        search_sequences=1,
        heldout_sequences=1,
        length=arguments.length,
        bos=bos,
    )
    sequences = load_calibration(config, loaded).library
    return heldout_quality(loaded.model, {"dense": loaded.model}, sequences)["dense"].perplexity


if __name__ == "__main__":
    main()
