"""Commands of SLURM."""

import pytest

from cohortgmm.pipeline.slurm.commands import SlurmError, is_never, min_job_age, queued_jobs, run_command


def test_how_long_slurm_keeps_jobs(programs):
    assert min_job_age() is None
    programs.make("scontrol", "echo 'MaxJobCount             = 20000'; echo 'MinJobAge               = 300 sec'")
    assert min_job_age() == 300
    programs.make("scontrol", "exit 1")
    assert min_job_age() is None


def test_a_command_gives_back_its_output_and_fails_in_one_line(programs):
    with pytest.raises(SlurmError, match=r"^there is no squeue here: run again on a login node$"):
        run_command("squeue", "--me")
    programs.make("squeue", "echo '7 RUNNING None'; echo '8 PENDING ReqNodeNotAvail, a'")
    assert queued_jobs("--me") == {"7": ("RUNNING", "None"), "8": ("PENDING", "ReqNodeNotAvail, a")}
    programs.make("squeue", "echo one >&2; echo ' two' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"^`squeue --me` failed: one; two$"):
        run_command("squeue", "--me")
    programs.make("squeue", "exit 7")
    with pytest.raises(SlurmError, match=r"^`squeue --me` failed: .*exit status 7"):
        run_command("squeue", "--me")


@pytest.mark.parametrize(("reason", "never"), [("BadConstraints", True), ("Priority", False), ("", False)])
def test_reasons_that_never_pass(reason, never):
    assert is_never(reason) == never
