"""A job as one: what is written down of all its runs together, while they are worked on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.inference.benchmark_job import BenchmarkJob, records
from pipelines.results.run_record import RunRecord
from pipelines.results.storage import Folder


@dataclass(frozen=True)
class JobProgress:
    """The job's own record, where that lies, and all that it has to do."""

    record: RunRecord
    folder: Folder
    works: Sequence[BenchmarkJob]

    def rows(self) -> dict[str, int]:
        """How many answers are wanted, how many there are and how many of those are errors, of all runs."""
        each = [record.rows for _, _, record in records(self.works)]
        return {key: sum(rows[key] for rows in each) for key in self.record.rows}

    def note(self, values: Mapping[str, float], *, last: bool = False) -> bool:
        """Add a point to the job's history, unless there is a recent one; say whether.

        The progress of all runs is the job's. In MLflow a run of a point has results alone: its charts and the page
        that compares runs open on what they find first.
        """
        self.record.rows = self.rows()
        done, errors = self.record.rows["done"], self.record.rows["error"]
        if not self.record.log(
            done, {"progress.rows_done": done, "progress.rows_error": errors, **values}, force=last
        ):
            return False
        self.record.save(self.folder)
        return True
