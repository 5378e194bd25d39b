"""Opening Arrow data sets, ours and kraken's: mapped, checked, and never trusted with an offset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from distrib.errors import InputError
from distrib.ground_truth.records import Split
from distrib.shards.arrow_schema import (
    KRAKEN_FIELDS,
    LINES_TYPE,
    MAGIC,
    OWN_FIELDS,
    SPLITS,
    DatasetMetadata,
    MetadataProblem,
)
from distrib.shards.mapping import MappedFile

UNTAGGED: Final = 0
SPLIT_CODES: Final[Mapping[Split, int]] = {split: code for code, split in enumerate(SPLITS, start=1)}
"""What an index holds as a line's split; ``UNTAGGED`` for lines that belong to none."""


@dataclass(frozen=True, kw_only=True)
class ArrowShard:
    """An Arrow data set whose footer and metadata are read, and nothing else."""

    path: Path
    mapping: MappedFile
    metadata: DatasetMetadata
    own_columns: frozenset[str]
    """Names of the columns of ``OWN_FIELDS`` that it has, with their types."""
    reader: pa.RecordBatchFileReader

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The record batches in order, each checked so that it can be read without leaving the file.

        Their buffers lie in ``mapping``. Raises InputError where the file is damaged.
        """
        for number in range(self.reader.num_record_batches):
            try:
                batch = self.reader.get_batch(number)
                batch.validate(full=True)  # offsets that point outside the file would crash the process
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"{self.path} is damaged in record batch {number}; copy or compile it again."
                ) from error
            yield batch


def open_arrow(path: Path) -> ArrowShard:
    """Map an Arrow data set of ours or kraken's and read what it says about itself.

    Raises:
        InputError: the file is missing, cut short, damaged or no data set of text lines.
    """
    mapping, reader = _map(path)
    schema = reader.schema
    try:
        metadata = DatasetMetadata.from_schema(schema)
        _check_columns(schema)
        own = frozenset(field.name for field in OWN_FIELDS if _type_of(schema, field.name) == field.type)
    except MetadataProblem as error:
        raise InputError(f"{path}: {error}; make a data set with `ketos compile`.") from error
    except UnicodeDecodeError as error:  # pyarrow decodes names of columns only when they are asked for
        raise InputError(f"{path} is damaged; copy or compile it again.") from error
    return ArrowShard(path=path, mapping=mapping, metadata=metadata, own_columns=own, reader=reader)


def _map(path: Path) -> tuple[MappedFile, pa.RecordBatchFileReader]:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a data set file (.arrow).")
        with path.open("rb") as file:
            begins_as_arrow = file.read(len(MAGIC)) == MAGIC
        if not begins_as_arrow:
            raise InputError(f"{path} is not an Arrow file; name a data set made with `ketos compile`.")
        mapping = MappedFile(path)
        return mapping, pa.ipc.open_file(pa.BufferReader(mapping.buffer))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check its name.") from error
    except pa.ArrowException as error:
        raise InputError(f"{path} is cut short or damaged; copy or compile it again.") from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror or error}); check its name and permissions."
        ) from error


def _check_columns(schema: pa.Schema) -> None:
    """Raises MetadataProblem unless the columns every data set has are there, with their types."""
    for wanted in KRAKEN_FIELDS:
        found = _type_of(schema, wanted.name)
        if found is None:
            raise MetadataProblem(f"it has no column {wanted.name!r}")
        if found != wanted.type and not (wanted.type == LINES_TYPE and _holds_lines(found)):
            raise MetadataProblem(f"its column {wanted.name!r} has type {found} instead of {wanted.type}")


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    position = schema.get_field_index(name)  # -1 too where a name occurs twice
    return None if position < 0 else schema.field(position).type


def _holds_lines(found: pa.DataType) -> bool:
    """Whether a struct has the three fields we read, in whatever order and beside whatever others."""
    if not pa.types.is_struct(found):
        return False
    fields = {found.field(i).name: found.field(i).type for i in range(found.num_fields)}
    return all(fields.get(field.name) == field.type for field in LINES_TYPE)
