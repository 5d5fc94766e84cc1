"""`promptvit VERB`: find the verb, run it, and turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from promptvit.errors import ConfigError, PromptvitError
from promptvit.registry import nearest

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

VERBS = {
    "demo": "tune the bundled backbone on handwritten digits, four ways, and compare",
    "train": "tune a backbone on your images",
    "evaluate": "measure a tuned model on a labelled split",
    "predict": "classify images with a tuned model",
    "sweep": "search the settings of a method on your images, on several cores or a cluster",
    "bench": "methods on tasks under one protocol: a study with tables, tests and a report",
    "cost": "what methods would take here: memory, time, bytes, from a short probe",
    "advise": "prompts, full fine-tuning, LoRA-class or linear for your images, and why",
    "study": "when prompts win: accuracy against the number of images, and what your studies teach",
    "prune": "make a tuned model smaller: drop the prompts that do not help",
    "data": "get a benchmark's data, check any task, look at it",
    "analyze": "look into tuned models and their runs",
    "report": "a run or a study as one HTML file",
    "methods": "list the methods and their options",
    "backbones": "list the pretrained backbones",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns 0 (done), 1 (failed), 2 (wrong usage) or 130 (interrupted)."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return DONE if arguments else WRONG_USAGE
    if arguments[0] == "--version":
        from promptvit import __version__

        print(f"promptvit {__version__}")
        return DONE
    verb, *rest = arguments
    if verb not in VERBS:
        hint = f" Did you mean {' or '.join(nearest(verb, VERBS))}?" if nearest(verb, VERBS) else ""
        return complain(f"promptvit: unknown verb {verb!r}.{hint} All verbs: promptvit --help", WRONG_USAGE)
    try:
        import_module(f"promptvit.cli.{verb}").run(rest)
    except ConfigError as error:
        return complain(f"promptvit {verb}: {error}", WRONG_USAGE)
    except BrokenPipeError:  # `promptvit backbones | head`: the reader has what it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (PromptvitError, OSError, MemoryError) as error:
        return complain(f"promptvit {verb}: {error or type(error).__name__}", FAILED)
    except KeyboardInterrupt:
        return complain(f"promptvit {verb}: interrupted", INTERRUPTED)
    return DONE


def usage() -> str:
    """The text of `promptvit --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: promptvit VERB [OPTIONS]\n\n"
        "Adapt a frozen, pretrained vision transformer to your images by learning a few prompts.\n\n"
        f"verbs:\n{verbs}\n\n"
        "Each verb has its own help: promptvit train --help. Start with: promptvit demo"
    )


def complain(message: str, code: int) -> int:
    """Print one message to stderr; returns `code`."""
    print(message, file=sys.stderr)
    return code
