"""What jobs asked for against what they used."""

import csv
import re

import pytest
import yaml

from cohortgmm.pipeline.job import SNAKEMAKE_MB, Usage, usage_path
from cohortgmm.pipeline.usage import COLUMNS, efficiency_table, read_usage, write_efficiency


def write(folder, name, usage):
    usage.write(usage_path(folder / f"{name}.log"))


def test_use_is_read_from_the_tables_beside_the_logs(tmp_path):
    write(tmp_path, "fit/P1/k2", Usage("fit", 44, 500, 0.2, 600))
    write(tmp_path, "fit/P1/k3", Usage("fit", 90, 500, 10.5, 1200))
    write(tmp_path, "merge", Usage("merge", 100, 800, 3.0, 900))
    (tmp_path / "fit" / "P1" / "k4.log").write_text("killed before it could record anything\n")
    assert read_usage(tmp_path) == [
        Usage("fit", 44, 500, 0.2, 600),
        Usage("fit", 90, 500, 10.5, 1200),
        Usage("merge", 100, 800, 3.0, 900),
    ]


def test_jobs_that_were_retried_are_compared_with_their_first_request(tmp_path):
    """Otherwise 600 MB of the 800 of a second attempt would seem to fit."""
    write(tmp_path, "fit/P1/k2", Usage("fit", 330, 800, 700.0, 1200, 2))
    (job,) = read_usage(tmp_path)
    assert (job.memory_asked, job.seconds_asked) == (400, 600)
    (row,) = efficiency_table([job])
    assert row["suggestion"] == "fit: {mem_mb: 900 * attempt, runtime: 20 * attempt}"


def test_one_row_a_rule(tmp_path):
    jobs = [Usage("fit", memory, 500, seconds, 600) for memory, seconds in ((40, 1.0), (60, 2.0), (80, 9.0))]
    few = Usage("merge", 100, 600, 3.0, 7200)
    merge, fit = efficiency_table([*jobs, few])
    assert list(merge) == list(COLUMNS)
    assert (merge["rule"], merge["jobs"], merge["hours_asked"]) == ("merge", 1, 2.0)
    assert (fit["jobs"], fit["asked_mb"], fit["used_mb_median"], fit["used_mb_most"]) == (3, 500, 60, 80)
    assert fit["used_share_most"] == pytest.approx((80 + SNAKEMAKE_MB) / 500, abs=0.005)
    assert (fit["used_seconds_median"], fit["used_seconds_most"], fit["limit_minutes"]) == (2.0, 9.0, 10)
    assert (fit["hours_asked"], fit["hours_used"]) == (0.5, round(12 / 3600, 3))


@pytest.mark.parametrize(
    ("memory", "asked", "seconds", "suggestion"),
    [
        (200, 600, 10.0, ""),  # 470 of 600
        (300, 600, 10.0, "fit: {mem_mb: 900 * attempt}"),  # 570 of 600
        (1000, 6000, 10.0, "fit: {mem_mb: 2000 * attempt}"),  # 1,270 of 6,000
        (10, 700, 10.0, ""),  # mostly Snakemake's own
        (200, 600, 590.0, "fit: {runtime: 15 * attempt}"),
        (400, 600, 590.0, "fit: {mem_mb: 1100 * attempt, runtime: 15 * attempt}"),
    ],
)
def test_requests_that_do_not_fit_are_named(memory, asked, seconds, suggestion):
    (row,) = efficiency_table([Usage("fit", memory, asked, seconds, 600)])
    assert row["suggestion"] == suggestion


def test_the_table_is_written(tmp_path):
    write(tmp_path / "logs", "merge", Usage("merge", 100, 800, 3.0, 900))
    write_efficiency(tmp_path / "logs", tmp_path / "efficiency.tsv")
    with (tmp_path / "efficiency.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert (row["rule"], row["used_mb_most"], row["limit_minutes"]) == ("merge", "100", "15")


def test_jobs_that_request_nothing_and_files_that_are_no_record_are_left_out(tmp_path):
    assert read_usage(tmp_path / "nothing here") == []
    write(tmp_path, "select/P1", Usage("select", 44, 0, 0.2, 600))
    write(tmp_path, "select/P2", Usage("select", 44, 100, 0.2, 600))
    whole = (tmp_path / "select" / "P2.tsv").read_bytes()
    for i, content in enumerate([b"", whole[:20], whole[:-9], whole.replace(b"44", b"x"), b"\xff\xfe" + whole]):
        (tmp_path / "select" / f"Q{i}.tsv").write_bytes(content)
    (tmp_path / "select" / "R.txt").write_bytes(whole)
    (tmp_path / "select" / "S.tsv").mkdir()
    assert read_usage(tmp_path) == [Usage("select", 44, 100, 0.2, 600)]
    write_efficiency(tmp_path / "nothing here", tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "\t".join(COLUMNS) + "\n"


def test_snakemakes_own_memory_is_part_of_the_need():
    assert Usage("fit", 44, 500, 0.2, 600).need == 44 + SNAKEMAKE_MB


def test_the_share_is_that_of_the_job_nearest_to_its_request():
    """Requests grow with the input: the largest use need not be the largest share."""
    jobs = [Usage("fit", memory, asked, 1.0, 600) for memory, asked in ((30, 400), (730, 4000))]
    (row,) = efficiency_table(jobs)
    assert (row["used_mb_most"], row["asked_mb"], row["used_mb_median"]) == (730, 4000, 380)
    assert row["used_share_most"] == 0.75  # 300 of 400, and not 1,000 of 4,000
    assert row["suggestion"] == ""


def test_rules_come_in_order_of_the_hours_they_ask_for():
    jobs = [Usage(rule, 200, 600, 1.0, limit) for rule, limit in (("b", 60), ("c", 60), ("a", 60), ("d", 180))]
    assert [row["rule"] for row in efficiency_table([*jobs, jobs[1]])] == ["d", "c", "a", "b"]


def test_suggestions_fit():
    """A request as suggested is one that nothing more is suggested for."""
    for memory in (1, 100, 333, 1000, 12345, 200_000):
        for asked in (300, 600, 5000, 100_000, 10**6):
            for seconds, limit in ((1.0, 300), (290.0, 300), (4000.0, 300)):
                (row,) = efficiency_table([Usage("fit", memory, asked, seconds, limit)])
                wanted = dict(re.findall(r"(\w+): (\d+)", row["suggestion"]))
                better = Usage(
                    "fit",
                    memory,
                    int(wanted.get("mem_mb", asked)),
                    seconds,
                    60 * int(wanted.get("runtime", limit / 60)),
                )
                assert memory + SNAKEMAKE_MB < better.memory_asked or "mem_mb" not in wanted
                (row,) = efficiency_table([better])
                assert row["suggestion"] == ""


def test_a_suggestion_can_be_put_into_the_profile():
    (row,) = efficiency_table([Usage("qc_cells", 900, 1000, 580.0, 600)])
    assert yaml.safe_load(row["suggestion"]) == {"qc_cells": {"mem_mb": "1800 * attempt", "runtime": "15 * attempt"}}


def test_jobs_without_a_time_limit_are_no_obstacle():
    """`--set-resources fit:runtime=0` is no limit for SLURM."""
    (row,) = efficiency_table([Usage("fit", 200, 600, 10.0, 0)])
    assert (row["limit_minutes"], row["hours_asked"], row["suggestion"]) == (0, 0.0, "")
