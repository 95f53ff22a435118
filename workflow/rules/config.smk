# The configuration of a run without --configfile.

import os
import sys

from snakemake.exceptions import WorkflowError

# Jobs use the package beside this workflow, even if another one is installed.
sys.path.insert(0, os.path.join(workflow.basedir, "src"))

from cohortgmm.config.file import read_config_file
from cohortgmm.errors import CohortgmmError

DEFAULT_CONFIG = "config/config.yaml"

# A file given with --configfile replaces the default configuration and is not merged into it.
if not workflow.overwrite_configfiles:
    try:
        # Snakemake shows a traceback for some files that it cannot read, and does not name others.
        if workflow.is_main_process and not read_config_file(DEFAULT_CONFIG):
            raise WorkflowError(f"{os.path.abspath(DEFAULT_CONFIG)} holds no keys: config/README.md lists them")
    except CohortgmmError as error:
        raise WorkflowError(str(error)) from None

    configfile: DEFAULT_CONFIG
