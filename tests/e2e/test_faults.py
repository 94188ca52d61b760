"""At least one case of each fault of `make faults`: whatever dies, sleeps, fills up or breaks, the run ends well."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_every_fault_ends_as_it_must(tmp_path: Path) -> None:
    from benchmarks import faults

    verdicts = faults.measured(faults.QUICK, "", tmp_path)
    bad = [(v.case.row, v.case.name, v.problem, list(v.miscounted), v.same) for v in verdicts if not v.good]
    assert not bad, faults.table(verdicts)
    assert len({verdict.case.row for verdict in verdicts}) == 20
