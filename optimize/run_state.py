"""What a run has made so far; shared by the steps of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.artifact import Artifact
from models.spec import Precision

if TYPE_CHECKING:
    from benchmarks.row import BenchmarkRow
    from optimize.exports import Outcome
    from optimize.recipe import Recipe
    from optimize.steps import StageResult

REFERENCE, REJECTED = "reference", "rejected"


@dataclass
class Run:
    """What a run has made so far.

    Attributes:
        root: Folder.
        recipe: Recipe.
        resolved: The recipe as plain values, defaults filled in.
        teacher: The teacher.
        teacher_scores: Its quality on the evaluation photos.
        stages: Results, in order.
        outcomes: Exports, in order.
        rows: Rows of the report.
    """

    root: Path
    recipe: Recipe
    resolved: dict[str, Any]
    teacher: Artifact
    teacher_scores: dict[str, Any] = field(default_factory=dict)
    stages: list[StageResult] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    rows: list[BenchmarkRow] = field(default_factory=list)

    @property
    def float_chain(self) -> list[Artifact]:
        """The teacher and the accepted float results, in order; the last one is what is shipped."""
        results = [result.artifact for result in self.stages if result.record.accepted and result.artifact]
        return [self.teacher, *(artifact for artifact in results if artifact.precision is not Precision.INT8)]

    @property
    def quantized(self) -> Artifact | None:
        """The accepted INT8 result."""
        results = [result.artifact for result in self.stages if result.record.accepted and result.artifact]
        return next((artifact for artifact in reversed(results) if artifact.precision is Precision.INT8), None)

    @property
    def shipped(self) -> list[Artifact]:
        """The artifacts that are shipped."""
        built = [o for o in self.outcomes if o.artifact is not None and o.status == "built"]
        return [o.artifact for o in built if o.artifact is not None and o.job.path.parent.name != REFERENCE]

    @property
    def stage_artifacts(self) -> list[Artifact]:
        """What the stages gave, accepted or not."""
        return [result.artifact for result in self.stages if result.artifact is not None]
