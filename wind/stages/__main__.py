"""Compute a stage by hand.

Usage: `python -m wind.stages FILE [--root ROOT] [--device cpu|cuda]`.

The file is a job, or the manifest of a dataset, whose recorded spec is then computed again. It
names its stage. It counts as data, no matter who wrote it: a function that it names runs only with
`--run-code`.
"""

import sys
from pathlib import Path

from wind.code.digests import code_digest, code_of
from wind.code.named_code import functions_in, require_leave
from wind.errors import OUT_OF_MEMORY, ConfigError, WindError
from wind.files import read_plain
from wind.machine.terminal import ArgumentParser, complain, say
from wind.nesting import json_value
from wind.stages import Job, Place, parse, run


def main() -> None:
    """Compute the dataset that a file describes, and print its handle.

    The command line names the file.
    """
    parser = ArgumentParser(
        prog="python -m wind.stages", description="Compute a dataset from its spec."
    )
    parser.add_argument("spec", type=Path, help="a job, or a dataset's manifest.json")
    parser.add_argument("--root", default="./store", help="the store (default: ./store)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--run-code", action="store_true", help="run the function that the spec names"
    )
    arguments = parser.parse_args()
    try:
        job = _read_job(arguments.spec, Place(root=arguments.root, device=arguments.device))
        require_leave(
            str(arguments.spec), list(functions_in(parse(job)[1])), run_code=arguments.run_code
        )
        say(run(job, lambda done, total: None).model_dump_json())
    except WindError as error:
        complain(f"error: {error}")
        sys.exit(error.exit_code)
    except MemoryError:
        complain(f"error: {OUT_OF_MEMORY}")
        sys.exit(1)


def _read_job(path: Path, place: Place) -> Job:
    """Read a job from a file.

    Its code is the one that computes its stage now.
    """
    try:
        content = json_value(read_plain(path))
        recorded = content.get("computed_by", content)
        job = Job(stage=recorded["stage"], spec=recorded["spec"], place=place)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is neither a job nor a manifest with a recorded spec: {error!r}"
        ) from error
    parse(job)  # rejects an unknown stage, which has no code
    code = {"code": code_digest(job.stage), "modules": code_of(f"wind.{job.stage}")}
    return job.model_copy(update=code)


if __name__ == "__main__":
    main()
