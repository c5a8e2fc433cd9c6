"""TensorBoard: event files, in a folder for each run."""

import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from flows.trackers.reports import Report


def log(section: dict[str, Any], report: Report, folder: Path) -> None:
    """Write the report's numbers and texts as events of its iteration."""
    values = [
        Summary.Value(tag=name, simple_value=number) for name, number in report.numbers.items()
    ]
    values += [_text("version", _table(report.links())), _text("config", _table(report.config))]
    if report.samples:
        values.append(_text("samples", _samples(report)))
    writer = EventFileWriter(str(folder / f"{report.run}-{report.key}"))
    event = Event(wall_time=time.time(), step=report.iteration, summary=Summary(value=values))
    writer.add_event(event)
    writer.close()


def _text(tag: str, markdown: str) -> Any:
    metadata = create_summary_metadata(display_name=tag, description="")
    tensor = make_tensor_proto([markdown.encode()])
    return Summary.Value(tag=f"{tag}/text_summary", metadata=metadata, tensor=tensor)


def _table(facts: dict[str, Any]) -> str:
    rows = [f"| {_plain(name)} | {_plain(str(value))} |" for name, value in facts.items()]
    return "\n".join(["| name | value |", "|---|---|", *rows])


def _samples(report: Report) -> str:
    rows = [
        f"| {_plain(each.prompt)} | {each.sample_index} | {_plain(each.response)} "
        f"| {each.reward:.4g} | {each.win_rate:.3f} |"
        for each in report.samples
    ]
    head = ["| prompt | sample | response | reward | win rate |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _plain(text: str) -> str:
    """Return `text` as Markdown that shows it and nothing else.

    Whatever means something to Markdown or HTML becomes the number of its character.
    """
    return "".join(
        character if character.isalnum() or character == " " else f"&#{ord(character)};"
        for character in text.replace("\n", " ")
    )
